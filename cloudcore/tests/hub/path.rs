//! A node joins, registers, gets its pods, reports, is cut off and comes back.

use anyhow::{Context, Result, ensure};
use harness::{Bench, ClusterOptions, wait};
use proto::message::{Answer, Question, ReportKind, TokenQuestion};
use serde_json::{Value, json};

use crate::{
    cloud::{Cloud, get, join, node_report, pod, prepare, ready, ready_condition, request, running},
    edge::{Edge, LONG, Stored},
};

/// All that cloudcore needs to be allowed.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cloudcore}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch, create, patch]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch, patch, delete]}
- {apiGroups: [""], resources: [pods/status], verbs: [patch]}
- {apiGroups: [""], resources: [configmaps, secrets, persistentvolumeclaims, persistentvolumes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [serviceaccounts/token, events], verbs: [create]}
- {apiGroups: [node.k8s.io], resources: [runtimeclasses], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [namespaces], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cloudcore}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cloudcore}
subjects: [{kind: User, name: "skerry:cloudcore"}]
---
apiVersion: v1
kind: Namespace
metadata: {name: kubeedge}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: cloudcore, namespace: kubeedge}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: cloudcore, namespace: kubeedge}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: cloudcore}
subjects: [{kind: User, name: "skerry:cloudcore"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: cloudcore, namespace: kube-node-lease}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: cloudcore, namespace: kube-node-lease}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: cloudcore}
subjects: [{kind: User, name: "skerry:cloudcore"}]
"#;

