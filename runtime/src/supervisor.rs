//! Tasks with a name and an owner. When one of them ends, all are told to stop: a dead task in a live process is the
//! worst state that a daemon can be in.

use std::{any::Any, fmt, future::Future, time::Duration};

use tokio::{
    task::{Id, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, warn};

/// Why [`Supervisor::join`] returned.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The stop token was cancelled, and every task ended in time.
    Stopped,
    /// A task ended on its own: it returned, failed or panicked.
    Failed { task: &'static str, reason: String },
    /// Tasks that were still running when the grace period ended, and were aborted.
    Aborted { tasks: Vec<&'static str> },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Failed { task, reason } => write!(f, "task {task} ended: {reason}"),
            Self::Aborted { tasks } => write!(f, "aborted after the grace period: {}", tasks.join(", ")),
        }
    }
}

/// Owns a group of tasks that live and die together.
pub struct Supervisor {
    stop: CancellationToken,
    tasks: JoinSet<Result<(), String>>,
    names: Vec<(Id, &'static str)>,
}

impl Supervisor {
    /// `stop` is cancelled when any task ends, and cancelling it stops all of them.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tasks: JoinSet::new(), names: Vec::new() }
    }

    /// Runs a task that ends, with `Ok`, only after the stop token was cancelled.
    pub fn spawn<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let span = tracing::info_span!("task", name);
        let task = async move { task.await.map_err(|error| crate::chain(&error).to_string()) };
        let id = self.tasks.spawn(task.instrument(span)).id();
        self.names.push((id, name));
    }

    /// Waits until the stop token is cancelled or a task ends, then gives the others `grace` to end.
    pub async fn join(mut self, grace: Duration) -> Outcome {
        let mut outcome = Outcome::Stopped;
        tokio::select! {
            // Both arms only observe: nothing is lost when the other one wins.
            () = self.stop.cancelled() => {}
            Some(ended) = self.tasks.join_next_with_id() => {
                let (task, reason) = self.describe(ended);
                if !self.stop.is_cancelled() {
                    error!(task, reason, "task ended; stopping the process");
                    outcome = Outcome::Failed { task, reason };
                }
            }
        }
        self.stop.cancel();
        let deadline = time::Instant::now() + grace;
        loop {
            match time::timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(None) => return outcome,
                Ok(Some(ended)) => {
                    let (task, reason) = self.describe(ended);
                    info!(task, reason, "task stopped");
                }
                Err(_) => break,
            }
        }
        let tasks: Vec<_> = self.names.iter().map(|(_, name)| *name).collect();
        warn!(?tasks, "tasks still running after the grace period; aborting");
        self.tasks.shutdown().await;
        if outcome == Outcome::Stopped { Outcome::Aborted { tasks } } else { outcome }
    }

    fn describe(
        &mut self,
        ended: Result<(Id, Result<(), String>), tokio::task::JoinError>,
    ) -> (&'static str, String) {
        let (id, reason) = match ended {
            Ok((id, Ok(()))) => (id, "returned".to_owned()),
            Ok((id, Err(error))) => (id, error),
            Err(error) if error.is_panic() => {
                let id = error.id();
                (id, format!("panicked: {}", panic_message(error.into_panic().as_ref())))
            }
            Err(error) => (error.id(), error.to_string()),
        };
        let at = self.names.iter().position(|(known, _)| *known == id);
        let name = at.map_or("unknown", |at| self.names.swap_remove(at).1);
        (name, reason)
    }
}

/// The text of a caught panic.
pub fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future, io};

    use super::*;

    #[tokio::test]
    async fn a_failed_task_stops_the_others() {
        let stop = CancellationToken::new();
        let mut tasks = Supervisor::new(stop.clone());
        let child = stop.clone();
        tasks.spawn("patient", async move {
            child.cancelled().await;
            Ok::<_, Infallible>(())
        });
        tasks.spawn("broken", async { Err(io::Error::other("no disk")) });
        let outcome = tasks.join(Duration::from_secs(5)).await;
        assert_eq!(outcome, Outcome::Failed { task: "broken", reason: "no disk".to_owned() });
        assert!(stop.is_cancelled());
    }

    fn panics() -> Result<(), Infallible> {
        panic!("at the disco")
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_with_its_message() {
        let mut tasks = Supervisor::new(CancellationToken::new());
        tasks.spawn("panicking", async { panics() });
        let outcome = tasks.join(Duration::from_secs(5)).await;
        assert_eq!(outcome.to_string(), "task panicking ended: panicked: at the disco");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_task_is_aborted_after_the_grace_period() {
        let stop = CancellationToken::new();
        let mut tasks = Supervisor::new(stop.clone());
        tasks.spawn("deaf", future::pending::<Result<(), Infallible>>());
        stop.cancel();
        let outcome = tasks.join(Duration::from_secs(30)).await;
        assert_eq!(outcome, Outcome::Aborted { tasks: vec!["deaf"] });
    }
}
