//! How real slaves and lines were seen to misbehave, one test each: the value that is reported is the last true one.

use anyhow::{Result, ensure};
use harness::simulator::ModbusSlaves;
use serde_json::{Value, json};

use super::{
    device, framed,
    node::{Node, SOON, reported},
    program, property,
};

const SET: &[&str] = &["1:holding:0=1000", "1:holding:100=7", "2:holding:0=2000"];

/// Two slaves at one bus, each with a register at 0, so that one's answer taken for the other's is seen.
async fn two_on_a_bus(node: &Node, connection: &Value) -> Result<()> {
    for unit in [1, 2] {
        let mut connection = connection.clone();
        connection["slaveID"] = unit.into();
        connection["collectTimeout"] = 200.into();
        let value = property("value", "INT", &json!({"register": "HoldingRegister", "offset": 0}));
        let (mut device, model) = device(&connection, vec![value]);
        device["deviceModelRef"]["name"] = format!("model-{unit}").into();
        node.put("DeviceModel", &format!("model-{unit}"), &model).await?;
        node.put("Device", &format!("d{unit}"), &device).await?;
        node.until_reported(&format!("d{unit}"), "value", &format!("{unit}000")).await?;
    }
    Ok(())
}

/// While the fault lasts nothing but true values is reported, and afterwards both devices are online.
async fn survives(node: &Node, slaves: &ModbusSlaves, fault: Value, requests: u64) -> Result<()> {
    slaves.misbehave_as(1, fault.clone(), requests).await?;
    let name = format!("after {fault}");
    // A value of after the fault, so that it is not an old one which is looked at.
    slaves.set(1, "holding", 0, &[1001]).await?;
    slaves.set(2, "holding", 0, &[2001]).await?;
    let truth = [["1000", "1001"], ["2000", "2001"]];
    harness::wait::until(&name, SOON, async || {
        let mut done = true;
        for (device, truth) in ["d1", "d2"].into_iter().zip(truth) {
            let status = node.status(device)?;
            let value = reported(&status, "value").to_owned();
            if !truth.contains(&value.as_str()) {
                // No use waiting.
                return Ok(Err(format!("{name}: {device} is said to be {value}")));
            }
            done &= value == truth[1] && status["state"] == "online";
        }
        ensure!(done, "not yet");
        Ok::<_, anyhow::Error>(Ok(()))
    })
    .await?
    .map_err(anyhow::Error::msg)?;
    slaves.misbehave(json!("silence"), 0).await?;
    slaves.set(1, "holding", 0, &[1000]).await?;
    slaves.set(2, "holding", 0, &[2000]).await?;
    node.until_reported("d1", "value", "1000").await?;
    node.until_reported("d2", "value", "2000").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "slaves", SET).await?;
        let node = Node::start(run)?;
        two_on_a_bus(&node, &json!({"ip": "127.0.0.1", "port": slaves.port()?})).await?;
        for (fault, requests) in [
            (json!({"exception": {"code": 4}}), 3),
            (json!({"exception": {"code": 11}}), 3),
            (json!({"late": {"milliseconds": 250}}), 3),
            (json!("wrongTransaction"), 3),
            (json!("wrongUnit"), 3),
            (json!("half"), 3),
            (json!("reset"), 3),
            (json!("silence"), 5),
        ] {
            survives(&node, &slaves, fault, requests).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_serial_line() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::serial(run, program(), "slaves", 19_200, SET).await?;
        let node = Node::start(run)?;
        two_on_a_bus(&node, &json!({"serialPort": slaves.address(), "baudRate": 19_200})).await?;
        for (fault, requests) in [
            (json!({"exception": {"code": 4}}), 3),
            // The answer comes when the next question has been asked already.
            (json!({"late": {"milliseconds": 250}}), 3),
            (json!("wrongUnit"), 3),
            (json!("wrongCrc"), 3),
            (json!("half"), 3),
            (json!("noise"), 3),
            // One that does not answer is asked ever more seldom.
            (json!("silence"), 3),
        ] {
            survives(&node, &slaves, fault, requests).await?;
        }
        Ok(())
    })
    .await
}
