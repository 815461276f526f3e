//! What happens to lines, and to the programs at their ends: from the end of each fault until a change that the cloud made
//! meanwhile is stored at the edge, in a session that is in sync. Over either transport.

mod doubt;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use harness::{
    Assets, Silent,
    product::{Cloud, FLAP, Fault, Wired, ready},
    progress::during,
    random::Random,
    wait,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    figure::{Figure, Goal},
    workload,
    world::World,
};

/// Of each transport, at the same time.
const SITES: usize = 2;
const TRANSPORTS: [(&str, &str); 2] = [("quic", "websocket"), ("websocket", "quic")];
/// In seconds; the default would only make either end give a line up later.
const HEARTBEAT: &str = "modules.edgeHub.heartbeat=1";
const LIMIT: Duration = Duration::from_mins(2);
const REST: Duration = Duration::from_secs(5);
/// How long a line comes and goes, and an API server is away.
const LASTS: Duration = Duration::from_secs(4);
/// Less than a minute after its start, a program that is killed is started again ever later.
const STABLE: Duration = Duration::from_secs(62);
/// Of the random numbers, in milliseconds: any moment of an edge's attempts to come back.
const ANY: u64 = 4000;

/// What the nodes are over that go from one to the other.
const EITHER: &str = "either";

/// What each node goes through by itself.
const OWN: [Fault; 7] = [
    Fault::Silence(Silent::Both),
    Fault::Silence(Silent::Up),
    Fault::Silence(Silent::Down),
    Fault::Flapping(FLAP),
    Fault::Rebinding,
    Fault::EdgeStopped,
    Fault::EdgeKilled,
];
/// And all together.
const COMMON: [Fault; 3] = [Fault::CloudStopped, Fault::CloudKilled, Fault::ApiServerStopped];

struct Node {
    wired: Wired,
    transport: &'static str,
}

/// Of each fault and transport, in seconds.
type Times = BTreeMap<(&'static str, &'static str), Vec<f64>>;

pub(super) async fn take(assets: &Assets, cuts: usize) -> Result<Vec<Figure>> {
    let world = World::start(assets, SITES * (TRANSPORTS.len() + 1)).await?;
    let figures = match world.another_cloud().await {
        Ok(other) => figures(&world, &other, cuts).await,
        Err(error) => Err(error),
    };
    world.end(figures)
}

async fn figures(world: &World, other: &Cloud, cuts: usize) -> Result<Vec<Figure>> {
    let mut random = Random::seeded("bench line")?;
    let mut nodes = Vec::new();
    for site in 0..SITES * TRANSPORTS.len() {
        let (transport, other) = TRANSPORTS[site % TRANSPORTS.len()];
        let seed = random.number();
        let wire = world.sites[site].wire(seed)?;
        let off = format!("modules.edgeHub.{other}.enable=false");
        let edge = world.join(site, &[HEARTBEAT, &off]).await?;
        let wired = Wired::start(&world.cluster, &[&world.cloud], edge, wire, seed).await?;
        nodes.push(Node { wired, transport });
    }
    let mut in_doubt = Vec::new();
    for site in SITES * TRANSPORTS.len()..world.sites.len() {
        in_doubt.push(doubt::Node::join(world, other, site, random.number()).await?);
    }
    workload::settle(REST).await;
    let (rounds, mut times) = (cuts.div_ceil(SITES).max(1), Times::new());
    let mut waited = Duration::ZERO;
    let begun = Instant::now();
    let doing = format!("{rounds} rounds of {} faults at {} nodes", OWN.len() + COMMON.len(), nodes.len());
    let all = async {
        for _ in 0..rounds {
            let stable = Instant::now() + STABLE;
            let own = async {
                for fault in OWN {
                    let each = nodes.iter().map(|node| one(world, node, fault, random.millis(ANY)));
                    note(&mut times, &nodes, fault, try_join_all(each).await?);
                }
                anyhow::Ok(())
            };
            // Meanwhile, because these take their time.
            let doubts = try_join_all(in_doubt.iter().map(|node| node.round(world, other)));
            let ((), doubts) = tokio::try_join!(own, doubts)?;
            for (name, took) in doubts.into_iter().flatten() {
                times.entry((name, EITHER)).or_default().push(took.as_secs_f64());
            }
            for fault in COMMON {
                let took = common(world, &nodes, fault, random.millis(ANY)).await;
                note(&mut times, &nodes, fault, took.with_context(|| fault.name())?);
            }
            waited += stable.saturating_duration_since(Instant::now());
            sleep_until(stable).await;
        }
        anyhow::Ok(())
    };
    during(&doing, all).await?;
    let took = begun.elapsed();

    let note = format!("of it {} s until what was killed may be killed again", waited.as_secs());
    let whole = Figure::whole("all of it, for the time that it takes", "s", took.as_secs_f64());
    let mut figures = vec![whole.note(&note)];
    for name in [doubt::WITHOUT_UDP, doubt::GONE, doubt::FORGOTTEN] {
        let samples = times.remove(&(name, EITHER)).context("each was timed")?;
        let name = format!("{name}: until a change is stored");
        figures.push(Figure::median(&name, "s", samples.clone()));
        let p99 = Figure::p99(&name, "s", samples);
        // Nobody but the edge can know, and a quiet line says nothing for so long.
        let goal = if name.starts_with(doubt::FORGOTTEN) { 45.0 } else { 5.0 };
        figures.push(p99.goal(Goal::AtMost(goal)));
    }
    for fault in OWN.into_iter().chain(COMMON) {
        let goal = match fault {
            Fault::Flapping(_) | Fault::Rebinding => 1.5,
            _ => 5.0,
        };
        for (transport, _) in TRANSPORTS {
            let samples = times.remove(&(fault.name(), transport)).context("each fault was timed")?;
            let name = format!("{}, {transport}: until a change is stored", fault.name());
            figures.push(Figure::median(&name, "s", samples.clone()));
            figures.push(Figure::p99(&name, "s", samples).goal(Goal::AtMost(goal)));
        }
    }
    Ok(figures)
}

