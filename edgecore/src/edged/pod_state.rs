//! The heart of edged: what is to be done about a pod, as a pure function of what is desired, what the runtime shows,
//! what this process remembers, and the time. Nothing here asks, waits or fails, so every rule is tested without a
//! runtime.
//!
//! The rules are kubelet's, so that a pod behaves on the edge as it does elsewhere. What has to survive a restart of
//! edgecore, a reboot or a power cut is read from the runtime's own records ([`Observed`]); [`Memory`] is what may be
//! forgotten.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::pod::{DesiredPod, RestartPolicy, Role, container_hash};

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_CAP: Duration = Duration::from_mins(5);
/// A container that ran this long starts over with the back-off.
const BACKOFF_RESET: Duration = Duration::from_mins(10);
/// Sidecars end after the others; however long those took, they get this much.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

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
    /// When the pod was first seen, see [`super::labels::POD_START`].
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
    pub image: String,
    pub image_id: String,
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
    fn is_alive(&self) -> bool {
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

/// What the store wants of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Run,
    /// The object has a deletionTimestamp: end the containers and say so.
    Stop,
    /// The object is gone: leave nothing behind.
    Remove,
}

/// A pod that came to its end by itself.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Terminal {
    pub succeeded: bool,
    pub reason: Option<String>,
    pub message: Option<String>,
}

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
    /// The container that failed its liveness or startup probe.
    pub unhealthy: Option<String>,
    /// By the readiness probe; `None` is no probe.
    pub ready: Option<bool>,
    /// By the startup probe; `None` is no probe.
    pub started: Option<bool>,
    /// The container whose preStop hook has run.
    pub pre_stopped: Option<String>,
    /// Restarts that only the log directory still knows of.
    pub attempt_floor: u32,
}

impl ContainerMemory {
    /// In CrashLoopBackOff, until when.
    pub fn backoff_until(&self, exited: &str) -> Option<Instant> {
        self.backoff.as_ref().filter(|(id, _)| id == exited).map(|(_, until)| *until)
    }

    pub fn backoff_delay(&self) -> Duration {
        delay(self.streak)
    }
}

impl Memory {
    /// Reckons back-off from exits that are new. To be called before [`decide`].
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
            // What ended with its sandbox (a reboot, a power cut) is not to blame.
            if latest.sandbox_id != sandbox.id {
                memory.streak = 0;
            }
            let delay = delay(memory.streak);
            // The clock may have jumped since: never wait longer than the delay from now.
            let passed = positive(exit.finished_at, wall);
            memory.backoff = Some((latest.id.clone(), now + delay.saturating_sub(passed)));
        }
    }

    fn container(&self, name: &str) -> Option<&ContainerMemory> {
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
    pub why: &'static str,
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
    pub course: Course,
}

