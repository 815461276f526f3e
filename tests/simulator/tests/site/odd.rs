//! Devices and messages as nobody means them, and at moments when nobody wants it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use harness::{simulator::ModbusSlaves, wait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    app::App,
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

/// A client of MQTT 3.1.1 by hand: it sends what no library would.
async fn client(port: u16) -> Result<TcpStream> {
    let connect = async || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    let mut stream = wait::until("the broker is there", SOON, connect).await?;
    stream.write_all(b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03odd").await?;
    let mut greeting = [0; 4];
    timeout(SOON, stream.read_exact(&mut greeting)).await.context("no CONNACK")??;
    ensure!(greeting == *b"\x20\x02\0\0", "{greeting:?}");
    Ok(stream)
}

/// PUBLISH at QoS 0.
fn publish(topic: &str, payload: &[u8]) -> Result<Vec<u8>> {
    let mut left = 2 + topic.len() + payload.len();
    let mut packet = vec![0x30];
    loop {
        let byte = u8::try_from(left % 128)?;
        left /= 128;
        packet.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            break;
        }
    }
    packet.extend(u16::try_from(topic.len())?.to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.extend(payload);
    Ok(packet)
}

/// What is said so ends the connection.
async fn is_cut_off(port: u16, packet: &[u8]) -> Result<()> {
    let mut stream = client(port).await?;
    // It may end before all of it is sent.
    drop(stream.write_all(packet).await);
    let mut rest = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut rest)).await.context("the connection goes on")?;
    ensure!(end.is_err() || rest.len() < 10, "{rest:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_long_or_to_no_topic_harm_nobody() -> Result<()> {
    framed(async |run| {
        let odd = "level/+ #\"{}";
        let model = json!({"protocol": "virtual", "properties": [{"name": odd, "type": "INT"}]});
        let device = json!({"deviceModelRef": {"name": "model"},
            "properties": [{"name": odd, "reportCycle": 100, "collectCycle": 100}]});
        let node = Node::start(run)?;
        let mut app = App::start("app", node.mqtt_port(), &["$hw/events/#"]).await?;
        node.put("DeviceModel", "model", &model).await?;
        node.put("Device", "t", &device).await?;
        let topic = "$hw/events/device/default/t/twin/update";
        for round in 0..3 {
            is_cut_off(node.mqtt_port(), &publish(topic, &vec![b'x'; (1 << 20) + 1])?).await?;
            is_cut_off(node.mqtt_port(), &publish("$hw/events/device/+/t/twin/update", b"{}")?).await?;
            // Not even begun: a length of 256 MiB, and of more than there is.
            is_cut_off(node.mqtt_port(), b"\x30\xff\xff\xff\x7f\0").await?;
            is_cut_off(node.mqtt_port(), b"\x30\xff\xff\xff\xff\x7f").await?;
            // The device is set as ever, whatever its property is called.
            let value = round.to_string();
            let set = json!({"event_id": value, "twin": {odd: {"expected": {"value": value}}}});
            let answer = app.ask(topic, &set).await?;
            ensure!(answer["twin"][odd]["expected"]["value"] == *value, "{answer}");
            node.until_reported("t", odd, &value).await?;
        }
        node.end().await
    })
    .await
}
