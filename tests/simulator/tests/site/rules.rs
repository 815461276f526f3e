//! What is done at the site when an expression becomes true.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{simulator::ModbusSlaves, wait};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    app::App,
    device, framed,
    node::{Node, SOON},
    program, property,
    push::collector,
};

/// A kiln, the alarm lamp beside it, and what the rule is.
async fn kiln(node: &Node, slaves: &ModbusSlaves, rule: &Value) -> Result<()> {
    let (kiln, mut model) = device(
        &json!({"ip": "127.0.0.1", "port": slaves.port()?}),
        vec![
            property("heat", "INT", &json!({"register": "InputRegister", "offset": 0})),
            property("lamp", "BOOLEAN", &json!({"register": "CoilRegister", "offset": 0})),
        ],
    );
    model["properties"][0]["accessMode"] = json!("ReadOnly");
    node.put("DeviceModel", "model", &model).await?;
    node.put("Device", "kiln-1", &kiln).await?;
    node.put("DeviceRule", "hot", rule).await
}

async fn until_lamp(slaves: &ModbusSlaves, state: u16) -> Result<()> {
    wait::until(&format!("the lamp is {state}"), SOON, async || {
        let lamp = slaves.get(1, "coil", 0).await?;
        ensure!(lamp == state, "{lamp}");
        anyhow::Ok(())
    })
    .await
}

/// How many events with this reason wait to be sent.
fn events(node: &Node, reason: &str) -> Result<usize> {
    Ok(node.events()?.iter().filter(|event| event["reason"] == reason).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_begins_once_is_over_once_and_outlasts_a_restart() -> Result<()> {
    framed(async |run| {
        let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let slaves = ModbusSlaves::tcp(run, program(), "kiln", &["1:input:0=20", "1:coil:0=0"]).await?;
        let node = Node::start(run)?;
        let mut app = App::start("app", node.mqtt_port(), &["alarms/#"]).await?;
        let (_serving, mut posted) = collector(at, None).await?;
        let rule = json!({
            "nodeName": "edge-1", "devices": {"kiln": "kiln-1"},
            "when": "kiln.heat > 80", "until": "kiln.heat < 70",
            "then": [
                {"set": {"device": "kiln", "property": "lamp", "value": "true"}},
                {"publish": {"topic": "alarms/kiln", "payload": "\"hot\""}},
                {"post": {"url": format!("http://{at}/alarm")}},
                {"event": {"reason": "KilnHot", "message": "look at the kiln"}},
            ],
            "otherwise": [{"set": {"device": "kiln", "property": "lamp", "value": "false"}}],
        });
        kiln(&node, &slaves, &rule).await?;
        node.until_reported("kiln-1", "heat", "20").await?;
        node.until_rule("hot", "known", |status| status["active"] == false).await?;
        ensure!(slaves.get(1, "coil", 0).await? == 0);

        slaves.set(1, "input", 0, &[90]).await?;
        until_lamp(&slaves, 1).await?;
        app.until("alarms/kiln", |text| text == "hot").await?;
        let sent = timeout(SOON, posted.recv()).await?.context("the collector has ended")?;
        ensure!(sent.starts_with("/alarm {") && sent.contains(r#""rule":"hot""#), "{sent}");
        node.until_rule("hot", "fired", |status| status["active"] == true && status["fired"] == 1).await?;
        wait::until("its event", SOON, async || {
            ensure!(events(&node, "KilnHot")? == 1 && events(&node, "RuleFired")? == 1);
            anyhow::Ok(())
        })
        .await?;

        // Between the two nothing happens; nor does it begin again after a restart.
        node.end().await?;
        slaves.set(1, "input", 0, &[75]).await?;
        let node = Node::start(run)?;
        node.until_reported("kiln-1", "heat", "75").await?;
        slaves.set(1, "input", 0, &[95]).await?;
        node.until_reported("kiln-1", "heat", "95").await?;
        slaves.set(1, "input", 0, &[60]).await?;
        until_lamp(&slaves, 0).await?;
        let over = |status: &Value| status["active"] == false && status["fired"] == 1;
        node.until_rule("hot", "over", over).await?;
        ensure!(events(&node, "RuleFired")? == 1 && events(&node, "RuleOver")? == 1);
        node.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_waits_its_hold_time_and_says_what_is_wrong_with_it() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "kiln", &["1:input:0=90", "1:coil:0=0"]).await?;
        let node = Node::start(run)?;
        let lamp = json!([{"set": {"device": "kiln", "property": "lamp", "value": "true"}}]);
        let rule = |when: &str, hold: u32, then: &Value| {
            json!({"nodeName": "edge-1", "devices": {"kiln": "kiln-1"}, "when": when, "holdSeconds": hold, "then": then})
        };
        let begun = std::time::Instant::now();
        kiln(&node, &slaves, &rule("kiln.heat > 80", 1, &lamp)).await?;
        until_lamp(&slaves, 1).await?;
        ensure!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());

        let nowhere = json!([{"post": {"url": "http://127.0.0.1:1/x"}}]);
        let read_only = json!([{"set": {"device": "kiln", "property": "heat", "value": "1"}}]);
        for (when, then, reason) in [
            ("kiln.heat >", &lamp, "spec.when \"kiln.heat >\" is no CEL expression"),
            ("kiln.heet > 80", &lamp, "spec.when: none of its devices has a property heet"),
            ("oven.heat > 80", &lamp, "spec.when: Undeclared reference to 'oven'"),
            ("kiln.heat > 80", &json!([{"publish": {"topic": "#"}}]), "spec.then[0] publish.topic \"#\""),
        ] {
            node.put("DeviceRule", "hot", &rule(when, 0, then)).await?;
            node.until_rule("hot", reason, |status| {
                status["error"].as_str().is_some_and(|error| error.starts_with(reason))
            })
            .await?;
        }
        // What fails is told, and stops no other action.
        for (name, then, reason) in [
            ("nowhere", &nowhere, "failed: then[0]: http://127.0.0.1:1/x: "),
            ("odd", &read_only, "failed: then[0]: property heat is not set: "),
        ] {
            node.put("DeviceRule", name, &rule("kiln.heat > 80", 0, then)).await?;
            node.until_rule(name, reason, |status| {
                status["error"].as_str().is_some_and(|error| error.starts_with(reason))
            })
            .await?;
        }
        ensure!(events(&node, "RuleActionFailed")? == 2);
        node.delete("DeviceRule", "hot").await?;
        node.end().await
    })
    .await
}
