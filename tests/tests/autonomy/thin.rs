//! A line of 64 kbit/s that loses five packets of a hundred is a line: a node joins over it, runs what it is told, and stays
//! Ready. The machine at its end offers what its configuration says, and no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Impairment, Site,
    product::{Edge, Life, Scene, pod, ready},
    wait,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
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
/// Ten seconds' worth of the line.
const LARGE: usize = 100_000;
const LINE: Impairment = Impairment { rate: 64, loss: 5 };

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    site.impair(LINE)?;
    let edge = Edge::join(&bench.assets, &scene.cloud, site, NODE, &SETTINGS).await?;
    let offered = scene.node(NODE).await?.status.and_then(|status| status.capacity).unwrap_or_default();
    let offered = ["memory", "cpu"].map(|name| offered.get(name).map_or("", |amount| &*amount.0));
    ensure!(offered == ["100Mi", "100m"], "the node offers {offered:?}");
    scene.namespace(SPACE).await?;
    put(scene, "text", "one").await?;
    let volume = json!({ "containers": [{
        "name": "main", "image": harness::setup::AGNHOST, "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
        "volumeMounts": [
            { "name": "text", "mountPath": "/etc/text" }, { "name": "large", "mountPath": "/etc/large" },
        ],
    }], "volumes": [
        { "name": "text", "configMap": { "name": "text" } },
        { "name": "large", "configMap": { "name": "large", "optional": true } },
    ] });
    let uid = scene.run(SPACE, &pod("reader", NODE, &volume)).await?.uid().context("a pod has a uid")?;
    let life = Life::of(site, &uid).await?;
    put(scene, "text", "two").await?;
    wait::until("the change at the site", SOON, async || {
        let shown = site.shell(&uid, "cat /etc/text/is").await?;
        ensure!(shown == "two", "the ConfigMap's volume holds {shown:?}");
        Ok(())
    })
    .await?;
    // It takes longer than the line may be silent.
    let sessions = edge.metric("edgecore_sessions").await?;
    put(scene, "large", &noise(LARGE)).await?;
    wait::until("the large ConfigMap at the site", SOON, async || {
        let length = site.shell(&uid, "wc -c /etc/large/is").await?;
        ensure!(length.split(' ').next() == Some(&*LARGE.to_string()), "{length}");
        Ok(())
    })
    .await?;
    wait::holds("the node Ready in one session", WATCHED, async || {
        ready(&scene.node(NODE).await?)?;
        ensure!(edge.metric("edgecore_sessions").await? == sessions, "the line was given up");
        Ok(())
    })
    .await?;
    life.check(site).await?;
    given_up_meanwhile(scene, &life).await
}

/// What the control plane does to a node whose lease cloudcore could not renew for a while, with the node's line well.
async fn given_up_meanwhile(scene: &Scene, life: &Life) -> Result<()> {
    let not = |status: &str| json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } });
    let client = scene.cluster.client();
    let (by, nodes) = (PatchParams::default(), Api::<Node>::all(client));
    let pods = scene.pods(SPACE);
    pods.patch_status("reader", &by, &Patch::Strategic(not("False"))).await?;
    nodes.patch_status(NODE, &by, &Patch::Strategic(not("Unknown"))).await?;
    wait::until("node and pod as they were", SOON, async || {
        ready(&scene.node(NODE).await?)?;
        let pod = pods.get("reader").await?;
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
        ensure!(ready.is_some_and(|ready| ready.status == "True"), "the pod's Ready is {ready:?}");
        life.check_status(&pod)
    })
    .await
}

/// Text that does not get smaller by compression, but for what base 64 costs. From a generator of Park and Miller's.
fn noise(length: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state: u32 = 1;
    let next = || {
        state = (u64::from(state) * 48_271 % 0x7fff_ffff) as u32;
        char::from(LETTERS[(state >> 8) as usize % LETTERS.len()])
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn put(scene: &Scene, name: &str, is: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(scene.cluster.client(), SPACE);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "is": is } });
    maps.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(map)).await?;
    Ok(())
}
