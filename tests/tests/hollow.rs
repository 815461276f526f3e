//! Hollow nodes against the real control plane, over either transport.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Cluster, ClusterOptions, bench,
    process::{command, kill9, output},
    product::{Cloud, is_running, ready},
    wait,
};
use hollow::{
    Fleet, FleetConfig, Identities, Snapshot, Transport,
    cluster::{self, Workload},
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use proto::ResourceKey;

const NODES: usize = 200;
/// Changes a second.
const RATE: u32 = 200;
const SOON: Duration = Duration::from_secs(30);
/// Of cloudcore to the API server. Those that are dialed before the first has agreed to HTTP/2 are closed again.
const CONNECTIONS: usize = 2;
/// For all of it, once the cluster is there.
const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hollow_nodes_do_as_nodes_do_over_either_transport() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let fast = ["--kube-api-qps=1000", "--kube-api-burst=2000"].map(str::to_owned);
        let options = ClusterOptions {
            node_monitor_grace_period: SOON,
            kube_controller_manager_args: fast.into(),
            ..ClusterOptions::default()
        };
        let cluster = bench.cluster(&options).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[Ipv4Addr::LOCALHOST]).await?;
        let begun = Instant::now();
        let (mut over_websocket, mut over_quic) = tokio::try_join!(
            live(bench, &cluster, &cloud, Transport::Websocket),
            live(bench, &cluster, &cloud, Transport::Quic)
        )?;
        delays_are_measured(&cloud).await?;
        come_back(&mut [&mut over_websocket, &mut over_quic], &cloud).await?;
        let connections = connections(&cloud, &cluster)?;
        ensure!((1..=CONNECTIONS).contains(&connections), "{connections} connections to the API server");
        tokio::try_join!(go(over_websocket, &cluster), go(over_quic, &cluster))?;
        ensure!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
        Ok(())
    })
    .await
}

/// A fleet, and what the API has of it.
struct Scene {
    fleet: Fleet,
    prefix: String,
}

/// All nodes Ready with a pod each, and all changes arrived.
async fn live(bench: &Bench, cluster: &Cluster, cloud: &Cloud, transport: Transport) -> Result<Scene> {
    let client = cluster.client();
    let prefix = format!("hollow-{transport:?}").to_lowercase();
    let config = FleetConfig {
        server: cloud.endpoint_at(Ipv4Addr::LOCALHOST),
        nodes: NODES,
        prefix: prefix.clone(),
        transport,
        heartbeat: Duration::from_secs(2),
        ramp: 100.0,
        identities: Identities::signed(cluster::authorities(&client).await?, bench.run.dir().join(&prefix)),
    };
    let mut fleet = Fleet::start(&config)?;
    all_live(&mut fleet).await?;
    let now = fleet.snapshot();
    let over = if transport == Transport::Quic { now.quic } else { now.websocket };
    ensure!(over == NODES, "{over} nodes are connected over {transport:?}: {now:?}");
    let nodes: Api<Node> = Api::all(client.clone());
    let labelled = ListParams::default().labels(&format!("skerry.io/hollow={prefix}"));
    let found = nodes.list(&labelled).await?.items;
    found.iter().try_for_each(ready)?;
    let names: BTreeSet<String> = found.iter().map(ResourceExt::name_any).collect();
    ensure!(names == config.names().into_iter().collect(), "{} nodes registered", names.len());

    let configs = cluster::populate(&client, &prefix, Workload { nodes: NODES, pods: 1, shared: 0 }).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &prefix);
    wait::until("a pod on each node Running", SOON, async || {
        let found = pods.list(&ListParams::default()).await?.items;
        ensure!(found.len() == NODES, "{} pods", found.len());
        found.iter().try_for_each(is_running)?;
        // cloudcore changes each pod once: what comes of that is not sent again, but for the first time.
        let tolerations =
            found.iter().flat_map(|pod| pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten()));
        let limited = tolerations.filter(|toleration| toleration.toleration_seconds.is_some()).count();
        ensure!(limited == 0, "{limited} tolerations are limited");
        anyhow::Ok(())
    })
    .await?;

    let changes = fleet.changes().clone();
    let all = Duration::from_secs(2);
    let outcome = changes.run(&client, &configs, RATE.into(), all, SOON).await?;
    ensure!(outcome.arrived == outcome.asked && outcome.failed == 0, "{outcome:?}");
    ensure!(outcome.arrived >= NODES as u64, "{outcome:?}: fewer changes than nodes");

    let of_prefix = format!("--selector=skerry.io/hollow={prefix}");
    cluster.kubectl(&["label", "nodes", &of_prefix, "site=north"]).await?;
    wait::until("the label at each node", SOON, async || {
        for (number, name) in config.names().iter().enumerate() {
            let object = fleet.object(number, &ResourceKey::new("Node", "", name)?);
            let node: Node = serde_json::from_slice(&object.context("no Node")?)?;
            let site = node.labels().get("site");
            ensure!(site.is_some_and(|site| site == "north"), "{name} is at {site:?}");
        }
        anyhow::Ok(())
    })
    .await?;
    same_digests(&fleet, cloud).await?;
    Ok(Scene { fleet, prefix })
}

