//! One session a node: a newer one supersedes the older, whose end must not remove the newer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use runtime::link::streams::Streams;

use super::traffic::Traffic;

/// The nodes that are connected.
#[derive(Debug, Default)]
pub struct Registry {
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    next: u64,
    by_node: HashMap<String, Session>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    superseded: CancellationToken,
    traffic: Arc<Traffic>,
    streams: Streams,
}

/// A session's entry; dropping it takes it out.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    node: String,
    id: u64,
    superseded: CancellationToken,
}

impl Registry {
    /// Enters a node's session; an older session of the node is told to end.
    pub fn enter(self: &Arc<Self>, node: &str, traffic: Arc<Traffic>, streams: Streams) -> Registration {
        let superseded = CancellationToken::new();
        let mut sessions = self.lock();
        let id = sessions.next;
        sessions.next += 1;
        let session = Session { id, superseded: superseded.clone(), traffic, streams };
        if let Some(older) = sessions.by_node.insert(node.to_owned(), session) {
            older.superseded.cancel();
        }
        Registration { registry: Arc::clone(self), node: node.to_owned(), id, superseded }
    }

    pub fn contains(&self, node: &str) -> bool {
        self.lock().by_node.contains_key(node)
    }

    /// Streams to the node, while it is connected here.
    pub fn streams(&self, node: &str) -> Option<Streams> {
        self.lock().by_node.get(node).map(|session| session.streams.clone())
    }

    pub fn len(&self) -> usize {
        self.lock().by_node.len()
    }

    /// For people: each connected node, with its link.
    pub fn page(&self) -> Value {
        let sessions = self.lock();
        sessions.by_node.iter().map(|(node, session)| (node.clone(), session.traffic.page())).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        // The map is whole whatever panicked beside it.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    pub fn superseded(&self) -> &CancellationToken {
        &self.superseded
    }

    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.registry.lock();
        if sessions.by_node.get(&self.node).is_some_and(|session| session.id == self.id) {
            sessions.by_node.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_superseded_session_leaves_the_newer_one() {
        let registry = Arc::new(Registry::default());
        let first = registry.enter("n", Traffic::of_nobody(), Streams::default());
        let second = registry.enter("n", Traffic::of_nobody(), Streams::default());
        assert!(first.superseded().is_cancelled() && !second.superseded().is_cancelled());
        drop(first);
        assert!(registry.contains("n"));
        drop(second);
        assert!(registry.is_empty());
    }
}
