//! `kill -9` of edgecore, two hundred times, at instants that a seed decides, under a stream of changes and with the line up
//! or down: the store always opens, holds what was acked and nothing that was never sent, edge and cloud come to the same,
//! and no container notices.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use harness::{
    Bench, ClusterOptions, LineCut, Site, SiteOptions, bench,
    process::{kill9, wait_gone},
    product::{Cloud, Edge},
    random::Random,
    setup::AGNHOST,
    site::Container,
    wait,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use ledger::{LOG_FILTER, Ledger};
use store::Found;
use stream::{Content, Stream};

#[path = "crash/ledger.rs"]
mod ledger;
#[path = "crash/store.rs"]
mod store;
#[path = "crash/stream.rs"]
mod stream;

const NODE: &str = "edge-1";
const ROUNDS: u32 = 200;
/// The line is down in the last rounds of each of these groups; before, edge and cloud are compared.
const GROUP: u32 = 20;
const OFFLINE: u32 = 4;
/// Pods come and go: one is made each so many rounds, and the one before it is deleted.
const CHURN: u32 = 10;
const SOON: Duration = Duration::from_mins(2);
/// Over TCP the kernel tells cloudcore of each kill at once; over QUIC it would be found out by silence, 200 times.
const SETTINGS: [&str; 2] = ["modules.edgeHub.heartbeat=2", "modules.edgeHub.quic.enable=false"];
/// The pods that are to keep their containers.
const LASTING: [&str; 2] = ["plain", "reader"];

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_kills_lose_nothing() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let cluster = bench.cluster(&ClusterOptions::default()).await?;
        let site = bench.site(&SiteOptions::default()).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[site.host_address()]).await?;
        // Short, so that a line that was cut in silence does not hold up the end of a session.
        let edge = Edge::join(&bench.assets, &cloud, &site, NODE, &SETTINGS).await?;
        let mut random = Random::seeded("crash_kill")?;
        let stream = Stream::new(cluster.client(), random.fork());
        let mut scene = Scene {
            pods: Api::default_namespaced(cluster.client()),
            site,
            cloud,
            store: edge.root().join("store"),
            edge,
            random,
        };
        let containers = scene.deploy().await?;
        // Its supervisor waits longer from kill to kill; a round is to take a second.
        scene.end_supervision()?;
        tokio::select! {
            ended = stream.run() => ended.context("the stream of changes"),
            held = scene.rounds(&stream, &containers) => held,
        }
    })
    .await
}

struct Scene {
    site: Site,
    cloud: Cloud,
    edge: Edge,
    store: PathBuf,
    pods: Api<Pod>,
    random: Random,
}

impl Scene {
    /// The lasting pods, running; answers their containers.
    async fn deploy(&self) -> Result<BTreeMap<String, Container>> {
        let volumes = json!([{ "name": "content", "projected": { "sources": stream::sources() } }]);
        let mounts = json!([{ "name": "content", "mountPath": "/content" }]);
        self.pods.create(&PostParams::default(), &pod("reader", &volumes, &mounts)?).await?;
        self.pods.create(&PostParams::default(), &pod("plain", &json!([]), &json!([]))?).await?;
        wait::until("the lasting pods running", SOON, async || {
            for name in LASTING {
                let status = self.pods.get(name).await?.status.unwrap_or_default();
                ensure!(status.phase.as_deref() == Some("Running"), "{name} is {:?}", status.phase);
            }
            Ok(())
        })
        .await?;
        let containers = self.lasting().await?;
        ensure!(containers.len() == 2 * LASTING.len(), "{containers:?}");
        Ok(containers)
    }

    /// Containers and sandboxes of the lasting pods, whatever state they are in.
    async fn lasting(&self) -> Result<BTreeMap<String, Container>> {
        let all = self.site.containers().await?.into_iter();
        let ours = all.filter(|container| LASTING.contains(&container.pod.as_str()));
        Ok(ours.map(|container| (container.id.clone(), container)).collect())
    }

