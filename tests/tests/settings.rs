//! The settings of the link, as an operator changes them with a ConfigMap: at a site with QUIC and at one with the WebSocket.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, ClusterOptions, LineCut, Site, bench,
    process::kill9,
    product::{Edge, Scene, pod},
    setup::{AGNHOST, source_dir},
    wait,
};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::Instant;

const SPACE: &str = "settings";
const SOON: Duration = Duration::from_mins(1);
/// Many times what a status takes that nothing holds back.
const HELD: Duration = Duration::from_secs(6);
/// Bytes of a ConfigMap, and a second: it takes 13 s, with what is around it on the line.
const LARGE: usize = 100_000;
const CAP: usize = 8000;
/// A change goes as the whole object, uncompressed: its length is what goes over the line.
const WHOLE: &str = "strategy: full\ncompression: false\n";
/// What the cap makes of it, on a machine that does much else at the same time.
const CAPPED: (Duration, Duration) = (Duration::from_secs(11), Duration::from_secs(25));
/// Less than the cap would make of it.
const LIFTED: Duration = Duration::from_secs(10);
/// The heartbeat of these nodes is 2 s: two of them, less what is lost between two looks.
const BEAT: Duration = Duration::from_millis(4500);

/// Of the pods: one that the cap holds back, and two of which one has a class.
const MAPS: [&str; 3] = ["large", "slow", "quick"];
/// Of the class of the slow one: long beside what a change takes that nothing holds back.
const INTERVAL: Duration = Duration::from_secs(8);

/// A node, and a pod on it that is ready as long as it has a file.
struct Node {
    transport: &'static str,
    site: Site,
    edge: Edge,
    pod: String,
    uid: String,
}

#[tokio::test]
async fn a_config_map_changes_the_links_of_the_nodes() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 2).await?;
        scene.namespace(SPACE).await?;
        let shown = fs::read_to_string(source_dir().join("examples/sync-config.yaml"))?;
        scene.cluster.apply(&shown).await?;
        let mut nodes = Vec::new();
        for (site, transport) in sites.into_iter().zip(["quic", "websocket"]) {
            nodes.push(join(bench, &scene, site, transport).await?);
        }
        for node in &mut nodes {
            held_back(&scene, node).await.with_context(|| format!("held back, {}", node.transport))?;
            offline(&scene, node).await.with_context(|| format!("offline, {}", node.transport))?;
        }
        let document = "priorityClasses: [{name: critical, syncInterval: 1s}]";
        set(&scene, document).await?;
        for node in &nodes {
            until_ready_is(&scene, node, "False").await.context("with a shorter interval")?;
        }
        invalid(&scene, &nodes).await.context("invalid")?;
        batched(&scene, &nodes).await.context("batched")?;
        at_any_time(&scene, &mut nodes).await.context("other intervals at any time")?;
        capped(&scene, &nodes).await.context("capped")
    })
    .await
}

async fn join(bench: &Bench, scene: &Scene, site: Site, transport: &'static str) -> Result<Node> {
    let name = format!("edge-{transport}");
    let quic = format!("modules.edgeHub.quic.enable={}", transport == "quic");
    let settings = ["modules.edgeHub.heartbeat=2", &quic];
    let edge = Edge::join(&bench.assets, &scene.cloud, &site, &name, &settings).await?;
    wait::until("the ConfigMap's settings", SOON, async || {
        let state = state(&edge).await?;
        ensure!(state["transport"] == transport, "{state}");
        ensure!(state["sync"]["syncIntervals"]["critical"] == 300.0, "{state}");
        Ok(())
    })
    .await?;
    let pod = pod(
        &format!("on-{name}"),
        &name,
        &json!({
            "containers": [{
                "name": "main", "image": AGNHOST, "imagePullPolicy": "IfNotPresent",
                "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
                "readinessProbe": {
                    "exec": { "command": ["cat", "/tmp/ready"] }, "periodSeconds": 1, "failureThreshold": 1,
                },
                "volumeMounts": MAPS.map(|name| json!({ "name": name, "mountPath": format!("/etc/{name}") })),
            }],
            "volumes": MAPS.map(|name| json!({ "name": name, "configMap": { "name": name, "optional": true } })),
        }),
    );
    let made = scene.pods(SPACE).create(&PostParams::default(), &pod).await?;
    let uid = made.uid().context("a pod has a uid")?;
    Ok(Node { transport, site, edge, pod: made.name_any(), uid })
}

