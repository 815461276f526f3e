//! Both ends in one thread, with virtual time and a link that can be cut between any two frames.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{cloud::*, edge::*};
use crate::{Digest, Object, ResourceKey, Seen, codec, message::*, resource::content_hash};

const HEARTBEAT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct TestView {
    objects: BTreeMap<ResourceKey, Object>,
    incomplete: bool,
    went_back: bool,
    unreadable: BTreeSet<ResourceKey>,
    /// The newest resource version that this replica has seen.
    seen: u64,
}

impl TestView {
    fn put(&mut self, key: &str, content: &str) -> ResourceKey {
        self.seen += 1;
        let key: ResourceKey = key.parse().unwrap();
        let bytes = Bytes::from(format!("{{\"content\":\"{content}\"}}"));
        self.objects.insert(key.clone(), Object::new(key.clone(), self.seen, bytes));
        key
    }

    fn delete(&mut self, key: &str) -> ResourceKey {
        self.seen += 1;
        let key: ResourceKey = key.parse().unwrap();
        self.objects.remove(&key);
        key
    }
}

impl TestView {
    fn digest(&self) -> Digest {
        self.objects.values().map(|object| (&object.key, object.version.hash)).collect()
    }
}

impl View for TestView {
    fn freshness(&self, seen: &Seen) -> Freshness {
        match seen.iter().any(|(_, version)| version > self.seen) {
            _ if self.incomplete => Freshness::Behind,
            false => Freshness::Current,
            true if self.went_back => Freshness::WentBack,
            true => Freshness::Behind,
        }
    }
    fn get(&self, key: &ResourceKey) -> Option<Object> {
        self.objects.get(key).cloned()
    }
    fn objects(&self) -> Vec<Object> {
        self.objects.values().cloned().collect()
    }
    fn knows(&self, key: &ResourceKey) -> bool {
        !self.unreadable.contains(key)
    }
    fn newest_change(&self, _: &str) -> u64 {
        self.seen
    }
    /// As its content says, whether it is gone or not.
    fn class(&self, _: &ResourceKey, bytes: &[u8], _: bool) -> Option<usize> {
        let names = ["critical", "standard", "batch"];
        names.iter().position(|name| String::from_utf8_lossy(bytes).contains(name))
    }
}

/// The edge's store: what is committed survives a cut.
#[derive(Default)]
struct TestStore {
    objects: RefCell<BTreeMap<ResourceKey, Object>>,
    seen: RefCell<Seen>,
}

impl TestStore {
    fn held(&self) -> (Digest, Seen) {
        (self.digest(), self.seen.borrow().clone())
    }

    fn digest(&self) -> Digest {
        self.objects.borrow().values().map(|object| (&object.key, object.version.hash)).collect()
    }
}

struct Pair {
    now: Instant,
    cloud: CloudSession,
    edge: EdgeSession,
    down: VecDeque<Bytes>,
    up: VecDeque<Bytes>,
    reports: Vec<Report>,
    done: Vec<u64>,
    bytes_down: usize,
    synced: bool,
    batches: u64,
    apply: VecDeque<(u64, Vec<Desired>, Seen)>,
}

impl Pair {
    fn new(store: &TestStore) -> Self {
        let now = Instant::now();
        Self {
            now,
            cloud: CloudSession::new("n1".into(), "cloudcore test".into(), 1, now).sharing(Arc::default()),
            edge: EdgeSession::new("n1", "edgecore test", store.held(), HEARTBEAT, now),
            down: VecDeque::new(),
            up: VecDeque::new(),
            reports: Vec::new(),
            done: Vec::new(),
            bytes_down: 0,
            synced: false,
            batches: 0,
            apply: VecDeque::new(),
        }
    }

