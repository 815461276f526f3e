//! A pod with a readiness gate (KEP-580) is Ready once somebody has said so through the API, and not without.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{product::pod, setup::BUSYBOX, wait};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::Node;

const SPACE: &str = "gates";
const GATE: &str = "example.com/load-balancer";
const SOON: Duration = Duration::from_secs(90);

pub(crate) async fn run(node: &Node<'_>) -> Result<()> {
    node.scene.namespace(SPACE).await?;
    let pods = node.scene.pods(SPACE);
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "readinessGates": [{ "conditionType": GATE }],
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    pods.create(&PostParams::default(), &pod("gated", node.edge.name(), &spec)).await?;
    let is = async |type_: &str, wanted: &str| {
        let status = pods.get("gated").await?.status.unwrap_or_default();
        let condition = status.conditions.into_iter().flatten().find(|condition| condition.type_ == type_);
        let condition = condition.with_context(|| format!("there is no condition {type_}"))?;
        ensure!(condition.status == wanted, "{type_} is {}: {:?}", condition.status, condition.message);
        Ok(condition.reason.unwrap_or_default())
    };
    let says = async |wanted: &str| {
        let gate = json!({ "status": { "conditions": [{ "type": GATE, "status": wanted }] } });
        pods.patch_status("gated", &PatchParams::default(), &Patch::Strategic(gate)).await
    };
    wait::until("its containers ready", SOON, async || is("ContainersReady", "True").await).await?;
    ensure!(is("Ready", "False").await? == "ReadinessGatesNotReady");
    says("True").await?;
    wait::until("the pod ready", SOON, async || is("Ready", "True").await).await?;
    says("False").await?;
    wait::until("the pod unready again", SOON, async || is("Ready", "False").await).await?;
    // Our own writes left the other's condition alone.
    is(GATE, "False").await?;
    Ok(())
}
