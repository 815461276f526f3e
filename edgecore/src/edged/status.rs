//! The pod's status as the API shows it: a pure function of what is desired, what the runtime shows and what the
//! worker remembers. Times are taken from the runtime's records, so that the same pod has the same status after a
//! restart of edgecore, and no report is made when nothing changed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, ContainerUser, HostIP, PodCondition, PodIP, PodStatus, VolumeMount,
        VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use tokio::time::Instant;

use super::{
    pod::{DesiredPod, RestartPolicy, Role, container_hash},
    pod_state::{ContainerView, Exit, Intent, Memory, Observed, State, Terminal},
    resources,
};

/// What of the node shows in its pods' status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub ips: Vec<String>,
    /// `containerd` in `containerd://<id>`.
    pub runtime_name: String,
}

/// See the module.
pub struct View<'a> {
    pub pod: &'a DesiredPod,
    pub intent: Intent,
    pub observed: &'a Observed,
    pub memory: &'a Memory,
    /// Addresses of the newest sandbox, empty for the host's network.
    pub pod_ips: &'a [String],
    pub node: &'a NodeFacts,
    /// When the worker first saw the pod, for one that has no sandbox yet.
    pub first_seen: Timestamp,
    /// Since when each condition has been as it is, from the report before.
    pub before: Option<&'a PodStatus>,
    pub now: Instant,
}

