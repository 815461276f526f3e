//! The cluster's CA is rotated under four nodes, two over each transport: of each two one is cut off during the first steps, and
//! gets in afterwards knowing nothing of it. Then once more, with --force, over the head of one that is off. Before all that, two
//! rotations are taken back, and in the end a fleet of hollow nodes follows one. The real nodes over the WebSocket have two cloudcores.

mod rotation {
    pub(crate) mod back;
    pub(crate) mod fleet;
}

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, ClusterOptions, LineCut, Site, bench,
    process::{Daemon, kill9},
    product::{Cloud, Edge, Scene, ready},
    wait,
};
use runtime::tls;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use rotation::{back, fleet};

pub(crate) const SOON: Duration = Duration::from_secs(90);
/// A Node is not Ready 40 to 50 s after its last lease.
const GONE: Duration = Duration::from_mins(2);
/// Without a stateless reset that it believes, a quiet edge over QUIC misses cloudcore after most of a minute and a half.
const BACK: Duration = Duration::from_secs(15);

const BEAT: &str = "modules.edgeHub.heartbeat=2";
const NO_QUIC: &str = "modules.edgeHub.quic.enable=false";

const QUIC: &str = "quic";
const WEBSOCKET: &str = "websocket";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_is_rotated_and_no_node_is_locked_out() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 4).await?;
        let Ok([here, away, here_too, away_too]) = <[Site; 4]>::try_from(sites) else {
            unreachable!("four were asked for")
        };
        let reachable = [here_too.host_address(), away_too.host_address()];
        let other = Cloud::init(&bench.run, &bench.assets, &scene.cluster, &reachable).await?;
        let address = here.host_address();
        let (one, two) = ([&scene.cloud], [&other, &scene.cloud]);
        // A quiet one has the heartbeat that is the default.
        let mut nodes = tokio::try_join!(
            Box::pin(Node::join(bench, &one, here, "here-quic", QUIC, &[])),
            Box::pin(Node::join(bench, &one, away, "away-quic", QUIC, &[BEAT])),
            Box::pin(Node::join(bench, &two, here_too, "here-websocket", WEBSOCKET, &[BEAT, NO_QUIC])),
            Box::pin(Node::join(bench, &two, away_too, "away-websocket", WEBSOCKET, &[BEAT, NO_QUIC])),
        )
        .map(|(here, away, here_too, away_too)| [[here, here_too], [away, away_too]])?;
        Box::pin(back::story(bench, &scene, &mut nodes)).await.context("rotations that are taken back")?;
        Box::pin(once(&scene, &mut nodes)).await.context("the first rotation")?;
        Box::pin(forced(&scene, &mut nodes)).await.context("the second rotation")?;
        // Whom an operator gives up is waited for no more.
        scene.cluster.kubectl(&["delete", "node", nodes[1][1].name()]).await?;
        nodes[1][1].stop()?;
        Box::pin(fleet::story(bench, &scene, &other, address)).await.context("the rotation of a fleet")
    })
    .await
}

