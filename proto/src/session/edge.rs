//! The edge's end of a session.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Dead, Violation,
    timers::{HANDSHAKE, Timers},
};
use crate::{
    Digest, Lane, Object, ResourceKey, Seen, Version, codec, dictionary,
    lane::Queues,
    limits::{BATCH_CHANGES, BATCH_OBJECTS, INVENTORY_CHUNK, MAX_TEXT, WINDOW_BATCHES, WINDOW_REPORTS},
    message::{
        Ack, Action, Answer, Batch, Body, DownSettings, Goodbye, GoodbyeReason, Hello, Inventory,
        InventoryEntry, PROTOCOL, Ping, Pong, Question, Report, ReportAck, Reports, Request,
    },
};

/// A change of a batch, checked and whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    Put(Object),
    Delete(ResourceKey),
}

/// What the driver of a session is told.
#[derive(Debug, Clone, PartialEq)]
pub enum EdgeEvent {
    /// The cloud let us in. `unix_ms` is its clock; `sync_config` names the ConfigMap with the link settings, where it is
    /// not the usual one.
    Connected {
        software: String,
        unix_ms: u64,
        sync_config: Option<String>,
    },
    /// Send what the store holds through [`EdgeSession::inventory`].
    InventoryWanted,
    /// To be made durable, in order, then told to [`EdgeSession::committed`].
    /// `seen` is to be kept with them, in the same transaction, and given to the next session.
    Apply {
        seq: u64,
        changes: Vec<Desired>,
        seen: Seen,
    },
    /// All that the cloud wants here has been handed out in `Apply` events before this one.
    Synced,
    /// The outbox may forget these.
    ReportsDone(Vec<ReportAck>),
    Answered {
        id: u64,
        answer: Answer,
    },
    Goodbye {
        reason: GoodbyeReason,
        detail: String,
    },
}

/// Call order as for [`CloudSession`](super::CloudSession); the first frame of [`poll_frame`](Self::poll_frame) is the hello.
pub struct EdgeSession {
    /// What the cloud chose when it let us in.
    dictionary: Option<u32>,
    synced: bool,
    timers: Timers,
    heartbeat: Duration,
    queues: Queues,
    events: VecDeque<EdgeEvent>,
    seen: Seen,
    received: u64,
    committed: u64,
    acked: u64,
    reports_open: usize,
    next_request: u64,
    /// The cloud has asked for the inventory: it does so once at most.
    inventoried: bool,
    /// Results of batches that are not committed yet: a later batch may patch what is not in the store so far.
    uncommitted: HashMap<ResourceKey, (u64, Version, Bytes)>,
}

impl EdgeSession {
    /// `digest` is that of the objects in the store, `seen` what was kept with them.
    pub fn new(
        node: &str,
        software: &str,
        (digest, seen): (Digest, Seen),
        heartbeat: Duration,
        now: Instant,
    ) -> Self {
        let hello = Hello {
            protocol_min: PROTOCOL.0,
            protocol_max: PROTOCOL.1,
            software: software.to_owned(),
            node: node.to_owned(),
            digest_count: digest.count,
            digest_high: digest.halves().0,
            digest_low: digest.halves().1,
            heartbeat_ms: u32::try_from(heartbeat.as_millis()).unwrap_or(u32::MAX),
            seen: seen.positions(),
            dictionary: dictionary::NEWEST,
            own: None,
            kept: None,
        };
        let mut queues = Queues::default();
        queues.push(Body::Hello(hello));
        Self {
            dictionary: None,
            synced: false,
            timers: Timers::edge(HANDSHAKE / 2, now),
            heartbeat,
            queues,
            events: VecDeque::new(),
            seen,
            received: 0,
            committed: 0,
            acked: 0,
            reports_open: 0,
            next_request: 1,
            inventoried: false,
            uncommitted: HashMap::new(),
        }
    }

