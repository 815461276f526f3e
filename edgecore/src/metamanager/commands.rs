//! What goes between the handles of the store and its writer: requests one way, the state to read the other.

use std::sync::{
    Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicU64,
    mpsc::SyncSender,
};

use bytes::Bytes;
use proto::{Digest, ResourceKey, message::ReportKind};
use tokio::sync::{oneshot, watch};

use super::{
    DesiredChange, OPERATION_BYTES, StoreError, index::Index, outbox::Medium, record::Payload,
    reports::Reports,
};

pub(super) enum Request {
    Apply(Vec<DesiredChange>),
    Report {
        kind: ReportKind,
        key: ResourceKey,
        payload: Payload,
        medium: Medium,
    },
    Done(Vec<u64>),
    /// What each is from now on; `None`: it is no more.
    Locals(Vec<(String, Option<Bytes>)>),
}

impl Request {
    /// Nobody is promised that a report is forgotten: to send one again after a power cut is harmless.
    pub(super) fn needs_sync(&self) -> bool {
        !matches!(self, Self::Done(_) | Self::Report { medium: Medium::Memory, .. })
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Apply(changes) => changes.iter().map(DesiredChange::size).sum(),
            Self::Report { payload, .. } => payload.bytes().len(),
            Self::Done(ids) => ids.len() * 9,
            Self::Locals(values) => values.iter().map(local_size).sum(),
        }
    }
}

pub(super) fn local_size((key, value): &(String, Option<Bytes>)) -> usize {
    OPERATION_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len)
}

/// Answer to a [`Request`]: the report's id, otherwise 0.
pub(super) type Reply = oneshot::Sender<Result<u64, StoreError>>;

pub(super) enum Command {
    Write {
        request: Request,
        reply: Reply,
    },
    /// The index of this generation failed a reader.
    Heal {
        generation: u64,
        reply: SyncSender<()>,
    },
    Close {
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    #[cfg(test)]
    FailNextSync,
}

/// What readers see. Only the writer changes it, after the journal is durable.
pub(super) struct Shared {
    pub(super) held: RwLock<Held>,
    pub(super) desired_changes: watch::Sender<u64>,
    pub(super) outbox_changes: watch::Sender<u64>,
    pub(super) dropped_reports: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    /// Why the last group was not stored; empty once one was.
    pub(super) failure: Mutex<String>,
}

pub(super) struct Held {
    /// `None` once the store is closed.
    pub(super) index: Option<Index>,
    pub(super) reports: Reports,
    pub(super) digest: Digest,
    /// Grows whenever the index is replaced.
    pub(super) generation: u64,
}

impl Shared {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Held> {
        // sled's panics are caught inside the index, and what they leave is replaced.
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failure(&self) -> MutexGuard<'_, String> {
        // A text, put in place as a whole.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}
