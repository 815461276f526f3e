//! The cloud's end of a session.
//!
//! What a node needs is asked of a [`View`] at the moment a frame is built, so a slow edge costs a set of dirty keys
//! and never a queue of objects.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Dead, Violation,
    holds::{CLASSES, Holds},
    patches::{self, Patches},
    timers::{HANDSHAKE, Timers},
};
use crate::{
    Digest, Lane, Object, ResourceKey, Seen, dictionary,
    lane::{self, Queues},
    limits::{
        BATCH_BYTES, BATCH_CHANGES, INVENTORY_ENTRIES, MAX_FRAME, MAX_REPORT, MAX_TEXT, WINDOW_BATCHES,
        WINDOW_QUESTIONS, WINDOW_REPORTS,
    },
    message::{
        Action, Batch, Body, Change, Delete, Goodbye, GoodbyeReason, Hello, Inventory, InventoryRequest,
        PROTOCOL, Patch, Ping, Pong, Put, Report, ReportAck, ReportAcks, Request, Response, Synced, Welcome,
    },
};

/// What a node needs, as the cloud's caches know it now.
pub trait View {
    /// How new the caches behind the view are beside what the edge has been told of, maybe by another replica. Once current,
    /// they stay so.
    fn freshness(&self, seen: &Seen) -> Freshness;
    fn get(&self, key: &ResourceKey) -> Option<Object>;
    fn objects(&self) -> Vec<Object>;
    /// That the view has no object of this key means that there is none for this node; not that it cannot be read.
    fn knows(&self, key: &ResourceKey) -> bool;
    /// The newest change of a kind that has been looked at.
    fn newest_change(&self, kind: &str) -> u64;
    /// The class whose interval a change of this object waits for, of [`CLASSES`]; `None` where it waits for nothing. `bytes` are the
    /// newest ones, of an object that is `gone` those that the edge has.
    fn class(&self, _key: &ResourceKey, _bytes: &[u8], _gone: bool) -> Option<usize> {
        None
    }
}

/// See [`View::freshness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Not every kind has been listed, or the edge knows more: nothing is concluded from what is there or missing.
    Behind,
    Current,
    /// The edge knows more than the API server does: it has gone back, and what it says now counts.
    WentBack,
}

/// What the driver of a session is told.
#[derive(Debug, Clone, PartialEq)]
pub enum CloudEvent {
    /// The edge has introduced itself; it counts as alive from here on.
    Connected { software: String },
    /// The edge holds all that the view held.
    Synced,
    /// The edge has answered the newest [`CloudSession::call`]: this was its session then.
    Present,
    /// To be answered through [`CloudSession::finish_reports`].
    Report(Report),
    /// To be answered through [`CloudSession::answer`].
    Question(Request),
    /// The edge said goodbye; the link is to be closed.
    Goodbye { reason: GoodbyeReason, detail: String },
}

/// What is told of a peer's name for its own software.
const MAX_NAME: usize = 64;

enum Phase {
    AwaitHello,
    /// Until the view is as new as what the edge has been told of.
    AwaitView {
        digest: Digest,
        seen: Seen,
    },
    AwaitInventory {
        entries: HashMap<ResourceKey, Sent>,
    },
    /// Sending the first difference.
    Syncing,
    Live,
    /// Goodbye was said.
    Closed,
}