    /// What the hello says of the cloud's half of the link; to be called before the first frame is polled.
    #[must_use]
    pub fn with_settings(mut self, own: Option<DownSettings>, kept: Option<DownSettings>) -> Self {
        if let Some(Body::Hello(hello)) = self.queues.lane(Lane::Control).front_mut() {
            (hello.own, hello.kept) = (own, kept);
        }
        self
    }

    /// `held` gives what the store holds for a key: the base of a patch.
    ///
    /// # Errors
    /// The cloud broke the protocol, or a patch does not fit what is stored: close the link; the next session compares
    /// inventories and heals it.
    pub fn handle_frame(
        &mut self,
        body: Body,
        held: &dyn Fn(&ResourceKey) -> Option<Object>,
        now: Instant,
    ) -> Result<(), Violation> {
        self.timers.heard(now);
        match body {
            Body::Welcome(welcome) if !self.is_connected() => {
                if !(PROTOCOL.0..=PROTOCOL.1).contains(&welcome.protocol) {
                    let (oldest, newest) = PROTOCOL;
                    let software: String = welcome.software.chars().take(MAX_TEXT).collect();
                    return Err(Violation(format!(
                        "the cloud ({software}) chose protocol {}; this edge speaks {oldest} to {newest}",
                        welcome.protocol
                    )));
                }
                if welcome.dictionary > dictionary::NEWEST {
                    return Err(Violation(format!(
                        "the cloud chose dictionary {}; this edge has none after {}",
                        welcome.dictionary,
                        dictionary::NEWEST
                    )));
                }
                self.dictionary = Some(dictionary::common(welcome.dictionary));
                self.timers = Timers::edge(self.heartbeat, now);
                let software = welcome.software.chars().take(MAX_TEXT).collect();
                let sync_config = welcome.sync_config.map(|map| map.chars().take(MAX_TEXT).collect());
                let unix_ms = welcome.unix_ms;
                self.events.push_back(EdgeEvent::Connected { software, unix_ms, sync_config });
                Ok(())
            }
            Body::Goodbye(goodbye) => {
                let reason = goodbye.reason();
                let detail = goodbye.detail.chars().take(MAX_TEXT).collect();
                self.events.push_back(EdgeEvent::Goodbye { reason, detail });
                Ok(())
            }
            _ if !self.is_connected() => Err(Violation("first frame is not a welcome".to_owned())),
            Body::InventoryRequest(_) if self.inventoried => {
                Err(Violation("the inventory was asked for a second time".to_owned()))
            }
            Body::InventoryRequest(request) => {
                self.inventoried = true;
                if request.forget {
                    self.seen = Seen::default();
                }
                self.events.push_back(EdgeEvent::InventoryWanted);
                Ok(())
            }
            Body::Batch(batch) => self.handle_batch(batch, held),
            Body::Synced(_) => {
                self.synced = true;
                self.events.push_back(EdgeEvent::Synced);
                Ok(())
            }
            Body::ReportAcks(acks) => {
                if acks.acks.len() > self.reports_open {
                    return Err(Violation("acks of reports that were not sent".to_owned()));
                }
                self.reports_open -= acks.acks.len();
                if self.reports_open == 0 {
                    self.timers.answered();
                }
                self.events.push_back(EdgeEvent::ReportsDone(acks.acks));
                Ok(())
            }
            Body::Response(response) => {
                let answer = response.answer.unwrap_or_else(|| {
                    Answer::Refused("the cloud's answer is none that this version knows".to_owned())
                });
                self.events.push_back(EdgeEvent::Answered { id: response.id, answer });
                Ok(())
            }
            Body::Ping(Ping { number }) => {
                // One pong answers any number of pings.
                let waiting = self.queues.lane(Lane::Control).iter_mut().find_map(|body| match body {
                    Body::Pong(pong) => Some(pong),
                    _ => None,
                });
                match waiting {
                    Some(pong) => pong.number = pong.number.max(number),
                    None => self.queues.push(Body::Pong(Pong { number })),
                }
                Ok(())
            }
            Body::Pong(Pong { .. }) => Ok(()),
            Body::Hello(_)
            | Body::Welcome(_)
            | Body::Inventory(_)
            | Body::Ack(_)
            | Body::Reports(_)
            | Body::Request(_) => {
                Err(Violation("frame that only an edge sends, or a second welcome".to_owned()))
            }
        }
    }

