//! Devices under everything at once, at random: values that change, wishes from the cloud and from the site, lines that are cut, devices
//! that are reset or go silent, kills of edgecore. In the end what is reported is what the devices hold, and what was wished last is there.
//!
//! Driven from a seed, which a failure tells; `SKERRY_SEED` sets it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, ClusterOptions, LineCut, Site, bench,
    process::kill9,
    product::{Edge, Scene},
    random::Random,
    simulator::ModbusSlaves,
    wait,
};
use jiff::Timestamp;
use serde_json::{Value, json};

const STEPS: u64 = 120;
const DEVICES: u8 = 4;
/// Of each device: so many that are measured, and as many that are set.
const REGISTERS: u16 = 3;
const SOON: Duration = Duration::from_mins(1);

struct Soak<'a> {
    bench: &'a Bench,
    scene: Scene,
    site: Site,
    edge: Edge,
    slaves: ModbusSlaves,
    random: Random,
    is_cut: bool,
    /// What was wished last of each: unit and register.
    wished: Vec<((u8, u16), u16)>,
    /// When something was wished last: the API server's times are whole seconds, and the later wish counts.
    wished_at: Timestamp,
}

#[tokio::test]
async fn devices_are_what_they_say_and_do_what_was_said_last() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, mut sites) = Scene::start(bench, &ClusterOptions::default(), 1).await?;
        let site = sites.pop().context("there is a site")?;
        let edge = scene.join(bench, &site, "edge-1").await?;
        scene.until_ready("edge-1").await?;
        let program = Path::new(env!("CARGO_BIN_EXE_simulator"));
        let simulator = site.command(program, ["modbus", "--listen=127.0.0.1:1502"])?;
        let registers: Vec<String> = (1..=DEVICES)
            .flat_map(|unit| [format!("{unit}:input:0=0,0,0"), format!("{unit}:holding:0=0,0,0")])
            .collect();
        let registers: Vec<&str> = registers.iter().map(String::as_str).collect();
        let slaves = ModbusSlaves::start(&bench.run, simulator, "devices", &registers).await?;
        scene.cluster.apply(&model().to_string()).await?;
        for unit in 1..=DEVICES {
            scene.cluster.apply(&device(unit).to_string()).await?;
        }
        let random = Random::seeded("soak")?;
        let mut soak = Soak {
            bench,
            scene,
            site,
            edge,
            slaves,
            random,
            is_cut: false,
            wished: Vec::new(),
            wished_at: Timestamp::UNIX_EPOCH,
        };
        for step in 0..STEPS {
            soak.step(step).await.with_context(|| format!("step {step}"))?;
        }
        soak.end().await
    })
    .await
}

fn model() -> Value {
    let property = |name: String, access: &str| json!({"name": name, "type": "INT", "accessMode": access});
    let properties: Vec<Value> = (0..REGISTERS)
        .flat_map(|at| [property(format!("is{at}"), "ReadOnly"), property(format!("set{at}"), "ReadWrite")])
        .collect();
    json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
        "metadata": {"name": "machine", "namespace": "default"},
        "spec": {"protocol": "modbus", "properties": properties}})
}

fn name(unit: u8) -> String {
    format!("machine-{unit}")
}

/// Set from the cloud and at the site. Only one of its registers is: the cloud's time is that of the last write to the Device,
/// whichever property that was for.
fn is_contested(unit: u8) -> bool {
    unit % 2 == 1
}

fn device(unit: u8) -> Value {
    let property = |name: String, register: &str, offset: u16| {
        json!({"name": name, "collectCycle": 100, "reportCycle": 200, "visitors": {"protocolName": "modbus",
            "configData": {"register": register, "offset": offset}}})
    };
    let properties: Vec<Value> = (0..REGISTERS)
        .flat_map(|at| {
            [
                property(format!("is{at}"), "InputRegister", at),
                property(format!("set{at}"), "HoldingRegister", at),
            ]
        })
        .collect();
    json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"name": name(unit), "namespace": "default"},
        "spec": {"deviceModelRef": {"name": "machine"}, "nodeName": "edge-1",
            "protocol": {"protocolName": "modbus", "configData": {
                "ip": "127.0.0.1", "port": 1502, "slaveID": unit, "collectTimeout": 200}},
            "properties": properties}})
}