    /// Moves one frame or does one commit; false when there is nothing left to do.
    fn step(&mut self, view: &TestView, store: &TestStore) -> bool {
        let mut moved = false;
        while let Some(body) = self.cloud.poll_frame(view) {
            self.down.push_back(codec::encode_with(body, self.cloud.dictionary()).unwrap());
            moved = true;
        }
        while let Some(body) = self.edge.poll_frame() {
            self.up.push_back(codec::encode_with(body, self.edge.dictionary()).unwrap());
            moved = true;
        }
        if let Some(frame) = self.down.pop_front() {
            self.bytes_down += frame.len();
            let held = |key: &ResourceKey| store.objects.borrow().get(key).cloned();
            self.edge.handle_frame(codec::decode(frame).unwrap(), &held, self.now).unwrap();
            moved = true;
        }
        if let Some(frame) = self.up.pop_front() {
            self.cloud.handle_frame(codec::decode(frame).unwrap(), self.now).unwrap();
            moved = true;
        }
        while let Some(event) = self.edge.poll_event() {
            moved = true;
            match event {
                EdgeEvent::InventoryWanted => {
                    let held: Vec<_> = store
                        .objects
                        .borrow()
                        .values()
                        .map(|object| (object.key.clone(), object.version))
                        .collect();
                    self.edge.inventory(&held);
                }
                EdgeEvent::Apply { seq, changes, seen } => self.apply.push_back((seq, changes, seen)),
                EdgeEvent::ReportsDone(acks) => self.done.extend(acks.into_iter().map(|ack| ack.id)),
                EdgeEvent::Connected { .. } | EdgeEvent::Synced | EdgeEvent::Answered { .. } => {}
                EdgeEvent::Goodbye { reason, detail } => panic!("{reason:?} {detail}"),
            }
        }
        while let Some(event) = self.cloud.poll_event() {
            moved = true;
            match event {
                CloudEvent::Report(report) => {
                    self.cloud.finish_reports(vec![ReportAck { id: report.id, refused: String::new() }]);
                    self.reports.push(report);
                }
                CloudEvent::Synced => self.synced = true,
                CloudEvent::Connected { .. } | CloudEvent::Present | CloudEvent::Question(_) => {}
                CloudEvent::Goodbye { reason, detail } => panic!("{reason:?} {detail}"),
            }
        }
        moved
    }

    /// The disk of the edge: one batch becomes durable.
    fn commit(&mut self, store: &TestStore) -> bool {
        let Some((seq, changes, seen)) = self.apply.pop_front() else { return false };
        *store.seen.borrow_mut() = seen;
        self.batches += 1;
        let mut objects = store.objects.borrow_mut();
        for change in changes {
            match change {
                Desired::Put(object) => {
                    assert_eq!(object.version.hash, content_hash(&object.bytes));
                    objects.insert(object.key.clone(), object);
                }
                Desired::Delete(key) => {
                    objects.remove(&key);
                }
            }
        }
        self.edge.committed(seq);
        true
    }

    fn settle(&mut self, view: &TestView, store: &TestStore) {
        for _ in 0..100_000 {
            if !self.step(view, store) && !self.commit(store) {
                return;
            }
        }
        panic!("does not settle");
    }
}

#[test]
fn first_contact_then_deltas_then_resume() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    for n in 0..1000 {
        view.put(&format!("Pod/default/web-{n}"), &format!("{n}").repeat(50));
    }
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    assert!(pair.synced && pair.edge.is_synced());
    assert_eq!(view.digest(), store.digest());

    pair.bytes_down = 0;
    let key = view.put("Pod/default/web-7", &format!("{}x", "7".repeat(50)));
    pair.cloud.mark_dirty(key);
    pair.settle(&view, &store);
    assert_eq!(view.digest(), store.digest());
    assert!(pair.bytes_down < 120, "a one-byte change took {} bytes", pair.bytes_down);

    let mut again = Pair::new(&store);
    again.settle(&view, &store);
    assert!(again.synced);
    assert!(again.bytes_down < 60, "a resume with nothing changed took {} bytes", again.bytes_down);
}

#[test]
fn a_batch_tells_when_its_oldest_change_was_heard_of() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    for name in ["a", "b", "c"] {
        view.put(&format!("ConfigMap/default/{name}"), "0");
    }
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    assert_eq!(pair.cloud.heard(), None, "nobody heard of what the first difference sends");
    let at = |millis| pair.now + Duration::from_millis(millis);
    let (early, late, later) = (at(1), at(2), at(3));
    for (name, heard) in [("a", late), ("b", early), ("b", later), ("c", late)] {
        // Of c nothing is to be sent: it is as it was.
        let content = if name == "c" { "0" } else { "1" };
        pair.cloud.mark_changed(view.put(&format!("ConfigMap/default/{name}"), content), heard);
    }
    pair.settle(&view, &store);
    assert_eq!((pair.cloud.heard(), view.digest()), (Some(early), store.digest()));
    let key = view.put("ConfigMap/default/a", "2");
    pair.cloud.mark_dirty(key);
    pair.settle(&view, &store);
    assert_eq!(pair.cloud.heard(), None);
}

