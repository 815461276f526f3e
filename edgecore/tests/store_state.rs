//! The store against a model, over restarts of both kinds.

#![expect(clippy::unwrap_used, reason = "test code, its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use bytes::Bytes;
use edgecore::metamanager::{DesiredChange, OpenError, Options, Store, StoreError};
use harness::random::Random;
use proptest::prelude::*;
use proto::{Digest, Object, Report, ResourceKey, Seen, message::ReportKind};
use tokio::runtime::Runtime;

fn open(dir: &Path) -> Store {
    Store::open(dir, Options { journal_bytes: 64 << 10, ..Options::default() }).unwrap()
}

fn key(text: &str) -> ResourceKey {
    text.parse().unwrap()
}

fn object(text: &str, resource_version: u64, length: usize) -> Object {
    let mut bytes = format!("{text}@{resource_version}").into_bytes();
    bytes.resize(length.max(bytes.len()), b'.');
    Object::new(key(text), resource_version, bytes.into())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let desired = store.desired_changes();
    let web = object("Pod/default/web-0", 7, 100_000);
    let node = object("Node//edge-1", 8, 10);
    store.apply(vec![DesiredChange::Put(web.clone()), DesiredChange::Put(node.clone())]).await.unwrap();
    assert_eq!(*desired.borrow(), 1);
    assert_eq!(store.get(&web.key).unwrap().as_ref(), Some(&web));
    assert_eq!(store.list("Pod").unwrap(), std::slice::from_ref(&web));
    assert_eq!(store.list("Po").unwrap(), []);
    assert_eq!(
        store.inventory().unwrap(),
        [(node.key.clone(), node.version), (web.key.clone(), web.version)]
    );
    let small = object("Pod/default/web-0", 9, 3);
    let mut seen = Seen::default();
    assert_eq!(store.seen().unwrap(), seen);
    seen.raise("Pod", 9);
    store
        .apply(vec![
            DesiredChange::Put(small.clone()),
            DesiredChange::Delete(node.key),
            DesiredChange::Seen(seen.clone()),
        ])
        .await
        .unwrap();
    assert_eq!(store.seen().unwrap(), seen);
    assert_eq!(store.list("Pod").unwrap(), std::slice::from_ref(&small));
    assert_eq!(store.digest(), [(&small.key, small.version.hash)].into_iter().collect::<Digest>());

    store.put_local("token/a", Bytes::from_static(b"1")).await.unwrap();
    store.put_local("token/b", Bytes::from_static(b"2")).await.unwrap();
    store.put_local("clock", Bytes::from_static(b"3")).await.unwrap();
    store.delete_local("token/a").await.unwrap();
    assert_eq!(store.list_local("token/").unwrap(), [("token/b".to_owned(), Bytes::from_static(b"2"))]);
    assert_eq!(store.local("clock").unwrap(), Some(Bytes::from_static(b"3")));
    assert!(matches!(store.local("a\0b"), Err(StoreError::LocalKey { .. })));
    assert!(matches!(
        store.put_local("big", vec![0; 5 << 20].into()).await,
        Err(StoreError::TooLarge { .. })
    ));
}

#[tokio::test]
async fn a_second_process_is_kept_out_and_a_closed_store_answers_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(Store::open(dir.path(), Options::default()), Err(OpenError::InUse { .. })));
    let other = store.clone();
    store.close().await.unwrap();
    assert!(matches!(other.apply(vec![]).await, Err(StoreError::Closed)));
    assert!(matches!(other.list("Pod"), Err(StoreError::Closed)));
    drop(open(dir.path()));
}

#[tokio::test]
async fn what_changes_nothing_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let pod = object("Pod/default/web-0", 7, 100);
    let status = Bytes::from_static(b"{}");
    store.apply(vec![DesiredChange::Put(pod.clone())]).await.unwrap();
    store.put_local("clock", status.clone()).await.unwrap();
    let first = store.report(ReportKind::PodStatus, &pod.key, status.clone()).await.unwrap();
    let before = (store.syncs(), store.bytes_written(), *store.desired_changes().borrow());
    store.apply(vec![DesiredChange::Put(pod.clone()), DesiredChange::Delete(key("Pod/a/b"))]).await.unwrap();
    store.put_local("clock", status.clone()).await.unwrap();
    store.delete_local("nothing").await.unwrap();
    assert_eq!(store.report(ReportKind::PodStatus, &pod.key, status).await.unwrap(), first);
    store.reports_done(vec![first + 1000]).await.unwrap();
    assert_eq!((store.syncs(), store.bytes_written(), *store.desired_changes().borrow()), before);
}

