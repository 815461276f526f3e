//! SIGTERM and SIGINT ask a daemon to stop; a second one ends it at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The signals that stop a daemon, hooked before anything else runs.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn hook() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Cancels `stop` on the first signal and returns on the second; the caller then leaves without waiting.
    pub async fn run(mut self, stop: CancellationToken) {
        // Waited for outside of the macro, which evaluates nothing where its level is filtered out.
        let signal = self.next().await;
        info!(signal, "stopping");
        stop.cancel();
        let signal = self.next().await;
        info!(signal, "second signal; leaving at once");
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            // Signals are kept by the other stream when one wins.
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// There is no subscriber here, so every level is filtered out.
    #[tokio::test]
    async fn signals_are_waited_for_at_any_log_level() {
        let stop = CancellationToken::new();
        let running = Signals::hook().unwrap().run(stop.clone());
        assert!(running.now_or_never().is_none());
        assert!(!stop.is_cancelled());
    }
}
