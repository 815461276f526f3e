//! A rotation is taken back, once before and once after the new CA has issued, and keadm is killed over it. Nobody is shut out:
//! not who has gone ahead and is cut off when all others go back, and not who has heard of none of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, LineCut,
    process::{Daemon, command},
    product::Scene,
    wait,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use runtime::tls;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::{Node, SOON, keadm, nobody_is_waited_for, refused, status};

/// Four nodes trust one CA, and do so in the end.
pub(crate) async fn story(bench: &Bench, scene: &Scene, nodes: &mut [[Node; 2]; 2]) -> Result<()> {
    prepared(scene, nodes).await.context("before the new CA issues")?;
    issued(bench, scene, nodes).await.context("after the new CA has issued")
}

async fn prepared(scene: &Scene, nodes: &mut [[Node; 2]; 2]) -> Result<()> {
    let old = nodes[0][0].trusted()?.remove(0);
    let (before, certificates, sessions) =
        (status(scene).await?, certificates(nodes)?, sessions(nodes).await?);
    keadm(scene, &["rotate-ca", "prepare"]).await?;
    for node in nodes.iter().flatten() {
        ensure!(node.trusted()?.len() == 2, "{} trusts one CA", node.name());
    }
    keadm(scene, &["rotate-ca", "abort"]).await?;
    let after = status(scene).await?;
    ensure!(after["phase"] == "steady" && after["issuer"] == before["issuer"], "{after}");
    ensure!(after["waiting"].as_array().is_some_and(Vec::is_empty), "{after}");
    for node in nodes.iter().flatten() {
        ensure!(node.trusted()? == [old.clone()], "{} trusts others", node.name());
    }
    ensure!(certificates == self::certificates(nodes)?, "a certificate was renewed");
    ensure!(sessions == self::sessions(nodes).await?, "a node has connected anew");
    once_more(scene).await
}

async fn issued(bench: &Bench, scene: &Scene, nodes: &mut [[Node; 2]; 2]) -> Result<()> {
    let old = nodes[0][0].trusted()?.remove(0);
    let [here, [ahead, absent]] = nodes;
    absent.site.cut(LineCut::Silent)?;
    keadm(scene, &["rotate-ca", "prepare", "--timeout=1s"]).await?;
    wait::until("three nodes that trust both CAs", SOON, async || counted(scene, "trusting", 3).await)
        .await?;
    keadm(scene, &["rotate-ca", "issue", "--force", "--timeout=1s"]).await?;
    wait::until("three nodes with the new CA", SOON, async || counted(scene, "renewed", 3).await).await?;
    let new = here[0].trusted()?.remove(0);
    ahead.site.cut(LineCut::Silent)?;
    let mut sessions = Vec::new();
    for node in here.iter() {
        sessions.push(node.edge.metric("edgecore_sessions").await?);
    }

    killed(bench, scene).await?;
    once_more(scene).await?;
    for node in here.iter() {
        wait::until("a node that has gone back", SOON, async || has_gone_back(node, &[&old, &new])).await?;
        node.is_in().await?;
    }
    refused(scene, &["rotate-ca", "issue"], &["the rotation is taken back, and the next step is drop"])
        .await?;
    // The one that is absent has what it needs.
    let says = ["away-quic has no certificate from the CA that issues again"];
    refused(scene, &["rotate-ca", "drop"], &says).await?;
    wait::until("one node that is waited for", SOON, async || {
        let report = status(scene).await?;
        let waiting = report["waiting"].as_array().context("a list")?;
        ensure!(waiting.len() == 1 && waiting[0]["name"] == ahead.name(), "{report}");
        Ok(())
    })
    .await?;

    for node in [&mut *ahead, &mut *absent] {
        node.site.restore()?;
    }
    for node in [&*ahead, &*absent] {
        wait::until("a node that was away", SOON, async || node.is_in().await).await?;
        wait::until("a node that has gone back", SOON, async || has_gone_back(node, &[&old, &new])).await?;
    }
    wait::until("no node that is waited for", SOON, async || nobody_is_waited_for(scene).await).await?;
    keadm(scene, &["rotate-ca", "drop"]).await?;
    ensure!(status(scene).await?["phase"] == "steady");
    for node in here.iter().chain([&*ahead, &*absent]) {
        wait::until("the CA that was there first", SOON, async || has_gone_back(node, &[&old])).await?;
        node.is_in().await?;
    }
    for (node, sessions) in here.iter().zip(&sessions) {
        let now = node.edge.metric("edgecore_sessions").await?;
        ensure!(now == *sessions, "{} has connected anew", node.name());
    }
    for node in here.iter_mut() {
        node.restart()?;
    }
    for node in here.iter() {
        wait::until("a node that has started anew", SOON, async || node.is_in().await).await?;
    }
    Ok(())
}

/// keadm is killed as soon as it has begun, and once more as soon as the Secret is another. Whenever it is, the step is taken or not.
async fn killed(bench: &Bench, scene: &Scene) -> Result<()> {
    let kubeconfig = format!("--kube-config={}", scene.cluster.kubeconfig().display());
    let abort = |name: &str| {
        let args = ["certs", "rotate-ca", "abort", kubeconfig.as_str()];
        Daemon::start(&bench.run, name, command(scene.cloud.keadm_program(), args))
    };
    abort("abort-at-once")?.kill9()?;
    let phase = status(scene).await?["phase"].clone();
    ensure!(phase == "issuing" || phase == "returning", "{phase}");
    let mut keadm = abort("abort-halfway")?;
    wait::until("the way back", Duration::from_secs(30), async || {
        ensure!(secret(scene).await?.data.is_some_and(|data| data.contains_key("abortedcaid")), "not yet");
        Ok(())
    })
    .await?;
    keadm.kill9()?;
    let phase: Value = status(scene).await?["phase"].clone();
    ensure!(phase == "returning", "{phase}");
    Ok(())
}

/// What was taken back is not taken back again.
async fn once_more(scene: &Scene) -> Result<()> {
    let before = secret(scene).await?.resource_version();
    keadm(scene, &["rotate-ca", "abort", "--timeout=1s"]).await?;
    ensure!(before == secret(scene).await?.resource_version(), "the Secret is another one");
    Ok(())
}

async fn secret(scene: &Scene) -> Result<Secret> {
    Ok(Api::namespaced(scene.cluster.client(), "kubeedge").get("casecret").await?)
}

async fn counted(scene: &Scene, what: &str, count: u64) -> Result<()> {
    let report = status(scene).await?;
    ensure!(report["nodes"][what] == count, "{report}");
    Ok(())
}

fn has_gone_back(node: &Node, trusted: &[&CertificateDer<'static>]) -> Result<()> {
    ensure!(node.trusted()?.iter().eq(trusted.iter().copied()), "{} trusts others", node.name());
    ensure!(tls::is_issued_by(&node.certificate()?, trusted[0])?, "{} has not gone back", node.name());
    Ok(())
}

fn certificates(nodes: &[[Node; 2]; 2]) -> Result<Vec<CertificateDer<'static>>> {
    nodes.iter().flatten().map(Node::certificate).collect()
}

async fn sessions(nodes: &[[Node; 2]; 2]) -> Result<Vec<u64>> {
    let mut sessions = Vec::new();
    for node in nodes.iter().flatten() {
        sessions.push(node.edge.metric("edgecore_sessions").await?);
    }
    Ok(sessions)
}