#[tokio::test]
async fn state_that_is_said_again_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let [device, pod] = ["Device.devices.kubeedge.io/a/pump", "Pod/a/web"].map(key);
    let text = |n: u64| Bytes::from(n.to_string());
    let payloads = |store: &Store| {
        let pending = store.pending_reports(0, 9).unwrap().into_iter();
        pending.map(|report| report.payload).collect::<Vec<_>>()
    };
    let mut last = 0;
    for clean in [false, true, false] {
        // That is noted once for many.
        store.report_in_memory(ReportKind::DeviceStatus, &device, text(1000)).await.unwrap();
        let changes = store.outbox_changes();
        let before = (store.syncs(), store.bytes_written());
        for n in 0..100 {
            let id = store.report_in_memory(ReportKind::DeviceStatus, &device, text(n)).await.unwrap();
            assert!(id > last, "id {id} after {last}");
            last = id;
        }
        assert!(changes.has_changed().unwrap());
        assert_eq!(payloads(&store), [text(99)]);
        store.reports_done(vec![last]).await.unwrap();
        assert_eq!(store.pending(), 0);
        store.report_in_memory(ReportKind::DeviceStatus, &device, text(7)).await.unwrap();
        assert_eq!((store.syncs(), store.bytes_written()), before);

        store.report(ReportKind::Event, &pod, text(8)).await.unwrap();
        store.report_in_memory(ReportKind::PodStatus, &pod, text(9)).await.unwrap();
        // A checkpoint takes it along.
        for n in 0..30 {
            store.apply(vec![DesiredChange::Put(object("Pod/a/web", last + n, 4000))]).await.unwrap();
        }
        assert_eq!(payloads(&store), [7, 8, 9].map(text));
        let after = store.pending_reports(0, 1).unwrap()[0].id;
        let two = |reports: Vec<Report>| reports.into_iter().map(|report| report.payload).collect::<Vec<_>>();
        assert_eq!(two(store.pending_reports(after, 2).unwrap()), [8, 9].map(text));
        assert_eq!(two(store.pending_statuses(after, 2).unwrap()), [9].map(text));
        last = store.report(ReportKind::PodStatus, &pod, text(10)).await.unwrap();
        if clean {
            store.close().await.unwrap();
        } else {
            drop(store);
        }
        store = open(dir.path());
        assert_eq!(payloads(&store), [8, 10].map(text));
        let pending = store.pending_reports(0, 9).unwrap().iter().map(|report| report.id).collect();
        store.reports_done(pending).await.unwrap();
    }
}

#[tokio::test]
async fn one_change_is_one_sync_an_ack_none_and_a_burst_shares() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let (syncs, bytes) = (store.syncs(), store.bytes_written());
    store.apply(vec![DesiredChange::Put(object("Pod/default/web-0", 7, 4000))]).await.unwrap();
    assert_eq!(store.syncs() - syncs, 1);
    assert!(store.bytes_written() - bytes < 4300, "{} bytes", store.bytes_written() - bytes);
    let id =
        store.report(ReportKind::Event, &key("Pod/default/web-0"), Bytes::from_static(b"{}")).await.unwrap();
    let syncs = store.syncs();
    store.reports_done(vec![id]).await.unwrap();
    assert_eq!(store.syncs(), syncs);
    let burst = (0..64).map(|n| {
        let store = store.clone();
        let put = DesiredChange::Put(object(&format!("Pod/default/burst-{n}"), n, 2000));
        async move { store.apply(vec![put]).await }
    });
    let mut tasks = burst.collect::<tokio::task::JoinSet<_>>();
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert!(store.syncs() - syncs <= 8, "64 changes took {} syncs", store.syncs() - syncs);
    assert_eq!(store.digest().count, 65);
}

