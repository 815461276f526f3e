use std::time::Duration;

use futures_util::FutureExt;
use proto::session::{Freshness, View};
use serde_json::{Value, json};

use super::*;
use crate::edgecontroller::objects::SYNC_CONFIG_ANNOTATION;

fn kind(key: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.key == key).unwrap()
}

fn cached(key: &str, object: &Value) -> Cached {
    kind(key).take(&object.to_string()).unwrap()
}

fn pod(name: &str, node: &str, config_maps: &[&str], version: u64) -> Cached {
    let volumes: Vec<_> =
        config_maps.iter().map(|name| json!({"name": name, "configMap": {"name": name}})).collect();
    cached(
        "Pod",
        &json!({"metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"nodeName": node, "volumes": volumes}}),
    )
}

fn config_map(name: &str, value: &str, version: u64) -> Cached {
    cached(
        "ConfigMap",
        &json!({"metadata": {"name": name, "namespace": "a", "resourceVersion": version.to_string()}, "data": {"k": value}}),
    )
}

fn node(name: &str, labels: &Value, annotations: &Value) -> Cached {
    cached(
        "Node",
        &json!({"metadata": {"name": name, "uid": name, "labels": labels, "annotations": annotations}}),
    )
}

fn key(text: &str) -> ResourceKey {
    text.parse().unwrap()
}

fn drain(set: &KeySet) -> Vec<String> {
    std::iter::from_fn(|| set.pop()).map(|key| key.to_string()).collect()
}

fn held(view: &NodeSubscription) -> Vec<String> {
    let mut keys: Vec<_> = view.objects().iter().map(|object| object.key.to_string()).collect();
    keys.sort();
    keys
}

/// What the page of digests says of the node is the digest of what the view holds.
fn check_digest(view: &NodeSubscription) {
    let objects = view.objects();
    let digest: Digest = objects.iter().map(|object| (&object.key, object.version.hash)).collect();
    assert_eq!(view.digest(), digest);
}

#[test]
fn a_node_holds_its_pods_and_what_they_refer_to() {
    let index = Arc::new(Index::new());
    index.replace(kind("ConfigMap"), vec![config_map("one", "1", 1), config_map("two", "2", 2)], vec![], 5);
    index.replace(kind("Pod"), vec![pod("p", "n", &["one"], 3), pod("q", "other", &["two"], 4)], vec![], 5);
    let view = index.subscribe("n");
    assert_eq!(held(&view), ["ConfigMap/a/one", "Pod/a/p"]);
    assert!(view.get(&key("ConfigMap/a/two")).is_none(), "an object that another node needs");
    check_digest(&view);
    drain(view.dirty());

    index.apply(kind("ConfigMap"), config_map("one", "1b", 6));
    index.apply(kind("ConfigMap"), config_map("two", "2b", 7));
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/one"]);
    index.apply(kind("Pod"), pod("p2", "n", &["one", "two"], 8));
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/two", "Pod/a/p2"]);
    check_digest(&view);

    index.delete(kind("Pod"), &key("Pod/a/p"), 9);
    assert_eq!(drain(view.dirty()), ["Pod/a/p"], "the other pod still needs the config map");
    index.delete(kind("Pod"), &key("Pod/a/p2"), 10);
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/one", "ConfigMap/a/two", "Pod/a/p2"]);
    assert_eq!(held(&view), [""; 0]);
    assert_eq!(view.digest(), Digest::default());
}

#[test]
fn the_same_content_is_no_change() {
    let index = Arc::new(Index::new());
    index.replace(kind("Pod"), vec![pod("p", "n", &[], 3)], vec![], 3);
    let view = index.subscribe("n");
    drain(view.dirty());
    let held = view.get(&key("Pod/a/p")).unwrap().bytes;
    index.apply(kind("Pod"), pod("p", "n", &[], 4));
    assert_eq!(drain(view.dirty()), [""; 0]);
    let again = view.get(&key("Pod/a/p")).unwrap();
    assert_eq!(again.version.resource_version, 4);
    assert_eq!(again.bytes.as_ptr(), held.as_ptr(), "a copy beside the one that sessions have");
    check_digest(&view);
}

#[test]
fn a_relist_removes_what_is_not_in_it() {
    let index = Arc::new(Index::new());
    index.replace(kind("Pod"), vec![pod("p", "n", &[], 1), pod("q", "n", &[], 2)], vec![], 2);
    index.replace(kind("ConfigMap"), vec![config_map("one", "1", 1)], vec![], 2);
    let view = index.subscribe("n");
    drain(view.dirty());
    index.replace(kind("Pod"), vec![pod("q", "n", &["one"], 7)], vec![], 8);
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/one", "Pod/a/p", "Pod/a/q"]);
    check_digest(&view);
    index.replace(kind("ConfigMap"), Vec::new(), vec![], 9);
    assert_eq!(held(&view), ["Pod/a/q"]);
    check_digest(&view);
}

#[test]
fn what_cannot_be_passed_on_is_not_gone() {
    let index = Arc::new(Index::new());
    for kind in &KINDS {
        index.replace(kind, Vec::new(), vec![], 1);
    }
    let (one, two) = (key("ConfigMap/a/one"), key("ConfigMap/a/two"));
    index.apply(kind("ConfigMap"), config_map("one", "1", 2));
    index.apply(kind("Pod"), pod("p", "n", &["one", "two"], 3));
    let view = index.subscribe("n");
    // An edge has it from before; this replica never could read it.
    index.withhold(kind("ConfigMap"), two.clone(), 5);
    assert!(view.get(&two).is_none() && !view.knows(&two));
    // Once read, it may become unreadable: what was read last stays.
    index.replace(kind("ConfigMap"), Vec::new(), vec![one.clone(), two.clone()], 7);
    assert!(view.get(&one).is_some() && !view.knows(&two));
    check_digest(&view);
    drain(view.dirty());
    index.delete(kind("ConfigMap"), &two, 8);
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/two"]);
    assert!(view.knows(&two));
    index.withhold(kind("ConfigMap"), two.clone(), 9);
    drain(view.dirty());
    index.replace(kind("ConfigMap"), Vec::new(), vec![], 10);
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/one", "ConfigMap/a/two"]);
    assert!(view.get(&one).is_none() && view.knows(&two));
    check_digest(&view);
    // What no pod needs may go, whether it can be read or not.
    index.withhold(kind("ConfigMap"), two.clone(), 11);
    index.delete(kind("Pod"), &key("Pod/a/p"), 12);
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/one", "ConfigMap/a/two", "Pod/a/p"]);
    assert!(view.knows(&two) && !view.knows(&key("Widget.example.com/a/x")), "a kind that is not watched");
}

fn told(positions: &[(&str, u64)]) -> Seen {
    let mut seen = Seen::default();
    for (kind, version) in positions {
        seen.raise(kind, *version);
    }
    seen
}

#[tokio::test]
async fn a_session_waits_for_caches_as_new_as_what_its_edge_was_told() {
    let index = Arc::new(Index::new());
    let view = index.subscribe("n");
    for kind in &KINDS {
        assert_eq!(view.freshness(&Seen::default()), Freshness::Behind);
        assert!(
            view.dirty().marked().now_or_never().is_none(),
            "woken with {:?} to be listed",
            index.missing_kinds()
        );
        index.replace(kind, Vec::new(), vec![], 10);
    }
    view.dirty().marked().await;
    assert_eq!(view.freshness(&Seen::default()), Freshness::Current);
    assert_eq!(view.freshness(&told(&[("Pod", 10), ("Widget.example.com", 99)])), Freshness::Current);
    let seen = told(&[("ConfigMap", 11), ("Pod", 12)]);
    index.apply(kind("Pod"), pod("p", "other", &[], 12));
    assert_eq!(view.freshness(&seen), Freshness::Behind);
    index.bookmark(kind("ConfigMap"), 13);
    view.dirty().marked().await;
    assert_eq!(view.freshness(&seen), Freshness::Current);
    assert!(index.read().waiting.is_empty());
}

/// A replica that has heard of all that happened has not heard of a bookmark.
#[test]
fn the_newest_change_is_no_newer_than_what_happened() {
    let index = Arc::new(Index::new());
    let view = index.subscribe("n");
    index.replace(kind("Pod"), vec![pod("p", "n", &[], 9)], vec![], 10);
    // What went before the first list, it does not say.
    assert_eq!(view.newest_change("Pod"), 10);
    index.bookmark(kind("Pod"), 11);
    index.replace(kind("Pod"), vec![pod("p", "n", &[], 9)], vec![], 12);
    assert_eq!(view.newest_change("Pod"), 10);
    index.apply(kind("Pod"), pod("q", "n", &[], 13));
    assert_eq!(view.newest_change("Pod"), 13);
    index.delete(kind("Pod"), &key("Pod/a/q"), 14);
    assert_eq!(view.newest_change("Pod"), 14);
    // Gone since the list before, nobody knows when.
    index.replace(kind("Pod"), vec![], vec![], 15);
    assert_eq!(view.newest_change("Pod"), 15);
}

#[test]
fn a_later_session_is_not_hurt_by_the_end_of_the_earlier_one() {
    let index = Arc::new(Index::new());
    index.replace(kind("Pod"), vec![pod("p", "n", &[], 1)], vec![], 1);
    let first = index.subscribe("n");
    let second = index.subscribe("n");
    drop(first);
    drain(second.dirty());
    index.apply(kind("Pod"), pod("p2", "n", &[], 2));
    assert_eq!(drain(second.dirty()), ["Pod/a/p2"]);
    check_digest(&second);
    drop(second);
    assert_eq!(index.sizes().1, 0);
    assert!(index.read().holders.is_empty());
}

#[test]
fn pods_of_edge_nodes_wait_for_protection() {
    let index = Arc::new(Index::new());
    let edge = json!({"node-role.kubernetes.io/edge": ""});
    index.replace(
        kind("Pod"),
        vec![pod("p", "edge", &[], 1), pod("q", "cloud", &[], 1), pod("r", "ours", &[], 1)],
        vec![],
        1,
    );
    assert_eq!(drain(index.unguarded()), [""; 0]);
    index.apply(kind("Node"), node("edge", &edge, &json!({})));
    index.apply(kind("Node"), node("cloud", &json!({}), &json!({})));
    assert_eq!(drain(index.unguarded()), ["Pod/a/p"]);
    let session = index.subscribe("ours");
    assert_eq!(drain(index.unguarded()), ["Pod/a/r"]);
    drop(session);

    let opted_out = json!({"skerry.io/evict-when-unreachable": "true"});
    index.apply(kind("Node"), node("edge", &edge, &opted_out));
    index.apply(kind("Pod"), pod("p2", "edge", &[], 2));
    assert_eq!(drain(index.unguarded()), [""; 0]);
    assert!(index.unguarded_pod(&key("Pod/a/p2")).is_none());
    index.apply(kind("Node"), node("edge", &edge, &json!({})));
    assert_eq!(drain(index.unguarded()), ["Pod/a/p", "Pod/a/p2"]);
    assert!(matches!(index.unguarded_pod(&key("Pod/a/p2")), Some((_, Guard::Protect))));
}

#[test]
fn an_opt_out_gives_back_what_we_have_protected_and_nothing_else() {
    let index = Arc::new(Index::new());
    let edge = json!({"node-role.kubernetes.io/edge": "true"});
    let tolerant = |name: &str, annotations: &Value| {
        cached(
            "Pod",
            &json!({"metadata": {"name": name, "namespace": "a", "uid": name, "annotations": annotations},
                "spec": {"nodeName": "edge", "tolerations": [{"operator": "Exists"}]}}),
        )
    };
    let record = json!({"skerry.io/toleration-seconds": "not-ready=300,unreachable=300"});
    index.apply(kind("Node"), node("edge", &edge, &json!({})));
    index.apply(kind("Pod"), tolerant("ours", &record));
    index.apply(kind("Pod"), tolerant("daemon", &json!({})));
    assert_eq!(drain(index.unguarded()), [""; 0]);
    let mut opted_out = record;
    opted_out["skerry.io/evict-when-unreachable"] = "true".into();
    index.apply(kind("Pod"), tolerant("ours", &opted_out));
    assert_eq!(drain(index.unguarded()), ["Pod/a/ours"]);
    assert!(matches!(index.unguarded_pod(&key("Pod/a/ours")), Some((_, Guard::GiveBack))));
    let record = json!({"skerry.io/toleration-seconds": "not-ready=300,unreachable=300"});
    index.apply(kind("Pod"), tolerant("ours", &record));
    drain(index.unguarded());
    index.apply(kind("Node"), node("edge", &edge, &json!({"skerry.io/evict-when-unreachable": "true"})));
    assert_eq!(drain(index.unguarded()), ["Pod/a/ours"], "the node's opt-out counts for all of its pods");
}

#[test]
fn a_claim_brings_the_volume_that_it_is_bound_to() {
    let index = Arc::new(Index::new());
    let user = |name: &str| {
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "disk"}}]);
        cached(
            "Pod",
            &json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": {"nodeName": "n", "volumes": volumes}}),
        )
    };
    let claim = |spec: &Value| {
        let status = json!({"phase": "Bound"});
        cached(
            "PersistentVolumeClaim",
            &json!({"metadata": {"name": "disk", "namespace": "a"}, "spec": spec, "status": status}),
        )
    };
    let volume = |name: &str| cached("PersistentVolume", &json!({"metadata": {"name": name}, "spec": {}}));
    index.apply(kind("PersistentVolume"), volume("pv-1"));
    index.apply(kind("PersistentVolume"), volume("pv-2"));
    index.apply(kind("PersistentVolumeClaim"), claim(&json!({})));
    let view = index.subscribe("n");
    index.apply(kind("Pod"), user("p"));
    index.apply(kind("Pod"), user("q"));
    assert_eq!(held(&view), ["PersistentVolumeClaim/a/disk", "Pod/a/p", "Pod/a/q"]);
    index.apply(kind("PersistentVolumeClaim"), claim(&json!({"volumeName": "pv-1"})));
    assert!(held(&view).contains(&"PersistentVolume//pv-1".to_owned()), "{:?}", held(&view));
    check_digest(&view);
    index.apply(kind("PersistentVolumeClaim"), claim(&json!({"volumeName": "pv-2"})));
    assert_eq!(held(&view), ["PersistentVolume//pv-2", "PersistentVolumeClaim/a/disk", "Pod/a/p", "Pod/a/q"]);
    index.delete(kind("Pod"), &key("Pod/a/p"), 9);
    assert!(held(&view).contains(&"PersistentVolume//pv-2".to_owned()), "the other pod needs it");
    index.delete(kind("PersistentVolumeClaim"), &key("PersistentVolumeClaim/a/disk"), 10);
    assert_eq!(held(&view), ["Pod/a/q"]);
    index.apply(kind("PersistentVolumeClaim"), claim(&json!({"volumeName": "pv-1"})));
    index.delete(kind("Pod"), &key("Pod/a/q"), 11);
    assert_eq!(held(&view), [""; 0]);
    assert_eq!(view.digest(), Digest::default());
    drop(view);
    assert!(index.read().holders.is_empty());
}

