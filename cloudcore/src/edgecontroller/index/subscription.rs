//! What a session sees of the index.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use proto::{
    Object, ResourceKey, Seen,
    session::{Freshness, View},
};
use tracing::warn;

use super::{
    super::{class, key_set::KeySet},
    Index,
};

/// How long a session waits for caches that are older than what its edge has been told of. A cache that lags has caught up
/// by then: bookmarks come every minute. One that has not is the API server's newest, which was restored from a backup.
const PATIENCE: Duration = Duration::from_secs(150);

/// What there is of a node's link settings.
#[derive(Debug, PartialEq, Eq)]
pub enum SyncConfig {
    /// No ConfigMap.
    None,
    Map(Object),
    /// It cannot be told: its name is none, or it is not to be read, or not all has been listed.
    Unknown,
}

/// A session's window on what its node needs.
pub struct NodeSubscription {
    index: Arc<Index>,
    node: Arc<str>,
    id: u64,
    dirty: Arc<KeySet>,
    /// Everything was listed, and the edge knew more.
    behind_since: OnceLock<Instant>,
}

impl NodeSubscription {
    pub(super) fn new(index: Arc<Index>, node: Arc<str>, id: u64, dirty: Arc<KeySet>) -> Self {
        Self { index, node, id, dirty, behind_since: OnceLock::new() }
    }

    /// As the page of digests has it.
    #[cfg(test)]
    pub(super) fn digest(&self) -> proto::Digest {
        self.index.read().digest(&self.node)
    }

    pub fn dirty(&self) -> &KeySet {
        &self.dirty
    }

    /// It may have changed whenever a key of a Node or a ConfigMap was marked, and once all has been listed.
    pub fn sync_config(&self) -> SyncConfig {
        let state = self.index.read();
        let Some(key) = state.nodes.get(&self.node).and_then(|view| view.sync_config.as_ref()) else {
            let named = state.node(&self.node).is_some_and(|node| node.sync_config.is_some());
            return if named { SyncConfig::Unknown } else { SyncConfig::None };
        };
        match state.objects.get(key) {
            Some(cached) => SyncConfig::Map(cached.object.clone()),
            None if state.unreadable.contains(key) || !state.is_complete() => SyncConfig::Unknown,
            None => SyncConfig::None,
        }
    }
}

impl Drop for NodeSubscription {
    fn drop(&mut self) {
        self.index.unsubscribe(&self.node, self.id);
    }
}

impl View for NodeSubscription {
    fn freshness(&self, seen: &Seen) -> Freshness {
        let mut state = self.index.write();
        if state.is_complete() {
            let Some((kind, here, there)) = state.older_than(seen) else { return Freshness::Current };
            if self.behind_since.get_or_init(Instant::now).elapsed() > PATIENCE {
                warn!(
                    node = %self.node,
                    kind,
                    here,
                    there,
                    "the edge has been told of newer objects than the API server has; was it restored from a backup?"
                );
                return Freshness::WentBack;
            }
        }
        // Whoever brings a cache forward wakes it.
        state.waiting.insert(self.id, Arc::clone(&self.dirty));
        Freshness::Behind
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

    fn knows(&self, key: &ResourceKey) -> bool {
        let state = self.index.read();
        let needed = || state.nodes.get(&self.node).is_some_and(|view| view.references.contains_key(key));
        let is_watched = state.kinds.get(key.kind()).is_some_and(|kind| !kind.absent);
        is_watched && !(state.unreadable.contains(key) && needed())
    }

    fn newest_change(&self, kind: &str) -> u64 {
        self.index.read().kinds.get(kind).map_or(0, |kind| kind.changed)
    }

    fn class(&self, key: &ResourceKey, bytes: &[u8], gone: bool) -> Option<usize> {
        let class = class::of(key, bytes, gone)?;
        // It is obeyed at both ends at once, or at neither.
        let state = self.index.read();
        let settings = state.nodes.get(&self.node).and_then(|view| view.sync_config.as_ref());
        (settings != Some(key)).then_some(class)
    }
}
