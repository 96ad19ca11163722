//! The operator: parse arguments, start telemetry, run until told to end.

use std::io::Write as _;

use clap::Parser as _;
use escadre_operator::{app, args::Args, reference, telemetry};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.print_reference {
        std::io::stdout().write_all(reference::page()?.as_bytes())?;
        return Ok(());
    }
    telemetry::start(args.log_format);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    app::run(args, shutdown).await
}
