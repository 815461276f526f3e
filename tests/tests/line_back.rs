//! How soon a node is back from each kind of cut, at the heartbeat that is the default: from the moment on that one of the ends has
//! something to say, until what the cloud wants is stored at the edge. And that no session is left for another one on a line that is only
//! slow, or loses much.
//!
//! Each line is driven from a seed, which a failure tells with all that was done to the line; `SKERRY_SEED` sets it.

mod line_back {
    pub(crate) mod alive;
    pub(crate) mod forgotten;
    pub(crate) mod gone;
    pub(crate) mod without_udp;
}

use std::{pin::Pin, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, ClusterOptions, Site, Terms, bench,
    product::{Cloud, Edge, Scene, Wired},
    random::Random,
    wait,
};
use tokio::time::Instant;

pub(crate) const SOON: Duration = Duration::from_mins(1);
/// Longer than a confirmation is put off, shorter than a heartbeat.
const QUIET: Duration = Duration::from_millis(500);
/// What is asked of a node's return.
pub(crate) const BACK: Duration = Duration::from_secs(5);

/// A node at the end of a line in user space.
pub(crate) struct Node<'a> {
    pub(crate) wired: Wired,
    pub(crate) site: &'a Site,
    pub(crate) scene: &'a Scene,
}

#[tokio::test]
async fn a_node_is_back_soon_from_every_cut() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let mut random = Random::seeded("line back")?;
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 5).await?;
        let [first, second, third, fourth, fifth] = &sites[..] else { unreachable!("five were asked for") };
        let other = Cloud::init(&bench.run, &bench.assets, &scene.cluster, &[fourth.host_address()]).await?;
        let seeds: [u64; 5] = std::array::from_fn(|_| random.number());
        let over = |transport| match transport {
            "quic" => vec!["modules.edgeHub.websocket.enable=false"],
            "websocket" => vec!["modules.edgeHub.quic.enable=false"],
            _ => vec![],
        };
        let start = |name, clouds, site, transport, seed: usize| {
            let join = Node::join(bench, &scene, clouds, site, name, over(transport), seeds[seed]);
            named(name, join)
        };
        let (own, both) = (|| vec![&scene.cloud], vec![&scene.cloud, &other]);
        let (either, quic, websocket, several, translated) = tokio::try_join!(
            start("back-either", own(), first, "either", 0),
            start("back-quic", own(), second, "quic", 1),
            start("back-websocket", own(), third, "websocket", 2),
            start("back-several", both, fourth, "either", 3),
            start("back-translated", own(), fifth, "quic", 4),
        )?;
        let all = tokio::join!(
            named("without UDP", line_back::without_udp::run(&either)),
            named("alive, QUIC", line_back::alive::run(&quic, "quic")),
            named("alive, WebSocket", line_back::alive::run(&websocket, "websocket")),
            named("a cloudcore gone", line_back::gone::run(&several, [&scene.cloud, &other])),
            named("forgotten on the way", line_back::forgotten::run(&translated)),
        );
        let all =
            [(all.0, &either), (all.1, &quic), (all.2, &websocket), (all.3, &several), (all.4, &translated)];
        let mut failures = Vec::new();
        for (through, node) in all {
            let story = || format!("{}: {}", node.wired.edge.name(), node.wired.wire.story());
            failures.extend(through.with_context(story).err().map(|error| format!("{error:#}")));
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    })
    .await
}

impl<'a> Node<'a> {
    async fn join(
        bench: &Bench,
        scene: &'a Scene,
        clouds: Vec<&Cloud>,
        site: &'a Site,
        name: &str,
        settings: Vec<&str>,
        seed: u64,
    ) -> Result<Self> {
        let wire = site.wire(seed)?;
        wire.set(&Terms { delay: Duration::from_millis(10), ..Terms::default() });
        let edge = Edge::join_several(&bench.assets, &clouds, site, name, &settings).await?;
        let wired = Wired::start(&scene.cluster, &[&scene.cloud], edge, wire, seed).await;
        Ok(Self { wired: wired.with_context(|| format!("{name} did not begin well"))?, site, scene })
    }

    /// Something happens at the site that is to be reported: a container ends, and is started again.
    pub(crate) async fn speak(&self) -> Result<()> {
        let uid = self.wired.holder_uid(&self.scene.cluster).await?;
        let all = self.site.containers().await?;
        let one = all.into_iter().find(|one| one.pod_uid == uid && one.running && !one.sandbox);
        let id = one.context("the pod has no running container")?.id;
        self.site.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).await?;
        Ok(())
    }

    /// The cloud changes something, and what it wants is stored within `limit`. Returns how long it took.
    pub(crate) async fn changes(&self, cloud: &Cloud, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.wired.change(&self.scene.cluster).await?;
        let at = self.wired.until_changed(cloud, limit).await?;
        Ok(at.saturating_duration_since(begun))
    }

    pub(crate) async fn until_over(&self, transport: &str) -> Result<()> {
        wait::until(&format!("the link over {transport}"), SOON, async || {
            let link = self.wired.link().await?;
            ensure!(link.connected && link.synced && link.transport == transport, "{link:?}");
            Ok(())
        })
        .await
    }

    pub(crate) async fn sessions(&self) -> Result<u64> {
        Ok(self.wired.link().await?.sessions)
    }

    /// Waits until nothing is under way. What is confirmed a moment after something else was said is taken for its confirmation.
    pub(crate) async fn quiet(&self) -> Result<()> {
        let (mut before, mut since) = (self.wired.wire.counts(), Instant::now());
        wait::until("the line quiet", SOON, async || {
            let now = self.wired.wire.counts();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            ensure!(since.elapsed() > QUIET, "{now:?}");
            Ok(())
        })
        .await
    }

    /// The line as it was in the beginning.
    pub(crate) fn heal(&self) {
        self.wired.wire.set(&Terms { delay: Duration::from_millis(10), ..Terms::default() });
    }
}

/// How many seconds it took.
pub(crate) fn tell(what: &str, took: Duration) {
    eprintln!("{what}: {:.3} s", took.as_secs_f32());
}

/// On the heap: each scenario is a large future.
fn named<'a, T>(
    name: &'static str,
    scenario: impl Future<Output = Result<T>> + 'a,
) -> Pin<Box<dyn Future<Output = Result<T>> + 'a>> {
    Box::pin(async move { scenario.await.context(name) })
}
