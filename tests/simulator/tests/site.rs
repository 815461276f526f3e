//! edgecore's devices with no cloud. Against Modbus slaves that are processes of their own: what they hold is what is reported, what
//! is desired is what they hold, and none of the ways in which real ones misbehave makes a value wrong. And against apps that speak MQTT.

#[path = "site/app.rs"]
mod app;
#[path = "site/dmi.rs"]
mod dmi;
#[path = "site/mqtt.rs"]
mod mqtt;
#[path = "site/mqtt_rights.rs"]
mod mqtt_rights;
#[path = "site/node.rs"]
mod node;
#[path = "site/odd.rs"]
mod odd;
#[path = "site/push.rs"]
mod push;
#[path = "site/rules.rs"]
mod rules;
#[path = "site/secure.rs"]
mod secure;
#[path = "site/traps.rs"]
mod traps;

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use harness::{Run, simulator::ModbusSlaves, wait};
use node::{Node, SOON, reported};
use serde_json::{Value, json};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_simulator"))
}

async fn framed(test: impl AsyncFnOnce(&Arc<Run>) -> Result<()>) -> Result<()> {
    let run = Run::start()?;
    let result = test(&run).await;
    run.end(result)
}

/// A property of the model, and how the device reads it.
fn property(name: &str, kind: &str, visitor: &Value) -> (Value, Value) {
    let visitors = json!({"protocolName": "modbus", "configData": visitor});
    (
        json!({"name": name, "type": kind}),
        json!({"name": name, "collectCycle": 100, "reportCycle": 100, "visitors": visitors}),
    )
}

/// A Device and its DeviceModel.
fn device(connection: &Value, properties: Vec<(Value, Value)>) -> (Value, Value) {
    let (of_model, of_device): (Vec<Value>, Vec<Value>) = properties.into_iter().unzip();
    let device = json!({
        "deviceModelRef": {"name": "model"},
        "nodeName": "edge-1",
        "protocol": {"protocolName": "modbus", "configData": connection},
        "properties": of_device,
    });
    (device, json!({"protocol": "modbus", "properties": of_model}))
}

fn thermometer(connection: &Value) -> (Value, Value) {
    device(
        connection,
        vec![
            property(
                "temperature",
                "FLOAT",
                &json!({"register": "InputRegister", "offset": 2, "scale": 0.1}),
            ),
            property("enabled", "BOOLEAN", &json!({"register": "CoilRegister", "offset": 3})),
            property("limit", "INT", &json!({"register": "HoldingRegister", "offset": 7, "limit": 2})),
        ],
    )
}

const REGISTERS: &[&str] = &["1:input:2=213", "1:coil:3=0", "1:holding:7=1,2"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_over_tcp_are_reported_and_written() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "slaves", REGISTERS).await?;
        let node = Node::start(run)?;
        live(&node, &slaves, json!({"ip": "127.0.0.1", "port": slaves.port()?, "slaveID": 1})).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_on_a_serial_line_are_reported_and_written() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::serial(run, program(), "slaves", 19_200, REGISTERS).await?;
        let node = Node::start(run)?;
        live(&node, &slaves, json!({"serialPort": slaves.address(), "baudRate": 19_200, "slaveID": 1})).await
    })
    .await
}