/// What is new goes up at once: the first status, and that the pod is ready. That it is not ready has been said, and waits.
async fn held_back(scene: &Scene, node: &Node) -> Result<()> {
    until_ready_is(scene, node, "False").await?;
    // It takes a moment until the pod answers.
    wait::until("a shell in the pod", SOON, async || node.site.shell(&node.uid, "touch /tmp/ready").await)
        .await?;
    until_ready_is(scene, node, "True").await?;
    node.site.shell(&node.uid, "rm /tmp/ready").await?;
    is_held(scene, node).await
}

/// The same without a line, and by an edgecore that was killed meanwhile.
async fn offline(scene: &Scene, node: &mut Node) -> Result<()> {
    node.site.cut(LineCut::Silent)?;
    let old = node.edge.pid()?;
    kill9(old)?;
    node.edge.come_back(old).await?;
    node.edge.works_alone().await?;
    let alone = state(&node.edge).await?;
    ensure!(alone["sync"]["syncIntervals"]["critical"] == 300.0, "{alone}");
    node.site.restore()?;
    wait::until("the node in sync", SOON, async || {
        let state = state(&node.edge).await?;
        ensure!(state["synced"] == true && state["nodeReady"] == true, "{state}");
        Ok(())
    })
    .await?;
    is_held(scene, node).await
}

async fn is_held(scene: &Scene, node: &Node) -> Result<()> {
    wait::until("a report that is held back", SOON, async || {
        let state = state(&node.edge).await?;
        ensure!(state["sync"]["holding"] == true, "{state}");
        Ok(())
    })
    .await?;
    wait::holds("the pod Ready for the cloud", HELD, async || ready_is(scene, node, "True").await).await
}

/// What was good stays, and an event says what is wrong.
async fn invalid(scene: &Scene, nodes: &[Node]) -> Result<()> {
    set(scene, "strategy: ful").await?;
    let events: Api<Event> = Api::namespaced(scene.cluster.client(), "default");
    for node in nodes {
        let about = format!("involvedObject.kind=Node,involvedObject.name={}", node.edge.name());
        wait::until("an event that says what is wrong", SOON, async || {
            let found = events.list(&ListParams::default().fields(&about)).await?.items;
            let mut told = found.iter().filter(|event| event.reason.as_deref() == Some("InvalidSyncConfig"));
            let message = told.next().and_then(|event| event.message.as_deref()).unwrap_or_default();
            let wanted = "strategy: \"ful\" is not one of differential, full";
            ensure!(message.contains(wanted) && message.contains("default/sync-config"), "{message:?}");
            Ok(())
        })
        .await?;
        let state = state(&node.edge).await?;
        ensure!(state["sync"]["syncIntervals"]["critical"] == 1.0, "{state}");
    }
    Ok(())
}

