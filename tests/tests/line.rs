//! Bad lines, over either transport, against the real programs: lossy ones, slow ones, narrow ones, ones that die in silence,
//! ones whose addresses are translated; and programs that stop or are killed at one end. Whatever it was, what the cloud
//! changed meanwhile is at the node soon after, the node is Ready, its containers are those from before, and both ends
//! hold the same.
//!
//! The lines are driven from a seed, which a failure tells with all that was done to the line; `SKERRY_SEED` sets it.

mod line {
    pub(crate) mod brief;
    pub(crate) mod cuts;
    pub(crate) mod ends;
    pub(crate) mod lossy;
    pub(crate) mod narrow;
    pub(crate) mod table;
    pub(crate) mod translated;
}

use std::{pin::Pin, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, ClusterOptions, Site, Terms, bench,
    product::{Edge, Life, Scene, Wired, ready},
    random::Random,
    wait,
};
use line::table::Table;

pub(crate) const SPACE: &str = "line";
pub(crate) const SOON: Duration = Duration::from_mins(1);
const BEAT: &str = "modules.edgeHub.heartbeat=2";

/// A node, its site, and the containers that it is to have to the end.
pub(crate) struct Node<'a> {
    pub(crate) wired: Wired,
    pub(crate) site: &'a Site,
    /// What its link may use: `quic`, `websocket`, or `either`.
    pub(crate) transport: &'static str,
    life: Life,
}

#[tokio::test]
async fn a_node_lives_with_any_line() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let mut random = Random::seeded("line")?;
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 5).await?;
        scene.namespace(SPACE).await?;
        let [first, second, third, fourth, fifth] = &sites[..] else { unreachable!("five were asked for") };
        let table = Table::default();
        let seeds: [u64; 5] = std::array::from_fn(|_| random.number());
        let start = |name, site, setting, seed: usize| {
            named(name, Node::start(bench, &scene, site, name, setting, seeds[seed]))
        };
        let over = |transport, off, beat| Setting { transport, off, beat, terms: line::lossy::far() };
        let narrow =
            Setting { transport: "either", off: None, beat: Some(BEAT), terms: line::narrow::terms() };
        let (quic, websocket, either, patient_quic, patient_websocket) = tokio::try_join!(
            start("quic", first, over("quic", Some("websocket"), Some(BEAT)), 0),
            start("websocket", second, over("websocket", Some("quic"), Some(BEAT)), 1),
            start("narrow", third, narrow, 2),
            start("patient-quic", fourth, over("quic", Some("websocket"), None), 3),
            start("patient-websocket", fifth, over("websocket", Some("quic"), None), 4),
        )?;
        tokio::join!(
            alone(&scene, &quic, &table),
            alone(&scene, &websocket, &table),
            line::narrow::run(&scene, &either, &table),
            async {
                line::brief::run(&scene, &patient_quic, &table).await;
                table.hold(line::narrow::in_a_quiet_session(&scene, &patient_quic, &table).await);
            },
            line::brief::run(&scene, &patient_websocket, &table),
        );
        let nodes = [&quic, &websocket, &either];
        line::ends::run(&scene, &nodes, &table).await;
        for node in nodes.into_iter().chain([&patient_quic, &patient_websocket]) {
            table.hold(named("in the end", node.is_whole(&scene)).await);
        }
        table.print();
        table.verdict()
    })
    .await
}

/// How a node joins.
struct Setting {
    transport: &'static str,
    /// The transport that is switched off.
    off: Option<&'static str>,
    /// The heartbeat, if not the default.
    beat: Option<&'static str>,
    terms: Terms,
}

/// What happens to one line alone.
async fn alone(scene: &Scene, node: &Node<'_>, table: &Table) {
    line::lossy::run(scene, node, table).await;
    line::cuts::run(scene, node, table).await;
    let translated = named("translated", line::translated::run(scene, node, table)).await;
    table.hold(translated.with_context(|| format!("{}: {}", node.name(), node.wired.wire.story())));
}

impl<'a> Node<'a> {
    async fn start(
        bench: &Bench,
        scene: &Scene,
        site: &'a Site,
        name: &str,
        Setting { transport, off, beat, terms }: Setting,
        seed: u64,
    ) -> Result<Self> {
        let wire = site.wire(seed)?;
        wire.set(&terms);
        // Joining, too, goes over the line as it is.
        let off = off.map(|off| format!("modules.edgeHub.{off}.enable=false"));
        let settings: Vec<&str> = beat.into_iter().chain(off.as_deref()).collect();
        let name = format!("edge-{name}");
        let edge = Edge::join(&bench.assets, &scene.cloud, site, &name, &settings).await;
        let edge = edge.with_context(|| wire.story())?;
        let wired = Wired::start(&scene.cluster, &[&scene.cloud], edge, wire, seed).await?;
        if off.is_some() {
            wired.wire.heal();
        }
        let life = Life::of(site, &wired.holder_uid(&scene.cluster).await?).await?;
        Ok(Self { wired, site, transport, life })
    }

    pub(crate) fn name(&self) -> &str {
        self.wired.edge.name()
    }

    pub(crate) async fn until_ready(&self, scene: &Scene) -> Result<()> {
        let what = format!("{} Ready", self.name());
        wait::until(&what, SOON, async || ready(&scene.node(self.name()).await?)).await
    }

    /// An error unless the link is in the session from before, over the transport that it is to use.
    pub(crate) async fn has_kept(&self, sessions: u64) -> Result<()> {
        let link = self.wired.link().await?;
        ensure!(link.connected && link.sessions == sessions, "there were {sessions} sessions: {link:?}");
        ensure!(self.transport == "either" || link.transport == self.transport, "{link:?}");
        Ok(())
    }

    /// Nothing is lost, nothing is twice, nothing has been restarted.
    async fn is_whole(&self, scene: &Scene) -> Result<()> {
        self.wired.until_same(&scene.cloud, SOON).await?;
        self.until_ready(scene).await?;
        self.life.check(self.site).await?;
        self.life.check_status(&self.wired.holder(&scene.cluster).await?)
    }
}

/// On the heap: each scenario is a large future.
pub(crate) fn named<'a, T>(
    name: &'static str,
    scenario: impl Future<Output = Result<T>> + 'a,
) -> Pin<Box<dyn Future<Output = Result<T>> + 'a>> {
    Box::pin(async move { scenario.await.context(name) })
}
