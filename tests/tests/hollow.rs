//! Hollow nodes against the real control plane, over either transport.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Cluster, ClusterOptions, bench,
    process::kill9,
    product::{Cloud, is_running, ready},
    wait,
};
use hollow::{Fleet, FleetConfig, Identities, Snapshot, Transport, cluster};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};

const NODES: usize = 10;
const SOON: Duration = Duration::from_secs(30);
/// Sessions that a node may need for one return: the first one may find a cloudcore that has not listed everything.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hollow_nodes_do_as_nodes_do_over_either_transport() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let options = ClusterOptions { node_monitor_grace_period: SOON, ..ClusterOptions::default() };
        let cluster = bench.cluster(&options).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[Ipv4Addr::LOCALHOST]).await?;
        for transport in [Transport::Websocket] {
            let begun = Instant::now();
            live(bench, &cluster, &cloud, transport).await.with_context(|| format!("over {transport:?}"))?;
            ensure!(begun.elapsed() < LIMIT, "{transport:?} took {:?}", begun.elapsed());
        }
        Ok(())
    })
    .await
}

async fn live(bench: &Bench, cluster: &Cluster, cloud: &Cloud, transport: Transport) -> Result<()> {
    let client = cluster.client();
    let prefix = format!("hollow-{transport:?}").to_lowercase();
    let config = FleetConfig {
        server: cloud.endpoint_at(Ipv4Addr::LOCALHOST),
        nodes: NODES,
        prefix: prefix.clone(),
        transport,
        heartbeat: Duration::from_secs(5),
        ramp: 100.0,
        identities: Identities::Signed {
            ca: cluster::authority(&client).await?,
            directory: bench.run.dir().join(&prefix),
        },
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

    let configs = cluster::populate(&client, &prefix, NODES, 1).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &prefix);
    wait::until("a pod on each node Running", SOON, async || {
        let found = pods.list(&ListParams::default()).await?.items;
        ensure!(found.len() == NODES, "{} pods", found.len());
        found.iter().try_for_each(is_running)
    })
    .await?;

    let changes = fleet.changes().clone();
    let all = Duration::from_secs(2);
    let outcome = changes.run(&client, &configs, NODES as f64, all, SOON).await?;
    ensure!(outcome.arrived == outcome.asked && outcome.failed == 0, "{outcome:?}");
    ensure!(outcome.arrived >= NODES as u64, "{outcome:?}: fewer changes than nodes");

    restart(&mut fleet, cloud).await?;

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
async fn restart(fleet: &mut Fleet, cloud: &Cloud) -> Result<()> {
    let before = fleet.snapshot();
    let old = cloud.pid()?;
    kill9(old)?;
    wait::until("another cloudcore with all sessions", SOON, async || {
        ensure!(cloud.pid()? != old, "no other cloudcore");
        let now = fleet.snapshot();
        ensure!(now.sessions >= before.sessions + NODES as u64, "{now:?}");
        is_live(&now)
    })
    .await?;
    let now = fleet.snapshot();
    ensure!(now.deltas == before.deltas, "{} objects were sent again", now.deltas - before.deltas);
    Ok(())
}

async fn all_live(fleet: &mut Fleet) -> Result<()> {
    wait::until("all nodes live", SOON, async || is_live(&fleet.snapshot())).await
}

fn is_live(now: &Snapshot) -> Result<()> {
    ensure!(now.connected == NODES && now.synced == NODES && now.ready == NODES, "{now:?}");
    Ok(())
}
