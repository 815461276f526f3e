//! Both ends of a session, told anything in any order, in virtual time. As their drivers do, each is left after a violation.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proto::{
    Digest, Object, Report, ResourceKey, Seen, codec, dictionary,
    limits::{BATCH_CHANGES, BATCH_OBJECTS, MAX_OBJECT, WINDOW_BATCHES, WINDOW_QUESTIONS, WINDOW_REPORTS},
    message::{
        Ack, Action, Answer, Batch, Body, Change, Delete, GoodbyeReason, Hello, Inventory, InventoryEntry,
        InventoryRequest, Patch, Ping, Put, Question, ReportAck, ReportAcks, Reports, Request, Response,
        Synced, Welcome,
    },
    resource::content_hash,
    session::{CloudEvent, CloudSession, EdgeEvent, EdgeSession, Freshness, View, edge::Desired},
};

use crate::input::Input;

const NODE: &str = "edge-1";
const KEYS: u8 = 8;

/// When each input begins.
fn begin() -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now)
}

fn key(number: u8) -> ResourceKey {
    format!("ConfigMap/default/c{}", number % KEYS).parse().unwrap()
}

fn content(number: u8) -> Bytes {
    match number {
        // Now and then a large one.
        255 => vec![b'x'; MAX_OBJECT].into(),
        number => format!("{{\"data\":{{\"k\":\"{number}\",\"same\":\"{}\"}}}}", "y".repeat(64)).into(),
    }
}

#[derive(Default)]
struct Needed {
    objects: BTreeMap<ResourceKey, Object>,
    seen: u64,
    freshness: Cell<u8>,
}

impl View for Needed {
    fn freshness(&self, _: &Seen) -> Freshness {
        [Freshness::Current, Freshness::Behind, Freshness::WentBack][usize::from(self.freshness.get() % 3)]
    }
    fn get(&self, key: &ResourceKey) -> Option<Object> {
        self.objects.get(key).cloned()
    }
    fn objects(&self) -> Vec<Object> {
        self.objects.values().cloned().collect()
    }
    fn knows(&self, key: &ResourceKey) -> bool {
        !key.as_str().ends_with('7')
    }
    fn newest_change(&self, _: &str) -> u64 {
        self.seen
    }
}

pub(crate) fn cloud_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![6, 1, 1, 6, 2, 2, 1, 0, 8, 8, 8, 2, 1, 1, 1, 3, 1, 4, 1, 8, 9, 5, 10, 8, 7, 1, 8, 3, 2],
        vec![1, 1, 8, 13, 1, 8, 13, 2, 8, 2, 2, 0, 2, 1, 8, 11, 30, 11, 30, 11, 60, 12, 8],
        [&[1, 0, 8, 0, 3][..], &[0, 0x5a, 0], &[8]].concat(),
    ]
}

/// What the cloud's end has handed out and what it has said, beside what it may.
#[derive(Default)]
struct CloudLedger {
    reports: VecDeque<u64>,
    questions: VecDeque<u64>,
    finished: usize,
    batches: u64,
    welcomed: bool,
    ended: bool,
}