impl View<'_> {
    pub fn status(&self) -> PodStatus {
        let statuses = |wanted: fn(Role) -> bool| -> Vec<ContainerStatus> {
            self.pod
                .all_containers()
                .filter(|(role, _)| wanted(*role))
                .map(|(role, spec)| self.container(role, spec))
                .collect()
        };
        let inits = statuses(|role| matches!(role, Role::Init | Role::Sidecar));
        let mains = statuses(|role| role == Role::Main);
        let ephemeral = statuses(|role| role == Role::Ephemeral);
        // While something runs the pod has not ended, whatever has been decided: a Job would start its next pod beside it.
        let terminal = self.memory.terminal.as_ref().filter(|_| !self.is_alive());
        let phase = self.phase(terminal, &mains);
        let ips: Vec<String> =
            if self.pod.host_network() { self.node.ips.clone() } else { self.pod_ips.to_vec() };
        let has_sandbox = self.observed.sandbox().is_some_and(|sandbox| sandbox.ready);
        let waiting = self.memory.waiting.as_ref();
        PodStatus {
            conditions: Some(self.conditions(phase, &inits, &mains, has_sandbox)),
            container_statuses: Some(mains),
            init_container_statuses: (!inits.is_empty()).then_some(inits),
            ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
            host_ip: self.node.ips.first().cloned(),
            host_ips: Some(self.node.ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
            message: terminal.map_or_else(
                || waiting.map(|waiting| waiting.message.clone()),
                |terminal| terminal.message.clone(),
            ),
            observed_generation: self.pod.metadata.generation,
            phase: Some(phase.to_owned()),
            pod_ip: ips.first().cloned(),
            pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
            qos_class: Some(resources::qos_class(&self.pod.spec).as_str().to_owned()),
            reason: terminal.and_then(|terminal| terminal.reason.clone()),
            start_time: Some(Time(self.start())),
            ..Default::default()
        }
    }

    fn is_alive(&self) -> bool {
        self.observed.containers.iter().any(ContainerView::is_alive)
    }

    fn start(&self) -> Timestamp {
        seconds(self.observed.pod_start().unwrap_or(self.first_seen))
    }

    fn container(&self, role: Role, spec: &Container) -> ContainerStatus {
        let latest = self.observed.latest(&spec.name);
        let memory = self.memory.containers.get(&spec.name);
        let running = latest.is_some_and(ContainerView::is_running);
        let started = running && memory.and_then(|memory| memory.started).unwrap_or(true);
        let exited_well = latest.and_then(ContainerView::exit).is_some_and(|exit| exit.code == 0);
        let ready = match role {
            Role::Init => exited_well,
            // Nobody waits for it.
            Role::Ephemeral => false,
            Role::Sidecar | Role::Main => started && memory.and_then(|memory| memory.ready).unwrap_or(true),
        };
        let (state, shown) = self.state(role, spec, latest);
        let last = self.observed.last_exit(&spec.name, shown.map(|container| container.id.as_str()));
        // What waits has last run in the container that its id still names.
        let named = shown.or(latest);
        let applied =
            latest.filter(|latest| latest.is_running()).and_then(|latest| self.memory.applied(latest));
        let resources = resources::shown(spec, applied);
        ContainerStatus {
            allocated_resources: resources.requests.clone(),
            container_id: named.map(|container| self.container_id(&container.id)),
            image: named
                .map_or_else(|| spec.image.clone().unwrap_or_default(), |container| container.image.clone()),
            image_id: named.map(|container| container.image_id.clone()).unwrap_or_default(),
            last_state: last
                .and_then(|container| Some(self.terminated(container, container.exit()?)))
                .map(|terminated| ContainerState { terminated: Some(terminated), ..Default::default() }),
            name: spec.name.clone(),
            ready,
            resources: (role != Role::Ephemeral).then_some(resources),
            restart_count: latest.map_or(0, |latest| i32::try_from(latest.attempt).unwrap_or(i32::MAX)),
            started: Some(started),
            state: Some(state),
            user: named
                .and_then(|container| container.user.clone())
                .map(|user| ContainerUser { linux: Some(user) }),
            volume_mounts: spec.volume_mounts.as_ref().map(|mounts| mounts.iter().map(mount).collect()),
            ..Default::default()
        }
    }

    /// The state, and the container that it is the state of.
    fn state<'b>(
        &self,
        role: Role,
        spec: &Container,
        latest: Option<&'b ContainerView>,
    ) -> (ContainerState, Option<&'b ContainerView>) {
        let waiting = |reason: &str, message: &str| ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                message: (!message.is_empty()).then(|| message.to_owned()),
            }),
            ..Default::default()
        };
        let memory = self.memory.containers.get(&spec.name);
        match latest.map(|latest| (latest, &latest.state)) {
            Some((latest, State::Running { started_at })) => {
                let running = ContainerStateRunning { started_at: Some(Time(seconds(*started_at))) };
                return (ContainerState { running: Some(running), ..Default::default() }, Some(latest));
            }
            Some((latest, State::Exited(exit))) if !self.will_restart(role, spec, latest, exit) => {
                let terminated = self.terminated(latest, exit);
                return (ContainerState { terminated: Some(terminated), ..Default::default() }, Some(latest));
            }
            _ => {}
        }
        // As kubelet has it of those that an ending pod leaves unaccounted for.
        if self.intent != Intent::Run && role != Role::Ephemeral && latest.is_none() && !self.is_alive() {
            let terminated = ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                ..Default::default()
            };
            return (ContainerState { terminated: Some(terminated), ..Default::default() }, None);
        }
        if let Some((failure, _)) = memory.and_then(|memory| memory.failure.as_ref()) {
            return (waiting(&failure.reason, &failure.message), None);
        }
        if let Some((latest, memory)) = latest.zip(memory)
            && memory.backoff_until(&latest.id).is_some_and(|until| until > self.now)
        {
            let message = format!(
                "back-off {}s restarting failed container={} pod={}_{}({})",
                memory.backoff_delay().as_secs(),
                spec.name,
                self.pod.name(),
                self.pod.namespace(),
                self.pod.uid
            );
            return (waiting("CrashLoopBackOff", &message), None);
        }
        if let Some(wait) = &self.memory.waiting {
            return (waiting(&wait.reason, &wait.message), None);
        }
        let initializing = role != Role::Ephemeral && !self.pod.init_containers().is_empty();
        (waiting(if initializing { "PodInitializing" } else { "ContainerCreating" }, ""), None)
    }

    fn will_restart(&self, role: Role, spec: &Container, latest: &ContainerView, exit: &Exit) -> bool {
        if self.intent != Intent::Run || self.memory.terminal.is_some() {
            return false;
        }
        let changed = latest.hash.as_ref().is_some_and(|hash| *hash != container_hash(spec));
        changed
            || match (role, self.pod.restart_policy()) {
                (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
                (Role::Init | Role::Main, RestartPolicy::OnFailure) | (Role::Init, RestartPolicy::Always) => {
                    exit.code != 0
                }
                (Role::Ephemeral, _) | (_, RestartPolicy::Never) => false,
            }
    }

    fn terminated(&self, container: &ContainerView, exit: &Exit) -> ContainerStateTerminated {
        let fallback = if exit.code == 0 { "Completed" } else { "Error" };
        let reason = if exit.reason.is_empty() { fallback } else { &exit.reason };
        ContainerStateTerminated {
            container_id: Some(self.container_id(&container.id)),
            exit_code: exit.code,
            finished_at: Some(Time(seconds(exit.finished_at))),
            message: (!exit.message.is_empty()).then(|| exit.message.clone()),
            reason: Some(reason.to_owned()),
            started_at: Some(Time(seconds(exit.started_at))),
            ..Default::default()
        }
    }

    fn container_id(&self, id: &str) -> String {
        format!("{}://{id}", self.node.runtime_name)
    }

    fn initialized(&self) -> bool {
        let started = |spec: &Container| self.observed.latest(&spec.name).is_some();
        if self.pod.spec.containers.iter().any(started) {
            return true;
        }
        self.pod.init_containers().iter().all(|spec| {
            let latest = self.observed.latest(&spec.name);
            match super::pod::init_role(spec) {
                Role::Sidecar => latest.is_some_and(ContainerView::is_running),
                _ => latest.and_then(ContainerView::exit).is_some_and(|exit| exit.code == 0),
            }
        })
    }

    fn phase(&self, terminal: Option<&Terminal>, mains: &[ContainerStatus]) -> &'static str {
        if let Some(terminal) = terminal {
            return if terminal.succeeded { "Succeeded" } else { "Failed" };
        }
        let ran = |status: &ContainerStatus| {
            let state = status.state.as_ref();
            state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
                || status.last_state.is_some()
        };
        // Told to stop, and all of it has ended: the phase is what the exits say; what never ran has failed.
        if self.intent != Intent::Run && !self.is_alive() && !mains.is_empty() {
            let mut ends = mains.iter().map(|status| status.state.as_ref()?.terminated.as_ref());
            let succeeded = ends.all(|end| end.is_some_and(|end| end.exit_code == 0));
            return if succeeded { "Succeeded" } else { "Failed" };
        }
        if !mains.iter().all(ran) || mains.is_empty() || !self.initialized() {
            return "Pending";
        }
        "Running"
    }

    fn conditions(
        &self,
        phase: &str,
        inits: &[ContainerStatus],
        mains: &[ContainerStatus],
        has_sandbox: bool,
    ) -> Vec<PodCondition> {
        let succeeded = phase == "Succeeded";
        let unready: Vec<&str> = mains
            .iter()
            .chain(inits.iter().filter(|status| {
                self.pod.container(&status.name).is_some_and(|(role, _)| role == Role::Sidecar)
            }))
            .filter(|status| !status.ready)
            .map(|status| status.name.as_str())
            .collect();
        let containers_ready = unready.is_empty() && phase == "Running";
        let unready_reason = if succeeded {
            Some(("PodCompleted", String::new()))
        } else if phase == "Failed" {
            Some(("PodFailed", String::new()))
        } else {
            Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
        };
        let initialized = self.initialized() || succeeded;
        let uninitialized: Vec<&str> =
            inits.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let init_reason = (
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", uninitialized.join(" ")),
        );
        let gates = self.gates();
        let ready = containers_ready && gates.is_none();
        let since = self.ready_since(containers_ready);
        let mut conditions = vec![
            self.condition("PodReadyToStartContainers", has_sandbox, None, self.sandbox_since()),
            self.condition("Initialized", initialized, Some(init_reason), self.initialized_since()),
            self.condition(
                "Ready",
                ready,
                if containers_ready { gates } else { unready_reason.clone() },
                self.gates_since().map_or(since, |gates| gates.max(since)),
            ),
            self.condition("ContainersReady", containers_ready, unready_reason, since),
        ];
        conditions.extend(self.unresized());
        for condition in &mut conditions {
            let before = self.before.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
            let mut same =
                before.filter(|old| old.type_ == condition.type_ && old.status == condition.status);
            if let Some(time) = same.next_back().and_then(|old| old.last_transition_time.clone()) {
                condition.last_transition_time = Some(time);
            }
        }
        conditions
    }

    /// Why a container does not have the resources that the pod says now (KEP-1287).
    fn unresized(&self) -> Option<PodCondition> {
        let why = self.pod.all_containers().find_map(|(_, spec)| {
            let container = self.observed.latest(&spec.name).filter(|container| container.is_running())?;
            let (why, _) = self.memory.containers.get(&spec.name)?.unresized(spec)?;
            (self.memory.applied(container)? != resources::resizable(spec)).then_some(why)
        })?;
        let type_ = if why.reason == "Infeasible" { "PodResizePending" } else { "PodResizeInProgress" };
        let since = self.ready_since(true);
        Some(PodCondition {
            reason: Some(why.reason.clone()),
            message: Some(why.message.clone()),
            ..self.condition(type_, true, None, since)
        })
    }

    /// Why the pod is not ready although its containers are: conditions that others write through the API (KEP-580).
    fn gates(&self) -> Option<(&'static str, String)> {
        let gates = self.pod.spec.readiness_gates.iter().flatten().map(|gate| gate.condition_type.as_str());
        let unmet: Vec<String> = gates
            .filter_map(|type_| match self.pod.gates.iter().find(|condition| condition.type_ == type_) {
                Some(condition) if condition.status == "True" => None,
                Some(PodCondition { status, .. }) => {
                    Some(format!("the status of pod readiness gate {type_:?} is not \"True\", but {status}"))
                }
                None => {
                    Some(format!("corresponding condition of pod readiness gate {type_:?} does not exist."))
                }
            })
            .collect();
        (!unmet.is_empty()).then(|| ("ReadinessGatesNotReady", unmet.join(", ")))
    }

    fn gates_since(&self) -> Option<Timestamp> {
        self.pod
            .gates
            .iter()
            .filter_map(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0)
            .max()
    }

    fn condition(
        &self,
        type_: &str,
        holds: bool,
        otherwise: Option<(&str, String)>,
        since: Timestamp,
    ) -> PodCondition {
        let (reason, message) = otherwise.filter(|_| !holds).unzip();
        PodCondition {
            type_: type_.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: reason.map(str::to_owned),
            message: message.filter(|message| !message.is_empty()),
            last_transition_time: Some(Time(seconds(since))),
            observed_generation: self.pod.metadata.generation,
            ..Default::default()
        }
    }

    fn sandbox_since(&self) -> Timestamp {
        self.observed.sandbox().map_or_else(|| self.start(), |sandbox| sandbox.created_at)
    }

    fn initialized_since(&self) -> Timestamp {
        let ends = self
            .pod
            .init_containers()
            .iter()
            .filter_map(|spec| Some(self.observed.latest(&spec.name)?.exit()?.finished_at));
        ends.max().unwrap_or_else(|| self.start())
    }

    fn ready_since(&self, ready: bool) -> Timestamp {
        let times = self.pod.spec.containers.iter().filter_map(|spec| {
            match &self.observed.latest(&spec.name)?.state {
                State::Running { started_at } if ready => Some(*started_at),
                State::Exited(exit) if !ready => Some(exit.finished_at),
                _ => None,
            }
        });
        times.max().unwrap_or_else(|| self.start())
    }
}

