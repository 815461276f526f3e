//! A device as its operator sees it: applied with kubectl, read with kubectl, set with kubectl, and all of it goes on with the line cut.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    Bench, ClusterOptions, LineCut, bench,
    process::kill9,
    product::{Edge, Scene},
    setup::BUSYBOX,
    simulator::ModbusSlaves,
    wait,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

const MODEL: &str = "
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: pump, namespace: default}
spec:
  protocol: modbus
  properties:
  - {name: pressure, type: FLOAT, accessMode: ReadOnly, unit: bar}
  - {name: speed, type: INT, accessMode: ReadWrite, minimum: '0', maximum: '3000'}
";

fn device(port: u16) -> String {
    format!(
        "
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: pump-1, namespace: default}}
spec:
  deviceModelRef: {{name: pump}}
  nodeName: edge-1
  protocol:
    protocolName: modbus
    configData: {{ip: 127.0.0.1, port: {port}, slaveID: 1}}
  properties:
  - name: pressure
    collectCycle: 200
    reportCycle: 200
    visitors: {{protocolName: modbus, configData: {{register: InputRegister, offset: 0, scale: 0.01}}}}
  - name: speed
    collectCycle: 200
    reportCycle: 200
    visitors: {{protocolName: modbus, configData: {{register: HoldingRegister, offset: 0}}}}
"
    )
}

/// A pod that sends CONNECT to `mqtt://pump-1:1883` until it is answered with CONNACK.
fn app() -> String {
    let connect = r"\020\015\000\004MQTT\004\002\000\074\000\001a";
    let says = format!(
        "until (printf '{connect}'; sleep 2) | nc pump-1 1883 | od -An -tx1 | grep '20 02 00 00'; do sleep 1; done"
    );
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: app, namespace: default}}
spec:
  nodeName: edge-1
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: {BUSYBOX}
    command: [sh, -c, {says:?}]
"
    )
}

/// Manifests as there are many.
const OLDER: &str = include_str!("../../../examples/temperature-sensor.yaml");

#[tokio::test]
async fn manifests_of_v1alpha2_are_taken_as_they_are() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, mut sites) = Scene::start(bench, &ClusterOptions::default(), 1).await?;
        let site = sites.pop().context("there is a site")?;
        let simulator =
            site.command(Path::new(env!("CARGO_BIN_EXE_simulator")), ["modbus", "--listen=127.0.0.1:0"])?;
        let slaves =
            ModbusSlaves::start(&bench.run, simulator, "sensor", &["1:coil:2=1,0", "1:discrete:3=1"]).await?;
        let port = format!("modules.deviceTwin.modbus.port={}", slaves.port()?);
        let settings = ["modules.deviceTwin.modbus.ip=127.0.0.1", &*port];
        Edge::join(&bench.assets, &scene.cloud, &site, "edge-node-1", &settings).await?;
        scene.until_ready("edge-node-1").await?;
        wait::until("v1alpha2 is served", SOON, async || scene.cluster.apply(OLDER).await).await?;

        let name = "temperature-sensor-01";
        wait::until("it is read", SOON, async || {
            let read = older(&scene, "devices", name).await?;
            let twins = read["status"]["twins"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is_read = twins.iter().any(|twin| twin["reported"]["value"] == "1");
            if is_read { Ok(()) } else { bail!("{}", read["status"]) }
        })
        .await?;
        let written: Vec<Value> = OLDER.split("---").map(serde_saphyr::from_str).collect::<Result<_, _>>()?;
        for (kind, name, written) in
            [("devicemodels", "temperature-sensor", &written[0]), ("devices", name, &written[1])]
        {
            let read = older(&scene, kind, name).await?;
            ensure!(
                is_same(&read["spec"], &written["spec"]),
                "{} was written, {} is read",
                written["spec"],
                read["spec"]
            );
        }
        let table = scene.cluster.kubectl(&["get", "device", name]).await?;
        ensure!(["edge-node-1", "modbus", "online"].iter().all(|text| table.contains(text)), "{table}");

        // What is desired is where v1alpha2 has it.
        let patch = r#"[{"op": "add", "path": "/status/twins/1/desired", "value": {"value": "true"}}]"#;
        let kind = "devices.v1alpha2.devices.kubeedge.io";
        let patch = ["patch", kind, name, "--type=json", "-p", patch];
        wait::until("it is refused, in a register that can only be read", SOON, async || {
            let dry_run = [&patch[..], &["--dry-run=server"]].concat();
            let refused = scene.cluster.kubectl(&dry_run).await.err().context("it was taken")?;
            ensure!(refused.to_string().contains("DiscreteInputRegister can only be read"), "{refused}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let settable = OLDER.replace("DiscreteInputRegister", "CoilRegister");
        scene.cluster.apply(&settable).await?;
        scene.cluster.kubectl(&patch).await?;
        let path = "jsonpath={.spec.properties[1].desired.value}";
        let desired = scene.cluster.kubectl(&["get", "device", name, "-o", path]).await?;
        ensure!(desired == "true", "{desired}");
        scene.cluster.apply(&settable).await.map(drop)
    })
    .await
}

/// Whether it says the same: a number may be written in several ways.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(name, one)| other.get(name).is_some_and(|other| is_same(one, other));
            one.len() == other.len() && one.iter().all(same)
        }
        _ => one == other,
    }
}