/// Call order: [`handle_frame`](Self::handle_frame) for each frame, [`mark_dirty`](Self::mark_dirty) for each change of the
/// view, then [`set_time`](Self::set_time), [`poll_event`](Self::poll_event) and [`poll_frame`](Self::poll_frame) until both return `None`.
pub struct CloudSession {
    node: String,
    software: String,
    unix_ms: u64,
    phase: Phase,
    timers: Timers,
    /// The edge is not told otherwise that its ping has arrived.
    answers_pings: bool,
    /// No patches.
    whole: bool,
    /// Of the welcome.
    sync_config: Option<Arc<str>>,
    queues: Queues,
    events: VecDeque<CloudEvent>,
    /// With the moment when it was first heard that the object is another one, for those that have changed since the last one was sent.
    dirty: BTreeMap<ResourceKey, Option<Instant>>,
    holds: Holds,
    /// What the edge holds, or will once the batches under way have arrived. The bytes, where known, are the base of the
    /// next patch; they are shared with the cache as long as they are current.
    sent: HashMap<ResourceKey, Sent>,
    /// Those that other sessions have use for, too.
    patches: Option<Arc<Patches>>,
    next_seq: u64,
    /// See [`CloudSession::heard`].
    heard: Option<Instant>,
    acked: u64,
    /// The last batch of the first difference.
    synced_at: Option<u64>,
    /// Whose acks have not been taken by the link: an edge that reads nothing is not told more and more.
    reports_open: usize,
    /// As with the reports.
    questions_open: usize,
    dictionary: u32,
    /// How often the edge was called, and whether it has answered the last time.
    calls: u64,
    called: bool,
}

/// When what is dirty goes down.
enum Turn {
    /// The edge has nothing of it.
    New,
    Now,
    /// With all else of this class.
    After(usize),
}

struct Sent {
    hash: u64,
    bytes: Option<Bytes>,
}

impl CloudSession {
    /// `node` is the name in the client certificate, `unix_ms` the cloud's clock in milliseconds.
    pub fn new(node: String, software: String, unix_ms: u64, now: Instant) -> Self {
        Self {
            node,
            software,
            unix_ms,
            phase: Phase::AwaitHello,
            timers: Timers::cloud(HANDSHAKE / 2, now),
            answers_pings: true,
            whole: false,
            sync_config: None,
            queues: Queues::default(),
            events: VecDeque::new(),
            dirty: BTreeMap::new(),
            holds: Holds::new(now),
            sent: HashMap::new(),
            patches: None,
            next_seq: 1,
            heard: None,
            acked: 0,
            synced_at: None,
            reports_open: 0,
            questions_open: 0,
            dictionary: dictionary::FIRST,
            calls: 0,
            called: false,
        }
    }

    /// For a transport that tells the edge that its ping has arrived.
    #[must_use]
    pub fn without_pongs(mut self) -> Self {
        self.answers_pings = false;
        self
    }

    /// What the welcome says of the ConfigMap with link settings.
    #[must_use]
    pub fn with_sync_config(mut self, map: Option<Arc<str>>) -> Self {
        self.sync_config = map;
        self
    }

    /// Patches are made for all sessions that share them.
    #[must_use]
    pub fn sharing(mut self, patches: Arc<Patches>) -> Self {
        self.patches = Some(patches);
        self
    }

    /// From now on, whether objects go whole even where a patch would do.
    pub fn send_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// From now on, how long changes of the objects of each class may wait for others, once the edge is in sync. What waits already is
    /// held to it, too.
    pub fn hold(&mut self, intervals: [Duration; CLASSES]) {
        self.holds.set(intervals);
    }

    /// To be told before [`poll_frame`](Self::poll_frame), whenever something may have happened: what waits is due at a time.
    pub fn set_time(&mut self, now: Instant) {
        self.holds.set_time(now);
    }

    /// By class, how many objects have a change that waits.
    pub fn held(&self) -> [usize; CLASSES] {
        self.holds.held()
    }

