//! What each connected node should hold: a pure function of the caches, kept up to date change by change.
//!
//! The index owns the caches' contents. For every node with a session it counts how often each object is referred to, and
//! keeps the digest of what is there. A change marks the object's key in the [`KeySet`] of each session that needs it;
//! what is sent is looked up when it is sent, so only the newest state is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use proto::{Digest, Object, ResourceKey, session::View};

use super::{
    key_set::KeySet,
    objects::{Cached, Facts, KINDS, Kind, NodeFacts, PodFacts},
    protection::{Eviction, Guard},
};

/// Keys that changed while a session was busy. A node that falls further behind is better served by a new session,
/// which compares inventories.
const MAX_DIRTY: usize = 50_000;

/// The shared index.
pub struct Index {
    state: RwLock<State>,
    /// Pods whose tolerations are not what they should be: bounded by the number of pods.
    unguarded: Arc<KeySet>,
}

struct State {
    kinds: HashMap<&'static str, KindState>,
    objects: HashMap<ResourceKey, Cached>,
    /// Objects of the API that cannot be passed on: that they are not in `objects` does not mean that they are gone.
    unreadable: HashSet<ResourceKey>,
    /// Pods by node, for nodes with and without a session.
    pods: HashMap<Box<str>, BTreeSet<ResourceKey>>,
    /// Nodes with a session.
    nodes: HashMap<Arc<str>, NodeView>,
    /// The nodes of `nodes` that need a key.
    holders: HashMap<ResourceKey, HashSet<Arc<str>>>,
    next_session: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct KindState {
    listed: bool,
    newest: u64,
}

#[derive(Default)]
struct NodeView {
    /// How many of the node's pods (of a volume: claims) need a key; the node's own pods and Node count as one.
    references: HashMap<ResourceKey, u32>,
    digest: Digest,
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
            pods: HashMap::new(),
            nodes: HashMap::new(),
            holders: HashMap::new(),
            next_session: 1,
        };
        Self { state: RwLock::new(state), unguarded: Arc::new(KeySet::default()) }
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
        state.unreadable.retain(|key| key.kind() != kind.key);
        state.unreadable.extend(unreadable);
        let kept: HashSet<ResourceKey> =
            objects.iter().map(|cached| &cached.object.key).chain(&state.unreadable).cloned().collect();
        let gone: Vec<ResourceKey> = state
            .objects
            .keys()
            .filter(|key| key.kind() == kind.key && !kept.contains(key))
            .cloned()
            .collect();
        for key in gone {
            state.remove(&key, &self.unguarded);
        }
        for cached in objects {
            state.put(cached, &self.unguarded);
        }
        let was_complete = state.is_complete();
        let entry = state.kinds.entry(kind.key).or_default();
        entry.listed = true;
        entry.newest = entry.newest.max(resource_version);
        if !was_complete && state.is_complete() {
            for dirty in state.nodes.values().flat_map(|view| view.sessions.values()) {
                dirty.wake();
            }
        }
    }

    pub fn apply(&self, kind: &Kind, cached: Cached) {
        let mut state = self.write();
        state.saw(kind, cached.object.version.resource_version);
        state.put(cached, &self.unguarded);
    }

    /// An object that cannot be passed on has this version now; nodes keep what they have of it.
    pub fn withhold(&self, kind: &Kind, key: ResourceKey, resource_version: u64) {
        let mut state = self.write();
        state.saw(kind, resource_version);
        state.unreadable.insert(key);
    }

    /// `resource_version` is that of the deletion.
    pub fn delete(&self, kind: &Kind, key: &ResourceKey, resource_version: u64) {
        let mut state = self.write();
        state.saw(kind, resource_version);
        state.remove(key, &self.unguarded);
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

    pub fn pod(&self, key: &ResourceKey) -> Option<PodFacts> {
        match &self.read().objects.get(key)?.facts {
            Facts::Pod(facts) => Some(facts.clone()),
            Facts::Plain | Facts::Node(_) | Facts::Claim(_) => None,
        }
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
        self.read().nodes.iter().map(|(node, view)| (node.to_string(), view.digest)).collect()
    }

    /// Pods that wait to be protected from eviction, or to be given back to it.
    pub fn unguarded(&self) -> &Arc<KeySet> {
        &self.unguarded
    }

    /// The pod's bytes, and what has to be done to it now.
    pub fn unguarded_pod(&self, key: &ResourceKey) -> Option<(Bytes, Guard)> {
        let state = self.read();
        let cached = state.objects.get(key)?;
        let Facts::Pod(facts) = &cached.facts else { return None };
        Some((cached.object.bytes.clone(), state.guard(facts)?))
    }

    /// Starts to follow what a node needs, for one session.
    pub fn subscribe(self: &Arc<Self>, node: &str) -> NodeSubscription {
        let mut state = self.write();
        let state = &mut *state;
        let id = state.next_session;
        state.next_session += 1;
        let dirty = Arc::new(KeySet::bounded(MAX_DIRTY));
        let node: Arc<str> = node.into();
        let known = state.nodes.contains_key(&node);
        state.nodes.entry(Arc::clone(&node)).or_default().sessions.insert(id, Arc::clone(&dirty));
        if !known {
            if let Ok(own) = ResourceKey::new("Node", "", &node) {
                state.refer(&node, &own);
            }
            for pod in state.pods.get(&*node).cloned().unwrap_or_default() {
                state.refer_pod(&node, &pod);
            }
            state.guard_all(&node, &self.unguarded);
        }
        NodeSubscription {
            index: Arc::clone(self),
            node,
            id,
            dirty,
            newest_pod: AtomicU64::new(0),
            withheld: Mutex::default(),
        }
    }

    fn unsubscribe(&self, node: &Arc<str>, id: u64) {
        let mut state = self.write();
        let Some(view) = state.nodes.get_mut(node) else { return };
        view.sessions.remove(&id);
        if view.sessions.is_empty()
            && let Some(view) = state.nodes.remove(node)
        {
            for key in view.references.keys() {
                state.release(node, key);
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
    fn is_complete(&self) -> bool {
        self.kinds.values().all(|kind| kind.listed)
    }

    fn saw(&mut self, kind: &Kind, resource_version: u64) {
        let entry = self.kinds.entry(kind.key).or_default();
        entry.newest = entry.newest.max(resource_version);
    }

    fn node(&self, name: &str) -> Option<&NodeFacts> {
        let key = ResourceKey::new("Node", "", name).ok()?;
        match &self.objects.get(&key)?.facts {
            Facts::Node(facts) => Some(facts),
            Facts::Plain | Facts::Pod(_) | Facts::Claim(_) => None,
        }
    }

    fn put(&mut self, cached: Cached, unguarded: &KeySet) {
        let key = cached.object.key.clone();
        self.unreadable.remove(&key);
        let hash = cached.object.version.hash;
        let previous = self.objects.insert(key.clone(), cached);
        let changed = previous.as_ref().map(|previous| previous.object.version.hash) != Some(hash);
        if changed {
            for node in self.holders.get(&key).into_iter().flatten() {
                if let Some(view) = self.nodes.get_mut(node) {
                    if let Some(previous) = &previous {
                        view.digest.remove(&key, previous.object.version.hash);
                    }
                    view.digest.add(&key, hash);
                    view.mark(&key);
                }
            }
        }
        let facts = &self.objects[&key].facts;
        match (facts, previous.map(|previous| previous.facts)) {
            (Facts::Pod(now), before) => {
                let now = now.clone();
                let before = if let Some(Facts::Pod(before)) = before { Some(before) } else { None };
                self.pod_changed(&key, before.as_ref(), Some(&now), unguarded);
            }
            (Facts::Node(now), before) => {
                let before = if let Some(Facts::Node(before)) = &before { Some(before) } else { None };
                let same =
                    before.is_some_and(|before| (before.edge, before.opted_out) == (now.edge, now.opted_out));
                if !same {
                    self.guard_all(key.name(), unguarded);
                }
            }
            (Facts::Claim(now), before) => {
                let now = now.clone();
                let before = if let Some(Facts::Claim(before)) = before { before } else { None };
                self.claim_changed(&key, before.as_ref(), now.as_ref());
            }
            (Facts::Plain, _) => {}
        }
    }

    fn remove(&mut self, key: &ResourceKey, unguarded: &KeySet) {
        self.unreadable.remove(key);
        let Some(previous) = self.objects.remove(key) else { return };
        for node in self.holders.get(key).into_iter().flatten() {
            if let Some(view) = self.nodes.get_mut(node) {
                view.digest.remove(key, previous.object.version.hash);
                view.mark(key);
            }
        }
        match previous.facts {
            Facts::Pod(before) => self.pod_changed(key, Some(&before), None, unguarded),
            Facts::Claim(before) => self.claim_changed(key, before.as_ref(), None),
            Facts::Plain | Facts::Node(_) => {}
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
            Facts::Plain | Facts::Pod(_) | Facts::Node(_) => None,
        }
    }

    /// The pod's references are counted anew; its own object has been dealt with.
    fn pod_changed(
        &mut self,
        key: &ResourceKey,
        before: Option<&PodFacts>,
        now: Option<&PodFacts>,
        unguarded: &KeySet,
    ) {
        let same = matches!((before, now), (Some(before), Some(now))
            if before.node == now.node && before.references == now.references);
        if !same {
            // New references first, so that what both need is not dropped and taken up again.
            if let Some(now) = now {
                self.pods.entry(now.node.clone()).or_default().insert(key.clone());
                self.refer_each(&now.node, key, &now.references);
            }
            if let Some(before) = before {
                let elsewhere = now.is_none_or(|now| now.node != before.node);
                if elsewhere && let Some(pods) = self.pods.get_mut(&before.node) {
                    pods.remove(key);
                    if pods.is_empty() {
                        self.pods.remove(&before.node);
                    }
                }
                self.drop_each(&before.node, key, &before.references);
            }
        }
        if now.is_some_and(|now| self.guard(now).is_some()) {
            unguarded.mark(key);
        }
    }

    fn refer_pod(&mut self, node: &str, pod: &ResourceKey) {
        let references = match self.objects.get(pod).map(|cached| &cached.facts) {
            Some(Facts::Pod(facts)) => facts.references.clone(),
            _ => return,
        };
        self.refer_each(node, pod, &references);
    }

    fn refer_each(&mut self, node: &str, pod: &ResourceKey, references: &[ResourceKey]) {
        if let Some((node, _)) = self.nodes.get_key_value(node) {
            let node = Arc::clone(node);
            self.refer(&node, pod);
            for key in references {
                self.refer(&node, key);
            }
        }
    }

    fn drop_each(&mut self, node: &str, pod: &ResourceKey, references: &[ResourceKey]) {
        if let Some((node, _)) = self.nodes.get_key_value(node) {
            let node = Arc::clone(node);
            self.unrefer(&node, pod);
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
        if let Some(cached) = self.objects.get(key) {
            view.digest.add(key, cached.object.version.hash);
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
        if let Some(cached) = self.objects.get(key) {
            view.digest.remove(key, cached.object.version.hash);
        }
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
        for key in self.pods.get(node).into_iter().flatten() {
            if let Some(Facts::Pod(facts)) = self.objects.get(key).map(|cached| &cached.facts)
                && self.guard(facts).is_some()
            {
                unguarded.mark(key);
            }
        }
    }
}

/// A session's window on what its node needs.
pub struct NodeSubscription {
    index: Arc<Index>,
    node: Arc<str>,
    id: u64,
    dirty: Arc<KeySet>,
    /// Of the pods that the edge came with. What pods refer to is gone only if a cache of pods that is as new says so.
    newest_pod: AtomicU64,
    /// What this replica was too old to judge: the edge holds it in this version. Bounded by the edge's inventory.
    withheld: Mutex<BTreeMap<ResourceKey, u64>>,
}

impl NodeSubscription {
    pub fn dirty(&self) -> &KeySet {
        &self.dirty
    }

    /// The edge holds this version, maybe from a replica that knew more.
    pub fn edge_holds(&self, key: &str, resource_version: u64) {
        if key.starts_with("Pod/") {
            self.newest_pod.fetch_max(resource_version, Ordering::Relaxed);
        }
    }

    /// Looks again at what could not be judged: an object that was deleted before this replica heard of it brings no event.
    pub fn recheck(&self) {
        let known = |key: &ResourceKey, version| self.is_seen(key, version);
        self.withheld().retain(|key, version| {
            let known = known(key, *version);
            if known {
                self.dirty.mark(key);
            }
            !known
        });
    }

    fn is_seen(&self, key: &ResourceKey, resource_version: u64) -> bool {
        let state = self.index.read();
        // A kind that is not watched was sent by a cloud that knows more.
        let seen = |kind: &str, version: u64| {
            state.kinds.get(kind).is_some_and(|kind| kind.listed && kind.newest >= version)
        };
        !state.unreadable.contains(key)
            && seen(key.kind(), resource_version)
            && seen("Pod", self.newest_pod.load(Ordering::Relaxed))
    }

    fn withheld(&self) -> MutexGuard<'_, BTreeMap<ResourceKey, u64>> {
        // A map is whole whatever panicked beside it.
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NodeSubscription {
    fn drop(&mut self) {
        self.index.unsubscribe(&self.node, self.id);
    }
}

impl View for NodeSubscription {
    fn is_complete(&self) -> bool {
        self.index.is_complete()
    }

    fn get(&self, key: &ResourceKey) -> Option<Object> {
        let state = self.index.read();
        state.nodes.get(&self.node)?.references.get(key)?;
        state.objects.get(key).map(|cached| cached.object.clone())
    }

    fn objects(&self) -> Vec<Object> {
        let state = self.index.read();
        let Some(view) = state.nodes.get(&self.node) else { return Vec::new() };
        view.references
            .keys()
            .filter_map(|key| state.objects.get(key))
            .map(|cached| cached.object.clone())
            .collect()
    }

    fn digest(&self) -> Digest {
        self.index.read().nodes.get(&self.node).map(|view| view.digest).unwrap_or_default()
    }

    fn has_seen(&self, key: &ResourceKey, resource_version: u64) -> bool {
        let seen = self.is_seen(key, resource_version);
        if !seen {
            self.withheld().insert(key.clone(), resource_version);
        }
        seen
    }
}

#[cfg(test)]
mod tests;
