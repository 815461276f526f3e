//! What each connected node should hold: a pure function of the caches, kept up to date change by change.
//!
//! The index owns the caches' contents. For every node with a session it counts how often each object is referred to. A change
//! marks the object's key in the [`KeySet`] of each session that needs it; what is sent is looked up when it is sent, so only the
//! newest state is.

mod devices;
mod subscription;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use crds::componentconfig::sync::{USUAL_CONFIG_MAP, config_map_name};
use proto::{Digest, Object, ResourceKey, Seen};

pub use self::subscription::{NodeSubscription, SyncConfig};
use super::{
    key_set::KeySet,
    objects::{Cached, DEVICE, Facts, KINDS, Kind, NodeFacts, Owned, PodFacts},
    protection::{Eviction, Guard},
};

/// Keys that changed while a session was busy. A node that falls further behind is better served by a new session,
/// which compares inventories.
const MAX_DIRTY: usize = 50_000;

/// Objects of a node that is gone, let go in one turn: whoever waits for the index goes between two of them.
const RELEASED_AT_ONCE: usize = 256;

/// The shared index.
pub struct Index {
    state: RwLock<State>,
    queues: Queues,
    /// How many devices are displaced: mostly none, and then no session has to look.
    leaving: AtomicUsize,
}

/// What others have to look at.
#[derive(Default)]
struct Queues {
    /// Pods whose tolerations are not what they should be: bounded by the number of pods.
    unguarded: Arc<KeySet>,
    /// Devices that may have to be placed: bounded by the number of devices.
    unplaced: Arc<KeySet>,
}