    /// # Errors
    /// The edge broke the protocol: say goodbye with [`GoodbyeReason::Violation`] and close.
    pub fn handle_frame(&mut self, body: Body, now: Instant) -> Result<(), Violation> {
        self.timers.heard(now);
        let greeted = !matches!(self.phase, Phase::AwaitHello);
        match body {
            Body::Hello(hello) if !greeted => self.handle_hello(&hello, now),
            Body::Goodbye(goodbye) => {
                let reason = goodbye.reason();
                let detail = goodbye.detail.chars().take(MAX_TEXT).collect();
                self.events.push_back(CloudEvent::Goodbye { reason, detail });
                Ok(())
            }
            _ if !greeted => Err(Violation("first frame is not a hello".to_owned())),
            Body::Inventory(inventory) => self.handle_inventory(inventory),
            Body::Ack(ack) if ack.seq >= self.acked && ack.seq < self.next_seq => {
                self.acked = ack.seq;
                if self.under_way() == 0 {
                    self.timers.answered();
                }
                if self.synced_at.is_some_and(|last| ack.seq >= last) {
                    self.synced_at = None;
                    self.events.push_back(CloudEvent::Synced);
                }
                Ok(())
            }
            Body::Ack(ack) => Err(Violation(format!("ack of batch {} that is not under way", ack.seq))),
            Body::Reports(reports) => {
                self.reports_open += reports.reports.len();
                if self.reports_open > WINDOW_REPORTS {
                    return Err(Violation(format!("more than {WINDOW_REPORTS} reports under way")));
                }
                for report in reports.reports {
                    if report.payload.len() > MAX_REPORT {
                        return Err(Violation(format!("report of {} bytes", report.payload.len())));
                    }
                    self.events.push_back(CloudEvent::Report(report));
                }
                Ok(())
            }
            Body::Request(request) => {
                self.questions_open += 1;
                if self.questions_open > WINDOW_QUESTIONS {
                    return Err(Violation(format!("more than {WINDOW_QUESTIONS} questions under way")));
                }
                self.events.push_back(CloudEvent::Question(request));
                Ok(())
            }
            Body::Ping(Ping { .. }) => {
                // One pong answers any number of pings.
                if self.answers_pings
                    && !self.queues.lane(Lane::Control).iter().any(|body| matches!(body, Body::Pong(_)))
                {
                    self.queues.push(Body::Pong(Pong::default()));
                }
                Ok(())
            }
            Body::Pong(Pong { number }) => {
                if self.called && number == self.calls {
                    self.called = false;
                    self.events.push_back(CloudEvent::Present);
                }
                Ok(())
            }
            Body::Hello(_)
            | Body::Welcome(_)
            | Body::InventoryRequest(_)
            | Body::Batch(_)
            | Body::Synced(_)
            | Body::ReportAcks(_)
            | Body::Response(_) => {
                Err(Violation("frame that only the cloud sends, or a second hello".to_owned()))
            }
        }
    }

    fn handle_hello(&mut self, hello: &Hello, now: Instant) -> Result<(), Violation> {
        if hello.node != self.node {
            let detail = format!("the certificate is that of node {:?}, not of {:?}", self.node, hello.node);
            self.close(GoodbyeReason::Forbidden, detail.clone());
            return Err(Violation(detail));
        }
        if hello.protocol_min > PROTOCOL.1 || hello.protocol_max < PROTOCOL.0 {
            let older = if hello.protocol_max < PROTOCOL.0 { "edgecore" } else { "cloudcore" };
            let edge: String = hello.software.chars().take(MAX_NAME).collect();
            let detail = format!(
                "the edge ({edge}) speaks protocol {} to {}, the cloud ({}) {} to {}: upgrade {older}",
                hello.protocol_min, hello.protocol_max, self.software, PROTOCOL.0, PROTOCOL.1
            );
            self.close(GoodbyeReason::Protocol, detail.clone());
            return Err(Violation(detail));
        }
        let seen = Seen::from_positions(&hello.seen).map_err(|error| Violation(error.to_string()))?;
        self.timers = Timers::cloud(Duration::from_millis(hello.heartbeat_ms.into()), now);
        self.queues.push(Body::Welcome(Welcome {
            protocol: hello.protocol_max.min(PROTOCOL.1),
            software: self.software.clone(),
            unix_ms: self.unix_ms,
            dictionary: dictionary::common(hello.dictionary),
            sync_config: self.sync_config.take().map(|map| map.to_string()),
        }));
        self.dictionary = dictionary::common(hello.dictionary);
        let digest = Digest::from_halves(hello.digest_count, hello.digest_high, hello.digest_low);
        self.phase = Phase::AwaitView { digest, seen };
        let software = hello.software.chars().take(MAX_TEXT).collect();
        self.events.push_back(CloudEvent::Connected { software });
        Ok(())
    }

