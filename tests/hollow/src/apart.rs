//! Work in a thread and a runtime of its own, so that it does not wait behind a thousand nodes, nor they behind it; what it
//! costs can be told apart by the thread's name.

use std::thread::JoinHandle;

use anyhow::Result;

/// Starts what `work` makes; it goes on when the handle is dropped.
pub(crate) fn spawn<T, W, F>(name: &str, work: W) -> Result<JoinHandle<Result<T>>>
where
    T: Send + 'static,
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<T>>,
{
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        executor.block_on(work())
    })?)
}