struct State {
    kinds: HashMap<&'static str, KindState>,
    objects: HashMap<ResourceKey, Cached>,
    /// Objects of the API that cannot be passed on: that they are not in `objects` does not mean that they are gone.
    unreadable: HashSet<ResourceKey>,
    /// Pods and devices by node, for nodes with and without a session.
    bound: HashMap<Box<str>, BTreeSet<ResourceKey>>,
    /// Devices that are not where they are to be, as far as they themselves tell.
    displaced: BTreeSet<ResourceKey>,
    /// Of these: those that their holder, whom it names, is known to have no more.
    let_go: HashMap<ResourceKey, Box<str>>,
    /// The ConfigMap with the link settings of nodes that name none.
    sync_config: Option<ResourceKey>,
    /// Nodes with a session.
    nodes: HashMap<Arc<str>, NodeView>,
    /// The nodes of `nodes` that need a key.
    holders: HashMap<ResourceKey, HashSet<Arc<str>>>,
    /// Those who want to know of a change of one object.
    followed: HashMap<ResourceKey, Arc<KeySet>>,
    /// Sessions that wait for a cache to come further.
    waiting: HashMap<u64, Arc<KeySet>>,
    next_session: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct KindState {
    /// Or known to be [absent](Index::absent).
    listed: bool,
    absent: bool,
    /// Every change up to this version has been looked at.
    newest: u64,
    /// None since this one, that we know of. What other replicas need not wait for: they hear of no more either.
    changed: u64,
}

#[derive(Default)]
struct NodeView {
    /// How many of the node's pods and devices (of a volume: claims) need a key; these themselves and the Node count as one.
    references: HashMap<ResourceKey, u32>,
    /// The ConfigMap with the node's link settings: one of `references`.
    sync_config: Option<ResourceKey>,
    /// By session: a new one may overlap the one that it supersedes.
    sessions: BTreeMap<u64, Arc<KeySet>>,
}

impl NodeView {
    fn mark(&self, key: &ResourceKey) {
        for dirty in self.sessions.values() {
            dirty.mark(key);
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    pub fn new() -> Self {
        let state = State {
            kinds: KINDS.iter().map(|kind| (kind.key, KindState::default())).collect(),
            objects: HashMap::new(),
            unreadable: HashSet::new(),
            bound: HashMap::new(),
            displaced: BTreeSet::new(),
            let_go: HashMap::new(),
            sync_config: None,
            nodes: HashMap::new(),
            holders: HashMap::new(),
            followed: HashMap::new(),
            waiting: HashMap::new(),
            next_session: 1,
        };
        Self { state: RwLock::new(state), queues: Queues::default(), leaving: AtomicUsize::new(0) }
    }

    /// With the ConfigMap `NAMESPACE/NAME` for the link settings of nodes that name none.
    #[must_use]
    pub fn with_sync_config(self, map: &str) -> Self {
        self.write().sync_config = sync_key(map);
        self
    }

    /// As it was given; `None` where it is the usual one.
    pub fn unusual_sync_config(&self) -> Option<Arc<str>> {
        let name = match &self.read().sync_config {
            Some(key) => format!("{}/{}", key.namespace(), key.name()),
            None => String::new(),
        };
        (name != USUAL_CONFIG_MAP).then(|| name.into())
    }

    /// The whole content of a kind, as of `resource_version`: what is not in it is gone. `unreadable` is there, and cannot
    /// be passed on.
    pub fn replace(
        &self,
        kind: &Kind,
        objects: Vec<Cached>,
        unreadable: Vec<ResourceKey>,
        resource_version: u64,
    ) {
        let mut state = self.write();
        let state = &mut *state;
        let kept: HashSet<ResourceKey> =
            objects.iter().map(|cached| &cached.object.key).chain(&unreadable).cloned().collect();
        let known = state.objects.keys().chain(&state.unreadable);
        let gone: Vec<ResourceKey> =
            known.filter(|key| key.kind() == kind.key && !kept.contains(key)).cloned().collect();
        let listed = state.kinds.get(kind.key).is_some_and(|kind| kind.listed);
        // What went before the list, and when, it does not say.
        let newest = objects.iter().map(|cached| cached.object.version.resource_version).max();
        let changed = if listed && gone.is_empty() { newest.unwrap_or_default() } else { resource_version };
        for key in gone {
            state.remove(&key, &self.queues);
        }
        state.unreadable.extend(unreadable);
        for cached in objects {
            let key = cached.object.key.clone();
            for dirty in state.put(cached, &self.queues) {
                dirty.mark(&key);
            }
        }
        let entry = state.kinds.entry(kind.key).or_default();
        (entry.listed, entry.absent) = (true, false);
        if kind.key == "Node" {
            // Now it is known which are gone.
            for key in state.objects.keys().filter(|key| key.kind() == DEVICE) {
                self.queues.unplaced.mark(key);
            }
        }
        self.leaving.store(state.displaced.len(), Ordering::Relaxed);
        state.changed(kind, changed);
        state.saw(kind, resource_version);
    }

    pub fn apply(&self, kind: &Kind, cached: Cached) {
        self.apply_heard(kind, cached, Instant::now());
    }

    /// As [`apply`](Self::apply), heard of at `at`.
    pub fn apply_heard(&self, kind: &Kind, cached: Cached, at: Instant) {
        let key = cached.object.key.clone();
        let mut state = self.write();
        state.changed(kind, cached.object.version.resource_version);
        let sessions = state.put(cached, &self.queues);
        self.leaving.store(state.displaced.len(), Ordering::Relaxed);
        // A thousand of them look at once, and would only wait for the lock.
        drop(state);
        for dirty in sessions {
            dirty.mark_since(&key, at);
        }
    }

    /// An object that cannot be passed on has this version now; nodes keep what they have of it.
    pub fn withhold(&self, kind: &Kind, key: ResourceKey, resource_version: u64) {
        let mut state = self.write();
        state.changed(kind, resource_version);
        state.unreadable.insert(key);
    }

    /// `resource_version` is that of the deletion.
    pub fn delete(&self, kind: &Kind, key: &ResourceKey, resource_version: u64) {
        let mut state = self.write();
        state.changed(kind, resource_version);
        state.remove(key, &self.queues);
        self.leaving.store(state.displaced.len(), Ordering::Relaxed);
    }

    /// The API server does not have this kind, or does not show it: nodes keep what they have of it, and wait for it no longer.
    pub fn absent(&self, kind: &Kind) {
        let mut state = self.write();
        let entry = state.kinds.entry(kind.key).or_default();
        (entry.listed, entry.absent) = (true, true);
        state.saw(kind, 0);
    }

    /// Nothing of this kind changed up to `resource_version` but what was applied.
    pub fn bookmark(&self, kind: &Kind, resource_version: u64) {
        self.write().saw(kind, resource_version);
    }

    pub fn is_complete(&self) -> bool {
        self.read().is_complete()
    }

    /// Kinds that were not listed yet, for people.
    pub fn missing_kinds(&self) -> Vec<&'static str> {
        let state = self.read();
        KINDS.iter().map(|kind| kind.key).filter(|key| !state.kinds[key].listed).collect()
    }

    pub fn get(&self, key: &ResourceKey) -> Option<Object> {
        self.read().objects.get(key).map(|cached| cached.object.clone())
    }

    /// With the pod's version.
    pub fn pod(&self, key: &ResourceKey) -> Option<(PodFacts, u64)> {
        let state = self.read();
        let Cached { object, facts, .. } = state.objects.get(key)?;
        match facts {
            Facts::Pod(facts) => Some((facts.clone(), object.version.resource_version)),
            _ => None,
        }
    }

    /// Whose a device or a rule is, and its version.
    pub fn owned(&self, key: &ResourceKey) -> Option<(Owned, u64)> {
        let state = self.read();
        let Cached { object, facts, .. } = state.objects.get(key)?;
        Some((Owned::of(facts)?, object.version.resource_version))
    }

    /// The [`mod@print`](super::print) of the status of what an edge reports on, and the object's version.
    pub fn status(&self, key: &ResourceKey) -> Option<(Option<u64>, u64)> {
        let state = self.read();
        let Cached { object, facts, .. } = state.objects.get(key)?;
        Some((facts.status()?, object.version.resource_version))
    }

    /// Up to which version all changes of a kind have been looked at.
    pub fn newest(&self, kind: &str) -> u64 {
        self.read().kinds.get(kind).map_or(0, |kind| kind.newest)
    }

    pub fn node(&self, name: &str) -> Option<NodeFacts> {
        self.read().node(name).cloned()
    }

    /// Sizes for metrics: objects, connected nodes.
    pub fn sizes(&self) -> (usize, usize) {
        let state = self.read();
        (state.objects.len(), state.nodes.len())
    }

    /// The digest of what each connected node should hold, by name.
    pub fn digests(&self) -> BTreeMap<String, Digest> {
        let nodes: Vec<Arc<str>> = self.read().nodes.keys().cloned().collect();
        // Who waits for the lock has it between two nodes.
        nodes.into_iter().map(|node| (node.to_string(), self.read().digest(&node))).collect()
    }

    /// Pods that wait to be protected from eviction, or to be given back to it.
    pub fn unguarded(&self) -> &Arc<KeySet> {
        &self.queues.unguarded
    }

    /// The pod's bytes, and what has to be done to it now.
    pub fn unguarded_pod(&self, key: &ResourceKey) -> Option<(Bytes, Guard)> {
        let state = self.read();
        let cached = state.objects.get(key)?;
        let Facts::Pod(facts) = &cached.facts else { return None };
        Some((cached.object.bytes.clone(), state.guard(facts)?))
    }

    /// Starts to follow one object, for one follower: it is marked whenever the object is another one, and now.
    pub fn follow(&self, key: ResourceKey) -> Arc<KeySet> {
        let changes = Arc::new(KeySet::default());
        let mut state = self.write();
        if state.objects.contains_key(&key) {
            changes.mark(&key);
        }
        state.followed.insert(key, Arc::clone(&changes));
        changes
    }

    /// Has every session look at what it has to do.
    pub fn wake_sessions(&self) {
        for session in self.read().nodes.values().flat_map(|view| view.sessions.values()) {
            session.wake();
        }
    }

    /// Starts to follow what a node needs, for one session.
    pub fn subscribe(self: &Arc<Self>, node: &str) -> NodeSubscription {
        let mut state = self.write();
        let state = &mut *state;
        let id = state.next_session;
        state.next_session += 1;
        let dirty = Arc::new(KeySet::bounded(MAX_DIRTY));
        let node: Arc<str> = node.into();
        if !state.nodes.contains_key(&node) {
            state.nodes.insert(Arc::clone(&node), NodeView::default());
            if let Ok(own) = ResourceKey::new("Node", "", &node) {
                state.refer(&node, &own);
            }
            for key in state.bound.get(&*node).cloned().unwrap_or_default() {
                let binding = state.objects.get(&key).and_then(|cached| cached.facts.binding());
                let references = binding.map(|(_, references)| references.to_vec()).unwrap_or_default();
                state.refer_each(&node, &key, &references);
            }
            state.choose_sync_config(&node);
            state.guard_all(&node, &self.queues.unguarded);
        }
        // After all that: a session looks at all of it at first, whatever is marked.
        state.nodes.entry(Arc::clone(&node)).or_default().sessions.insert(id, Arc::clone(&dirty));
        NodeSubscription::new(Arc::clone(self), node, id, dirty)
    }

    fn unsubscribe(&self, node: &Arc<str>, id: u64) {
        let gone = {
            let mut state = self.write();
            state.waiting.remove(&id);
            let Some(view) = state.nodes.get_mut(node) else { return };
            view.sessions.remove(&id);
            if !view.sessions.is_empty() {
                return;
            }
            state.nodes.remove(node)
        };
        let keys: Vec<ResourceKey> = gone.into_iter().flat_map(|view| view.references.into_keys()).collect();
        for some in keys.chunks(RELEASED_AT_ONCE) {
            let mut state = self.write();
            for key in some {
                // It may be back.
                if !state.nodes.get(node).is_some_and(|view| view.references.contains_key(key)) {
                    state.release(node, key);
                }
            }
        }
    }

    // A panic while the lock was held would be a bug of the index; serving what it holds beats stopping every node.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn digest(&self, node: &str) -> Digest {
        let needed = self.nodes.get(node).into_iter().flat_map(|view| view.references.keys());
        let held = needed.filter_map(|key| Some((key, self.objects.get(key)?.object.version.hash)));
        held.collect()
    }