    fn handle_inventory(&mut self, inventory: Inventory) -> Result<(), Violation> {
        let Phase::AwaitInventory { entries } = &mut self.phase else {
            return Err(Violation("inventory that was not asked for".to_owned()));
        };
        for entry in inventory.entries {
            let key = entry.key.parse::<ResourceKey>().map_err(|error| Violation(error.to_string()))?;
            self.dirty.entry(key.clone()).or_insert(None);
            entries.insert(key, Sent { hash: entry.hash, bytes: None });
        }
        if entries.len() > INVENTORY_ENTRIES {
            return Err(Violation(format!("inventory of more than {INVENTORY_ENTRIES} entries")));
        }
        if inventory.last {
            self.sent = std::mem::take(entries);
            self.phase = Phase::Syncing;
        }
        Ok(())
    }

    /// The view's object of this key may have changed, appeared or gone.
    pub fn mark_dirty(&mut self, key: ResourceKey) {
        self.mark(key, None);
    }

    /// As [`mark_dirty`](Self::mark_dirty), heard of at `at`.
    pub fn mark_changed(&mut self, key: ResourceKey, at: Instant) {
        self.mark(key, Some(at));
    }

    fn mark(&mut self, key: ResourceKey, at: Option<Instant>) {
        // Before the view is compared, everything counts as dirty anyway.
        if !matches!(self.phase, Phase::AwaitHello | Phase::AwaitView { .. }) {
            // What waits already waits since it was marked first.
            self.dirty.entry(key).or_insert(at);
        }
    }

    /// Whether the edge is known to hold nothing of this key, and nothing of it is on the way.
    pub fn lacks(&self, key: &ResourceKey) -> bool {
        matches!(self.phase, Phase::Live)
            && self.under_way() == 0
            && !self.dirty.contains_key(key)
            && !self.sent.contains_key(key)
    }

    /// Of the changes in the newest batch, when the oldest was heard of; `None` if of none of them.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// The next frame to send, whatever its lane.
    pub fn poll_frame(&mut self, view: &dyn View) -> Option<Body> {
        Lane::ALL.into_iter().find_map(|lane| self.poll_lane(lane, view))
    }

    /// The next frame to send on one lane. Control goes first: nothing may be sent before the welcome.
    pub fn poll_lane(&mut self, lane: Lane, view: &dyn View) -> Option<Body> {
        if let Some(body) = self.queues.pop(lane) {
            match &body {
                Body::ReportAcks(acks) => {
                    self.reports_open = self.reports_open.saturating_sub(acks.acks.len());
                }
                Body::Response(_) => self.questions_open = self.questions_open.saturating_sub(1),
                _ => {}
            }
            return Some(body);
        }
        if lane != Lane::Objects {
            return None;
        }
        if let Phase::AwaitView { digest, seen } = &self.phase {
            return match view.freshness(seen) {
                Freshness::Behind => None,
                Freshness::Current => Some(self.compare(*digest, view)),
                Freshness::WentBack => Some(self.ask_inventory(&view.objects(), true)),
            };
        }
        if !matches!(self.phase, Phase::Syncing | Phase::Live) {
            return None;
        }
        let under_way = self.next_seq - 1 - self.acked;
        if under_way < WINDOW_BATCHES as u64
            && let Some(batch) = self.next_batch(view)
        {
            return Some(Body::Batch(batch));
        }
        if matches!(self.phase, Phase::Syncing) && self.dirty.is_empty() {
            self.enter_live();
            return Some(Body::Synced(Synced {}));
        }
        None
    }