async fn live(node: &Node, slaves: &ModbusSlaves, connection: Value) -> Result<()> {
    let (mut device, model) = thermometer(&connection);
    // Whichever comes first.
    node.put("Device", "t", &device).await?;
    let why = "DeviceModel model does not exist in namespace default";
    node.until("t", why, |status| (status["extensions"]["error"] == why).then_some(())).await?;
    node.put("DeviceModel", "model", &model).await?;
    let status =
        node.until("t", "online", |status| (status["state"] == "online").then(|| status.clone())).await?;
    ensure!(reported(&status, "temperature") == "21.3", "{status}");
    ensure!(reported(&status, "enabled") == "false", "{status}");
    ensure!(reported(&status, "limit") == "65538", "{status}");
    ensure!(status["lastOnlineTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{status}");

    slaves.set(1, "input", 2, &[214]).await?;
    node.until_reported("t", "temperature", "21.4").await?;

    device["properties"][1]["desired"] = json!({"value": "true"});
    device["properties"][2]["desired"] = json!({"value": "131075"});
    node.put("Device", "t", &device).await?;
    node.until_reported("t", "enabled", "true").await?;
    node.until_reported("t", "limit", "131075").await?;
    ensure!(slaves.get(1, "coil", 3).await? == 1);
    ensure!((slaves.get(1, "holding", 7).await?, slaves.get(1, "holding", 8).await?) == (2, 3));
    // Somebody turns it off by hand, or it was reset.
    slaves.set(1, "coil", 3, &[0]).await?;
    wait::until("it is on again", SOON, async || {
        let on = slaves.get(1, "coil", 3).await?;
        ensure!(on == 1);
        Ok::<_, anyhow::Error>(())
    })
    .await?;

    // What cannot be is refused, and says why.
    device["properties"][2]["desired"] = json!({"value": "4294967296"});
    node.put("Device", "t", &device).await?;
    let status = node
        .until("t", "the desired value is refused", |status| {
            let observed = &node::twin(status, "limit")["observedDesired"];
            observed["metadata"]["error"].is_string().then(|| observed.clone())
        })
        .await?;
    ensure!(status["value"] == "4294967296", "{status}");
    ensure!(status["metadata"]["error"] == "4294967296 does not fit 4 bytes of HoldingRegister", "{status}");
    node.until_reported("t", "limit", "131075").await?;

    node.delete("Device", "t").await?;
    slaves.asked().await?;
    wait::until("nobody asks any more", SOON, async || {
        let asked = slaves.asked().await?;
        ensure!(asked.is_empty(), "{} requests", asked.len());
        Ok::<_, anyhow::Error>(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_are_one_request_and_holes_are_found() -> Result<()> {
    framed(async |run| {
        // Register 3 is not there, and 20 is not either.
        let set = ["1:holding:0=10,11,12", "1:holding:4=14"];
        let slaves = ModbusSlaves::tcp(run, program(), "slaves", &set).await?;
        let node = Node::start(run)?;
        let at = |offset: u16| {
            property(&format!("p{offset}"), "INT", &json!({"register": "HoldingRegister", "offset": offset}))
        };
        let connection = json!({"ip": "127.0.0.1", "port": slaves.port()?});
        let (device, model) = device(&connection, [0, 1, 2, 4, 20].map(at).into());
        node.put("DeviceModel", "model", &model).await?;
        node.put("Device", "d", &device).await?;
        for (name, value) in [("p0", "10"), ("p2", "12"), ("p4", "14")] {
            node.until_reported("d", name, value).await?;
        }
        let error = node
            .until("d", "what is not there says so", |status| {
                node::twin(status, "p20")["reported"]["metadata"]["error"].as_str().map(str::to_owned)
            })
            .await?;
        ensure!(error.contains("exception 2"), "{error}");
        slaves.asked().await?;
        let number = |asked: &Value, field: &str| asked[field].as_u64().unwrap_or_default();
        wait::until("it has learnt", SOON, async || {
            let asked = slaves.asked().await?;
            let kinds: BTreeSet<(u64, u64)> =
                asked.iter().map(|asked| (number(asked, "address"), number(asked, "count"))).collect();
            ensure!(kinds == [(0, 3), (4, 1), (20, 1)].into(), "{kinds:?}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_lasts_over_a_restart() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "slaves", REGISTERS).await?;
        let connection = json!({"ip": "127.0.0.1", "port": slaves.port()?, "slaveID": 1});
        let (device, model) = thermometer(&connection);
        let node = Node::start(run)?;
        node.put("DeviceModel", "model", &model).await?;
        node.put("Device", "t", &device).await?;
        node.until_reported("t", "temperature", "21.3").await?;
        let at =
            |status: &Value| node::twin(status, "temperature")["reported"]["metadata"]["timestamp"].clone();
        let before = at(&node.status("t")?);
        node.end().await?;
        let node = Node::start(run)?;
        node.until("t", "online again", |status| (status["state"] == "online").then_some(())).await?;
        ensure!(at(&node.status("t")?) == before, "it is as long so as it was");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_stalls_delays_no_other() -> Result<()> {
    framed(async |run| {
        let stalled = ModbusSlaves::tcp(run, program(), "stalled", REGISTERS).await?;
        let well = ModbusSlaves::tcp(run, program(), "well", REGISTERS).await?;
        let node = Node::start(run)?;
        for (name, slaves) in [("stalled", &stalled), ("well", &well)] {
            let (device, model) = thermometer(&json!({"ip": "127.0.0.1", "port": slaves.port()?}));
            node.put("DeviceModel", "model", &model).await?;
            node.put("Device", name, &device).await?;
            node.until_reported(name, "temperature", "21.3").await?;
        }
        stalled.misbehave(json!("silence"), u64::MAX).await?;
        node.until("stalled", "offline", |status| (status["state"] == "offline").then_some(())).await?;
        for value in [300_u16, 301, 302] {
            well.set(1, "input", 2, &[value]).await?;
            let text = format!("{}.{}", value / 10, value % 10);
            let text = text.trim_end_matches(".0");
            tokio::time::timeout(Duration::from_secs(1), node.until_reported("well", "temperature", text))
                .await??;
        }
        stalled.misbehave(json!("silence"), 0).await?;
        node.until("stalled", "online", |status| (status["state"] == "online").then_some(())).await
    })
    .await
}
