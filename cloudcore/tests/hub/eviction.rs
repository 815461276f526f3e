//! A node that is cut off for longer than the eviction time keeps its pods, but for those that asked to be evicted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Bench, Cluster, ClusterOptions, HeartbeatNodes, wait};
use kube::Client;
use proto::message::ReportKind;
use serde_json::json;

use crate::{
    cloud::{Cloud, get, join, node_report, pod, prepare, ready, request, running},
    edge::{Edge, LONG, Stored},
};

pub(crate) async fn eviction(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    // Without healthy nodes beside it the controller manager would never evict.
    let _healthy = HeartbeatNodes::start(&client, 2).await?;
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let identity = join(&client, cloud.address, "edge-1").await?;
    let mut edge = Edge::connect(cloud.address, &identity, Stored::default()).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());

    let pods = "/api/v1/namespaces/default/pods";
    let kept = request(&client, "POST", pods, Some(&pod("kept", "edge-1"))).await?;
    let mut opted_out = pod("opted-out", "edge-1");
    opted_out["metadata"]["annotations"]["skerry.io/evict-when-unreachable"] = "true".into();
    request(&client, "POST", pods, Some(&opted_out)).await?;
    edge.until("protection", |edge| {
        let kept = edge.json("Pod/default/kept").unwrap_or_default();
        let tolerations = kept["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        !tolerations.is_empty()
            && tolerations.iter().all(|toleration| toleration.get("tolerationSeconds").is_none())
    })
    .await?;
    let uid = kept["metadata"]["uid"].clone();
    let id = edge.report(ReportKind::PodStatus, "Pod/default/kept", &running(&uid));
    ensure!(edge.ack(id).await?.is_empty());

    let store = std::mem::take(&mut edge.store);
    drop(edge);
    let eviction = Duration::from_mins(1);
    wait::until("the opted-out pod is evicted", eviction, async || {
        let pod = get(&client, &format!("{pods}/opted-out")).await?;
        ensure!(pod["metadata"]["deletionTimestamp"].is_string(), "{}", pod["spec"]["tolerations"]);
        Ok(())
    })
    .await?;
    ensure!(ready(&client, "edge-1").await? == "Unknown");
    wait::holds("the other pod stays", Duration::from_secs(10), async || {
        let pod = get(&client, &format!("{pods}/kept")).await?;
        ensure!(pod["metadata"]["deletionTimestamp"].is_null() && pod["metadata"]["uid"] == uid, "{pod}");
        Ok(())
    })
    .await?;

    // The line is back: Ready within 10 s, and the pod that the control plane called not ready is again.
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    let node = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    let status = edge.report(ReportKind::PodStatus, "Pod/default/kept", &running(&uid));
    ensure!(edge.ack(node).await?.is_empty() && edge.ack(status).await?.is_empty());
    wait::until("Ready again", Duration::from_secs(10), async || {
        let ready = ready(&client, "edge-1").await?;
        ensure!(ready == "True", "{ready}");
        Ok(())
    })
    .await?;
    let kept = get(&client, &format!("{pods}/kept")).await?;
    let conditions = kept["status"]["conditions"].as_array().cloned().unwrap_or_default();
    ensure!(
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        "{conditions:?}"
    );
    edge.until("the eviction's deletion", |edge| {
        edge.json("Pod/default/opted-out").is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_string())
    })
    .await?;
    // The taints that the outage brought are gone, and the session lives on.
    wait::until("no taint is left", LONG, async || {
        let node = get(&client, "/api/v1/nodes/edge-1").await?;
        ensure!(node["spec"]["taints"].as_array().is_none_or(Vec::is_empty), "{}", node["spec"]["taints"]);
        Ok(())
    })
    .await?;

    // Who opts out later is evictable again as before; who changes his mind is protected again.
    let limits = async |name: &str| {
        let pod = get(&client, &format!("{pods}/{name}")).await?;
        let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        let limits: Vec<_> =
            tolerations.iter().filter_map(|toleration| toleration["tolerationSeconds"].as_i64()).collect();
        anyhow::Ok((limits, pod["metadata"]["annotations"].clone()))
    };
    for (on, off) in
        [("nodes/edge-1", "true"), ("pods/kept", "true"), ("nodes/edge-1", "-"), ("pods/kept", "-")]
    {
        let annotation =
            format!("skerry.io/evict-when-unreachable{}", if off == "-" { "-" } else { "=true" });
        cluster.kubectl(&["annotate", on, &annotation]).await?;
        // Either of the two opts out.
        let wanted: &[i64] = if (on, off) == ("pods/kept", "-") { &[] } else { &[5, 5] };
        wait::until("the pod's tolerations", LONG, async || {
            let (limits, annotations) = limits("kept").await?;
            ensure!(limits == wanted, "{on} {annotation}: {limits:?} {annotations}");
            Ok(())
        })
        .await?;
    }
    others_do_not_wait_for_the_refused(&client, &cluster).await.context("refused pods")?;
    cloud.stop().await
}

/// Pods that the API server lets nobody change, more than are worked on at once, do not keep another from protection.
async fn others_do_not_wait_for_the_refused(client: &Client, cluster: &Cluster) -> Result<()> {
    let policies = "/apis/admissionregistration.k8s.io/v1";
    let group = "admissionregistration.k8s.io/v1";
    let policy = json!({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicy", "metadata": { "name": "frozen" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["UPDATE"],
            }] },
            "validations": [{ "expression": "!object.metadata.name.startsWith('frozen-')" }],
        },
    });
    request(client, "POST", &format!("{policies}/validatingadmissionpolicies"), Some(&policy)).await?;
    let binding = json!({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicyBinding", "metadata": { "name": "frozen" },
        "spec": { "policyName": "frozen", "validationActions": ["Deny"] },
    });
    request(client, "POST", &format!("{policies}/validatingadmissionpolicybindings"), Some(&binding)).await?;
    let pods = "/api/v1/namespaces/default/pods";
    request(client, "POST", pods, Some(&pod("frozen-probe", "no-edge"))).await?;
    let mut round = 0;
    wait::until("the policy in force", LONG, async || {
        round += 1;
        let label = format!("round={round}");
        let refused = cluster.kubectl(&["label", "--overwrite", "pods/frozen-probe", &label]).await.is_err();
        ensure!(refused, "a frozen pod was changed");
        Ok(())
    })
    .await?;
    for number in 0..20 {
        request(client, "POST", pods, Some(&pod(&format!("frozen-{number}"), "edge-1"))).await?;
    }
    request(client, "POST", pods, Some(&pod("later", "edge-1"))).await?;
    wait::until("the other pod protected", LONG, async || {
        let pod = get(client, &format!("{pods}/later")).await?;
        let record = &pod["metadata"]["annotations"]["skerry.io/toleration-seconds"];
        ensure!(record.is_string(), "{}", pod["metadata"]["annotations"]);
        Ok(())
    })
    .await
}