/// `here` is connected all the while, `away` is cut off until the CA before is about to be dropped.
async fn once(scene: &Scene, [here, away]: &mut [[Node; 2]; 2]) -> Result<()> {
    let old = here[0].trusted()?.remove(0);
    let mut sessions = Vec::new();
    for node in here.iter() {
        node.keep_identity()?;
        sessions.push(node.edge.metric("edgecore_sessions").await?);
    }
    for node in away.iter_mut() {
        node.site.cut(LineCut::Silent)?;
    }
    keadm(scene, &["rotate-ca", "prepare", "--timeout=1s"]).await?;
    for node in here.iter() {
        wait::until("both CAs trusted", SOON, async || {
            let trusted = node.trusted()?;
            ensure!(trusted.len() == 2 && trusted[0] == old, "{} CAs", trusted.len());
            Ok(())
        })
        .await?;
        ensure!(tls::is_issued_by(&node.certificate()?, &old)?, "{} has renewed early", node.name());
    }
    for node in away.iter() {
        wait::until("a node that is away", GONE, async || {
            ensure!(ready(&scene.node(node.name()).await?).is_err(), "{} is Ready", node.name());
            Ok(())
        })
        .await?;
    }
    // A step that was taken is not taken again.
    let again = status(scene).await?;
    keadm(scene, &["rotate-ca", "prepare"]).await?;
    ensure!(status(scene).await?["next"]["id"] == again["next"]["id"], "there is another CA");
    refused(scene, &["rotate-ca", "drop"], &["it is not the turn of drop: the next step is issue"]).await?;

    keadm(scene, &["rotate-ca", "issue", "--timeout=60s"]).await?;
    let new = here[0].trusted()?.remove(0);
    ensure!(new != old, "the CA before is the first");
    for (node, sessions) in here.iter().zip(&sessions) {
        ensure!(tls::is_issued_by(&node.certificate()?, &new)?, "{} has not renewed", node.name());
        ensure!(node.trusted()? == [new.clone(), old.clone()], "{} trusts others", node.name());
        node.is_in().await?;
        let now = node.edge.metric("edgecore_sessions").await?;
        ensure!(now == *sessions, "{} has connected anew", node.name());
    }
    let waiting: Vec<Value> = away.iter().rev().map(|node| node.name().into()).collect();
    let report = status(scene).await?;
    let named: Vec<Value> =
        report["waiting"].as_array().context("a list")?.iter().map(|node| node["name"].clone()).collect();
    ensure!(
        report["phase"] == "issuing" && named.iter().all(|name| waiting.contains(name)) && named.len() == 2,
        "{report}"
    );
    ensure!(report["nodes"]["renewed"] == 2 && report["nodes"]["trusting"] == 2, "{report}");
    let says = ["away-quic does not trust the new CA and is not Ready", "--force"];
    refused(scene, &["rotate-ca", "drop"], &says).await?;
    ensure!(status(scene).await?["phase"] == "issuing", "it was dropped");

    // They know nothing of all that.
    for node in away.iter_mut() {
        ensure!(node.trusted()? == [old.clone()], "{} has heard of it", node.name());
        node.site.restore()?;
    }
    for node in away.iter() {
        wait::until("a node that was away is back", SOON, async || node.is_in().await).await?;
    }
    wait::until("all nodes with the new CA", SOON, async || nobody_is_waited_for(scene).await).await?;

    keadm(scene, &["rotate-ca", "drop"]).await?;
    ensure!(status(scene).await?["phase"] == "steady");
    let all = || here.iter().chain(away.iter());
    for node in all() {
        wait::until("one CA trusted", SOON, async || {
            ensure!(node.trusted()? == [new.clone()], "{} trusts others", node.name());
            Ok(())
        })
        .await?;
    }
    // The next process has the same key for stateless resets as the one before, whose CA is gone.
    let (process, sessions) = (scene.cloud.pid()?, here[0].edge.metric("edgecore_sessions").await?);
    kill9(process)?;
    wait::until("another session over QUIC", BACK, async || {
        ensure!(scene.cloud.pid()? != process, "no other cloudcore");
        ensure!(here[0].edge.metric("edgecore_sessions").await? > sessions, "the old session goes on");
        here[0].is_in().await
    })
    .await?;
    for node in here.iter_mut().chain(away.iter_mut()) {
        node.restart()?;
    }
    for node in here.iter().chain(away.iter()) {
        wait::until("a node that has started anew", SOON, async || node.is_in().await).await?;
    }

    // A certificate of the CA that is gone, by whoever trusts the new one; and by whoever does not.
    for node in here.iter_mut() {
        let (certificate, trusted) = (fs::read(node.certificate_file())?, fs::read(node.trusted_file())?);
        for (old_trust, why) in [
            (false, "does not trust the CA of this node's certificate"),
            (true, "has a certificate of a CA that this node does not trust"),
        ] {
            node.stop()?;
            fs::copy(node.kept("server.crt"), node.certificate_file())?;
            if old_trust {
                fs::copy(node.kept("rootCA.crt"), node.trusted_file())?;
            }
            node.start()?;
            wait::until("the reason of the refusal", SOON, async || {
                let state = node.state().await?;
                ensure!(state["lastError"].as_str().is_some_and(|error| error.contains(why)), "{state}");
                ensure!(state["connected"] == false, "{} was let in", node.name());
                Ok(())
            })
            .await?;
        }
        node.stop()?;
        fs::write(node.certificate_file(), certificate)?;
        fs::write(node.trusted_file(), trusted)?;
        node.start()?;
        wait::until("a node with its own identity", SOON, async || node.is_in().await).await?;
    }
    Ok(())
}

