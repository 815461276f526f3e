//! A replica of cloudcore: its cache, its registry of nodes, and the drivers of its sessions, with the
//! obligations of `cloudcore::cloudhub::session`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proto::{
    Digest, Lane, Report, ResourceKey, codec,
    limits::{WINDOW_BATCHES, WINDOW_REPORTS},
    message::{Action, Answer, Body, GoodbyeReason, ReportAck, Response, Synced},
    session::{CLASSES, CloudEvent, CloudSession, Patches, View},
};

use super::{
    api::KINDS,
    cache::{Cache, NodeView},
    claim::{Claim, check_own},
    faults::{Fault, Invariant},
    link::{Connection, Side, WRITE_QUEUE},
    rng::Rng,
    world::{Event, Failure, MILLISECOND, Outcome, SECOND, Stop, World, violation},
};

/// Reports of one node that the API server is asked to take at once.
const REPORTS_AT_ONCE: usize = 4;
const BOOKMARKS: u64 = 60 * SECOND;
/// More keys than there are.
const KEYS: usize = 12;

pub(crate) struct Replica {
    pub(crate) up: bool,
    /// Counts its starts.
    pub(crate) life: u64,
    pub(crate) paused_until: u64,
    /// By kind: the watch brings nothing until then.
    pub(crate) stuck_until: [u64; KINDS.len()],
    /// By kind: how late its watch is, about.
    pub(crate) lag: [u64; KINDS.len()],
    watching: [bool; KINDS.len()],
    cache: Cache,
    registry: BTreeMap<usize, usize>,
    sessions: BTreeMap<usize, Hub>,
    patches: Arc<Patches>,
}

impl Replica {
    pub(crate) fn new(nodes: usize, fault: Option<Fault>) -> Self {
        Self {
            up: false,
            life: 0,
            paused_until: 0,
            stuck_until: [0; KINDS.len()],
            lag: [0; KINDS.len()],
            watching: [false; KINDS.len()],
            cache: Cache::new(nodes, fault),
            registry: BTreeMap::new(),
            sessions: BTreeMap::new(),
            patches: Arc::default(),
        }
    }
}

impl Replica {
    pub(crate) fn has_session(&self, connection: usize) -> bool {
        self.sessions.contains_key(&connection)
    }

    pub(crate) fn newest(&self, kind: usize) -> u64 {
        self.cache.kinds[kind].newest
    }

    /// What the watches are late with may come at once.
    pub(crate) fn hurry(&mut self) {
        self.watching = [false; KINDS.len()];
    }
}

/// The driver of one session.
pub(crate) struct Hub {
    pub(crate) connection: usize,
    pub(crate) session: CloudSession,
    pub(crate) node: usize,
    dirty: BTreeSet<ResourceKey>,
    /// With [`Fault::BacklogUncoalesced`].
    backlog: VecDeque<ResourceKey>,
    pub(crate) lanes: Lanes,
    pub(crate) tasks: BTreeMap<u64, Task>,
    next_task: u64,
    /// At the API server now, and those that wait for their turn.
    pub(crate) attempts: usize,
    turns: VecDeque<u64>,
    pub(crate) claim: Claim,
    greeted: bool,
    superseded: bool,
    resume: Resume,
    armed: u64,
}

#[derive(PartialEq)]
enum Resume {
    /// Until the cache is new enough.
    Waits,
    AwaitsInventory,
    Compared,
}

pub(crate) struct Task {
    pub(crate) report: Report,
    pub(crate) failures: u32,
    /// The cache does not have the object's newest version.
    pub(crate) anew: bool,
    /// Acked already, with [`Fault::AckedBeforeTaken`].
    pub(crate) acked: bool,
}

/// The reports of one object one after the other.
#[derive(Default)]
pub(crate) struct Lanes {
    waiting: BTreeMap<String, VecDeque<Report>>,
    pub(crate) running: BTreeSet<String>,
}

impl Lanes {
    fn start(&mut self, side_by_side: bool) -> Option<Report> {
        let lane = self.waiting.keys().find(|lane| side_by_side || !self.running.contains(*lane))?.clone();
        let queue = self.waiting.get_mut(&lane)?;
        let report = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&lane);
        }
        self.running.insert(lane);
        report
    }
}

#[derive(Debug)]
pub(crate) enum End {
    Closed,
    Goodbye,
    Dead,
    Superseded,
    Elsewhere,
    Stopping,
}

type Step = Result<(), Stop<End>>;

