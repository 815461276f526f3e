//! A line of 64 kbit/s that loses five packets of a hundred is a line: a node joins over it, runs what it is told, and stays
//! Ready. The machine at its end offers what its configuration says, and no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Impairment, Site,
    product::{Edge, Life, Scene, pod, ready},
    wait,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

const NODE: &str = "edge-thin";
const SPACE: &str = "thin";
const SOON: Duration = Duration::from_secs(90);
/// Heartbeats come every two seconds here: several times what makes a line count as dead.
const WATCHED: Duration = Duration::from_secs(10);
const SETTINGS: [&str; 3] =
    ["modules.edgeHub.heartbeat=2", "modules.edged.memoryCapacity=100Mi", "modules.edged.cpuFrequency=100"];
const LINE: Impairment = Impairment { rate: 64, loss: 5 };

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    site.impair(LINE)?;
    let edge = Edge::join(&bench.assets, &scene.cloud, site, NODE, &SETTINGS).await?;
    let offered = scene.node(NODE).await?.status.and_then(|status| status.capacity).unwrap_or_default();
    let offered = ["memory", "cpu"].map(|name| offered.get(name).map_or("", |amount| &*amount.0));
    ensure!(offered == ["100Mi", "100m"], "the node offers {offered:?}");
    scene.namespace(SPACE).await?;
    text(scene, "one").await?;
    let volume = json!({ "containers": [{
        "name": "main", "image": harness::setup::AGNHOST, "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
        "volumeMounts": [{ "name": "text", "mountPath": "/etc/text" }],
    }], "volumes": [{ "name": "text", "configMap": { "name": "text" } }] });
    let uid = scene.run(SPACE, &pod("reader", NODE, &volume)).await?.uid().context("a pod has a uid")?;
    let life = Life::of(site, &uid).await?;
    text(scene, "two").await?;
    wait::until("the change at the site", SOON, async || {
        let shown = site.shell(&uid, "cat /etc/text/is").await?;
        ensure!(shown == "two", "the ConfigMap's volume holds {shown:?}");
        Ok(())
    })
    .await?;
    let sessions = edge.metric("edgecore_sessions").await?;
    wait::holds("the node Ready in one session", WATCHED, async || {
        ready(&scene.node(NODE).await?)?;
        ensure!(edge.metric("edgecore_sessions").await? == sessions, "the line was given up");
        Ok(())
    })
    .await?;
    life.check(site).await
}

async fn text(scene: &Scene, is: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(scene.cluster.client(), SPACE);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "text" }, "data": { "is": is } });
    maps.patch("text", &PatchParams::apply("test").force(), &Patch::Apply(map)).await?;
    Ok(())
}