/// A volume mount as the status shows it.
fn mount(spec: &VolumeMount) -> VolumeMountStatus {
    let read_only = spec.read_only.unwrap_or(false);
    let recursive = spec.recursive_read_only.as_deref() == Some("Enabled");
    VolumeMountStatus {
        mount_path: spec.mount_path.clone(),
        name: spec.name.clone(),
        read_only: read_only.then_some(true),
        recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
        ..Default::default()
    }
}

/// The API's times have whole seconds.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// What fieldRef of env and the downward API volume may name.
pub fn field(pod: &DesiredPod, path: &str, pod_ips: &[String], node: &NodeFacts) -> Option<String> {
    let keyed = |map: Option<&BTreeMap<String, String>>, rest: &str| -> Option<String> {
        let key = rest.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let lines = |map: Option<&BTreeMap<String, String>>| -> String {
        // As kubelet writes them: one a line, the value quoted.
        let lines: Vec<String> =
            map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
        lines.join("\n")
    };
    let ips: &[String] = if pod.host_network() { &node.ips } else { pod_ips };
    Some(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid.to_string(),
        "metadata.labels" => lines(pod.metadata.labels.as_ref()),
        "metadata.annotations" => lines(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => node.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        _ => {
            if let Some(rest) = path.strip_prefix("metadata.labels") {
                return keyed(pod.metadata.labels.as_ref(), rest);
            }
            if let Some(rest) = path.strip_prefix("metadata.annotations") {
                return keyed(pod.metadata.annotations.as_ref(), rest);
            }
            return None;
        }
    })
}

#[cfg(test)]
mod tests;
