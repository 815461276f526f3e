use std::path::Path;

use proto::cri::v1;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::{
    doors::Doors,
    edged::{Edged, EdgedConfig, labels, node_status::NodeStatusConfig, relist::Snapshot},
    metamanager::{DesiredChange, Options, Store},
};

/// edged over that store, and a runtime that lists a pod with the uid `u-1`. The runtime itself is not there: whatever
/// is decided here is decided without it.
fn edged(directory: &Path, store: &Store) -> Edged {
    let config = EdgedConfig {
        node: "edge-1".to_owned(),
        node_status: NodeStatusConfig {
            node: "edge-1".to_owned(),
            node_ip: None,
            cloud: String::new(),
            labels: BTreeMap::new(),
            schedulable: true,
            max_pods: 110,
            memory_capacity: None,
            cpu_millis: None,
            every: Duration::from_secs(10),
            pods_dir: directory.join("pods"),
            least: crds::componentconfig::edgecore::EvictionHard::default(),
        },
        runtime_endpoint: format!("unix://{}", directory.join("absent.sock").display()),
        cgroup_driver: None,
        sandbox_image: String::new(),
        pods_dir: directory.join("pods"),
        pod_logs_dir: directory.join("logs"),
        container_logs_dir: directory.join("links"),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolv_conf: directory.join("resolv.conf"),
    };
    let (asks, _) = mpsc::channel(1);
    let (_, hub) = watch::channel(HubState::default());
    let edged = Edged::new(config, store.clone(), asks, hub, Doors::default()).unwrap();
    let labels = labels::sandbox_labels("web", "default", "u-1", None);
    let sandbox = v1::PodSandbox { id: "s".to_owned(), labels, ..Default::default() };
    let listed = Listed { sandboxes: vec![sandbox], containers: Vec::new() };
    let pods = HashMap::from([(PodUid::new("u-1").unwrap(), listed)]);
    let snapshot = Some(Arc::new(Snapshot { asked_at: Instant::now(), pods }));
    edged.relister.views.send_replace(View { snapshot, unreachable: None });
    edged
}

fn key(name: &str) -> ResourceKey {
    ResourceKey::new("Pod", "default", name).unwrap()
}

async fn put(store: &Store, name: &str, uid: &str) {
    let json =
        json!({"metadata": {"name": name, "namespace": "default", "uid": uid}, "spec": {"containers": []}});
    let object = Object::new(key(name), 1, serde_json::to_vec(&json).unwrap().into());
    store.apply(vec![DesiredChange::Put(object)]).await.unwrap();
}

fn intents(dispatcher: &Dispatcher) -> BTreeMap<String, Intent> {
    let workers = dispatcher.workers.iter();
    workers.map(|(uid, worker)| (uid.to_string(), worker.input.borrow().intent)).collect()
}

fn expect<const N: usize>(list: [(&str, Intent); N]) -> BTreeMap<String, Intent> {
    list.map(|(uid, intent)| (uid.to_owned(), intent)).into()
}

#[tokio::test]
async fn nothing_is_an_orphan_before_the_store_was_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), Options::default()).unwrap();
    put(&store, "web", "u-1").await;
    let mut dispatcher = edged(directory.path(), &store).dispatcher;
    let stop = CancellationToken::new();
    // The runtime's listing may come first.
    dispatcher.hand_out_listing(&stop);
    assert_eq!(intents(&dispatcher), expect([]));
    dispatcher.read_desired(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-1", Intent::Run)]));
}

#[tokio::test]
async fn what_the_store_does_not_have_is_an_orphan() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), Options::default()).unwrap();
    put(&store, "other", "u-2").await;
    let mut dispatcher = edged(directory.path(), &store).dispatcher;
    let stop = CancellationToken::new();
    dispatcher.read_desired(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-1", Intent::Remove), ("u-2", Intent::Run)]));
}

/// One record is lost, others are there: what runs of the lost pod is kept until the cloud has spoken.
#[tokio::test]
async fn a_store_that_was_damaged_makes_no_orphans_before_the_cloud_has_filled_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::open(&path, Options::default()).unwrap();
    put(&store, "web", "u-1").await;
    put(&store, "other", "u-2").await;
    drop(store);
    let journals = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
    let journal = journals.filter(|path| path.to_string_lossy().contains("journal.")).max().unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[80] ^= 1;
    std::fs::write(&journal, bytes).unwrap();

    let store = Store::open(&path, Options::default()).unwrap();
    assert!(!store.opened().healed.is_empty());
    let mut dispatcher = edged(directory.path(), &store).dispatcher;
    let stop = CancellationToken::new();
    dispatcher.read_desired(&stop);
    dispatcher.hand_out_listing(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-2", Intent::Run)]));
    dispatcher.synced = true;
    dispatcher.adopt_orphans(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-1", Intent::Remove), ("u-2", Intent::Run)]));
}

#[tokio::test]
async fn a_store_that_cannot_be_read_makes_no_orphans() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), Options::default()).unwrap();
    put(&store, "web", "u-1").await;
    let stop = CancellationToken::new();

    let version = Version { hash: 1, resource_version: 1 };

    // One object fails: it may be any pod that runs, and what is known of it stays.
    let mut dispatcher = edged(directory.path(), &store).dispatcher;
    dispatcher.take(&key("web"), version, Err(StoreError::Closed));
    dispatcher.desired_read = true;
    dispatcher.adjust(&stop);
    assert_eq!(intents(&dispatcher), expect([]));
    assert!(dispatcher.reread_at.is_some());
    dispatcher.read_desired(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-1", Intent::Run)]));
    dispatcher.take(&key("web"), version, Err(StoreError::Closed));
    dispatcher.adjust(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-1", Intent::Run)]));

    // All of it fails, at the start and later.
    let mut late = edged(directory.path(), &store).dispatcher;
    store.close().await.unwrap();
    late.read_desired(&stop);
    late.hand_out_listing(&stop);
    assert_eq!(intents(&late), expect([]));
    assert!(late.reread_at.is_some());
    dispatcher.read_desired(&stop);
    dispatcher.hand_out_listing(&stop);
    assert_eq!(intents(&dispatcher), expect([("u-1", Intent::Run)]));
}