    fn handle_batch(
        &mut self,
        batch: Batch,
        held: &dyn Fn(&ResourceKey) -> Option<Object>,
    ) -> Result<(), Violation> {
        if batch.seq != self.received + 1 {
            return Err(Violation(format!("batch {} after batch {}", batch.seq, self.received)));
        }
        if self.received - self.committed >= 2 * WINDOW_BATCHES as u64 {
            return Err(Violation("more batches under way than the window allows".to_owned()));
        }
        if batch.changes.len() > BATCH_CHANGES {
            return Err(Violation(format!("batch of {} changes", batch.changes.len())));
        }
        let mut changes = Vec::with_capacity(batch.changes.len());
        let mut objects = 0;
        let mut has_room = |length: usize| {
            objects += length;
            if objects <= BATCH_OBJECTS {
                return Ok(());
            }
            Err(Violation(format!("batch of more than {BATCH_OBJECTS} bytes of objects")))
        };
        for change in batch.changes {
            let key: ResourceKey = change.key.parse().map_err(|error| Violation(format!("{error}")))?;
            match change.action {
                Some(Action::Put(put)) => {
                    has_room(put.object.len())?;
                    let object = Object::new(key.clone(), put.resource_version, put.object);
                    self.remember(batch.seq, &object);
                    changes.push(Desired::Put(object));
                }
                Some(Action::Patch(patch)) => {
                    has_room(patch.length as usize)?;
                    let base = self.base(&key, held, patch.base)?;
                    let bytes = codec::apply_patch(&base, &patch.patch, patch.length as usize, patch.hash)
                        .map_err(|error| Violation(format!("{key}: {error}")))?;
                    let version = Version { hash: patch.hash, resource_version: patch.resource_version };
                    let object = Object { key, version, bytes };
                    self.remember(batch.seq, &object);
                    changes.push(Desired::Put(object));
                }
                Some(Action::Delete(delete)) => {
                    self.seen.raise(key.kind(), delete.resource_version);
                    self.uncommitted.remove(&key);
                    changes.push(Desired::Delete(key));
                }
                None => {
                    return Err(Violation(format!("{key}: change with no action that this version knows")));
                }
            }
        }
        self.received = batch.seq;
        self.events.push_back(EdgeEvent::Apply { seq: batch.seq, changes, seen: self.seen.clone() });
        Ok(())
    }

    fn remember(&mut self, seq: u64, object: &Object) {
        self.seen.raise(object.key.kind(), object.version.resource_version);
        self.uncommitted.insert(object.key.clone(), (seq, object.version, object.bytes.clone()));
    }

    fn base(
        &self,
        key: &ResourceKey,
        held: &dyn Fn(&ResourceKey) -> Option<Object>,
        hash: u64,
    ) -> Result<Bytes, Violation> {
        let (version, bytes) = match self.uncommitted.get(key) {
            Some((_, version, bytes)) => (*version, bytes.clone()),
            None => held(key)
                .map(|object| (object.version, object.bytes))
                .ok_or_else(|| Violation(format!("{key}: patch of an object that is not stored")))?,
        };
        if version.hash != hash {
            return Err(Violation(format!("{key}: patch of another version than the one stored")));
        }
        Ok(bytes)
    }

    /// The batch is durable. Acks are cumulative, so batches are committed in order.
    pub fn committed(&mut self, seq: u64) {
        self.committed = self.committed.max(seq);
        self.uncommitted.retain(|_, (of, ..)| *of > seq);
    }