impl CloudLedger {
    fn drain(&mut self, cloud: &mut CloudSession, view: &Needed, most: usize) {
        for _ in 0..most {
            while let Some(event) = cloud.poll_event() {
                match event {
                    CloudEvent::Report(report) => self.reports.push_back(report.id),
                    CloudEvent::Question(request) => self.questions.push_back(request.id),
                    CloudEvent::Synced => assert!(self.welcomed),
                    CloudEvent::Connected { .. } | CloudEvent::Present | CloudEvent::Goodbye { .. } => {}
                }
            }
            assert!(self.reports.len() <= WINDOW_REPORTS && self.questions.len() <= WINDOW_QUESTIONS);
            let Some(body) = cloud.poll_frame(view) else { return };
            assert!(!self.ended, "{body:?} after the goodbye");
            match &body {
                Body::Goodbye(_) => self.ended = true,
                Body::Welcome(welcome) => {
                    assert!(!std::mem::replace(&mut self.welcomed, true));
                    assert_eq!(cloud.dictionary(), welcome.dictionary);
                    assert!((dictionary::FIRST..=dictionary::NEWEST).contains(&welcome.dictionary));
                }
                _ => assert!(self.welcomed, "{body:?} before the welcome"),
            }
            match &body {
                Body::Batch(batch) => {
                    self.batches += 1;
                    assert_eq!(batch.seq, self.batches);
                    assert!(cloud.under_way() <= WINDOW_BATCHES as u64);
                    assert!((1..=BATCH_CHANGES).contains(&batch.changes.len()));
                    let put = batch.changes.iter().map(|change| match &change.action {
                        Some(Action::Put(put)) => put.object.len(),
                        Some(Action::Patch(patch)) => patch.length as usize,
                        Some(Action::Delete(_)) => 0,
                        None => panic!("a change with no action"),
                    });
                    assert!(put.sum::<usize>() <= BATCH_OBJECTS);
                }
                Body::ReportAcks(acks) => {
                    assert!((1..=self.finished).contains(&acks.acks.len()));
                    self.finished -= acks.acks.len();
                }
                _ => {}
            }
            codec::encode_with(body, cloud.dictionary()).unwrap();
        }
    }
}

pub(crate) fn cloud(bytes: &[u8]) {
    let (mut input, mut now) = (Input::new(bytes), begin());
    let mut cloud = CloudSession::new(NODE.to_owned(), "cloudcore".to_owned(), 1, now);
    let (mut view, mut ledger) = (Needed::default(), CloudLedger::default());
    while !input.is_empty() {
        let said = match input.byte() % 14 {
            0 => match codec::decode(Bytes::copy_from_slice(input.string())) {
                Ok(body) => Some(body),
                // There the driver leaves.
                Err(_) => return,
            },
            1 => Some(Body::Hello(Hello {
                protocol_min: 1,
                protocol_max: 1,
                node: NODE.to_owned(),
                digest_count: input.byte().into(),
                heartbeat_ms: u32::from(input.byte()) << 10,
                dictionary: input.byte().into(),
                ..Hello::default()
            })),
            2 => {
                let entry = |input: &mut Input<'_>| InventoryEntry {
                    key: key(input.byte()).as_str().to_owned(),
                    hash: content_hash(&content(input.byte())),
                };
                let entries = (0..input.byte() % 8).map(|_| entry(&mut input)).collect();
                Some(Body::Inventory(Inventory { entries, last: input.byte() % 2 == 1 }))
            }
            3 => Some(Body::Ack(Ack { seq: input.byte().into() })),
            4 => {
                let reports = (0..input.byte()).map(|id| Report {
                    id: id.into(),
                    kind: 2,
                    key: "Pod/default/p".to_owned(),
                    payload: Bytes::new(),
                });
                Some(Body::Reports(Reports { reports: reports.collect() }))
            }
            5 => Some(Body::Request(Request { id: input.byte().into(), question: None })),
            6 => {
                view.seen += 1;
                let (key, content) = (key(input.byte()), content(input.byte()));
                view.objects.insert(key.clone(), Object::new(key.clone(), view.seen, content));
                cloud.mark_dirty(key);
                None
            }
            7 => {
                view.seen += 1;
                let key = key(input.byte());
                view.objects.remove(&key);
                cloud.mark_dirty(key);
                None
            }
            8 => {
                ledger.drain(&mut cloud, &view, usize::from(input.byte()) + 1);
                None
            }
            9 => {
                let done: Vec<_> =
                    ledger.reports.drain(..ledger.reports.len().min(input.byte().into())).collect();
                ledger.finished += done.len();
                cloud.finish_reports(
                    done.into_iter().map(|id| ReportAck { id, refused: String::new() }).collect(),
                );
                None
            }
            10 => {
                if let Some(id) = ledger.questions.pop_front() {
                    cloud.answer(Response { id, answer: Some(Answer::Refused("no".to_owned())) });
                }
                None
            }
            11 => {
                now += Duration::from_secs(input.byte().into());
                if input.byte() % 2 == 1 {
                    cloud.handle_progress(now);
                }
                if cloud.handle_deadline(now).is_err() {
                    return;
                }
                assert!(cloud.deadline() >= begin());
                None
            }
            12 => {
                cloud.close(GoodbyeReason::ShuttingDown, String::new());
                ledger.finished = 0;
                // The driver sends this one frame.
                ledger.drain(&mut cloud, &view, 2);
                return;
            }
            _ => {
                view.freshness.set(input.byte());
                None
            }
        };
        if let Some(body) = said
            && cloud.handle_frame(body, now).is_err()
        {
            break;
        }
    }
    ledger.drain(&mut cloud, &view, usize::MAX);
}

