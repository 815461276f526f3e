//! A replica's cache of the API, which lags, and the view of one node on it: what
//! `cloudcore::edgecontroller::index` does.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    Digest, Object, ResourceKey, Seen,
    session::{CLASSES, Freshness, View},
};

use super::{
    api::{Api, Cached, Change, KINDS, POD, references},
    faults::Fault,
};

#[derive(Clone, Copy, Default)]
pub(crate) struct KindState {
    pub(crate) listed: bool,
    pub(crate) newest: u64,
    changed: u64,
    /// The next entry of the API's log.
    pub(crate) next: usize,
}

pub(crate) struct Cache {
    objects: BTreeMap<ResourceKey, Cached>,
    pub(crate) kinds: [KindState; KINDS.len()],
    /// By node.
    references: Vec<BTreeSet<ResourceKey>>,
    fault: Option<Fault>,
}

/// Keys that sessions of a node have to look at.
type Marks = Vec<(usize, ResourceKey)>;

pub(crate) fn kind_index(key: &ResourceKey) -> usize {
    KINDS.iter().position(|kind| *kind == key.kind()).expect("a kind of the simulation")
}

impl Cache {
    pub(crate) fn new(nodes: usize, fault: Option<Fault>) -> Self {
        let references = vec![BTreeSet::new(); nodes];
        Self { objects: BTreeMap::new(), kinds: [KindState::default(); KINDS.len()], references, fault }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.kinds.iter().all(|kind| kind.listed)
    }

    /// A list: all of a kind, as the API server has it now.
    pub(crate) fn replace(&mut self, kind: usize, api: &Api) -> Marks {
        let of_kind = |key: &ResourceKey| kind_index(key) == kind;
        let mut marks = Marks::new();
        let gone: Vec<ResourceKey> = self
            .objects
            .keys()
            .filter(|key| of_kind(key) && !api.objects.contains_key(*key))
            .cloned()
            .collect();
        let newest = api.objects.iter().filter(|(key, _)| of_kind(key));
        let newest = newest.map(|(_, cached)| cached.object.version.resource_version).max();
        let changed = match newest {
            Some(newest) if self.kinds[kind].listed && gone.is_empty() => newest,
            _ => api.revision,
        };
        let changed = changed.max(self.kinds[kind].changed);
        if self.fault != Some(Fault::RelistKeepsGone) {
            for key in gone {
                marks.extend(self.put(&key, None));
            }
        }
        for (key, cached) in api.objects.iter().filter(|(key, _)| of_kind(key)) {
            marks.extend(self.put(key, Some(cached.clone())));
        }
        self.kinds[kind] = KindState { listed: true, newest: api.revision, changed, next: api.log.len() };
        marks
    }

    /// One event of a watch.
    pub(crate) fn apply(&mut self, kind: usize, change: &Change) -> Marks {
        self.kinds[kind].next += 1;
        if kind_index(&change.key) != kind {
            return Marks::new();
        }
        self.kinds[kind].newest = change.resource_version;
        self.kinds[kind].changed = change.resource_version;
        self.put(&change.key, change.now.clone())
    }

    fn put(&mut self, key: &ResourceKey, now: Option<Cached>) -> Marks {
        let hash = |cached: &Cached| cached.object.version.hash;
        let was = self.objects.get(key).map(hash);
        let is = now.as_ref().map(hash);
        match now {
            Some(cached) => self.objects.insert(key.clone(), cached),
            None => self.objects.remove(key),
        };
        let mut marks = Marks::new();
        for node in 0..self.references.len() {
            let before = &self.references[node];
            let after = if key.kind() == "Pod" { references(&self.objects, node) } else { before.clone() };
            let mut changed: BTreeSet<ResourceKey> = if self.fault == Some(Fault::UnreferencedNotMarked) {
                after.difference(before).cloned().collect()
            } else {
                after.symmetric_difference(before).cloned().collect()
            };
            if was != is && after.contains(key) {
                changed.insert(key.clone());
            }
            marks.extend(changed.into_iter().map(|key| (node, key)));
            self.references[node] = after;
        }
        marks
    }
}

/// What a node needs, of the cache.
pub(crate) struct NodeView<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) node: usize,
}

impl NodeView<'_> {
    pub(crate) fn digest(&self) -> Digest {
        self.objects().iter().map(|object| (&object.key, object.version.hash)).collect()
    }
}

impl View for NodeView<'_> {
    fn freshness(&self, seen: &Seen) -> Freshness {
        let blind = [Some(Fault::EmptyCacheDeletes), Some(Fault::IncompleteCacheSyncs)];
        if blind.contains(&self.cache.fault) {
            return Freshness::Current;
        }
        let older = |(kind, version): (&str, u64)| {
            let kind = KINDS.iter().position(|known| *known == kind).expect("a kind of the simulation");
            let judged = match self.cache.fault {
                Some(Fault::LaggingReplicaSyncs) => false,
                Some(Fault::LaggingPodsSync) => kind != POD,
                _ => true,
            };
            judged && self.cache.kinds[kind].newest < version
        };
        if self.cache.is_complete() && !seen.iter().any(older) {
            Freshness::Current
        } else {
            Freshness::Behind
        }
    }

    fn get(&self, key: &ResourceKey) -> Option<Object> {
        self.cache.references[self.node].get(key)?;
        self.cache.objects.get(key).map(|cached| cached.object.clone())
    }

    fn objects(&self) -> Vec<Object> {
        let skip = usize::from(self.cache.fault == Some(Fault::ResumeSkipsKey));
        let keys = self.cache.references[self.node].iter();
        let objects = keys.filter_map(|key| self.cache.objects.get(key));
        objects.skip(skip).map(|cached| cached.object.clone()).collect()
    }

    fn knows(&self, _: &ResourceKey) -> bool {
        true
    }

    fn newest_change(&self, kind: &str) -> u64 {
        let kind = KINDS.iter().position(|known| *known == kind).expect("a kind of the simulation");
        if self.cache.fault == Some(Fault::DeletionsUntold) { 0 } else { self.cache.kinds[kind].changed }
    }

    fn class(&self, key: &ResourceKey, _: &[u8], gone: bool) -> Option<usize> {
        let class = key.name().bytes().last().map(|last| usize::from(last) % (CLASSES + 1));
        class.filter(|class| *class < CLASSES && !(gone && key.kind() == KINDS[POD]))
    }
}
