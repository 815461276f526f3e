//! What the writer knows about the outbox without reading it: which state is pending, what may be dropped.

use std::collections::{BTreeMap, HashMap};

use proto::{message::ReportKind, resource::content_hash};

use super::record::{Op, StoredReport};

/// Counted for each report beside its key and payload.
const OVERHEAD: u64 = 64;

pub(super) struct Outbox {
    limit: u64,
    /// Never reused, also after a restart.
    pub(super) next: u64,
    pub(super) dropped: u64,
    event_bytes: u64,
    state_bytes: u64,
    /// Id to size. The oldest goes first.
    events: BTreeMap<u64, u64>,
    states: BTreeMap<u64, (i32, Box<str>)>,
    pending: HashMap<(i32, Box<str>), State>,
}

struct State {
    id: u64,
    size: u64,
    hash: u64,
}

fn size(report: &StoredReport) -> u64 {
    OVERHEAD + (report.key.len() + report.payload.len()) as u64
}

fn is_state(kind: i32) -> bool {
    ReportKind::try_from(kind).is_ok_and(ReportKind::is_state)
}

impl Outbox {
    pub(super) fn new(limit: u64, next: u64, dropped: u64) -> Self {
        Self {
            limit,
            next,
            dropped,
            event_bytes: 0,
            state_bytes: 0,
            events: BTreeMap::new(),
            states: BTreeMap::new(),
            pending: HashMap::new(),
        }
    }

    /// Takes in a report that is stored already.
    pub(super) fn insert(&mut self, report: &StoredReport) {
        let size = size(report);
        self.next = self.next.max(report.id.saturating_add(1));
        if is_state(report.kind) {
            let place = (report.kind, report.key.as_str().into());
            self.states.insert(report.id, place.clone());
            self.state_bytes += size;
            let state = State { id: report.id, size, hash: content_hash(&report.payload) };
            if let Some(old) = self.pending.insert(place, state) {
                self.states.remove(&old.id);
                self.state_bytes -= old.size;
            }
        } else {
            self.events.insert(report.id, size);
            self.event_bytes += size;
        }
    }

    /// Whether there was such a report.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        if let Some(size) = self.events.remove(&id) {
            self.event_bytes -= size;
            return true;
        }
        let Some(state) = self.states.remove(&id).and_then(|place| self.pending.remove(&place)) else {
            return false;
        };
        self.state_bytes -= state.size;
        true
    }

    /// Adds a report: its id, and the operations that store it (none when the same is pending already).
    pub(super) fn report(&mut self, kind: ReportKind, key: String, payload: bytes::Bytes) -> (u64, Vec<Op>) {
        let mut ops = Vec::new();
        let kind_number = i32::from(kind);
        if kind.is_state()
            && let Some(old) = self.pending.get(&(kind_number, key.as_str().into()))
        {
            if old.hash == content_hash(&payload) {
                return (old.id, ops);
            }
            ops.push(Op::RemoveReport(old.id));
        }
        let report = StoredReport { id: self.next, kind: kind_number, key, payload };
        self.next += 1;
        let id = report.id;
        if !kind.is_state() && self.state_bytes + size(&report) > self.limit {
            // There would be no room for it if all other events went.
            self.dropped += 1;
            return (id, ops);
        }
        self.insert(&report);
        ops.push(Op::PutReport(report));
        while self.event_bytes + self.state_bytes > self.limit
            && let Some((&oldest, _)) = self.events.first_key_value()
            && oldest != id
        {
            self.remove(oldest);
            self.dropped += 1;
            ops.push(Op::DropReport(oldest));
        }
        (id, ops)
    }
}