    fn is_complete(&self) -> bool {
        self.kinds.values().all(|kind| kind.listed)
    }

    fn saw(&mut self, kind: &Kind, resource_version: u64) {
        let entry = self.kinds.entry(kind.key).or_default();
        entry.newest = entry.newest.max(resource_version);
        // Before, all would look for nothing, at each change.
        if self.is_complete() {
            for (_, dirty) in self.waiting.drain() {
                dirty.wake();
            }
        }
    }

    fn changed(&mut self, kind: &Kind, resource_version: u64) {
        let entry = self.kinds.entry(kind.key).or_default();
        entry.changed = entry.changed.max(resource_version);
        self.saw(kind, resource_version);
    }

    /// A cache that is older than what the edge has been told of: its kind, its version, the edge's. A kind that is not
    /// watched here was sent by a cloud that knows more of them.
    fn older_than(&self, seen: &Seen) -> Option<(&'static str, u64, u64)> {
        seen.iter().find_map(|(kind, version)| {
            let (kind, state) = self.kinds.get_key_value(kind).filter(|(_, state)| !state.absent)?;
            (state.newest < version).then_some((*kind, state.newest, version))
        })
    }

    fn node(&self, name: &str) -> Option<&NodeFacts> {
        let key = ResourceKey::new("Node", "", name).ok()?;
        match &self.objects.get(&key)?.facts {
            Facts::Node(facts) => Some(facts),
            _ => None,
        }
    }

