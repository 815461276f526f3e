//! Looking: the runtime's lists and statuses as [`Observed`].

use futures_util::future;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::LinuxContainerUser;
use proto::cri::v1;

use super::{PodWorker, WorkError};
use crate::edged::{
    labels,
    pod_state::{ContainerView, Exit, Observed, Sandbox, State},
    relist::{self, Listed},
};

/// The kernel's word that it was for want of memory comes to the runtime by another way than the end itself.
const HASTY: SignedDuration = SignedDuration::from_millis(500);

/// Bytes of a termination message that go into the status.
const MAX_TERMINATION_MESSAGE: u64 = 4096;

impl PodWorker {
    pub(super) async fn observe(&mut self) -> Result<(), WorkError> {
        let fresh_enough = |asked_at| self.acted_at.is_none_or(|acted| asked_at > acted);
        let listed = match &self.current.listed {
            Some((asked_at, listed)) if fresh_enough(*asked_at) => listed.clone(),
            _ if self.foreseen.is_some() => self.foreseen.take().unwrap_or_default(),
            _ => {
                let uid = self.current.pod.uid.clone();
                let (_, mut pods) = relist::list(&self.runtime, Some(&uid)).await?;
                pods.remove(&uid).unwrap_or_default()
            }
        };
        self.fetch_statuses(&listed).await?;
        self.observed = self.translate(&listed);
        self.foreseen = Some(listed);
        self.fetch_addresses().await
    }

    async fn fetch_statuses(&mut self, listed: &Listed) -> Result<(), WorkError> {
        let hasty = std::mem::take(&mut self.hasty);
        self.statuses.retain(|id, _| {
            listed.containers.iter().any(|container| container.id == *id) && !hasty.contains(id)
        });
        let stale: Vec<&str> = listed
            .containers
            .iter()
            .filter(|container| {
                let matters = matches!(
                    container.state(),
                    v1::ContainerState::ContainerRunning | v1::ContainerState::ContainerExited
                );
                matters && self.statuses.get(&container.id).is_none_or(|known| known.state != container.state)
            })
            .map(|container| container.id.as_str())
            .collect();
        let runtime = self.runtime.clone();
        let answers = future::join_all(stale.iter().map(|id| runtime.container_status(id))).await;
        for (id, answer) in stale.into_iter().zip(answers) {
            if let Some(status) = answer? {
                self.note_status(id, status);
            }
        }
        Ok(())
    }

    pub(super) fn note_status(&mut self, id: &str, status: v1::ContainerStatus) {
        if status.state() == v1::ContainerState::ContainerExited
            && Timestamp::now().duration_since(time(status.finished_at)) < HASTY
        {
            self.hasty.push(id.to_owned());
        }
        self.statuses.insert(id.to_owned(), status);
    }

    fn translate(&self, listed: &Listed) -> Observed {
        let sandboxes = listed.sandboxes.iter().map(|sandbox| Sandbox {
            id: sandbox.id.clone(),
            attempt: sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            ready: sandbox.state() == v1::PodSandboxState::SandboxReady,
            created_at: time(sandbox.created_at),
            pod_start: sandbox.annotations.get(labels::POD_START).and_then(|text| text.parse().ok()),
        });
        let containers = listed.containers.iter().map(|container| self.container(container));
        Observed { sandboxes: sandboxes.collect(), containers: containers.collect() }
    }