    /// Kills edgecore and what would start it again.
    fn end_supervision(&self) -> Result<()> {
        let pid = self.edge.pid()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        let parent: u32 = parent.and_then(|parent| parent.parse().ok()).context("edgecore has a parent")?;
        for pid in [parent, pid] {
            kill9(pid)?;
            ensure!(wait_gone(pid, SOON)?, "process {pid} is still there");
        }
        Ok(())
    }

    async fn rounds(&mut self, stream: &Stream, containers: &BTreeMap<String, Container>) -> Result<()> {
        self.session_over().await?;
        let Found { held, mut digest, .. } = self.look().await?;
        self.cloud.set_log_level(LOG_FILTER).await?;
        let mut ledger = Ledger::begin(&self.cloud.log(), held)?;
        let (begun, mut torn) = (Instant::now(), 0);
        for round in 0..ROUNDS {
            self.churn(round).await?;
            self.live(round, &digest, stream).await.with_context(|| format!("round {round}"))?;
            let found = self.look().await.with_context(|| format!("round {round}"))?;
            for healed in &found.healed {
                ensure!(store::is_torn_tail(healed), "round {round}: the store was damaged: {healed}");
                torn += 1;
            }
            ledger.read()?;
            ledger.check(found.held).with_context(|| format!("round {round}"))?;
            digest = found.digest;
            let now = self.lasting().await?;
            ensure!(now == *containers, "round {round}: {containers:?} became {now:?}");
        }
        let (batches, changes) = ledger.acked;
        eprintln!(
            "crash_kill: {ROUNDS} kills in {:.0?}; {} changes in the cloud, {changes} in {batches} batches acked, \
             {torn} torn tails",
            begun.elapsed(),
            stream.changes().await,
        );
        ensure!(batches > ROUNDS as usize / 2, "there was hardly anything to lose");
        let _edgecore = self.edge.start(&self.site)?;
        stream.paused(async |content| self.all_is_well(content, containers).await).await
    }

    /// One edgecore, from its start to its end.
    async fn live(&mut self, round: u32, digest: &str, stream: &Stream) -> Result<()> {
        let (group, place) = (round / GROUP, round % GROUP);
        let cuts = place == GROUP - OFFLINE;
        let how = if group.is_multiple_of(2) { LineCut::Silent } else { LineCut::Unplugged };
        // Else it is cut under a session, whose end the cloud notices by its silence alone: that takes seconds.
        if cuts && group % 3 > 0 {
            self.site.cut(how)?;
        }
        let mut edgecore = self.edge.start(&self.site)?;
        if self.site.is_cut() {
            wait::until("the store's digest, with no cloud", SOON, async || {
                let own = digest_of(&self.edge.admin("/digestz").await?.body)?;
                ensure!(own == digest, "edgecore found {own} where there was {digest}");
                Ok(())
            })
            .await?;
        } else if cuts || self.random.below(4) > 0 {
            self.connected().await?;
        }
        if place == 0 {
            stream.paused(async |_| self.converged().await).await?;
        }
        if cuts && !self.site.is_cut() {
            self.site.cut(how)?;
        }
        // At this instant, and no other.
        sleep(self.random.millis(250)).await;
        edgecore.check_alive()?;
        edgecore.kill9()?;
        if place == GROUP - 1 {
            self.site.restore()?;
        }
        self.session_over().await
    }

    /// cloudcore has read, and logged, all that edgecore has sent.
    async fn session_over(&self) -> Result<()> {
        wait::until("the end of the session", SOON, async || {
            let status: Value = serde_json::from_str(&self.cloud.admin("/status").await?.body)?;
            ensure!(status["sessions"] == 0, "{status}");
            Ok(())
        })
        .await
    }

    async fn connected(&self) -> Result<()> {
        wait::until("a session", SOON, async || {
            let state = self.edge.admin("/nodez").await?.body;
            let connected = serde_json::from_str::<Value>(&state)?["connected"] == true;
            ensure!(connected, "{state}");
            Ok(())
        })
        .await
    }

