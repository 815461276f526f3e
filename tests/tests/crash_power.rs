//! Power cuts of a whole machine, at instants that a seed decides, under a stream of changes. The machine is a virtual one
//! whose disk forgets what was not flushed, or some sectors of it; its edge node has no container runtime. The store always
//! opens, holds what was acked and nothing that was never sent, and edge and cloud come to the same.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use harness::{
    Bench, ClusterOptions, Run, bench, http,
    product::Cloud,
    random::Random,
    setup::{AGNHOST, VmAssets, ensure_vm},
    vm::{Disk, HOST, Machine, MachineOptions, data_image, extract, tree},
    wait,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use ledger::{LOG_FILTER, Ledger};
use store::Found;
use stream::Stream;

#[path = "crash/ledger.rs"]
mod ledger;
#[path = "crash/store.rs"]
mod store;
#[path = "crash/stream.rs"]
mod stream;

const NODE: &str = "edge-1";
const ROUNDS: u32 = 20;
/// In one of so many rounds edge and cloud are compared.
const COMPARED: u32 = 4;
/// A machine in software emulation takes its time, more so on a busy host.
const SOON: Duration = Duration::from_mins(3);
/// Of edgecore's admin address.
const PORT: u16 = 10350;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_power_cuts_lose_nothing() -> Result<()> {
    let assets = ensure_vm().await?;
    bench::run(async |bench: &Bench| {
        let cluster = bench.cluster(&ClusterOptions::default()).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[HOST]).await?;
        let mut random = Random::seeded("crash_power")?;
        let stream = Stream::new(cluster.client(), random.fork());
        let mut scene = Scene::new(bench, assets, cloud, random).await?;
        scene.first_boot(&Api::all(cluster.client())).await?;
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        pods.create(&PostParams::default(), &pod()?).await?;
        tokio::select! {
            ended = stream.run() => ended.context("the stream of changes"),
            held = scene.rounds(&stream) => held,
        }
    })
    .await
}

struct Scene {
    run: Arc<Run>,
    assets: VmAssets,
    options: MachineOptions,
    /// Of the machine's disk.
    image: PathBuf,
    cloud: Cloud,
    random: Random,
}

impl Scene {
    /// The machine's disks: edgecore and its libraries, and what `keadm join` would have written.
    async fn new(bench: &Bench, assets: VmAssets, cloud: Cloud, random: Random) -> Result<Self> {
        let dir = bench.run.dir().join("vm");
        let content = dir.join("content");
        fs::create_dir_all(content.join("config"))?;
        let config = json!({
            "apiVersion": "edgecore.config.kubeedge.io/v1alpha2",
            "kind": "EdgeCore",
            "rootDirectory": "/data",
            "commonConfig": { "monitorServer": { "bindAddress": format!("0.0.0.0:{PORT}") } },
            "modules": {
                "edgeHub": { "heartbeat": 2, "websocket": { "server": cloud.endpoint_at(HOST) } },
                "edged": { "hostnameOverride": NODE },
            },
        });
        fs::write(content.join("config/edgecore.yaml"), config.to_string())?;
        fs::write(content.join("bootstrap-token"), cloud.token().await?)?;
        let image = dir.join("disk");
        data_image(&image, &content, 64).await?;
        let root = dir.join("root");
        let edgecore = bench.assets.product()?.join("edgecore");
        tree(&root, &[&edgecore], "exec edgecore --config /data/config/edgecore.yaml\n").await?;
        let options = MachineOptions { name: "machine".to_owned(), root, memory_mib: 256, port: PORT };
        Ok(Self { run: Arc::clone(&bench.run), assets, options, image, cloud, random })
    }

    fn boot(&self) -> Result<Machine> {
        Machine::boot(&self.run, &self.assets, &self.options, Disk::serve(&self.image)?)
    }

    /// The node has its certificate, and the cloud its Node.
    async fn first_boot(&mut self, nodes: &Api<Node>) -> Result<()> {
        let mut machine = self.boot()?;
        wait::until("the machine's node", SOON, async || {
            machine.check_alive()?;
            nodes.get(NODE).await.map(drop).map_err(anyhow::Error::from)
        })
        .await?;
        self.power_cut(machine).await.map(drop)
    }