    /// Returns the sessions in which the object's key is to be marked.
    #[must_use]
    fn put(&mut self, mut cached: Cached, queues: &Queues) -> Vec<Arc<KeySet>> {
        let mut sessions = Vec::new();
        let key = cached.object.key.clone();
        self.unreadable.remove(&key);
        let hash = cached.object.version.hash;
        let previous = self.objects.get(&key);
        let changed = previous.is_none_or(|previous| previous.object.version.hash != hash);
        if let Some(previous) = previous.filter(|_| !changed) {
            // Each session has them as what its node holds: another copy would stay beside theirs.
            cached.object.bytes = previous.object.bytes.clone();
        }
        let previous = self.objects.insert(key.clone(), cached);
        if changed {
            self.mark_followed(&key);
            for node in self.holders.get(&key).into_iter().flatten() {
                if let Some(view) = self.nodes.get(node) {
                    sessions.extend(view.sessions.values().cloned());
                }
            }
        }
        let previous = previous.map(|previous| previous.facts);
        self.rebind(&key, previous.as_ref());
        match (&self.objects[&key].facts, previous) {
            (Facts::Pod(now), _) => {
                if self.guard(now).is_some() {
                    queues.unguarded.mark(&key);
                }
            }
            (Facts::Node(now), before) => {
                let before = if let Some(Facts::Node(before)) = &before { Some(before) } else { None };
                let same =
                    before.is_some_and(|before| (before.edge, before.opted_out) == (now.edge, now.opted_out));
                if !same {
                    self.guard_all(key.name(), &queues.unguarded);
                }
                if changed {
                    self.look_at_displaced(&queues.unplaced);
                }
                self.sync_config_of(key.name());
            }
            (Facts::Device(now), _) => {
                let now = now.clone();
                self.device_changed(&key, &now, &queues.unplaced);
            }
            (Facts::Claim(now), before) => {
                let now = now.clone();
                let before = if let Some(Facts::Claim(before)) = before { before } else { None };
                self.claim_changed(&key, before.as_ref(), now.as_ref());
            }
            (Facts::Plain | Facts::DeviceStatus(_) | Facts::Rule(_), _) => {}
        }
        sessions
    }

