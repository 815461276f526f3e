//! The metadata store: everything that edgecore must still know after a power cut with no cloud in reach. Desired
//! objects, the outbox of reports, and edge-local state (tokens, checkpoints of edged, the clock floor). Nothing else
//! touches its files, and it needs nobody: not the cloud, not the network.
//!
//! # Layout
//! In one directory, mode 0700; numbers in names are 16 hexadecimal digits, numbers in files little-endian:
//!
//! | file | content |
//! |---|---|
//! | `lock` | empty; locked by the process that uses the store |
//! | `journal.E` | records of epoch E: what changed since `checkpoint.E` |
//! | `checkpoint.E` | the whole state before the first record of `journal.E` |
//! | `sled.N/` | the index: objects and local values as sled keeps them, see `index.rs` |
//! | `clean` | the clean-stop marker |
//! | `scratch` | a checkpoint or marker that is being written |
//!
//! A journal or checkpoint starts with 28 bytes: magic (`SKJRNL01`, `SKCHKP01`), epoch `u64`, sequence `u64` (a
//! journal: of its first record; a checkpoint: of the last record that it contains), CRC-32 of these. Records follow:
//! length of the payload `u32`, CRC-32 `u32` of everything else in the record, epoch `u64`, sequence `u64`, durable
//! `u64`, payload. `durable` is the sequence up to which the journal had been synced before this record was written.
//! The payload is a list of operations, one after the other (`record.rs`); a record is applied as a whole or not at all.
//! In a journal sequences grow by one from record to record, over all epochs. In a checkpoint they count from 0, and
//! the last operation says how many came before it.
//!
//! The marker is magic `SKCLEAN1`; as `u64`: epoch, sequence, N of `sled.N`, next report id, dropped reports, number
//! of entries; as `u32` the CRC-32 of all entries; as `u64` length and CRC-32 of sled's files; then the CRC-32 of
//! these. sled holds epoch and sequence too.
//!
//! # Invariants
//! - *The journal is the commit point.* A request is answered after its record was appended and synced (one
//!   `fdatasync` a group of requests), and then applied to the index. Readers never see what is not durable. Only the
//!   record that a report is done is not synced: at worst the report is sent again.
//! - *A checkpoint is durable before the journal before it stops growing*, and two generations are kept, so one
//!   damaged checkpoint costs nothing. Order: `journal.E+1` with its header, `scratch`, rename to `checkpoint.E+1`,
//!   each with its sync and the directory's; then everything older than `checkpoint.E` is removed.
//! - *A file that failed a write or sync is never used again.* The kernel may have dropped the pages and say that all
//!   is well at the next sync. The next request starts a new epoch, or fails.
//! - *The index can always be thrown away.* sled 0.34 does not fsync, and may panic or come up empty on damaged files;
//!   so it is taken over only after a clean stop, when its files and then every entry are as the marker says, and else built
//!   again from checkpoint and journals, in a new directory. If that fails (disk full), the same state is kept in
//!   memory until the next checkpoint.
//! - *Reports that are stored are on the disk alone*, packed, in the journal or checkpoint that has them, and are read from there when they go up;
//!   in memory there is the place of each (`reports.rs`). An operation that stores one has a CRC-32 of its own, so one that is
//!   damaged costs no other. A checkpoint copies those that are still pending.
//! - *What changes nothing is not written*: the same object, the same pending state, the same local value.
//! - *State that is said again in each session is not written*: its reports are held in memory, until the cloud has them.
//! - *Ids of reports only grow*, over restarts too, and leap when records may have been lost. Of those that are not written, the
//!   journal has up to which they may have been given.
//!
//! # What a crash leaves
//! - In the middle of an append: a tail that is no record, or records of a group of which others are missing. Nobody
//!   was answered; the tail is cut at the first bad record. A bad record *before* one that shows it had been durable
//!   is damage: it is skipped and reported, later ones are taken, and the cloud sends what is missing, because the
//!   digest differs.
//! - Between the new journal and the new checkpoint: an empty journal that follows the old one.
//! - After the new checkpoint: old files, removed with the next one.
//! - While the marker was written or after it was removed: an unclean stop, as any other.
//! - While the index was built: a `sled.N` that nobody will read.
//!
//! After an unclean stop a new epoch is begun at once: what can be read back may not be on the disk.

