//! Keeps one worker for each pod that is desired or still there, and hands each what concerns it: its object, what
//! the runtime lists of it, and that something it refers to has changed.

mod housekeeping;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crds::devices::keys::DEVICE;
use proto::{Object, ResourceKey, Version};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    logs::LogLimits,
    pod::{DesiredPod, PodUid},
    pod_state::Intent,
    pod_worker::{Input, PodWorker, Shared},
    relist::{Listed, View},
    sources,
};
use crate::{edgehub::HubState, metamanager::StoreError};

/// How often logs are measured while anything runs.
const LOG_PERIOD: Duration = Duration::from_secs(30);
/// A worker that panicked gets a successor, but not at once.
const RESPAWN: Duration = Duration::from_secs(5);
/// When the store could not be read.
const REREAD: Duration = Duration::from_secs(2);

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    views: watch::Receiver<View>,
    /// Since the start of the process the cloud has said once that the store holds all that it should.
    synced: bool,
    /// The store has been read once.
    desired_read: bool,
    /// Something of the store could not be read: when to try again.
    reread_at: Option<Instant>,
    log_limits: LogLimits,
    /// The names of the node's devices by namespace, as last read from the store.
    devices: HashMap<Box<str>, Arc<[Box<str>]>>,
    /// The desired pods by key, as last read from the store.
    desired: HashMap<ResourceKey, Desired>,
    workers: HashMap<PodUid, Worker>,
    tasks: JoinSet<()>,
    names: HashMap<Id, PodUid>,
    /// A round of the logs that goes on, if any.
    rotations: JoinSet<()>,
    /// Workers that panicked, and when they may come back.
    resting: HashMap<PodUid, Instant>,
}

struct Desired {
    /// `None`: to be read again.
    version: Option<Version>,
    /// `None`: never read, or never understood.
    pod: Option<Arc<DesiredPod>>,
}

