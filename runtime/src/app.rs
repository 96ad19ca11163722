//! Runs one subcommand.

use crate::args::{Command, DescribeArgs};
use crate::failure::{Failure, chain};
use crate::server::openapi;
use crate::{bench, fetch, inspect, serve, sign, verify};
use std::future::Future;
use std::io::{self, Write as _};

/// Threads for HTTP. They only wait and copy; the arithmetic has its own.
const HTTP_THREADS: usize = 2;

/// Runs one subcommand to its end.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Fetch(args) => block_on(fetch::run(args)),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Describe(args) => describe(&args).map_err(|error| Failure::new("Internal", error.to_string())),
        Command::Bench(args) => bench::run(&args).map_err(|error| Failure::new("BenchFailed", chain(&error))),
        Command::Verify(args) => Ok(verify::run(&args)?),
        Command::Sign(args) => Ok(sign::run(&args)?),
        Command::Inspect(args) => inspect::run(&args).map_err(|error| Failure::new("InspectFailed", chain(&error))),
    }
}

fn describe(args: &DescribeArgs) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.markdown {
        out.write_all(openapi::page().as_bytes())
    } else {
        writeln!(out, "{:#}", openapi::document())
    }
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new("Internal", format!("could not start threads: {error}")))?;
    let result = runtime.block_on(work);
    // Whatever is left, such as a file being hashed, must not hold up the end.
    runtime.shutdown_background();
    result
}
