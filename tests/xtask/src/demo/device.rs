//! A boiler at the site: seen and set with kubectl, and kept as it was set with the line cut and after a power cut.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{setup, simulator::ModbusSlaves, wait};
use serde_json::Value;

use super::{Demo, edge::Node, story::Story};

const SOON: Duration = Duration::from_secs(30);
const EXAMPLE: &str = include_str!("../../../../examples/boiler.yaml");
const RULE: &str = include_str!("../../../../examples/fan-rule.yaml");
const NAME: &str = "boiler-1";
/// As it comes from the factory: 21.5 degrees, and set to nothing.
const NEW: &[&str] = &["1:input:0=215", "1:holding:0=0"];

/// The registers are those of a simulator, which is a process of its own.
pub(crate) struct Boiler {
    simulator: PathBuf,
    registers: ModbusSlaves,
}

/// `kubectl apply`, and what `kubectl get` says then.
pub(crate) async fn apply(demo: &Demo, story: &mut Story) -> Result<Boiler> {
    let simulator = setup::build_simulator().await?;
    let registers = start(demo, &simulator, "boiler").await?;
    demo.cluster.apply(EXAMPLE).await?;
    let boiler = Boiler { simulator, registers };
    let shown = until(demo, "device", NAME, |status| {
        status["state"] == "online" && reported(status, "temperature") == "21.5"
    });
    let line = |()| format!("device {NAME} (Modbus TCP): kubectl shows it online, at 21.5 degrees");
    story.step("the device being driven", |()| line(()), shown).await?;
    boiler.until_set(60).await?;
    story.checked("what is desired of it, 60 degrees, is in its register")?;
    demo.cluster.apply(RULE).await?;
    let kept = until(demo, "devicerule", "fan", |status| status["active"] == false);
    story
        .step(
            "the rule reaching the site",
            |()| "a rule for it: a fan runs above 30 degrees".to_owned(),
            kept,
        )
        .await?;
    Ok(boiler)
}

impl Boiler {
    /// After the power cut, which it had too, and with no cloud in reach.
    pub(crate) async fn is_set_again(&mut self, demo: &Demo, edge: &Node, story: &mut Story) -> Result<()> {
        self.registers = start(demo, &self.simulator, "boiler-again").await?;
        self.until_set(60).await?;
        self.registers.set(1, "input", 0, &[305]).await?;
        story.checked(
            "the boiler had lost what it was set to: edgecore has set it again; now it has 30.5 degrees",
        )?;
        let keadm = demo.assets.product()?.join("keadm");
        let root = format!("--root-dir={}", edge.root().display());
        let runs = wait::until("the fan", SOON, async || {
            let shown =
                demo.site.output(&keadm, ["ctl", "get", "device", "fan-1", "-o", "wide", &root]).await?;
            ensure!(shown.contains("running=true"), "{shown}");
            anyhow::Ok(())
        });
        story
            .step("the rule", |()| "the rule has fired with no cloud in reach: the fan runs".to_owned(), runs)
            .await
    }

    /// Once the line is back.
    pub(crate) async fn is_known(&self, demo: &Demo, story: &mut Story) -> Result<()> {
        let known = until(demo, "device", NAME, |status| {
            reported(status, "temperature") == "30.5" && reported(status, "setpoint") == "60"
        });
        let line = |()| "kubectl shows what the boiler is now: 30.5 degrees, set to 60".to_owned();
        story.step("the device's status arriving", |()| line(()), known).await?;
        let fired = until(demo, "devicerule", "fan", |status| status["fired"] == 1);
        let line = || "kubectl shows that the rule has fired, once".to_owned();
        story.step("the rule's status arriving", |()| line(), fired).await
    }

    async fn until_set(&self, degrees: u16) -> Result<()> {
        wait::until("the boiler as it is to be", SOON, async || {
            let set = self.registers.get(1, "holding", 0).await?;
            ensure!(set == degrees, "it is set to {set}");
            anyhow::Ok(())
        })
        .await
    }
}

/// Where the example says that it is.
async fn start(demo: &Demo, simulator: &Path, name: &str) -> Result<ModbusSlaves> {
    let command = demo.site.command(simulator, ["modbus", "--listen=127.0.0.1:1502"])?;
    ModbusSlaves::start(&demo.run, command, name, NEW).await
}

async fn until(demo: &Demo, kind: &str, name: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    wait::until(&format!("{kind} {name}"), SOON, async || {
        let object = demo.cluster.kubectl(&["get", kind, name, "--output=json"]).await?;
        let object: Value = serde_json::from_str(&object).context("kubectl prints JSON")?;
        ensure!(holds(&object["status"]), "{}", object["status"]);
        anyhow::Ok(())
    })
    .await
}

fn reported<'a>(status: &'a Value, property: &str) -> &'a str {
    let twins = status["twins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let twin = twins.iter().find(|twin| twin["propertyName"] == property);
    twin.and_then(|twin| twin["reported"]["value"].as_str()).unwrap_or_default()
}