impl Soak<'_> {
    async fn step(&mut self, step: u64) -> Result<()> {
        let unit = u8::try_from(1 + self.random.below(DEVICES.into()))?;
        let register = u16::try_from(self.random.below(REGISTERS.into()))?;
        // Never twice the same, so that the last one is known by its value.
        let value = u16::try_from(1 + step + self.random.below(100) * 500)?;
        match self.random.below(100) {
            0..40 => self.slaves.set(unit, "input", register, &[value]).await,
            40..55 => {
                let register = if is_contested(unit) { 0 } else { register };
                self.until_another_second().await?;
                let patch = json!([{"op": "add", "path": format!("/spec/properties/{}/desired", 2 * register + 1),
                    "value": {"value": value.to_string()}}]);
                let arguments = ["patch", "device", &name(unit), "--type=json", "-p", &patch.to_string()]
                    .map(str::to_owned);
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                self.scene.cluster.kubectl(&arguments).await?;
                self.wish(unit, register, value);
                Ok(())
            }
            55..70 => {
                // A device that was reset, or was set by hand.
                self.slaves.set(unit, "holding", register, &[0]).await
            }
            70..80 => {
                let fault = ["silence", "wrongUnit", "reset"][usize::try_from(self.random.below(3))?];
                self.slaves.misbehave_as(unit, json!(fault), 1 + self.random.below(5)).await
            }
            80..92 => {
                self.is_cut = !self.is_cut;
                if self.is_cut { self.site.cut(LineCut::Silent) } else { self.site.restore() }
            }
            92..97 => {
                let old = self.edge.pid()?;
                kill9(old)?;
                self.edge.come_back(old).await.map(drop)
            }
            _ => self.set_here((unit - 1) | 1, 0, value).await,
        }
    }

    /// With what there is at the site, which does not need the cloud.
    async fn set_here(&mut self, unit: u8, register: u16, value: u16) -> Result<()> {
        ensure!(is_contested(unit));
        self.until_another_second().await?;
        let root = format!("--root-dir={}", self.edge.root().display());
        let keadm = self.bench.assets.product()?.join("keadm");
        let (device, order) = (name(unit), format!("set{register}={value}"));
        wait::until("it is set at the site", SOON, async || {
            let set = ["ctl", "set", "device", &device, &order, &root];
            self.site.output(&keadm, set).await
        })
        .await?;
        self.wish(unit, register, value);
        Ok(())
    }

    async fn until_another_second(&self) -> Result<()> {
        wait::until("the next second", SOON, async || {
            let now = Timestamp::now();
            ensure!(now.as_second() > self.wished_at.as_second(), "{now}");
            anyhow::Ok(())
        })
        .await
    }

    fn wish(&mut self, unit: u8, register: u16, value: u16) {
        self.wished.retain(|(of, _)| *of != (unit, register));
        self.wished.push(((unit, register), value));
        self.wished_at = Timestamp::now();
    }

    async fn end(mut self) -> Result<()> {
        if self.is_cut {
            self.site.restore()?;
        }
        for unit in 1..=DEVICES {
            self.slaves.misbehave_as(unit, json!("silence"), 0).await?;
        }
        wait::until("what was wished is there", SOON, async || {
            for ((unit, register), value) in &self.wished {
                let there = self.slaves.get(*unit, "holding", *register).await?;
                ensure!(there == *value, "set{register} of {unit}: {value} was wished, {there} is there");
            }
            anyhow::Ok(())
        })
        .await?;
        wait::until("what is reported is true", SOON, async || {
            for unit in 1..=DEVICES {
                self.is_true(unit).await?;
            }
            anyhow::Ok(())
        })
        .await
    }

    async fn is_true(&self, unit: u8) -> Result<()> {
        let device = self.scene.cluster.kubectl(&["get", "device", &name(unit), "-o", "json"]).await?;
        let device: Value = serde_json::from_str(&device)?;
        let status = &device["status"];
        ensure!(status["state"] == "online", "{status}");
        for register in 0..REGISTERS {
            for (property, table) in
                [(format!("is{register}"), "input"), (format!("set{register}"), "holding")]
            {
                let held = self.slaves.get(unit, table, register).await?.to_string();
                let twins = status["twins"].as_array().map(Vec::as_slice).unwrap_or_default();
                let twin = twins.iter().find(|twin| twin["propertyName"] == *property);
                let reported = twin.and_then(|twin| twin["reported"]["value"].as_str()).unwrap_or_default();
                ensure!(reported == held, "{property} of {unit} is {held}, and {reported:?} is reported");
            }
        }
        Ok(())
    }
}
