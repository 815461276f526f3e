//! An edge node: its process, which keeps one session with the obligations of `edgecore::edgehub`, and its
//! disk.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use proto::{
    Lane, Object, Report, ResourceKey, codec,
    limits::{WINDOW_BATCHES, WINDOW_REPORTS},
    message::{Body, GoodbyeReason, Question, ReportKind, TokenQuestion},
    session::{EdgeEvent, EdgeSession},
};

use super::{
    cloud::summary,
    disk::{Batch, Disk, Op},
    faults::{Fault, Invariant},
    link::{Connection, Side, WRITE_QUEUE},
    world::{Event, Failure, MILLISECOND, Outcome, SECOND, Stop, World, violation},
};

/// Another process seems to have this node's name.
const SUPERSEDED: u64 = 30 * SECOND;
/// An attempt to connect that nothing answers.
const DIAL: u64 = 5 * SECOND;
/// After a session this long the line is taken for good.
const STABLE: u64 = 5 * SECOND;

#[derive(Default)]
pub(crate) struct Edge {
    /// Counts its starts.
    pub(crate) life: u64,
    pub(crate) paused_until: u64,
    pub(crate) line_down_until: u64,
    pub(crate) disk: Disk,
    up: bool,
    link: Option<Link>,
    failures: u32,
    /// The newest attempt to connect.
    attempt: u64,
    replica: usize,
    /// Of all reports of the node, and of the events that the process has named.
    reports: u64,
    named: u64,
}

/// The driver of one session.
pub(crate) struct Link {
    connection: usize,
    begun: u64,
    /// Once all that was on its way to the disk is there.
    session: Option<EdgeSession>,
    /// When it began to count the silence.
    session_begun: u64,
    queued: VecDeque<Batch>,
    commit: Option<Commit>,
    undone: Vec<u64>,
    /// The newest report sent in this session.
    reported: u64,
    /// Sent and not acked, for [`Fault::ForgottenWithSession`].
    unacked: Vec<u64>,
    outbox_changed: bool,
    synced_after: Option<u64>,
    received: u64,
    synced: bool,
    armed: u64,
}

struct Commit {
    batches: Vec<Batch>,
    failures: u32,
}

/// Whom an operation of the disk concerns.
enum Told {
    Apply { connection: usize },
    Barrier { connection: usize },
    Report,
    Done { connection: usize, ids: Vec<u64> },
}

#[derive(Debug)]
pub(crate) enum End {
    Closed,
    Goodbye(GoodbyeReason),
    Dead,
    Moved,
}

type Step = Result<(), Stop<End>>;

impl Edge {
    pub(crate) fn connection(&self) -> Option<usize> {
        self.link.as_ref().map(|link| link.connection)
    }

    /// The connection whose silence it counts, and since when; there is none while it waits for its disk.
    pub(crate) fn listens(&self) -> Option<(usize, u64)> {
        let link = self.link.as_ref().filter(|link| link.session.is_some())?;
        Some((link.connection, link.session_begun))
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.synced)
    }
}

impl World {
    pub(crate) fn edge_start(&mut self, node: usize) {
        self.say(|| format!("n{node} starts"));
        let edge = &mut self.edges[node];
        edge.up = true;
        edge.failures = 0;
        edge.attempt += 1;
        if self.options.fault == Some(Fault::EventNamesRestart) {
            edge.named = 0;
        }
        let attempt = edge.attempt;
        self.after(MILLISECOND, Event::Dial { node, attempt });
    }

    /// The process is killed, or the power goes.
    pub(crate) fn edge_crash(&mut self, node: usize, until: u64) -> Outcome {
        if !self.edges[node].up {
            return Ok(());
        }
        let waiting = self.edges[node].disk.waiting.len() as u64;
        let survivors = if self.rng.percent(70) { self.rng.below(2) } else { self.rng.below(waiting + 1) };
        self.say(|| {
            format!("chaos: n{node} crashes until {}, {survivors} of {waiting} stored", until / SECOND)
        });
        let edge = &mut self.edges[node];
        edge.up = false;
        edge.life += 1;
        edge.attempt += 1;
        edge.paused_until = 0;
        let link = edge.link.take();
        let survivors = usize::try_from(survivors).unwrap_or_default();
        edge.disk.crash(node, survivors, &self.api, &mut self.ledgers, self.options.fault)?;
        if let Some(link) = link {
            self.abandon(link.connection, Side::Edge, false);
        }
        self.at(until, Event::EdgeStart { node });
        Ok(())
    }