    fn remove(&mut self, key: &ResourceKey, queues: &Queues) {
        let was_unreadable = self.unreadable.remove(key);
        let previous = self.objects.remove(key);
        if previous.is_none() && !was_unreadable {
            return;
        }
        self.mark_followed(key);
        for node in self.holders.get(key).into_iter().flatten() {
            if let Some(view) = self.nodes.get(node) {
                view.mark(key);
            }
        }
        let Some(previous) = previous else { return };
        self.rebind(key, Some(&previous.facts));
        match previous.facts {
            Facts::Claim(before) => self.claim_changed(key, before.as_ref(), None),
            Facts::Node(_) => {
                self.look_at_displaced(&queues.unplaced);
                for bound in self.bound.get(key.name()).into_iter().flatten() {
                    if bound.kind() == DEVICE {
                        queues.unplaced.mark(bound);
                    }
                }
                self.sync_config_of(key.name());
            }
            Facts::Device(_) => {
                self.displaced.remove(key);
                self.let_go.remove(key);
            }
            Facts::Plain | Facts::Pod(_) | Facts::DeviceStatus(_) | Facts::Rule(_) => {}
        }
    }

    fn sync_config_of(&mut self, node: &str) {
        if let Some((node, _)) = self.nodes.get_key_value(node) {
            let node = Arc::clone(node);
            self.choose_sync_config(&node);
        }
    }

    /// The node, which has a session, needs the ConfigMap with its link settings.
    fn choose_sync_config(&mut self, node: &Arc<str>) {
        let wanted = match self.node(node).and_then(|node| node.sync_config.as_deref()) {
            Some(named) => sync_key(named),
            None => self.sync_config.clone(),
        };
        let Some(view) = self.nodes.get_mut(node) else { return };
        if view.sync_config == wanted {
            return;
        }
        let before = std::mem::replace(&mut view.sync_config, wanted.clone());
        if let Some(wanted) = wanted {
            self.refer(node, &wanted);
        }
        if let Some(before) = before {
            self.unrefer(node, &before);
        }
    }

    fn mark_followed(&self, key: &ResourceKey) {
        if let Some(changes) = self.followed.get(key) {
            changes.mark(key);
        }
    }

    /// Nodes that need a claim need the volume that it is bound to.
    fn claim_changed(&mut self, key: &ResourceKey, before: Option<&ResourceKey>, now: Option<&ResourceKey>) {
        if before == now {
            return;
        }
        for node in self.holders.get(key).cloned().unwrap_or_default() {
            if let Some(now) = now {
                self.refer(&node, now);
            }
            if let Some(before) = before {
                self.unrefer(&node, before);
            }
        }
    }

    fn volume_of(&self, key: &ResourceKey) -> Option<ResourceKey> {
        match &self.objects.get(key)?.facts {
            Facts::Claim(volume) => volume.clone(),
            _ => None,
        }
    }