/// What a document of link settings may say of the classes; mostly nothing.
fn intervals(rng: &mut Rng) -> [Duration; CLASSES] {
    let millis = [0, 0, 0, 300, 5_000, 40_000];
    std::array::from_fn(|_| Duration::from_millis(rng.pick(&millis)))
}

impl World {
    pub(crate) fn replica_start(&mut self, replica: usize) {
        self.say(|| format!("r{replica} starts"));
        let cache = self.new_cache();
        let state = &mut self.replicas[replica];
        let (life, lag, fault) = (state.life + 1, state.lag, self.options.fault);
        *state = Replica { up: true, life, lag, cache, ..Replica::new(0, fault) };
        for kind in 0..KINDS.len() {
            let slow = self.rng.pick(&[10, 500, 5_000]) * MILLISECOND;
            let delay = self.rng.around(slow);
            self.after(delay, Event::List { replica, life, kind });
        }
        self.after(BOOKMARKS, Event::Bookmark { replica, life });
    }

    /// Killed, or told to stop.
    pub(crate) fn replica_end(&mut self, replica: usize, until: u64) -> Outcome {
        if !self.replicas[replica].up {
            return Ok(());
        }
        let orderly = self.rng.percent(40);
        self.say(|| format!("chaos: r{replica} ends until {}, orderly {orderly}", until / SECOND));
        let connections: Vec<usize> = self.replicas[replica].sessions.keys().copied().collect();
        for connection in connections {
            if orderly {
                self.cloud_step(connection, |_, _| Err(Stop::End(End::Stopping)))?;
            } else {
                self.replicas[replica].sessions.remove(&connection);
                self.abandon(connection, Side::Cloud, false);
            }
        }
        let state = &mut self.replicas[replica];
        state.up = false;
        state.life += 1;
        state.paused_until = 0;
        self.at(until, Event::ReplicaStart { replica });
        Ok(())
    }

    pub(crate) fn list(&mut self, replica: usize, life: u64, kind: usize) -> Outcome {
        if self.replicas[replica].life != life || !self.replicas[replica].up {
            return Ok(());
        }
        let marks = self.replicas[replica].cache.replace(kind, &self.api);
        let revision = self.api.revision;
        self.say(|| format!("r{replica} lists {} @{revision}", KINDS[kind]));
        self.mark(replica, marks)?;
        self.wake_sessions(replica)?;
        self.wake_watches(replica);
        Ok(())
    }

    /// A cache has come further.
    fn wake_sessions(&mut self, replica: usize) -> Outcome {
        let waits = |hub: &&Hub| hub.resume == Resume::Waits;
        let waiting = self.replicas[replica].sessions.values().filter(waits);
        let waiting: Vec<usize> = waiting.map(|hub| hub.connection).collect();
        for connection in waiting {
            self.cloud_step(connection, |_, _| Ok(()))?;
        }
        Ok(())
    }

    pub(crate) fn wake_watches(&mut self, replica: usize) {
        for kind in 0..KINDS.len() {
            let state = &mut self.replicas[replica];
            let behind = state.cache.kinds[kind].listed && state.cache.kinds[kind].next < self.api.log.len();
            if state.up && behind && !state.watching[kind] {
                state.watching[kind] = true;
                let lag = if self.quiet { 20 * MILLISECOND } else { state.lag[kind] };
                let due = state.stuck_until[kind].max(self.now + self.rng.around(lag));
                let life = state.life;
                self.at(due, Event::Watch { replica, life, kind });
            }
        }
    }

    pub(crate) fn watch(&mut self, replica: usize, life: u64, kind: usize) -> Outcome {
        if self.replicas[replica].life != life {
            return Ok(());
        }
        self.replicas[replica].watching[kind] = false;
        if self.replicas[replica].stuck_until[kind] <= self.now {
            let next = self.replicas[replica].cache.kinds[kind].next;
            let all = self.rng.percent(70);
            let count = if all { usize::MAX } else { 1 };
            if !all {
                // The others follow soon.
                self.replicas[replica].watching[kind] = true;
                self.after(20 * MILLISECOND, Event::Watch { replica, life, kind });
            }
            let changes: Vec<_> = self.api.log.iter().skip(next).take(count).cloned().collect();
            for change in changes {
                let marks = self.replicas[replica].cache.apply(kind, &change);
                self.mark(replica, marks)?;
            }
            self.wake_sessions(replica)?;
        }
        self.wake_watches(replica);
        Ok(())
    }