    /// Edge and cloud have the same digest, while nothing changes in the cloud.
    async fn converged(&self) -> Result<()> {
        wait::until("edge and cloud holding the same", SOON, async || {
            let edge = digest_of(&self.edge.admin("/digestz").await?.body)?;
            let cloud = digest_of(&self.cloud.admin("/digestz").await?.body)?;
            ensure!(edge == cloud, "{edge} at the edge, {cloud} in the cloud");
            let state: Value = serde_json::from_str(&self.edge.admin("/nodez").await?.body)?;
            ensure!(state["synced"] == true, "{state}");
            Ok(())
        })
        .await
    }

    async fn look(&self) -> Result<Found> {
        let dir = self.store.clone();
        spawn_blocking(move || store::look(&dir)).await?
    }

    async fn churn(&self, round: u32) -> Result<()> {
        if !round.is_multiple_of(CHURN) {
            return Ok(());
        }
        if let Some(old) = round.checked_sub(CHURN) {
            self.pods.delete(&format!("churn-{old}"), &DeleteParams::default()).await?;
        }
        let new = pod(&format!("churn-{round}"), &json!([]), &json!([]))?;
        self.pods.create(&PostParams::default(), &new).await?;
        Ok(())
    }

    /// With edgecore up and the stream at rest: what the API has, the site has, and nothing else.
    async fn all_is_well(
        &self,
        content: &BTreeMap<String, Content>,
        containers: &BTreeMap<String, Container>,
    ) -> Result<()> {
        self.converged().await?;
        wait::until("the site's containers as the API has them", SOON, async || {
            let (mut cloud, mut site) = (BTreeMap::new(), BTreeMap::new());
            for pod in self.pods.list(&ListParams::default()).await? {
                let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
                for status in statuses.into_iter().flatten() {
                    let id = status.container_id.as_deref().unwrap_or_default();
                    let id = id.trim_start_matches("containerd://").to_owned();
                    cloud.insert(pod.name_any(), (id, status.restart_count));
                }
            }
            let mut containers = self.site.containers().await?;
            containers.retain(|container| !container.sandbox);
            // A kill in the midst of a start fails that container; it is kept beside the one that took its place.
            containers.sort_by_key(|container| container.attempt);
            for container in containers {
                site.insert(container.pod, (container.id, i32::try_from(container.attempt)?));
            }
            ensure!(cloud == site, "{cloud:?} in the cloud, {site:?} at the site");
            ensure!(cloud.len() == LASTING.len() + 1, "{cloud:?}");
            Ok(())
        })
        .await?;
        wait::until("the volume's files as the ConfigMaps are", SOON, async || {
            let uid = self.pods.get("reader").await?.uid().context("a pod has a UID")?;
            let volume = self.edge.root().join(format!("pods/{uid}/volumes/content"));
            let volume = self.site.path(&volume)?;
            for n in 0..stream::NAMES {
                let name = format!("cm-{n}");
                let file = fs::read_to_string(volume.join(&name)).ok();
                let value = content.get(&name).and_then(|content| content.get(stream::VALUE));
                ensure!(file.as_ref() == value, "{name} is not as in the cloud");
            }
            Ok(())
        })
        .await?;
        let now = self.lasting().await?;
        ensure!(now == *containers, "{containers:?} became {now:?}");
        Ok(())
    }
}

fn pod(name: &str, volumes: &Value, mounts: &Value) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 1,
            "volumes": volumes,
            "containers": [{
                "name": "main",
                "image": AGNHOST,
                "imagePullPolicy": "IfNotPresent",
                "args": ["pause"],
                "volumeMounts": mounts,
            }],
        },
    }))?)
}

/// Of this node, on a page that both programs have.
fn digest_of(page: &str) -> Result<String> {
    let page: Value = serde_json::from_str(page)?;
    match page[NODE].as_str() {
        Some(digest) => Ok(digest.to_owned()),
        None => bail!("{page} has no {NODE}"),
    }
}
