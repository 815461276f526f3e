//! Peers that mean no good, or know no better, at the port of a real cloudcore over either transport: what they do is bounded, they
//! are told why where the protocol has words for it, and nobody else notices.

mod hostile {
    pub(crate) mod bombs;
    pub(crate) mod crowd;
    pub(crate) mod deaf;
    pub(crate) mod flood;
    pub(crate) mod peer;
    pub(crate) mod replay;
    pub(crate) mod versions;
}

use std::{net::Ipv4Addr, pin::Pin, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{Bench, ClusterOptions, bench, product::Cloud, wait};
use hollow::{Fleet, FleetConfig, Identities, Transport, cluster};

use hostile::{
    bombs, crowd, deaf, flood,
    peer::{Stage, TRANSPORTS},
    replay, versions,
};

/// Good nodes of each fleet.
const NODES: usize = 20;
pub(crate) const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peers_are_bounded_and_nobody_else_notices() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let cluster = bench.cluster(&ClusterOptions::default()).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[Ipv4Addr::LOCALHOST]).await?;
        let authorities = cluster::authorities(&cluster.client()).await?;
        let stage = Stage { bench, cluster: &cluster, cloud: &cloud, authorities };
        let mut good = Vec::new();
        for transport in TRANSPORTS {
            good.push(fleet(&stage, "good", transport).await?);
        }
        let before: Vec<_> = good.iter_mut().map(|fleet| fleet.snapshot().sessions).collect();

        named("versions", versions::run(&stage)).await?;
        named("bombs", bombs::run(&stage)).await?;
        named("replay", replay::run(&stage)).await?;
        tokio::try_join!(named("deaf", deaf::run(&stage)), named("flood", flood::run(&stage)))?;
        named("crowd", crowd::run(&stage)).await?;

        for (fleet, before) in good.iter_mut().zip(before) {
            let now = fleet.snapshot();
            ensure!(now.sessions == before && now.connected == NODES, "{now:?}");
        }
        Ok(())
    })
    .await
}

/// Nodes that want nothing but to be connected, once they are.
pub(crate) async fn fleet(stage: &Stage<'_>, name: &str, transport: Transport) -> Result<Fleet> {
    let prefix = format!("{name}-{transport:?}").to_lowercase();
    let authorities = cluster::authorities(&stage.cluster.client()).await?;
    let mut fleet = Fleet::start(&FleetConfig {
        server: stage.cloud.endpoint_at(Ipv4Addr::LOCALHOST),
        nodes: NODES,
        prefix: prefix.clone(),
        transport,
        heartbeat: Duration::from_secs(5),
        ramp: 100.0,
        identities: Identities::signed(authorities, stage.bench.run.dir().join(&prefix)),
    })?;
    wait::until(&format!("the nodes {prefix}"), SOON, async || {
        let now = fleet.snapshot();
        ensure!(now.synced == NODES && now.ready == NODES, "{now:?}");
        Ok(())
    })
    .await?;
    Ok(fleet)
}

/// On the heap: each scenario is a large future.
fn named<'a>(
    name: &'static str,
    scenario: impl Future<Output = Result<()>> + 'a,
) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
    Box::pin(async move { scenario.await.context(name) })
}