#[test]
fn whole_means_that_nothing_is_patched() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    let text = (0..400).map(|n| (n * 7919 % 1000).to_string()).collect::<Vec<_>>().join(" ");
    view.put("ConfigMap/default/a", &text);
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    for (whole, more) in [(false, "b"), (true, "c"), (false, "d")] {
        pair.cloud.send_whole(whole);
        pair.bytes_down = 0;
        let key = view.put("ConfigMap/default/a", &format!("{text}{more}"));
        pair.cloud.mark_dirty(key);
        pair.settle(&view, &store);
        assert_eq!(view.digest(), store.digest());
        assert_eq!(pair.bytes_down > 500, whole, "{} bytes", pair.bytes_down);
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// With five seconds for batch, and a thousand for critical.
fn holding(view: &TestView, store: &TestStore) -> Pair {
    let mut pair = Pair::new(store);
    pair.cloud.hold([1000 * SECOND, Duration::ZERO, 5 * SECOND]);
    pair.settle(view, store);
    assert!(pair.synced);
    pair
}

impl Pair {
    fn wait(&mut self, time: Duration, view: &TestView, store: &TestStore) {
        self.now += time;
        self.cloud.set_time(self.now);
        self.settle(view, store);
    }

    fn change(&mut self, view: &mut TestView, key: &str, content: &str) {
        let key = view.put(key, content);
        self.cloud.mark_dirty(key);
    }
}

#[test]
fn changes_of_a_class_go_down_together_at_the_end_of_its_interval() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    for name in ["a", "b", "c"] {
        view.put(&format!("ConfigMap/a/{name}"), "batch 0");
    }
    view.put("ConfigMap/a/d", "standard 0");
    let mut pair = holding(&view, &store);
    let before = store.digest();
    for number in 1..=3 {
        pair.change(&mut view, "ConfigMap/a/a", &format!("batch {number}"));
        pair.settle(&view, &store);
        pair.wait(SECOND, &view, &store);
    }
    pair.change(&mut view, "ConfigMap/a/b", "batch 1");
    pair.cloud.mark_dirty(view.delete("ConfigMap/a/c"));
    pair.wait(SECOND, &view, &store);
    assert_eq!((store.digest(), pair.cloud.held()), (before, [0, 0, 3]));
    // Another class meanwhile.
    pair.change(&mut view, "ConfigMap/a/d", "standard 1");
    pair.settle(&view, &store);
    assert_ne!(store.digest(), before);
    assert_eq!(pair.cloud.deadline(), pair.now + SECOND);
    let batches = pair.batches;
    pair.wait(SECOND, &view, &store);
    assert_eq!((store.digest(), pair.cloud.held()), (view.digest(), [0, 0, 0]));
    assert_eq!(pair.batches, batches + 1);
    // The next interval begins with the next change.
    pair.wait(100 * SECOND, &view, &store);
    pair.change(&mut view, "ConfigMap/a/a", "batch 4");
    pair.settle(&view, &store);
    pair.wait(4 * SECOND, &view, &store);
    assert_ne!(store.digest(), view.digest());
    pair.wait(SECOND, &view, &store);
    assert_eq!(store.digest(), view.digest());
}

#[test]
fn what_the_edge_does_not_have_goes_at_once_and_takes_along_what_waits() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    view.put("ConfigMap/a/a", "batch 0");
    let mut pair = holding(&view, &store);
    pair.change(&mut view, "ConfigMap/a/a", "batch 1");
    pair.settle(&view, &store);
    assert_ne!(store.digest(), view.digest());
    pair.change(&mut view, "Pod/a/a", "batch");
    pair.settle(&view, &store);
    assert_eq!((store.digest(), pair.cloud.held()), (view.digest(), [0; 3]));
}

#[test]
fn other_intervals_count_for_what_waits_already() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    view.put("ConfigMap/a/a", "critical 0");
    view.put("ConfigMap/a/b", "batch 0");
    let mut pair = holding(&view, &store);
    pair.change(&mut view, "ConfigMap/a/a", "critical 1");
    pair.change(&mut view, "ConfigMap/a/b", "batch 1");
    pair.wait(2 * SECOND, &view, &store);
    assert_eq!(pair.cloud.held(), [1, 0, 1]);
    pair.cloud.hold([3 * SECOND, Duration::ZERO, Duration::ZERO]);
    pair.settle(&view, &store);
    assert_eq!(pair.cloud.held(), [1, 0, 0]);
    // A class that it has no more; and one that it gets.
    pair.change(&mut view, "ConfigMap/a/b", "critical 2");
    pair.change(&mut view, "ConfigMap/a/a", "standard 2");
    pair.settle(&view, &store);
    assert_eq!(pair.cloud.held(), [1, 0, 0]);
    assert_ne!(store.digest(), view.digest());
    pair.cloud.hold([Duration::MAX, Duration::MAX, Duration::MAX]);
    assert!(pair.cloud.deadline() < pair.now + 3 * HEARTBEAT);
    pair.cloud.hold([Duration::ZERO; 3]);
    pair.settle(&view, &store);
    assert_eq!(store.digest(), view.digest());
}

