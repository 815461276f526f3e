//! A peer that never reads: what waits for it is bounded, and over TCP it is given up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::wait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::{Api, api::PostParams};
use proto::message::{Body, Inventory, Request};
use serde_json::json;

use super::peer::{Peer, Stage, TRANSPORTS};

const SPACE: &str = "default";
/// More than the kernel and QUIC take on their own.
const OBJECTS: usize = 16;
const OBJECT_BYTES: usize = 700_000;
/// What cloudcore may hold for the two: the objects are in its cache anyway.
const MEMORY: u64 = 64 << 20;
/// cloudcore's own is half a minute, and what the bytes take on the thinnest line.
const GIVEN_UP: Duration = Duration::from_mins(2);

pub(crate) async fn run(stage: &Stage<'_>) -> Result<()> {
    let client = stage.cluster.client();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SPACE);
    wait::until("the service account", super::super::SOON, async || accounts.get("default").await.map(drop))
        .await?;
    // Nothing that compresses well.
    let noise = |seed: usize| {
        let mut state = seed as u64 + 1;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap_or(0))
        };
        std::iter::repeat_with(next)
            .filter(|c| !matches!(c, '"' | '\\'))
            .take(OBJECT_BYTES)
            .collect::<String>()
    };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), SPACE);
    for number in 0..OBJECTS {
        let map = json!({"metadata": {"name": format!("large-{number}")}, "data": {"x": noise(number)}});
        maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    }
    let pods: Api<Pod> = Api::namespaced(client, SPACE);
    let mut peers = Vec::new();
    let before = stage.memory()?;
    for transport in TRANSPORTS {
        let node = format!("deaf-{transport:?}").to_lowercase();
        let env: Vec<_> =
            (0..OBJECTS).map(|number| json!({"configMapRef": {"name": format!("large-{number}")}})).collect();
        let pod = json!({"metadata": {"name": node}, "spec": {"nodeName": node, "containers": [
            {"name": "c", "image": "registry.invalid/x", "envFrom": env}]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let mut peer = Peer::greeted(stage, transport, &node).await?;
        // One that comes before cloudcore has heard of its pod is not asked what it has: it is told at once.
        let told = peer
            .until(|body| match body {
                Body::InventoryRequest(_) => Some(0),
                Body::Batch(batch) => Some(batch.changes.len()),
                _ => None,
            })
            .await?;
        if told == 0 {
            peer.say(Body::Inventory(Inventory { entries: Vec::new(), last: true }))?;
        }
        peers.push((transport, told, peer));
    }
    // It goes on asking, and from now on reads nothing of what it is told.
    let refused = "cloudcore_session_ends_total{reason=\"violation\"}";
    let violations = stage.metric(refused).await?;
    let stuck = "cloudcore_session_ends_total{reason=\"write timeout\"}";
    wait::until("the end of the one over TCP", GIVEN_UP, async || {
        for (_, _, peer) in &peers {
            if peer.frames.has_room(proto::Lane::Status) {
                peer.say(Body::Request(Request { id: 1, question: None }))?;
            }
        }
        let more = stage.memory()?.saturating_sub(before);
        ensure!(more <= MEMORY, "cloudcore holds {} KiB more", more >> 10);
        // Who has more questions open than there may be is gone at once.
        let gone = stage.metric(stuck).await? + stage.metric(refused).await? - violations;
        ensure!(gone >= 1, "it stays");
        anyhow::Ok(())
    })
    .await?;
    let (_, told, mut other) = peers.remove(0);
    drop(peers);
    // Once it listens again, it is told all there was, or why it is not.
    let mut batches = told;
    loop {
        match other.hear().await {
            Ok(Some(Body::Batch(batch))) => {
                batches += batch.changes.len();
                other.say(Body::Ack(proto::message::Ack { seq: batch.seq }))?;
                if batches >= OBJECTS {
                    return Ok(());
                }
            }
            Ok(Some(Body::Goodbye(goodbye))) => {
                ensure!(goodbye.detail.contains("questions under way"), "{goodbye:?}");
                return Ok(());
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("after {batches} objects")),
        }
    }
}
