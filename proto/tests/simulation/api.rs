//! The API server: pods bound to nodes, what pods refer to, a log for those who watch, and what reports came
//! to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use bytes::Bytes;
use proto::{Object, Report, ResourceKey, message::ReportKind};

use super::{faults::Invariant, rng::Rng};

pub(crate) const KINDS: [&str; 2] = ["ConfigMap", "Pod"];
/// The one of them that refers to the other.
pub(crate) const POD: usize = 1;
const PODS: u64 = 8;
const CONFIGS: u64 = 4;

/// An object with what its bytes say about other objects.
#[derive(Clone)]
pub(crate) struct Cached {
    pub(crate) object: Object,
    uid: u64,
    /// Of a pod.
    pub(crate) node: Option<usize>,
    pub(crate) references: Vec<ResourceKey>,
}

#[derive(Clone)]
pub(crate) struct Change {
    pub(crate) resource_version: u64,
    pub(crate) key: ResourceKey,
    /// `None` when it was deleted.
    pub(crate) now: Option<Cached>,
}

/// What the API server says to a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// It is done, and the object has this version.
    Version(u64),
    Done,
    Lease {
        version: u64,
        claim: Option<u64>,
    },
    /// For good.
    Refused,
    Conflict,
    Missing,
    /// Not now, or nothing was heard.
    Again,
}

/// A state that a node reports: the node, the report's kind, its key.
pub(crate) type Place = (usize, i32, String);

#[derive(Default)]
pub(crate) struct Api {
    pub(crate) revision: u64,
    pub(crate) objects: BTreeMap<ResourceKey, Cached>,
    pub(crate) log: Vec<Change>,
    /// Since which revision there is such an object, without a gap.
    existing: BTreeMap<ResourceKey, u64>,
    /// By node: what it needs, and since which revision without a gap.
    needed: Vec<BTreeMap<ResourceKey, u64>>,
    /// By node, kind and key: the serial number of the state that was written last.
    pub(crate) states: BTreeMap<Place, u64>,
    /// All versions that the objects had which hold them.
    versions: BTreeMap<Place, Vec<u64>>,
    /// By node: the Lease's version, and the claim in it.
    leases: BTreeMap<usize, (u64, Option<u64>)>,
    /// By name: the serial number.
    pub(crate) events: BTreeMap<String, u64>,
    /// Serial numbers of reports that were taken or refused for good.
    pub(crate) settled: BTreeSet<u64>,
    /// No write is taken before this moment.
    pub(crate) out_until: u64,
    /// A resume takes more batches than may be under way.
    pub(crate) large: bool,
    /// Contents return to what they were.
    pub(crate) toggles: bool,
    next: u64,
}

/// What a report's payload says: its serial number in the whole run.
pub(crate) fn serial(report: &Report) -> u64 {
    let digits = report.payload.split(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).expect("a payload of the simulation")
}

/// Some reports are refused for good.
pub(crate) fn is_refused(serial: u64) -> bool {
    serial.is_multiple_of(29)
}

fn event_name(report: &Report) -> String {
    let text = std::str::from_utf8(&report.payload).expect("a payload of the simulation");
    text.split_once(' ').map(|(_, name)| name.to_owned()).expect("an event has a name")
}

