//! Edges that wait for their turn at a handshake over QUIC while cloudcore stops: they are not told that it is busy, and the next
//! cloudcore at the address has them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use harness::{Bench, ClusterOptions, wait};
use runtime::link::{LinkError, quic};
use rustls_pki_types::ServerName;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    cloud::{Cloud, join},
    edge::LONG,
};

/// More than get a turn at once, and fewer than make it busy.
const EDGES: usize = 400;

pub(crate) async fn restart(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let address = cloud.address;
    let identity = join(&cluster.client(), address, "edge-1").await?;
    let mut edges = JoinSet::new();
    for _ in 0..EDGES {
        let tls = Arc::clone(&identity.tls);
        edges.spawn(async move {
            let name = ServerName::IpAddress(address.ip().into());
            quic::connect(address, &address.to_string(), &name, &tls).await
        });
    }
    // Who has a connection leaves.
    edges.join_next().await.context("there are edges")??.context("the first of them gets in")?;
    cloud.stop().await?;
    let before = edges.len();

    // The end of a process would have closed the port by now.
    let next = wait::until("the next cloudcore", LONG, async || {
        Cloud::start_at(address.port(), cluster.kubeconfig()).await
    })
    .await?;
    let mut later = 0;
    while let Some(edge) = timeout(LONG, edges.join_next()).await.context("an edge that waits")? {
        match edge? {
            Ok(_) => later += 1,
            Err(busy @ LinkError::Busy { .. }) => return Err(busy).context("while cloudcore stopped"),
            // In the middle of its handshake.
            Err(_) => {}
        }
    }
    ensure!(later > 0, "of {before} edges that waited, none got in at the next cloudcore");
    next.stop().await
}