    fn compare(&mut self, digest: Digest, view: &dyn View) -> Body {
        // Objects first: what the view gains while we look is marked dirty by its owner.
        let objects = view.objects();
        let own: Digest = objects.iter().map(|object| (&object.key, object.version.hash)).collect();
        if own == digest {
            self.sent = objects
                .into_iter()
                .map(|object| (object.key, Sent { hash: object.version.hash, bytes: Some(object.bytes) }))
                .collect();
            self.enter_live();
            return Body::Synced(Synced {});
        }
        self.ask_inventory(&objects, false)
    }

    fn ask_inventory(&mut self, objects: &[Object], forget: bool) -> Body {
        self.dirty = objects.iter().map(|object| (object.key.clone(), None)).collect();
        self.phase = Phase::AwaitInventory { entries: HashMap::new() };
        Body::InventoryRequest(InventoryRequest { forget })
    }

    fn enter_live(&mut self) {
        self.phase = Phase::Live;
        let last = self.next_seq - 1;
        if self.acked == last {
            self.events.push_back(CloudEvent::Synced);
        } else {
            self.synced_at = Some(last);
        }
    }

    fn next_batch(&mut self, view: &dyn View) -> Option<Batch> {
        let mut changes = Vec::new();
        let mut heard: Option<Instant> = None;
        let (mut size, mut objects) = (0, 0);
        // With one object more than these it is within BATCH_OBJECTS.
        while size < BATCH_BYTES && objects < MAX_FRAME && changes.len() < BATCH_CHANGES {
            let Some((key, at)) = self.next_key(view) else { break };
            if let Some((change, length, object)) = self.change(&key, view) {
                size += length;
                objects += object;
                heard = heard.into_iter().chain(at).min();
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return None;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.heard = heard;
        Some(Batch { seq, changes })
    }

    /// The next one that does not wait, with when it was heard of; `None` for that of one that has waited on purpose.
    fn next_key(&mut self, view: &dyn View) -> Option<(ResourceKey, Option<Instant>)> {
        loop {
            if let Some(key) = self.holds.pop_due() {
                return Some((key, None));
            }
            let (key, at) = self.dirty.pop_first()?;
            // The difference that a session begins with goes down at once.
            if self.holds.is_idle() || !matches!(self.phase, Phase::Live) {
                return Some((key, at));
            }
            match self.turn(&key, view) {
                Turn::After(class) => self.holds.hold(class, key),
                // Before it: a new pod is to find what it names as that is now.
                Turn::New if self.holds.end_all() => {
                    self.dirty.insert(key, at);
                }
                Turn::New | Turn::Now => {
                    self.holds.forget(&key);
                    return Some((key, at));
                }
            }
        }
    }

    fn turn(&self, key: &ResourceKey, view: &dyn View) -> Turn {
        let object = view.get(key);
        let class = match (self.sent.get(key), &object) {
            (None, Some(_)) => return Turn::New,
            (Some(held), Some(object)) if held.hash != object.version.hash => {
                view.class(key, &object.bytes, false)
            }
            (Some(Sent { bytes: Some(bytes), .. }), None) if view.knows(key) => view.class(key, bytes, true),
            _ => None,
        };
        class.filter(|class| self.holds.is_held(*class)).map_or(Turn::Now, Turn::After)
    }

    /// What has to be sent for one key, with its size and that of the object at the edge; `None` when the edge has it right.
    fn change(&mut self, key: &ResourceKey, view: &dyn View) -> Option<(Change, usize, usize)> {
        let held = self.sent.get(key);
        let Some(object) = view.get(key) else {
            held.filter(|_| view.knows(key))?;
            self.sent.remove(key);
            let delete = Delete { resource_version: view.newest_change(key.kind()) };
            return Some((change(key, Action::Delete(delete)), key.as_str().len(), 0));
        };
        if held.is_some_and(|held| held.hash == object.version.hash) {
            return None;
        }
        let patch = held.filter(|_| !self.whole).and_then(|held| self.patch(held, &object));
        let action = patch.unwrap_or_else(|| {
            Action::Put(Put {
                resource_version: object.version.resource_version,
                object: object.bytes.clone(),
            })
        });
        let length = key.as_str().len()
            + match &action {
                Action::Put(put) => put.object.len(),
                Action::Patch(patch) => patch.patch.len(),
                Action::Delete(_) => 0,
            };
        let whole = object.bytes.len();
        self.sent.insert(key.clone(), Sent { hash: object.version.hash, bytes: Some(object.bytes) });
        Some((change(key, action), length, whole))
    }

    /// A patch against what the edge holds, where that is known and the result is shorter.
    fn patch(&self, held: &Sent, object: &Object) -> Option<Action> {
        let base = held.bytes.as_ref()?;
        let patch = match &self.patches {
            Some(shared) => shared.patch((held.hash, base), (object.version, &object.bytes)),
            None => patches::make(base, &object.bytes),
        };
        Some(Action::Patch(Patch {
            resource_version: object.version.resource_version,
            base: held.hash,
            hash: object.version.hash,
            length: u32::try_from(object.bytes.len()).ok()?,
            patch: patch?,
        }))
    }

    /// What the driver has to act on.
    pub fn poll_event(&mut self) -> Option<CloudEvent> {
        lane::pop(&mut self.events)
    }

    /// The API server has taken these reports, or refused them for good.
    pub fn finish_reports(&mut self, acks: Vec<ReportAck>) {
        if let Some(Body::ReportAcks(waiting)) = self.queues.lane(Lane::Status).back_mut() {
            waiting.acks.extend(acks);
        } else if !acks.is_empty() {
            self.queues.push(Body::ReportAcks(ReportAcks { acks }));
        }
    }

    pub fn answer(&mut self, response: Response) {
        self.queues.push(Body::Response(response));
    }

    /// Asks the edge whether this is its session, from now on: [`CloudEvent::Present`] says that it was, at a moment after
    /// this. What lies in the socket by now does not say that: the edge may have gone on to another replica since.
    pub fn call(&mut self) {
        self.calls += 1;
        self.called = true;
        self.queues.push(Body::Ping(Ping { number: self.calls }));
    }

    /// Queues a goodbye; nothing is to be sent after it.
    pub fn close(&mut self, reason: GoodbyeReason, detail: String) {
        self.dirty.clear();
        self.holds.clear();
        self.phase = Phase::Closed;
        self.queues.close(Body::Goodbye(Goodbye { reason: reason.into(), detail }));
    }

    /// Batches sent and not acked yet, for metrics.
    pub fn under_way(&self) -> u64 {
        self.next_seq - 1 - self.acked
    }

    /// For [`crate::codec::encode_with`].
    pub fn dictionary(&self) -> u32 {
        self.dictionary
    }

    pub fn deadline(&self) -> Instant {
        let timers = self.timers.deadline();
        self.holds.deadline().map_or(timers, |end| end.min(timers))
    }

    /// Bytes came last at `at`, even if they are no whole frame yet: the peer was not silent then. To be told before
    /// [`handle_deadline`](Self::handle_deadline).
    pub fn handle_progress(&mut self, at: Instant) {
        // Whoever has not said who it is does not stay for sending byte by byte.
        if !matches!(self.phase, Phase::AwaitHello) {
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
    /// The edge is silent for two heartbeats: close the link.
    pub fn handle_deadline(&mut self, now: Instant) -> Result<(), Dead> {
        if self.timers.check(now)? && !matches!(self.phase, Phase::AwaitHello | Phase::Closed) {
            self.queues.push(Body::Ping(Ping::default()));
        }
        Ok(())
    }
}

fn change(key: &ResourceKey, action: Action) -> Change {
    Change { key: key.as_str().to_owned(), action: Some(action) }
}
