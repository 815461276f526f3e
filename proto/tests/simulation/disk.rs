//! The edge's store: what is in it survives a crash, what waits to be written may or may not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::{Digest, Object, Report, ResourceKey, Seen, message::ReportKind, session::edge::Desired};

use super::{
    api::{Api, serial},
    faults::{Fault, Invariant},
    world::{Failure, Ledger, Outcome},
};

/// Events that the outbox keeps; the oldest go first.
const EVENTS: usize = 40;

/// What one batch changes.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) seq: u64,
    pub(crate) changes: Vec<Desired>,
    pub(crate) seen: Seen,
}

pub(crate) enum Op {
    /// Batches of one session, in order.
    Apply {
        connection: usize,
        batches: Vec<Batch>,
    },
    /// Done when all before it is.
    Barrier {
        connection: usize,
    },
    Report {
        kind: ReportKind,
        key: String,
        payload: String,
    },
    Done {
        connection: usize,
        ids: Vec<u64>,
    },
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) objects: BTreeMap<ResourceKey, Object>,
    pub(crate) seen: Seen,
    pub(crate) outbox: BTreeMap<u64, Report>,
    next_report: u64,
    pub(crate) waiting: VecDeque<Op>,
    /// How many of them are being written.
    pub(crate) group: usize,
    pub(crate) refuses_until: u64,
    /// Of a write, in microseconds.
    pub(crate) pace: u64,
    /// With [`Fault::TornCommit`]: what the digest would be if all had been stored.
    torn: Option<Digest>,
    /// What follows is for the checks.
    last_number: u64,
    highest: BTreeMap<ResourceKey, u64>,
    /// Ever stored: serial numbers of events, and of the newest state of each object.
    pub(crate) events: BTreeSet<u64>,
    pub(crate) states: BTreeMap<(i32, String), u64>,
    /// For [`Fault::RepeatIgnored`].
    ever: BTreeSet<u64>,
}

impl Disk {
    pub(crate) fn new(pace: u64) -> Self {
        Self { pace, ..Self::default() }
    }

    pub(crate) fn digest(&self, fault: Option<Fault>) -> Digest {
        let hash = |object: &Object| match fault {
            Some(Fault::DigestOfKeys) => 0,
            _ => object.version.hash,
        };
        self.torn.unwrap_or_else(|| self.objects.values().map(|object| (&object.key, hash(object))).collect())
    }