    async fn rounds(&mut self, stream: &Stream) -> Result<()> {
        let Found { held, .. } = self.look().await?;
        self.cloud.set_log_level(LOG_FILTER).await?;
        let mut ledger = Ledger::begin(&self.cloud.log(), held)?;
        let (begun, mut torn, mut unflushed) = (Instant::now(), 0, 0);
        for round in 0..ROUNDS {
            unflushed += self.live(round, stream).await.with_context(|| format!("round {round}"))?;
            let found = self.look().await.with_context(|| format!("round {round}"))?;
            for healed in &found.healed {
                ensure!(store::is_torn_tail(healed), "round {round}: the store was damaged: {healed}");
                torn += 1;
            }
            ledger.read()?;
            ledger.check(found.held).with_context(|| format!("round {round}"))?;
        }
        let (batches, changes) = ledger.acked;
        eprintln!(
            "crash_power: {ROUNDS} power cuts in {:.0?}, with {unflushed} unflushed sectors; {} changes in the cloud, \
             {changes} in {batches} batches acked, {torn} torn tails",
            begun.elapsed(),
            stream.changes().await,
        );
        ensure!(batches > ROUNDS as usize / 2, "there was hardly anything to lose");
        stream
            .paused(async |_| {
                let mut machine = self.boot()?;
                let digest = self.converged(&mut machine).await?;
                self.power_cut(machine).await?;
                let found = self.look().await?.digest;
                ensure!(found == digest, "edge and cloud held {digest}, the store has {found}");
                Ok(())
            })
            .await
    }

    /// From boot to power cut; answers how many sectors were not flushed.
    async fn live(&mut self, round: u32, stream: &Stream) -> Result<usize> {
        let mut machine = self.boot()?;
        // Else anywhere in its start.
        let starts = self.random.below(5) == 0;
        if !starts {
            wait::until("a session with the machine", SOON, async || {
                machine.check_alive()?;
                ensure!(self.sessions().await? == 1, "no session");
                Ok::<_, anyhow::Error>(())
            })
            .await?;
            if round.is_multiple_of(COMPARED) {
                stream.paused(async |_| self.converged(&mut machine).await.map(drop)).await?;
            }
        }
        if self.random.below(4) > 0 {
            // At a write, so that something is under way.
            machine.disk().stop_at_write(1 + self.random.below(20));
            wait::until("the write to stop at", SOON, async || {
                machine.check_alive()?;
                ensure!(machine.disk().has_stopped(), "not yet");
                Ok(())
            })
            .await?;
        } else {
            // At any instant.
            sleep(self.random.millis(if starts { 6_000 } else { 2_000 })).await;
        }
        self.power_cut(machine).await
    }

    /// Each cut keeps nothing of what was not flushed, all of it, or some.
    async fn power_cut(&mut self, mut machine: Machine) -> Result<usize> {
        machine.check_alive()?;
        let mut random = self.random.fork();
        let odds = random.below(5);
        let unflushed = spawn_blocking(move || machine.power_cut(|| random.below(4) < odds)).await??;
        // All that was acked is in cloudcore's log then.
        wait::until("the end of the session", SOON, async || {
            let sessions = self.sessions().await?;
            ensure!(sessions == 0, "{sessions} sessions");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(unflushed)
    }

    async fn look(&self) -> Result<Found> {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        extract(&self.image, "/store", dir.path()).await?;
        spawn_blocking(move || store::look(&dir.path().join("store"))).await?
    }

    async fn sessions(&self) -> Result<u64> {
        let status: Value = serde_json::from_str(&self.cloud.admin("/status").await?.body)?;
        status["sessions"].as_u64().with_context(|| status.to_string())
    }

    /// Edge and cloud have the same digest, while nothing changes in the cloud.
    async fn converged(&self, machine: &mut Machine) -> Result<String> {
        wait::until("edge and cloud holding the same", SOON, async || {
            machine.check_alive()?;
            let edge = digest_of(&http::get_tcp(machine.address(), "/digestz").await?.body)?;
            let cloud = digest_of(&self.cloud.admin("/digestz").await?.body)?;
            ensure!(edge == cloud, "{edge} at the edge, {cloud} in the cloud");
            Ok(edge)
        })
        .await
    }
}

/// Refers to all ConfigMaps of the stream. It does not run: the machine has no container runtime.
fn pod() -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": "reader" },
        "spec": {
            "nodeName": NODE,
            "volumes": [{ "name": "content", "projected": { "sources": stream::sources() } }],
            "containers": [{
                "name": "main",
                "image": AGNHOST,
                "volumeMounts": [{ "name": "content", "mountPath": "/content" }],
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