impl Plan {
    fn of(actions: Vec<Action>) -> Self {
        Self { actions, wake: None, course: Course::Going }
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// See the module.
pub fn decide(pod: &DesiredPod, intent: Intent, observed: &Observed, memory: &Memory, now: Instant) -> Plan {
    if let Some(hold) = memory.hold.filter(|hold| *hold > now) {
        return Plan { actions: Vec::new(), wake: Some(hold), course: Course::Going };
    }
    let terminal = memory.terminal.clone().or_else(|| finished(pod, observed));
    match (intent, terminal) {
        (Intent::Run, None) => run(pod, observed, memory, now),
        (Intent::Run, Some(terminal)) => take_down(pod, observed, memory, now, Course::Ended(terminal)),
        (Intent::Stop, _) => take_down(pod, observed, memory, now, Course::Stopped),
        (Intent::Remove, _) => take_down(pod, observed, memory, now, Course::Removed),
    }
}

/// Whether the pod has come to its end by itself.
fn finished(pod: &DesiredPod, observed: &Observed) -> Option<Terminal> {
    let policy = pod.restart_policy();
    if policy == RestartPolicy::Always {
        return None;
    }
    let terminal = |succeeded| Some(Terminal { succeeded, reason: None, message: None });
    let mains: Vec<_> = pod.spec.containers.iter().map(|spec| observed.latest(&spec.name)).collect();
    let exits: Vec<_> = mains.iter().flatten().filter_map(|container| container.exit()).collect();
    let succeeded = exits.iter().all(|exit| exit.code == 0);
    if exits.len() == mains.len() && !mains.is_empty() && (succeeded || policy == RestartPolicy::Never) {
        return terminal(succeeded);
    }
    if policy == RestartPolicy::OnFailure || mains.iter().flatten().any(|container| container.is_alive()) {
        return None;
    }
    // Never: what ran is not run again, so a sandbox that went away after the first main container had started, or an
    // init container that failed, ends the pod.
    let sandbox_lost = observed.sandbox().is_none_or(|sandbox| !sandbox.ready);
    let init_failed = pod.init_containers().iter().any(|spec| {
        super::pod::init_role(spec) == Role::Init
            && observed.latest(&spec.name).and_then(ContainerView::exit).is_some_and(|exit| exit.code != 0)
    });
    if (sandbox_lost && !exits.is_empty()) || (init_failed && exits.is_empty()) {
        terminal(false)
    } else {
        None
    }
}

/// Containers, then sandboxes; in [`Course::Removed`] all traces of them.
fn take_down(pod: &DesiredPod, observed: &Observed, memory: &Memory, now: Instant, course: Course) -> Plan {
    let passed = memory.stopping_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
    let left = pod.grace().saturating_sub(passed);
    let is_main = |container: &ContainerView| {
        pod.container(&container.name).is_none_or(|(role, _)| role != Role::Sidecar)
    };
    let stops = |main: bool, grace: Duration| -> Vec<Stop> {
        let alive = observed.containers.iter().filter(|container| container.is_alive());
        alive
            .filter(|container| is_main(container) == main)
            .map(|container| Stop {
                id: container.id.clone(),
                name: container.name.clone(),
                grace,
                why: "the pod is stopped",
            })
            .collect()
    };
    for stops in [stops(true, left), stops(false, left.max(SIDECAR_GRACE))] {
        if !stops.is_empty() {
            return Plan::of(vec![Action::StopContainers(stops)]);
        }
    }
    let ready = observed.sandboxes.iter().filter(|sandbox| sandbox.ready);
    let mut actions: Vec<_> = ready.map(|sandbox| Action::StopSandbox { id: sandbox.id.clone() }).collect();
    if course == Course::Removed {
        // The containers go with their sandboxes; those that have lost theirs go by themselves.
        let homeless = observed
            .containers
            .iter()
            .filter(|container| !observed.sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox_id));
        actions.extend(homeless.map(|container| Action::RemoveContainer { id: container.id.clone() }));
        actions.extend(
            observed.sandboxes.iter().map(|sandbox| Action::RemoveSandbox { id: sandbox.id.clone() }),
        );
    }
    Plan { actions, wake: None, course }
}

fn run(pod: &DesiredPod, observed: &Observed, memory: &Memory, now: Instant) -> Plan {
    let Some(sandbox) = observed.sandbox().filter(|sandbox| sandbox.ready) else {
        return renew_sandbox(observed, pod);
    };
    let mut plan = Plan::of(garbage(pod, observed, sandbox));
    // Halfway into being started when edgecore or the runtime was killed: made anew, under the same number.
    let created = observed.containers.iter().filter(|container| container.state == State::Created);
    plan.actions.extend(created.map(|container| Action::RemoveContainer { id: container.id.clone() }));

    let context = Context { pod, observed, memory, sandbox, now };
    if context.initialize(&mut plan) {
        for spec in &pod.spec.containers {
            context.keep_up(&mut plan, Role::Main, spec);
        }
    }
    plan
}

/// The sandbox is missing or dead, and so is all that was in it.
fn renew_sandbox(observed: &Observed, pod: &DesiredPod) -> Plan {
    let alive: Vec<_> = observed
        .containers
        .iter()
        .filter(|container| container.is_alive())
        .map(|container| Stop {
            id: container.id.clone(),
            name: container.name.clone(),
            grace: pod.grace(),
            why: "the sandbox is gone",
        })
        .collect();
    if !alive.is_empty() {
        return Plan::of(vec![Action::StopContainers(alive)]);
    }
    // Also those that are not ready: their addresses and port mappings are given back only now.
    let mut actions: Vec<_> =
        observed.sandboxes.iter().map(|sandbox| Action::StopSandbox { id: sandbox.id.clone() }).collect();
    let attempt = observed.sandbox().map_or(0, |sandbox| sandbox.attempt + 1);
    actions.push(Action::CreateSandbox { attempt });
    Plan::of(actions)
}

/// Of each container, one that has ended is kept for `lastState` and `kubectl logs --previous`; of the sandboxes
/// before, those that hold such a container.
fn garbage(pod: &DesiredPod, observed: &Observed, current: &Sandbox) -> Vec<Action> {
    let kept: Vec<&str> = pod
        .all_containers()
        .filter_map(|(_, spec)| observed.last_exit(&spec.name, None))
        .map(|container| container.id.as_str())
        .collect();
    let is_kept =
        |container: &&ContainerView| kept.contains(&container.id.as_str()) || container.exit().is_none();
    let mut actions = Vec::new();
    for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.id != current.id) {
        if !observed.containers.iter().filter(is_kept).any(|container| container.sandbox_id == sandbox.id) {
            actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
    let dead = observed.containers.iter().filter(|container| !is_kept(container));
    actions.extend(dead.map(|container| Action::RemoveContainer { id: container.id.clone() }));
    actions
}

struct Context<'a> {
    pod: &'a DesiredPod,
    observed: &'a Observed,
    memory: &'a Memory,
    sandbox: &'a Sandbox,
    now: Instant,
}

impl Context<'_> {
    /// Takes the init containers one step on; true when the main ones may run.
    fn initialize(&self, plan: &mut Plan) -> bool {
        let here =
            |name: &str| self.observed.latest(name).filter(|latest| latest.sandbox_id == self.sandbox.id);
        let initialized = self.pod.spec.containers.iter().any(|spec| here(&spec.name).is_some());
        for spec in self.pod.init_containers() {
            let role = super::pod::init_role(spec);
            if role == Role::Sidecar {
                self.keep_up(plan, role, spec);
                let up = here(&spec.name).is_some_and(ContainerView::is_running)
                    && self.memory.container(&spec.name).and_then(|memory| memory.started) != Some(false);
                if !up && !initialized {
                    return false;
                }
                continue;
            }
            if initialized {
                continue;
            }
            match here(&spec.name).map(|latest| &latest.state) {
                Some(State::Exited(exit)) if exit.code == 0 => {}
                Some(State::Running { .. }) => return false,
                _ => {
                    self.keep_up(plan, role, spec);
                    return false;
                }
            }
        }
        true
    }

