//! The program: arguments, log, and the exit code.

use clap::Parser;
use escadre_runtime::args::Args;
use escadre_runtime::{app, telemetry};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = telemetry::start(args.log_format, &args.log) {
        eprintln!("error: --log: {error}");
        return ExitCode::from(2);
    }
    match app::run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.write_termination_log(&args.termination_log);
            ExitCode::from(failure.exit_code())
        }
    }
}