impl Api {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { needed: vec![BTreeMap::new(); nodes], ..Self::default() }
    }

    /// What the node is to hold now.
    pub(crate) fn view(&self, node: usize) -> BTreeMap<ResourceKey, Object> {
        references(&self.objects, node)
            .into_iter()
            .filter_map(|key| Some((key.clone(), self.objects.get(&key)?.object.clone())))
            .collect()
    }

    /// Somebody changes something; says what.
    pub(crate) fn user(&mut self, rng: &mut Rng) -> String {
        // Where contents are to return, little else may change.
        let settled = self.toggles && self.log.len() > 20;
        let is_pod = rng.percent(if settled { 0 } else { 60 });
        let key: ResourceKey = if is_pod {
            format!("Pod/a/p{}", rng.below(PODS))
        } else {
            format!("ConfigMap/a/c{}", rng.below(if settled { 1 } else { CONFIGS }))
        }
        .parse()
        .expect("a key");
        self.revision += rng.between(1, 3);
        let old = self.objects.get(&key).cloned();
        if old.is_some() && !settled && rng.percent(25) {
            self.objects.remove(&key);
            return self.changed(key, None);
        }
        let mut now = old.unwrap_or_else(|| {
            self.next += 1;
            let node = is_pod.then(|| rng.index(self.needed.len()));
            let mut references = Vec::new();
            for config in 0..if is_pod { CONFIGS } else { 0 } {
                if rng.percent(35) {
                    references.push(format!("ConfigMap/a/c{config}").parse().expect("a key"));
                }
            }
            let object = Object::new(key.clone(), 0, Bytes::new());
            Cached { object, uid: self.next, node, references }
        });
        if now.object.bytes.is_empty() || rng.percent(85) {
            self.next += 1;
            let value = if self.toggles && !is_pod { rng.below(2) } else { self.next };
            let length = match rng.below(50) {
                _ if self.toggles => 20,
                0..=29 if self.large => 140_000,
                0 => 30_000,
                1..=10 => 2_000,
                _ => 20,
            };
            // Text that compresses to about half, so that size costs time on the line.
            let mut filler = String::with_capacity(length);
            let mut state = if self.toggles { value } else { self.next };
            while filler.len() < length {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                write!(filler, "{:x}", state >> 40).expect("a string takes all");
            }
            let text = format!("{{\"uid\":{},\"value\":{value},\"filler\":\"{filler}\"}}", now.uid);
            now.object = Object::new(key.clone(), self.revision, text.into());
        } else {
            // A write that no edge can see.
            now.object.version.resource_version = self.revision;
        }
        self.objects.insert(key.clone(), now.clone());
        self.changed(key, Some(now))
    }

    fn changed(&mut self, key: ResourceKey, now: Option<Cached>) -> String {
        let said = match &now {
            Some(now) => format!("{key}@{} uid {} node {:?}", self.revision, now.uid, now.node),
            None => format!("{key} deleted @{}", self.revision),
        };
        self.log.push(Change { resource_version: self.revision, key, now });
        let objects = &self.objects;
        self.existing.retain(|key, _| objects.contains_key(key));
        for key in objects.keys() {
            self.existing.entry(key.clone()).or_insert(self.revision);
        }
        for (node, needed) in self.needed.iter_mut().enumerate() {
            let now = references(objects, node);
            needed.retain(|key, _| now.contains(key));
            for key in now {
                needed.entry(key).or_insert(self.revision);
            }
        }
        said
    }

    /// The object that had this version was deleted since, or the node did not need it at some revision from
    /// `since` on. The kinds are watched apart, so that neither says anything about the other.
    pub(crate) fn was_unwanted(&self, node: usize, key: &ResourceKey, version: u64, since: u64) -> bool {
        self.existing.get(key).is_none_or(|from| *from > version)
            || self.needed[node].get(key).is_none_or(|from| *from > since)
    }

    /// Whatever the Lease said, it has this claim now.
    pub(crate) fn claim(&mut self, node: usize, number: u64) -> Answer {
        self.revision += 1;
        self.leases.insert(node, (self.revision, Some(number)));
        Answer::Version(self.revision)
    }

    /// `over` is the version that it has to have.
    pub(crate) fn renew(&mut self, node: usize, over: Option<u64>) -> Answer {
        let Some((version, _)) = self.leases.get_mut(&node) else { return Answer::Missing };
        if over.is_some_and(|over| over != *version) {
            return Answer::Conflict;
        }
        self.revision += 1;
        *version = self.revision;
        Answer::Version(self.revision)
    }

    pub(crate) fn lease(&self, node: usize) -> Answer {
        match self.leases.get(&node) {
            Some((version, claim)) => Answer::Lease { version: *version, claim: *claim },
            None => Answer::Missing,
        }
    }

    /// Somebody else writes to a Lease, deletes one, or writes to an object that is reported about.
    pub(crate) fn touch(&mut self, rng: &mut Rng) -> String {
        self.revision += 1;
        let node = rng.index(self.needed.len());
        if rng.percent(20) {
            if rng.percent(20) {
                self.leases.remove(&node);
                return format!("the lease of n{node} is deleted");
            }
            if let Some((version, _)) = self.leases.get_mut(&node) {
                *version = self.revision;
            }
            return format!("the lease of n{node} is @{}", self.revision);
        }
        let pod = format!("Pod/a/p{}", rng.below(PODS));
        let place = (node, ReportKind::PodStatus.into(), pod);
        self.versions.entry(place.clone()).or_default().push(self.revision);
        format!("{} of n{node} is @{}", place.2, self.revision)
    }

    /// Of an object that is reported about.
    pub(crate) fn version(&self, place: &Place) -> u64 {
        self.versions.get(place).and_then(|versions| versions.last()).copied().unwrap_or_default()
    }

    /// As it was at a revision.
    pub(crate) fn version_at(&self, place: &Place, revision: u64) -> u64 {
        let Some(versions) = self.versions.get(place) else { return 0 };
        let count = versions.partition_point(|version| *version <= revision);
        versions[..count].last().copied().unwrap_or_default()
    }

    /// Writes a report; a state over this version alone.
    pub(crate) fn write(
        &mut self,
        node: usize,
        report: &Report,
        over: Option<u64>,
    ) -> Result<Answer, (Invariant, String)> {
        let serial = serial(report);
        if is_refused(serial) {
            self.settled.insert(serial);
            return Ok(Answer::Refused);
        }
        if report.kind() == ReportKind::Event {
            let name = event_name(report);
            let known = *self.events.entry(name.clone()).or_insert(serial);
            if known != serial {
                return Err((Invariant::EventOnce, format!("{name} is report {known} and {serial}")));
            }
            self.settled.insert(serial);
            return Ok(Answer::Done);
        }
        let place = (node, report.kind, report.key.clone());
        if over.is_some_and(|over| over != self.version(&place)) {
            return Ok(Answer::Conflict);
        }
        let known = self.states.get(&place).copied().unwrap_or_default();
        if serial < known {
            return Err((Invariant::ReportOrder, format!("{}: {serial} after {known}", report.key)));
        }
        self.revision += 1;
        self.versions.entry(place.clone()).or_default().push(self.revision);
        self.states.insert(place, serial);
        self.settled.insert(serial);
        Ok(Answer::Version(self.revision))
    }
}

/// The keys that a node needs, whether there are such objects or not.
pub(crate) fn references(objects: &BTreeMap<ResourceKey, Cached>, node: usize) -> BTreeSet<ResourceKey> {
    let mut keys = BTreeSet::new();
    for (key, cached) in objects {
        if cached.node == Some(node) {
            keys.insert(key.clone());
            keys.extend(cached.references.iter().cloned());
        }
    }
    keys
}
