//! The disk under the edge's store fills up, and turns read-only.
//!
//! The store has a small file system of its own in this scenario, so that nothing else at the site is short of room.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Site,
    process::{Daemon, kill9, output, tail, wait_gone},
    product::{Edge, Life, Scene, is_running, pod, ready},
    wait,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

const NODE: &str = "edge-disk";
const SPACE: &str = "disk";
/// Each crashes once: a second time would have to wait for its back-off.
const CRASHING: [&str; 2] = ["crashing-1", "crashing-2"];
const SOON: Duration = Duration::from_secs(90);
/// How long a store that cannot be written is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// The node and its edgecore, which has no supervisor any more.
pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<(Edge, Daemon)> {
    let store = Edge::store_at(site);
    fs::create_dir_all(&store)?;
    let at = store.to_str().context("a run's directory has a plain name")?;
    output(site.command("mount", ["-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", at])?)?;
    let edge = scene.join(bench, site, NODE).await?;
    scene.namespace(SPACE).await?;
    text(scene, "one").await?;
    let volume = json!({ "containers": [{
        "name": "main", "image": harness::setup::AGNHOST, "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
        "volumeMounts": [{ "name": "text", "mountPath": "/etc/text" }],
    }], "volumes": [{ "name": "text", "configMap": { "name": "text" } }] });
    let steady = scene.run(SPACE, &pod("steady", NODE, &volume)).await?.uid().context("a pod has a uid")?;
    for name in CRASHING {
        scene.run(SPACE, &pod(name, NODE, &json!({}))).await?;
    }
    let here = Here { scene, site, edge: &edge, steady: Life::of(site, &steady).await? };

    full(&here).await.context("full disk")?;
    let edgecore = read_only(&here, at).await.context("read-only disk")?;
    Ok((edge, edgecore))
}

struct Here<'a> {
    scene: &'a Scene,
    site: &'a Site,
    edge: &'a Edge,
    steady: Life,
}

async fn full(here: &Here<'_>) -> Result<()> {
    let filler = here.edge.store().join("filler");
    let filler = filler.to_str().context("a run's directory has a plain name")?;
    // Ends with an error: that is how it knows.
    let filled = here.site.command("dd", ["if=/dev/zero", &format!("of={filler}"), "bs=4k"])?.output()?;
    ensure!(!filled.status.success(), "the disk does not fill up");
    refuses(here, "one", "two", "late").await?;
    crashes(here, CRASHING[0]).await?;

    // What it had acked is what it has; it comes up without room, too.
    let pid = here.edge.pid()?;
    let objects = here.edge.metric("edgecore_desired_objects").await?;
    kill9(pid)?;
    wait_gone(pid, SOON)?;
    let pid = here.edge.come_back(pid).await?;
    let held = async || {
        let held = here.edge.metric("edgecore_desired_objects").await?;
        ensure!(held == objects, "{held} objects, {objects} before");
        here.steady.check(here.site).await
    };
    wait::until("edgecore with what it had stored", SOON, held).await?;
    lives_on(here, "one", "late").await?;

    output(here.site.command("rm", [filler])?)?;
    catches_up(here, "two", "late").await?;
    ensure!(here.edge.pid()? == pid, "edgecore was restarted in order to heal");
    Ok(())
}

/// A file system that is in use cannot be made read-only by hand, so edgecore starts on it.
async fn read_only(here: &Here<'_>, store: &str) -> Result<Daemon> {
    let mount = |mode: &str| output(here.site.command("mount", ["-o", &format!("remount,{mode}"), store])?);
    here.edge.stop()?;
    mount("ro")?;
    let mut edgecore = here.edge.start(here.site)?;
    wait::until("edgecore serving from a read-only disk", SOON, async || {
        edgecore.check_alive()?;
        here.edge.admin("/nodez").await
    })
    .await
    .with_context(|| format!("the end of its log:\n{}", tail(edgecore.log())))?;
    refuses(here, "two", "three", "later").await?;
    crashes(here, CRASHING[1]).await?;
    mount("rw")?;
    catches_up(here, "three", "later").await?;
    edgecore.check_alive()?;
    Ok(edgecore)
}

/// The cloud changes things: nothing of it is taken, everyone can see why, and all that is there goes on.
async fn refuses(here: &Here<'_>, old: &str, new: &str, late: &str) -> Result<()> {
    text(here.scene, new).await?;
    wait::until("the store's failure shown", SOON, async || {
        let state: serde_json::Value = serde_json::from_str(&here.edge.admin("/nodez").await?.body)?;
        let failure = state.get("storeError").and_then(serde_json::Value::as_str).unwrap_or_default();
        ensure!(!failure.is_empty(), "/nodez says {state}");
        ensure!(here.edge.metric("edgecore_store_failing").await? == 1);
        ensure!(here.edge.admin("/readyz").await?.status == 503);
        Ok(())
    })
    .await?;
    // Not before: what is small enough for the rest of the journal's last block is taken, and the cloud's changes of
    // different kinds come in no order.
    here.scene.pods(SPACE).create(&PostParams::default(), &pod(late, NODE, &json!({}))).await?;
    wait::holds("nothing new is taken", WATCHED, async || lives_on(here, old, late).await).await
}

/// The site is as it was, and its node is there.
async fn lives_on(here: &Here<'_>, old: &str, late: &str) -> Result<()> {
    here.steady.check(here.site).await?;
    let shown = here.site.shell(&here.steady.uid, "cat /etc/text/is").await?;
    ensure!(shown == old, "the ConfigMap's volume holds {shown:?}");
    ready(&here.scene.node(NODE).await?)?;
    let containers = here.site.containers().await?;
    ensure!(containers.iter().all(|one| one.pod != late), "a pod that is not stored was started");
    Ok(())
}

/// A container that ends is started again, as ever.
async fn crashes(here: &Here<'_>, name: &str) -> Result<()> {
    let uid = here.scene.pods(SPACE).get(name).await?.uid().context("a pod has a uid")?;
    // It does not live to answer.
    drop(here.site.get(&uid, "/exit?code=1").await);
    wait::until("the crashed container running again", SOON, async || {
        let life = Life::of(here.site, &uid).await?;
        let (_, attempt) = &life.containers["main"];
        ensure!(*attempt == 1, "attempt {attempt}");
        Ok(())
    })
    .await
}

/// With room again, all of it arrives by itself.
async fn catches_up(here: &Here<'_>, new: &str, late: &str) -> Result<()> {
    wait::until("what had waited for room", SOON, async || {
        let shown = here.site.shell(&here.steady.uid, "cat /etc/text/is").await?;
        ensure!(shown == new, "the ConfigMap's volume holds {shown:?}");
        for name in [late, CRASHING[0], CRASHING[1]] {
            is_running(&here.scene.pods(SPACE).get(name).await?)?;
        }
        ensure!(here.edge.metric("edgecore_store_failing").await? == 0);
        ensure!(here.edge.admin("/readyz").await?.status == 200);
        Ok(())
    })
    .await?;
    here.steady.check(here.site).await?;
    let pod = here.scene.pods(SPACE).get("steady").await?;
    here.steady.check_status(&pod)
}

/// The ConfigMap, with enough beside the text that it does not fit into the rest of a block.
async fn text(scene: &Scene, is: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(scene.cluster.client(), SPACE);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "text" },
        "data": { "is": is, "bulk": is.repeat(20_000) },
    });
    maps.patch("text", &PatchParams::apply("test").force(), &Patch::Apply(map)).await?;
    Ok(())
}