mod checkpoint;
mod clean_stop;
mod commands;
mod error;
mod files;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod index;
mod journal;
mod memory;
mod outbox;
mod queue;
mod record;
mod recovery;
mod replay;
mod reports;
mod summary;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed, mpsc as std_mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use proto::{
    Digest, Object, Report, ResourceKey, Seen, Version,
    limits::{MAX_FRAME, MAX_KEY, MAX_REPORT},
    message::ReportKind,
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use self::{
    commands::{Command, Request, Shared, local_size},
    files::Directory,
    index::{Index, Table},
    outbox::Medium,
    record::{MAX_PAYLOAD, Payload},
    writer::Writer,
};
pub use self::{
    error::{OpenError, StoreError},
    index::IndexError,
    memory::MemoryStore,
};

/// Requests that wait for the writer. Each asking task has one or two; more only hides a slow disk.
const QUEUE: usize = 256;

/// How long a read waits for a broken index to be built again.
const HEAL_LIMIT: Duration = Duration::from_mins(1);

/// Bytes that an operation takes in a record beside its key and value, at most.
const OPERATION_BYTES: usize = 64;

/// The local value that holds [`Store::seen`].
const SEEN: &str = "seen";

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bound of the outbox, as it is on the disk. The oldest events go first; state is never dropped.
    pub outbox_bytes: u64,
    /// A journal is replaced by a checkpoint at this length, or at twice the state's size if that is more: then more
    /// was appended than a checkpoint writes, and flash sees at most half as much again.
    pub journal_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        // Of packed events a quarter of a million: a busy site that was away for days, a small one for months. With two checkpoints
        // and their journals it is up to five times as much on the disk.
        Self { outbox_bytes: 64 << 20, journal_bytes: 1 << 20 }
    }
}

/// A change of the desired objects, or of what is known about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DesiredChange {
    Put(Object),
    Delete(ResourceKey),
    /// How new the cloud's caches were that all of them come from.
    Seen(Seen),
}

impl DesiredChange {
    fn size(&self) -> usize {
        OPERATION_BYTES
            + match self {
                Self::Put(object) => object.key.as_str().len() + object.bytes.len(),
                Self::Delete(key) => key.as_str().len(),
                Self::Seen(seen) => seen.to_bytes().len(),
            }
    }
}

/// How the store was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Whether the last process stopped cleanly, or there was none.
    pub clean: bool,
    /// What was damaged, for people. Empty after a clean stop, a kill or a plain power cut, but for a tail of the
    /// journal that was cut off: that is also what damage to its very last record looks like.
    pub healed: Vec<String>,
}