    pub(crate) fn dial(&mut self, node: usize, attempt: u64) {
        if !self.edges[node].up || self.edges[node].attempt != attempt {
            return;
        }
        if self.rng.percent(50) {
            self.edges[node].replica = self.rng.index(self.replicas.len());
        }
        let replica = self.edges[node].replica;
        if !self.replicas[replica].up || self.edges[node].line_down_until > self.now {
            self.edges[node].replica = self.rng.index(self.replicas.len());
            let delay = if self.replicas[replica].up { DIAL } else { 50 * MILLISECOND };
            return self.redial(node, delay);
        }
        let link = Connection::new(node, replica, self.api.large, &mut self.rng);
        let connection = self.add_connection(link);
        let delay = 2 * self.connections[connection].latency();
        self.after(delay, Event::Open { connection });
    }

    fn redial(&mut self, node: usize, delay: u64) {
        let edge = &mut self.edges[node];
        let backoff = ((100 * MILLISECOND) << edge.failures.min(6)).min(2 * SECOND);
        edge.failures += 1;
        edge.attempt += 1;
        let attempt = edge.attempt;
        let jitter = self.rng.below(backoff / 2);
        self.after(delay + backoff / 2 + jitter, Event::Dial { node, attempt });
    }

    pub(crate) fn open(&mut self, connection: usize) -> Outcome {
        let Connection { node, replica, .. } = self.connections[connection];
        if !self.edges[node].up || self.edges[node].link.is_some() {
            return Ok(());
        }
        let asleep =
            self.replicas[replica].paused_until > self.now || self.edges[node].paused_until > self.now;
        if !self.replicas[replica].up || self.edges[node].line_down_until > self.now || asleep {
            self.redial(node, DIAL);
            return Ok(());
        }
        let laned = self.connections[connection].laned;
        self.say(|| format!("c{connection} opens, n{node} to r{replica}, laned {laned}"));
        self.open_cloud(connection);
        self.edges[node].link = Some(Link {
            connection,
            begun: self.now,
            session: None,
            session_begun: 0,
            queued: VecDeque::new(),
            commit: None,
            undone: Vec::new(),
            reported: 0,
            unacked: Vec::new(),
            outbox_changed: true,
            synced_after: None,
            received: 0,
            synced: false,
            armed: 0,
        });
        // A commit of the session before may still be on its way, and what the cloud is told must have it.
        if self.has(Fault::DigestBeforeBarrier) || self.edges[node].disk.waiting.is_empty() {
            return self.begin(connection);
        }
        self.write(node, Op::Barrier { connection });
        Ok(())
    }

    fn begin(&mut self, connection: usize) -> Outcome {
        self.edge_step(connection, |world, link| {
            let node = world.connections[connection].node;
            let disk = &world.edges[node].disk;
            let held = (disk.digest(world.options.fault), disk.seen.clone());
            let heartbeat = Duration::from_micros(world.heartbeat);
            let now = world.instant(world.now);
            link.session_begun = world.now;
            link.session = Some(EdgeSession::new(&format!("n{node}"), "edge", held, heartbeat, now));
            Ok(())
        })
    }

    /// Does something to the session of this connection, if it is the node's, then all that can be done
    /// without waiting.
    pub(crate) fn edge_step(
        &mut self,
        connection: usize,
        act: impl FnOnce(&mut Self, &mut Link) -> Step,
    ) -> Outcome {
        let node = self.connections[connection].node;
        let Some(mut link) = self.edges[node].link.take_if(|link| link.connection == connection) else {
            return Ok(());
        };
        let mut step = act(self, &mut link);
        if step.is_ok() {
            step = self.pump_edge(node, &mut link);
        }
        match step {
            Ok(()) => {
                self.arm_edge(&mut link);
                self.edges[node].link = Some(link);
                Ok(())
            }
            Err(Stop::End(end)) => self.end_edge(node, link, &end),
            Err(Stop::Broken(failure)) => Err(failure),
        }
    }

    fn arm_edge(&mut self, link: &mut Link) {
        let Some(session) = &link.session else { return };
        let due = self.offset(session.deadline());
        if link.armed == 0 || due < link.armed {
            link.armed = due;
            self.at(due, Event::Deadline { connection: link.connection, side: Side::Edge });
        }
    }

