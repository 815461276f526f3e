//! What a change of the cloud costs the edge's disk: alone, and one of many.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Assets, Cluster, product::Edge, progress::during, wait};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    figure::{Figure, Goal},
    node::StoreCounts,
    reading::{Usage, Used},
    workload,
    world::World,
};

const REST: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_mins(1);
/// The store is silent for so long: the change, and whatever follows from it, is over.
const SILENCE: Duration = Duration::from_millis(1500);
const SINGLES: usize = 20;
const BURSTS: usize = 5;
const BURST: usize = 64;
/// Of a ConfigMap's text, in bytes.
const TEXT: usize = 1024;

struct Cost {
    syncs: u64,
    stored: u64,
    used: Used,
}

pub(super) async fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let world = World::start(assets, 1).await?;
    let figures = figures(&world).await;
    world.end(figures)
}

async fn figures(world: &World) -> Result<Vec<Figure>> {
    let edge = world.join(0, &[]).await?;
    let cluster = &world.cluster;
    for number in 0..BURST {
        workload::put_config(cluster, &config(number), &text(0, number)).await?;
    }
    // As environment: a mounted one would be written to its volume, too, and that is not the store's doing.
    let from: Vec<_> = (0..BURST)
        .map(|number| json!({ "prefix": format!("C{number}_"), "configMapRef": { "name": config(number) } }))
        .collect();
    let mut spec = workload::plain();
    spec["containers"] = json!([{ "name": "main", "image": harness::setup::PAUSE, "envFrom": from }]);
    let pod = workload::pause_pod("reader", edge.name(), &spec)?;
    during("starting a pod that refers to 64 ConfigMaps", workload::run_all(cluster, vec![pod])).await?;
    workload::settle(REST).await;

    let mut singles = Vec::new();
    let each = async {
        for round in 1..=SINGLES {
            let (name, text) = (config(round % BURST), text(round, 0));
            singles.push(cost(&edge, 1, workload::put_config(cluster, &name, &text)).await?);
        }
        anyhow::Ok(())
    };
    during("changing one ConfigMap at a time", each).await?;
    let mut bursts = Vec::new();
    let each = async {
        for round in 1..=BURSTS {
            bursts.push(cost(&edge, BURST, change_all(cluster, SINGLES + round)).await?);
        }
        anyhow::Ok(())
    };
    during("changing 64 ConfigMaps at once", each).await?;

    let of = |costs: &[Cost], read: fn(&Cost) -> f64| costs.iter().map(read).collect::<Vec<_>>();
    let spent = |costs: &[Cost]| costs.iter().map(|cost| cost.used.cpu).sum();
    Ok(vec![
        Figure::median("one change: syncs", "syncs", of(&singles, |cost| cost.syncs as f64))
            .goal(Goal::AtMost(1.0))
            .cpu("edgecore", spent(&singles))
            .note("a ConfigMap with 1 KiB of text"),
        Figure::median("one change: written by the store", "KB", of(&singles, |cost| cost.stored as f64 / 1e3))
            .goal(Goal::AtMost(12.0)),
        Figure::median("one change: written to disk", "KB", of(&singles, |cost| cost.used.written as f64 / 1e3))
            .goal(Goal::AtMost(12.0))
            .note("write_bytes of edgecore: whole pages, and sled's share of what came before"),
        Figure::median("64 changes at once: syncs", "syncs", of(&bursts, |cost| cost.syncs as f64))
            .goal(Goal::AtMost((BURST - 1) as f64))
            .cpu("edgecore", spent(&bursts))
            .note("64 writers to the API server at once, as fast as it takes them; met means that any syncs were shared"),
        Figure::median("64 changes at once: written to disk", "KB", of(&bursts, |cost| cost.used.written as f64 / 1e3)),
    ])
}

/// What `changes` cost, of which there are `count`, until the store is silent.
async fn cost(edge: &Edge, count: usize, changes: impl Future<Output = Result<()>>) -> Result<Cost> {
    let usage = Usage::of(edge.pid()?)?;
    let before = StoreCounts::of(edge).await?;
    changes.await?;
    let least = (count * TEXT) as u64;
    wait::until("the change in the store", LIMIT, async || {
        let stored = StoreCounts::of(edge).await?.written - before.written;
        // Patches are smaller than what they make; the journal has whole objects.
        ensure!(stored >= least, "{stored} of {least} bytes were stored");
        anyhow::Ok(())
    })
    .await?;
    let mut last = StoreCounts::of(edge).await?;
    let mut silent_since = Instant::now();
    while silent_since.elapsed() < SILENCE {
        sleep(Duration::from_millis(100)).await;
        let now = StoreCounts::of(edge).await?;
        if now != last {
            (last, silent_since) = (now, Instant::now());
        }
    }
    Ok(Cost {
        syncs: last.syncs - before.syncs,
        stored: last.written - before.written,
        used: usage.to_now()?,
    })
}

async fn change_all(cluster: &Cluster, round: usize) -> Result<()> {
    let mut writers = JoinSet::new();
    for number in 0..BURST {
        let configs =
            kube::Api::<k8s_openapi::api::core::v1::ConfigMap>::default_namespaced(cluster.client());
        let patch = kube::api::Patch::Merge(json!({ "data": { "text": text(round, number) } }));
        writers.spawn(async move {
            configs.patch(&config(number), &kube::api::PatchParams::default(), &patch).await.map(drop)
        });
    }
    while let Some(written) = writers.join_next().await {
        written.context("a writer died")?.context("failed to change a ConfigMap")?;
    }
    Ok(())
}

fn config(number: usize) -> String {
    format!("config-{number}")
}

/// Other in each round, and nothing that a compressor could make small: a multiplicative generator's digits.
fn text(round: usize, number: usize) -> String {
    let mut state = (round as u64) << 32 | number as u64 | 1 << 20;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:08x}", state >> 32)
    });
    words.take(TEXT / 8).collect()
}