    /// What is bound to a node, and what that refers to, is counted anew; the object itself has been dealt with.
    fn rebind(&mut self, key: &ResourceKey, before: Option<&Facts>) {
        let before = before.and_then(Facts::binding);
        let now = self.objects.get(key).and_then(|cached| cached.facts.binding());
        if before == now {
            return;
        }
        let now = now.map(|(node, references)| (Box::<str>::from(node), references.to_vec()));
        // New references first, so that what both need is not dropped and taken up again.
        if let Some((node, references)) = &now {
            self.bound.entry(node.clone()).or_default().insert(key.clone());
            self.refer_each(node, key, references);
        }
        if let Some((node, references)) = before {
            let elsewhere = now.is_none_or(|(now, _)| *now != *node);
            if elsewhere && let Some(bound) = self.bound.get_mut(node) {
                bound.remove(key);
                if bound.is_empty() {
                    self.bound.remove(node);
                }
            }
            self.drop_each(node, key, references);
        }
    }

    fn refer_each(&mut self, node: &str, bound: &ResourceKey, references: &[ResourceKey]) {
        if let Some((node, _)) = self.nodes.get_key_value(node) {
            let node = Arc::clone(node);
            self.refer(&node, bound);
            for key in references {
                self.refer(&node, key);
            }
        }
    }

    fn drop_each(&mut self, node: &str, bound: &ResourceKey, references: &[ResourceKey]) {
        if let Some((node, _)) = self.nodes.get_key_value(node) {
            let node = Arc::clone(node);
            self.unrefer(&node, bound);
            for key in references {
                self.unrefer(&node, key);
            }
        }
    }

    fn refer(&mut self, node: &Arc<str>, key: &ResourceKey) {
        let Some(view) = self.nodes.get_mut(node) else { return };
        if let Some(count) = view.references.get_mut(key) {
            *count += 1;
            return;
        }
        view.references.insert(key.clone(), 1);
        self.holders.entry(key.clone()).or_default().insert(Arc::clone(node));
        if self.objects.contains_key(key) {
            view.mark(key);
        }
        if let Some(volume) = self.volume_of(key) {
            self.refer(node, &volume);
        }
    }

    fn unrefer(&mut self, node: &Arc<str>, key: &ResourceKey) {
        let Some(view) = self.nodes.get_mut(node) else { return };
        let Some(count) = view.references.get_mut(key) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        view.references.remove(key);
        // Marked in any case: the pod that needed it may have been removed just before the object was.
        view.mark(key);
        self.release(node, key);
        if let Some(volume) = self.volume_of(key) {
            self.unrefer(node, &volume);
        }
    }

    fn release(&mut self, node: &Arc<str>, key: &ResourceKey) {
        if let Some(holders) = self.holders.get_mut(key) {
            holders.remove(node);
            if holders.is_empty() {
                self.holders.remove(key);
            }
        }
    }

    /// What is to be done about the pod's eviction.
    fn guard(&self, pod: &PodFacts) -> Option<Guard> {
        if pod.deleting {
            return None;
        }
        let node = self.node(&pod.node);
        let opted_out = pod.opted_out || node.is_some_and(|node| node.opted_out);
        let at_edge = node.is_some_and(|node| node.edge) || self.nodes.contains_key(&*pod.node);
        match pod.eviction {
            Eviction::Exposed if !opted_out && at_edge => Some(Guard::Protect),
            Eviction::Guarded if opted_out => Some(Guard::GiveBack),
            Eviction::Exposed | Eviction::Guarded | Eviction::Never => None,
        }
    }

    fn guard_all(&self, node: &str, unguarded: &KeySet) {
        for key in self.bound.get(node).into_iter().flatten() {
            if let Some(Facts::Pod(facts)) = self.objects.get(key).map(|cached| &cached.facts)
                && self.guard(facts).is_some()
            {
                unguarded.mark(key);
            }
        }
    }
}

/// The key of the ConfigMap that is written as `NAMESPACE/NAME`; `None` if it is not.
fn sync_key(map: &str) -> Option<ResourceKey> {
    let (namespace, name) = config_map_name(map)?;
    ResourceKey::new("ConfigMap", namespace, name).ok()
}

#[cfg(test)]
mod tests;
