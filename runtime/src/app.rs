//! Runs one subcommand.

use crate::args::Command;
use crate::failure::{Failure, chain};
use crate::{bench, fetch, inspect, serve, threads};
use std::future::Future;

/// Threads for HTTP. They only wait and copy; the arithmetic has its own.
const HTTP_THREADS: usize = 2;

/// Runs one subcommand to its end.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Fetch(args) => block_on(fetch::run(args)),
        Command::Serve(args) => {
            threads::settle()?;
            block_on(serve::run(args))
        }
        Command::Bench(args) => {
            threads::settle()?;
            bench::run(&args).map_err(|error| Failure::new("BenchFailed", chain(&error)))
        }
        Command::Inspect(args) => inspect::run(&args).map_err(|error| Failure::new("InspectFailed", chain(&error))),
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