    pub(crate) fn bookmark(&mut self, replica: usize, life: u64) -> Outcome {
        let state = &mut self.replicas[replica];
        if state.life != life {
            return Ok(());
        }
        for kind in 0..KINDS.len() {
            let known = &mut state.cache.kinds[kind];
            if known.listed && known.next == self.api.log.len() && state.stuck_until[kind] <= self.now {
                known.newest = known.newest.max(self.api.revision);
            }
        }
        self.after(BOOKMARKS, Event::Bookmark { replica, life });
        self.wake_sessions(replica)
    }

    fn mark(&mut self, replica: usize, marks: Vec<(usize, ResourceKey)>) -> Outcome {
        let mut touched = BTreeSet::new();
        let uncoalesced = self.has(Fault::BacklogUncoalesced);
        for (node, key) in marks {
            for (connection, hub) in &mut self.replicas[replica].sessions {
                if hub.node == node {
                    if uncoalesced {
                        hub.backlog.push_back(key.clone());
                    } else {
                        hub.dirty.insert(key.clone());
                    }
                    touched.insert(*connection);
                }
            }
        }
        for connection in touched {
            self.cloud_step(connection, |_, _| Ok(()))?;
        }
        Ok(())
    }

    pub(crate) fn open_cloud(&mut self, connection: usize) {
        let Connection { node, replica, .. } = self.connections[connection];
        let unix_ms = self.now / MILLISECOND;
        let now = self.instant(self.now);
        let mut session = CloudSession::new(format!("n{node}"), "cloud".into(), unix_ms, now)
            .sharing(Arc::clone(&self.replicas[replica].patches));
        session.hold(intervals(&mut self.settings));
        let hub = Hub {
            connection,
            session,
            node,
            dirty: BTreeSet::new(),
            backlog: VecDeque::new(),
            lanes: Lanes::default(),
            tasks: BTreeMap::new(),
            next_task: 0,
            attempts: 0,
            turns: VecDeque::new(),
            claim: Claim::default(),
            greeted: false,
            superseded: false,
            resume: Resume::Waits,
            armed: 0,
        };
        self.arm_cloud(&hub);
        self.replicas[replica].sessions.insert(connection, hub);
    }

    fn arm_cloud(&mut self, hub: &Hub) -> u64 {
        let due = self.offset(hub.session.deadline());
        if hub.armed == 0 || due < hub.armed {
            self.at(due, Event::Deadline { connection: hub.connection, side: Side::Cloud });
            return due;
        }
        hub.armed
    }

    /// Does something to a session, then all that can be done without waiting.
    pub(crate) fn cloud_step(
        &mut self,
        connection: usize,
        act: impl FnOnce(&mut Self, &mut Hub) -> Step,
    ) -> Outcome {
        let replica = self.connections[connection].replica;
        let Some(mut hub) = self.replicas[replica].sessions.remove(&connection) else { return Ok(()) };
        let mut step = act(self, &mut hub);
        if step.is_ok() {
            step = self.pump_cloud(&mut hub);
        }
        match step {
            Ok(()) => {
                hub.armed = self.arm_cloud(&hub);
                self.replicas[replica].sessions.insert(connection, hub);
                Ok(())
            }
            Err(Stop::End(end)) => self.end_cloud(hub, &end),
            Err(Stop::Broken(failure)) => Err(failure),
        }
    }

    pub(crate) fn cloud_frame(&mut self, connection: usize, frame: Bytes) -> Outcome {
        self.cloud_step(connection, |world, hub| world.cloud_receives(hub, frame))
    }

    pub(crate) fn cloud_lost(&mut self, connection: usize) -> Outcome {
        self.cloud_step(connection, |_, _| Err(Stop::End(End::Closed)))
    }

    pub(crate) fn cloud_deadline(&mut self, connection: usize) -> Outcome {
        let patient = self.has(Fault::CloudNeverGivesUp);
        self.cloud_step(connection, |world, hub| {
            hub.armed = 0;
            let heard = world.connections[connection].last_byte(Side::Edge, world.now);
            let heard = if patient { world.now } else { heard };
            hub.session.handle_progress(world.instant(heard));
            let now = world.instant(world.now);
            hub.session.handle_deadline(now).map_err(|_| Stop::End(End::Dead))
        })
    }

    pub(crate) fn superseded(&mut self, connection: usize) -> Outcome {
        self.cloud_step(connection, |_, _| Err(Stop::End(End::Superseded)))
    }

