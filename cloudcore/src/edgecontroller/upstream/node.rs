//! A node's own registration and status.
//!
//! The Node is created if it is missing. If it is there, labels and annotations that are missing are added, and what an
//! operator has set is never changed. The status is a merge patch on the version that was read: conditions are merged by
//! type, so that those of other writers stay; other lists are replaced, because `addresses` may hold a type twice, which
//! neither server-side apply nor a strategic merge can express.

use std::net::SocketAddr;

use jiff::Timestamp;
use proto::ResourceKey;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::info;

use super::{Reporter, Upstream};
use crate::{
    cloudhub::authz::{self, Denied},
    edgecontroller::{
        api::{self, Failure, Patch},
        claim::Claim,
        objects::{EDGE_LABEL, KEY_ANNOTATION, resource_version},
    },
};

/// Labels of which kube-controller-manager keeps a copy under an older name on every Node, which it writes when it gets to it: with
/// a thousand new nodes a minute later, and the edge is sent its Node once more.
const COPIED: [&str; 2] = ["kubernetes.io/arch", "kubernetes.io/os"];

/// What is looked at of a Node that is there. Most of one is the names of images, and whose field is whose.
#[derive(Debug, Default, Deserialize)]
struct Current {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    resource_version: String,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Value>,
}

impl Upstream {
    /// Whether nothing of the report is to be written, as far as the cache knows. If it lags, that is found later: what was
    /// reported last is compared again as long as the node is connected.
    pub(super) fn has_node_status(
        &self,
        reporter: &Reporter,
        key: &ResourceKey,
        report: &Value,
        print: u64,
    ) -> bool {
        let Some((facts, object)) = self.index.node(key.name()).zip(self.index.get(key)) else {
            return false;
        };
        let Ok(current) = serde_json::from_slice::<Current>(&object.bytes) else { return false };
        facts.status == Some(print)
            && facts.key_hash.as_deref() == Some(&*reporter.key_hash)
            && missing_metadata(&current, reporter, report).is_none()
    }

    /// Registers the node and writes its status. A conflict means that somebody wrote in between: to be tried again.
    pub(super) async fn node_status(
        &self,
        reporter: &Reporter,
        key: &ResourceKey,
        report: &Value,
        claim: &Claim,
    ) -> Result<Result<(), Denied>, Failure> {
        let client = &self.client;
        let node = &*reporter.node;
        let path = format!("/api/v1/nodes/{node}");
        let answer = match api::read(client, &path).await {
            Err(Failure::Refused { code: 404, .. }) => {
                match api::create(client, "/api/v1/nodes", &registration(reporter, report)).await {
                    Ok(created) => {
                        info!(node, "node registered");
                        created
                    }
                    // Somebody else was faster.
                    Err(Failure::Refused { code: 409, .. }) => api::read(client, &path).await?,
                    Err(failure) => return Err(failure),
                }
            }
            answer => answer?,
        };
        let mut current: Current = answer.part()?;
        let held_by = current.metadata.annotations.get(KEY_ANNOTATION).and_then(Value::as_str);
        if held_by.is_some_and(|key| *key != *reporter.key_hash) {
            return Ok(Err(Denied::OtherKey));
        }
        if let Some(patch) = missing_metadata(&current, reporter, report) {
            current = api::patch(client, &path, Patch::Merge, &patch).await?.part()?;
        }
        let version = resource_version(&current.metadata.resource_version);
        claim.confirm(client, &self.index, node, key, version).await?;
        let patch = status_patch(&current, report, Timestamp::now());
        let written = api::patch(client, &format!("{path}/status"), Patch::Merge, &patch).await?;
        claim.wrote(key, written.resource_version()?);
        Ok(Ok(()))
    }
}

fn registration(reporter: &Reporter, report: &Value) -> Value {
    let mut spec = Map::new();
    if report["spec"]["unschedulable"] == true {
        spec.insert("unschedulable".to_owned(), true.into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": &*reporter.node,
            "labels": labels(report),
            "annotations": annotations(reporter, report),
        },
        "spec": spec,
    })
}