    pub(crate) fn edge_deadline(&mut self, connection: usize) -> Outcome {
        if self.has(Fault::EdgeNeverGivesUp) {
            return Ok(());
        }
        self.edge_step(connection, |world, link| {
            link.armed = 0;
            let Some(session) = &mut link.session else { return Ok(()) };
            let heard = world.connections[connection].last_byte(Side::Cloud, world.now);
            session.handle_progress(world.instant(heard));
            let now = world.instant(world.now);
            session.handle_deadline(now).map_err(|_| Stop::End(End::Dead))
        })
    }

    pub(crate) fn edge_lost(&mut self, connection: usize) -> Outcome {
        self.edge_step(connection, |_, _| Err(Stop::End(End::Closed)))
    }

    /// The session goes on over another connection, as when QUIC gets through again.
    pub(crate) fn move_on(&mut self, node: usize) -> Outcome {
        let Some(connection) = self.edges[node].connection() else { return Ok(()) };
        self.edges[node].replica = self.rng.index(self.replicas.len());
        self.edge_step(connection, |_, _| Err(Stop::End(End::Moved)))
    }

    pub(crate) fn edge_frame(&mut self, connection: usize, frame: Bytes) -> Outcome {
        let node = self.connections[connection].node;
        let taken_by = match self.edges[node].connection() {
            Some(current) if self.has(Fault::OldConnectionFrames) => current,
            _ => connection,
        };
        self.edge_step(taken_by, |world, link| world.edge_receives(node, link, frame))
    }

    fn edge_receives(&mut self, node: usize, link: &mut Link, frame: Bytes) -> Step {
        let connection = link.connection;
        let body = codec::decode(frame).map_err(|error| violation(connection, Side::Edge, &error))?;
        self.say(|| format!("c{connection} edge <- {}", summary(&body)));
        let now = self.instant(self.now);
        let Some(session) = &mut link.session else { return Ok(()) };
        let disk = &self.edges[node].disk;
        let wrong = self.options.fault == Some(Fault::PatchOnWrongBase);
        let held = |key: &ResourceKey| {
            let object = disk.objects.get(key)?.clone();
            let other = disk.objects.values().find(|other| other.key != *key).filter(|_| wrong);
            Some(Object { bytes: other.unwrap_or(&object).bytes.clone(), ..object })
        };
        session.handle_frame(body, &held, now).map_err(|error| violation(connection, Side::Edge, &error))
    }

    fn pump_edge(&mut self, node: usize, link: &mut Link) -> Step {
        let Some(mut session) = link.session.take() else { return Ok(()) };
        let step = self.pump_session(node, link, &mut session);
        link.session = Some(session);
        step
    }

    fn pump_session(&mut self, node: usize, link: &mut Link, session: &mut EdgeSession) -> Step {
        while let Some(event) = session.poll_event() {
            self.edge_event(node, link, session, event)?;
        }
        self.start_commit(node, link, session);
        let whole = link.commit.is_none() && link.queued.is_empty();
        if link.synced_after.is_some() && (whole || self.has(Fault::SyncedBeforeStored)) {
            link.synced_after = None;
            link.synced = true;
            self.check_synced(link.connection)?;
        }
        if link.outbox_changed {
            self.send_reports(node, link, session)?;
        }
        self.edge_sends(link.connection, session)?;
        if link.queued.len() > WINDOW_BATCHES {
            let detail = format!("c{}: {} batches wait for the disk", link.connection, link.queued.len());
            return Err(Failure::new(Invariant::Bounded, detail).into());
        }
        Ok(())
    }

    fn edge_event(
        &mut self,
        node: usize,
        link: &mut Link,
        session: &mut EdgeSession,
        event: EdgeEvent,
    ) -> Step {
        match event {
            EdgeEvent::Connected { .. } => link.outbox_changed = true,
            EdgeEvent::InventoryWanted => {
                let disk = &self.edges[node].disk;
                let held: Vec<_> =
                    disk.objects.values().map(|object| (object.key.clone(), object.version)).collect();
                session.inventory(&held);
            }
            EdgeEvent::Apply { seq, changes, seen } => {
                link.received = seq;
                link.queued.push_back(Batch { seq, changes, seen });
            }
            EdgeEvent::Synced => link.synced_after = Some(link.received),
            EdgeEvent::ReportsDone(acks) => {
                link.outbox_changed = true;
                link.unacked.retain(|id| acks.iter().all(|ack| ack.id != *id));
                link.undone.extend(acks.iter().map(|ack| ack.id));
                self.forget_reports(node, link);
            }
            EdgeEvent::Answered { .. } => {}
            EdgeEvent::Goodbye { reason: GoodbyeReason::Violation, detail } => {
                return Err(violation(link.connection, Side::Cloud, &detail));
            }
            EdgeEvent::Goodbye { reason, .. } => return Err(Stop::End(End::Goodbye(reason))),
        }
        Ok(())
    }

