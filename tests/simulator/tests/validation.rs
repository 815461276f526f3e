//! What `kubectl apply` refuses of devices and their models, and what it lets through.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{Bench, ClusterOptions, bench, product::Scene, wait};

const SOON: Duration = Duration::from_secs(30);

const PROPERTIES: &str = "
  - {name: pressure, type: FLOAT, accessMode: ReadOnly}
  - {name: speed, type: INT, accessMode: ReadWrite, minimum: '0', maximum: '3000'}
  - {name: running, type: BOOLEAN, accessMode: ReadWrite}";

fn model(name: &str, properties: &str) -> String {
    format!(
        "
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: {name}, namespace: default}}
spec:
  protocol: modbus
  properties: {properties}
"
    )
}

fn device(name: &str, model: &str, property: &str) -> String {
    format!(
        "
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: {name}, namespace: default}}
spec:
  deviceModelRef: {{name: {model}}}
  nodeName: edge-1
  properties: [{property}]
"
    )
}

async fn apply(scene: &Scene, options: &[&str], manifest: &str) -> Result<String> {
    let file = scene.cluster.dir().join("manifest.yaml");
    fs::write(&file, manifest)?;
    let file = format!("--filename={}", file.display());
    scene.cluster.kubectl(&[&["apply", &file], options].concat()).await
}

/// It is refused, for these reasons.
async fn refused(scene: &Scene, options: &[&str], manifest: &str, reasons: &[&str]) -> Result<()> {
    let refused = apply(scene, options, manifest).await.err();
    let refused = refused.with_context(|| format!("it was taken: {manifest}"))?.to_string();
    for reason in reasons.iter().chain(&[r#"admission webhook "devices.skerry.io" denied the request: "#]) {
        ensure!(refused.contains(reason), "{reason} is not in {refused}");
    }
    Ok(())
}

async fn desire(scene: &Scene, device: &str, value: &str) -> Result<String> {
    let patch =
        format!(r#"[{{"op": "replace", "path": "/spec/properties/0/desired/value", "value": "{value}"}}]"#);
    scene.cluster.kubectl(&["patch", "device", device, "--type=json", "-p", &patch]).await
}

#[tokio::test]
async fn what_the_model_tells_to_be_wrong_is_refused() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, _sites) = Scene::start(bench, &ClusterOptions::default(), 1).await?;
        let pumps = model("pump", PROPERTIES);
        wait::until("devices are served", SOON, async || apply(&scene, &[], &pumps).await).await?;
        let noise = device("pump-1", "pump", "{name: noise}");
        let reasons =
            [r#"spec.properties[name="noise"].name: "#, r#"no property "noise", it has pressure, speed, running"#];
        wait::until("devices are looked at", SOON, async || {
            refused(&scene, &["--dry-run=server"], &noise, &reasons).await
        })
        .await?;

        for (property, reasons) in [
            (
                "{name: speed, desired: {value: fast}}",
                [r#"spec.properties[name="speed"].desired.value: "#, r#""fast" is no int"#],
            ),
            (
                "{name: speed, desired: {value: '3001'}}",
                [".desired.value: ", "3001 is more than the model's maximum 3000"],
            ),
            ("{name: pressure, desired: {value: '1'}}", [r#"desired.value: "1" cannot be set"#, "ReadOnly"]),
            (
                "{name: running, visitors: {configData: {register: Registers, offset: 0}}}",
                ["configData.register: ", r#""Registers" is none of CoilRegister"#],
            ),
            (
                "{name: running, desired: {value: 'true'}, visitors: {configData: {register: InputRegister, offset: 0}}}",
                [r#"desired.value: "true" cannot be written"#, "InputRegister can only be read"],
            ),
            (
                "{name: running, visitors: {configData: {register: HoldingRegister, offset: 0, limit: 2}}}",
                ["configData.limit: ", "2 is too many, a BOOLEAN is one register"],
            ),
        ] {
            refused(&scene, &[], &device("pump-1", "pump", property), &reasons).await?;
        }
        for (property, reasons) in [
            (
                "{name: p, type: INT, minimum: '5', maximum: '1'}",
                [r#"spec.properties[name="p"].minimum: "#, "5 is more than the maximum 1"],
            ),
            ("{name: p, type: STRING, maximum: '5'}", [".maximum: ", "a string has no bound"]),
        ] {
            refused(&scene, &[], &model("fan", &format!("[{property}]")), &reasons).await?;
        }
        let left = scene.cluster.kubectl(&["get", "devices,devicemodels", "--output=name"]).await?;
        ensure!(left.trim() == "devicemodel.devices.kubeedge.io/pump", "{left}");

        let good = device("pump-1", "pump", "{name: speed, desired: {value: '1200'}}");
        apply(&scene, &["--warnings-as-errors"], &good).await?;
        // Its model changes, and what was right is wrong.
        apply(&scene, &[], &pumps.replace("3000", "1000")).await?;
        refused(&scene, &[], &good.replace("1200", "1300"), &["1300 is more than the model's maximum 1000"])
            .await?;
        scene.cluster.kubectl(&["label", "device", "pump-1", "site=north"]).await?;
        apply(&scene, &[], &good.replace("edge-1", "edge-2")).await?;
        scene.cluster.kubectl(&["delete", "device", "pump-1"]).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_device_may_be_there_before_its_model() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, _sites) = Scene::start(bench, &ClusterOptions::default(), 1).await?;
        let boiler = device("boiler-1", "boiler", "{name: heat, desired: {value: '95'}}");
        wait::until("kubectl warns", SOON, async || {
            let warned = apply(&scene, &["--dry-run=server", "--warnings-as-errors"], &boiler).await.err();
            let warned = warned.context("no warning")?.to_string();
            let warning =
                "Warning: spec.deviceModelRef.name: there is no DeviceModel boiler in namespace default";
            ensure!(warned.contains(warning), "{warned}");
            anyhow::Ok(())
        })
        .await?;
        apply(&scene, &[], &boiler).await?;
        let heat = "[{name: heat, type: INT, minimum: '20', maximum: '90'}]";
        apply(&scene, &["--warnings-as-errors"], &model("boiler", heat)).await?;
        // It is wrong now, and can be labelled, and put right.
        scene.cluster.kubectl(&["label", "device", "boiler-1", "site=north"]).await?;
        let refused = desire(&scene, "boiler-1", "96").await.err().context("96 was taken")?;
        ensure!(refused.to_string().contains("96 is more than the model's maximum 90"), "{refused}");
        desire(&scene, "boiler-1", "70").await.map(drop)
    })
    .await
}
