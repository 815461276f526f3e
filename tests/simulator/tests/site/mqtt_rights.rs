//! Who gets in at the broker of edgecore, and what each may do there.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};
use harness::{Run, wait};
use rumqttc::ConnectReturnCode::{BadUserNamePassword, NotAuthorized, Success};
use serde_json::{Value, json};

use crate::{
    app::{App, Login, greeting},
    framed, mqtt,
    node::{Node, SOON},
};

const MAPPER: Login<'static> = Some(("mapper", "secret"));
const DASHBOARD: Login<'static> = Some(("dashboard", "look here"));
const THERMOSTAT: Login<'static> = Some(("thermostat", "warm"));
const LATER: Login<'static> = Some(("later", "now"));

const UPDATE: &str = "$hw/events/device/default/lamp/twin/update";
const DATA: &str = "$ke/events/device/default/lamp/data/update";

/// The file that says who they are, and whoever else.
fn users(run: &Run, more: &str) -> Result<PathBuf> {
    let password = run.dir().join("dashboard");
    fs::write(&password, "look here\n")?;
    let password = password.display();
    let file = run.dir().join("users.yaml");
    fs::write(
        &file,
        format!(
            r##"users:
- name: dashboard
  passwordFile: {password}
  subscribe: ["$ke/events/device/#"]
- name: mapper
  password: secret
  subscribe: ["#", "$hw/#"]
  publish: ["$hw/events/device/+/+/twin/update"]
- name: thermostat
  password: warm
  subscribe: ["home/set"]
  publish: ["home/+"]
{more}"##
        ),
    )?;
    Ok(file)
}

fn said(how: &str, value: &str) -> Value {
    json!({"event_id": value, "twin": {"level": {how: {"value": value}}}})
}

/// A device that a mapper drives; its readings are pushed to edgecore's own broker.
async fn lamp(node: &Node, mapper: &mut App) -> Result<()> {
    let model = json!({"properties": [{"name": "level", "type": "INT", "accessMode": "ReadWrite"}]});
    let push = json!({"mqtt": {"address": format!("tcp://127.0.0.1:{}", node.mqtt_port()), "topic": "out/level", "qos": 1}});
    let device = json!({"deviceModelRef": {"name": "lamp"}, "protocol": {"protocolName": "zigbee"},
        "properties": [{"name": "level", "reportCycle": 10, "pushMethod": push}]});
    node.put("DeviceModel", "lamp", &model).await?;
    node.put("Device", "lamp", &device).await?;
    wait::until("the lamp is known", SOON, async || {
        let answer = mapper.ask(UPDATE, &said("actual", "40")).await?;
        ensure!(answer.get("code").is_none(), "{answer}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_user_is_refused() -> Result<()> {
    framed(async |run| {
        let node = Node::start_with_users(run, &users(run, "")?)?;
        for (login, wanted) in [
            (None, NotAuthorized),
            (Some(("mapper", "wrong")), BadUserNamePassword),
            (Some(("mapper", "")), BadUserNamePassword),
            (Some(("nobody", "secret")), BadUserNamePassword),
            (Some(("edgecore", "secret")), BadUserNamePassword),
            (MAPPER, Success),
            (DASHBOARD, Success),
        ] {
            let code = greeting(node.mqtt_port(), login).await?;
            ensure!(code == wanted, "{login:?}: {code:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_does_what_it_may_and_nothing_else() -> Result<()> {
    framed(async |run| {
        let node = Node::start_with_users(run, &users(run, "")?)?;
        let port = node.mqtt_port();
        let mut mapper = App::start_as("mapper", MAPPER, port, &["$hw/events/#", "#"]).await?;
        let mut dashboard = App::start_as("dashboard", DASHBOARD, port, &["$ke/events/device/#"]).await?;
        lamp(&node, &mut mapper).await?;
        dashboard.until(DATA, |data| data["data"]["level"]["value"] == "40").await?;
        for topic in [
            "#",
            "+/events/#",
            "$ke/#",
            "$hw/#",
            UPDATE,
            "$share/all/$hw/#",
            "$ke/events/+/default/lamp/data/update",
        ] {
            ensure!(!dashboard.subscribe(topic).await?, "{topic}");
        }
        for topic in ["$ke/events/device/+/lamp/data/update", "$share/all/$ke/events/device/#", DATA] {
            ensure!(dashboard.subscribe(topic).await?, "{topic}");
        }

        dashboard.say(UPDATE, said("expected", "70").to_string()).await?;
        ensure!(dashboard.subscribe(DATA).await?);
        let answer = mapper.ask(UPDATE, &said("actual", "41")).await?;
        let level = &answer["twin"]["level"];
        ensure!(level["metadata"]["type"] == "int" && level.get("expected").is_none(), "{answer}");
        let answer = mapper.ask(UPDATE, &said("expected", "50")).await?;
        ensure!(answer["twin"]["level"]["expected"]["value"] == "50", "{answer}");
        dashboard.until(DATA, |data| data["data"]["level"]["value"] == "41").await.map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edgecore_gets_in_at_its_own_broker() -> Result<()> {
    framed(async |run| {
        let node = Node::start_with_users(run, &users(run, "")?)?;
        let port = node.mqtt_port();
        let thermostat = App::start_as("thermostat", THERMOSTAT, port, &["home/set"]).await?;
        mqtt::is_read_and_set(thermostat, &node).await?;
        let mut mapper = App::start_as("mapper", MAPPER, port, &["$hw/events/#", "#"]).await?;
        lamp(&node, &mut mapper).await?;
        mapper.until("out/level", |_| true).await.map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_and_go_while_it_runs() -> Result<()> {
    framed(async |run| {
        let later = "- {name: later, password: now}\n";
        let file = users(run, "")?;
        let node = Node::start_with_users(run, &file)?;
        let port = node.mqtt_port();
        ensure!(greeting(port, LATER).await? == BadUserNamePassword);
        users(run, later)?;
        ensure!(greeting(port, LATER).await? == Success);
        fs::write(&file, "users: [")?;
        ensure!(greeting(port, LATER).await? == Success, "it stays as it was");
        ensure!(greeting(port, MAPPER).await? == Success);
        ensure!(greeting(port, None).await? == NotAuthorized);
        users(run, "")?;
        ensure!(greeting(port, LATER).await? == BadUserNamePassword);
        ensure!(greeting(port, MAPPER).await? == Success);
        // A password that is another one now.
        fs::write(run.dir().join("dashboard"), "look there")?;
        ensure!(greeting(port, DASHBOARD).await? == BadUserNamePassword);
        ensure!(greeting(port, Some(("dashboard", "look there"))).await? == Success);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_there_lets_nobody_in() -> Result<()> {
    framed(async |run| {
        let node = Node::start_with_users(run, &run.dir().join("users.yaml"))?;
        let port = node.mqtt_port();
        ensure!(greeting(port, None).await? == NotAuthorized);
        ensure!(greeting(port, MAPPER).await? == BadUserNamePassword);
        users(run, "")?;
        ensure!(greeting(port, MAPPER).await? == Success);
        Ok(())
    })
    .await
}
