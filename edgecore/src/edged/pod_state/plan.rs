//! What is to be done about a pod.

use std::time::Duration;

use tokio::time::Instant;

use crate::edged::pod::Role;

/// A pod that came to its end by itself.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Terminal {
    pub succeeded: bool,
    pub reason: Option<String>,
    pub message: Option<String>,
    /// The addresses that it had.
    #[serde(default)]
    pub pod_ips: Vec<String>,
}

impl Terminal {
    pub fn ended(succeeded: bool) -> Self {
        Self { succeeded, reason: None, message: None, pod_ips: Vec::new() }
    }

    pub fn failed(reason: &str, message: String) -> Self {
        Self { reason: Some(reason.to_owned()), message: Some(message), ..Self::ended(false) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    StopContainers(Vec<Stop>),
    RemoveContainer {
        id: String,
    },
    /// Takes its network down; its containers must have ended.
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    CreateSandbox {
        attempt: u32,
    },
    /// Its limits are changed while it runs.
    ResizeContainer {
        id: String,
        name: String,
    },
    StartContainer {
        name: String,
        role: Role,
        attempt: u32,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Stop {
    pub id: String,
    pub name: String,
    pub grace: Duration,
    pub why: Why,
}

/// Why a container is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    PodStops,
    SandboxGone,
    /// The runtime does not know its state.
    Unknown,
    /// Its image was changed in place.
    Changed,
    /// Its resources were, and its resizePolicy asks for it.
    Resized,
    Liveness,
    Startup,
    PostStart,
}

impl Why {
    /// As the kubelet says it in its events.
    pub fn message(self, container: &str) -> String {
        let cause = match self {
            Self::PodStops | Self::SandboxGone => return format!("Stopping container {container}"),
            Self::Resized => return format!("Container {container} resize requires restart"),
            Self::Unknown => "is in an unknown state",
            Self::Changed => "definition changed",
            Self::Liveness => "failed liveness probe",
            Self::Startup => "failed startup probe",
            Self::PostStart => return "FailedPostStartHook".to_owned(),
        };
        format!("Container {container} {cause}, will be restarted")
    }
}

/// How far the pod is once the plan's actions are done.
#[derive(Clone, Debug, PartialEq)]
pub enum Course {
    /// It runs, or is to.
    Going,
    /// It came to its end; nothing of it runs.
    Ended(Terminal),
    /// It was told to stop, and nothing of it runs.
    Stopped,
    /// Nothing of it is left in the runtime.
    Removed,
}

#[derive(Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When to decide again even if nothing happens.
    pub wake: Option<Instant>,
    /// Containers that ended and wait for their next start.
    pub backing_off: Vec<String>,
    pub course: Course,
}

impl Plan {
    pub(super) fn of(actions: Vec<Action>) -> Self {
        Self::to(Course::Going, actions)
    }

    pub(super) fn to(course: Course, actions: Vec<Action>) -> Self {
        Self { actions, wake: None, backing_off: Vec::new(), course }
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