    /// What the store holds, in answer to [`EdgeEvent::InventoryWanted`].
    pub fn inventory(&mut self, entries: &[(ResourceKey, Version)]) {
        let mut chunks = entries.chunks(INVENTORY_CHUNK).peekable();
        if chunks.peek().is_none() {
            self.queues.push(Body::Inventory(Inventory { entries: Vec::new(), last: true }));
        }
        while let Some(chunk) = chunks.next() {
            let entries = chunk
                .iter()
                .map(|(key, version)| InventoryEntry { key: key.as_str().to_owned(), hash: version.hash })
                .collect();
            self.queues.push(Body::Inventory(Inventory { entries, last: chunks.peek().is_none() }));
        }
    }

    /// Reports that may be sent now. They do not wait for `Synced`: the cloud is to know soon how its node is.
    pub fn report_room(&self) -> usize {
        if self.is_connected() { WINDOW_REPORTS - self.reports_open } else { 0 }
    }

    /// Sends reports of the outbox, at most [`report_room`](Self::report_room).
    pub fn report(&mut self, reports: Vec<Report>) {
        self.reports_open += reports.len();
        if !reports.is_empty() {
            self.queues.push(Body::Reports(Reports { reports }));
        }
    }

    /// Sends a question and returns the id of its answer.
    pub fn ask(&mut self, question: Question) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        self.queues.push(Body::Request(Request { id, question: Some(question) }));
        id
    }

    /// Asks for a sign of life now.
    pub fn ping(&mut self) {
        if self.is_connected() && !self.queues.is_closed() {
            self.queues.push(Body::Ping(Ping::default()));
        }
    }

    /// For [`codec::encode_with`].
    pub fn dictionary(&self) -> u32 {
        self.dictionary.unwrap_or(dictionary::FIRST)
    }

    pub fn is_connected(&self) -> bool {
        self.dictionary.is_some()
    }

    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The next frame to send, whatever its lane.
    pub fn poll_frame(&mut self) -> Option<Body> {
        Lane::ALL.into_iter().find_map(|lane| self.poll_lane(lane))
    }

    /// The next frame to send on one lane. Control goes first: nothing may be sent before the hello.
    pub fn poll_lane(&mut self, lane: Lane) -> Option<Body> {
        if let Some(body) = self.queues.pop(lane) {
            return Some(body);
        }
        if lane == Lane::Control && self.committed > self.acked && !self.queues.is_closed() {
            self.acked = self.committed;
            return Some(Body::Ack(Ack { seq: self.acked }));
        }
        None
    }

    /// What the driver has to act on.
    pub fn poll_event(&mut self) -> Option<EdgeEvent> {
        self.events.pop_front()
    }

    /// Queues a goodbye; nothing is to be sent after it.
    pub fn close(&mut self, reason: GoodbyeReason, detail: String) {
        self.queues.close(Body::Goodbye(Goodbye { reason: reason.into(), detail }));
    }

    pub fn deadline(&self) -> Instant {
        self.timers.deadline()
    }

    /// Bytes came last at `at`, even if they are no whole frame yet: the peer was not silent then. To be told before
    /// [`handle_deadline`](Self::handle_deadline).
    pub fn handle_progress(&mut self, at: Instant) {
        // A transport that takes everything, and nobody behind it, is no cloud.
        if self.is_connected() {
            self.timers.progressed(at);
        }
    }

    /// A frame was handed to a transport that counts what the peer has confirmed to have, and `confirmed` is that count: if it
    /// stays so, a ping is due soon.
    pub fn handle_sent(&mut self, now: Instant, confirmed: u64) {
        self.timers.sent(now, confirmed);
    }

    /// The count as it is now. To be told before [`handle_deadline`](Self::handle_deadline).
    pub fn handle_confirmed(&mut self, confirmed: u64) {
        self.timers.confirmed(confirmed);
    }

    /// # Errors
    /// The cloud is silent for two heartbeats: close the link.
    pub fn handle_deadline(&mut self, now: Instant) -> Result<(), Dead> {
        if self.timers.check(now)? {
            self.ping();
        }
        Ok(())
    }
}
