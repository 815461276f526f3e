//! Where the reports of the outbox are. They stay in the journal or checkpoint that has them, and are read from there when their
//! turn comes: a site that was away for weeks has hundreds of thousands of them, and of each a place is all that is held in memory.
//! Some are never on the disk: state that is said again in each session.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io, iter,
    ops::Bound,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use proto::{Report, message::ReportKind};
use tracing::warn;

use super::{
    outbox::{Medium, Outbox},
    queue::Queue,
    record::{Op, Placed, StoredReport},
};

/// The bytes of a file that are the operation which stores a report.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Which of [`Reports::files`].
    pub(super) file: u32,
}

#[derive(Default)]
pub(super) struct Reports {
    /// Those that may be read: they can be, also when they have been removed from the directory.
    files: Vec<Arc<File>>,
    places: Queue<Place>,
    /// Those that are on no disk.
    in_memory: BTreeMap<u64, StoredReport>,
    /// Those that say how something is: one an object, so there are few.
    statuses: BTreeSet<u64>,
}

impl Reports {
    /// As these, but for where those are that are on the disk: in the one file.
    pub(super) fn moved(&self, file: Arc<File>, places: Queue<Place>) -> Self {
        let (in_memory, statuses) = (self.in_memory.clone(), self.statuses.clone());
        Self { files: vec![file], places, in_memory, statuses }
    }

    /// The number of a file whose places are to come.
    pub(super) fn add_file(&mut self, file: Arc<File>) -> u32 {
        self.files.push(file);
        u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn put(&mut self, report: &StoredReport, place: Place) {
        self.places.insert(report.id, place);
        self.note_status(report);
    }

    pub(super) fn hold(&mut self, report: StoredReport) {
        self.note_status(&report);
        self.in_memory.insert(report.id, report);
    }

    fn note_status(&mut self, report: &StoredReport) {
        if ReportKind::try_from(report.kind).is_ok_and(ReportKind::is_status) {
            self.statuses.insert(report.id);
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.places.remove(id);
        self.in_memory.remove(&id);
        self.statuses.remove(&id);
    }

    pub(super) fn in_memory(&self) -> impl Iterator<Item = &StoredReport> {
        self.in_memory.values()
    }

    pub(super) fn count(&self) -> usize {
        self.places.len() + self.in_memory.len()
    }

    /// On the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.places.values().map(|place| u64::from(place.length)).sum()
    }

    /// Of those that are on the disk.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.places.ids_after(None)
    }

    /// Of all.
    fn ids_after(&self, after: u64) -> impl Iterator<Item = u64> {
        let mut stored = self.places.ids_after(Some(after)).peekable();
        let above = (Bound::Excluded(after), Bound::Unbounded);
        let mut held = self.in_memory.range(above).map(|(id, _)| *id).peekable();
        iter::from_fn(move || {
            let is_stored_next =
                held.peek().is_none_or(|held| stored.peek().is_some_and(|stored| stored < held));
            if is_stored_next { stored.next() } else { held.next() }
        })
    }

    /// Up to `limit` with ids above `after`, oldest first. One that cannot be read is passed over; the next checkpoint will be
    /// without it.
    pub(super) fn read(&self, after: u64, limit: usize) -> Vec<Report> {
        self.read_each(self.ids_after(after), limit)
    }

    /// As [`read`](Self::read), of statuses alone.
    pub(super) fn read_statuses(&self, after: u64, limit: usize) -> Vec<Report> {
        let above = (Bound::Excluded(after), Bound::Unbounded);
        self.read_each(self.statuses.range(above).copied(), limit)
    }

    fn read_each(&self, ids: impl Iterator<Item = u64>, limit: usize) -> Vec<Report> {
        let mut found = Vec::new();
        for id in ids {
            if found.len() == limit {
                break;
            }
            let held = self.in_memory.get(&id).cloned();
            let report = held.or_else(|| self.stored(id).map(|(report, _)| report));
            let report = report.and_then(|StoredReport { id, kind, key, payload }| {
                Some(Report { id, kind, key, payload: payload.unpack()? })
            });
            if let Some(report) = report {
                found.push(report);
            } else {
                warn!(id, "a report is damaged and passed over");
            }
        }
        found
    }

    /// The operation that stores it, as it is on the disk; `None` if it is not that any more.
    pub(super) fn operation(&self, id: u64) -> Option<Bytes> {
        self.stored(id).map(|(_, operation)| operation)
    }

    fn stored(&self, id: u64) -> Option<(StoredReport, Bytes)> {
        let place = self.places.get(id)?;
        let mut bytes = vec![0; place.length as usize];
        let read = self.files.get(place.file as usize)?.read_exact_at(&mut bytes, place.offset);
        if let Err(error) = read {
            warn!(id, %error, "a report cannot be read");
            return None;
        }
        let bytes = Bytes::from(bytes);
        match Op::decode_all(bytes.clone())?.pop()? {
            Op::PutReport(report) if report.id == id => Some((report, bytes)),
            _ => None,
        }
    }
}

/// The outbox as the files have it.
pub(super) struct Collected {
    pub(super) outbox: Outbox,
    pub(super) reports: Reports,
}

impl Collected {
    pub(super) fn new(outbox_bytes: u64) -> Self {
        Self { outbox: Outbox::new(outbox_bytes, 1, 0), reports: Reports::default() }
    }

    /// The number of a file whose operations are to come.
    pub(super) fn open(&mut self, path: &Path) -> io::Result<u32> {
        Ok(self.reports.add_file(Arc::new(File::open(path)?)))
    }

    /// Takes in an operation of a file of [`Self::reports`].
    pub(super) fn apply(&mut self, placed: &Placed, file: u32) {
        let Placed { op, offset, length } = placed;
        let outbox = &mut self.outbox;
        match op {
            Op::PutReport(report) => {
                outbox.insert(report, Medium::Disk);
                self.reports.put(report, Place { offset: *offset, length: *length, file });
            }
            Op::RemoveReport(id) => {
                outbox.remove(*id);
                self.reports.remove(*id);
            }
            Op::DropReport(id) => {
                outbox.remove(*id);
                outbox.dropped += 1;
                self.reports.remove(*id);
            }
            Op::Counters { next_report, dropped_reports } => {
                outbox.next = outbox.next.max(*next_report);
                outbox.dropped = *dropped_reports;
            }
            _ => {}
        }
        outbox.settle();
    }

    /// All files have been read. Where records are missing, more than one state of an object may be left.
    pub(super) fn finish(&mut self) {
        let outbox = &self.outbox;
        self.reports.places.retain(|id| outbox.contains(id));
        self.reports.statuses.retain(|id| outbox.contains(*id));
    }
}
