//! One real edge behind a line with a round trip of 50 ms, its store on a disk: how fast what has changed is there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Assets, Silent, Terms, Wire,
    process::{resume, suspend},
    product::Edge,
    progress::during,
    random::Random,
    wait,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::super::{
    figure::{Figure, Goal},
    node::StoreCounts,
    reading::Usage,
    workload,
    world::World,
};

/// ConfigMaps that the node holds.
const OBJECTS: usize = 2000;
/// Of each text, in bytes.
const TEXT: usize = 600;
const ROUNDS: usize = 3;
const WRITERS: usize = 64;
/// One way.
const DELAY: Duration = Duration::from_millis(25);
const REST: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_mins(2);
/// Between two looks at what is stored.
const LOOK: Duration = Duration::from_millis(5);
/// Nothing was stored for so long: it was the last change.
const SILENCE: Duration = Duration::from_secs(1);
/// In seconds: an outage is found out within two, and cloudcore is stopped for less.
const HEARTBEAT: &str = "modules.edgeHub.heartbeat=5";

fn line(silent: Silent) -> Terms {
    Terms { delay: DELAY, silent, ..Terms::default() }
}

pub(super) async fn take(assets: &Assets, transports: &[&'static str]) -> Result<Vec<Figure>> {
    let world = World::start(assets, transports.len()).await?;
    let figures = figures(&world, transports).await;
    world.end(figures)
}

async fn figures(world: &World, transports: &[&'static str]) -> Result<Vec<Figure>> {
    let mut random = Random::seeded("bench deltas")?;
    let mut figures = Vec::new();
    for (site, transport) in transports.iter().enumerate() {
        let wire = world.sites[site].wire(random.number())?;
        wire.set(&line(Silent::Neither));
        let other = if *transport == "quic" { "websocket" } else { "quic" };
        let off = format!("modules.edgeHub.{other}.enable=false");
        let edge = world.join(site, &[HEARTBEAT, &off]).await?;
        let far = Far { world, edge, wire, prefix: (*transport).to_owned() };
        figures.extend(far.take(transport).await?);
    }
    Ok(figures)
}

struct Far<'a> {
    world: &'a World,
    edge: Edge,
    wire: Wire,
    prefix: String,
}

/// What one round came to.
struct Round {
    rate: f64,
    syncs: f64,
    edge: Duration,
    cloud: Duration,
}

impl Far<'_> {
    async fn take(&self, transport: &str) -> Result<Vec<Figure>> {
        let cluster = &self.world.cluster;
        during("making 2,000 ConfigMaps", self.write(0)).await?;
        // One short value of each: a container's environment has an end.
        let env: Vec<Value> = (0..OBJECTS)
            .map(|number| {
                let from = json!({ "name": self.config(number), "key": "key" });
                json!({ "name": format!("C{number}"), "valueFrom": { "configMapKeyRef": from } })
            })
            .collect();
        let mut spec = workload::plain();
        spec["containers"] = json!([{ "name": "main", "image": harness::setup::PAUSE, "env": env }]);
        let pod = workload::pause_pod(&format!("{}-reader", self.prefix), self.edge.name(), &spec)?;
        during("starting a pod that refers to all of them", workload::run_all(cluster, vec![pod])).await?;
        let (mut live, mut away) = (Vec::new(), Vec::new());
        let rounds = async {
            for round in 0..ROUNDS {
                live.push(self.in_session(1 + 2 * round).await.context("in a session")?);
                away.push(self.after_outage(2 + 2 * round).await.context("after an outage")?);
            }
            anyhow::Ok(())
        };
        during("changing all of them", rounds).await?;
        let mut figures = Vec::new();
        for (rounds, what, note) in [
            (
                &live,
                "2,000 objects change in a session",
                "patches; written while cloudcore was stopped; from its going on until both ends hold the same",
            ),
            (
                &away,
                "2,000 objects changed in an outage",
                "whole objects; from the session's begin, its comparison of inventories included",
            ),
        ] {
            let of = |read: fn(&Round) -> f64| rounds.iter().map(read).collect::<Vec<_>>();
            let name = |figure: &str| format!("one edge, 50 ms, {transport}: {what}: {figure}");
            figures.push(
                Figure::median(&name("deltas a second"), "/s", of(|round| round.rate))
                    .goal(Goal::AtLeast(1000.0))
                    .cpu("edgecore", rounds.iter().map(|round| round.edge).sum())
                    .cpu("cloudcore", rounds.iter().map(|round| round.cloud).sum())
                    .note(note),
            );
            figures.push(Figure::median(&name("syncs"), "syncs", of(|round| round.syncs)));
        }
        Ok(figures)
    }

    fn config(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// cloudcore hears of all changes at once, in a session that goes on.
    async fn in_session(&self, round: usize) -> Result<Round> {
        let before = self.calm().await?;
        let sessions = self.link().await?["sessions"].clone();
        let pid = self.world.cloud.pid()?;
        suspend(pid)?;
        let written = self.write(round).await;
        let begun = Instant::now();
        resume(pid)?;
        written?;
        let measured = self.measure(begun, &before).await?;
        let now = self.link().await?;
        ensure!(now["sessions"] == sessions, "the session has ended: {now}");
        Ok(measured)
    }

    /// The line is silent until the edge has given it up.
    async fn after_outage(&self, round: usize) -> Result<Round> {
        let before = self.calm().await?;
        self.wire.set(&line(Silent::Both));
        self.write(round).await?;
        wait::until("the edge giving its line up", LIMIT, async || {
            let link = self.link().await?;
            ensure!(link["connected"] == false, "{link}");
            anyhow::Ok(())
        })
        .await?;
        self.wire.set(&line(Silent::Neither));
        let connected = async {
            while self.link().await?["connected"] != true {
                sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        timeout(LIMIT, connected).await.context("the edge has not come back")??;
        self.measure(Instant::now(), &before).await
    }

    /// What both ends hold, once nothing changes any more.
    async fn calm(&self) -> Result<String> {
        sleep(REST).await;
        Ok(self.until_same("").await?.0)
    }

    /// From `begun` until both ends hold the same, which is not what they held before.
    async fn measure(&self, begun: Instant, before: &str) -> Result<Round> {
        let (edge, cloud) = (Usage::of(self.edge.pid()?)?, Usage::of(self.world.cloud.pid()?)?);
        let syncs = StoreCounts::of(&self.edge).await?.syncs;
        let (_, at) = self.until_same(before).await?;
        Ok(Round {
            rate: OBJECTS as f64 / (at - begun).as_secs_f64(),
            syncs: (StoreCounts::of(&self.edge).await?.syncs - syncs) as f64,
            edge: edge.to_now()?.cpu,
            cloud: cloud.to_now()?.cpu,
        })
    }

    /// Waits until both ends have held the same for a while, and not `before`: its digest, and since when the edge has it.
    async fn until_same(&self, before: &str) -> Result<(String, Instant)> {
        let of = |page: &str| -> Result<String> {
            let page: Value = serde_json::from_str(page)?;
            Ok(page[self.edge.name()].as_str().unwrap_or_default().to_owned())
        };
        let (mut last, mut since) = (String::new(), Instant::now());
        let same = async {
            loop {
                let here = of(&self.edge.admin("/digestz").await?.body)?;
                if here != last {
                    (last, since) = (here, Instant::now());
                }
                if since.elapsed() > SILENCE
                    && last != before
                    && last == of(&self.world.cloud.admin("/digestz").await?.body)?
                    && self.link().await?["synced"] == true
                {
                    return anyhow::Ok((last.clone(), since));
                }
                sleep(LOOK).await;
            }
        };
        timeout(LIMIT, same).await.context("the ends do not come to hold the same")?
    }

    async fn link(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.edge.admin("/nodez").await?.body)?)
    }

    /// Gives all ConfigMaps the text of the round, as fast as the API server takes it.
    async fn write(&self, round: usize) -> Result<()> {
        let mut writers = JoinSet::new();
        for first in 0..WRITERS {
            let configs: Api<ConfigMap> = Api::default_namespaced(self.world.cluster.client());
            let names: Vec<(usize, String)> =
                (first..OBJECTS).step_by(WRITERS).map(|number| (number, self.config(number))).collect();
            writers.spawn(async move {
                for (number, name) in names {
                    let data = json!({ "key": "k", "text": text(round, number) });
                    let config = json!({
                        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data,
                    });
                    let apply = PatchParams::apply("bench").force();
                    configs.patch(&name, &apply, &Patch::Apply(config)).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(written) = writers.join_next().await {
            written.context("a writer died")?.context("failed to write a ConfigMap")?;
        }
        Ok(())
    }
}

/// The same from round to round, but for its end.
fn text(round: usize, number: usize) -> String {
    let mut state = number as u64 | 1 << 20;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:08x}", state >> 32)
    });
    let same: String = words.take(TEXT / 8).collect();
    format!("{same} of round {round}")
}
