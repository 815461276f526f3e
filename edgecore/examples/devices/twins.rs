//! Durable updates of twins: what an app or `keadm ctl set device` does, by many at once.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use edgecore::devicetwin::Devices;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    node::{Node, key},
    say,
};

/// Of each device; all can be set, so that they stand still.
const PROPERTIES: usize = 10;
const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn run(dir: &Path, callers: usize, seconds: u64) -> Result<()> {
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let node = Node::start(dir, broker, &manifests(callers)).await?;
    timeout(SOON, online(&node.devices, callers)).await.context("the devices are not online")?;
    let (syncs, stored) = (node.store.syncs(), node.store.bytes_written());
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        tasks.spawn(set(node.devices.clone(), caller, end));
    }
    let mut took = Vec::new();
    while let Some(done) = tasks.join_next().await {
        took.extend(done??);
    }
    let (passed, updates) = (begun.elapsed().as_secs_f64(), took.len() as f64);
    took.sort_unstable();
    let p99 = took[(took.len() * 99).div_ceil(100).saturating_sub(1)];
    let told = json!({
        "perSecond": updates / passed,
        "p99Ms": p99.as_secs_f64() * 1000.0,
        "syncsEach": (node.store.syncs() - syncs) as f64 / updates,
        "bytesEach": (node.store.bytes_written() - stored) as f64 / updates,
    });
    say(&told.to_string())
}

async fn online(devices: &Devices, count: usize) {
    while devices.members().iter().filter(|member| member.state == "online").count() < count {
        sleep(Duration::from_millis(10)).await;
    }
}

/// How long each update took to be durable.
async fn set(devices: Devices, caller: usize, end: Instant) -> Result<Vec<Duration>> {
    let device = key("Device", &name(caller))?;
    let (mut took, mut value) = (Vec::new(), 0_u64);
    while Instant::now() < end {
        value += 1;
        let begun = Instant::now();
        devices.set(&device, "p0", &value.to_string()).await?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

fn name(caller: usize) -> String {
    format!("device-{caller}")
}

fn manifests(devices: usize) -> Vec<Value> {
    let properties: Vec<String> = (0..PROPERTIES).map(|number| format!("p{number}")).collect();
    let of_model: Vec<Value> = properties
        .iter()
        .map(|name| json!({"name": name, "type": "INT", "accessMode": "ReadWrite"}))
        .collect();
    let of_device: Vec<Value> = properties.iter().map(|name| json!({"name": name})).collect();
    let mut manifests = vec![json!({
        "kind": "DeviceModel",
        "metadata": {"name": "model"},
        "spec": {"protocol": "virtual", "properties": of_model},
    })];
    manifests.extend((0..devices).map(|number| {
        json!({
            "kind": "Device",
            "metadata": {"name": name(number)},
            "spec": {"deviceModelRef": {"name": "model"}, "properties": of_device},
        })
    }));
    manifests
}