struct Worker {
    input: watch::Sender<Input>,
    /// What the pod refers to, in the versions that it was last told of.
    references: BTreeMap<ResourceKey, Option<Version>>,
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>, views: watch::Receiver<View>, log_limits: LogLimits) -> Self {
        Self {
            shared,
            views,
            synced: false,
            desired_read: false,
            reread_at: None,
            log_limits,
            devices: HashMap::new(),
            desired: HashMap::new(),
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            rotations: JoinSet::new(),
            resting: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.shared.store.desired_changes();
        let mut hub = self.shared.hub.clone();
        // Without the runtime nothing is known of any pod, and its name is part of their containers' ids.
        let mut facts = self.shared.node.clone();
        let mut views = self.views.clone();
        let known = async {
            let named = facts.wait_for(|facts| !facts.runtime_name.is_empty()).await.is_ok();
            let listed = views.wait_for(|view| view.snapshot.is_some()).await.is_ok();
            named && listed
        };
        tokio::select! {
            () = stop.cancelled() => return,
            known = known => if !known { return },
        }
        self.views.mark_changed();
        changes.mark_changed();
        let mut log_ticks = time::interval(LOG_PERIOD);
        log_ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        self.housekeep().await;
        loop {
            let next_rest = self.resting.values().min().copied();
            let reread_at = self.reread_at;
            // Nothing is lost when another arm wins: both watches stay changed, and the tasks' ends stay in the set.
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = changes.changed() => {
                    changes.mark_unchanged();
                    self.read_desired(&stop);
                }
                Ok(()) = self.views.changed() => self.hand_out_listing(&stop),
                () = synced(&mut hub), if !self.synced => {
                    self.synced = true;
                    self.adopt_orphans(&stop);
                }
                Some(ended) = self.tasks.join_next_with_id() => self.bury(ended, &stop),
                _ = log_ticks.tick() => self.rotate_logs(&stop),
                Some(ended) = self.rotations.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a round of the logs died; another follows");
                    }
                }
                () = time::sleep_until(reread_at.unwrap_or_else(Instant::now)), if reread_at.is_some() => {
                    self.read_desired(&stop);
                }
                () = time::sleep_until(next_rest.unwrap_or_else(Instant::now)), if next_rest.is_some() => {
                    let now = Instant::now();
                    self.resting.retain(|_, until| *until > now);
                    self.adjust(&stop);
                }
            }
        }
        // Each ends at its next await; what it was doing is found by its successor.
        while self.tasks.join_next().await.is_some() {}
        while self.rotations.join_next().await.is_some() {}
    }

    /// Parses what is new, drops what is gone, and tells the workers. A store that cannot be read changes nothing.
    fn read_desired(&mut self, stop: &CancellationToken) {
        self.reread_at = None;
        let versions: HashMap<ResourceKey, Version> = match self.shared.store.inventory() {
            Ok(inventory) => inventory.into_iter().collect(),
            Err(error) => {
                self.reread_at = Some(Instant::now() + REREAD);
                return tracing::error!(error = %runtime::chain(&error), "the desired pods cannot be read");
            }
        };
        self.desired.retain(|key, _| versions.contains_key(key));
        for (key, version) in versions.iter().filter(|(key, _)| key.kind() == "Pod") {
            if self.desired.get(key).is_some_and(|known| known.version == Some(*version)) {
                continue;
            }
            self.take(key, *version, self.shared.store.get(key));
        }
        self.desired_read = true;
        self.devices = devices(&versions);
        self.adjust(stop);
        for worker in self.workers.values_mut() {
            worker.tell_references(&versions);
            worker.tell_devices(&self.devices);
        }
    }

    /// What runs of a pod goes on when its object cannot be read or understood: that is no order to stop.
    fn take(&mut self, key: &ResourceKey, version: Version, read: Result<Option<Object>, StoreError>) {
        let before = self.desired.get(key).and_then(|known| known.pod.clone());
        let desired = match read.map(|object| object.map(|object| DesiredPod::parse(&object))) {
            Ok(Some(Ok(pod))) => Desired { version: Some(version), pod: Some(Arc::new(pod)) },
            // Gone in between: the next change says so.
            Ok(None) => return,
            Ok(Some(Err(error))) => {
                tracing::error!(error = %runtime::chain(&error), "a desired pod cannot be used");
                Desired { version: Some(version), pod: before }
            }
            Err(error) => {
                tracing::error!(%key, error = %runtime::chain(&error), "a desired pod cannot be read");
                self.reread_at = Some(Instant::now() + REREAD);
                Desired { version: None, pod: before }
            }
        };
        self.desired.insert(key.clone(), desired);
    }

    fn adjust(&mut self, stop: &CancellationToken) {
        let wanted: HashMap<PodUid, Arc<DesiredPod>> = self
            .desired
            .values()
            .filter_map(|desired| desired.pod.clone())
            .map(|pod| (pod.uid.clone(), pod))
            .collect();
        for (uid, worker) in &self.workers {
            if !wanted.contains_key(uid) {
                worker.input.send_if_modified(|input| {
                    let changed = input.intent != Intent::Remove;
                    input.intent = Intent::Remove;
                    changed
                });
            }
        }
        for (uid, pod) in wanted {
            let intent = if pod.is_deleted() { Intent::Stop } else { Intent::Run };
            if let Some(worker) = self.workers.get_mut(&uid) {
                if !Arc::ptr_eq(&worker.input.borrow().pod, &pod) || worker.input.borrow().intent != intent {
                    worker.references = references(&pod);
                    worker.input.send_modify(|input| {
                        input.pod = pod;
                        input.intent = intent;
                    });
                }
            } else if !self.resting.contains_key(&uid) {
                self.hire(pod, intent, stop);
            }
        }
        self.adopt_orphans(stop);
    }

    fn hire(&mut self, pod: Arc<DesiredPod>, intent: Intent, stop: &CancellationToken) {
        let uid = pod.uid.clone();
        let listed = self.listed(&uid);
        let references = references(&pod);
        let devices = self.devices.get(pod.namespace()).cloned().unwrap_or_default();
        let (input, receiver) = watch::channel(Input { pod, intent, listed, references: 0, devices });
        let worker = PodWorker::new(self.shared.clone(), receiver, false);
        let span = tracing::info_span!("pod", %uid);
        let task = tracing::Instrument::instrument(worker.run(stop.clone()), span);
        self.names.insert(self.tasks.spawn(task).id(), uid.clone());
        self.workers.insert(uid, Worker { input, references });
    }

    fn listed(&self, uid: &PodUid) -> Option<(Instant, Listed)> {
        let view = self.views.borrow();
        let snapshot = view.snapshot.as_ref()?;
        Some((snapshot.asked_at, snapshot.pods.get(uid).cloned().unwrap_or_default()))
    }

    fn hand_out_listing(&mut self, stop: &CancellationToken) {
        let Some(snapshot) = self.views.borrow_and_update().snapshot.clone() else { return };
        for (uid, worker) in &self.workers {
            let listed = snapshot.pods.get(uid).cloned().unwrap_or_default();
            worker.input.send_if_modified(|input| {
                let changed = input.listed.as_ref().is_none_or(|(_, before)| *before != listed);
                input.listed = Some((snapshot.asked_at, listed));
                changed
            });
        }
        self.adopt_orphans(stop);
    }

    /// Pods in the runtime that the store does not want are taken down: the cloud has deleted them. But a store that
    /// was found damaged may have lost any of its pods: it knows nothing before the cloud has filled it again.
    fn adopt_orphans(&mut self, stop: &CancellationToken) {
        // Before the store was read, everything would look like an orphan.
        if !self.desired_read {
            return;
        }
        if !self.shared.store.opened().healed.is_empty() && !self.synced {
            return;
        }
        let Some(snapshot) = self.views.borrow().snapshot.clone() else { return };
        let wanted: HashSet<&PodUid> =
            self.desired.values().filter_map(|desired| Some(&desired.pod.as_ref()?.uid)).collect();
        // An object that was never read or understood may be any of them.
        if self.desired.values().any(|desired| desired.pod.is_none()) {
            return;
        }
        let orphans: Vec<Arc<DesiredPod>> = snapshot
            .pods
            .iter()
            .filter(|(uid, _)| {
                !wanted.contains(uid) && !self.workers.contains_key(uid) && !self.resting.contains_key(uid)
            })
            .filter_map(|(uid, listed)| housekeeping::orphan(uid, listed))
            .map(Arc::new)
            .collect();
        for pod in orphans {
            tracing::info!(pod = %pod.key, uid = %pod.uid, "pod is not desired any more; removing");
            self.hire(pod, Intent::Remove, stop);
        }
    }

    fn bury(&mut self, ended: Result<(Id, ()), JoinError>, stop: &CancellationToken) {
        let (id, panic) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error.to_string())),
        };
        let Some(uid) = self.names.remove(&id) else { return };
        self.workers.remove(&uid);
        if let Some(error) = panic {
            tracing::error!(%uid, error, "a pod's worker died; another follows");
            self.resting.insert(uid, Instant::now() + RESPAWN);
            return;
        }
        // It may be desired again, or be new under an old uid.
        if !stop.is_cancelled() {
            self.resting.insert(uid, Instant::now() + RESPAWN);
        }
    }
}