    /// Starts, restarts or stops one container, as its policy says.
    fn keep_up(&self, plan: &mut Plan, role: Role, spec: &k8s_openapi::api::core::v1::Container) {
        let latest = self.observed.latest(&spec.name);
        let memory = self.memory.container(&spec.name);
        let stop = |container: &ContainerView, why| {
            Action::StopContainers(vec![Stop {
                id: container.id.clone(),
                name: container.name.clone(),
                grace: self.pod.grace(),
                why,
            }])
        };
        match latest {
            Some(container) if container.state == State::Unknown => {
                plan.actions.push(stop(container, "its state is unknown"));
            }
            Some(container) if container.is_running() => {
                let changed = container.hash.as_ref().is_some_and(|hash| *hash != container_hash(spec));
                if changed {
                    plan.actions.push(stop(container, "its spec has changed"));
                } else if memory.and_then(|memory| memory.unhealthy.as_ref()) == Some(&container.id) {
                    plan.actions.push(stop(container, "its probe failed"));
                }
            }
            _ => self.start(plan, role, spec, latest, memory),
        }
    }

    fn start(
        &self,
        plan: &mut Plan,
        role: Role,
        spec: &k8s_openapi::api::core::v1::Container,
        latest: Option<&ContainerView>,
        memory: Option<&ContainerMemory>,
    ) {
        let exited = latest.and_then(|latest| latest.exit().map(|exit| (latest, exit)));
        if let Some((container, exit)) = exited {
            // An image that was changed in place is started whatever the policy says, as by kubelet.
            let changed = container.hash.as_ref().is_some_and(|hash| *hash != container_hash(spec));
            if !changed && !self.restarts(role, exit, container) {
                return;
            }
            if let Some(until) = memory.and_then(|memory| memory.backoff_until(&container.id))
                && until > self.now
                && !changed
            {
                plan.wake_at(until);
                return;
            }
        }
        if let Some((_, until)) = memory.and_then(|memory| memory.failure.as_ref())
            && *until > self.now
        {
            plan.wake_at(*until);
            return;
        }
        let floor = memory.map_or(0, |memory| memory.attempt_floor);
        let attempt = latest.map_or(0, |latest| latest.attempt + 1).max(floor);
        plan.actions.push(Action::StartContainer { name: spec.name.clone(), role, attempt });
    }

    fn restarts(&self, role: Role, exit: &Exit, container: &ContainerView) -> bool {
        match (role, self.pod.restart_policy()) {
            (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
            // A new sandbox starts over with the init containers.
            (Role::Init, _) if container.sandbox_id != self.sandbox.id => true,
            (Role::Init, RestartPolicy::Always | RestartPolicy::OnFailure)
            | (Role::Main, RestartPolicy::OnFailure) => exit.code != 0,
            (_, RestartPolicy::Never) => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
