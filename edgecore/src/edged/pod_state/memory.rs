//! What this process remembers of a pod, and may forget: back-off, failures, the verdicts of probes.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use tokio::time::Instant;

use super::{
    observed::{ContainerView, Observed, State},
    plan::{Terminal, Why},
};
use crate::edged::{pod::DesiredPod, resources};

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_CAP: Duration = Duration::from_mins(5);
/// A container that ran this long starts over with the back-off.
const BACKOFF_RESET: Duration = Duration::from_mins(10);

/// Why something has not started, in kubectl's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What this process remembers of a pod.
#[derive(Debug, Default)]
pub struct Memory {
    pub containers: BTreeMap<String, ContainerMemory>,
    /// When its containers were first told to end.
    pub stopping_since: Option<Instant>,
    /// Something about the whole pod failed: nothing is started before.
    pub hold: Option<Instant>,
    /// What the whole pod waits for.
    pub waiting: Option<Waiting>,
    pub terminal: Option<Terminal>,
}

#[derive(Debug, Default)]
pub struct ContainerMemory {
    /// Restarts in a row after short runs.
    streak: u32,
    /// The exit that the back-off was reckoned from, and its end.
    backoff: Option<(String, Instant)>,
    /// Why the last attempt to start it failed, and when to try again.
    pub failure: Option<(Waiting, Instant)>,
    pub failures: u32,
    /// The container that failed its liveness or startup probe, and which of them.
    pub unhealthy: Option<(String, Why)>,
    /// By the readiness probe; `None` is no probe.
    pub ready: Option<bool>,
    /// By the startup probe; `None` is no probe.
    pub started: Option<bool>,
    /// The container whose preStop hook has run.
    pub pre_stopped: Option<String>,
    /// The container whose resources were changed while it ran, and to what: [`resources::resizable`].
    pub resized: Option<(String, String)>,
    /// What it could not be changed to, why, and when to try again.
    pub resize_failure: Option<(String, Waiting, Instant)>,
    /// Restarts that only the log directory still knows of.
    pub attempt_floor: u32,
}

impl ContainerMemory {
    /// In CrashLoopBackOff, until when.
    pub fn backoff_until(&self, exited: &str) -> Option<Instant> {
        self.backoff.as_ref().filter(|(id, _)| id == exited).map(|(_, until)| *until)
    }

    /// Why a container does not have what its pod says now.
    pub fn unresized(&self, spec: &Container) -> Option<(&Waiting, Instant)> {
        let (wanted, why, until) = self.resize_failure.as_ref()?;
        (*wanted == resources::resizable(spec)).then_some((why, *until))
    }

    pub fn backoff_delay(&self) -> Duration {
        delay(self.streak)
    }
}

impl Memory {
    /// Reckons back-off from exits that are new. To be called before [`super::decide`].
    pub fn note(&mut self, pod: &DesiredPod, observed: &Observed, now: Instant, wall: Timestamp) {
        let Some(sandbox) = observed.sandbox() else { return };
        for (_, spec) in pod.all_containers() {
            let Some(latest) = observed.latest(&spec.name) else { continue };
            let State::Exited(exit) = &latest.state else { continue };
            let memory = self.containers.entry(spec.name.clone()).or_default();
            if memory.backoff.as_ref().is_some_and(|(id, _)| *id == latest.id) {
                continue;
            }
            let known = memory.backoff.is_some();
            let ran = positive(exit.started_at, exit.finished_at);
            memory.streak = if latest.attempt == 0 || ran >= BACKOFF_RESET {
                0
            } else if known {
                memory.streak.saturating_add(1).min(latest.attempt)
            } else {
                // After a restart of edgecore: as if it had been watching.
                latest.attempt
            };
            // What ended with its sandbox (a reboot, a power cut) is not to blame, whether or not there is a new one yet.
            if latest.sandbox_id != sandbox.id || !sandbox.ready {
                memory.streak = 0;
            }
            let delay = delay(memory.streak);
            // The clock may have jumped since: never wait longer than the delay from now.
            let passed = positive(exit.finished_at, wall);
            memory.backoff = Some((latest.id.clone(), now + delay.saturating_sub(passed)));
        }
    }

    /// What a container has of the resources that can change while it runs; `None` for one that does not say.
    pub fn applied<'a>(&'a self, container: &'a ContainerView) -> Option<&'a str> {
        let resized = self.containers.get(&container.name).and_then(|memory| memory.resized.as_ref());
        let resized = resized.filter(|(id, _)| *id == container.id);
        resized.map(|(_, applied)| applied.as_str()).or(container.resources.as_deref())
    }

    pub(super) fn container(&self, name: &str) -> Option<&ContainerMemory> {
        self.containers.get(name)
    }
}

fn delay(streak: u32) -> Duration {
    match streak {
        0 => Duration::ZERO,
        _ => BACKOFF_FIRST.saturating_mul(1 << (streak - 1).min(10)).min(BACKOFF_CAP),
    }
}

/// Zero when the clock was set back in between.
fn positive(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