    /// Makes one operation durable.
    pub(crate) fn store(
        &mut self,
        node: usize,
        op: Op,
        api: &Api,
        ledgers: &mut [Ledger],
        fault: Option<Fault>,
    ) -> Outcome {
        match op {
            Op::Apply { connection, batches } => {
                self.torn = None;
                let ledger = &mut ledgers[connection];
                let mut deleted = BTreeMap::new();
                let mut last = BTreeMap::new();
                for Batch { seq, changes, seen } in batches {
                    for change in changes {
                        self.change(change, &mut deleted, fault)?;
                    }
                    if fault != Some(Fault::SeenNotKept) {
                        self.seen = seen;
                    }
                    last.extend(ledger.batches.get(&seq).into_iter().flatten().cloned());
                    ledger.stored.insert(seq);
                }
                for (key, hash) in last {
                    let held =
                        self.objects.get(&key).map(|object| proto::resource::content_hash(&object.bytes));
                    if held != hash {
                        let detail = format!("n{node} {key}: {held:x?} is stored where {hash:x?} was sent");
                        return Err(Failure::new(Invariant::AckedIsStored, detail));
                    }
                }
                for (key, held) in deleted {
                    if self.objects.contains_key(&key) {
                        continue;
                    }
                    // A pod that needs it is as good a reason as the object itself.
                    let pods = self.objects.values().filter(|object| object.key.kind() == "Pod");
                    let needing = pods.filter(|pod| {
                        api.log.iter().any(|change| {
                            change.resource_version == pod.version.resource_version
                                && change.now.as_ref().is_some_and(|pod| pod.references.contains(&key))
                        })
                    });
                    let since = needing.map(|pod| pod.version.resource_version).max().unwrap_or_default();
                    let since = if key.kind() == "Pod" { held } else { since };
                    if !api.was_unwanted(node, &key, held, since) {
                        let detail = format!("n{node} {key}@{held}, wanted since before @{since}");
                        return Err(Failure::new(Invariant::DeletedIsUnwanted, detail));
                    }
                }
            }
            Op::Barrier { .. } => {}
            Op::Report { kind, key, payload } => self.report(kind, key, payload, fault)?,
            Op::Done { ids, .. } => {
                for id in ids {
                    self.forget(id, api)?;
                    if fault == Some(Fault::AckForgetsOlder) {
                        while let Some(&older) = self.outbox.keys().next().filter(|older| **older < id) {
                            self.forget(older, api)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn change(
        &mut self,
        change: Desired,
        deleted: &mut BTreeMap<ResourceKey, u64>,
        fault: Option<Fault>,
    ) -> Outcome {
        match change {
            Desired::Put(object) => {
                let version = object.version.resource_version;
                let held = self.objects.get(&object.key);
                if let Some(held) = held
                    && held.version.resource_version > version
                {
                    let detail =
                        format!("{}: @{version} over @{}", object.key, held.version.resource_version);
                    return Err(Failure::new(Invariant::NeverOlder, detail));
                }
                // What pods refer to may have been out of use for a while, and unchanged.
                let highest = self.highest.get(&object.key).copied().unwrap_or_default();
                if highest > version || (held.is_none() && highest == version && object.key.kind() == "Pod") {
                    let detail = format!("{}: @{version}, and @{highest} was here before", object.key);
                    return Err(Failure::new(Invariant::NeverResurrected, detail));
                }
                self.highest.insert(object.key.clone(), highest.max(version));
                if fault == Some(Fault::RepeatIgnored) && !self.ever.insert(object.version.hash) {
                    return Ok(());
                }
                let uid =
                    |object: &Object| object.bytes.split(|byte| *byte == b',').next().map(<[u8]>::to_vec);
                let object = match held {
                    Some(held) if fault == Some(Fault::MergedWithOld) && uid(held) != uid(&object) => {
                        Object { bytes: held.bytes.clone(), ..object }
                    }
                    _ => object,
                };
                self.objects.insert(object.key.clone(), object);
            }
            Desired::Delete(key) => {
                if let Some(object) = self.objects.remove(&key) {
                    deleted.insert(key, object.version.resource_version);
                }
            }
        }
        Ok(())
    }

    fn report(&mut self, kind: ReportKind, key: String, payload: String, fault: Option<Fault>) -> Outcome {
        self.next_report += 1;
        let id = self.next_report;
        if id <= self.last_number {
            let detail = format!("{id} is given after {}", self.last_number);
            return Err(Failure::new(Invariant::ReportNumbers, detail));
        }
        self.last_number = id;
        let report = Report { id, kind: kind.into(), key, payload: payload.into() };
        if kind.is_state() {
            if fault != Some(Fault::StatesUncoalesced) {
                self.outbox.retain(|_, old| (old.kind, &old.key) != (report.kind, &report.key));
            }
            self.states.insert((report.kind, report.key.clone()), serial(&report));
        } else {
            self.events.insert(serial(&report));
        }
        self.outbox.insert(id, report);
        let of_events: Vec<u64> =
            self.outbox.values().filter(|report| !report.kind().is_state()).map(|report| report.id).collect();
        if of_events.len() > EVENTS
            && let Some(dropped) = self.outbox.remove(&of_events[0])
        {
            self.events.remove(&serial(&dropped));
        }
        if self.outbox.len() > EVENTS + self.states.len() {
            let detail = format!("{} reports wait about {} objects", self.outbox.len(), self.states.len());
            return Err(Failure::new(Invariant::Bounded, detail));
        }
        Ok(())
    }

    /// Takes a report out of the outbox.
    pub(crate) fn forget(&mut self, id: u64, api: &Api) -> Outcome {
        let Some(report) = self.outbox.remove(&id) else { return Ok(()) };
        let serial = serial(&report);
        if !api.settled.contains(&serial) {
            let detail = format!("report {id} ({} {serial}) is forgotten", report.key);
            return Err(Failure::new(Invariant::ReportIsSettled, detail));
        }
        Ok(())
    }

    /// The process is gone: of what waited, the first `survivors` came to the disk.
    pub(crate) fn crash(
        &mut self,
        node: usize,
        survivors: usize,
        api: &Api,
        ledgers: &mut [Ledger],
        fault: Option<Fault>,
    ) -> Outcome {
        let tears = fault == Some(Fault::TornCommit);
        let survivors = if tears { usize::MAX } else { survivors };
        for op in std::mem::take(&mut self.waiting).into_iter().take(survivors) {
            if let Op::Apply { batches, .. } = &op
                && tears
            {
                // The digest has all of it, the objects have none.
                let mut whole = self.objects.clone();
                for change in batches.iter().flat_map(|batch| &batch.changes) {
                    match change {
                        Desired::Put(object) => whole.insert(object.key.clone(), object.clone()),
                        Desired::Delete(key) => whole.remove(key),
                    };
                }
                self.torn = Some(whole.values().map(|object| (&object.key, object.version.hash)).collect());
                continue;
            }
            self.store(node, op, api, ledgers, fault)?;
        }
        if fault == Some(Fault::NumbersRestart) {
            self.next_report = self.outbox.keys().next_back().copied().unwrap_or_default();
        }
        Ok(())
    }
}