#[tokio::test]
async fn the_outbox_keeps_state_drops_old_events_and_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { outbox_bytes: 10_000, ..Options::default() };
    let pod = key("Pod/default/web-0");
    let mut random = Random::seeded("store_state").unwrap();
    let mut last = 0;
    for restart in 0..3u8 {
        let store = Store::open(dir.path(), options).unwrap();
        for n in 0..20u8 {
            // That nothing makes shorter.
            let event = (0..125).flat_map(|_| random.number().to_be_bytes()).collect::<Bytes>();
            let id = store.report(ReportKind::Event, &pod, event).await.unwrap();
            assert!(id > last, "id {id} after {last}");
            last = store.report(ReportKind::PodStatus, &pod, vec![restart, n].into()).await.unwrap();
        }
        let pending = store.pending_reports(0, 1000).unwrap();
        assert!(pending.is_sorted_by_key(|report| report.id));
        let states: Vec<_> = pending.iter().filter(|report| report.kind() == ReportKind::PodStatus).collect();
        assert_eq!((states.len(), &states[0].payload[..]), (1, &[restart, 19][..]));
        assert_eq!(pending.len() - 1, 9, "events that fit");
        assert_eq!(store.dropped_reports(), u64::from(restart + 1) * 20 - 9);
        assert_eq!(store.pending_reports(pending[2].id, 4).unwrap(), pending[3..7]);
        if restart == 1 {
            store.close().await.unwrap();
        }
    }
    let store = Store::open(dir.path(), options).unwrap();
    let ids: Vec<u64> = store.pending_reports(0, 1000).unwrap().iter().map(|report| report.id).collect();
    store.reports_done(ids).await.unwrap();
    assert_eq!(store.pending_reports(0, 1000).unwrap(), []);
    assert!(store.report(ReportKind::PodStatus, &pod, Bytes::new()).await.unwrap() > last);
}

/// A quarter of a million of them fit into the default outbox.
#[tokio::test]
async fn an_event_is_kept_in_less_than_half_of_its_length() {
    const EVENTS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let (before, mut length) = (store.bytes_written(), 0);
    for n in 0..EVENTS {
        let name = format!("till-{}", n % 7);
        let event = serde_json::json!({
            "metadata": {"name": format!("{name}.{:x}", 1_790_000_000_000_000_000 + n * 7_777_777), "namespace": "shop"},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": name,
                "uid": "0b0c3f5e-6f0a-4a53-9d6b-3a1f6a1c2d3e", "fieldPath": "spec.containers{main}",
            },
            "type": "Warning", "reason": "Unhealthy", "count": 1,
            "message": format!("Readiness probe failed: HTTP probe failed with statuscode: {}", 400 + n),
            "firstTimestamp": "2026-11-27T18:39:16Z", "lastTimestamp": "2026-11-27T18:39:16Z",
            "source": {"component": "edged", "host": "edge-1"},
            "reportingComponent": "edged", "reportingInstance": "edge-1",
        });
        let event = event.to_string();
        length += event.len() as u64;
        store.report(ReportKind::Event, &key(&format!("Pod/shop/{name}")), event.into()).await.unwrap();
    }
    let written = store.bytes_written() - before;
    assert!(2 * written < length, "{written} bytes for {length}");
    assert!(written / EVENTS < 260, "{} bytes an event", written / EVENTS);
    assert_eq!(store.pending() as u64, EVENTS);
}

#[tokio::test]
async fn every_clean_stop_is_found_clean() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..30 {
        let store = open(dir.path());
        let opened = store.opened();
        assert!(opened.clean && opened.healed.is_empty(), "round {round}: {opened:?}");
        assert_eq!(store.digest().count, round);
        let before = store.bytes_written();
        assert_eq!(before == 0, round > 0, "a start after a clean stop wrote a checkpoint");
        store
            .apply(vec![DesiredChange::Put(object(&format!("Pod/default/{round}"), round, 9000))])
            .await
            .unwrap();
        store.close().await.unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<(u8, Option<(u64, usize)>)>),
    Report { kind: u8, about: u8, payload: u8, in_memory: bool },
    Done(u8),
    Local(u8, Option<usize>),
    Reopen { clean: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![0..200usize, 4000..4200usize, 8000..30_000usize];
    let change = (0..12u8, proptest::option::weighted(0.7, (0..50u64, length)));
    prop_oneof![
        6 => proptest::collection::vec(change, 0..6).prop_map(Step::Apply),
        3 => (1..5u8, 0..3u8, any::<u8>(), any::<bool>()).prop_map(|(kind, about, payload, in_memory)| {
            Step::Report { kind, about, payload, in_memory }
        }),
        2 => any::<u8>().prop_map(Step::Done),
        2 => (0..4u8, proptest::option::of(0..9000usize)).prop_map(|(name, length)| Step::Local(name, length)),
        1 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ]
}

