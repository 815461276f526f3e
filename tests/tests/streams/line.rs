//! The line changes, is full, and is cut.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, LineCut, Site,
    product::{Edge, Scene, ready},
    wait,
};
use serde_json::json;
use tokio::time::Instant;

use crate::streams::tools::Kubectl;

const SOON: Duration = Duration::from_mins(1);
/// After which a session whose line is dead has ended, at a heartbeat of 2 s, and some more.
const NOTICED: Duration = Duration::from_secs(20);
/// Bytes a second, and bytes: 12 s, of which a socket takes what is left after a moment.
const SLOW: u64 = 100_000;
const OUTPUT: u64 = 1_200_000;
/// Two of the API server's.
const PINGS: Duration = Duration::from_secs(10);

pub(crate) async fn run(
    bench: &Bench,
    scene: &Scene,
    (first, quic): (&mut Site, &Edge),
    (_, websocket): (&mut Site, &Edge),
) -> Result<()> {
    let over_quic = Kubectl { bench, scene, name: "on-quic" };
    let over_websocket = Kubectl { bench, scene, name: "on-websocket" };
    tokio::try_join!(full(scene, &over_quic, quic), full(scene, &over_websocket, websocket))?;
    slow(scene, [(&over_quic, quic), (&over_websocket, websocket)]).await.context("slow")?;

    // Another address: the very stream goes on.
    let mut follow = over_quic.start("follow", &["logs", "-f", "--tail=1", "on-quic", "-c", "talker"])?;
    wait::until("lines", SOON, async || lines(follow.log()).map(drop)).await?;
    for round in 0..2 {
        first.change_address(round % 2 == 0)?;
        let before = lines(follow.log())?;
        wait::until("lines from the new address", SOON, async || {
            let now = lines(follow.log())?;
            ensure!(now > before + 5, "{now} lines, {before} before");
            Ok(())
        })
        .await?;
    }
    ensure!(follow.exited()?.is_none(), "kubectl logs -f has ended");
    let text = fs::read_to_string(follow.log())?;
    let numbers: Vec<u64> =
        text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing: {numbers:?}");

    // Cut: who follows is told, and who asks anew as well.
    first.cut(LineCut::Silent)?;
    wait::until("the end of kubectl logs -f", NOTICED, async || {
        follow.exited()?.context("it goes on").map(drop)
    })
    .await?;
    over_quic.fails(&["logs", "on-quic", "-c", "talker"], "is not connected to this cloudcore").await?;
    first.restore()?;
    wait::until("logs again", SOON, async || {
        let log = over_quic.run(&["logs", "on-quic", "-c", "talker", "--tail=1"]).await?;
        ensure!(!log.is_empty(), "nothing");
        Ok(())
    })
    .await
}

/// A stream that takes all there is of the line ends no session, and a stream that nobody reads neither.
async fn full(scene: &Scene, kubectl: &Kubectl<'_>, edge: &Edge) -> Result<()> {
    let sessions = edge.metric("edgecore_sessions").await?;
    let zeros = "dd if=/dev/zero bs=1048576 count=200 2>/dev/null";
    let count = "dd if=/dev/zero bs=1048576 count=200 2>/dev/null | wc -c";
    let exec = |script| ["exec", kubectl.name, "-c", "talker", "--", "sh", "-c", script];
    let stuck = kubectl.start_unread(&exec(zeros))?;
    let out = kubectl.run(&exec(count)).await?;
    ensure!(out.trim() == (200 << 20).to_string(), "{out}");
    let sent = kubectl.count(&exec(zeros)).await?;
    ensure!(sent == 200 << 20, "{sent} bytes came");
    ready(&scene.node(edge.name()).await?)?;
    let now = edge.metric("edgecore_sessions").await?;
    ensure!(now == sessions, "{} more sessions", now - sessions);
    drop(stuck);
    Ok(())
}

/// A command ends long before its output is over a slow line, while the API server pings every 5 s.
async fn slow(scene: &Scene, nodes: [(&Kubectl<'_>, &Edge); 2]) -> Result<()> {
    set_cap(scene, Some(SLOW)).await?;
    for (_, edge) in nodes {
        has_cap(edge, json!(SLOW)).await?;
    }
    let [quic, websocket] = nodes.map(async |(kubectl, edge)| {
        let script = format!("dd if=/dev/zero bs=1000 count={} 2>/dev/null", OUTPUT / 1000);
        let begun = Instant::now();
        let came = kubectl.count(&["exec", kubectl.name, "-c", "talker", "--", "sh", "-c", &script]).await?;
        let took = begun.elapsed();
        ensure!(came == OUTPUT, "{}: {came} of {OUTPUT} bytes came, in {took:?}", edge.name());
        ensure!(took > PINGS, "{}: the cap was none: {took:?}", edge.name());
        Ok(())
    });
    tokio::try_join!(quic, websocket)?;
    set_cap(scene, None).await?;
    for (_, edge) in nodes {
        has_cap(edge, serde_json::Value::Null).await?;
    }
    Ok(())
}

/// Of what the sites send, in bytes a second.
async fn set_cap(scene: &Scene, up: Option<u64>) -> Result<()> {
    let document =
        up.map_or_else(|| "compression: true\n".to_owned(), |up| format!("bandwidth: {{up: {up}}}\n"));
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "sync-config", "namespace": "default" },
        "data": { "sync-strategy.yaml": document },
    });
    scene.cluster.apply(&map.to_string()).await.map(drop)
}

async fn has_cap(edge: &Edge, wanted: serde_json::Value) -> Result<()> {
    wait::until("the cap", SOON, async || {
        let state: serde_json::Value = serde_json::from_str(&edge.admin("/nodez").await?.body)?;
        ensure!(state["sync"]["bandwidth"]["up"] == wanted, "{state}");
        Ok(())
    })
    .await
}

/// How many lines of the talker's there are.
fn lines(log: &Path) -> Result<usize> {
    let text = fs::read_to_string(log)?;
    let count = text.lines().filter(|line| line.starts_with("line ")).count();
    ensure!(count > 0, "no line: {text}");
    Ok(count)
}