/// Pods that are deleted go, and so do the nodes.
async fn go(Scene { fleet, prefix }: Scene, cluster: &Cluster) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), &prefix);
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    wait::until("no pod left", SOON, async || {
        let left = pods.list_metadata(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} pods");
        anyhow::Ok(())
    })
    .await?;
    fleet.stop().await;
    Ok(())
}

/// cloudcore dies and comes back: so do all sessions, and nothing is sent again.
async fn come_back(scenes: &mut [&mut Scene], cloud: &Cloud) -> Result<()> {
    let before: Vec<Snapshot> = scenes.iter_mut().map(|scene| scene.fleet.snapshot()).collect();
    let old = cloud.pid()?;
    kill9(old)?;
    wait::until("another cloudcore with all sessions", SOON, async || {
        ensure!(cloud.pid()? != old, "no other cloudcore");
        for (scene, before) in scenes.iter_mut().zip(&before) {
            let now = scene.fleet.snapshot();
            ensure!(now.sessions >= before.sessions + NODES as u64, "{now:?}");
            is_live(&now)?;
        }
        anyhow::Ok(())
    })
    .await?;
    for (scene, before) in scenes.iter_mut().zip(&before) {
        same_digests(&scene.fleet, cloud).await?;
        let again = scene.fleet.snapshot().deltas - before.deltas;
        ensure!(again == 0, "{again} objects were sent again to {}", scene.prefix);
    }
    Ok(())
}

/// cloudcore's metrics say of each batch of changes how long it took, to the link and to the ack.
async fn delays_are_measured(cloud: &Cloud) -> Result<()> {
    wait::until("an ack of each batch in the metrics", SOON, async || {
        let page = cloud.admin("/metrics").await?.body;
        let value = |name: &str| {
            let text = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            text.with_context(|| format!("no {name}: {page}"))
        };
        let of = |what: &str| {
            let name = format!("cloudcore_batch_{what}_seconds");
            let (count, sum) = (value(&format!("{name}_count"))?, value(&format!("{name}_sum"))?);
            anyhow::Ok((count.parse::<usize>()?, sum.parse::<f64>()?))
        };
        let (sent, acked) = (of("sent")?, of("acked")?);
        // Each node had a change, over each transport.
        ensure!(sent.0 >= 2 * NODES && sent.0 == acked.0, "sent {sent:?}, acked {acked:?}");
        ensure!(0.0 < sent.1 && sent.1 < acked.1, "sent {sent:?}, acked {acked:?}");
        anyhow::Ok(())
    })
    .await
}

/// How many cloudcore has open to the API server.
fn connections(cloud: &Cloud, cluster: &Cluster) -> Result<usize> {
    let port = cluster.port().to_string();
    let listed = output(command("ss", ["-Htnp", "state", "established", "dport", "=", &port]))?;
    let owner = format!("pid={},", cloud.pid()?);
    Ok(listed.lines().filter(|line| line.contains(&owner)).count())
}

/// Waits until each node holds what cloudcore wants there.
async fn same_digests(fleet: &Fleet, cloud: &Cloud) -> Result<()> {
    wait::until("the same digests at both ends", SOON, async || {
        let wanted: BTreeMap<String, String> = serde_json::from_str(&cloud.admin("/digestz").await?.body)?;
        let held = fleet.digests();
        let differ = held.iter().filter(|(node, digest)| wanted.get(*node) != Some(digest));
        let differ: Vec<_> = differ.map(|(node, digest)| (node, digest, wanted.get(node))).collect();
        ensure!(differ.is_empty(), "{} differ: {:?}", differ.len(), differ[0]);
        anyhow::Ok(())
    })
    .await
}

async fn all_live(fleet: &mut Fleet) -> Result<()> {
    wait::until("all nodes live", SOON, async || is_live(&fleet.snapshot())).await
}

fn is_live(now: &Snapshot) -> Result<()> {
    ensure!(now.connected == NODES && now.synced == NODES && now.ready == NODES, "{now:?}");
    Ok(())
}