pub(crate) async fn whole_path(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    cluster.apply(RIGHTS).await?;
    let kubeconfig = cluster.kubeconfig_for("skerry:cloudcore", &[])?;
    let cloud = Cloud::start(&kubeconfig).await?;
    let identity = join(&client, cloud.address, "edge-1").await?;
    let mut edge = Edge::connect(cloud.address, &identity, Stored::default()).await?;
    edge.until("first sync", |edge| edge.synced).await?;
    ensure!(edge.store.objects.is_empty(), "nothing is this node's yet");

    // Registration, with labels that an operator may own from then on.
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    ensure!(ready(&client, "edge-1").await? == "True");
    cluster.kubectl(&["label", "nodes", "edge-1", "node-role.kubernetes.io/edge=true"]).await?;
    cluster
        .kubectl(&["label", "--overwrite", "nodes", "edge-1", "node-role.kubernetes.io/edge=", "site=b"])
        .await?;
    let since = ready_condition(&client, "edge-1").await?["lastTransitionTime"].clone();
    wait::until("a second has passed", LONG, async || {
        let now = jiff::Timestamp::now().to_string();
        ensure!(*now > *since.as_str().context("a transition has a time")?, "{now}");
        Ok(())
    })
    .await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    let again = ready_condition(&client, "edge-1").await?;
    ensure!(again["lastTransitionTime"] == since, "a heartbeat is no transition: {again} after {since}");
    let node = get(&client, "/api/v1/nodes/edge-1").await?;
    ensure!(
        node["metadata"]["labels"]["site"] == "b"
            && node["metadata"]["labels"]["node-role.kubernetes.io/edge"] == ""
    );
    ensure!(node["status"]["addresses"].as_array().is_some_and(|addresses| addresses.len() == 3), "{node}");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
    let first = wait::until("a lease with its node", LONG, async || {
        let lease = get(&client, lease).await?;
        ensure!(lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"], "{lease}");
        Ok(lease["spec"]["renewTime"].clone())
    })
    .await?;
    wait::until("the next renewal", LONG, async || {
        let lease = get(&client, lease).await?;
        ensure!(lease["spec"]["renewTime"] != first);
        ensure!(lease["metadata"]["managedFields"].is_null(), "{lease}");
        Ok(())
    })
    .await?;

    // A pod arrives with what it refers to, and its status lands.
    let made =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("web", "edge-1"))).await?;
    let uid = made["metadata"]["uid"].clone();
    edge.until("the pod", |edge| {
        edge.holds("Pod/default/web")
            && edge.holds("ConfigMap/default/settings")
            && edge.holds("ConfigMap/default/kube-root-ca.crt")
            && edge.holds("Node//edge-1")
    })
    .await?;
    edge.until("protection", |edge| {
        let pod = edge.json("Pod/default/web").unwrap_or_default();
        let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        !tolerations.is_empty()
            && tolerations.iter().all(|toleration| toleration.get("tolerationSeconds").is_none())
    })
    .await?;
    ensure!(edge.json("Pod/default/web").is_some_and(|pod| pod.get("status").is_none()));
    let before = edge.changes;
    let id = edge.report(ReportKind::PodStatus, "Pod/default/web", &running(&uid));
    ensure!(edge.ack(id).await?.is_empty());
    let web = get(&client, "/api/v1/namespaces/default/pods/web").await?;
    ensure!(web["status"]["phase"] == "Running" && web["status"]["podIP"] == "10.1.1.1", "{web}");
    let scheduled = web["status"]["conditions"].as_array().context("conditions")?;
    ensure!(scheduled.iter().any(|condition| condition["type"] == "Ready"));
    let event = json!({"metadata": {"name": "web.1"}, "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": uid},
        "reason": "Started", "message": "m", "type": "Normal", "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "edged"}});
    for _ in 0..2 {
        let id = edge.report(ReportKind::Event, "Pod/default/web", &event);
        ensure!(edge.ack(id).await?.is_empty(), "the second time it counts as delivered");
    }
    let seen = cluster.kubectl(&["events", "--for=pod/web"]).await?;
    ensure!(seen.contains("Started"), "{seen}");
    let event = get(&client, "/api/v1/namespaces/default/events/web.1").await?;
    ensure!(event["source"]["host"] == "edge-1" && event["involvedObject"]["uid"] == uid, "{event}");
    let rebooted = json!({"metadata": {"name": "edge-1.1"}, "involvedObject": {"kind": "Node", "name": "edge-1"}, "reason": "Rebooted",
        "message": "m", "type": "Warning", "count": 1, "source": {"component": "edged"}});
    let id = edge.report(ReportKind::Event, "Node//edge-1", &rebooted);
    ensure!(edge.ack(id).await?.is_empty());
    get(&client, "/api/v1/namespaces/default/events/edge-1.1").await?;

    // A token for the pod's own account.
    let id = edge.ask(Question::ServiceAccountToken(TokenQuestion {
        namespace: "default".to_owned(),
        service_account: "default".to_owned(),
        pod_name: "web".to_owned(),
        pod_uid: uid.as_str().unwrap_or_default().to_owned(),
        audiences: Vec::new(),
        expiration_seconds: 3600,
    }));
    edge.until("token", |edge| edge.answers.iter().any(|(of, _)| *of == id)).await?;
    let Some((_, Answer::ServiceAccountToken(status))) = edge.answers.first() else {
        anyhow::bail!("no token: {:?}", edge.answers)
    };
    let status: Value = serde_json::from_slice(status)?;
    ensure!(status["token"].as_str().is_some_and(|token| token.split('.').count() == 3));

    // A change while the line is down arrives as a difference.
    ensure!(
        edge.changes == before,
        "the edge's own reports came back to it: {} changes",
        edge.changes - before
    );
    let store = std::mem::take(&mut edge.store);
    drop(edge);
    let change = json!({"data": {"k": "2"}});
    request(&client, "PATCH", "/api/v1/namespaces/default/configmaps/settings", Some(&change)).await?;
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    edge.until("the change", |edge| {
        edge.synced
            && edge.json("ConfigMap/default/settings").is_some_and(|settings| settings["data"]["k"] == "2")
    })
    .await?;
    ensure!(edge.changes == 1, "{} changes for one", edge.changes);

    // A restart of cloudcore finds the same store in sync, and deletes nothing.
    let store = std::mem::take(&mut edge.store);
    let held = store.objects.len();
    drop(edge);
    cloud.stop().await?;
    let cloud = Cloud::start(&kubeconfig).await?;
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    edge.until("sync after a restart", |edge| edge.synced).await?;
    ensure!((edge.changes, edge.store.objects.len()) == (0, held));

    // A pod that has ended stays so, also for an edge that has lost its store.
    let job =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("job", "edge-1"))).await?;
    let mut ended = running(&job["metadata"]["uid"]);
    ended["status"]["phase"] = "Failed".into();
    let id = edge.report(ReportKind::PodStatus, "Pod/default/job", &ended);
    ensure!(edge.ack(id).await?.is_empty());
    let failed = |edge: &Edge| {
        edge.json("Pod/default/job").is_some_and(|job| job["status"] == json!({"phase": "Failed"}))
    };
    edge.until("the phase", failed).await?;
    drop(edge);
    let mut edge = Edge::connect(cloud.address, &identity, Stored::default()).await?;
    edge.until("the phase again", failed).await?;
    let id = edge.report(ReportKind::PodStatus, "Pod/default/job", &running(&job["metadata"]["uid"]));
    ensure!(!edge.ack(id).await?.is_empty(), "it does not run again");
    ensure!(get(&client, "/api/v1/namespaces/default/pods/job").await?["status"]["phase"] == "Failed");
    request(
        &client,
        "DELETE",
        "/api/v1/namespaces/default/pods/job",
        Some(&json!({"gracePeriodSeconds": 0})),
    )
    .await?;
    edge.until("removal", |edge| edge.synced && !edge.holds("Pod/default/job")).await?;

    // A pod is deleted: the edge is told, and says when it is done.
    let id = edge.report(ReportKind::PodTerminated, "Pod/default/web", &json!({"uid": uid}));
    ensure!(!edge.ack(id).await?.is_empty(), "nobody has deleted it");
    cluster.kubectl(&["delete", "pod", "web", "--wait=false"]).await?;
    edge.until("deletion", |edge| {
        edge.json("Pod/default/web").is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_string())
    })
    .await?;
    let id = edge.report(ReportKind::PodTerminated, "Pod/default/web", &json!({"uid": uid}));
    ensure!(edge.ack(id).await?.is_empty());
    edge.until("removal", |edge| !edge.holds("Pod/default/web") && !edge.holds("ConfigMap/default/settings"))
        .await?;
    let id = edge.report(ReportKind::PodStatus, "Pod/default/web", &running(&uid));
    ensure!(!edge.ack(id).await?.is_empty(), "a late status of a pod that is gone is refused for good");

    // A Node that somebody deletes comes back while it is connected.
    cluster.kubectl(&["delete", "node", "edge-1"]).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    let mut uid = node["metadata"]["uid"].clone();
    for last in [false, true] {
        edge.until("the new Node", |edge| {
            edge.json("Node//edge-1").is_some_and(|node| node["metadata"]["uid"] != uid)
        })
        .await?;
        if !last {
            uid = edge.json("Node//edge-1").unwrap_or_default()["metadata"]["uid"].clone();
            cluster.kubectl(&["delete", "node", "edge-1"]).await?;
        }
    }
    cloud.stop().await
}
