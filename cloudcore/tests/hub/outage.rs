//! The API server out of reach: before cloudcore starts, while it runs, and for one of two replicas.

use std::{fs, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use harness::{Bench, Cluster, ClusterOptions, wait};
use proto::message::ReportKind;
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    cloud::{Cloud, get, join, node_report, pod, prepare, request, running},
    edge::{Edge, LONG, Stored},
};

/// The line between cloudcore and the API server; cut when dropped.
pub(crate) struct Line {
    _tasks: JoinSet<()>,
}

impl Line {
    pub(crate) async fn up(from: u16, to: u16) -> Result<Self> {
        let listener = wait::until("the line's port", LONG, async || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, from)).await
        })
        .await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await {
                        drop(copy_bidirectional(&mut near, &mut far).await);
                    }
                });
            }
        });
        Ok(Self { _tasks: tasks })
    }
}

/// A port for the line, and a kubeconfig that goes through it.
pub(crate) async fn through_a_line(cluster: &Cluster) -> Result<(u16, PathBuf)> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?.port();
    let kubeconfig = fs::read_to_string(cluster.kubeconfig())?;
    let through = kubeconfig.replace(&format!(":{}", cluster.port()), &format!(":{port}"));
    ensure!(through != kubeconfig, "the kubeconfig names the port");
    let path = cluster.dir().join("through-the-line.kubeconfig");
    fs::write(&path, through)?;
    Ok((port, path))
}

pub(crate) async fn outage(bench: &Bench) -> Result<()> {
    let mut cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let (port, path) = through_a_line(&cluster).await?;

    // It starts before the API server is in reach, and waits.
    let cloud = Cloud::start(&path).await?;
    let error =
        get(&client, "/api/v1/namespaces/kubeedge/secrets/casecret").await.err().context("no CA yet")?;
    ensure!(error.to_string().contains("not found"), "{error:#}");
    let line = Line::up(port, cluster.port()).await?;
    let identity = join(&client, cloud.address, "edge-1").await?;
    let mut edge = Edge::connect(cloud.address, &identity, Stored::default()).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    let made =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("web", "edge-1"))).await?;
    edge.until("the pod", |edge| edge.holds("Pod/default/web") && edge.holds("ConfigMap/default/settings"))
        .await?;

    // While it is away, the node stays connected, nothing is taken from it, and a report waits without an ack.
    drop(line);
    let id = edge.report(ReportKind::PodStatus, "Pod/default/web", &running(&made["metadata"]["uid"]));
    let held = edge.store.objects.len();
    let change = json!({"data": {"k": "2"}});
    request(&client, "PATCH", "/api/v1/namespaces/default/configmaps/settings", Some(&change)).await?;
    edge.idle_for_heartbeats(2).await?;
    ensure!(edge.store.objects.len() == held && edge.acks.iter().all(|ack| ack.id != id));

    // Back: the watch resumes, and the report lands.
    let line = Line::up(port, cluster.port()).await?;
    edge.until("the change", |edge| {
        edge.json("ConfigMap/default/settings").is_some_and(|settings| settings["data"]["k"] == "2")
    })
    .await?;
    ensure!(edge.ack(id).await?.is_empty());
    let web = get(&client, "/api/v1/namespaces/default/pods/web").await?;
    ensure!(web["status"]["phase"] == "Running");

    // Away for longer than the API server remembers (410 Gone): what was deleted meanwhile is found missing.
    drop(line);
    let settings = get(&client, "/api/v1/namespaces/default/configmaps/settings").await?;
    let last_seen = settings["metadata"]["resourceVersion"].as_str().context("it has a version")?;
    let now = json!({"gracePeriodSeconds": 0});
    request(&client, "DELETE", "/api/v1/namespaces/default/pods/web", Some(&now)).await?;
    request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("later", "edge-1"))).await?;
    cluster.kill9_apiserver()?;
    cluster.start_apiserver().await?;
    let client = cluster.client();
    let watch = format!("/api/v1/configmaps?watch=true&timeoutSeconds=1&resourceVersion={last_seen}");
    let answer = format!("{:?}", get(&client, &watch).await);
    ensure!(answer.contains("too old resource version"), "a watch can go on from {last_seen}: {answer}");
    let store = std::mem::take(&mut edge.store);
    drop(edge);
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    let _line = Line::up(port, cluster.port()).await?;
    edge.until("one pod gone and the other there", |edge| {
        !edge.holds("Pod/default/web")
            && edge.holds("Pod/default/later")
            && edge.holds("ConfigMap/default/settings")
    })
    .await?;
    cloud.stop().await
}

/// The edge moves to a replica that has not heard of its newest pod: that takes neither the pod away, nor what it needs.
pub(crate) async fn lag(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let (port, path) = through_a_line(&cluster).await?;
    let line = Line::up(port, cluster.port()).await?;
    let current = Cloud::start(cluster.kubeconfig()).await?;
    let lagging = Cloud::start(&path).await?;
    let identity = join(&client, current.address, "edge-1").await?;
    let mut edge = Edge::connect(lagging.address, &identity, Stored::default()).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    edge.until("its Node", |edge| edge.synced && edge.holds("Node//edge-1")).await?;
    drop(line);

    let store = std::mem::take(&mut edge.store);
    drop(edge);
    let mut edge = Edge::connect(current.address, &identity, store).await?;
    request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("web", "edge-1"))).await?;
    let whole = |edge: &Edge| edge.holds("Pod/default/web") && edge.holds("ConfigMap/default/settings");
    edge.until("the pod with what it needs", whole).await?;

    let store = std::mem::take(&mut edge.store);
    drop(edge);
    let mut edge = Edge::connect(lagging.address, &identity, store).await?;
    edge.idle_for_heartbeats(2).await?;
    ensure!(whole(&edge) && !edge.synced, "taken away: {:?}", edge.store.objects.keys());

    // The pod is gone before the replica hears that it was there.
    let now = json!({"gracePeriodSeconds": 0});
    request(&client, "DELETE", "/api/v1/namespaces/default/pods/web", Some(&now)).await?;
    let _line = Line::up(port, cluster.port()).await?;
    edge.until("removal of both", |edge| {
        !edge.holds("Pod/default/web") && !edge.holds("ConfigMap/default/settings")
    })
    .await?;
    current.stop().await?;
    lagging.stop().await
}