async fn synced(hub: &mut watch::Receiver<HubState>) {
    if hub.wait_for(|state| state.synced).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Worker {
    fn tell_references(&mut self, versions: &HashMap<ResourceKey, Version>) {
        let mut changed = false;
        for (key, known) in &mut self.references {
            let now = versions.get(key).copied();
            changed |= *known != now;
            *known = now;
        }
        if changed {
            self.input.send_modify(|input| input.references += 1);
        }
    }

    fn tell_devices(&mut self, devices: &HashMap<Box<str>, Arc<[Box<str>]>>) {
        self.input.send_if_modified(|input| {
            let now = devices.get(input.pod.namespace()).cloned().unwrap_or_default();
            let changed = input.devices != now;
            input.devices = now;
            changed
        });
    }
}

/// The names of devices by namespace, in order.
fn devices(versions: &HashMap<ResourceKey, Version>) -> HashMap<Box<str>, Arc<[Box<str>]>> {
    let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for key in versions.keys().filter(|key| key.kind() == DEVICE) {
        names.entry(key.namespace()).or_default().insert(key.name());
    }
    let of_namespace = names.into_iter();
    of_namespace
        .map(|(namespace, names)| (namespace.into(), names.into_iter().map(Box::from).collect()))
        .collect()
}

fn references(pod: &DesiredPod) -> BTreeMap<ResourceKey, Option<Version>> {
    sources::references(pod).into_iter().map(|key| (key, None)).collect()
}

#[cfg(test)]
mod tests;
