//! A task that containerd's CRI has lost sight of.
//!
//! When a client dies while its `StartContainer` is under way, containerd ends the call wherever it is. It may have
//! made the task by then: the container is "exited" for CRI, its task waits or even runs, and `RemoveContainer` and
//! `RemovePodSandbox` fail until containerd is started anew. Its own API, at the same socket, can still end the task.

use std::time::Duration;

use proto::cri::containerd::tasks::{DeleteTaskRequest, KillRequest};
use tokio::time::{self, Instant};
use tonic::{Request, metadata::MetadataValue};

use super::{ASK_DEADLINE, CriError, Runtime, gone_is_fine};

/// Where containerd's CRI keeps its containers.
const NAMESPACE: &str = "k8s.io";
const SIGKILL: u32 = 9;
/// How long what was killed may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

impl Runtime {
    pub(super) async fn end_lost_task(&self, id: &str) -> Result<(), CriError> {
        tracing::warn!(container = id, "the runtime has lost sight of a container it has a task for: ended");
        let container_id = id.to_owned();
        let kill = KillRequest { container_id, exec_id: String::new(), signal: SIGKILL, all: true };
        let killed = self.call("Kill", Some(ASK_DEADLINE), self.tasks.clone().kill(namespaced(kill))).await;
        if let Err(error) = killed {
            // Its process may have ended, or not have begun.
            tracing::debug!(container = id, %error, "task not killed");
        }
        let began = Instant::now();
        loop {
            let delete = DeleteTaskRequest { container_id: id.to_owned() };
            let deleted =
                self.call("Delete", Some(ASK_DEADLINE), self.tasks.clone().delete(namespaced(delete))).await;
            match gone_is_fine(deleted) {
                // Its process ends a moment after it was killed.
                Err(CriError::Refused { .. }) if began.elapsed() < END_DEADLINE => time::sleep(POLL).await,
                result => return result,
            }
        }
    }
}

fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}