    fn forget_reports(&mut self, node: usize, link: &mut Link) {
        if !link.undone.is_empty() {
            let ids = std::mem::take(&mut link.undone);
            self.write(node, Op::Done { connection: link.connection, ids });
        }
    }

    /// One write for all that waits.
    fn start_commit(&mut self, node: usize, link: &mut Link, session: &mut EdgeSession) {
        if link.commit.is_some() || link.queued.is_empty() {
            return;
        }
        let batches: Vec<_> = if self.has(Fault::CommitOutOfOrder) {
            link.queued.pop_back().into_iter().collect()
        } else {
            link.queued.drain(..).collect()
        };
        if self.has(Fault::AckBeforeStored)
            && let Some(last) = batches.last()
        {
            session.committed(last.seq);
        }
        link.commit = Some(Commit { batches: batches.clone(), failures: 0 });
        self.write(node, Op::Apply { connection: link.connection, batches });
    }

    pub(crate) fn store_again(&mut self, node: usize, connection: usize) -> Outcome {
        self.edge_step(connection, |world, link| {
            if let Some(commit) = &link.commit {
                let batches = commit.batches.clone();
                world.write(node, Op::Apply { connection, batches });
            }
            Ok(())
        })
    }

    /// The disk has done a group of operations, or refuses it.
    pub(crate) fn disk(&mut self, node: usize, life: u64) -> Outcome {
        if self.edges[node].life != life {
            return Ok(());
        }
        let refused = self.edges[node].disk.refuses_until > self.now;
        let group = self.edges[node].disk.group;
        let done: Vec<Op> = self.edges[node].disk.waiting.drain(..group).collect();
        self.start_write(node);
        for op in done {
            let told = match &op {
                Op::Apply { connection, .. } => Told::Apply { connection: *connection },
                Op::Barrier { connection } => Told::Barrier { connection: *connection },
                Op::Report { .. } => Told::Report,
                Op::Done { connection, ids } => Told::Done { connection: *connection, ids: ids.clone() },
            };
            if !refused {
                let disk = &mut self.edges[node].disk;
                disk.store(node, op, &self.api, &mut self.ledgers, self.options.fault)?;
            }
            self.tell(node, told, refused)?;
        }
        Ok(())
    }

    /// The session hears what became of an operation, if it is still that session.
    fn tell(&mut self, node: usize, told: Told, refused: bool) -> Outcome {
        match told {
            Told::Apply { connection } => self.edge_step(connection, |world, link| {
                if refused {
                    if let Some(commit) = &mut link.commit {
                        commit.failures += 1;
                        let delay = (SECOND << commit.failures.min(4)).min(10 * SECOND);
                        world.after(delay, Event::StoreAgain { node, connection });
                    }
                } else if let (Some(commit), Some(session)) = (link.commit.take(), &mut link.session)
                    && let Some(last) = commit.batches.last()
                {
                    session.committed(last.seq);
                    world.forget_reports(node, link);
                }
                Ok(())
            }),
            // Where the disk takes nothing, the session begins with what is there.
            Told::Barrier { connection } if self.edges[node].connection() == Some(connection) => {
                self.begin(connection)
            }
            Told::Report => match self.edges[node].connection() {
                Some(connection) => self.edge_step(connection, |_, link| {
                    link.outbox_changed = true;
                    Ok(())
                }),
                None => Ok(()),
            },
            Told::Done { connection, ids } if refused => self.edge_step(connection, |_, link| {
                link.undone.extend(ids);
                Ok(())
            }),
            Told::Barrier { .. } | Told::Done { .. } => Ok(()),
        }
    }

    fn send_reports(&mut self, node: usize, link: &mut Link, session: &mut EdgeSession) -> Outcome {
        let room = session.report_room();
        if room == 0 {
            return Ok(());
        }
        let outbox = &self.edges[node].disk.outbox;
        let reports: Vec<Report> =
            outbox.range(link.reported + 1..).take(room).map(|(_, report)| report.clone()).collect();
        link.outbox_changed = reports.len() == room;
        let ids: Vec<u64> = reports.iter().map(|report| report.id).collect();
        let Some(last) = ids.last() else { return Ok(()) };
        link.reported = *last;
        link.unacked.extend(&ids);
        session.report(reports);
        if self.has(Fault::ForgottenWhenSent) {
            for id in ids {
                self.edges[node].disk.forget(id, &self.api)?;
            }
        }
        if link.unacked.len() > WINDOW_REPORTS {
            let detail = format!("c{}: {} reports are not acked", link.connection, link.unacked.len());
            return Err(Failure::new(Invariant::Bounded, detail));
        }
        Ok(())
    }