#[test]
fn what_waits_is_found_by_the_next_session() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    view.put("ConfigMap/a/a", "batch 0");
    view.put("ConfigMap/a/b", "batch 0");
    let mut pair = holding(&view, &store);
    pair.change(&mut view, "ConfigMap/a/a", "batch 1");
    pair.cloud.mark_dirty(view.delete("ConfigMap/a/b"));
    pair.settle(&view, &store);
    assert_eq!(pair.cloud.held(), [0, 0, 2]);
    let pair = holding(&view, &store);
    assert_eq!((store.digest(), pair.cloud.held()), (view.digest(), [0; 3]));
}

#[test]
fn what_changed_and_changed_back_costs_nothing() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    view.put("ConfigMap/a/a", "batch 0");
    let mut pair = holding(&view, &store);
    pair.change(&mut view, "ConfigMap/a/a", "batch 1");
    pair.settle(&view, &store);
    let bytes = pair.bytes_down;
    pair.change(&mut view, "ConfigMap/a/a", "batch 0");
    pair.wait(10 * SECOND, &view, &store);
    assert_eq!((pair.cloud.held(), pair.bytes_down), ([0; 3], bytes));
}

#[test]
fn the_hello_tells_the_settings() {
    let now = Instant::now();
    let own = DownSettings {
        full: Some(true),
        bandwidth: Some(2000),
        batch_ms: Some(5),
        ..DownSettings::default()
    };
    let kept = DownSettings { compression: Some(false), ..DownSettings::default() };
    let edge = EdgeSession::new("n1", "test", Default::default(), HEARTBEAT, now);
    let mut edge = edge.with_settings(Some(own), Some(kept));
    let frame = codec::encode(edge.poll_frame().unwrap()).unwrap();
    let Ok(Body::Hello(hello)) = codec::decode(frame) else { panic!("no hello") };
    assert_eq!((hello.own, hello.kept), (Some(own), Some(kept)));

    let cloud = CloudSession::new("n1".into(), "test".into(), 1, now);
    let mut cloud = cloud.with_sync_config(Some("a/b".into()));
    cloud.handle_frame(Body::Hello(hello), now).unwrap();
    let welcome = cloud.poll_frame(&TestView::default()).unwrap();
    edge.handle_frame(welcome, &|_| None, now).unwrap();
    let Some(EdgeEvent::Connected { sync_config, .. }) = edge.poll_event() else { panic!("not connected") };
    assert_eq!(sync_config.as_deref(), Some("a/b"));
}

#[test]
fn an_incomplete_cache_deletes_nothing() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    view.put("Pod/default/a", "1");
    Pair::new(&store).settle(&view, &store);
    let mut restarted = TestView { incomplete: true, ..TestView::default() };
    let mut pair = Pair::new(&store);
    pair.settle(&restarted, &store);
    assert!(!pair.synced);
    assert_eq!(store.objects.borrow().len(), 1);
    restarted.incomplete = false;
    restarted.seen = 10;
    pair.settle(&restarted, &store);
    assert!(pair.synced);
    assert!(store.objects.borrow().is_empty());
}

#[test]
fn a_lagging_replica_waits() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    view.put("Pod/default/a", "old");
    view.put("Pod/default/gone", "1");
    let mut lagging = TestView { objects: view.objects.clone(), seen: view.seen, ..TestView::default() };
    view.put("Pod/default/a", "new");
    view.put("Pod/default/b", "new");
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    pair.cloud.mark_dirty(view.delete("Pod/default/gone"));
    pair.settle(&view, &store);
    let mut pair = Pair::new(&store);
    // All but the deletion; then that, too.
    for seen in [lagging.seen, view.seen - 1] {
        lagging.seen = seen;
        pair.settle(&lagging, &store);
        assert!(!pair.synced);
        assert_eq!(view.digest(), store.digest());
    }
    view.put("Pod/default/a", "newest");
    pair.settle(&view, &store);
    assert!(pair.synced);
    assert_eq!(view.digest(), store.digest());
}

