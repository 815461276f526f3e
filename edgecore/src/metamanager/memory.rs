//! A store that keeps nothing: what a process needs that plays many edges to load a cloud. It does as [`super::Store`] does,
//! outbox and bounds included, but for the disk, so that what the cloud sees of it is what it would see of an edge.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use proto::{Digest, Object, Report, ResourceKey, Seen, Version, limits::MAX_REPORT, message::ReportKind};
use tokio::sync::watch;

use super::{
    DesiredChange, Options, StoreError, bounded,
    outbox::{Medium, Outbox},
    record::{Op, Payload},
};
use crate::edgehub::HubStore;

/// A handle; clones share the store.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    held: Mutex<Held>,
    outbox_changes: watch::Sender<u64>,
}

struct Held {
    objects: BTreeMap<ResourceKey, Object>,
    digest: Digest,
    outbox: Outbox,
    reports: BTreeMap<u64, Report>,
    seen: Seen,
    local: HashMap<String, Bytes>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let held = Held {
            objects: BTreeMap::new(),
            digest: Digest::default(),
            outbox: Outbox::new(Options::default().outbox_bytes, 1, 0),
            reports: BTreeMap::new(),
            seen: Seen::default(),
            local: HashMap::new(),
        };
        let (outbox_changes, _) = watch::channel(0);
        Self { inner: Arc::new(Inner { held: Mutex::new(held), outbox_changes }) }
    }
}

impl MemoryStore {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing below panics while it holds this.
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`super::Store::report`].
    pub fn report(&self, kind: ReportKind, key: &ResourceKey, payload: Bytes) -> Result<u64, StoreError> {
        bounded("a report", payload.len(), MAX_REPORT)?;
        let (id, is_new) = self.held().report(kind, key, payload);
        if is_new {
            self.inner.outbox_changes.send_modify(|count| *count += 1);
        }
        Ok(id)
    }

    /// All desired objects of a kind.
    pub fn list(&self, kind: &str) -> Vec<Object> {
        self.held().objects.values().filter(|object| object.key.kind() == kind).cloned().collect()
    }
}

impl Held {
    fn change(&mut self, change: DesiredChange) {
        let old = match change {
            DesiredChange::Put(object) => {
                self.digest.add(&object.key, object.version.hash);
                self.objects.insert(object.key.clone(), object)
            }
            DesiredChange::Delete(key) => self.objects.remove(&key),
            DesiredChange::Seen(seen) => {
                self.seen = seen;
                None
            }
        };
        if let Some(old) = old {
            self.digest.remove(&old.key, old.version.hash);
        }
    }

    /// The report's id, and whether anything of it was not pending already.
    fn report(&mut self, kind: ReportKind, key: &ResourceKey, payload: Bytes) -> (u64, bool) {
        let payload = Payload::Plain(payload);
        let (id, changes) = self.outbox.report(kind, key.as_str().to_owned(), payload, Medium::Disk);
        self.outbox.settle();
        let mut is_new = false;
        for op in changes.ops {
            match op {
                Op::PutReport(report) => {
                    is_new = true;
                    let report = Report {
                        id,
                        kind: report.kind,
                        key: report.key,
                        payload: report.payload.bytes().clone(),
                    };
                    self.reports.insert(id, report);
                }
                Op::RemoveReport(id) | Op::DropReport(id) => drop(self.reports.remove(&id)),
                // Adding a report makes no others.
                _ => {}
            }
        }
        (id, is_new)
    }
}

impl HubStore for MemoryStore {
    async fn apply(&self, changes: Vec<DesiredChange>) -> Result<(), StoreError> {
        let mut held = self.held();
        for change in changes {
            held.change(change);
        }
        Ok(())
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<Object>, StoreError> {
        Ok(self.held().objects.get(key).cloned())
    }

    fn digest(&self) -> Digest {
        self.held().digest
    }

    fn seen(&self) -> Result<Seen, StoreError> {
        Ok(self.held().seen.clone())
    }

    fn inventory(&self) -> Result<Vec<(ResourceKey, Version)>, StoreError> {
        Ok(self.held().objects.values().map(|object| (object.key.clone(), object.version)).collect())
    }

    fn pending_reports(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        let held = self.held();
        Ok(held
            .reports
            .range(after.saturating_add(1)..)
            .take(limit)
            .map(|(_, report)| report.clone())
            .collect())
    }

    async fn reports_done(&self, ids: Vec<u64>) -> Result<(), StoreError> {
        let mut held = self.held();
        for id in ids {
            held.outbox.remove(id);
            held.reports.remove(&id);
        }
        held.outbox.settle();
        Ok(())
    }

    async fn report(&self, kind: ReportKind, key: &ResourceKey, payload: Bytes) -> Result<u64, StoreError> {
        self.report(kind, key, payload)
    }

    fn outbox_changes(&self) -> watch::Receiver<u64> {
        self.inner.outbox_changes.subscribe()
    }

    async fn put_local(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        self.held().local.insert(key.to_owned(), value);
        Ok(())
    }

    async fn delete_local(&self, key: &str) -> Result<(), StoreError> {
        self.held().local.remove(key);
        Ok(())
    }

    fn local(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.held().local.get(key).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, text: &'static str) -> Object {
        Object::new(ResourceKey::new("ConfigMap", "d", name).unwrap(), 1, Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn it_holds_what_a_store_holds() {
        let store = MemoryStore::default();
        let [one, two, newer] = [object("one", "1"), object("two", "2"), object("one", "3")];
        store.apply(vec![DesiredChange::Put(one.clone()), DesiredChange::Put(two.clone())]).await.unwrap();
        store.apply(vec![DesiredChange::Put(newer.clone())]).await.unwrap();
        store
            .apply(vec![DesiredChange::Delete(two.key.clone()), DesiredChange::Delete(two.key)])
            .await
            .unwrap();
        assert_eq!(store.inventory().unwrap(), [(newer.key.clone(), newer.version)]);
        let mut digest = Digest::default();
        digest.add(&newer.key, newer.version.hash);
        assert_eq!(store.digest(), digest);
        assert_eq!(store.get(&one.key).unwrap().unwrap().bytes, newer.bytes);
    }

    #[tokio::test]
    async fn newer_state_replaces_what_is_pending() {
        let store = MemoryStore::default();
        let mut changes = store.outbox_changes();
        let key = object("one", "").key;
        let report = |kind, text: &'static str| store.report(kind, &key, Bytes::from(text)).unwrap();
        let old = report(ReportKind::PodStatus, "old");
        let new = report(ReportKind::PodStatus, "new");
        assert!(changes.has_changed().unwrap() && new > old);
        changes.mark_unchanged();
        assert_eq!(report(ReportKind::PodStatus, "new"), new);
        assert!(!changes.has_changed().unwrap());
        let event = report(ReportKind::Event, "event");
        let pending =
            || store.pending_reports(0, 9).unwrap().iter().map(|report| report.id).collect::<Vec<_>>();
        assert_eq!(pending(), [new, event]);
        store.reports_done(vec![new, 99]).await.unwrap();
        assert_eq!(pending(), [event]);
        assert_ne!(report(ReportKind::PodStatus, "new"), new);
    }
}
