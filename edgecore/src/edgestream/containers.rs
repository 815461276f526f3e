//! Which container of the runtime is meant.

use std::path::PathBuf;

use http::StatusCode;
use proto::cri::v1;

use super::{Refusal, runtime_failed};
use crate::edged::{
    cri::Runtime,
    labels,
    pod::{DesiredPod, RestartPolicy},
};

#[derive(Clone)]
pub(super) struct Containers {
    runtime: Runtime,
}

/// Where a container's log is.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: String,
    pub(super) path: PathBuf,
}

impl Containers {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    /// Those of that name, the newest first.
    async fn find(&self, pod: &DesiredPod, name: &str) -> Result<Vec<v1::Container>, Refusal> {
        if pod.container(name).is_none() {
            let reason = format!("container {name:?} is not in pod {:?}\n", pod.name());
            return Err(Refusal(StatusCode::NOT_FOUND, reason));
        }
        let mut label_selector = labels::pod_selector(pod.uid.as_str());
        label_selector.insert(labels::CONTAINER_NAME.to_owned(), name.to_owned());
        let filter = v1::ContainerFilter { label_selector, ..Default::default() };
        let mut found = self.runtime.list_containers(filter).await.map_err(|error| runtime_failed(&error))?;
        found.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(found)
    }

    /// The id of the container that runs.
    pub(super) async fn running(&self, pod: &DesiredPod, name: &str) -> Result<String, Refusal> {
        let found = self.find(pod, name).await?;
        let running = found.into_iter().find(is_running);
        let missing =
            || Refusal(StatusCode::NOT_FOUND, format!("container not found ({name:?}): it does not run\n"));
        running.map(|container| container.id).ok_or_else(missing)
    }

    /// The id of the pod's sandbox, which holds its network.
    pub(super) async fn sandbox(&self, pod: &DesiredPod) -> Result<String, Refusal> {
        let label_selector = labels::pod_selector(pod.uid.as_str());
        let filter = v1::PodSandboxFilter { label_selector, ..Default::default() };
        let found = self.runtime.list_sandboxes(filter).await.map_err(|error| runtime_failed(&error))?;
        let ready = |sandbox: &v1::PodSandbox| sandbox.state() == v1::PodSandboxState::SandboxReady;
        let newest = found.into_iter().filter(ready).max_by_key(|sandbox| sandbox.created_at);
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("pod {:?} does not run\n", pod.name()));
        newest.map(|sandbox| sandbox.id).ok_or_else(missing)
    }

    pub(super) async fn log(&self, pod: &DesiredPod, name: &str, previous: bool) -> Result<Log, Refusal> {
        let mut found = self.find(pod, name).await?.into_iter().filter(is_started);
        let bad = |reason: String| Refusal(StatusCode::BAD_REQUEST, reason);
        let chosen = if previous {
            // One that has ended and is about to be started again is the previous one already, as in its status.
            let again = pod.restart_policy() != RestartPolicy::Never;
            found.find(|container| !is_running(container)).filter(|container| {
                again || container.metadata.as_ref().is_some_and(|metadata| metadata.attempt > 0)
            })
        } else {
            found.next()
        };
        let Some(container) = chosen else {
            let pod = pod.name();
            return Err(bad(if previous {
                format!("previous terminated container {name:?} in pod {pod:?} not found\n")
            } else {
                format!("container {name:?} in pod {pod:?} is waiting to start\n")
            }));
        };
        let status =
            self.runtime.container_status(&container.id).await.map_err(|error| runtime_failed(&error))?;
        match status {
            Some(status) if !status.log_path.is_empty() => {
                Ok(Log { id: container.id, path: status.log_path.into() })
            }
            _ => Err(bad(format!("container {name:?} in pod {:?} has no log\n", pod.name()))),
        }
    }

    /// A runtime that does not answer counts as one whose container runs.
    pub(super) async fn is_running(&self, id: &str) -> bool {
        match self.runtime.container_status(id).await {
            Ok(status) => status.is_some_and(|status| status.state() == v1::ContainerState::ContainerRunning),
            Err(_) => true,
        }
    }
}

fn is_running(container: &v1::Container) -> bool {
    container.state() == v1::ContainerState::ContainerRunning
}

fn is_started(container: &v1::Container) -> bool {
    container.state() != v1::ContainerState::ContainerCreated
}