#[test]
fn a_restored_api_server_is_believed_in_the_end() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    for name in ["a", "b", "c"] {
        view.put(&format!("Pod/default/{name}"), "1");
    }
    Pair::new(&store).settle(&view, &store);
    let mut restored = TestView { went_back: true, ..TestView::default() };
    restored.put("Pod/default/a", "0");
    let mut pair = Pair::new(&store);
    pair.settle(&restored, &store);
    assert!(pair.synced);
    assert_eq!(restored.digest(), store.digest());
    // What the edge was told before is forgotten.
    let mut again = Pair::new(&store);
    restored.went_back = false;
    again.settle(&restored, &store);
    assert!(again.synced);
}

#[test]
fn what_cannot_be_read_is_kept() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    let key = view.put("ConfigMap/default/a", "1");
    Pair::new(&store).settle(&view, &store);
    view.delete("ConfigMap/default/a");
    view.unreadable.insert(key.clone());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    assert_eq!(store.objects.borrow().len(), 1);
    view.unreadable.clear();
    pair.cloud.mark_dirty(key);
    pair.settle(&view, &store);
    assert!(store.objects.borrow().is_empty());
}

#[test]
fn silence_is_noticed_within_two_heartbeats() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    let start = pair.now;
    let (mut edge_dead, mut cloud_dead) = (None, None);
    while edge_dead.is_none() || cloud_dead.is_none() {
        pair.now += Duration::from_secs(1);
        assert!(pair.now - start < 3 * HEARTBEAT);
        if edge_dead.is_none()
            && pair.now >= pair.edge.deadline()
            && pair.edge.handle_deadline(pair.now).is_err()
        {
            edge_dead = Some(pair.now - start);
        }
        if cloud_dead.is_none()
            && pair.now >= pair.cloud.deadline()
            && pair.cloud.handle_deadline(pair.now).is_err()
        {
            cloud_dead = Some(pair.now - start);
        }
    }
    assert_eq!((edge_dead, cloud_dead), (Some(2 * HEARTBEAT), Some(2 * HEARTBEAT)));
}

#[test]
fn what_is_not_confirmed_is_asked_after_every_few_seconds() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    let sent = pair.now;
    let few = Duration::from_secs(3);
    // What was sent before that is confirmed, and nobody has looked.
    pair.edge.handle_sent(sent.checked_sub(few).unwrap(), 6);
    pair.cloud.handle_sent(sent.checked_sub(few).unwrap(), 6);
    pair.edge.handle_sent(sent, 7);
    pair.cloud.handle_sent(sent, 7);
    for round in 1..4 {
        pair.now = sent + round * few;
        assert_eq!((pair.edge.deadline(), pair.cloud.deadline()), (pair.now, pair.now));
        pair.edge.handle_deadline(pair.now).unwrap();
        pair.cloud.handle_deadline(pair.now).unwrap();
        assert!(matches!(pair.edge.poll_frame(), Some(Body::Ping(_))));
        assert!(matches!(pair.cloud.poll_frame(&view), Some(Body::Ping(_))));
    }
    // That something is heard confirms nothing.
    pair.edge.handle_progress(pair.now);
    pair.edge.handle_confirmed(7);
    assert_eq!(pair.edge.deadline(), pair.now + few);
    pair.edge.handle_confirmed(8);
    pair.cloud.handle_confirmed(8);
    assert_eq!(pair.edge.deadline(), pair.now + HEARTBEAT);
    assert_eq!(pair.cloud.deadline(), pair.now + HEARTBEAT * 5 / 4);
}

#[test]
fn a_confirmation_may_be_that_of_what_was_sent_before() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    let (first, few) = (pair.now, Duration::from_secs(3));
    let second = first + Duration::from_millis(200);
    pair.edge.handle_sent(first, 6);
    pair.edge.handle_sent(second, 6);
    // Of the first alone: the line has been silent since.
    pair.edge.handle_confirmed(7);
    assert_eq!(pair.edge.deadline(), second + few);
    pair.now = second + few;
    pair.edge.handle_deadline(pair.now).unwrap();
    assert!(matches!(pair.edge.poll_frame(), Some(Body::Ping(_))));
    // The ping's own.
    pair.edge.handle_sent(pair.now, 7);
    pair.edge.handle_confirmed(8);
    assert_eq!(pair.edge.deadline(), pair.now + HEARTBEAT);
    // What was sent together is confirmed together.
    pair.edge.handle_sent(pair.now, 8);
    pair.edge.handle_sent(pair.now + Duration::from_millis(20), 8);
    pair.edge.handle_confirmed(9);
    assert_eq!(pair.edge.deadline(), pair.now + HEARTBEAT);
}