/// One node is off, and is not waited for.
async fn forced(scene: &Scene, [here, away]: &mut [[Node; 2]; 2]) -> Result<()> {
    let lost = &mut away[1];
    lost.stop()?;
    keadm(scene, &["rotate-ca", "prepare", "--timeout=1s"]).await?;
    let following: Vec<&Node> = here.iter().chain([&away[0]]).collect();
    for node in &following {
        wait::until("both CAs trusted", SOON, async || {
            ensure!(node.trusted()?.len() == 2, "{} trusts one", node.name());
            Ok(())
        })
        .await?;
    }
    keadm(scene, &["rotate-ca", "issue", "--force", "--timeout=60s"]).await?;
    wait::until("the others with the new CA", SOON, async || {
        let report = status(scene).await?;
        ensure!(report["nodes"]["renewed"] == 3, "{report}");
        Ok(())
    })
    .await?;
    refused(scene, &["rotate-ca", "drop"], &["away-websocket does not trust the new CA"]).await?;
    keadm(scene, &["rotate-ca", "drop", "--force"]).await?;
    for node in following {
        node.is_in().await?;
    }
    let lost = &mut away[1];
    lost.start()?;
    wait::until("the reason of the refusal", SOON, async || {
        let state = lost.state().await?;
        let why = "has a certificate of a CA that this node does not trust";
        ensure!(state["lastError"].as_str().is_some_and(|error| error.contains(why)), "{state}");
        Ok(())
    })
    .await
}

/// A node at its site.
pub(crate) struct Node {
    pub(crate) edge: Edge,
    pub(crate) site: Site,
    transport: &'static str,
    /// Once its supervisor is gone.
    edgecore: Option<Daemon>,
}

impl Node {
    async fn join(
        bench: &Bench,
        clouds: &[&Cloud],
        site: Site,
        name: &str,
        transport: &'static str,
        settings: &[&str],
    ) -> Result<Self> {
        let edge = Edge::join_several(&bench.assets, clouds, &site, name, settings).await?;
        let node = Self { edge, site, transport, edgecore: None };
        wait::until("a link", SOON, async || node.is_in().await).await?;
        Ok(node)
    }

    pub(crate) fn name(&self) -> &str {
        self.edge.name()
    }

    async fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.edge.admin("/nodez").await?.body)?)
    }

    pub(crate) async fn is_in(&self) -> Result<()> {
        let state = self.state().await?;
        ensure!(state["transport"] == self.transport && state["synced"] == true, "{}: {state}", self.name());
        Ok(())
    }

    fn trusted_file(&self) -> PathBuf {
        self.edge.root().join("ca/rootCA.crt")
    }

    fn certificate_file(&self) -> PathBuf {
        self.edge.root().join("certs/server.crt")
    }

    pub(crate) fn trusted(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(tls::read_certificates(&self.trusted_file())?)
    }

    pub(crate) fn certificate(&self) -> Result<CertificateDer<'static>> {
        tls::read_certificates(&self.certificate_file())?.into_iter().next().context("it is no certificate")
    }

    fn kept(&self, file: &str) -> PathBuf {
        self.site.dir().join(file)
    }

    fn keep_identity(&self) -> Result<()> {
        fs::copy(self.trusted_file(), self.kept("rootCA.crt"))?;
        fs::copy(self.certificate_file(), self.kept("server.crt"))?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        match self.edgecore.take() {
            Some(mut edgecore) => edgecore.terminate(SOON).map(drop),
            None => self.edge.stop(),
        }
    }

    fn start(&mut self) -> Result<()> {
        self.edgecore = Some(self.edge.start(&self.site)?);
        Ok(())
    }

    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }
}

pub(crate) async fn keadm(scene: &Scene, args: &[&str]) -> Result<String> {
    let kubeconfig = format!("--kube-config={}", scene.cluster.kubeconfig().display());
    let args = ["certs"].iter().chain(args).copied().chain([kubeconfig.as_str()]);
    scene.cloud.keadm(args.map(str::to_owned)).await
}

pub(crate) async fn refused(scene: &Scene, args: &[&str], words: &[&str]) -> Result<()> {
    let error = keadm(scene, args).await.err().context("it was done")?;
    let error = format!("{error:#}");
    ensure!(words.iter().all(|word| error.contains(word)), "{error}");
    Ok(())
}

pub(crate) async fn nobody_is_waited_for(scene: &Scene) -> Result<()> {
    let report = status(scene).await?;
    ensure!(report["waiting"].as_array().is_some_and(Vec::is_empty), "{report}");
    Ok(())
}

pub(crate) async fn status(scene: &Scene) -> Result<Value> {
    Ok(serde_json::from_str(&keadm(scene, &["status", "--output=json"]).await?)?)
}
