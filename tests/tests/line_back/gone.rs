//! One of two cloudcores is gone in silence, as with its host: nothing is refused, nothing is answered.

use anyhow::{Context, Result};
use harness::{Terms, process::kill9, product::Cloud};
use tokio::time::Instant;

use crate::{BACK, Node, SOON, tell};

pub(crate) async fn run(node: &Node<'_>, clouds: [&Cloud; 2]) -> Result<()> {
    let (with, other) = pair(node, clouds).await?;
    gone(node, with)?;
    // What is changed reaches the node through the other one, which learns of the node when it comes.
    node.wired.change(&node.scene.cluster).await?;
    node.speak().await?;
    let begun = Instant::now();
    let at = node.wired.until_changed(other, BACK).await?;
    tell("a cloudcore gone under a session, from the edge's report on", at.saturating_duration_since(begun));

    // Another process begins with the one that its name picks.
    node.heal();
    for dead in clouds {
        let alive = if std::ptr::eq(dead, clouds[0]) { clouds[1] } else { clouds[0] };
        gone(node, dead)?;
        node.wired.change(&node.scene.cluster).await?;
        let old = node.wired.edge.pid()?;
        kill9(old)?;
        node.wired.edge.come_back(old).await?;
        let begun = Instant::now();
        let at = node.wired.until_changed(alive, BACK).await?;
        tell("edgecore started, one cloudcore of two gone", at.saturating_duration_since(begun));
        node.heal();
    }
    Ok(())
}

fn gone(node: &Node<'_>, cloud: &Cloud) -> Result<()> {
    let endpoint = cloud.endpoint(node.site);
    let (_, port) = endpoint.rsplit_once(':').context("an endpoint has a port")?;
    node.wired.wire.set(&Terms { gone: Some(port.parse()?), ..Terms::default() });
    Ok(())
}

/// The cloudcore that the node is with, and the other one.
async fn pair<'a>(node: &Node<'_>, clouds: [&'a Cloud; 2]) -> Result<(&'a Cloud, &'a Cloud)> {
    let [first, second] = clouds;
    harness::wait::until("a session", SOON, async || {
        let is_with = async |cloud: &Cloud| -> Result<bool> {
            Ok(cloud.admin("/sessions").await?.body.contains(node.wired.edge.name()))
        };
        match (is_with(first).await?, is_with(second).await?) {
            (true, false) => Ok((first, second)),
            (false, true) => Ok((second, first)),
            both => anyhow::bail!("with the first and the second: {both:?}"),
        }
    })
    .await
}
