//! A rolling restart of all cloudcores: each ends as a new version would have it end, and the next once it is back. No node becomes
//! NotReady, nothing that was acked is sent again, and each node is with another within seconds.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    Bench, Cluster, ClusterOptions, SiteOptions, bench,
    process::terminate,
    product::{Cloud, Edge, first_unready, is_running},
    wait,
};
use hollow::{
    Fleet, FleetConfig, Identities, Snapshot, Transport,
    cluster::{self, Workload},
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, WatchParams},
};

/// Of each fleet.
const NODES: usize = 20;
const EDGE: &str = "edge-rolled";
const SOON: Duration = Duration::from_mins(1);
/// Without the cloudcore that a node was with.
const BACK: Duration = Duration::from_secs(10);
/// Bytes that say that all is as it was; an object takes more.
const MARK: u64 = 100;
/// As it is by default elsewhere.
const GRACE: Duration = Duration::from_secs(50);

/// What is restarted, and those who are not to notice.
struct Scene<'a> {
    cluster: &'a Cluster,
    clouds: Vec<Cloud>,
    fleets: Vec<Fleet>,
    edge: Edge,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_cloudcores_is_not_noticed() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let options = ClusterOptions { node_monitor_grace_period: GRACE, ..ClusterOptions::default() };
        let cluster = bench.cluster(&options).await?;
        let site = bench.site(&SiteOptions::default()).await?;
        let mut clouds = Vec::new();
        for _ in 0..3 {
            let reachable = [Ipv4Addr::LOCALHOST, site.host_address()];
            clouds.push(Cloud::init(&bench.run, &bench.assets, &cluster, &reachable).await?);
        }
        let fleets = fleets(bench, &cluster, &clouds).await?;
        let all: Vec<&Cloud> = clouds.iter().collect();
        // With the heartbeat that is the default.
        let edge = Edge::join_several(&bench.assets, &all, &site, EDGE, &[]).await?;
        let mut scene = Scene { cluster: &cluster, clouds, fleets, edge };
        scene.settle().await?;
        let nodes: Api<Node> = Api::all(cluster.client());
        let watched = nodes.list_metadata(&ListParams::default()).await?.metadata.resource_version;
        let from = watched.context("a list has a version")?;
        tokio::select! {
            rolled = scene.roll() => rolled,
            unready = first_unready(&nodes, WatchParams::default(), &from) => bail!("{}", unready?),
        }
    })
    .await
}

/// Over either transport, with the default heartbeat and with a short one.
async fn fleets(bench: &Bench, cluster: &Cluster, clouds: &[Cloud]) -> Result<Vec<Fleet>> {
    let servers: Vec<String> = clouds.iter().map(|cloud| cloud.endpoint_at(Ipv4Addr::LOCALHOST)).collect();
    let mut fleets = Vec::new();
    for transport in [Transport::Quic, Transport::Websocket] {
        for heartbeat in [70, 2].map(Duration::from_secs) {
            let prefix = format!("{transport:?}-{}", heartbeat.as_secs()).to_lowercase();
            let fleet = Fleet::start(&FleetConfig {
                server: servers.join(","),
                nodes: NODES,
                prefix: prefix.clone(),
                transport,
                heartbeat,
                ramp: 50.0,
                identities: Identities::signed(
                    cluster::authorities(&cluster.client()).await?,
                    bench.run.dir().join(&prefix),
                ),
            })?;
            fleets.push(fleet);
            let workload = Workload { nodes: NODES, pods: 1, shared: 0 };
            cluster::populate(&cluster.client(), &prefix, workload).await?;
        }
    }
    Ok(fleets)
}