/// Changes of an object that has a class come as one at the end of its interval, those of another one at once meanwhile.
async fn batched(scene: &Scene, nodes: &[Node]) -> Result<()> {
    set_batch(scene, nodes, INTERVAL).await?;
    for name in ["slow", "quick"] {
        put_small(scene, name, 0).await?;
    }
    // They are new, and wait for nothing.
    wait::until("both ConfigMaps", SOON, async || {
        for node in nodes {
            have(node, ["0", "0"]).await?;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let begun = Instant::now();
    for (name, number) in [("slow", 1), ("quick", 1), ("slow", 2), ("slow", 3)] {
        put_small(scene, name, number).await?;
    }
    for node in nodes {
        wait::until("a change that waits", SOON, async || is_held_down(scene, node, 1).await).await?;
    }
    let mut seen = vec![Vec::new(); nodes.len()];
    wait::until("the changes of both", SOON, async || {
        for (node, seen) in nodes.iter().zip(&mut seen) {
            let now = small(node).await?;
            if seen.last().map(|(last, _)| last) != Some(&now) {
                seen.push((now, begun.elapsed()));
            }
        }
        let at_end = seen.iter().all(|seen| seen.last().is_some_and(|(last, _)| last == "3 1"));
        ensure!(at_end, "{seen:?}");
        Ok(())
    })
    .await?;
    for seen in &seen {
        let values: Vec<&str> =
            seen.iter().map(|(now, _)| now.as_str()).filter(|now| *now != "0 0").collect();
        ensure!(values == ["0 1", "3 1"], "{seen:?}");
        let took = seen.last().map(|(_, took)| *took).unwrap_or_default();
        ensure!(took + Duration::from_secs(1) > INTERVAL && took < 2 * INTERVAL, "{seen:?}");
    }
    eprintln!("with an interval of {INTERVAL:?}: {seen:?}");
    Ok(())
}

/// A document that is changed counts in the same session, for what waits already, too; and a new session has it all.
async fn at_any_time(scene: &Scene, nodes: &mut [Node]) -> Result<()> {
    let hour = Duration::from_hours(1);
    set_batch(scene, nodes, hour).await?;
    let mut sessions = Vec::new();
    for node in &*nodes {
        sessions.push(state(&node.edge).await?["sessions"].clone());
    }
    put_small(scene, "slow", 4).await?;
    for node in &*nodes {
        wait::until("a change that waits", SOON, async || is_held_down(scene, node, 1).await).await?;
        wait::holds("the one before", HELD, async || have(node, ["3", "1"]).await).await?;
    }
    set(scene, "priorityClasses: [{name: batch, syncInterval: 0}]").await?;
    for (node, sessions) in nodes.iter().zip(sessions) {
        wait::until("what has waited", SOON, async || have(node, ["4", "1"]).await).await?;
        is_held_down(scene, node, 0).await?;
        let state = state(&node.edge).await?;
        ensure!(sessions.is_u64() && state["sessions"] == sessions, "another session: {state}");
    }

    set_batch(scene, nodes, hour).await?;
    put_small(scene, "slow", 5).await?;
    for node in nodes {
        wait::until("a change that waits", SOON, async || is_held_down(scene, node, 1).await).await?;
        node.site.cut(LineCut::Silent)?;
        wait::until("the line lost", SOON, async || {
            let state = state(&node.edge).await?;
            ensure!(state["connected"] == false, "{state}");
            Ok(())
        })
        .await?;
        node.site.restore()?;
        wait::until("what has waited, in a new session", SOON, async || have(node, ["5", "1"]).await).await?;
    }
    Ok(())
}

async fn set_batch(scene: &Scene, nodes: &[Node], interval: Duration) -> Result<()> {
    let seconds = interval.as_secs();
    set(scene, &format!("priorityClasses: [{{name: batch, syncInterval: {seconds}s}}]")).await?;
    for node in nodes {
        wait::until("the interval", SOON, async || {
            let state = state(&node.edge).await?;
            ensure!(state["sync"]["syncIntervals"]["batch"] == interval.as_secs_f64(), "{state}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn put_small(scene: &Scene, name: &str, number: u32) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(scene.cluster.client(), SPACE);
    let annotations = if name == "slow" { json!({ "skerry.io/priority-class": "batch" }) } else { json!({}) };
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "annotations": annotations },
        "data": { "is": number.to_string() },
    });
    maps.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(map)).await?;
    Ok(())
}

/// The slow one and the quick one, as the pod has them.
async fn small(node: &Node) -> Result<String> {
    let both = node.site.shell(&node.uid, "echo $(cat /etc/slow/is) $(cat /etc/quick/is)").await?;
    Ok(both.trim().to_owned())
}

async fn have(node: &Node, wanted: [&str; 2]) -> Result<()> {
    let is = small(node).await?;
    ensure!(is == wanted.join(" "), "{}: {is:?}", node.transport);
    Ok(())
}

/// What cloudcore holds back for a node.
async fn is_held_down(scene: &Scene, node: &Node, wanted: u64) -> Result<()> {
    let held = traffic(scene, node, "/heldObjects/batch").await?;
    ensure!(held == wanted, "{}: {held} are held", node.transport);
    Ok(())
}

/// A large object takes the time that the cap gives it, heartbeats do not; and a cap that is lifted is none for what is on
/// its way.
async fn capped(scene: &Scene, nodes: &[Node]) -> Result<()> {
    set(scene, &format!("{WHOLE}bandwidth: {{down: {CAP}}}")).await?;
    for node in nodes {
        wait::until("the cap", SOON, async || {
            let state = state(&node.edge).await?;
            ensure!(state["sync"]["bandwidth"]["down"] == CAP, "{state}");
            Ok(())
        })
        .await?;
    }
    let begun = Instant::now();
    put(scene, 1).await?;
    let mut took = [None, None];
    let mut beats = [(0, Instant::now()); 2];
    wait::until("the large ConfigMap at both sites", SOON, async || {
        for (number, node) in nodes.iter().enumerate() {
            let control = control_bytes(scene, node).await?;
            let (seen, last) = &mut beats[number];
            if control > *seen {
                (*seen, *last) = (control, Instant::now());
            }
            let silence = last.elapsed();
            if silence > BEAT && took[number].is_none() {
                took[number] = Some(Err(format!("{}: no heartbeat for {silence:?}", node.transport)));
            }
            if took[number].is_none() && holds(node, 1).await {
                took[number] = Some(Ok(begun.elapsed()));
            }
        }
        ensure!(took.iter().all(Option::is_some), "{took:?}");
        Ok(())
    })
    .await?;
    for took in took.into_iter().flatten() {
        let took = took.map_err(anyhow::Error::msg)?;
        eprintln!("{LARGE} bytes at {CAP} bytes a second took {took:?}");
        ensure!(took > CAPPED.0 && took < CAPPED.1, "it took {took:?}");
    }

    let mut before = Vec::new();
    for node in nodes {
        before.push(object_bytes(scene, node).await?);
    }
    let begun = Instant::now();
    put(scene, 2).await?;
    wait::until("the next one on its way to both", SOON, async || {
        for (node, before) in nodes.iter().zip(&before) {
            ensure!(object_bytes(scene, node).await? > before + LARGE as u64, "not to {}", node.transport);
        }
        Ok(())
    })
    .await?;
    for node in nodes {
        ensure!(!holds(node, 2).await, "{}: the cap held nothing back", node.transport);
    }
    set(scene, WHOLE).await?;
    wait::until("the rest of it", SOON, async || {
        for node in nodes {
            ensure!(holds(node, 2).await, "not at {}", node.transport);
        }
        Ok(())
    })
    .await?;
    ensure!(begun.elapsed() < LIFTED, "it took {:?} with the cap lifted", begun.elapsed());
    Ok(())
}

async fn state(edge: &Edge) -> Result<Value> {
    Ok(serde_json::from_str(&edge.admin("/nodez").await?.body)?)
}

async fn ready_is(scene: &Scene, node: &Node, wanted: &str) -> Result<()> {
    let pod: Pod = scene.pods(SPACE).get(&node.pod).await?;
    let status = pod.status.unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let ready = ready.map(|condition| condition.status.as_str());
    let phase = status.phase.as_deref();
    ensure!(ready == Some(wanted) && phase == Some("Running"), "{}: Ready is {ready:?}, {phase:?}", node.pod);
    Ok(())
}

async fn until_ready_is(scene: &Scene, node: &Node, wanted: &str) -> Result<()> {
    wait::until("the pod as it is", SOON, async || ready_is(scene, node, wanted).await).await
}

async fn set(scene: &Scene, document: &str) -> Result<()> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "sync-config", "namespace": "default" },
        "data": { "sync-strategy.yaml": document },
    });
    scene.cluster.apply(&map.to_string()).await.map(drop)
}