    fn container(&self, container: &v1::Container) -> ContainerView {
        let status = self.statuses.get(&container.id);
        let metadata = container.metadata.clone().unwrap_or_default();
        let counted = container.annotations.get(labels::RESTART_COUNT).and_then(|text| text.parse().ok());
        let state = match (status.map_or(container.state(), v1::ContainerStatus::state), status) {
            (v1::ContainerState::ContainerCreated, _) => State::Created,
            (v1::ContainerState::ContainerRunning, Some(status)) => {
                State::Running { started_at: time(status.started_at) }
            }
            (v1::ContainerState::ContainerExited, Some(status)) if never_began(status) => State::Created,
            (v1::ContainerState::ContainerExited, Some(status)) => State::Exited(self.exit(status)),
            _ => State::Unknown,
        };
        let image = status
            .and_then(|status| status.image.as_ref())
            .or(container.image.as_ref())
            .map(|image| image.image.clone())
            .unwrap_or_default();
        ContainerView {
            id: container.id.clone(),
            sandbox_id: container.pod_sandbox_id.clone(),
            attempt: counted.unwrap_or(metadata.attempt),
            hash: container.annotations.get(labels::CONTAINER_HASH).cloned(),
            resources: container.annotations.get(labels::RESOURCES).cloned(),
            image: self.image_name(&metadata.name, image),
            image_id: status.map_or_else(|| container.image_ref.clone(), |status| status.image_ref.clone()),
            name: metadata.name,
            user: status.and_then(|status| status.user.as_ref()?.linux.as_ref()).map(user),
            state,
        }
    }

    /// Containers are made from the image's id; people want to see its name.
    fn image_name(&self, container: &str, image: String) -> String {
        if !image.starts_with("sha256:") {
            return image;
        }
        let spec = self.current.pod.container(container).and_then(|(_, spec)| spec.image.clone());
        spec.unwrap_or(image)
    }

    fn exit(&self, status: &v1::ContainerStatus) -> Exit {
        let started_at = time(status.started_at);
        let finished_at = time(status.finished_at);
        let message =
            if status.message.is_empty() { self.termination_message(status) } else { status.message.clone() };
        Exit { code: status.exit_code, reason: status.reason.clone(), message, started_at, finished_at }
    }

    fn termination_message(&self, status: &v1::ContainerStatus) -> String {
        let metadata = status.metadata.clone().unwrap_or_default();
        let path = self.termination_file(&self.current.pod, &metadata.name, metadata.attempt);
        let mut text = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| {
            std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_TERMINATION_MESSAGE), &mut text)
        });
        let to_logs = status.annotations.get(labels::TERMINATION_MESSAGE_POLICY).map(String::as_str)
            == Some("FallbackToLogsOnError");
        if (read.is_err() || text.is_empty()) && to_logs && status.exit_code != 0 {
            return crate::edged::logs::tail(std::path::Path::new(&status.log_path)).unwrap_or_default();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn fetch_addresses(&mut self) -> Result<(), WorkError> {
        let ready = self.observed.sandbox().filter(|sandbox| sandbox.ready).map(|sandbox| sandbox.id.clone());
        // Without one the pod keeps its last: of a job that is done, people want to know where it was.
        let Some(id) = ready.filter(|_| !self.current.pod.host_network()) else { return Ok(()) };
        if self.addresses.as_ref().is_some_and(|(known, ips)| *known == id && !ips.is_empty()) {
            return Ok(());
        }
        if let Some(status) = self.runtime.sandbox_status(&id).await? {
            self.note_addresses(&status);
        }
        Ok(())
    }

    pub(super) fn note_addresses(&mut self, status: &v1::PodSandboxStatus) {
        if self.current.pod.host_network() {
            return;
        }
        let network = status.network.iter();
        let all = network.flat_map(|network| {
            std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|more| &more.ip))
        });
        let ips: Vec<String> = all.filter(|ip| !ip.is_empty()).cloned().collect();
        self.pass = Some(self.shared.doors.admit(&ips));
        self.addresses = Some((status.id.clone(), ips));
    }
}

/// containerd's words for a start whose caller died before there was a process: nothing has run, nothing has ended.
fn never_began(status: &v1::ContainerStatus) -> bool {
    status.reason == "StartError"
        && status.message.starts_with("failed to create containerd task")
        && status.message.contains("context canceled")
}

fn user(user: &v1::LinuxContainerUser) -> LinuxContainerUser {
    let groups = &user.supplemental_groups;
    LinuxContainerUser {
        uid: user.uid,
        gid: user.gid,
        supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
    }
}

fn time(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}