/// With the edge label `"true"`: `kubectl label nodes N node-role.kubernetes.io/edge=true`, which people are told to run,
/// fails on another value without `--overwrite`. Code keys on its presence only, and an operator's value stays.
fn labels(report: &Value) -> Map<String, Value> {
    let mut labels = allowed(report, "labels");
    labels.insert(EDGE_LABEL.to_owned(), "true".into());
    for label in COPIED {
        if let Some(value) = labels.get(label) {
            let value = value.clone();
            labels.entry(format!("beta.{label}")).or_insert(value);
        }
    }
    labels
}

fn annotations(reporter: &Reporter, report: &Value) -> Map<String, Value> {
    let mut annotations = allowed(report, "annotations");
    // Ours say what cloudcore does with the node, up to which ConfigMap it is sent: they are the operator's.
    annotations.retain(|key, _| !key.starts_with("skerry.io/"));
    annotations.insert(KEY_ANNOTATION.to_owned(), (*reporter.key_hash).into());
    annotations
}

fn allowed(report: &Value, field: &str) -> Map<String, Value> {
    let given = report["metadata"][field].as_object().cloned().unwrap_or_default();
    given.into_iter().filter(|(key, value)| authz::may_label(key) && value.is_string()).collect()
}

/// What the Node lacks of the report's labels and annotations.
fn missing_metadata(current: &Current, reporter: &Reporter, report: &Value) -> Option<Value> {
    let missing = |held: &Map<String, Value>, wanted: Map<String, Value>| -> Map<String, Value> {
        wanted.into_iter().filter(|(key, _)| !held.contains_key(key)).collect()
    };
    let Metadata { resource_version: version, labels: held_labels, annotations: held_annotations } =
        &current.metadata;
    let labels = missing(held_labels, labels(report));
    let annotations = missing(held_annotations, annotations(reporter, report));
    if labels.is_empty() && annotations.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"resourceVersion": version, "labels": labels, "annotations": annotations}}))
}

/// The report's status with the heartbeat of now, over the status that is there.
fn status_patch(current: &Current, report: &Value, now: Timestamp) -> Value {
    let now = format!("{now:.0}");
    let mut status = report["status"].as_object().cloned().unwrap_or_default();
    let reported = match status.remove("conditions") {
        Some(Value::Array(conditions)) => conditions,
        _ => Vec::new(),
    };
    let mut conditions = current.status.conditions.clone();
    for mut condition in reported.into_iter().filter(Value::is_object) {
        condition["lastHeartbeatTime"] = now.as_str().into();
        let held = conditions.iter_mut().find(|held| held["type"] == condition["type"]);
        // As it is seen from the cloud: a node that was away was Unknown meanwhile, and its own clock may be wrong.
        let same = held.as_ref().is_some_and(|held| held["status"] == condition["status"]);
        condition["lastTransitionTime"] = match &held {
            Some(held) if same && held["lastTransitionTime"].is_string() => {
                held["lastTransitionTime"].clone()
            }
            _ => now.as_str().into(),
        };
        match held {
            Some(held) => *held = condition,
            None => conditions.push(condition),
        }
    }
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), conditions.into());
    }
    json!({"metadata": {"resourceVersion": current.metadata.resource_version}, "status": status})
}

/// The API server takes the first address of the type that it prefers: the node's own are behind the one that answers for it.
/// A Hostname is not among them: most API servers that are not told otherwise prefer one, and that of an edge node leads nowhere.
pub(super) fn lead_to(kubelet: SocketAddr, status: &mut Value) {
    let address = kubelet.ip().to_string();
    let own = status["addresses"].as_array().cloned().unwrap_or_default();
    let own = own.into_iter().filter(|own| own["type"] != "Hostname" && own["address"] != *address);
    let first = json!({"type": "InternalIP", "address": address});
    status["addresses"] = [first].into_iter().chain(own).collect();
    status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": kubelet.port()}});
}

