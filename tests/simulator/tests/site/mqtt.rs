//! What apps at the site read and write over MQTT, on the topics that KubeEdge has.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Result, ensure};
use edgecore::access::ExternalBroker;
use harness::{
    process::{Daemon, command},
    simulator::ModbusSlaves,
    wait,
};
use runtime::tls::Trust;
use serde_json::json;

use crate::{
    REGISTERS,
    app::{App, leave_subscribed, waited},
    framed,
    node::{self, Node, SOON},
    program, thermometer,
};

const ALL: &[&str] = &["$hw/events/#", "$ke/events/device/#"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_reads_and_sets_a_device_that_edgecore_drives() -> Result<()> {
    framed(async |run| {
        let slaves = ModbusSlaves::tcp(run, program(), "slaves", REGISTERS).await?;
        let node = Node::start(run)?;
        let mut app = App::start("app", node.mqtt_port(), ALL).await?;
        let (device, model) = thermometer(&json!({"ip": "127.0.0.1", "port": slaves.port()?}));
        node.put("DeviceModel", "model", &model).await?;
        node.put("Device", "t", &device).await?;
        let added = app.until("$hw/events/node/edge-1/membership/updated", |_| true).await?;
        ensure!(added["added_devices"][0]["id"] == "default/t", "{added}");
        let data = app
            .until("$ke/events/device/default/t/data/update", |data| data["data"]["temperature"].is_object())
            .await?;
        ensure!(data["data"]["temperature"]["value"] == "21.3", "{data}");

        let twins = app.ask("$hw/events/device/default/t/twin/get", &json!({"event_id": "1"})).await?;
        let temperature = &twins["twin"]["temperature"];
        ensure!(temperature["actual"]["value"] == "21.3" && temperature["metadata"]["type"] == "float", "{twins}");
        // As it was before KubeEdge 1.17.
        let twins = app.ask("$hw/events/device/t/twin/get", &json!({"event_id": "2"})).await?;
        ensure!(twins["twin"]["temperature"]["actual"]["value"] == "21.3", "{twins}");
        let members = app.ask("$hw/events/node/edge-1/membership/get", &json!({"event_id": "3"})).await?;
        ensure!(members["devices"][0]["state"] == "online", "{members}");

        let update = json!({"event_id": "4", "twin": {"enabled": {"expected": {"value": "true"},
            "metadata": {"type": "boolean"}}}});
        let answer = app.ask("$hw/events/device/default/t/twin/update", &update).await?;
        ensure!(answer["twin"]["enabled"]["expected"]["value"] == "true", "{answer}");
        let document = app
            .until("$hw/events/device/default/t/twin/update/document", |document| {
                document["twin"]["enabled"]["current"]["actual"]["value"] == "true"
            })
            .await?;
        ensure!(document["twin"]["enabled"]["last"]["actual"]["value"] == "false", "{document}");
        ensure!(slaves.get(1, "coil", 3).await? == 1);

        let set = |property: &str, said: &str, value: &str| {
            json!({"event_id": value, "twin": {property: {said: {"value": value}}}})
        };
        for (topic, payload, code, reason) in [
            ("default/none", set("enabled", "expected", "a"), 404, "none of this node's"),
            ("default/t", set("speed", "expected", "b"), 404, "no property speed"),
            ("default/t", set("enabled", "expected", "maybe"), 400, "\"maybe\" is no boolean"),
            ("default/t", set("enabled", "actual", "false"), 409, "driven by this node itself"),
            ("default/t", json!({"event_id": "c", "twin": {"enabled": null}}), 400, "cannot be removed"),
        ] {
            let answer = app.ask(&format!("$hw/events/device/{topic}/twin/update"), &payload).await?;
            ensure!(answer["code"] == code, "{answer}");
            ensure!(answer["reason"].as_str().is_some_and(|text| text.contains(reason)), "{answer}");
        }
        let topic = "$hw/events/device/default/t/twin/update";
        app.say(topic, "no JSON").await?;
        app.until(&format!("{topic}/result"), |answer| answer["code"] == 400).await?;
        app.say(topic, vec![b'x'; 900_000]).await?;
        app.until(&format!("{topic}/result"), |answer| answer["code"] == 400).await?;

        node.delete("Device", "t").await?;
        app.until("$hw/events/node/edge-1/membership/updated", |members| {
            members["removed_devices"][0]["id"] == "default/t"
        })
        .await
        .map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapper_drives_a_device_of_another_protocol() -> Result<()> {
    framed(async |run| {
        let node = Node::start(run)?;
        let mut mapper = App::start("mapper", node.mqtt_port(), ALL).await?;
        let model = json!({"properties": [
            {"name": "level", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "100"},
        ]});
        let mut device = json!({"deviceModelRef": {"name": "lamp"}, "protocol": {"protocolName": "zigbee"},
            "properties": [{"name": "level", "reportCycle": 100, "desired": {"value": "40"}}]});
        node.put("DeviceModel", "lamp", &model).await?;
        node.put("Device", "lamp", &device).await?;
        let delta = "$hw/events/device/default/lamp/twin/update/delta";
        mapper.until(delta, |delta| delta["delta"]["level"] == "40").await?;
        // Whoever missed it is told again.
        mapper.until(delta, |delta| delta["delta"]["level"] == "40").await?;
        let status = node.until("lamp", "nobody drives it", |status| Some(status.clone())).await?;
        ensure!(status["state"] == "unknown", "{status}");
        let reason = status["extensions"]["error"].as_str().unwrap_or_default().to_owned();
        ensure!(reason.contains("zigbee") && reason.contains("nobody has reported"), "{status}");

        let update = "$hw/events/device/default/lamp/twin/update";
        let actual =
            |value: &str| json!({"event_id": value, "twin": {"level": {"actual": {"value": value}}}});
        mapper.ask(update, &actual("40")).await?;
        node.until_reported("lamp", "level", "40").await?;
        node.until("lamp", "online", |status| (status["state"] == "online").then_some(())).await?;
        let state = "$hw/events/device/default/lamp/state/update";
        mapper.ask(state, &json!({"event_id": "s", "state": "Offline"})).await?;
        node.until("lamp", "offline", |status| (status["state"] == "offline").then_some(())).await?;
        let answer = mapper.ask(state, &json!({"event_id": "t", "state": "asleep"})).await?;
        ensure!(answer["code"] == 400, "{answer}");

        device["properties"][0]["desired"] = json!({"value": "70"});
        node.put("Device", "lamp", &device).await?;
        mapper.until(delta, |delta| delta["delta"]["level"] == "70").await?;
        mapper.ask(update, &actual("70")).await?;
        let status = node
            .until("lamp", "it is 70", |status| {
                let twin = node::twin(status, "level");
                let is_done = twin["observedDesired"]["metadata"].get("error").is_none();
                (node::reported(status, "level") == "70" && is_done).then(|| twin.clone())
            })
            .await?;
        ensure!(status["observedDesired"]["value"] == "70", "{status}");
        Ok(())
    })
    .await
}

/// It waits for the end of the reportCycle, when the Device changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_last_outlasts_a_change_of_the_device() -> Result<()> {
    framed(async |run| {
        let node = Node::start(run)?;
        let mut mapper = App::start("mapper", node.mqtt_port(), ALL).await?;
        let model = json!({"properties": [{"name": "level", "type": "INT"}, {"name": "hue", "type": "INT"}]});
        let mut device = json!({"deviceModelRef": {"name": "lamp"}, "protocol": {"protocolName": "zigbee"},
            "properties": [{"name": "level", "reportCycle": 600_000}, {"name": "hue", "reportCycle": 600_000}]});
        node.put("DeviceModel", "lamp", &model).await?;
        node.put("Device", "lamp", &device).await?;
        let update = "$hw/events/device/default/lamp/twin/update";
        let actual =
            |name: &str, value: &str| json!({"event_id": value, "twin": {name: {"actual": {"value": value}}}});
        mapper
            .until("$hw/events/device/default/lamp/twin/update/document", |document| {
                document["twin"]["hue"].is_object()
            })
            .await?;
        mapper.ask(update, &actual("hue", "39")).await?;
        node.until_reported("lamp", "hue", "39").await?;
        mapper.ask(update, &actual("level", "40")).await?;
        mapper.ask(update, &actual("hue", "41")).await?;
        // The one that is left is where the other was.
        device["properties"] =
            json!([{"name": "hue", "reportCycle": 600_000, "desired": {"value": "70"}}, {"name": "level"}]);
        node.put("Device", "lamp", &device).await?;
        node.until("lamp", "it is what was said, and is to be another", |status| {
            let is_so = node::reported(status, "level") == "40"
                && node::reported(status, "hue") == "41"
                && node::twin(status, "hue")["observedDesired"]["value"] == "70"
                && status["state"] == "online";
            is_so.then_some(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_there_anyway_will_do() -> Result<()> {
    framed(async |run| {
        let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let port = broker.port().to_string();
        let external = ExternalBroker { address: broker.into(), login: None, trust: Trust::default() };
        let node = Node::start_with_broker(run, external)?;
        let model = json!({"properties": [{"name": "level", "type": "INT"}]});
        let device = json!({"deviceModelRef": {"name": "lamp"}, "protocol": {"protocolName": "zigbee"},
            "properties": [{"name": "level", "reportCycle": 100, "desired": {"value": "40"}}]});
        node.put("DeviceModel", "lamp", &model).await?;
        node.put("Device", "lamp", &device).await?;
        let start = || Daemon::start(run, "mosquitto", command("/usr/sbin/mosquitto", ["-p", &port]));
        let mosquitto = start()?;
        let mut mapper = App::start("mapper", broker.port(), ALL).await?;
        let topic = "$hw/events/device/default/lamp/twin";
        // edgecore is there, too.
        let document = format!("{topic}/update/document");
        mapper.until(&document, |document| document["twin"]["level"].is_object()).await?;
        let set = json!({"event_id": "1", "twin": {"level": {"actual": {"value": "40"}}}});
        mapper.ask(&format!("{topic}/update"), &set).await?;
        node.until_reported("lamp", "level", "40").await?;
        // It comes back, and what has changed meanwhile is told.
        drop(mosquitto);
        let mut device = device;
        device["properties"][0]["desired"] = json!({"value": "70"});
        node.put("Device", "lamp", &device).await?;
        let _mosquitto = start()?;
        mapper
            .until(&document, |document| {
                let twin = &document["twin"]["level"]["current"];
                twin["expected"]["value"] == "70" && twin["actual"]["value"] == "40"
            })
            .await?;
        node.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_speaks_mqtt_is_read_and_set() -> Result<()> {
    framed(async |run| {
        let node = Node::start(run)?;
        let thermostat = App::start("thermostat", node.mqtt_port(), &["home/set"]).await?;
        is_read_and_set(thermostat, &node).await
    })
    .await
}

/// A thermostat, as the device that it is.
pub(crate) async fn is_read_and_set(thermostat: App, node: &Node) -> Result<()> {
    let model = json!({"protocol": "mqtt", "properties": [
        {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly"},
        {"name": "target", "type": "INT", "minimum": "5", "maximum": "30"},
    ]});
    let visitor = |config: &serde_json::Value| json!({"protocolName": "mqtt", "configData": config});
    let device = json!({
        "deviceModelRef": {"name": "thermostat"},
        "protocol": {"protocolName": "mqtt", "configData": {"statusTopic": "home/status"}},
        "properties": [
            {"name": "temperature", "reportCycle": 100,
                "visitors": visitor(&json!({"topic": "home/state", "jsonPath": "$.temperature"}))},
            {"name": "target", "reportCycle": 100, "desired": {"value": "21"}, "visitors": visitor(&json!({
                "topic": "home/state", "jsonPath": "$.target", "writeTopic": "home/set", "writePath": "target"}))},
        ],
    });
    node.put("DeviceModel", "thermostat", &model).await?;
    node.put("Device", "t", &device).await?;
    plays(thermostat, node).await
}

/// The device: it does as it is told, and says what it is.
async fn plays(mut thermostat: App, node: &Node) -> Result<()> {
    let told = thermostat.until("home/set", |_| true).await?;
    ensure!(told == json!({"target": 21}), "{told}");
    thermostat.say("home/status", "online").await?;
    thermostat.say("home/state", json!({"temperature": 19.5, "target": 21}).to_string()).await?;
    node.until_reported("t", "temperature", "19.5").await?;
    node.until_reported("t", "target", "21").await?;
    node.until("t", "online", |status| (status["state"] == "online").then_some(())).await?;
    thermostat.say("home/state", "no JSON").await?;
    let error = node
        .until("t", "what is no JSON is said", |status| {
            node::twin(status, "temperature")["reported"]["metadata"]["error"].as_str().map(str::to_owned)
        })
        .await?;
    ensure!(error.contains("no JSON"), "{error}");
    node.until_reported("t", "temperature", "19.5").await?;
    thermostat.say("home/status", "offline").await?;
    node.until("t", "offline", |status| (status["state"] == "offline").then_some(())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_apps_outlasts_a_broker_that_nobody_uses() -> Result<()> {
    framed(async |run| {
        let node = Node::start(run)?;
        // mqtt5 holds it as long as it runs.
        let lock = run.dir().join("mqtt/.lock");
        let rests = || {
            wait::until("the broker rests", SOON, async || {
                let lock = File::open(&lock)?;
                lock.try_lock()?;
                anyhow::Ok(())
            })
        };
        // The broker is there when this one is answered.
        drop(App::start("early", node.mqtt_port(), &["none"]).await?);
        leave_subscribed("absent", node.mqtt_port(), "orders/#").await?;
        rests().await?;
        for order in ["orders/1", "orders/2"] {
            let mut sender = App::start("sender", node.mqtt_port(), &["seen/#"]).await?;
            sender.say(order, "{}").await?;
            sender.leave("recipe", "\"bread\"").await?;
            // The broker has them when it answers this.
            ensure!(sender.subscribe("seen").await?);
            drop(sender);
            rests().await?;
        }
        let orders = waited("absent", node.mqtt_port(), "orders/2").await?;
        ensure!(orders == ["orders/1", "orders/2"], "{orders:?}");
        rests().await?;
        let mut late = App::start("late", node.mqtt_port(), &["recipe"]).await?;
        late.until("recipe", |recipe| recipe == "bread").await?;
        node.end().await
    })
    .await
}