#[test]
fn who_is_sending_a_large_frame_is_not_silent() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    for _ in 0..10 {
        pair.now += HEARTBEAT;
        pair.edge.handle_progress(pair.now);
        pair.cloud.handle_progress(pair.now);
        pair.edge.handle_deadline(pair.now).unwrap();
        pair.cloud.handle_deadline(pair.now).unwrap();
        // The cloud is to hear something meanwhile.
        assert!(matches!(pair.edge.poll_frame(), Some(Body::Ping(_))));
    }
    pair.now += 2 * HEARTBEAT;
    assert!(pair.edge.handle_deadline(pair.now).is_err() && pair.cloud.handle_deadline(pair.now).is_err());
}

#[test]
fn an_edge_that_is_called_answers_that_very_call() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    let present = |cloud: &mut CloudSession| {
        std::iter::from_fn(|| cloud.poll_event()).any(|event| event == CloudEvent::Present)
    };
    // Whatever was asked before, and whoever answers what nobody has asked.
    pair.cloud.call();
    pair.cloud.call();
    for number in [0, 1, 3, u64::MAX] {
        pair.cloud.handle_frame(Body::Pong(Pong { number }), pair.now).unwrap();
        assert!(!present(&mut pair.cloud), "{number}");
    }
    // One pong answers all pings.
    while let Some(body) = pair.cloud.poll_frame(&view) {
        pair.edge.handle_frame(body, &|_| None, pair.now).unwrap();
    }
    pair.edge.handle_frame(Body::Ping(Ping::default()), &|_| None, pair.now).unwrap();
    let pong = pair.edge.poll_frame().unwrap();
    assert_eq!((&pong, pair.edge.poll_frame()), (&Body::Pong(Pong { number: 2 }), None));
    pair.cloud.handle_frame(pong.clone(), pair.now).unwrap();
    assert!(present(&mut pair.cloud));
    pair.cloud.handle_frame(pong, pair.now).unwrap();
    assert!(!present(&mut pair.cloud), "once");
}

#[test]
fn who_says_no_hello_is_given_up_however_slowly_it_sends() {
    let begun = Instant::now();
    let mut cloud = CloudSession::new("n1".into(), "test".into(), 1, begun);
    let given_up = (1..=60).map(Duration::from_secs).find(|passed| {
        cloud.handle_progress(begun + *passed);
        cloud.handle_deadline(begun + *passed).is_err()
    });
    assert_eq!(given_up, Some(crate::session::timers::HANDSHAKE));
}

#[test]
fn an_idle_link_stays_up_on_pings_alone() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    pair.bytes_down = 0;
    for _ in 0..3600 {
        pair.now += Duration::from_secs(1);
        pair.edge.handle_deadline(pair.now).unwrap();
        pair.cloud.handle_deadline(pair.now).unwrap();
        pair.settle(&view, &store);
    }
    assert_eq!(pair.bytes_down, 120 * 3);
}

#[test]
fn another_nodes_name_is_refused() {
    let now = Instant::now();
    let mut cloud = CloudSession::new("n1".into(), "test".into(), 1, now);
    let mut edge = EdgeSession::new("n2", "test", Default::default(), HEARTBEAT, now);
    let hello = edge.poll_frame().unwrap();
    assert!(cloud.handle_frame(hello, now).is_err());
    let Some(Body::Goodbye(goodbye)) = cloud.poll_frame(&TestView::default()) else { panic!("no goodbye") };
    assert_eq!(goodbye.reason(), GoodbyeReason::Forbidden);
}

#[test]
fn frames_out_of_turn_are_violations() {
    let now = Instant::now();
    let held = |_: &ResourceKey| None;
    let mut cloud = CloudSession::new("n1".into(), "test".into(), 1, now);
    assert!(cloud.handle_frame(Body::Ack(Ack { seq: 1 }), now).is_err());
    let mut edge = EdgeSession::new("n1", "test", Default::default(), HEARTBEAT, now);
    cloud.handle_frame(edge.poll_frame().unwrap(), now).unwrap();
    assert!(cloud.handle_frame(Body::Ack(Ack { seq: 1 }), now).is_err());
    assert!(cloud.handle_frame(Body::Inventory(Inventory::default()), now).is_err());
    assert!(edge.handle_frame(Body::Batch(Batch::default()), &held, now).is_err());
    let welcome = Body::Welcome(Welcome { protocol: 1, ..Welcome::default() });
    edge.handle_frame(welcome.clone(), &held, now).unwrap();
    assert!(edge.handle_frame(welcome, &held, now).is_err());
    assert!(edge.handle_frame(Body::Batch(Batch { seq: 2, changes: vec![] }), &held, now).is_err());
}