    fn edge_sends(&mut self, connection: usize, session: &mut EdgeSession) -> Outcome {
        let careless = self.has(Fault::SendErrorDropsFrame);
        for lane in Lane::ALL {
            let queue = self.connections[connection].queue_of(lane);
            loop {
                let room = self.connections[connection].has_room(Side::Edge, queue);
                if !room && !careless {
                    break;
                }
                let Some(body) = session.poll_lane(lane) else { break };
                if let Body::Ack(ack) = &body {
                    let stored = &self.ledgers[connection].stored;
                    if let Some(missing) = (1..=ack.seq).find(|seq| !stored.contains(seq)) {
                        let detail =
                            format!("c{connection}: ack of {}, and {missing} is not stored", ack.seq);
                        return Err(Failure::new(Invariant::AckedIsStored, detail));
                    }
                }
                if room {
                    self.send(connection, Side::Edge, queue, body)?;
                }
            }
            if self.connections[connection].queued(Side::Edge, queue) > WRITE_QUEUE {
                let detail = format!("c{connection}: the edge's frames queue up");
                return Err(Failure::new(Invariant::Bounded, detail));
            }
        }
        Ok(())
    }

    fn check_synced(&mut self, connection: usize) -> Outcome {
        self.say(|| format!("c{connection} is in sync"));
        let ledger = &self.ledgers[connection];
        let last = ledger.synced_after.unwrap_or_default();
        if let Some(missing) = (1..=last).find(|seq| !ledger.stored.contains(seq)) {
            let detail = format!("c{connection}: in sync, and {missing} is not stored");
            return Err(Failure::new(Invariant::SyncedIsWhole, detail));
        }
        Ok(())
    }

    fn end_edge(&mut self, node: usize, mut link: Link, end: &End) -> Outcome {
        let connection = link.connection;
        self.say(|| format!("c{connection} edge ends: {end:?}"));
        if self.has(Fault::ForgottenWithSession) {
            for id in std::mem::take(&mut link.unacked) {
                self.edges[node].disk.forget(id, &self.api)?;
            }
        }
        if let (End::Moved, Some(session)) = (end, &mut link.session) {
            session.close(GoodbyeReason::ShuttingDown, String::new());
            self.edge_sends(connection, session)?;
        }
        self.abandon(connection, Side::Edge, !matches!(end, End::Dead));
        if link.synced && self.now - link.begun > STABLE {
            self.edges[node].failures = 0;
        }
        let delay = if let End::Goodbye(GoodbyeReason::Superseded) = end { SUPERSEDED } else { 0 };
        self.redial(node, delay);
        Ok(())
    }

    /// Something happens at the site that is to be reported, or a pod needs a token.
    pub(crate) fn activity(&mut self, node: usize) -> Outcome {
        if !self.edges[node].up || self.quiet {
            return Ok(());
        }
        let burst = if self.rng.percent(3) { 100 } else { 1 };
        for _ in 0..burst {
            let edge = &mut self.edges[node];
            edge.reports += 1;
            let serial = edge.reports;
            let pod = format!("Pod/a/p{}", self.rng.below(8));
            let (kind, key, name) = match self.rng.below(10) {
                0..=1 => (ReportKind::NodeStatus, format!("Node//n{node}"), String::new()),
                2..=6 => (ReportKind::PodStatus, pod, String::new()),
                _ => {
                    edge.named += 1;
                    (ReportKind::Event, pod, format!("n{node}.{}", edge.named))
                }
            };
            // Serial numbers are the run's: each node has its own range.
            let serial = serial * 8 + node as u64;
            self.write(node, Op::Report { kind, key, payload: format!("{serial} {name}") });
        }
        let Some(connection) = self.edges[node].connection().filter(|_| self.rng.percent(5)) else {
            return Ok(());
        };
        self.edge_step(connection, |_, link| {
            if let Some(session) = link.session.as_mut().filter(|session| session.is_connected()) {
                session.ask(Question::ServiceAccountToken(TokenQuestion::default()));
            }
            Ok(())
        })
    }
}
