//! The thread that owns the journal: it gathers what is asked for at the same time into a group, appends it, syncs
//! once, applies it to the index, and answers.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use proto::Digest;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::{
    DesiredChange, Options, SEEN, StoreError,
    checkpoint::{self, Counters, WriteError, Written},
    clean_stop,
    commands::{Command, Held, Reply, Request, Shared},
    files::{self, Directory},
    index::{self, Head, Index, IndexError, Table},
    journal::{self, FILE_HEADER, Journal},
    outbox::{Changes, InMemory, Medium, Outbox},
    record::Op,
    recovery::Recovered,
    replay::{self, Plan},
    reports::{Collected, Place},
};

/// Requests in one group, and their bytes: a group is held in memory until it is durable.
const GROUP_REQUESTS: usize = 256;
const GROUP_BYTES: usize = 1 << 20;

/// Of reports in memory, so many ids at once are noted as given.
const ID_BLOCK: u64 = 1 << 16;

/// After a failed checkpoint with a journal that is still good: how much may be appended until the next attempt.
const CHECKPOINT_RETRY_BYTES: u64 = 256 << 10;

/// Room that must be left beside a checkpoint for it to be tried.
const SPARE_BYTES: u64 = 64 << 10;

pub(super) struct Writer {
    directory: Directory,
    shared: Arc<Shared>,
    options: Options,
    index_number: u64,
    /// `None` after an error: what the last file holds is not known, so a new epoch has to begin.
    journal: Option<Journal>,
    /// Which of the files of the reports it is.
    journal_file: u32,
    /// Of the last record in the state, and of the last that was synced.
    sequence: u64,
    durable: u64,
    base: u64,
    highest_epoch: u64,
    digest: Digest,
    outbox: Outbox,
    /// Ids of reports below it may have been given, as the journal has it.
    ids_below: u64,
    live_bytes: u64,
    checkpoint_at: u64,
    /// Digest and outbox are those of a plan that came to nothing, or the index lacks what was committed: it is built again
    /// before anything else is planned or written down.
    stale: bool,
}

/// A group, ready to be written.
#[derive(Default)]
struct Planned {
    answers: Vec<u64>,
    records: Vec<Vec<Op>>,
    /// Of reports that are in no record.
    in_memory: Vec<InMemory>,
    /// [`Writer::ids_below`] from then on.
    ids_below: u64,
    needs_sync: bool,
    /// Entries that this group has changed: earlier requests in it are not in the index yet.
    heads: HashMap<(Table, Vec<u8>), Option<Head>>,
}

impl Planned {
    /// Whether the entry is to change; if so, it is noted as changed.
    fn changes(
        &mut self,
        index: &Index,
        table: Table,
        key: Vec<u8>,
        new: Option<Head>,
    ) -> Result<Change, IndexError> {
        let place = (table, key);
        let old = match self.heads.get(&place) {
            Some(head) => head.clone(),
            None => index.head(table, &place.1)?,
        };
        if old == new {
            return Ok(Change::None);
        }
        self.heads.insert(place, new);
        Ok(Change::From(old))
    }
}

enum Change {
    None,
    From(Option<Head>),
}

impl Writer {
    pub(super) fn new(directory: Directory, recovered: Recovered, options: Options) -> (Self, Arc<Shared>) {
        let Recovered {
            index,
            index_number,
            digest,
            collected: Collected { outbox, mut reports },
            sequence,
            base,
            highest_epoch,
            journal,
            live_bytes,
            clean: _,
            healed: _,
        } = recovered;
        let journal_file = journal.as_ref().map_or(0, |journal| reports.add_file(journal.file()));
        let shared = Arc::new(Shared {
            held: RwLock::new(Held { index: Some(index), reports, digest, generation: 0 }),
            desired_changes: watch::Sender::new(0),
            outbox_changes: watch::Sender::new(0),
            dropped_reports: AtomicU64::new(outbox.dropped),
            syncs: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            failure: Mutex::new(String::new()),
        });
        let mut writer = Self {
            directory,
            shared: Arc::clone(&shared),
            options,
            index_number,
            journal,
            journal_file,
            sequence,
            durable: sequence,
            base,
            highest_epoch,
            digest,
            ids_below: outbox.next,
            outbox,
            live_bytes,
            checkpoint_at: options.journal_bytes.max(2 * live_bytes),
            stale: false,
        };
        if writer.journal.is_none()
            && let Err(error) = writer.rotate()
        {
            writer.note(Some(&error));
        }
        (writer, shared)
    }

