//! A node as it ships, with a thousand devices that are read once a second: memory, CPU, line and disk.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::{Assets, product::Edge, progress::during, simulator::ModbusSlaves, wait};
use kube::{
    Api,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use super::{
    desired, manifest,
    stand::{Stand, asked},
};
use crate::bench::{
    figure::{Figure, Goal},
    idle,
    line::{self, Line},
    workload,
    world::World,
};

const BUSES: usize = 5;
const UNITS: u8 = 200;
const DEVICES: usize = BUSES * UNITS as usize;
const PROPERTIES: u16 = 10;
/// Milliseconds.
const CYCLE: u64 = 1000;
/// Between two changes of one device's one property that changes.
const CHANGE: Duration = Duration::from_secs(10);
/// Of the API server.
const CLIENTS: usize = 8;
const REST: Duration = Duration::from_secs(20);
/// As in [`idle`], five of them.
const WINDOW: Duration = Duration::from_secs(12);
const LONG: Duration = Duration::from_mins(3);

pub(super) async fn take(assets: &Assets, stand: &Stand) -> Result<Vec<Figure>> {
    let world = World::start(assets, 1).await?;
    let figures = figures(&world, stand).await;
    world.end(figures)
}

async fn figures(world: &World, stand: &Stand) -> Result<Vec<Figure>> {
    let edge = world.join(0, &[]).await?;
    world.cluster.apply(&manifest::model(PROPERTIES.into()).to_string()).await?;
    let one = slaves(world, stand, "one", &[manifest::holding(1, 0, 1)]).await?;
    let patching = desired::take(&world.cluster, edge.name(), &one);
    let mut figures = during("patching a device", patching).await?;
    drop(one);

    let set: Vec<String> = (1..=UNITS).map(|unit| manifest::holding(unit, 0, PROPERTIES.into())).collect();
    let mut buses = Vec::new();
    for bus in 0..BUSES {
        buses.push(slaves(world, stand, &format!("bus-{bus}"), &set).await?);
    }
    during("applying a thousand devices", create(world, edge.name(), &buses)).await?;
    during("a thousand devices being read", until_read(&buses)).await?;
    let reported = wait::until("all devices reported", LONG, async || {
        let reports = edge.metric("edgecore_outbox_reports").await?;
        ensure!(reports == 0, "{reports} reports wait");
        anyhow::Ok(())
    });
    during("a thousand devices being reported", reported).await?;
    figures.extend(tokio::select! {
        watched = watch(world, &edge, &buses) => watched?,
        ended = change(&buses) => match ended? {},
    });
    Ok(figures)
}

/// At the site.
async fn slaves(world: &World, stand: &Stand, name: &str, set: &[String]) -> Result<ModbusSlaves> {
    let simulator = world.sites[0].command(stand.simulator(), ["modbus", "--listen=127.0.0.1:0"])?;
    stand.slaves_of(simulator, name, set).await
}

async fn create(world: &World, node: &str, buses: &[ModbusSlaves]) -> Result<()> {
    let kind = GroupVersionKind::gvk(manifest::GROUP, manifest::VERSION, "Device");
    let resource = ApiResource::from_gvk_with_plural(&kind, "devices");
    let api: Api<DynamicObject> = Api::default_namespaced_with(world.cluster.client(), &resource);
    let registers: Vec<u16> = (0..PROPERTIES).collect();
    let mut devices = Vec::new();
    for (bus, slaves) in buses.iter().enumerate() {
        let port = slaves.port()?;
        devices.extend((1..=UNITS).map(|unit| {
            let connection = json!({"ip": "127.0.0.1", "port": port, "slaveID": unit});
            manifest::device(&format!("device-{bus}-{unit}"), node, &connection, &registers, CYCLE)
        }));
    }
    let create = |device: Value| {
        let api = &api;
        async move {
            let device: DynamicObject = serde_json::from_value(device)?;
            api.create(&PostParams::default(), &device).await.context("failed to create a device")?;
            anyhow::Ok(())
        }
    };
    stream::iter(devices).map(Ok).try_for_each_concurrent(CLIENTS, create).await
}

async fn until_read(buses: &[ModbusSlaves]) -> Result<()> {
    let mut read = BTreeSet::new();
    wait::until("all devices read", LONG, async || {
        for (bus, slaves) in buses.iter().enumerate() {
            read.extend(asked(slaves).await?.iter().map(|asked| (bus, asked.unit)));
        }
        ensure!(read.len() == DEVICES, "{} are", read.len());
        anyhow::Ok(())
    })
    .await
}

/// The first property of each device, one after the other, for ever.
async fn change(buses: &[ModbusSlaves]) -> Result<Infallible> {
    let mut ticks = interval(CHANGE / u32::try_from(DEVICES)?);
    let mut value = 0_u16;
    loop {
        value = value.wrapping_add(1);
        for unit in 1..=UNITS {
            for slaves in buses {
                ticks.tick().await;
                slaves.set(unit, "holding", 0, &[value]).await?;
            }
        }
    }
}

async fn watch(world: &World, edge: &Edge, buses: &[ModbusSlaves]) -> Result<Vec<Figure>> {
    let site = &world.sites[0];
    workload::settle(REST).await;
    line::count(site, &world.cloud.endpoint(site))?;
    let (carried, requests, begun) = (Line::of(site)?, requests(buses).await?, Instant::now());
    let doing = "watching a node with a thousand devices for a minute";
    let windows = during(doing, idle::windows(&[edge.pid()?], WINDOW)).await?.remove(0);
    let seconds = begun.elapsed().as_secs_f64();
    let carried = Line::of(site)? - carried;
    let polls = (self::requests(buses).await? - requests) as f64 / seconds;
    let written: u64 = windows.iter().map(|window| window.used.written).sum();
    let waiting = edge.metric("edgecore_outbox_reports").await?;
    let a_minute = |bytes: u64| bytes as f64 * 60.0 / seconds;
    let which = "1,000 devices of 10 properties at 1 Hz";
    let note = format!(
        "each device is a Modbus TCP slave, {BUSES} connections; one property of each changes every {} s, the others do not; \
         the slaves see {polls:.0} requests a second; {waiting} reports wait for the cloud at the end",
        CHANGE.as_secs(),
    );
    Ok(vec![
        idle::pss(&windows, which).goal(Goal::AtMost(40.0)).note(&note),
        idle::cpu(&windows, which, "edgecore"),
        Figure::whole(
            &format!("{which}: on the line, both ways"),
            "KB/min",
            a_minute(carried.up.bytes + carried.down.bytes) / 1000.0,
        )
        .note("IP packets with their headers"),
        Figure::whole(
            &format!("{which}: written to disk"),
            "MiB/min",
            a_minute(written) / f64::from(1 << 20),
        )
        .note("write_bytes of edgecore: store and log together"),
    ])
}

async fn requests(buses: &[ModbusSlaves]) -> Result<u64> {
    let mut requests = 0;
    for slaves in buses {
        requests += slaves.requests().await?;
    }
    Ok(requests)
}