#[test]
fn an_edge_that_reads_nothing_is_told_no_more_and_no_more() {
    let (view, store) = (TestView::default(), TestStore::default());
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    let report = |id| {
        let key = "Pod/default/web".to_owned();
        Body::Reports(Reports { reports: vec![Report { id, kind: 2, key, payload: Bytes::new() }] })
    };
    // What was acked counts as long as the ack waits here.
    let mut ask = |id| {
        pair.cloud.handle_frame(Body::Request(Request { id, question: None }), pair.now)?;
        pair.cloud.answer(Response { id, answer: Some(Answer::Refused("no".to_owned())) });
        pair.cloud.handle_frame(report(id), pair.now)?;
        pair.cloud.finish_reports(vec![ReportAck { id, refused: "no".to_owned() }]);
        Ok::<_, crate::session::Violation>(())
    };
    let asked = (0..).map_while(|id| ask(id).ok()).count();
    assert_eq!(asked, crate::limits::WINDOW_REPORTS);
    while pair.cloud.poll_frame(&view).is_some() {}
    let question = |id| Body::Request(Request { id, question: None });
    let mut ask = |id| {
        pair.cloud.handle_frame(question(id), pair.now)?;
        pair.cloud.answer(Response { id, answer: Some(Answer::Refused("no".to_owned())) });
        Ok::<_, crate::session::Violation>(())
    };
    assert_eq!((0..).map_while(|id| ask(id).ok()).count(), crate::limits::WINDOW_QUESTIONS);
}

#[test]
fn what_a_batch_puts_is_bounded() {
    let size = crate::limits::MAX_OBJECT / 2;
    let content = |n: usize, version: usize| format!("{}{n}-{version}", "x".repeat(size));
    let (mut view, store) = (TestView::default(), TestStore::default());
    for n in 0..12 {
        view.put(&format!("ConfigMap/default/{n}"), &content(n, 1));
    }
    let mut pair = Pair::new(&store);
    pair.settle(&view, &store);
    for n in 0..12 {
        let key = view.put(&format!("ConfigMap/default/{n}"), &content(n, 2));
        pair.cloud.mark_dirty(key);
    }
    // A patch of each is a few bytes.
    let mut batches = 0;
    while let Some(Body::Batch(batch)) = pair.cloud.poll_frame(&view) {
        let patched = batch.changes.iter().map(|change| match &change.action {
            Some(Action::Patch(patch)) => patch.length as usize,
            other => panic!("{other:?}"),
        });
        assert!(patched.sum::<usize>() <= crate::limits::BATCH_OBJECTS);
        batches += 1;
        let held = |key: &ResourceKey| store.objects.borrow().get(key).cloned();
        pair.edge.handle_frame(Body::Batch(batch), &held, pair.now).unwrap();
    }
    assert!(batches > 1);

    // A cloud that does not keep to it: three patches of a hundred bytes, each to the largest object there may be.
    let zeros = vec![0; crate::limits::MAX_OBJECT];
    let first = Object::new("ConfigMap/default/0".parse().unwrap(), 1, Bytes::from_static(b"{}"));
    let patch = |base| Patch {
        resource_version: 9,
        base,
        hash: content_hash(&zeros),
        length: u32::try_from(zeros.len()).unwrap(),
        patch: codec::make_patch(if base == first.version.hash { b"{}" } else { &zeros }, &zeros).unwrap(),
    };
    let changes = [first.version.hash, content_hash(&zeros), content_hash(&zeros)]
        .map(|base| Change { key: first.key.as_str().to_owned(), action: Some(Action::Patch(patch(base))) });
    let batch = |changes: &[Change]| Body::Batch(Batch { seq: 1, changes: changes.to_vec() });
    for (changes, taken) in [(&changes[..2], true), (&changes[..], false)] {
        let mut edge = EdgeSession::new("n1", "test", Default::default(), HEARTBEAT, pair.now);
        let held = |_: &ResourceKey| Some(first.clone());
        edge.handle_frame(Body::Welcome(Welcome { protocol: 1, ..Welcome::default() }), &held, pair.now)
            .unwrap();
        let handled = edge.handle_frame(batch(changes), &held, pair.now);
        assert_eq!(handled.is_ok(), taken, "{handled:?}");
    }
}