    /// Runs until it is told to close, or until nobody is left who could ask for anything.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.blocking_recv() {
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            let mut other = None;
            while let Some(command) = next.take() {
                match command {
                    Command::Write { request, reply } => {
                        bytes += request.size();
                        group.push((request, reply));
                    }
                    command => other = Some(command),
                }
                if other.is_none() && group.len() < GROUP_REQUESTS && bytes < GROUP_BYTES {
                    next = commands.try_recv().ok();
                }
            }
            if !group.is_empty() {
                self.answer(group);
                self.checkpoint_if_due();
            }
            match other {
                Some(Command::Close { reply }) => {
                    commands.close();
                    let closed = self.close();
                    if reply.send(closed).is_err() {
                        debug!("nobody waited for the store to close");
                    }
                    return;
                }
                Some(Command::Heal { generation, reply }) => {
                    if self.shared.read().generation == generation {
                        self.heal_or_warn();
                    }
                    // The reader may have given up waiting.
                    reply.try_send(()).unwrap_or_else(|_| debug!("nobody waited for the index"));
                }
                #[cfg(test)]
                Some(Command::FailNextSync) => {
                    if let Some(journal) = &mut self.journal {
                        journal.fail_next_sync = true;
                    }
                }
                Some(Command::Write { .. }) | None => {}
            }
        }
        // Not closed: the next start will not trust sled's files.
        self.drop_index();
    }

    fn answer(&mut self, group: Vec<(Request, Reply)>) {
        let (requests, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let committed = self.commit(requests);
        self.note(committed.as_ref().err());
        for (at, reply) in replies.into_iter().enumerate() {
            let answer = committed.as_ref().map(|answers| answers[at]).map_err(Clone::clone);
            if reply.send(answer).is_err() {
                debug!("nobody waited for the commit");
            }
        }
    }

    /// Lets everyone see whether the store takes anything. A disk may be full for months: told once a change.
    fn note(&self, error: Option<&StoreError>) {
        let reason = error.map(|error| runtime::chain(error).to_string()).unwrap_or_default();
        let before = std::mem::replace(&mut *self.shared.failure(), reason.clone());
        match (before.is_empty(), reason.is_empty()) {
            (false, true) => info!("the store takes changes again"),
            (_, false) if reason != before => {
                warn!(reason, "the store can be read, but takes no changes");
            }
            (_, false) => debug!(reason, "the store still takes no changes"),
            (true, true) => {}
        }
    }

    /// All or nothing: after an error not one request of the group is in the state.
    fn commit(&mut self, requests: Vec<Request>) -> Result<Vec<u64>, StoreError> {
        if self.journal.is_none() {
            self.rotate()?;
        }
        if self.stale {
            self.heal().map_err(StoreError::checkpoint)?;
        }
        let (digest, dropped) = (self.digest, self.outbox.dropped);
        let mut planned = match self.plan(&requests) {
            Ok(planned) => planned,
            Err(error) => {
                warn!(error = %runtime::chain(&error), "the index is built again");
                self.stale = true;
                self.heal().map_err(|_| StoreError::from(error))?;
                self.plan(&requests).inspect_err(|_| self.stale = true)?
            }
        };
        drop(requests);
        let answers = std::mem::take(&mut planned.answers);
        let places = match self.write(&planned) {
            Ok(places) => places,
            Err(error) => {
                // What the file holds, or the kernel still has for it, is not known: never again.
                self.journal = None;
                self.digest = digest;
                self.outbox.undo();
                self.outbox.dropped = dropped;
                return Err(StoreError::journal(error));
            }
        };
        self.outbox.settle();
        self.ids_below = planned.ids_below;
        self.sequence += planned.records.len() as u64;
        if planned.needs_sync {
            self.durable = self.sequence;
        }
        self.publish(planned, places);
        Ok(answers)
    }

    fn plan(&mut self, requests: &[Request]) -> Result<Planned, IndexError> {
        let shared = Arc::clone(&self.shared);
        let held = shared.read();
        let Some(index) = &held.index else { return Ok(Planned::default()) };
        let mut planned = Planned { ids_below: self.ids_below, ..Planned::default() };
        for request in requests {
            let mut ops = Vec::new();
            let mut answer = 0;
            let mut needs_sync = request.needs_sync();
            match request {
                Request::Apply(changes) => {
                    for change in changes {
                        self.plan_desired(index, change, &mut planned, &mut ops)?;
                    }
                }
                Request::Report { kind, key, payload, medium } => {
                    let key = key.as_str().to_owned();
                    let (id, changes) = self.outbox.report(*kind, key, payload.clone(), *medium);
                    answer = id;
                    ops = changes.ops;
                    planned.in_memory.extend(changes.in_memory);
                    if *medium == Medium::Memory && id >= planned.ids_below {
                        planned.ids_below = id + ID_BLOCK;
                        let dropped_reports = self.outbox.dropped;
                        ops.push(Op::Counters { next_report: planned.ids_below, dropped_reports });
                        needs_sync = true;
                    }
                }
                Request::Done(ids) => {
                    let mut changes = Changes::default();
                    for id in ids {
                        if let Some(medium) = self.outbox.remove(*id) {
                            changes.remove(*id, medium);
                        }
                    }
                    ops = changes.ops;
                    planned.in_memory.extend(changes.in_memory);
                }
                Request::Locals(values) => {
                    for (key, value) in values {
                        plan_local(index, key, value.as_ref(), &mut planned, &mut ops)?;
                    }
                }
            }
            planned.answers.push(answer);
            if !ops.is_empty() {
                planned.needs_sync |= needs_sync;
                planned.records.push(ops);
            }
        }
        Ok(planned)
    }

    fn plan_desired(
        &mut self,
        index: &Index,
        change: &DesiredChange,
        planned: &mut Planned,
        ops: &mut Vec<Op>,
    ) -> Result<(), IndexError> {
        let (key, new) = match change {
            DesiredChange::Put(object) => (&object.key, Some(index::object_head(object))),
            DesiredChange::Delete(key) => (key, None),
            DesiredChange::Seen(seen) => {
                return plan_local(index, SEEN, Some(&seen.to_bytes()), planned, ops);
            }
        };
        let Change::From(old) = planned.changes(index, Table::Objects, index::object_key(key), new)? else {
            return Ok(());
        };
        if let Some(version) = old.and_then(|old| old.version()) {
            self.digest.remove(key, version.hash);
        }
        if let DesiredChange::Put(object) = change {
            self.digest.add(key, object.version.hash);
            ops.push(Op::PutObject(object.clone()));
        } else {
            ops.push(Op::DeleteObject(key.clone()));
        }
        Ok(())
    }

    /// Answers where its reports are, in their order.
    fn write(&mut self, planned: &Planned) -> io::Result<Vec<Place>> {
        if planned.records.is_empty() {
            return Ok(Vec::new());
        }
        let Some(journal) = &mut self.journal else { return Err(io::Error::other("no journal")) };
        let (mut bytes, mut reports) = (Vec::new(), Vec::new());
        for (sequence, ops) in (self.sequence + 1..).zip(&planned.records) {
            reports.extend(journal::append_ops(&mut bytes, journal.epoch(), sequence, self.durable, ops));
        }
        let (start, file) = (journal.length(), self.journal_file);
        let places = reports.into_iter().map(|range| {
            let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
            Place { offset: start + range.start as u64, length, file }
        });
        let places = places.collect();
        journal.append(&bytes, planned.records.len() as u64)?;
        self.shared.bytes_written.fetch_add(bytes.len() as u64, Relaxed);
        if planned.needs_sync {
            journal.sync()?;
            self.shared.syncs.fetch_add(1, Relaxed);
        }
        Ok(places)
    }

    /// Makes a durable group visible.
    fn publish(&mut self, planned: Planned, places: Vec<Place>) {
        let Planned { records, in_memory, .. } = planned;
        let ops = || records.iter().flatten();
        let has_reports = ops().any(|op| matches!(op, Op::PutReport(_)))
            || in_memory.iter().any(|change| matches!(change, InMemory::Put(_)));
        let applied = {
            let mut held = self.shared.write();
            held.digest = self.digest;
            let mut places = places.into_iter();
            for op in ops() {
                match op {
                    Op::PutReport(report) => {
                        // Of each, in this order.
                        places.next().into_iter().for_each(|place| held.reports.put(report, place));
                    }
                    Op::RemoveReport(id) | Op::DropReport(id) => held.reports.remove(*id),
                    _ => {}
                }
            }
            for change in in_memory {
                match change {
                    InMemory::Put(report) => held.reports.hold(report),
                    InMemory::Remove(id) => held.reports.remove(id),
                }
            }
            match &mut held.index {
                Some(index) => ops().try_for_each(|op| index.apply(op)),
                None => Ok(()),
            }
        };
        if let Err(error) = applied {
            // It is in the journal, so it is committed: the new index will have it.
            warn!(error = %runtime::chain(&error), "the index is built again");
            self.stale = true;
            self.heal_or_warn();
        }
        self.shared.dropped_reports.store(self.outbox.dropped, Relaxed);
        if ops().any(|op| matches!(op, Op::PutObject(_) | Op::DeleteObject(_))) {
            self.shared.desired_changes.send_modify(|count| *count += 1);
        }
        if has_reports {
            self.shared.outbox_changes.send_modify(|count| *count += 1);
        }
    }

    fn checkpoint_if_due(&mut self) {
        let Some(length) = self.journal.as_ref().map(Journal::length) else { return };
        if length < self.checkpoint_at {
            return;
        }
        if let Err(error) = self.rotate() {
            warn!(error = %runtime::chain(&error), "the journal could not be cut; it goes on growing");
            self.checkpoint_at = length + CHECKPOINT_RETRY_BYTES;
        }
    }

    /// Starts a new epoch: a checkpoint of the state as it is, and an empty journal.
    fn rotate(&mut self) -> Result<(), StoreError> {
        if self.stale {
            self.heal().map_err(StoreError::checkpoint)?;
        }
        let free = self.directory.free_bytes().map_err(StoreError::checkpoint)?;
        if free < self.live_bytes + SPARE_BYTES {
            return Err(StoreError::checkpoint(io::ErrorKind::StorageFull.into()));
        }
        let (journal, written) = match self.start_epoch() {
            Err(WriteError::Index(error)) => {
                warn!(error = %runtime::chain(&error), "the index is built again");
                self.heal().map_err(StoreError::checkpoint)?;
                self.start_epoch()
            }
            other => other,
        }
        .map_err(|error| match error {
            WriteError::Io(error) => StoreError::checkpoint(error),
            WriteError::Index(error) => error.into(),
        })?;
        // Two syncs for the journal, two for the checkpoint: each the file and the directory.
        self.shared.syncs.fetch_add(4, Relaxed);
        let Written { length, mut reports, lost } = written;
        self.shared.bytes_written.fetch_add(length + FILE_HEADER as u64, Relaxed);
        self.journal_file = reports.add_file(journal.file());
        self.shared.write().reports = reports;
        for id in lost {
            warn!(id, "a report could not be read back and is lost");
            self.outbox.remove(id);
            self.outbox.dropped += 1;
        }
        self.outbox.settle();
        self.shared.dropped_reports.store(self.outbox.dropped, Relaxed);
        let previous = std::mem::replace(&mut self.base, journal.epoch());
        self.journal = Some(journal);
        self.durable = self.sequence;
        self.live_bytes = length;
        self.checkpoint_at = self.options.journal_bytes.max(2 * length);
        self.prune(previous);
        if self.shared.read().index.as_ref().is_some_and(Index::is_in_memory) {
            info!("trying to move the state from memory back to sled");
            self.heal_or_warn();
        }
        Ok(())
    }

    fn start_epoch(&mut self) -> Result<(Journal, Written), WriteError> {
        self.highest_epoch += 1;
        let epoch = self.highest_epoch;
        let next_report = self.outbox.next.max(self.ids_below);
        let counters = Counters { next_report, dropped_reports: self.outbox.dropped };
        // The journal first: a checkpoint without its journal is then always damage.
        let started = Journal::create(&self.directory, epoch, self.sequence + 1).map_err(WriteError::from);
        let started = started.and_then(|journal| {
            let held = self.shared.read();
            let index = held.index.as_ref().ok_or_else(|| io::Error::other("the store is closed"))?;
            let state = (index, &held.reports);
            let written = checkpoint::write(&self.directory, epoch, self.sequence, counters, state)?;
            Ok((journal, written))
        });
        if started.is_err()
            && let Err(error) = self.abandon(epoch)
        {
            // If the checkpoint is there after all, recovery will not look at what the old journal gets from now on.
            debug!(%error, "files of an unfinished epoch left behind");
            self.journal = None;
        }
        started
    }

    /// Makes sure that an epoch that could not be started does not exist.
    fn abandon(&self, epoch: u64) -> io::Result<()> {
        files::remove(&self.directory.checkpoint(epoch))?;
        files::remove(&self.directory.journal(epoch))?;
        self.directory.sync()
    }

    /// Removes what is older than the last checkpoint but one.
    fn prune(&self, previous: u64) {
        let removed = self.directory.inventory().and_then(|found| {
            let old = |epoch: &&u64| **epoch < previous;
            found
                .checkpoints
                .iter()
                .filter(old)
                .try_for_each(|epoch| files::remove(&self.directory.checkpoint(*epoch)))?;
            found
                .journals
                .iter()
                .filter(old)
                .try_for_each(|epoch| files::remove(&self.directory.journal(*epoch)))
        });
        if let Err(error) = removed {
            warn!(%error, "old checkpoints are left behind");
        }
    }

    fn heal_or_warn(&mut self) {
        if let Err(error) = self.heal() {
            self.stale = true;
            warn!(%error, "the index could not be built again");
        }
    }

    /// Builds a new index from checkpoint and journal, and puts it in the place of the old one. One with holes is not put
    /// there: what it lacks would look deleted.
    fn heal(&mut self) -> io::Result<()> {
        let number = self.index_number + 1;
        let plan = Plan::of_running(&self.directory, self.base, self.sequence)?;
        let built = replay::build(&self.directory, &plan, number, self.options.outbox_bytes)?;
        for note in &built.loaded.notes {
            warn!(note, "found while building the index again");
        }
        if !built.loaded.notes.is_empty() || built.loaded.next_sequence <= self.sequence {
            built.index.discard();
            files::remove(&self.directory.index(number))?;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "journal and checkpoint do not hold all of it",
            ));
        }
        let next = self.outbox.next;
        self.stale = false;
        self.digest = built.summary.digest;
        let Collected { outbox, mut reports } = built.collected;
        self.outbox = outbox;
        for report in self.shared.read().reports.in_memory() {
            self.outbox.insert(report, Medium::Memory);
            reports.hold(report.clone());
        }
        self.outbox.settle();
        self.outbox.next = next;
        if let Some(journal) = &self.journal {
            self.journal_file = reports.add_file(journal.file());
        }
        let old = {
            let mut held = self.shared.write();
            held.reports = reports;
            held.digest = self.digest;
            held.generation += 1;
            held.index.replace(built.index)
        };
        if let Some(old) = old {
            old.discard();
        }
        let old_number = std::mem::replace(&mut self.index_number, number);
        if let Err(error) = files::remove(&self.directory.index(old_number)) {
            warn!(%error, "an old sled directory is left behind");
        }
        Ok(())
    }

    fn close(mut self) -> Result<(), StoreError> {
        let checkpointed = match &self.journal {
            Some(journal) if journal.records() == 0 => Ok(()),
            _ => self.rotate(),
        };
        if checkpointed.is_err() {
            self.drop_index();
            return checkpointed;
        }
        let Some(index) = self.shared.write().index.take() else { return Ok(()) };
        let Self { directory, index_number, base, sequence, outbox, .. } = &self;
        clean_stop::stop_cleanly(directory, index, *index_number, *base, *sequence, outbox).map_err(|error| {
            match error {
                WriteError::Io(error) => StoreError::checkpoint(error),
                WriteError::Index(error) => error.into(),
            }
        })
    }

    fn drop_index(&self) {
        let index = self.shared.write().index.take();
        let dropped = index::guarded(move || {
            drop(index);
            Ok(())
        });
        if let Err(error) = dropped {
            debug!(error = %runtime::chain(&error), "sled did not close well");
        }
    }
}

fn plan_local(
    index: &Index,
    key: &str,
    value: Option<&Bytes>,
    planned: &mut Planned,
    ops: &mut Vec<Op>,
) -> Result<(), IndexError> {
    let place = index::local_key(key);
    let head = value.map(|value| Head::new(&place, &[], value));
    if let Change::From(_) = planned.changes(index, Table::Local, place, head)? {
        let key = key.to_owned();
        ops.push(value.map_or(Op::DeleteLocal(key.clone()), |value| Op::PutLocal(key, value.clone())));
    }
    Ok(())
}
