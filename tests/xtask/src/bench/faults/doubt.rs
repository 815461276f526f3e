//! What puts a session in doubt, at the heartbeat that is the default: UDP that is blocked, one of two cloudcores that is gone in silence,
//! and an address that is forgotten on the way. The first two are timed from the moment on that the edge has something to say, the last
//! from when the cloud has.

use anyhow::{Context, Result};
use harness::{
    Site, Terms,
    product::{Cloud, Edge, Wired, is_running},
    setup::PAUSE,
    wait,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{LIMIT, World};

pub(super) const WITHOUT_UDP: &str = "UDP blocked, the edge speaks first";
pub(super) const GONE: &str = "one of two cloudcores gone, the edge speaks first";
pub(super) const FORGOTTEN: &str = "NAT rebinds at the default heartbeat, the cloud speaks first";

/// A node with two cloudcores, over whichever transport.
pub(super) struct Node {
    wired: Wired,
    site: usize,
}

impl Node {
    pub(super) async fn join(world: &World, other: &Cloud, site: usize, seed: u64) -> Result<Self> {
        let wire = world.sites[site].wire(seed)?;
        let edge: Edge = world.join_several(site, &[&world.cloud, other], &[]).await?;
        let wired = Wired::start(&world.cluster, &[&world.cloud, other], edge, wire, seed).await?;
        Ok(Self { wired, site })
    }

    /// All of it once, and how long each took.
    pub(super) async fn round(&self, world: &World, other: &Cloud) -> Result<[(&'static str, Duration); 3]> {
        let site = &world.sites[self.site];
        let through = async {
            let forgotten = self.forgotten(world, other).await?;
            let without_udp = self.without_udp(world, other, site).await?;
            let gone = self.gone(world, other, site).await?;
            anyhow::Ok([(FORGOTTEN, forgotten), (WITHOUT_UDP, without_udp), (GONE, gone)])
        };
        through.await.with_context(|| format!("{}: {}", self.wired.edge.name(), self.wired.wire.story()))
    }

    async fn forgotten(&self, world: &World, other: &Cloud) -> Result<Duration> {
        self.wired.wire.rebind();
        let begun = Instant::now();
        self.wired.change(&world.cluster).await?;
        let at = self.wired.until_changed_with(&[&world.cloud, other], LIMIT).await?;
        Ok(at.saturating_duration_since(begun))
    }

    async fn without_udp(&self, world: &World, other: &Cloud, site: &Site) -> Result<Duration> {
        let terms = Terms { without_udp: true, ..Terms::default() };
        let took = self.spoken(world, site, &[&world.cloud, other], terms).await?;
        // QUIC is tried again after a minute; another process tries it at once.
        harness::process::kill9(self.wired.edge.pid()?)?;
        self.until_connected().await?;
        Ok(took)
    }

    async fn gone(&self, world: &World, other: &Cloud, site: &Site) -> Result<Duration> {
        let name = self.wired.edge.name();
        let is_with = world.cloud.admin("/sessions").await?.body.contains(name);
        let (dead, alive) = if is_with { (&world.cloud, other) } else { (other, &world.cloud) };
        let endpoint = dead.endpoint(site);
        let (_, port) = endpoint.rsplit_once(':').context("an endpoint has a port")?;
        self.spoken(world, site, &[alive], Terms { gone: Some(port.parse()?), ..Terms::default() }).await
    }

    /// From the moment on that the edge has something to say on a line like this.
    async fn spoken(&self, world: &World, site: &Site, clouds: &[&Cloud], terms: Terms) -> Result<Duration> {
        let pods: Api<Pod> = Api::default_namespaced(world.cluster.client());
        let (name, container) = self.speaker(&pods, site).await?;
        self.wired.wire.set(&terms);
        self.wired.change(&world.cluster).await?;
        site.ctr(&["task", "kill", "--signal", "SIGKILL", &container]).await?;
        let begun = Instant::now();
        let at = self.wired.until_changed_with(clouds, LIMIT).await?;
        self.wired.wire.heal();
        pods.delete(&name, &DeleteParams::default()).await?;
        wait::until("the pod gone", LIMIT, async || {
            anyhow::ensure!(pods.get_opt(&name).await?.is_none(), "{name} is there");
            anyhow::Ok(())
        })
        .await?;
        Ok(at.saturating_duration_since(begun))
    }

    /// A pod whose end is reported, and its container.
    async fn speaker(&self, pods: &Api<Pod>, site: &Site) -> Result<(String, String)> {
        let pod = json!({
            "metadata": { "generateName": "speaker-" },
            "spec": {
                "nodeName": self.wired.edge.name(),
                "automountServiceAccountToken": false,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "main", "image": PAUSE }],
            },
        });
        let made = pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let (name, uid) = (made.name_any(), made.uid().context("a pod has a uid")?);
        wait::until("the pod running", LIMIT, async || is_running(&pods.get(&name).await?)).await?;
        let all = site.containers().await?;
        let one = all.into_iter().find(|one| one.pod_uid == uid && !one.sandbox);
        Ok((name, one.context("the pod has no container")?.id))
    }

    async fn until_connected(&self) -> Result<()> {
        wait::until("a session over QUIC", LIMIT, async || {
            let link = self.wired.link().await?;
            anyhow::ensure!(link.connected && link.synced && link.transport == "quic", "{link:?}");
            anyhow::Ok(())
        })
        .await
    }
}
