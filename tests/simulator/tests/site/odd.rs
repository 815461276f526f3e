//! Devices as nobody means them, and at moments when nobody wants it.

use anyhow::{Result, ensure};
use harness::{simulator::ModbusSlaves, wait};
use serde_json::{Value, json};

use crate::{
    device, framed,
    node::{Node, SOON},
    program, property,
};

fn lamp(slaves: &ModbusSlaves, desired: Option<&str>) -> Result<(Value, Value)> {
    let lamp = property("lamp", "BOOLEAN", &json!({"register": "CoilRegister", "offset": 0}));
    let connection = json!({"ip": "127.0.0.1", "port": slaves.port()?, "collectTimeout": 500});
    let (mut device, model) = device(&connection, vec![lamp]);
    if let Some(desired) = desired {
        device["properties"][0]["desired"] = json!({"value": desired});
    }
    Ok((device, model))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_at_one_address_say_the_same() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "lamp", &["1:coil:0=0"]).await?;
        let node = Node::start(run)?;
        let (one, model) = lamp(&slaves, None)?;
        node.put("DeviceModel", "model", &model).await?;
        node.put("Device", "one", &one).await?;
        node.until_reported("one", "lamp", "false").await?;
        node.put("Device", "other", &lamp(&slaves, Some("true"))?.0).await?;
        for name in ["one", "other"] {
            node.until_reported(name, "lamp", "true").await?;
        }
        // One of them is gone, and the other one has what it had.
        node.delete("Device", "other").await?;
        slaves.set(1, "coil", 0, &[0]).await?;
        node.until_reported("one", "lamp", "false").await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_may_go_while_it_is_written() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "lamp", &["1:coil:0=0", "2:coil:0=0"]).await?;
        let node = Node::start(run)?;
        let (device, model) = lamp(&slaves, None)?;
        let mut neighbour = device.clone();
        neighbour["protocol"]["configData"]["slaveID"] = json!(2);
        node.put("DeviceModel", "model", &model).await?;
        node.put("Device", "neighbour", &neighbour).await?;
        for round in 0..5 {
            node.put("Device", "going", &device).await?;
            node.until_reported("going", "lamp", "false").await?;
            slaves.asked().await?;
            // The write comes late, when nobody waits for its answer any more.
            slaves.misbehave_as(1, json!({"late": {"milliseconds": 300}}), 2).await?;
            node.put("Device", "going", &lamp(&slaves, Some("true"))?.0).await?;
            wait::until("it is being written, or read late before that", SOON, async || {
                ensure!(!slaves.asked().await?.is_empty());
                anyhow::Ok(())
            })
            .await?;
            node.delete("Device", "going").await?;
            // Whatever came of it, the bus goes on, and no answer is taken for another's.
            let (state, text) = if round % 2 == 0 { (1, "true") } else { (0, "false") };
            slaves.set(2, "coil", 0, &[state]).await?;
            node.until_reported("neighbour", "lamp", text).await?;
            slaves.misbehave_as(1, json!("silence"), 0).await?;
            slaves.set(1, "coil", 0, &[0]).await?;
        }
        node.end().await
    })
    .await
}