/// A handle of the store; clones share it. When the last one is dropped without [`Store::close`] nothing is lost, but
/// the next start takes longer.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` only while this is dropped.
    commands: Option<mpsc::Sender<Command>>,
    shared: Arc<Shared>,
    opened: Opened,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store, or creates it. Blocks: for milliseconds after a clean stop, for as long as it takes to read
    /// and write the state after any other.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Directory { path: dir.to_owned(), source };
        let directory =
            Directory::lock(dir).map_err(failed)?.ok_or_else(|| OpenError::InUse { path: dir.to_owned() })?;
        let recovered = recovery::recover(&directory, options.outbox_bytes).map_err(failed)?;
        let opened = Opened { clean: recovered.clean, healed: recovered.healed.clone() };
        for healed in &opened.healed {
            warn!(path = %directory.path().display(), healed, "store healed");
        }
        let (writer, shared) = Writer::new(directory, recovered, options);
        let (commands, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || writer.run(queue));
        let thread = Mutex::new(Some(thread.map_err(failed)?));
        Ok(Self { inner: Arc::new(Inner { commands: Some(commands), shared, opened, thread }) })
    }

    pub fn opened(&self) -> &Opened {
        &self.inner.opened
    }

    /// Changes desired objects, all or none. Durable when it returns; when the caller goes away before, it may or may
    /// not happen.
    pub async fn apply(&self, changes: Vec<DesiredChange>) -> Result<(), StoreError> {
        for change in &changes {
            if let DesiredChange::Put(object) = change {
                bounded("an object", object.bytes.len(), MAX_FRAME)?;
            }
        }
        bounded("a list of changes", changes.iter().map(DesiredChange::size).sum(), MAX_PAYLOAD)?;
        self.write(Request::Apply(changes)).await.map(drop)
    }

    pub fn get(&self, key: &ResourceKey) -> Result<Option<Object>, StoreError> {
        let place = index::object_key(key);
        self.read(|index| index.get(Table::Objects, &place)?.map(index::Entry::object).transpose())
    }

    /// All objects of a kind (`Kind` or `Kind.group`), by namespace and name.
    pub fn list(&self, kind: &str) -> Result<Vec<Object>, StoreError> {
        let within = format!("{kind}/").into_bytes();
        self.read(|index| {
            let mut objects = Vec::new();
            index.each(Table::Objects, &within, &within, |entry| {
                objects.push(entry.object()?);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(objects)
        })
    }

    /// Of the desired objects.
    pub fn digest(&self) -> Digest {
        self.inner.shared.read().digest
    }

    /// The newest [`DesiredChange::Seen`].
    pub fn seen(&self) -> Result<Seen, StoreError> {
        Ok(self.local(SEEN)?.and_then(Seen::from_bytes).unwrap_or_default())
    }

    /// Every desired object's version.
    pub fn inventory(&self) -> Result<Vec<(ResourceKey, Version)>, StoreError> {
        self.read(|index| {
            let mut entries = Vec::new();
            index.each(Table::Objects, &[], &[], |entry| {
                let object = entry.object()?;
                entries.push((object.key, object.version));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(entries)
        })
    }

    #[cfg(test)]
    async fn fail_next_sync(&self) -> Result<(), StoreError> {
        self.send(Command::FailNextSync).await
    }

    /// Grows after each commit that changed desired objects.
    pub fn desired_changes(&self) -> watch::Receiver<u64> {
        self.inner.shared.desired_changes.subscribe()
    }

    /// Adds a report to the outbox and answers its id. Newer state replaces pending state of the same object; state
    /// that is pending already is not written again. Durable when it returns.
    pub async fn report(
        &self,
        kind: ReportKind,
        key: &ResourceKey,
        payload: Bytes,
    ) -> Result<u64, StoreError> {
        self.add_report(kind, key, payload, Medium::Disk).await
    }

    /// As [`report`](Self::report), of state that whoever reports it will report again in each session with the cloud: it is
    /// held in memory alone, and is gone after a restart.
    pub async fn report_in_memory(
        &self,
        kind: ReportKind,
        key: &ResourceKey,
        payload: Bytes,
    ) -> Result<u64, StoreError> {
        self.add_report(kind, key, payload, Medium::Memory).await
    }

    async fn add_report(
        &self,
        kind: ReportKind,
        key: &ResourceKey,
        payload: Bytes,
        medium: Medium,
    ) -> Result<u64, StoreError> {
        bounded("a report", payload.len(), MAX_REPORT)?;
        let payload =
            Payload::pack(payload).map_err(|source| StoreError::Pack { source: Arc::new(source) })?;
        self.write(Request::Report { kind, key: key.clone(), payload, medium }).await
    }

    /// Up to `limit` reports with ids above `after`, oldest first.
    pub fn pending_reports(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        let held = self.inner.shared.read();
        held.index.as_ref().ok_or(StoreError::Closed)?;
        Ok(held.reports.read(after, limit))
    }

    /// As [`pending_reports`](Self::pending_reports), of statuses alone.
    pub fn pending_statuses(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        let held = self.inner.shared.read();
        held.index.as_ref().ok_or(StoreError::Closed)?;
        Ok(held.reports.read_statuses(after, limit))
    }

    /// Reports that wait for the cloud.
    pub fn pending(&self) -> usize {
        self.inner.shared.read().reports.count()
    }

    /// Forgets reports that the cloud has taken or refused for good; unknown ids are skipped. Not synced: after a power
    /// cut they may be pending again.
    pub async fn reports_done(&self, ids: Vec<u64>) -> Result<(), StoreError> {
        bounded("a list of report ids", ids.len() * OPERATION_BYTES, MAX_PAYLOAD)?;
        self.write(Request::Done(ids)).await.map(drop)
    }

    /// Grows after each commit that added a report.
    pub fn outbox_changes(&self) -> watch::Receiver<u64> {
        self.inner.shared.outbox_changes.subscribe()
    }

    /// Reports that the bound of the outbox has cost, since the store was created.
    pub fn dropped_reports(&self) -> u64 {
        self.inner.shared.dropped_reports.load(Relaxed)
    }

    /// Keeps a value of the edge's own. Durable when it returns.
    pub async fn put_local(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        self.change_locals(|| ((), vec![(key.to_owned(), Some(value))])).await
    }

    pub async fn delete_local(&self, key: &str) -> Result<(), StoreError> {
        self.change_locals(|| ((), vec![(key.to_owned(), None)])).await
    }

    /// Keeps or (`None`) deletes values of the edge's own, all or none. Durable when it returns. They are asked for when there is
    /// room for them: those that are taken under a lock, which is handed over with them, are kept in the order in which
    /// the lock was held.
    pub async fn change_locals<G>(
        &self,
        changes: impl FnOnce() -> (G, Vec<(String, Option<Bytes>)>),
    ) -> Result<(), StoreError> {
        let commands = self.inner.commands.as_ref().ok_or(StoreError::Closed)?;
        let room = commands.reserve().await.map_err(|_| StoreError::Closed)?;
        let answer = {
            let (_guard, changes) = changes();
            for (key, value) in &changes {
                local_key(key)?;
                bounded("a local value", value.as_ref().map_or(0, Bytes::len), MAX_FRAME)?;
            }
            bounded("a list of local values", changes.iter().map(local_size).sum(), MAX_PAYLOAD)?;
            let (reply, answer) = oneshot::channel();
            room.send(Command::Write { request: Request::Locals(changes), reply });
            answer
        };
        answer.await.unwrap_or(Err(StoreError::Closed)).map(drop)
    }

    pub fn local(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        local_key(key)?;
        let place = index::local_key(key);
        self.read(|index| Ok(index.get(Table::Local, &place)?.map(|entry| entry.value)))
    }

    /// All local values whose keys begin with `prefix`, in the order of keys.
    pub fn list_local(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        let within = prefix.as_bytes();
        self.read(|index| {
            let mut values = Vec::new();
            index.each(Table::Local, within, within, |entry| {
                values.push((entry.text()?, entry.value));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(values)
        })
    }

    /// Why nothing can be stored at present; `None` while all is well. What is held can be read all the same.
    pub fn failure(&self) -> Option<String> {
        let failure = self.inner.shared.failure();
        (!failure.is_empty()).then(|| failure.clone())
    }

    /// Syncs of the journal and of checkpoints since the store was opened.
    pub fn syncs(&self) -> u64 {
        self.inner.shared.syncs.load(Relaxed)
    }

    /// Bytes written to journals and checkpoints since the store was opened; what sled writes, in large steps and
    /// never synced, is not in it.
    pub fn bytes_written(&self) -> u64 {
        self.inner.shared.bytes_written.load(Relaxed)
    }

    /// Stops cleanly: everything asked for before is done, a checkpoint is written, sled's files are synced and marked
    /// as good. Other handles answer [`StoreError::Closed`] from then on.
    pub async fn close(self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Close { reply }).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn write(&self, request: Request) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Write { request, reply }).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn send(&self, command: Command) -> Result<(), StoreError> {
        let commands = self.inner.commands.as_ref().ok_or(StoreError::Closed)?;
        commands.send(command).await.map_err(|_| StoreError::Closed)
    }

    fn read<T>(&self, read: impl Fn(&Index) -> Result<T, IndexError>) -> Result<T, StoreError> {
        let (error, generation) = {
            let held = self.inner.shared.read();
            match read(held.index.as_ref().ok_or(StoreError::Closed)?) {
                Ok(value) => return Ok(value),
                Err(error) => (error, held.generation),
            }
        };
        warn!(error = %runtime::chain(&error), "the index failed a reader and is built again");
        if !self.heal(generation) {
            return Err(error.into());
        }
        let held = self.inner.shared.read();
        Ok(read(held.index.as_ref().ok_or(StoreError::Closed)?)?)
    }

    /// Waits for the writer to replace the index. Rare, and the caller is not async: it blocks.
    fn heal(&self, generation: u64) -> bool {
        let (reply, answer) = std_mpsc::sync_channel(1);
        let Some(commands) = &self.inner.commands else { return false };
        commands.try_send(Command::Heal { generation, reply }).is_ok()
            && answer.recv_timeout(HEAL_LIMIT).is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commands = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Until the last group is done, so that whoever opens the directory next finds it unlocked.
        if thread.is_some_and(|thread| thread.join().is_err()) {
            warn!("the store's thread panicked");
        }
    }
}

fn bounded(what: &'static str, length: usize, limit: usize) -> Result<(), StoreError> {
    if length > limit { Err(StoreError::TooLarge { what, length, limit }) } else { Ok(()) }
}

fn local_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY || key.chars().any(char::is_control) {
        return Err(StoreError::LocalKey { key: key.to_owned() });
    }
    Ok(())
}