#[tokio::test]
async fn one_object_is_followed_from_what_it_is_now() {
    let index = Arc::new(Index::new());
    let secret = |value: &str, version: u64| {
        let metadata = json!({"name": "ca", "namespace": "a", "resourceVersion": version.to_string()});
        cached("Secret", &json!({"metadata": metadata, "data": {"k": value}}))
    };
    let followed = index.follow(key("Secret/a/ca"));
    assert!(drain(&followed).is_empty());
    index.apply(kind("Secret"), secret("1", 1));
    assert_eq!(drain(&followed), ["Secret/a/ca"]);
    // A version that says the same.
    index.apply(kind("Secret"), secret("1", 2));
    index.apply(kind("ConfigMap"), config_map("other", "1", 3));
    assert!(drain(&followed).is_empty());
    index.replace(kind("Secret"), vec![secret("2", 4)], Vec::new(), 4);
    assert_eq!(drain(&followed), ["Secret/a/ca"]);
    index.delete(kind("Secret"), &key("Secret/a/ca"), 5);
    assert_eq!(drain(&followed), ["Secret/a/ca"]);
    index.apply(kind("Secret"), secret("3", 6));
    assert_eq!(drain(&index.follow(key("Secret/a/ca"))), ["Secret/a/ca"], "it is there already");

    let session = index.subscribe("n");
    index.wake_sessions();
    tokio::time::timeout(Duration::from_secs(20), session.dirty().marked()).await.expect("nobody wakes it");
    assert!(drain(session.dirty()).is_empty());
}