pub(crate) fn edge_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![9, 1, 1, 2, 1, 0, 1, 1, 8, 9, 2, 1, 1, 1, 2, 4, 8, 9, 2, 1, 2, 1, 8, 9],
        vec![1, 1, 3, 9, 4, 10, 3, 9, 5, 2, 11, 9, 6, 1, 12, 70, 0, 12, 140, 1, 13],
        [&[1, 1, 0, 3][..], &[0, 0x5a, 0], &[9]].concat(),
    ]
}

/// The edge's disk and outbox, and what the edge's end has said.
#[derive(Default)]
struct EdgeLedger {
    stored: BTreeMap<ResourceKey, Object>,
    waiting: VecDeque<(u64, Vec<Desired>)>,
    applied: u64,
    committed: u64,
    acked: u64,
    reports_open: usize,
    greeted: bool,
    ended: bool,
}

impl EdgeLedger {
    fn events(&mut self, edge: &mut EdgeSession) {
        while let Some(event) = edge.poll_event() {
            match event {
                EdgeEvent::Apply { seq, changes, .. } => {
                    assert_eq!(seq, self.applied + 1, "batches are applied in order");
                    self.applied = seq;
                    let mut objects = 0;
                    for change in &changes {
                        if let Desired::Put(object) = change {
                            assert_eq!(object.version.hash, content_hash(&object.bytes), "{object:?}");
                            objects += object.bytes.len();
                        }
                    }
                    assert!(changes.len() <= BATCH_CHANGES && objects <= BATCH_OBJECTS);
                    self.waiting.push_back((seq, changes));
                    assert!(self.waiting.len() <= 2 * WINDOW_BATCHES, "more than the window waits");
                }
                EdgeEvent::InventoryWanted => {
                    let held: Vec<_> =
                        self.stored.values().map(|object| (object.key.clone(), object.version)).collect();
                    edge.inventory(&held);
                }
                EdgeEvent::ReportsDone(acks) => {
                    assert!(acks.len() <= self.reports_open);
                    self.reports_open -= acks.len();
                }
                EdgeEvent::Connected { .. }
                | EdgeEvent::Synced
                | EdgeEvent::Answered { .. }
                | EdgeEvent::Goodbye { .. } => {
                    assert!(self.applied <= self.committed + 2 * WINDOW_BATCHES as u64);
                }
            }
        }
    }

    fn drain(&mut self, edge: &mut EdgeSession) {
        self.events(edge);
        while let Some(body) = edge.poll_frame() {
            assert!(!self.ended, "{body:?} after the goodbye");
            match &body {
                Body::Hello(_) => assert!(!std::mem::replace(&mut self.greeted, true)),
                Body::Goodbye(_) => self.ended = true,
                Body::Ack(ack) => {
                    assert!(ack.seq <= self.committed, "batch {} is acked and not stored", ack.seq);
                    assert!(ack.seq > self.acked);
                    self.acked = ack.seq;
                }
                _ => assert!(self.greeted, "{body:?} before the hello"),
            }
            codec::encode_with(body, edge.dictionary()).unwrap();
            self.events(edge);
        }
    }

