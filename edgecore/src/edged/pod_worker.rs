//! One task a pod: it looks at what is desired and what is there, lets [`pod_state::decide`] say what to do, does it,
//! looks again, and reports the status when it changed. No pod waits for another.
//!
//! In: [`Input`] by a watch, always the newest. Out: reports into the store. What it remembers may be lost at any
//! time: a new worker adopts what the runtime shows.

mod cleanup;
mod evict;
mod foresee;
mod hooks;
mod images;
mod observe;
mod resize;
mod start;
mod stop;
mod tell;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use proto::{cri::v1, message::ReportKind};
use tokio::{
    sync::{OnceCell, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    cri::{CriError, Runtime},
    dns::DnsSettings,
    env::Capacity,
    events::Events,
    logs::LogPaths,
    pod::{self, DesiredPod, Role},
    pod_state::{self, Action, Course, Intent, Memory, Observed, Terminal, Waiting},
    probes::Probes,
    relist::{Listed, Poke},
    sources::Sources,
    status::{NodeFacts, View},
    tokens::Tokens,
    unsupported,
    volumes::{Mounted, Volumes},
};
use crate::{
    doors::{Doors, Pass},
    edgehub::{HubState, next_session},
    metamanager::{Store, StoreError},
};

/// Rounds of deciding and acting before the worker draws breath; a pod of ten containers needs about five.
const ROUNDS: usize = 64;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// An init container often ends within moments, and the next one waits for it: the runtime's lists are too slow.
const FIRST_INIT_POLL: Duration = Duration::from_millis(50);
const LAST_INIT_POLL: Duration = Duration::from_secs(1);
/// A wall clock that is set may make any timer wrong.
const LONGEST_SLEEP: Duration = Duration::from_mins(10);

/// What all workers share.
pub struct Shared {
    pub runtime: Runtime,
    pub store: Store,
    pub sources: Sources,
    pub volumes: Volumes,
    pub tokens: Tokens,
    pub events: Events,
    pub logs: LogPaths,
    pub dns: DnsSettings,
    /// Where `localhostProfile` of seccomp is looked for.
    pub seccomp_profiles: PathBuf,
    /// The API server as pods reach it.
    pub api_server: Option<(String, u16)>,
    pub capacity: Capacity,
    pub node: watch::Receiver<NodeFacts>,
    /// From the configuration, or asked once.
    pub cgroup_driver: OnceCell<v1::CgroupDriver>,
    /// The runtime refused a negative OOM score: said once.
    pub oom_refused: AtomicBool,
    pub poke: Poke,
    pub hub: watch::Receiver<HubState>,
    pub doors: Doors,
}

/// What a worker is to do now.
#[derive(Clone)]
pub struct Input {
    pub pod: Arc<DesiredPod>,
    pub intent: Intent,
    /// What the runtime had, and when it was asked.
    pub listed: Option<(Instant, Listed)>,
    /// Grows when something that the pod refers to has changed.
    pub references: u64,
    /// The names of the node's devices in the pod's namespace: it reaches the broker under them.
    pub devices: Arc<[Box<str>]>,
}

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Runtime(#[from] CriError),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("a report does not serialize")]
    Report(#[from] serde_json::Error),
    #[error("failed to clean up")]
    Cleanup(#[from] std::io::Error),
}

pub struct PodWorker {
    shared: Arc<Shared>,
    /// The shared connection with a counter of this pod's own.
    runtime: Runtime,
    input: watch::Receiver<Input>,
    current: Input,
    memory: Memory,
    probes: Probes,
    observed: Observed,
    /// Of containers in the state they were in: what has started or ended does not change.
    statuses: HashMap<String, v1::ContainerStatus>,
    /// Those of them that were asked for so soon after the end that the runtime may not have known its reason.
    hasty: Vec<String>,
    /// Addresses, and the sandbox that has them.
    addresses: Option<(String, Vec<String>)>,
    /// With these addresses it reaches what the node has for its pods.
    pass: Option<Pass>,
    mounted: Option<Mounted>,
    /// What the volumes were last made from; `None` has them looked at anew.
    references_mounted: Option<u64>,
    /// The devices that were last written into its `/etc/hosts`; `None` has it looked at anew.
    devices_named: Option<Arc<[Box<str>]>>,
    /// A listing asked for before this does not show what was done.
    acted_at: Option<Instant>,
    /// Within a pass: what a listing would show now.
    foreseen: Option<Listed>,
    failures: u32,
    /// Holds in a row, see [`Memory::hold`].
    holds: u32,
    /// How soon to look again at an init container that runs.
    init_poll: Duration,
    first_seen: Timestamp,
    reported: Option<PodStatus>,
    reported_in_session: bool,
    terminated_reported: bool,
    end: End,
    /// When what it has on the disk is to be measured.
    measure_at: Option<Instant>,
    /// Events that are kept with the next status.
    untold: Vec<Bytes>,
    /// When the pod came in, until it first ran: what edgecore adds is measured from it.
    arrived: Option<Instant>,
}

/// What has been done about the end of a pod that came to it by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// It is kept in the store.
    Kept,
    /// Volumes and control groups are given back.
    Released,
}

/// How the worker goes on.
enum Next {
    Wait(Option<Instant>),
    /// Nothing of the pod is left.
    Finished,
}

impl PodWorker {
    /// `fresh`: what was listed before now may lack what a worker before this one did.
    pub fn new(shared: Arc<Shared>, mut input: watch::Receiver<Input>, fresh: bool) -> Self {
        let current = input.borrow_and_update().clone();
        let runtime = shared.runtime.metered();
        Self {
            probes: Probes::new(runtime.clone()),
            runtime,
            shared,
            input,
            current,
            memory: Memory::default(),
            observed: Observed::default(),
            statuses: HashMap::new(),
            hasty: Vec::new(),
            addresses: None,
            pass: None,
            mounted: None,
            references_mounted: None,
            devices_named: None,
            acted_at: fresh.then(Instant::now),
            foreseen: None,
            failures: 0,
            holds: 0,
            init_poll: FIRST_INIT_POLL,
            first_seen: Timestamp::now(),
            reported: None,
            reported_in_session: false,
            terminated_reported: false,
            end: End::Open,
            measure_at: None,
            untold: Vec::new(),
            arrived: Some(Instant::now()),
        }
    }

    /// Ends when nothing of the pod is left, or when edgecore stops: its containers then go on.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut hub = self.shared.hub.clone();
        let mut session = hub.borrow_and_update().sessions;
        if let Err(error) = self.recall() {
            tracing::warn!(error = %runtime::chain(&error), "what was kept of the pod cannot be read");
        }
        loop {
            let next = tokio::select! {
                // Whatever was half done is found and finished by the next worker. On the heap, so that a pod at rest
                // holds nothing of it.
                () = stop.cancelled() => return,
                next = Box::pin(self.pass()) => next,
            };
            let wake = match next {
                Ok(Next::Finished) => return,
                Ok(Next::Wait(wake)) => {
                    self.failures = 0;
                    wake
                }
                Err(error) => Some(self.retry_later(&error)),
            };
            let limit = Instant::now() + LONGEST_SLEEP;
            // Every arm only waits: the next pass looks at everything anew.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.input.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = time::sleep_until(wake.map_or(limit, |wake| wake.min(limit))) => {}
                verdict = self.probes.next() => {
                    self.probes.note(&verdict, &mut self.memory);
                    if !verdict.passed {
                        let message = format!("{:?} probe failed: {}", verdict.kind, verdict.message);
                        self.warn(Some(&verdict.container), "Unhealthy", &message);
                    }
                }
                new = next_session(&mut hub, session) => {
                    session = new;
                    self.reported_in_session = false;
                    // What waits for the cloud need not wait any longer.
                    self.memory.hold = None;
                    self.holds = 0;
                    self.terminated_reported = false;
                }
            }
        }
    }

    fn retry_later(&mut self, error: &WorkError) -> Instant {
        let delay = RETRY_FIRST.saturating_mul(1 << self.failures.min(5)).min(RETRY_CAP);
        self.failures = self.failures.saturating_add(1);
        let error = runtime::chain(error).to_string();
        tracing::warn!(pod = %self.current.pod.key, error, retry_s = delay.as_secs(), "pod is not as it should be");
        Instant::now() + delay
    }

    fn take_input(&mut self) {
        let input = self.input.borrow_and_update().clone();
        if input.references != self.current.references {
            // What was missing may be there now.
            for memory in self.memory.containers.values_mut() {
                memory.failure = None;
            }
            self.memory.hold = None;
        }
        // The downward API shows them in volumes.
        let (old, new) = (&self.current.pod.metadata, &input.pod.metadata);
        if old.labels != new.labels || old.annotations != new.annotations {
            self.references_mounted = None;
        }
        self.current = input;
    }

    async fn pass(&mut self) -> Result<Next, WorkError> {
        let next = self.rounds().await;
        self.foreseen = None;
        next
    }

    async fn rounds(&mut self) -> Result<Next, WorkError> {
        for _ in 0..ROUNDS {
            self.take_input();
            self.observe().await?;
            let now = Instant::now();
            let pod = self.current.pod.clone();
            let deadline = self.enforce_deadline();
            if self.current.intent == Intent::Run && self.memory.terminal.is_none() {
                // What runs goes on, whatever this edgecore thinks of it.
                if !self.observed.containers.is_empty() {
                    self.keep_back_ephemeral(&pod);
                } else if let Some(field) = unsupported::find(&pod) {
                    return self.refuse(&field, deadline).await;
                }
            }
            self.memory.note(&pod, &self.observed, now, Timestamp::now());
            if self.current.intent != Intent::Run {
                self.memory.stopping_since.get_or_insert(now);
            }
            let plan = pod_state::decide(&pod, self.current.intent, &self.observed, &self.memory, now);
            if plan.actions.is_empty() {
                return self.settle(plan, deadline).await;
            }
            tracing::debug!(pod = %pod.key, actions = ?plan.actions, "acting");
            for action in plan.actions {
                if !self.act(&pod, action).await? {
                    self.foreseen = None;
                    break;
                }
            }
            self.acted_at = Some(Instant::now());
            self.shared.poke.poke();
        }
        self.report(false).await?;
        Ok(Next::Wait(Some(Instant::now() + RETRY_FIRST)))
    }

    /// False: what follows makes no sense any more, decide again.
    async fn act(&mut self, pod: &DesiredPod, action: Action) -> Result<bool, WorkError> {
        if !matches!(action, Action::CreateSandbox { .. } | Action::StartContainer { .. }) {
            self.foreseen = None;
        }
        match action {
            Action::StopContainers(stops) => return self.stop_containers(stops).await,
            Action::StopSandbox { id } => self.runtime.stop_sandbox(&id).await?,
            Action::RemoveSandbox { id } => {
                self.runtime.stop_sandbox(&id).await?;
                self.runtime.remove_sandbox(&id).await?;
            }
            Action::RemoveContainer { id } => self.remove_container(pod, &id).await?,
            Action::ResizeContainer { id, name } => self.resize(pod, &id, &name).await?,
            Action::CreateSandbox { attempt } => return Box::pin(self.create_sandbox(pod, attempt)).await,
            Action::StartContainer { name, attempt, .. } => {
                return Box::pin(self.start_container(pod, &name, attempt)).await;
            }
        }
        Ok(true)
    }

    /// Nothing is left to be done now.
    async fn settle(&mut self, plan: pod_state::Plan, deadline: Option<Instant>) -> Result<Next, WorkError> {
        let mut wake = earlier(plan.wake, deadline);
        for name in &plan.backing_off {
            let pod = &self.current.pod;
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                pod.name(),
                pod.namespace(),
                pod.uid
            );
            self.warn(Some(name), "BackOff", &message);
        }
        match plan.course {
            Course::Removed => {
                self.clean_up().await?;
                return Ok(Next::Finished);
            }
            Course::Stopped => {
                self.report(false).await?;
                self.report_terminated().await?;
                return Ok(Next::Wait(None));
            }
            Course::Ended(terminal) => self.end(terminal).await?,
            Course::Going => {
                if self.memory.hold.is_none_or(|hold| hold <= Instant::now()) {
                    self.memory.waiting = None;
                    let refresh = self.refresh_volumes().await;
                    wake = earlier(earlier(wake, refresh), self.refresh_hosts());
                    let address = self.address();
                    self.probes.keep_up(
                        &self.current.pod,
                        &self.observed,
                        address.as_deref(),
                        &mut self.memory,
                    );
                    wake = earlier(wake, self.enforce_disk_limits().await);
                    wake = earlier(wake, self.follow_init());
                }
            }
        }
        self.report(false).await?;
        Ok(Next::Wait(wake))
    }

    /// While an init container runs. Answers when to look again.
    fn follow_init(&mut self) -> Option<Instant> {
        let pod = &self.current.pod;
        let runs = pod.init_containers().iter().any(|spec| {
            pod::init_role(spec) == Role::Init
                && self.observed.latest(&spec.name).is_some_and(pod_state::ContainerView::is_running)
        });
        if !runs {
            self.init_poll = FIRST_INIT_POLL;
            return None;
        }
        let now = Instant::now();
        // So that the runtime is asked anew.
        self.acted_at = Some(now);
        let wake = now + self.init_poll;
        self.init_poll = (self.init_poll * 2).min(LAST_INIT_POLL);
        Some(wake)
    }

    /// activeDeadlineSeconds. Answers when to look again.
    fn enforce_deadline(&mut self) -> Option<Instant> {
        if self.current.intent != Intent::Run || self.memory.terminal.is_some() {
            return None;
        }
        let seconds = self.current.pod.spec.active_deadline_seconds?;
        let start = self.observed.pod_start().unwrap_or(self.first_seen);
        let passed = Duration::try_from(Timestamp::now().duration_since(start)).unwrap_or_default();
        let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(passed);
        if !left.is_zero() {
            return Some(Instant::now() + left);
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.normal(None, "DeadlineExceeded", message);
        self.memory.terminal = Some(Terminal::failed("DeadlineExceeded", message.to_owned()));
        None
    }

    /// An ephemeral container that asks for what edged cannot do is the only one that waits.
    fn keep_back_ephemeral(&mut self, pod: &DesiredPod) {
        for (name, field) in unsupported::of_ephemeral_containers(pod) {
            let message = format!("{field} is not supported by edged");
            self.warn(Some(&name), "Unsupported", &message);
            let waiting = Waiting { reason: "Unsupported".to_owned(), message };
            let until = Instant::now() + 2 * LONGEST_SLEEP;
            self.memory.containers.entry(name).or_default().failure = Some((waiting, until));
        }
    }

    /// A pod that asks for what edged cannot do waits, and says for what.
    async fn refuse(&mut self, field: &str, deadline: Option<Instant>) -> Result<Next, WorkError> {
        let message = format!("{field} is not supported by edged");
        self.memory.waiting = Some(Waiting { reason: "Unsupported".to_owned(), message: message.clone() });
        self.warn(None, "Unsupported", &message);
        self.report(false).await?;
        Ok(Next::Wait(deadline))
    }

    fn address(&self) -> Option<String> {
        if self.current.pod.host_network() {
            return self.shared.node.borrow().ips.first().cloned();
        }
        self.addresses.as_ref().and_then(|(_, ips)| ips.first().cloned())
    }

    /// Reports the status if it is not the one that was reported last. `early`: more is about to come, so only if
    /// nothing was reported yet.
    async fn report(&mut self, early: bool) -> Result<(), WorkError> {
        let (pod, shared) = (self.current.pod.clone(), self.shared.clone());
        let events = shared.events.keep(&pod, std::mem::take(&mut self.untold));
        // Of an ended pod the cloud has the last status; what is left here may say less.
        let told = pod.ended.is_some() && self.current.intent == Intent::Run;
        if told || self.current.intent == Intent::Remove || (early && self.reported.is_some()) {
            events.await;
            return Ok(());
        }
        let node = self.shared.node.borrow().clone();
        let empty = Vec::new();
        let view = View {
            pod: &pod,
            intent: self.current.intent,
            observed: &self.observed,
            memory: &self.memory,
            pod_ips: self.addresses.as_ref().map_or(&empty, |(_, ips)| ips),
            node: &node,
            first_seen: self.first_seen,
            before: self.reported.as_ref(),
            now: Instant::now(),
        };
        let status = view.status();
        if self.reported_in_session && self.reported.as_ref() == Some(&status) {
            events.await;
            return Ok(());
        }
        let payload = serde_json::to_vec(&serde_json::json!({ "uid": pod.uid.as_str(), "status": status }))?;
        // Together they cost one sync.
        let report = shared.store.report(ReportKind::PodStatus, &pod.key, Bytes::from(payload));
        let ((), reported) = tokio::join!(events, report);
        reported?;
        let phase = status.phase.as_deref().unwrap_or_default();
        tracing::debug!(pod = %pod.key, phase, "status reported");
        let mut mains = status.container_statuses.iter().flatten();
        if phase == "Running"
            && mains.all(|main| main.state.as_ref().is_some_and(|state| state.running.is_some()))
            && let Some(arrived) = self.arrived.take()
        {
            let (whole, inside) = (arrived.elapsed(), self.runtime.take_spent());
            let added = whole.saturating_sub(inside);
            tracing::info!(
                pod = %pod.key,
                uid = %pod.uid,
                total_ms = whole.as_millis(),
                runtime_ms = inside.as_millis(),
                added_micros = added.as_micros(),
                "pod runs"
            );
        }
        self.reported = Some(status);
        self.reported_in_session = true;
        Ok(())
    }

    async fn report_terminated(&mut self) -> Result<(), WorkError> {
        if self.terminated_reported || self.current.intent != Intent::Stop {
            return Ok(());
        }
        let pod = &self.current.pod;
        let payload = serde_json::to_vec(&serde_json::json!({ "uid": pod.uid.as_str() }))?;
        self.shared.store.report(ReportKind::PodTerminated, &pod.key, Bytes::from(payload)).await?;
        tracing::info!(pod = %pod.key, uid = %pod.uid, "pod has ended");
        self.terminated_reported = true;
        Ok(())
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