fn unix_seconds() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

async fn older(scene: &Scene, kind: &str, name: &str) -> Result<Value> {
    let kind = format!("{kind}.v1alpha2.devices.kubeedge.io");
    Ok(serde_json::from_str(&scene.cluster.kubectl(&["get", &kind, name, "-o", "json"]).await?)?)
}

#[tokio::test]
async fn a_device_is_read_and_set_with_kubectl() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, mut sites) = Scene::start(bench, &ClusterOptions::default(), 1).await?;
        let mut site = sites.pop().context("there is a site")?;
        let edge = scene.join(bench, &site, "edge-1").await?;
        scene.until_ready("edge-1").await?;
        let simulator =
            site.command(Path::new(env!("CARGO_BIN_EXE_simulator")), ["modbus", "--listen=127.0.0.1:0"])?;
        let slaves =
            ModbusSlaves::start(&bench.run, simulator, "pump", &["1:input:0=250", "1:holding:0=900"]).await?;

        let phase = async |wanted: &str| {
            let phase = ["get", "pod", "app", "-o", "jsonpath={.status.phase}"];
            let phase = scene.cluster.kubectl(&phase).await?;
            ensure!(phase == wanted, "{phase}");
            Ok::<_, anyhow::Error>(())
        };
        scene.cluster.apply(&app()).await?;
        wait::until("the pod runs", SOON, async || phase("Running").await).await?;
        scene.cluster.apply(MODEL).await?;
        scene.cluster.apply(&device(slaves.port()?)).await?;
        until(&scene, "devices", "online", |status| status["state"] == "online").await?;
        until_reported(&scene, "pressure", "2.5").await?;
        let field = "device.spec.properties.reportCycle";
        let explained = scene.cluster.kubectl(&["explain", field]).await?;
        let text = explained.split_once("DESCRIPTION:").map(|(_, text)| text.trim()).unwrap_or_default();
        ensure!(!text.is_empty() && !text.starts_with("<empty>"), "{explained}");
        let table = scene.cluster.kubectl(&["get", "devices"]).await?;
        ensure!(["pump-1", "edge-1", "modbus", "online"].iter().all(|text| table.contains(text)), "{table}");
        let owner = scene
            .cluster
            .kubectl(&["get", "devicestatus", "pump-1", "-o", "jsonpath={.metadata.ownerReferences[0].kind}"])
            .await?;
        ensure!(owner == "Device", "{owner}");

        // A pod that was there before the device finds the broker under its name.
        wait::until("the pod has spoken MQTT", SOON, async || phase("Succeeded").await).await?;

        set_speed(&scene, "1200").await?;
        until_reported(&scene, "speed", "1200").await?;
        ensure!(slaves.get(1, "holding", 0).await? == 1200);

        site.cut(LineCut::Silent)?;
        set_speed(&scene, "1500").await?;
        let said = unix_seconds()?;
        slaves.set(1, "input", 0, &[300]).await?;
        let old = edge.pid()?;
        kill9(old)?;
        edge.come_back(old).await?;
        slaves.set(1, "input", 0, &[310]).await?;
        // It is driven with no cloud, and what was set before the cut is as it was.
        slaves.set(1, "holding", 0, &[0]).await?;
        wait::until("the pump is set again, with the line cut", SOON, async || {
            let speed = slaves.get(1, "holding", 0).await?;
            ensure!(speed == 1200, "{speed}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        // Somebody at the site looks at it, and sets it, with no cloud in reach.
        let root = format!("--root-dir={}", edge.root().display());
        let ctl = async |args: &[&str]| {
            site.output(bench.assets.product()?.join("keadm"), [&["ctl"], args, &[root.as_str()]].concat())
                .await
        };
        let table = ctl(&["get", "device", "-o", "wide"]).await?;
        ensure!(table.contains("pump-1") && table.contains("speed=1200"), "{table}");
        // The API server tells when by the second; within one the cloud's word counts.
        wait::until("the next second", SOON, async || {
            let now = unix_seconds()?;
            ensure!(now > said, "{now}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        ctl(&["set", "device", "pump-1", "speed=800"]).await?;
        wait::until("the pump does as the site says", SOON, async || {
            let speed = slaves.get(1, "holding", 0).await?;
            ensure!(speed == 800, "{speed}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let refused = ctl(&["set", "device", "pump-1", "speed=3001"]).await;
        let refused = refused.err().context("more than the model's maximum was taken")?.to_string();
        ensure!(refused.contains("3001 is more than the model's maximum 3000"), "{refused}");
        site.restore()?;
        until_reported(&scene, "pressure", "3.1").await?;
        // What was set at the site is newer than what was said in the cloud meanwhile; what is said there now is newer still.
        until_reported(&scene, "speed", "800").await?;
        until(&scene, "devices", "it says so", |status| {
            let speed = status["twins"]
                .as_array()
                .and_then(|twins| twins.iter().find(|twin| twin["propertyName"] == "speed"));
            speed.is_some_and(|speed| speed["observedDesired"]["metadata"]["overrides"] == "1500")
        })
        .await?;
        set_speed(&scene, "1600").await?;
        until_reported(&scene, "speed", "1600").await?;
        ensure!(slaves.get(1, "holding", 0).await? == 1600);

        slaves.misbehave(Value::from("silence"), u64::MAX).await?;
        until(&scene, "devices", "offline", |status| status["state"] == "offline").await?;
        slaves.misbehave(Value::from("silence"), 0).await?;
        until(&scene, "devices", "online again", |status| status["state"] == "online").await?;
        wait::until("events tell of it", SOON, async || {
            let told = scene.cluster.kubectl(&["describe", "device", "pump-1"]).await?;
            ensure!(told.contains("DeviceOffline") && told.contains("DeviceOnline"), "{told}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;

        scene.cluster.kubectl(&["delete", "device", "pump-1"]).await?;
        wait::until("its status went with it", SOON, async || {
            let left = scene.cluster.kubectl(&["get", "devicestatuses", "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok::<_, anyhow::Error>(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_device_moves_once_its_node_has_let_it_go() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, mut sites) = Scene::start(bench, &ClusterOptions::default(), 2).await?;
        let mut slaves = Vec::new();
        for (number, site) in sites.iter().enumerate() {
            let node = format!("edge-{}", number + 1);
            scene.join(bench, site, &node).await?;
            scene.until_ready(&node).await?;
            // Each site has one of its own, at the same address.
            let program = Path::new(env!("CARGO_BIN_EXE_simulator"));
            let simulator = site.command(program, ["modbus", "--listen=127.0.0.1:1502"])?;
            let registers = ["1:input:0=250", "1:holding:0=900"];
            slaves.push(ModbusSlaves::start(&bench.run, simulator, &node, &registers).await?);
        }
        scene.cluster.apply(MODEL).await?;
        scene.cluster.apply(&device(1502)).await?;
        until(&scene, "devices", "online", |status| status["state"] == "online").await?;
        until_holder(&scene, "edge-1").await?;

        sites[0].cut(LineCut::Silent)?;
        let patch = r#"{"spec": {"nodeName": "edge-2"}}"#;
        scene.cluster.kubectl(&["patch", "device", "pump-1", "--type=merge", "-p", patch]).await?;
        wait::holds("the other node leaves it alone", Duration::from_secs(3), async || {
            let asked = slaves[1].asked().await?;
            ensure!(asked.is_empty(), "{} requests", asked.len());
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        until_holder(&scene, "edge-1").await?;
        ensure!(!slaves[0].asked().await?.is_empty(), "its node drives it on");
        sites[0].restore()?;
        until_holder(&scene, "edge-2").await?;
        wait::until("the other node drives it", SOON, async || {
            let asked = slaves[1].asked().await?;
            ensure!(!asked.is_empty(), "no requests");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        slaves[0].asked().await?;
        wait::holds("the first node leaves it alone", Duration::from_secs(1), async || {
            let asked = slaves[0].asked().await?;
            ensure!(asked.is_empty(), "{} requests", asked.len());
            Ok::<_, anyhow::Error>(())
        })
        .await?;

        // A selector of v1alpha2 that names no node waits for one that fits.
        scene.cluster.kubectl(&["delete", "device", "pump-1"]).await?;
        let selected = r#"[{"op": "add", "path": "/spec/nodeSelector", "value":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "site", "operator": "In", "values": ["north"]}]}]}}]"#;
        scene.cluster.apply(&device(1502).replace("nodeName: edge-1", "nodeName: ''")).await?;
        let older = "devices.v1alpha2.devices.kubeedge.io";
        wait::until("v1alpha2 is served", SOON, async || {
            scene.cluster.kubectl(&["patch", older, "pump-1", "--type=json", "-p", selected]).await
        })
        .await?;
        scene.cluster.kubectl(&["label", "node", "edge-1", "site=north"]).await?;
        until_holder(&scene, "edge-1").await?;
        until(&scene, "devices", "online there", |status| status["state"] == "online").await
    })
    .await
}

async fn until_holder(scene: &Scene, node: &str) -> Result<()> {
    wait::until(&format!("{node} has the device"), SOON, async || {
        let path = r"jsonpath={.metadata.annotations.devices\.skerry\.io/holder}";
        let holder = scene.cluster.kubectl(&["get", "device", "pump-1", "-o", path]).await?;
        ensure!(holder == node, "{holder:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

async fn set_speed(scene: &Scene, speed: &str) -> Result<()> {
    let patch = format!(
        r#"[{{"op": "add", "path": "/spec/properties/1/desired", "value": {{"value": "{speed}"}}}}]"#
    );
    scene.cluster.kubectl(&["patch", "device", "pump-1", "--type=json", "-p", &patch]).await.map(drop)
}

async fn until(scene: &Scene, kind: &str, what: &str, look: impl Fn(&Value) -> bool) -> Result<()> {
    wait::until(&format!("{kind}: {what}"), SOON, async || {
        let text = scene.cluster.kubectl(&["get", kind, "pump-1", "-o", "json"]).await?;
        let object: Value = serde_json::from_str(&text)?;
        if look(&object["status"]) { Ok(()) } else { bail!("{}", object["status"]) }
    })
    .await
}

/// In the status of the Device, and in the DeviceStatus.
async fn until_reported(scene: &Scene, property: &str, value: &str) -> Result<()> {
    let reported = |status: &Value| {
        let twins = status["twins"].as_array().map(Vec::as_slice).unwrap_or_default();
        twins.iter().any(|twin| twin["propertyName"] == property && twin["reported"]["value"] == value)
    };
    for kind in ["devices", "devicestatuses"] {
        until(scene, kind, &format!("{property} is {value}"), reported).await?;
    }
    Ok(())
}