#[derive(Default)]
struct Model {
    objects: BTreeMap<ResourceKey, Object>,
    outbox: BTreeMap<u64, (i32, String, Bytes)>,
    /// Of the outbox, those that no restart survives.
    in_memory: BTreeSet<u64>,
    local: BTreeMap<String, Bytes>,
    last_id: u64,
}

impl Model {
    fn check(&self, store: &Store) {
        let digest: Digest = self.objects.values().map(|object| (&object.key, object.version.hash)).collect();
        assert_eq!(store.digest(), digest);
        let objects: Vec<_> = self.objects.values().cloned().collect();
        assert_eq!(store.list("ConfigMap").unwrap(), objects);
        let outbox: Vec<_> = store
            .pending_reports(0, usize::MAX)
            .unwrap()
            .into_iter()
            .map(|report| (report.id, (report.kind, report.key, report.payload)))
            .collect();
        assert_eq!(outbox, self.outbox.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(store.list_local("").unwrap(), self.local.clone().into_iter().collect::<Vec<_>>());
    }

    async fn take(&mut self, store: &Store, step: Step) {
        match step {
            Step::Apply(changes) => {
                let changes = changes.into_iter().map(|(name, put)| {
                    let text = format!("ConfigMap/default/c{name}");
                    put.map_or_else(
                        || DesiredChange::Delete(key(&text)),
                        |(version, length)| DesiredChange::Put(object(&text, version, length)),
                    )
                });
                let changes: Vec<_> = changes.collect();
                store.apply(changes.clone()).await.unwrap();
                for change in changes {
                    match change {
                        DesiredChange::Put(object) => drop(self.objects.insert(object.key.clone(), object)),
                        DesiredChange::Delete(key) => drop(self.objects.remove(&key)),
                        DesiredChange::Seen(_) => {}
                    }
                }
            }
            Step::Report { kind, about, payload, in_memory } => {
                let kind = ReportKind::try_from(i32::from(kind)).unwrap();
                let about = key(&format!("Pod/default/p{about}"));
                let payload = Bytes::from(vec![payload % 3; 50]);
                let id = if in_memory {
                    store.report_in_memory(kind, &about, payload.clone()).await.unwrap()
                } else {
                    store.report(kind, &about, payload.clone()).await.unwrap()
                };
                let entry = (i32::from(kind), about.to_string(), payload);
                if kind.is_state() {
                    if self.outbox.get(&id) == Some(&entry) {
                        assert!(in_memory || !self.in_memory.contains(&id), "it is on no disk");
                        return;
                    }
                    if in_memory {
                        self.in_memory.insert(id);
                    }
                    self.outbox.retain(|_, old| (old.0, &old.1) != (entry.0, &entry.1));
                }
                assert!(id > self.last_id, "id {id} after {}", self.last_id);
                self.last_id = id;
                self.outbox.insert(id, entry);
            }
            Step::Done(which) => {
                let at = usize::from(which) % self.outbox.len().max(1);
                let id = self.outbox.keys().nth(at).copied().unwrap_or(0);
                store.reports_done(vec![id, id + 1]).await.unwrap();
                self.outbox.remove(&id);
                self.outbox.remove(&(id + 1));
            }
            Step::Local(name, Some(length)) => {
                let (name, value) = (format!("l{name}"), Bytes::from(vec![7; length]));
                store.put_local(&name, value.clone()).await.unwrap();
                self.local.insert(name, value);
            }
            Step::Local(name, None) => {
                store.delete_local(&format!("l{name}")).await.unwrap();
                self.local.remove(&format!("l{name}"));
            }
            Step::Reopen { .. } => unreachable!("the test does it"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_match_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let mut store = open(dir.path());
            let mut model = Model::default();
            for step in steps {
                if let Step::Reopen { clean } = step {
                    if clean {
                        store.close().await.unwrap();
                    } else {
                        drop(store);
                    }
                    store = open(dir.path());
                    let in_memory = std::mem::take(&mut model.in_memory);
                    model.outbox.retain(|id, _| !in_memory.contains(id));
                    assert_eq!((store.opened().clean, &store.opened().healed), (clean, &vec![]));
                } else {
                    model.take(&store, step).await;
                }
                model.check(&store);
            }
        });
    }
}
