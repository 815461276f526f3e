//! What the writer knows about the outbox without reading it: which state is pending, what may be dropped.

use std::collections::{BTreeMap, HashMap};

use proto::{message::ReportKind, resource::content_hash};

use super::{
    queue::Queue,
    record::{Op, Payload, StoredReport},
};

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
    events: Queue<u32>,
    states: BTreeMap<u64, (i32, Box<str>)>,
    pending: HashMap<(i32, Box<str>), State>,
    /// What was done since [`Self::settle`], in that order.
    steps: Vec<Step>,
}

struct State {
    id: u64,
    size: u64,
    hash: u64,
    medium: Medium,
}

/// Where a report is held. Events are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    Memory,
}

/// What becomes of the reports, each kind in this order.
#[derive(Default)]
pub(super) struct Changes {
    /// Of those on the disk.
    pub(super) ops: Vec<Op>,
    /// Of those in memory.
    pub(super) in_memory: Vec<InMemory>,
}

pub(super) enum InMemory {
    Put(StoredReport),
    Remove(u64),
}

impl Changes {
    pub(super) fn remove(&mut self, id: u64, medium: Medium) {
        match medium {
            Medium::Disk => self.ops.push(Op::RemoveReport(id)),
            Medium::Memory => self.in_memory.push(InMemory::Remove(id)),
        }
    }
}

enum Step {
    Added(u64),
    Event(u64, u32),
    State((i32, Box<str>), State),
}

fn size(report: &StoredReport) -> u64 {
    OVERHEAD + (report.key.len() + report.payload.bytes().len()) as u64
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
            events: Queue::default(),
            states: BTreeMap::new(),
            pending: HashMap::new(),
            steps: Vec::new(),
        }
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.events.get(id).is_some() || self.states.contains_key(&id)
    }

    /// Takes in a report that is held already; of two states of one object the newer one stays.
    pub(super) fn insert(&mut self, report: &StoredReport, medium: Medium) {
        self.next = self.next.max(report.id.saturating_add(1));
        self.remove(report.id);
        if is_state(report.kind) {
            let place = (report.kind, report.key.as_str().into());
            if let Some(old) = self.pending.get(&place).map(|old| old.id) {
                if old > report.id {
                    return;
                }
                self.remove(old);
            }
            let hash = content_hash(report.payload.bytes());
            self.put_state(place, State { id: report.id, size: size(report), hash, medium });
        } else {
            self.put_event(report.id, u32::try_from(size(report)).unwrap_or(u32::MAX));
        }
        self.steps.push(Step::Added(report.id));
    }

    fn put_event(&mut self, id: u64, size: u32) {
        self.events.insert(id, size);
        self.event_bytes += u64::from(size);
    }

    fn put_state(&mut self, place: (i32, Box<str>), state: State) {
        self.states.insert(state.id, place.clone());
        self.state_bytes += state.size;
        self.pending.insert(place, state);
    }

    /// Where the report was, if there was such a one.
    pub(super) fn remove(&mut self, id: u64) -> Option<Medium> {
        let step = self.take(id)?;
        let medium = if let Step::State(_, state) = &step { state.medium } else { Medium::Disk };
        self.steps.push(step);
        Some(medium)
    }

    /// The step that took it.
    fn take(&mut self, id: u64) -> Option<Step> {
        if let Some(size) = self.events.remove(id) {
            self.event_bytes -= u64::from(size);
            return Some(Step::Event(id, size));
        }
        let place = self.states.remove(&id)?;
        let state = self.pending.remove(&place)?;
        self.state_bytes -= state.size;
        Some(Step::State(place, state))
    }

    /// What was done until now is durable.
    pub(super) fn settle(&mut self) {
        self.steps.clear();
    }

    /// Takes back what was done since it was settled. Ids that were given are not given again.
    pub(super) fn undo(&mut self) {
        while let Some(step) = self.steps.pop() {
            match step {
                Step::Added(id) => drop(self.take(id)),
                Step::Event(id, size) => self.put_event(id, size),
                Step::State(place, state) => self.put_state(place, state),
            }
        }
    }

    /// Adds a report: its id, and what is to be done for it (nothing when the same is pending already).
    pub(super) fn report(
        &mut self,
        kind: ReportKind,
        key: String,
        payload: Payload,
        medium: Medium,
    ) -> (u64, Changes) {
        let mut changes = Changes::default();
        let kind_number = i32::from(kind);
        let medium = if kind.is_state() { medium } else { Medium::Disk };
        if kind.is_state()
            && let Some(old) = self.pending.get(&(kind_number, key.as_str().into()))
        {
            let is_kept_as_well = old.medium == medium || old.medium == Medium::Disk;
            if is_kept_as_well && old.hash == content_hash(payload.bytes()) {
                return (old.id, changes);
            }
            changes.remove(old.id, old.medium);
        }
        let report = StoredReport { id: self.next, kind: kind_number, key, payload };
        self.next += 1;
        let id = report.id;
        if !kind.is_state() && self.state_bytes + size(&report) > self.limit {
            // There would be no room for it if all other events went.
            self.dropped += 1;
            return (id, changes);
        }
        self.insert(&report, medium);
        match medium {
            Medium::Disk => changes.ops.push(Op::PutReport(report)),
            Medium::Memory => changes.in_memory.push(InMemory::Put(report)),
        }
        while self.event_bytes + self.state_bytes > self.limit
            && let Some(oldest) = self.events.first()
            && oldest != id
        {
            self.remove(oldest);
            self.dropped += 1;
            changes.ops.push(Op::DropReport(oldest));
        }
        (id, changes)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn view(outbox: &Outbox) -> (Vec<u64>, Vec<u64>, u64, u64) {
        let (events, states) = (outbox.events.ids_after(None), outbox.states.keys().copied());
        (events.collect(), states.collect(), outbox.event_bytes, outbox.state_bytes)
    }

    #[test]
    fn what_came_to_nothing_is_taken_back() {
        let mut outbox = Outbox::new(700, 1, 0);
        let text = |text: &'static str| Payload::Plain(Bytes::from_static(text.as_bytes()));
        let add = |outbox: &mut Outbox, kind, payload| {
            outbox.report(kind, "Pod/a/b".into(), payload, Medium::Disk).0
        };
        let mut ids = Vec::new();
        for n in ["1", "2", "3"] {
            ids.push(add(&mut outbox, ReportKind::Event, text(n)));
            ids.push(add(&mut outbox, ReportKind::PodStatus, text(n)));
        }
        outbox.settle();
        let before = view(&outbox);
        add(&mut outbox, ReportKind::PodStatus, text("4"));
        assert_eq!([(); 2].map(|()| outbox.remove(ids[2])), [Some(Medium::Disk), None]);
        for _ in 0..20 {
            add(&mut outbox, ReportKind::Event, text("5"));
        }
        assert!(!outbox.contains(ids[0]), "the oldest went");
        outbox.undo();
        assert_eq!(view(&outbox), before);
        assert_eq!(add(&mut outbox, ReportKind::PodStatus, text("3")), ids[5], "it is pending again");
        assert!(add(&mut outbox, ReportKind::Event, text("6")) > 26, "an id was given twice");
    }
}