#[test]
fn the_inventory_is_asked_for_once() {
    let now = Instant::now();
    let mut edge = EdgeSession::new("n1", "test", Default::default(), HEARTBEAT, now);
    let held = |_: &ResourceKey| None;
    let welcome = Welcome { protocol: 1, ..Welcome::default() };
    edge.handle_frame(Body::Welcome(welcome), &held, now).unwrap();
    let ask = Body::InventoryRequest(InventoryRequest { forget: false });
    edge.handle_frame(ask.clone(), &held, now).unwrap();
    assert!(edge.handle_frame(ask, &held, now).is_err());
}

#[test]
fn nothing_follows_a_goodbye() {
    let (mut view, store) = (TestView::default(), TestStore::default());
    for n in 0..2 * crate::limits::WINDOW_BATCHES * crate::limits::BATCH_CHANGES {
        view.put(&format!("Pod/default/web-{n}"), "1");
    }
    let mut pair = Pair::new(&store);
    while pair.step(&view, &store) {}
    // The window is full, and the difference not yet sent.
    pair.cloud.close(GoodbyeReason::ShuttingDown, String::new());
    assert!(matches!(pair.cloud.poll_frame(&view), Some(Body::Goodbye(_))));
    assert_eq!(pair.cloud.poll_frame(&view), None);
    // A batch was stored, and its ack is not on its way.
    assert!(pair.commit(&store));
    pair.edge.close(GoodbyeReason::ShuttingDown, String::new());
    assert!(matches!(pair.edge.poll_frame(), Some(Body::Goodbye(_))));
    assert_eq!(pair.edge.poll_frame(), None);
}

#[derive(Debug, Clone)]
enum Event {
    Put(u8, u8),
    Delete(u8),
    Steps(u8),
    Commit,
    Cut,
    CloudRestart,
    Report,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12_u8, any::<u8>()).prop_map(|(key, content)| Event::Put(key, content)),
        2 => (0..12_u8).prop_map(Event::Delete),
        6 => (1..6_u8).prop_map(Event::Steps),
        4 => Just(Event::Commit),
        1 => Just(Event::Cut),
        1 => Just(Event::CloudRestart),
        1 => Just(Event::Report),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens in between, after quiet both hold the same, and each report has arrived.
    #[test]
    fn converges(events in proptest::collection::vec(event(), 1..80)) {
        let (mut view, store) = (TestView::default(), TestStore::default());
        let mut outbox: Vec<u64> = Vec::new();
        let mut next_report = 0;
        let mut arrived = std::collections::BTreeSet::new();
        let mut pair = Pair::new(&store);
        let report = |pair: &mut Pair, id: u64| if pair.edge.report_room() > 0 {
            pair.edge.report(vec![Report { id, kind: 4, key: "Pod/a/b".into(), payload: Bytes::new() }]);
        };
        for event in events {
            match event {
                Event::Put(key, content) => {
                    let key = view.put(&format!("Pod/a/{key}"), &format!("{content}").repeat(30));
                    pair.cloud.mark_dirty(key);
                }
                Event::Delete(key) => {
                    let key = view.delete(&format!("Pod/a/{key}"));
                    pair.cloud.mark_dirty(key);
                }
                Event::Steps(count) => for _ in 0..count { pair.step(&view, &store); },
                Event::Commit => { pair.commit(&store); }
                Event::Cut | Event::CloudRestart => {
                    arrived.extend(pair.reports.iter().map(|report| report.id));
                    outbox.retain(|id| !pair.done.contains(id));
                    pair = Pair::new(&store);
                    // What the outbox holds is sent again, oldest first.
                    pair.step(&view, &store);
                }
                Event::Report => {
                    next_report += 1;
                    outbox.push(next_report);
                    report(&mut pair, next_report);
                }
            }
        }
        arrived.extend(pair.reports.iter().map(|report| report.id));
        outbox.retain(|id| !pair.done.contains(id));
        let mut pair = Pair::new(&store);
        pair.settle(&view, &store);
        for id in outbox.clone() { report(&mut pair, id); pair.settle(&view, &store); }
        arrived.extend(pair.reports.iter().map(|report| report.id));
        prop_assert!(pair.synced);
        prop_assert_eq!(view.digest(), store.digest());
        prop_assert_eq!(arrived.len() as u64, next_report);
    }
}
