//! Both dialects of selecting edge nodes are scheduled onto one, whatever the value of its label.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{HeartbeatNodes, wait};
use serde_json::{Value, json};

use crate::stage::Stage;

const EDGE: &str = "node-role.kubernetes.io/edge";
const SOON: Duration = Duration::from_mins(1);

pub(crate) async fn both_dialects(stage: &Stage<'_>) -> Result<()> {
    let kubectl = &stage.cluster;
    // A node of the cloud, to be left alone.
    let _cloud = HeartbeatNodes::start(&kubectl.client(), 1).await?;
    kubectl.kubectl(&["label", "nodes", "edge-1", "node-role.kubernetes.io/edge=true"]).await?;
    apply(stage, &daemon_set()).await?;
    apply(stage, &deployment()).await?;
    for value in ["true", ""] {
        let label = format!("{EDGE}={value}");
        kubectl.kubectl(&["label", "--overwrite", "nodes", "edge-1", &label]).await?;
        for pod in pods() {
            apply(stage, &pod).await?;
        }
        for name in ["empty", "true", "terms", "preferred"] {
            wait::until(&format!("pod {name} on an edge node labelled {value:?}"), SOON, async || {
                let pod = get(stage, "pod", name).await?;
                ensure!(pod["spec"]["nodeName"] == "edge-1", "{} {}", pod["spec"], pod["status"]);
                Ok(())
            })
            .await?;
        }
        let other = get(stage, "pod", "other").await?;
        ensure!(other["spec"]["nodeSelector"] == json!({EDGE: "gateway"}), "{}", other["spec"]);
        ensure!(other["spec"].get("nodeName").is_none(), "{}", other["spec"]);
        let delete =
            ["delete", "pods", "empty", "true", "terms", "preferred", "other", "--force", "--grace-period=0"];
        kubectl.kubectl(&delete).await?;
        wait::until("one pod of the DaemonSet and the Deployment", SOON, async || {
            let daemons = get(stage, "daemonset", "daemon").await?;
            ensure!(daemons["status"]["currentNumberScheduled"] == 1, "{}", daemons["status"]);
            ensure!(daemons["status"]["desiredNumberScheduled"] == 1, "{}", daemons["status"]);
            let pods = kubectl.kubectl(&["get", "pods", "-l", "app=web", "-o", "json"]).await?;
            let pods: Value = serde_json::from_str(&pods)?;
            ensure!(pods["items"][0]["spec"]["nodeName"] == "edge-1", "{pods}");
            Ok(())
        })
        .await?;
    }
    // What an operator wrote is left as it is, where the scheduler does not look at it.
    let web = get(stage, "deployment", "web").await?;
    ensure!(web["spec"]["template"]["spec"]["nodeSelector"] == json!({EDGE: ""}), "{web}");
    // The requirement is added to what is there.
    apply(stage, &pods()[2]).await?;
    let terms = get(stage, "pod", "terms").await?;
    let required =
        &terms["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let exists = json!({"key": EDGE, "operator": "Exists"});
    let linux = json!({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]});
    let by_name = json!({"key": "metadata.name", "operator": "In", "values": ["edge-1"]});
    ensure!(
        required["nodeSelectorTerms"]
            == json!([{"matchExpressions": [linux, exists]}, {"matchExpressions": [exists], "matchFields": [by_name]}]),
        "{required}"
    );
    ensure!(terms["spec"]["nodeSelector"] == json!({"site": "north"}), "{}", terms["spec"]);
    kubectl
        .kubectl(&["label", "--overwrite", "nodes", "edge-1", "node-role.kubernetes.io/edge=true"])
        .await?;
    kubectl.kubectl(&["delete", "daemonset/daemon", "deployment/web", "--wait=false"]).await?;
    kubectl.kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"]).await?;
    Ok(())
}

fn spec(selector: &Value, affinity: &Value) -> Value {
    json!({"nodeSelector": selector, "affinity": affinity, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "registry.invalid/none"}]})
}

fn pods() -> [Value; 5] {
    let pod = |name: &str, selector: &Value, affinity: &Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec(selector, affinity)});
    let terms = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["edge-1"]}]}]}}});
    let preferred = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "site", "operator": "Exists"}]}}]}});
    let none = Value::Null;
    [
        pod("empty", &json!({EDGE: ""}), &none),
        pod("true", &json!({EDGE: "true"}), &none),
        pod("terms", &json!({EDGE: "", "site": "north"}), &terms),
        pod("preferred", &json!({EDGE: ""}), &preferred),
        pod("other", &json!({EDGE: "gateway"}), &none),
    ]
}

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": spec(&json!({EDGE: ""}), &Value::Null)})
}

fn daemon_set() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon"},
        "spec": {"selector": {"matchLabels": {"app": "daemon"}}, "template": template("daemon")}})
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template("web")}})
}

async fn apply(stage: &Stage<'_>, object: &Value) -> Result<()> {
    stage.cluster.apply(&object.to_string()).await.map(drop)
}

async fn get(stage: &Stage<'_>, kind: &str, name: &str) -> Result<Value> {
    let text = stage.cluster.kubectl(&["get", kind, name, "-o", "json"]).await?;
    serde_json::from_str(&text).context("kubectl prints JSON")
}