/// Whether the pod has this one.
async fn holds(node: &Node, number: u32) -> bool {
    // There may be none.
    let begins = node.site.shell(&node.uid, "head -c 8 /etc/large/is").await;
    begins.is_ok_and(|begins| begins == format!("{number:08}"))
}

async fn put(scene: &Scene, number: u32) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(scene.cluster.client(), SPACE);
    let is = format!("{number:08}{}", noise(number, LARGE));
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "large" }, "data": { "is": is } });
    maps.patch("large", &PatchParams::apply("test").force(), &Patch::Apply(map)).await?;
    Ok(())
}

/// Text that is like nothing before it. From a generator of Park and Miller's.
fn noise(seed: u32, length: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed;
    let next = || {
        state = (u64::from(state) * 48_271 % 0x7fff_ffff) as u32;
        char::from(LETTERS[(state >> 8) as usize % LETTERS.len()])
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// What cloudcore has received of a node's heartbeats and acks.
async fn control_bytes(scene: &Scene, node: &Node) -> Result<u64> {
    traffic(scene, node, "/receivedBytes/control").await
}

/// What cloudcore has given to the node's line of objects.
async fn object_bytes(scene: &Scene, node: &Node) -> Result<u64> {
    traffic(scene, node, "/sentBytes/objects").await
}

async fn traffic(scene: &Scene, node: &Node, which: &str) -> Result<u64> {
    let page: Value = serde_json::from_str(&scene.cloud.admin("/sessions").await?.body)?;
    let session = &page[node.edge.name()];
    session.pointer(which).and_then(Value::as_u64).with_context(|| format!("{page} has no {which}"))
}
