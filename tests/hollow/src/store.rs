//! A hollow node's store. What edged would do about a change is done here, where it is committed: a pod that came runs, and
//! one that is to go is gone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use edgecore::{
    edgehub::HubStore,
    metamanager::{DesiredChange, MemoryStore, StoreError},
};
use proto::{Digest, Object, Report, ResourceKey, Seen, Version, message::ReportKind};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    changes::Changes,
    reports::{self, Pod},
};

/// A handle; clones share the store.
#[derive(Clone)]
pub(crate) struct NodeStore {
    memory: MemoryStore,
    inner: Arc<Inner>,
}

struct Inner {
    /// Each pod's last report, by which it is told again whether it is the same pod.
    pods: Mutex<HashMap<ResourceKey, Told>>,
    /// Changes that were committed, by kind.
    deltas: Mutex<BTreeMap<Box<str>, u64>>,
    changes: Arc<Changes>,
}

struct Told {
    uid: String,
    kind: ReportKind,
    report: Bytes,
}

impl NodeStore {
    pub(crate) fn new(changes: Arc<Changes>) -> Self {
        let inner = Inner { pods: Mutex::default(), deltas: Mutex::default(), changes };
        Self { memory: MemoryStore::default(), inner: Arc::new(inner) }
    }

    /// Adds what was committed here, by kind.
    pub(crate) fn add_deltas(&self, sum: &mut BTreeMap<String, u64>) {
        for (kind, count) in &*self.deltas() {
            // Ten thousand stores are asked ten times a second.
            match sum.get_mut(&**kind) {
                Some(sum) => *sum += count,
                None => drop(sum.insert(kind.to_string(), *count)),
            }
        }
    }

    fn deltas(&self) -> MutexGuard<'_, BTreeMap<Box<str>, u64>> {
        // Nothing below panics while it holds this.
        self.inner.deltas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that it holds for the cloud.
    pub(crate) fn objects(&self) -> Result<Vec<Object>, StoreError> {
        let keys = self.memory.inventory()?;
        keys.iter().filter_map(|(key, _)| self.memory.get(key).transpose()).collect()
    }

    pub(crate) fn pods(&self) -> usize {
        self.told().len()
    }

    pub(crate) fn report_node(&self, key: &ResourceKey, payload: Bytes) -> Result<(), StoreError> {
        self.memory.report(ReportKind::NodeStatus, key, payload).map(drop)
    }

    /// As edged does in each session: the cloud may have forgotten, or given the node up.
    pub(crate) fn report_pods_again(&self) -> Result<(), StoreError> {
        for (key, told) in &*self.told() {
            self.memory.report(told.kind, key, told.report.clone())?;
        }
        Ok(())
    }

    fn told(&self) -> MutexGuard<'_, HashMap<ResourceKey, Told>> {
        // Nothing below panics while it holds this.
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn react(&self, change: &DesiredChange) -> Result<(), StoreError> {
        match change {
            DesiredChange::Put(object) if object.key.kind() == "Pod" => self.pod(object),
            DesiredChange::Delete(key) => {
                self.told().remove(key);
                Ok(())
            }
            DesiredChange::Put(_) | DesiredChange::Seen(_) => Ok(()),
        }
    }

    fn pod(&self, object: &Object) -> Result<(), StoreError> {
        let pod: Pod = match serde_json::from_slice(&object.bytes) {
            Ok(pod) => pod,
            Err(error) => {
                warn!(key = %object.key, %error, "cloudcore sent a pod that is none");
                return Ok(());
            }
        };
        if pod.has_ended() {
            return Ok(());
        }
        let kind = match pod.metadata.deletion_timestamp {
            Some(_) => ReportKind::PodTerminated,
            None => ReportKind::PodStatus,
        };
        let mut told = self.told();
        if told.get(&object.key).is_some_and(|told| told.uid == pod.metadata.uid && told.kind == kind) {
            return Ok(());
        }
        let report = match kind {
            ReportKind::PodTerminated => reports::terminated(&pod),
            _ => reports::running(&pod),
        };
        self.memory.report(kind, &object.key, report.clone())?;
        told.insert(object.key.clone(), Told { uid: pod.metadata.uid, kind, report });
        Ok(())
    }
}

impl HubStore for NodeStore {
    async fn apply(&self, changes: Vec<DesiredChange>) -> Result<(), StoreError> {
        self.memory.apply(changes.clone()).await?;
        for change in &changes {
            if let DesiredChange::Put(Object { key, .. }) | DesiredChange::Delete(key) = change {
                let mut deltas = self.deltas();
                match deltas.get_mut(key.kind()) {
                    Some(count) => *count += 1,
                    None => drop(deltas.insert(key.kind().into(), 1)),
                }
            }
            if let DesiredChange::Put(object) = change {
                self.inner.changes.committed(object);
            }
            self.react(change)?;
        }
        Ok(())
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<Object>, StoreError> {
        self.memory.get(key)
    }

    fn digest(&self) -> Digest {
        self.memory.digest()
    }

    fn seen(&self) -> Result<Seen, StoreError> {
        self.memory.seen()
    }

    fn inventory(&self) -> Result<Vec<(ResourceKey, Version)>, StoreError> {
        self.memory.inventory()
    }

    fn pending_reports(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        self.memory.pending_reports(after, limit)
    }

    async fn reports_done(&self, ids: Vec<u64>) -> Result<(), StoreError> {
        self.memory.reports_done(ids).await
    }

    async fn report(&self, kind: ReportKind, key: &ResourceKey, payload: Bytes) -> Result<u64, StoreError> {
        self.memory.report(kind, key, payload)
    }

    fn outbox_changes(&self) -> watch::Receiver<u64> {
        self.memory.outbox_changes()
    }

    async fn put_local(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        self.memory.put_local(key, value).await
    }

    async fn delete_local(&self, key: &str) -> Result<(), StoreError> {
        self.memory.delete_local(key).await
    }

    fn local(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.memory.local(key)
    }
}