impl Scene<'_> {
    /// All is as it should be.
    async fn settle(&mut self) -> Result<()> {
        let pods: Api<Pod> = Api::all(self.cluster.client());
        wait::until("all nodes Ready, each with its pod Running", SOON, async || {
            let found = pods.list(&ListParams::default()).await?.items;
            let ours: Vec<&Pod> = found
                .iter()
                .filter(|pod| pod.namespace().is_some_and(|name| name != "kube-system"))
                .collect();
            ensure!(ours.len() == self.fleets.len() * NODES, "{} pods", ours.len());
            ours.iter().try_for_each(|pod| is_running(pod))?;
            // cloudcore changes each pod once: what comes of that is not sent again, but for the first time.
            let tolerations = ours
                .iter()
                .flat_map(|pod| pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten()));
            let limited = tolerations.filter(|toleration| toleration.toleration_seconds.is_some()).count();
            ensure!(limited == 0, "{limited} tolerations are limited");
            self.all_live().await?;
            self.same_digests().await
        })
        .await
    }

    /// An error unless each node holds what the cloudcore that it is with wants there.
    async fn same_digests(&self) -> Result<()> {
        let mut wanted = BTreeMap::<String, String>::new();
        for cloud in &self.clouds {
            wanted.extend(serde_json::from_str::<BTreeMap<_, _>>(&cloud.admin("/digestz").await?.body)?);
        }
        for (node, digest) in self.fleets.iter().flat_map(Fleet::digests) {
            ensure!(
                wanted.get(&node) == Some(&digest),
                "{node}: {digest} is held, {:?} wanted",
                wanted.get(&node)
            );
        }
        Ok(())
    }

    /// An error unless all nodes are with a cloudcore, and in sync, and the API has their status of this session.
    async fn all_live(&mut self) -> Result<()> {
        for fleet in &mut self.fleets {
            let now = fleet.snapshot();
            ensure!(now.connected == NODES && now.synced == NODES && now.ready == NODES, "{now:?}");
        }
        let state: serde_json::Value = serde_json::from_str(&self.edge.admin("/nodez").await?.body)?;
        ensure!(
            state["connected"] == true && state["synced"] == true && state["nodeReady"] == true,
            "{state}"
        );
        Ok(())
    }

    /// Ends one after the other.
    async fn roll(&mut self) -> Result<()> {
        let before: Vec<Snapshot> = self.fleets.iter_mut().map(Fleet::snapshot).collect();
        let (mut slowest, mut moved) = (Duration::ZERO, 0);
        for at in 0..self.clouds.len() {
            let (old, with) = (self.clouds[at].pid()?, self.nodes_of(at).await?.len());
            let sessions = self.sessions().await?;
            moved += with;
            let begun = Instant::now();
            terminate(old)?;
            wait::until(&format!("{with} nodes in a session after that one"), BACK, async || {
                let more = self.sessions().await? - sessions;
                ensure!(more >= with, "{more} of {with} have begun another");
                self.all_live().await
            })
            .await?;
            slowest = slowest.max(begun.elapsed());
            wait::until("another cloudcore ready", SOON, async || {
                ensure!(self.clouds[at].pid()? != old, "its supervisor has not started another");
                let answer = self.clouds[at].admin("/readyz").await?;
                ensure!(answer.status == 200, "/readyz answers {}", answer.status);
                anyhow::Ok(())
            })
            .await?;
        }
        ensure!(moved > self.fleets.len() * NODES, "{moved} nodes had to go on: not all of them once");
        eprintln!("{moved} nodes went on, in {slowest:?} at most");
        for (fleet, before) in self.fleets.iter_mut().zip(&before) {
            let now = fleet.snapshot();
            let again = now.deltas - before.deltas;
            ensure!(again == 0, "{again} objects were sent again: {now:?}");
        }
        let mut found = false;
        for at in 0..self.clouds.len() {
            let page = self.nodes_of(at).await?;
            let Some(link) = page.get(EDGE) else { continue };
            found = true;
            let sent = link["sentBytes"]["objects"].as_u64();
            ensure!(sent.is_some_and(|bytes| bytes < MARK), "an object was sent again: {link}");
        }
        ensure!(found, "{EDGE} is with nobody");
        Ok(())
    }

    /// How many there have been.
    async fn sessions(&mut self) -> Result<usize> {
        let fleets: u64 = self.fleets.iter_mut().map(|fleet| fleet.snapshot().sessions).sum();
        Ok(usize::try_from(fleets + self.edge.metric("edgecore_sessions").await?)?)
    }

    async fn nodes_of(&self, at: usize) -> Result<BTreeMap<String, serde_json::Value>> {
        Ok(serde_json::from_str(&self.clouds[at].admin("/sessions").await?.body)?)
    }
}
