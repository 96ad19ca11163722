//! How many threads compute. The tensor library reads that from the environment, once, and a process cannot change its
//! own environment safely: so the program starts itself once more when it is not right.

use crate::args::ServeArgs;
use crate::backend::thread_environment;
use crate::cgroup;
use crate::failure::Failure;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Says that the environment was set by the program itself, so that it is never started in a circle.
const SETTLED: &str = "ESCADRE_THREADS_SETTLED";

/// Threads that may compute: what was asked for, or else what the container has.
pub(super) fn count(args: &ServeArgs) -> NonZeroUsize {
    let available = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    args.threads.unwrap_or_else(|| cgroup::read().threads(available))
}

/// Returns when the environment has the right number of threads; else replaces this process by one whose has, with the
/// same arguments and the same process id. Must be called before anything is opened or started.
pub fn settle(args: &ServeArgs) -> Result<(), Failure> {
    let wanted = thread_environment(count(args).get());
    let is_right = wanted
        .iter()
        .all(|(name, value)| std::env::var(name).is_ok_and(|known| known == *value));
    if is_right || std::env::var_os(SETTLED).is_some() {
        return Ok(());
    }
    let failure = |error: std::io::Error| {
        Failure::new(
            "Internal",
            format!("could not start again with the right threads: {error}"),
        )
    };
    let program = std::env::current_exe().map_err(failure)?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(wanted)
        .env(SETTLED, "1")
        .exec();
    Err(failure(error))
}
