//! What the runtime has of a pod: all that survives a restart of edgecore, a reboot or a power cut.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::LinuxContainerUser;

/// What the runtime has of a pod.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<ContainerView>,
}

#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    /// When the pod was first seen, see [`crate::edged::labels::POD_START`].
    pub pod_start: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct ContainerView {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    /// The restart count at its creation.
    pub attempt: u32,
    pub hash: Option<String>,
    /// What it was made with, see [`crate::edged::labels::RESOURCES`].
    pub resources: Option<String>,
    pub image: String,
    pub image_id: String,
    /// Whom its first process ran as, where the runtime tells it: containerd from 2.0.
    pub user: Option<LinuxContainerUser>,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Created,
    Running { started_at: Timestamp },
    Exited(Exit),
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
}

impl ContainerView {
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// It holds resources, or may.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Unknown)
    }
}

impl Observed {
    /// The newest sandbox: the only one in which containers are started.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().max_by_key(|sandbox| (sandbox.attempt, sandbox.created_at))
    }

    /// The newest container of that name that was ever started.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers
            .iter()
            .filter(|container| container.name == name && container.state != State::Created)
            .max_by_key(|container| container.attempt)
    }

    /// The newest that ended, but for `except`.
    pub fn last_exit(&self, name: &str, except: Option<&str>) -> Option<&ContainerView> {
        self.containers
            .iter()
            .filter(|container| container.name == name && container.exit().is_some())
            .filter(|container| Some(container.id.as_str()) != except)
            .max_by_key(|container| container.attempt)
    }

    pub fn pod_start(&self) -> Option<Timestamp> {
        self.sandboxes.iter().filter_map(|sandbox| sandbox.pod_start).min()
    }
}
