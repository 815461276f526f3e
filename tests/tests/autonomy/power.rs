//! The line is unplugged; edgecore is killed, the power fails, and all starts again with no cloud in reach. Then the
//! power fails once more, with the line up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, LineCut, Site,
    process::{Daemon, kill9, wait_gone},
    product::{Edge, Life, Scene, pod, ready},
    wait,
};
use kube::ResourceExt;
use serde_json::json;
use tokio::time::Instant;

const NODE: &str = "edge-unplugged";
const SPACE: &str = "power";
const SOON: Duration = Duration::from_secs(90);
/// The goal is 10 s, on a machine that does nothing else.
const READY_WITHIN: Duration = Duration::from_secs(20);
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &mut Site) -> Result<()> {
    let edge = scene.join(bench, site, NODE).await?;
    scene.namespace(SPACE).await?;
    let spec = json!({ "hostname": "works-alone" });
    let uid = scene.run(SPACE, &pod("alone", NODE, &spec)).await?.uid().context("a pod has a uid")?;
    let life = Life::of(site, &uid).await?;
    let node_uid = scene.node(NODE).await?.uid();

    site.cut(LineCut::Unplugged)?;
    let pid = edge.pid()?;
    kill9(pid)?;
    wait_gone(pid, SOON)?;
    edge.come_back(pid).await?;
    serving(&edge).await?;
    life.check(site).await?;

    let _edgecore = power_cut(&edge, site).await?;
    let alone = answers(site, &uid).await?;
    ensure!(alone.containers != life.containers, "no container survives a power cut");
    unreachable(scene).await?;

    site.restore()?;
    let restored = Instant::now();
    scene.until_ready(NODE).await?;
    let took = restored.elapsed();
    eprintln!("{NODE} is Ready {:.1} s after its line came back", took.as_secs_f32());
    ensure!(took < READY_WITHIN, "{NODE} took {took:?} to become Ready");
    shown(scene, &alone).await?;
    alone.check(site).await?;

    let started = Instant::now();
    let _edgecore = power_cut(&edge, site).await?;
    let again = answers(site, &uid).await?;
    eprintln!("{NODE}: the pod answers {:.1} s after the power failed", started.elapsed().as_secs_f32());
    scene.until_ready(NODE).await?;
    shown(scene, &again).await?;
    ensure!(scene.node(NODE).await?.uid() == node_uid, "a reboot has made another node");
    Ok(())
}

/// Everything ends at once, and starts again; edgecore as the boot script would start it.
async fn power_cut(edge: &Edge, site: &mut Site) -> Result<Daemon> {
    site.power_off()?;
    site.power_on().await?;
    edge.start(site)
}

/// The pod answers at the site, with its service account's token in place.
async fn answers(site: &Site, uid: &str) -> Result<Life> {
    wait::until("the pod answering at the site", SOON, async || {
        let name = site.get(uid, "/hostname").await?;
        ensure!(name == "works-alone", "it is called {name:?}");
        let token = site.shell(uid, &format!("cat {TOKEN}")).await?;
        ensure!(token.split('.').count() == 3, "it has no service account token");
        Life::of(site, uid).await
    })
    .await
}

/// edgecore answers its admin socket, which it does once its store is open.
async fn serving(edge: &Edge) -> Result<()> {
    wait::until("edgecore ready without the cloud", SOON, async || {
        let answer = edge.admin("/readyz").await?;
        ensure!(answer.status == 200, "/readyz: {} {}", answer.status, answer.body);
        Ok(())
    })
    .await
}

async fn unreachable(scene: &Scene) -> Result<()> {
    wait::until("the cloud noticing", SOON, async || {
        ready(&scene.node(NODE).await?).err().map(drop).context("the node is still Ready")
    })
    .await
}

/// The API comes to show what runs at the site.
async fn shown(scene: &Scene, life: &Life) -> Result<()> {
    let pods = scene.pods(SPACE);
    let shown = async || life.check_status(&pods.get("alone").await?);
    wait::until("the API showing the containers that run", SOON, shown).await
}
