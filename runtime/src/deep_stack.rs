//! Work that calls itself as deeply as what it is given is nested. On the stack of an ordinary thread it could come to the
//! end, and with it the process.

/// Why such work has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeepStackError {
    /// The system gives none.
    #[error("there is no thread for it")]
    NoThread,
    /// There is a bug in what does it.
    #[error("it panicked")]
    Panicked,
}

/// Does the work on a thread with a stack of so many bytes. Memory is given to it only as far as it is used.
pub(crate) fn run<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Result<T, DeepStackError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes);
        let thread = thread.spawn_scoped(scope, work).map_err(|_| DeepStackError::NoThread)?;
        thread.join().map_err(|_| DeepStackError::Panicked)
    })
}
