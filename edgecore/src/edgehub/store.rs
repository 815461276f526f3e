//! What the link needs of a store. edgecore's is the one on its disk; a process that plays many edges has one each in memory.

use bytes::Bytes;
use proto::{Digest, Object, Report, ResourceKey, Seen, Version, message::ReportKind};
use tokio::sync::watch;

use crate::metamanager::{DesiredChange, Store, StoreError};

/// A handle; clones share the store. Each method is that of [`Store`] with its name, and promises the same.
pub trait HubStore: Clone + Send + Sync + 'static {
    /// What is answered is acked: it must be as durable as the store ever gets.
    fn apply(&self, changes: Vec<DesiredChange>) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn get(&self, key: &ResourceKey) -> Result<Option<Object>, StoreError>;
    fn digest(&self) -> Digest;
    fn seen(&self) -> Result<Seen, StoreError>;
    fn inventory(&self) -> Result<Vec<(ResourceKey, Version)>, StoreError>;
    fn pending_reports(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError>;
    fn pending_statuses(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        let mut statuses = self.pending_reports(after, usize::MAX)?;
        statuses.retain(|report| report.kind().is_status());
        statuses.truncate(limit);
        Ok(statuses)
    }
    fn reports_done(&self, ids: Vec<u64>) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn report(
        &self,
        kind: ReportKind,
        key: &ResourceKey,
        payload: Bytes,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
    fn outbox_changes(&self) -> watch::Receiver<u64>;
    fn put_local(&self, key: &str, value: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn delete_local(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn local(&self, key: &str) -> Result<Option<Bytes>, StoreError>;
}

/// Inherent methods come first, so each of these calls its namesake.
impl HubStore for Store {
    async fn apply(&self, changes: Vec<DesiredChange>) -> Result<(), StoreError> {
        self.apply(changes).await
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<Object>, StoreError> {
        self.get(key)
    }

    fn digest(&self) -> Digest {
        self.digest()
    }

    fn seen(&self) -> Result<Seen, StoreError> {
        self.seen()
    }

    fn inventory(&self) -> Result<Vec<(ResourceKey, Version)>, StoreError> {
        self.inventory()
    }

    fn pending_reports(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        self.pending_reports(after, limit)
    }

    fn pending_statuses(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        self.pending_statuses(after, limit)
    }

    async fn reports_done(&self, ids: Vec<u64>) -> Result<(), StoreError> {
        self.reports_done(ids).await
    }

    async fn report(&self, kind: ReportKind, key: &ResourceKey, payload: Bytes) -> Result<u64, StoreError> {
        self.report(kind, key, payload).await
    }

    fn outbox_changes(&self) -> watch::Receiver<u64> {
        self.outbox_changes()
    }

    async fn put_local(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        self.put_local(key, value).await
    }

    async fn delete_local(&self, key: &str) -> Result<(), StoreError> {
        self.delete_local(key).await
    }

    fn local(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.local(key)
    }
}
