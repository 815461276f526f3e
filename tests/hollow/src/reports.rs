//! What a hollow node says of itself and its pods: as edgecore does, of the same size, but for what only a runtime knows.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// The label by which all hollow nodes of a prefix are found, and deleted: its value is the prefix.
pub(crate) const LABEL: &str = "skerry.io/hollow";

/// What a Pod object says that matters here.
#[derive(Deserialize)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) uid: String,
    creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    #[serde(default)]
    image: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: String,
}

impl Pod {
    /// It is not to run again.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

pub(crate) fn node(name: &str, prefix: &str) -> Bytes {
    let now = now();
    let condition = |type_: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": now, "lastHeartbeatTime": now,
        })
    };
    let amounts = json!({ "cpu": "4", "memory": "8Gi", "ephemeral-storage": "64Gi", "pods": "110" });
    json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node-role.kubernetes.io/edge": "",
            LABEL: prefix,
        }},
        "status": {
            "addresses": [{ "type": "Hostname", "address": name }],
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "the node has sufficient memory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the node has sufficient disk space"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "the node has sufficient process ids"),
                condition("Ready", "True", "KubeletReady", "hollow: there is no runtime, and every pod is said to run"),
            ],
            "nodeInfo": {
                "architecture": "amd64", "bootID": "hollow", "containerRuntimeVersion": "hollow://0",
                "kernelVersion": "hollow", "kubeProxyVersion": "", "kubeletVersion": concat!("v1.37.2-skerry-v", env!("CARGO_PKG_VERSION")),
                "machineID": "hollow", "operatingSystem": "linux", "osImage": "hollow", "systemUUID": "hollow",
            },
        },
    })
    .to_string()
    .into()
}

/// That the pod runs, since it was made: however often that is told, it is the same. Without an address: behind it there is
/// nobody whom a Service could send anything to.
pub(crate) fn running(pod: &Pod) -> Bytes {
    let since = &pod.metadata.creation_timestamp;
    let condition = |type_: &str| json!({ "type": type_, "status": "True", "lastTransitionTime": since });
    let containers: Vec<Value> = pod
        .spec
        .containers
        .iter()
        .map(|Container { name, image }| {
            json!({
                "name": name, "image": image, "imageID": image, "ready": true, "started": true, "restartCount": 0,
                "containerID": format!("hollow://{}-{name}", pod.metadata.uid),
                "state": { "running": { "startedAt": since } },
            })
        })
        .collect();
    let conditions = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({
        "uid": pod.metadata.uid,
        "status": {
            "phase": "Running", "startTime": since, "conditions": conditions, "containerStatuses": containers,
        },
    })
    .to_string()
    .into()
}

pub(crate) fn terminated(pod: &Pod) -> Bytes {
    json!({ "uid": pod.metadata.uid }).to_string().into()
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}