    fn cloud_receives(&mut self, hub: &mut Hub, frame: Bytes) -> Step {
        let connection = hub.connection;
        let mut body = codec::decode(frame).map_err(|error| violation(connection, Side::Cloud, &error))?;
        self.say(|| format!("c{connection} cloud <- {}", summary(&body)));
        let forgets = self.has(Fault::DeleteForgottenOverReconnect);
        let cache = &self.replicas[self.connections[connection].replica].cache;
        match &mut body {
            Body::Inventory(inventory) => {
                let view = NodeView { cache, node: hub.node };
                let known = |key: &str| view.get(&key.parse().expect("a key")).is_some();
                inventory.entries.retain(|entry| !forgets || known(&entry.key));
                if inventory.last {
                    hub.resume = Resume::Compared;
                }
            }
            Body::Hello(hello) => {
                let view = NodeView { cache, node: hub.node };
                let objects = view.objects();
                let keys: Digest = objects.iter().map(|object| (&object.key, 0)).collect();
                let blind = match self.options.fault {
                    Some(Fault::DigestOfKeys) => {
                        keys == Digest::from_halves(hello.digest_count, hello.digest_high, hello.digest_low)
                    }
                    Some(Fault::DigestOfCount) => keys.count == hello.digest_count,
                    _ => false,
                };
                if blind {
                    (hello.digest_high, hello.digest_low) = view.digest().halves();
                }
            }
            _ => {}
        }
        let now = self.instant(self.now);
        hub.session.handle_frame(body, now).map_err(|error| violation(connection, Side::Cloud, &error))
    }

    fn pump_cloud(&mut self, hub: &mut Hub) -> Step {
        if hub.session.under_way() == 0 && hub.greeted {
            hub.dirty.extend(hub.backlog.pop_front());
        }
        if self.settings.percent(2) {
            hub.session.hold(intervals(&mut self.settings));
        }
        hub.session.set_time(self.instant(self.now));
        let holds = hub.session.held().iter().any(|held| *held > 0);
        while let Some(key) = hub.dirty.pop_first() {
            let lost = (hub.resume == Resume::AwaitsInventory && self.has(Fault::ResumeMarksLost))
                || (holds && self.has(Fault::MarksLostWhileHeld));
            if !lost {
                hub.session.mark_dirty(key);
            }
        }
        loop {
            self.cloud_events(hub)?;
            self.start_reports(hub);
            if !self.cloud_sends(hub)? {
                break;
            }
        }
        self.check_bounds(hub)?;
        Ok(())
    }

    fn cloud_events(&mut self, hub: &mut Hub) -> Step {
        while let Some(event) = hub.session.poll_event() {
            match event {
                CloudEvent::Connected { .. } => {
                    self.enter(hub);
                    self.claim(hub);
                }
                CloudEvent::Present => self.edge_present(hub),
                CloudEvent::Synced => {}
                CloudEvent::Report(report) => {
                    if self.has(Fault::AckedBeforeTaken) {
                        hub.session.finish_reports(vec![ReportAck { id: report.id, refused: String::new() }]);
                    }
                    hub.lanes.waiting.entry(report.key.clone()).or_default().push_back(report);
                }
                CloudEvent::Question(request) => {
                    let answer = Some(Answer::Refused("not here".to_owned()));
                    hub.session.answer(Response { id: request.id, answer });
                }
                CloudEvent::Goodbye { reason: GoodbyeReason::Violation, detail } => {
                    return Err(violation(hub.connection, Side::Edge, &detail));
                }
                CloudEvent::Goodbye { .. } => return Err(Stop::End(End::Goodbye)),
            }
        }
        Ok(())
    }

    /// The node has said hello: an older session of it is told to end.
    fn enter(&mut self, hub: &mut Hub) {
        let Connection { node, replica, .. } = self.connections[hub.connection];
        hub.greeted = true;
        if let Some(older) = self.replicas[replica].registry.insert(node, hub.connection)
            && !self.has(Fault::TwoSessions)
        {
            if let Some(older) = self.replicas[replica].sessions.get_mut(&older) {
                older.superseded = true;
            }
            let delay = self.rng.below(MILLISECOND);
            self.after(delay, Event::Superseded { connection: older });
        }
    }