    /// One batch becomes durable.
    fn commit(&mut self, edge: &mut EdgeSession) {
        let Some((seq, changes)) = self.waiting.pop_front() else { return };
        for change in changes {
            match change {
                Desired::Put(object) => drop(self.stored.insert(object.key.clone(), object)),
                Desired::Delete(key) => drop(self.stored.remove(&key)),
            }
        }
        self.committed = seq;
        edge.committed(seq);
    }
}

/// A change as a cloud makes it, or nearly so.
fn change(input: &mut Input<'_>, ledger: &EdgeLedger) -> Change {
    let (kind, key, target) = (input.byte(), key(input.byte()), content(input.byte()));
    let action = match kind % 5 {
        0 | 1 => Some(Action::Put(Put { resource_version: kind.into(), object: target })),
        2 => Some(Action::Delete(Delete { resource_version: kind.into() })),
        3 => {
            let base = ledger.stored.get(&key).map(|object| object.bytes.clone()).unwrap_or_default();
            Some(Action::Patch(Patch {
                resource_version: kind.into(),
                base: content_hash(&base),
                hash: content_hash(&target),
                length: u32::try_from(target.len()).unwrap().wrapping_add((kind >> 6).into()),
                patch: codec::make_patch(&base, &target).unwrap(),
            }))
        }
        _ => None,
    };
    Change { key: key.as_str().to_owned(), action }
}

pub(crate) fn edge(bytes: &[u8]) {
    let (mut input, mut now) = (Input::new(bytes), begin());
    let held = (Digest::default(), Seen::default());
    let mut edge = EdgeSession::new(NODE, "edgecore", held, Duration::from_secs(70), now);
    let mut ledger = EdgeLedger::default();
    let mut sent = 0_u64;
    while !input.is_empty() {
        let said = match input.byte() % 14 {
            0 => match codec::decode(Bytes::copy_from_slice(input.string())) {
                Ok(body) => Some(body),
                // There the driver leaves.
                Err(_) => return,
            },
            1 => Some(Body::Welcome(Welcome { protocol: input.byte().into(), ..Welcome::default() })),
            2 => {
                let step = u64::from(input.byte() % 4);
                let changes = (0..input.byte() % 4).map(|_| change(&mut input, &ledger)).collect();
                sent += step;
                Some(Body::Batch(Batch { seq: sent, changes }))
            }
            3 => Some(Body::InventoryRequest(InventoryRequest { forget: input.byte() % 2 == 1 })),
            4 => Some(Body::Synced(Synced {})),
            5 => {
                let acks = (0..input.byte()).map(|id| ReportAck { id: id.into(), refused: String::new() });
                Some(Body::ReportAcks(ReportAcks { acks: acks.collect() }))
            }
            6 => Some(Body::Response(Response { id: input.byte().into(), answer: None })),
            7 => Some(Body::Ping(Ping::default())),
            8 => {
                ledger.events(&mut edge);
                ledger.commit(&mut edge);
                None
            }
            9 => {
                ledger.drain(&mut edge);
                None
            }
            10 => {
                ledger.events(&mut edge);
                let count = edge.report_room().min(input.byte().into());
                let report =
                    Report { id: 1, kind: 2, key: "Pod/default/p".to_owned(), payload: Bytes::new() };
                edge.report(vec![report; count]);
                ledger.reports_open += count;
                assert!(ledger.reports_open <= WINDOW_REPORTS);
                None
            }
            11 => {
                edge.ask(Question::Certificate(Bytes::from_static(b"csr")));
                None
            }
            12 => {
                now += Duration::from_secs(input.byte().into());
                if input.byte() % 2 == 1 {
                    edge.handle_progress(now);
                }
                if edge.handle_deadline(now).is_err() {
                    return;
                }
                None
            }
            _ => {
                edge.close(GoodbyeReason::ShuttingDown, String::new());
                ledger.greeted = true;
                ledger.drain(&mut edge);
                return;
            }
        };
        if let Some(body) = said {
            let stored = |key: &ResourceKey| ledger.stored.get(key).cloned();
            if edge.handle_frame(body, &stored, now).is_err() {
                break;
            }
        }
    }
    ledger.drain(&mut edge);
}