#[test]
fn a_node_holds_the_config_map_with_its_link_settings() {
    let index = Arc::new(Index::new().with_sync_config("a/fleet"));
    let early = index.subscribe("early");
    assert_eq!(early.sync_config(), SyncConfig::Unknown);
    for kind in &KINDS {
        index.replace(kind, Vec::new(), Vec::new(), 0);
    }
    assert_eq!(early.sync_config(), SyncConfig::None);
    index.apply(kind("ConfigMap"), config_map("fleet", "1", 1));
    index.apply(kind("ConfigMap"), config_map("site", "1", 2));
    let named = |name: &str| node("n", &json!({}), &json!({ SYNC_CONFIG_ANNOTATION: name }));
    let view = index.subscribe("n");
    let map = |view: &NodeSubscription| match view.sync_config() {
        SyncConfig::Map(object) => object.key.to_string(),
        other => format!("{other:?}"),
    };
    assert_eq!(held(&view), ["ConfigMap/a/fleet"]);
    assert_eq!(map(&view), "ConfigMap/a/fleet");
    drain(view.dirty());

    index.apply(kind("Node"), named("a/site"));
    assert_eq!(held(&view), ["ConfigMap/a/site", "Node//n"]);
    assert_eq!(drain(view.dirty()), ["ConfigMap/a/fleet", "ConfigMap/a/site", "Node//n"]);
    check_digest(&view);
    // A name that is none: the node has nothing of this kind, and nothing is concluded from that.
    index.apply(kind("Node"), named("site"));
    assert_eq!((held(&view), map(&view)), (vec!["Node//n".to_owned()], "Unknown".to_owned()));
    index.apply(kind("Node"), named("a/missing"));
    assert_eq!(map(&view), "None");
    index.apply(kind("ConfigMap"), config_map("missing", "1", 3));
    assert_eq!(map(&view), "ConfigMap/a/missing");
    index.delete(kind("Node"), &key("Node//n"), 9);
    assert_eq!(held(&view), ["ConfigMap/a/fleet"]);
    check_digest(&view);
    drop(view);
    // Whoever comes later finds it by the Node, and a pod may use the same one.
    index.apply(kind("Node"), named("a/site"));
    index.apply(kind("Pod"), pod("p", "n", &["site"], 10));
    let view = index.subscribe("n");
    index.apply(kind("Node"), node("n", &json!({}), &json!({})));
    assert_eq!(held(&view), ["ConfigMap/a/fleet", "ConfigMap/a/site", "Node//n", "Pod/a/p"]);
    check_digest(&view);
}
