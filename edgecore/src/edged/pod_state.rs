//! The heart of edged: what is to be done about a pod, as a pure function of what is desired, what the runtime shows,
//! what this process remembers, and the time. Nothing here asks, waits or fails, so every rule is tested without a
//! runtime.
//!
//! The rules are kubelet's, so that a pod behaves on the edge as it does elsewhere. What has to survive a restart of
//! edgecore, a reboot or a power cut is read from the runtime's own records ([`Observed`]); [`Memory`] is what may be
//! forgotten.

mod memory;
mod observed;
mod plan;

use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::time::Instant;

pub use self::{
    memory::{ContainerMemory, Memory, Waiting},
    observed::{ContainerView, Exit, Observed, Sandbox, State},
    plan::{Action, Course, Plan, Stop, Terminal, Why},
};

use super::{
    pod::{DesiredPod, RestartPolicy, Role, container_hash},
    resources,
};

/// However long something else took of the grace period, each container gets this much of it: a kill with no signal to
/// end is for those who asked for it.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// What the store wants of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Run,
    /// The object has a deletionTimestamp: end the containers and say so.
    Stop,
    /// The object is gone: leave nothing behind.
    Remove,
}

/// See the module.
pub fn decide(pod: &DesiredPod, intent: Intent, observed: &Observed, memory: &Memory, now: Instant) -> Plan {
    let terminal = memory.terminal.clone().or_else(|| finished(pod, observed));
    // Nothing is started before; what is to end does not wait.
    if let Some(hold) = memory.hold.filter(|hold| *hold > now)
        && intent == Intent::Run
        && terminal.is_none()
    {
        let mut plan = Plan::of(Vec::new());
        plan.wake_at(hold);
        return plan;
    }
    match (intent, terminal) {
        (Intent::Run, None) => run(pod, observed, memory, now),
        (Intent::Run, Some(terminal)) => take_down(pod, observed, memory, now, Course::Ended(terminal)),
        (Intent::Stop, _) => take_down(pod, observed, memory, now, Course::Stopped),
        (Intent::Remove, _) => take_down(pod, observed, memory, now, Course::Removed),
    }
}

/// Whether the pod has come to its end by itself, here or, where nothing is left of it, as the cloud knows.
fn finished(pod: &DesiredPod, observed: &Observed) -> Option<Terminal> {
    if let Some(succeeded) = pod.ended {
        return Some(Terminal::ended(succeeded));
    }
    let policy = pod.restart_policy();
    if policy == RestartPolicy::Always {
        return None;
    }
    let terminal = |succeeded| Some(Terminal::ended(succeeded));
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
                why: Why::PodStops,
            })
            .collect()
    };
    // Sidecars end after the others.
    for stops in [stops(true, left.max(LEAST_GRACE.min(pod.grace()))), stops(false, left.max(LEAST_GRACE))] {
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
    Plan::to(course, actions)
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
    for spec in pod.ephemeral_containers() {
        context.keep_up(&mut plan, Role::Ephemeral, spec);
    }
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
            why: Why::SandboxGone,
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
    fn keep_up(&self, plan: &mut Plan, role: Role, spec: &Container) {
        let latest = self.observed.latest(&spec.name);
        let memory = self.memory.container(&spec.name);
        let stop = |container: &ContainerView, why| {
            let probe = match why {
                Why::Liveness => spec.liveness_probe.as_ref(),
                Why::Startup => spec.startup_probe.as_ref(),
                _ => None,
            };
            // Who does not answer may deserve less time than who is told to end.
            let own = probe.and_then(|probe| u64::try_from(probe.termination_grace_period_seconds?).ok());
            Action::StopContainers(vec![Stop {
                id: container.id.clone(),
                name: container.name.clone(),
                grace: own.map_or_else(|| self.pod.grace(), |seconds| Duration::from_secs(seconds.max(1))),
                why,
            }])
        };
        match latest {
            Some(container) if container.state == State::Unknown => {
                plan.actions.push(stop(container, Why::Unknown));
            }
            Some(container) if container.is_running() => {
                let changed = container.hash.as_ref().is_some_and(|hash| *hash != container_hash(spec));
                if changed {
                    plan.actions.push(stop(container, Why::Changed));
                } else if let Some((id, why)) = memory.and_then(|memory| memory.unhealthy.as_ref())
                    && *id == container.id
                {
                    plan.actions.push(stop(container, *why));
                } else if let Some(from) = resized_from(spec, container, self.memory) {
                    let failed = memory.and_then(|memory| memory.unresized(spec)).map(|(_, until)| until);
                    match failed.filter(|until| *until > self.now) {
                        _ if resources::resize_restarts(from, spec) => {
                            plan.actions.push(stop(container, Why::Resized));
                        }
                        Some(until) => plan.wake_at(until),
                        None => plan.actions.push(Action::ResizeContainer {
                            id: container.id.clone(),
                            name: spec.name.clone(),
                        }),
                    }
                }
            }
            _ => self.start(plan, role, spec, latest, memory),
        }
    }

    fn start(
        &self,
        plan: &mut Plan,
        role: Role,
        spec: &Container,
        latest: Option<&ContainerView>,
        memory: Option<&ContainerMemory>,
    ) {
        let exited = latest.and_then(|latest| latest.exit().map(|exit| (latest, exit)));
        if let Some((container, exit)) = exited {
            // An image that was changed in place is started whatever the policy says, as by kubelet.
            let changed = container.hash.as_ref().is_some_and(|hash| *hash != container_hash(spec))
                || resized_from(spec, container, self.memory)
                    .is_some_and(|from| resources::resize_restarts(from, spec));
            if !changed && !self.restarts(role, exit, container) {
                return;
            }
            if let Some(until) = memory.and_then(|memory| memory.backoff_until(&container.id))
                && until > self.now
                && !changed
            {
                plan.wake_at(until);
                plan.backing_off.push(spec.name.clone());
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
            (Role::Ephemeral, _) | (_, RestartPolicy::Never) => false,
        }
    }
}

/// What a container is to be changed from; `None` if it has the resources that its pod says now.
fn resized_from<'a>(spec: &Container, container: &'a ContainerView, memory: &'a Memory) -> Option<&'a str> {
    memory.applied(container).filter(|applied| *applied != resources::resizable(spec))
}

#[cfg(test)]
pub(crate) mod tests;