fn note(times: &mut Times, nodes: &[Node], fault: Fault, took: Vec<Duration>) {
    for (node, took) in nodes.iter().zip(took) {
        times.entry((fault.name(), node.transport)).or_default().push(took.as_secs_f64());
    }
}

/// A fault of one node, from its begin until all is well again; what is timed is the return.
async fn one(world: &World, Node { wired, .. }: &Node, fault: Fault, moment: Duration) -> Result<Duration> {
    let World { cloud, cluster, .. } = world;
    let through = async {
        let begun = fault.begin(wired, cloud, cluster)?;
        match fault {
            // Neither is given up at a moment that could be asked for.
            Fault::Flapping(_) | Fault::EdgeStopped => sleep(LASTS + moment).await,
            _ if fault.is_momentary() => {}
            _ => {
                given_up(wired).await?;
                sleep(moment).await;
            }
        }
        let last_time = begun.last_time(wired);
        wired.change(cluster).await?;
        sleep(last_time.unwrap_or_default()).await;
        let over = begun.end(wired, cluster)?;
        let took = wired.until_changed(cloud, LIMIT).await?.saturating_duration_since(over);
        well(world, wired).await?;
        anyhow::Ok(took)
    };
    through.await.with_context(|| format!("{} at {}", fault.name(), wired.edge.name()))
}

/// A fault of all nodes.
async fn common(world: &World, nodes: &[Node], fault: Fault, moment: Duration) -> Result<Vec<Duration>> {
    let World { cloud, cluster, .. } = world;
    let first = &nodes.first().context("there are nodes")?.wired;
    let change = || try_join_all(nodes.iter().map(|node| node.wired.change(cluster)));
    let begun = fault.begin(first, cloud, cluster)?;
    if fault == Fault::CloudStopped {
        try_join_all(nodes.iter().map(|node| given_up(&node.wired))).await?;
        sleep(moment).await;
    }
    if fault == Fault::ApiServerStopped {
        sleep(LASTS + moment).await;
    } else {
        change().await?;
    }
    let over = begun.end(first, cluster)?;
    if fault == Fault::ApiServerStopped {
        change().await?;
    }
    let stored = try_join_all(nodes.iter().map(|node| node.wired.until_changed(cloud, LIMIT))).await?;
    for node in nodes {
        well(world, &node.wired).await?;
    }
    Ok(stored.into_iter().map(|at| at.saturating_duration_since(over)).collect())
}

/// The edge has given its session up.
async fn given_up(wired: &Wired) -> Result<()> {
    wait::until("the edge giving its line up", LIMIT, async || {
        let link = wired.link().await?;
        ensure!(!link.connected, "{link:?}");
        anyhow::Ok(())
    })
    .await
}

/// The node is Ready, and both ends hold the same.
async fn well(world: &World, wired: &Wired) -> Result<()> {
    let cloud: &Cloud = &world.cloud;
    wired.until_same(cloud, LIMIT).await?;
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(world.cluster.client());
    let name = wired.edge.name();
    wait::until("the node Ready", LIMIT, async || ready(&nodes.get(name).await?)).await?;
    Ok(())
}