/// All that is made of a report before the API server sees it.
#[cfg(feature = "fuzz")]
pub(super) fn take_apart(reporter: &Reporter, report: &Value) {
    let mut node = registration(reporter, report);
    assert_eq!(node["metadata"]["annotations"][KEY_ANNOTATION], *reporter.key_hash);
    let current = |node: &Value| Current::deserialize(node).expect("what we make can be read");
    for _ in 0..2 {
        let mut status = status_patch(&current(&node), report, Timestamp::UNIX_EPOCH)["status"].take();
        lead_to(SocketAddr::from(([192, 0, 2, 1], 10003)), &mut status);
        node["status"] = status;
    }
    assert_eq!(missing_metadata(&current(&node), reporter, report), None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edgecontroller::objects::SYNC_CONFIG_ANNOTATION;

    fn held(value: Value) -> Current {
        serde_json::from_value(value).unwrap()
    }

    fn reporter() -> Reporter {
        Reporter { node: "n".into(), key_hash: "k".into() }
    }

    #[test]
    fn the_api_server_is_led_to_cloudcore_and_people_still_see_the_nodes_own_address() {
        let mut status = json!({"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.9"}]});
        let wanted = json!({
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "10.0.0.9"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10003}},
        });
        for _ in 0..2 {
            lead_to("192.0.2.1:10003".parse().unwrap(), &mut status);
            assert_eq!(status, wanted);
        }
    }

    #[test]
    fn an_operators_labels_survive_and_missing_ones_are_added() {
        let report = json!({"metadata": {"labels": {EDGE_LABEL: "", "site": "a", "new": "1",
            "node-role.kubernetes.io/control-plane": ""}, "annotations": {KEY_ANNOTATION: "forged", SYNC_CONFIG_ANNOTATION: "kube-system/any"}}, "status": {}});
        let current =
            held(json!({"metadata": {"resourceVersion": "7", "labels": {EDGE_LABEL: "", "site": "b"}}}));
        assert_eq!(
            missing_metadata(&current, &reporter(), &report).unwrap(),
            json!({"metadata": {"resourceVersion": "7", "labels": {"new": "1"}, "annotations": {KEY_ANNOTATION: "k"}}})
        );
        let complete = held(json!({"metadata": {"labels": {EDGE_LABEL: "true", "site": "b", "new": "2"},
            "annotations": {KEY_ANNOTATION: "k"}}}));
        assert_eq!(missing_metadata(&complete, &reporter(), &report), None);
        assert_eq!(registration(&reporter(), &json!({}))["metadata"]["labels"], json!({EDGE_LABEL: "true"}));
        let report = json!({"metadata": {"labels": {"kubernetes.io/arch": "arm64"}}});
        let labels =
            json!({EDGE_LABEL: "true", "kubernetes.io/arch": "arm64", "beta.kubernetes.io/arch": "arm64"});
        assert_eq!(registration(&reporter(), &report)["metadata"]["labels"], labels);
    }

    #[test]
    fn a_node_may_come_cordoned_and_chooses_no_taints() {
        let report =
            json!({"spec": {"unschedulable": true, "podCIDR": "10.0.0.0/8", "taints": [{"key": "a"}]}});
        assert_eq!(registration(&reporter(), &report)["spec"], json!({"unschedulable": true}));
        assert_eq!(registration(&reporter(), &json!({}))["spec"], json!({}));
    }

    #[test]
    fn conditions_are_merged_by_type() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let current = held(json!({"metadata": {"resourceVersion": "7"}, "status": {"conditions": [
            {"type": "NetworkUnavailable", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "DiskPressure", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}));
        let report = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2019-01-01T00:00:00Z"},
            {"type": "DiskPressure", "status": "False"}, {"type": "PIDPressure", "status": "False"}]}});
        let patch = status_patch(&current, &report, now);
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["status"]["addresses"], report["status"]["addresses"]);
        let time = |at: usize| patch["status"]["conditions"][at]["lastTransitionTime"].as_str().unwrap();
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 4);
        assert_eq!(conditions[0], current.status.conditions[0]);
        assert_eq!((conditions[1]["status"].as_str(), time(1)), (Some("True"), "2023-11-14T22:13:20Z"));
        assert!(conditions[1].get("reason").is_none());
        assert_eq!(time(2), "2020-01-01T00:00:00Z");
        assert_eq!(conditions[2]["lastHeartbeatTime"], "2023-11-14T22:13:20Z");
        assert_eq!(time(3), "2023-11-14T22:13:20Z");
    }
}