    fn cloud_sends(&mut self, hub: &mut Hub) -> Result<bool, Failure> {
        let connection = hub.connection;
        let careless = self.has(Fault::SendErrorDropsFrame);
        let unbounded = self.has(Fault::UnboundedWriteQueue);
        let mut sent = false;
        for lane in Lane::ALL {
            let queue = self.connections[connection].queue_of(lane);
            loop {
                let room = self.connections[connection].has_room(Side::Cloud, queue);
                if !room && !careless && !unbounded {
                    break;
                }
                let replica = &self.replicas[self.connections[connection].replica];
                let view = NodeView { cache: &replica.cache, node: hub.node };
                let Some(body) = hub.session.poll_lane(lane, &view) else { break };
                let complete = replica.cache.is_complete();
                self.record(hub, &body, complete)?;
                sent = true;
                if room || unbounded {
                    self.send(connection, Side::Cloud, queue, body)?;
                }
            }
        }
        Ok(sent)
    }

    fn record(&mut self, hub: &mut Hub, body: &Body, complete: bool) -> Outcome {
        let ledger = &mut self.ledgers[hub.connection];
        match body {
            Body::InventoryRequest(_) => hub.resume = Resume::AwaitsInventory,
            Body::Batch(batch) => {
                let changes = batch.changes.iter().map(|change| {
                    let hash = match &change.action {
                        Some(Action::Put(put)) => Some(proto::resource::content_hash(&put.object)),
                        Some(Action::Patch(patch)) => Some(patch.hash),
                        Some(Action::Delete(_)) | None => None,
                    };
                    (change.key.parse().expect("a key"), hash)
                });
                ledger.batches.insert(batch.seq, changes.collect());
            }
            Body::Synced(_) => {
                hub.resume = Resume::Compared;
                ledger.synced_after = Some(ledger.batches.keys().next_back().copied().unwrap_or_default());
                // What an empty cache leads to is to be found where it does harm.
                if !complete && self.options.fault != Some(Fault::EmptyCacheDeletes) {
                    let detail = format!("c{} synced from a cache that has not listed all", hub.connection);
                    return Err(Failure::new(Invariant::SyncedIsWhole, detail));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Hands a frame to the line.
    pub(crate) fn send(&mut self, connection: usize, from: Side, queue: usize, body: Body) -> Outcome {
        self.say(|| format!("c{connection} {from:?} -> {}", summary(&body)));
        let ended = &mut self.ledgers[connection].ended[from as usize];
        if *ended {
            let detail = format!("c{connection} {from:?}: {} after the goodbye", summary(&body));
            return Err(Failure::new(Invariant::LastWord, detail));
        }
        *ended = matches!(body, Body::Goodbye(_));
        let frame = codec::encode(body)
            .map_err(|error| Failure::new(Invariant::NoViolation, format!("c{connection}: {error}")))?;
        let link = &mut self.connections[connection];
        let due = link.send(from, queue, frame, self.now, &mut self.rng);
        if self.has(Fault::LaneReordered) && self.rng.percent(5) {
            self.connections[connection].swap_last(from, queue);
        }
        self.at(due, Event::Frame { connection, from, queue });
        Ok(())
    }

    fn start_reports(&mut self, hub: &mut Hub) {
        if !hub.claim.stands() && !self.has(Fault::ReportsWithoutFence) {
            return;
        }
        let acked = self.has(Fault::AckedBeforeTaken);
        while let Some(report) = hub.lanes.start(self.has(Fault::ReportsSideBySide)) {
            hub.next_task += 1;
            hub.tasks.insert(hub.next_task, Task { report, failures: 0, anew: false, acked });
            hub.turns.push_back(hub.next_task);
        }
        while hub.attempts < REPORTS_AT_ONCE
            && let Some(task) = hub.turns.pop_front()
        {
            hub.attempts += 1;
            self.attempt(hub, task);
        }
    }

    pub(crate) fn try_again(&mut self, connection: usize, task: u64) -> Outcome {
        self.cloud_step(connection, |_, hub| {
            hub.turns.push_back(task);
            Ok(())
        })
    }

    fn check_bounds(&self, hub: &Hub) -> Outcome {
        let reports = hub.tasks.len() + hub.lanes.waiting.values().map(VecDeque::len).sum::<usize>();
        let queued =
            (0..Lane::ALL.len()).map(|queue| self.connections[hub.connection].queued(Side::Cloud, queue));
        for (what, is, bound) in [
            (
                "batches under way",
                usize::try_from(hub.session.under_way()).unwrap_or(usize::MAX),
                WINDOW_BATCHES,
            ),
            ("reports under way", reports, WINDOW_REPORTS),
            ("frames for one lane", queued.max().unwrap_or_default(), WRITE_QUEUE),
            ("keys to look at", hub.dirty.len() + hub.backlog.len(), KEYS),
            ("keys that wait", hub.session.held().iter().sum(), KEYS),
        ] {
            // A session that was acked too early has room for more.
            if is > bound && !self.has(Fault::AckedBeforeTaken) {
                let detail = format!("c{}: {is} {what}, at most {bound}", hub.connection);
                return Err(Failure::new(Invariant::Bounded, detail));
            }
        }
        check_own(hub)
    }

    fn end_cloud(&mut self, mut hub: Hub, end: &End) -> Outcome {
        let connection = hub.connection;
        let Connection { node, replica, .. } = self.connections[connection];
        self.say(|| format!("c{connection} cloud ends: {end:?}"));
        let registry = &mut self.replicas[replica].registry;
        if registry.get(&node) == Some(&connection) || self.options.fault == Some(Fault::TeardownEndsNewer) {
            registry.remove(&node);
        }
        let reason = match end {
            End::Superseded => Some(GoodbyeReason::Superseded),
            End::Stopping | End::Elsewhere => Some(GoodbyeReason::ShuttingDown),
            End::Closed | End::Goodbye | End::Dead => None,
        };
        if let Some(reason) = reason {
            hub.session.close(reason, String::new());
            self.cloud_sends(&mut hub)?;
            if self.has(Fault::SyncedAfterGoodbye) {
                let queue = self.connections[connection].queue_of(Lane::Objects);
                self.send(connection, Side::Cloud, queue, Body::Synced(Synced {}))?;
            }
        }
        self.abandon(connection, Side::Cloud, !matches!(end, End::Dead));
        Ok(())
    }

    /// Both ends of a session in sync have the same digest.
    pub(crate) fn check_digest(&self, node: usize) -> Outcome {
        let connection = self.edges[node].connection().expect("a session, which was checked");
        let state = &self.replicas[self.connections[connection].replica];
        let Some(hub) = state.sessions.get(&connection) else {
            return Err(Failure::new(Invariant::Reconnects, format!("c{connection} has no other end")));
        };
        let cloud = NodeView { cache: &state.cache, node: hub.node }.digest();
        let edge = self.edges[node].disk.digest(None);
        if cloud != edge {
            return Err(Failure::new(
                Invariant::Converges,
                format!("n{node}: {edge} is held, {cloud} is wanted"),
            ));
        }
        Ok(())
    }

    pub(crate) fn check_replica(&self, replica: usize) -> Outcome {
        let state = &self.replicas[replica];
        for (connection, hub) in &state.sessions {
            self.check_silence(*connection, Side::Cloud, state.paused_until)?;
            let registered = state.registry.get(&hub.node);
            if hub.greeted && !hub.superseded && registered != Some(connection) {
                let detail = format!("r{replica} knows {registered:?}, and c{connection} is up");
                return Err(Failure::new(Invariant::OneSession, detail));
            }
        }
        Ok(())
    }
}

/// A frame in a few words.
pub(crate) fn summary(body: &Body) -> String {
    match body {
        Body::Batch(batch) => {
            let changes = batch.changes.iter().map(|change| match &change.action {
                Some(Action::Put(put)) => format!("{}@{}", change.key, put.resource_version),
                Some(Action::Patch(patch)) => format!("{}@{} patch", change.key, patch.resource_version),
                Some(Action::Delete(delete)) => format!("-{}@{}", change.key, delete.resource_version),
                None => change.key.clone(),
            });
            format!("batch {} {}", batch.seq, changes.collect::<Vec<_>>().join(" "))
        }
        Body::Inventory(inventory) => {
            let entries: Vec<_> = inventory.entries.iter().map(|entry| &*entry.key).collect();
            format!("inventory {}", entries.join(" "))
        }
        Body::Reports(reports) => {
            let reports = reports.reports.iter().map(|report| format!("{} {}", report.id, report.key));
            format!("reports {}", reports.collect::<Vec<_>>().join(", "))
        }
        Body::ReportAcks(acks) => {
            let acks = acks
                .acks
                .iter()
                .map(|ack| format!("{}{}", ack.id, if ack.refused.is_empty() { "" } else { "!" }));
            format!("report acks {}", acks.collect::<Vec<_>>().join(" "))
        }
        other => format!("{other:?}"),
    }
}
