//! A fleet follows a rotation: within the time that cloudcore tells, at the pace that it tells, and nobody notices.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    Bench,
    product::{Cloud, Pace, Scene, first_unready, renewals},
    wait,
};
use hollow::{Fleet, FleetConfig, Identities, Transport, cluster};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ListParams, WatchParams},
};

use crate::{keadm, status};

/// Over each transport.
const NODES: usize = 150;
const SOON: Duration = Duration::from_mins(1);
/// Nodes that cloudcore has renew in a second; what more there is in the worst of them is chance.
const RENEWALS: u32 = 20;
const WORST: u64 = 3 * RENEWALS as u64;
/// For a node to hold other CAs, and for all to have said so.
const FOLLOW: Duration = Duration::from_secs(20);

/// With the real nodes that there are, all of which hold the CA that issues.
pub(crate) async fn story(bench: &Bench, scene: &Scene, other: &Cloud, address: Ipv4Addr) -> Result<()> {
    let mut fleets = Vec::new();
    for transport in [Transport::Quic, Transport::Websocket] {
        let prefix = format!("hollow-{transport:?}").to_lowercase();
        let authorities = cluster::authorities(&scene.cluster.client()).await?;
        fleets.push(Fleet::start(&FleetConfig {
            server: scene.cloud.endpoint_at(address),
            nodes: NODES,
            prefix: prefix.clone(),
            transport,
            // As it is by default.
            heartbeat: Duration::from_secs(70),
            ramp: 100.0,
            identities: Identities::signed(authorities, bench.run.dir().join(&prefix)),
        })?);
    }
    wait::until("all hollow nodes live", SOON, async || are_live(&mut fleets)).await?;
    let nodes: Api<Node> = Api::all(scene.cluster.client());
    let hollow = "skerry.io/hollow";
    let listed = nodes.list_metadata(&ListParams::default().labels(hollow)).await?;
    ensure!(listed.items.len() == 2 * NODES, "{} hollow nodes", listed.items.len());
    let from = listed.metadata.resource_version.context("a list has a version")?;
    let before: Vec<u64> = fleets.iter_mut().map(|fleet| fleet.snapshot().sessions).collect();
    let clouds = [&scene.cloud, other];
    tokio::select! {
        rotated = rotate(scene, &clouds) => rotated?,
        unready = first_unready(&nodes, WatchParams::default().labels(hollow), &from) => bail!("{}", unready?),
    }
    are_live(&mut fleets)?;
    for (fleet, before) in fleets.iter_mut().zip(before) {
        let now = fleet.snapshot();
        ensure!(now.sessions == before && now.errors.is_empty(), "a session was cut: {now:?}");
    }
    for fleet in fleets {
        fleet.stop().await;
    }
    Ok(())
}

async fn rotate(scene: &Scene, clouds: &[&Cloud]) -> Result<()> {
    let total = status(scene).await?["nodes"]["total"].as_u64().context("a number")?;
    let all = |what: &'static str| async move {
        let report = status(scene).await?;
        ensure!(report["nodes"][what] == total, "{report}");
        ensure!(report["waiting"].as_array().is_some_and(Vec::is_empty), "{report}");
        Ok(())
    };
    let begun = Instant::now();
    keadm(scene, &["rotate-ca", "prepare", "--timeout=60s"]).await?;
    all("trusting").await?;
    ensure!(begun.elapsed() < FOLLOW, "until all trusted the new CA it took {:?}", begun.elapsed());

    let (begun, first) = (Instant::now(), renewals(clouds).await?);
    let within = Duration::from_secs(1) + Duration::from_secs(1) * u32::try_from(total)? / RENEWALS;
    let (issued, pace) = tokio::join!(
        keadm(scene, &["rotate-ca", "issue", "--timeout=120s"]),
        Pace::until(clouds, first + total, within + FOLLOW)
    );
    issued?;
    let (pace, took) = (pace?, begun.elapsed());
    all("renewed").await?;
    eprintln!(
        "rotation: {total} nodes renewed in {:.1} s, {} in the worst second; all have said so after {:.1} s",
        pace.took.as_secs_f64(),
        pace.worst,
        took.as_secs_f64()
    );
    ensure!(took < within + FOLLOW, "{took:?} until all had followed, {within:?} were told");
    // Who comes last is near the end of the time that was told, and nobody is asked twice.
    ensure!(pace.took > within / 2 && pace.worst <= WORST, "a herd: {pace:?}");
    ensure!(renewals(clouds).await? == first + total, "a node has renewed twice");

    let begun = Instant::now();
    keadm(scene, &["rotate-ca", "drop", "--timeout=60s"]).await?;
    let report = status(scene).await?;
    ensure!(report["phase"] == "steady", "{report}");
    ensure!(report["waiting"].as_array().is_some_and(Vec::is_empty), "{report}");
    ensure!(begun.elapsed() < FOLLOW, "until all had let go of the CA before it took {:?}", begun.elapsed());
    Ok(())
}

fn are_live(fleets: &mut [Fleet]) -> Result<()> {
    for fleet in fleets {
        let now = fleet.snapshot();
        ensure!(now.connected == NODES && now.synced == NODES && now.ready == NODES, "{now:?}");
    }
    Ok(())
}
