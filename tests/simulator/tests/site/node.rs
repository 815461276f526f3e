//! An edgecore as far as devices go, with no cloud.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use crds::broker::BrokerAddress;
use edgecore::{
    access::{Access, ExternalBroker, OwnBroker},
    devicetwin::{DeviceTwin, DevicesConfig, Dmi},
    edgehub::HubState,
    eventbus::{BrokerSettings, BrokerTls, BrokerUsers, EventBus, Place, own_login},
    metamanager::{DesiredChange, Options, Store},
};
use harness::{Run, wait};
use proto::{Object, ResourceKey, message::ReportKind};
use runtime::tls::Trust;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Node {
    store: Store,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Of its MQTT broker.
    port: u16,
    // What is not looked at must still not be closed.
    _hub: watch::Sender<HubState>,
}

pub(crate) fn twin<'a>(status: &'a Value, property: &str) -> &'a Value {
    let twins = status["twins"].as_array().map(Vec::as_slice).unwrap_or_default();
    twins.iter().find(|twin| twin["propertyName"] == property).unwrap_or(&Value::Null)
}

pub(crate) fn reported<'a>(status: &'a Value, property: &str) -> &'a str {
    twin(status, property)["reported"]["value"].as_str().unwrap_or_default()
}

fn key(kind: &str, name: &str) -> Result<ResourceKey> {
    let group = if kind == "DeviceRule" { "devices.skerry.io" } else { "devices.kubeedge.io" };
    Ok(ResourceKey::new(&format!("{kind}.{group}"), "default", name)?)
}

impl Node {
    /// On the store of this run.
    pub(crate) fn start(run: &Arc<Run>) -> Result<Self> {
        Self::start_believing(run, Trust::default())
    }

    /// As [`start`](Self::start), where this is whom to believe within TLS.
    pub(crate) fn start_believing(run: &Arc<Run>, trust: Trust) -> Result<Self> {
        Self::start_own(run, Self::broker(run)?, trust)
    }

    /// As [`start`](Self::start), where who may use the broker is in this file.
    pub(crate) fn start_with_users(run: &Arc<Run>, file: &Path) -> Result<Self> {
        let users = BrokerUsers { file: file.to_owned(), own: own_login() };
        let broker = BrokerSettings { users: Some(users), ..Self::broker(run)? };
        Self::start_own(run, broker, Trust::default())
    }

    /// As [`start`](Self::start), where the broker listens within TLS, too.
    pub(crate) fn start_with_tls(run: &Arc<Run>, tls: BrokerTls) -> Result<Self> {
        let broker = BrokerSettings { tls: Some(tls), ..Self::broker(run)? };
        Self::start_own(run, broker, Trust::default())
    }

    /// One that hardly waits for the next client.
    fn broker(run: &Arc<Run>) -> Result<BrokerSettings> {
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let linger = Duration::from_millis(100);
        Ok(BrokerSettings { linger, ..BrokerSettings::open(listen, run.dir().join("mqtt")) })
    }

    fn start_own(run: &Arc<Run>, broker: BrokerSettings, trust: Trust) -> Result<Self> {
        let listen = broker.listen;
        let own = broker.users.as_ref().map(|users| OwnBroker { listen, login: users.own.clone() });
        let access = Access { own, external: None, trust };
        Self::start_at(run, listen.into(), access, Place::Own(broker))
    }

    /// As [`start`](Self::start), with a broker that is there.
    pub(crate) fn start_with_broker(run: &Arc<Run>, broker: ExternalBroker) -> Result<Self> {
        let access = Access { external: Some(broker.clone()), ..Access::default() };
        Self::start_at(run, broker.address.clone(), access, Place::External(broker))
    }

    fn start_at(run: &Arc<Run>, broker: BrokerAddress, access: Access, place: Place) -> Result<Self> {
        let store = Store::open(&run.dir().join("store"), Options::default())?;
        let (hub, state) = watch::channel(HubState::default());
        let port = broker.port;
        let config = DevicesConfig { modbus: None, broker: Some(broker), access };
        let devices = DeviceTwin::new(config, store.clone(), state);
        let bus = EventBus::new(place, "edge-1".to_owned(), devices.devices());
        let dmi = Dmi::new(run.dir().join("dmi.sock"), store.clone(), devices.devices());
        let rules = devices.rules();
        let stop = CancellationToken::new();
        let (devices, bus) = (devices.run(stop.clone()), bus.run(stop.clone()));
        let (dmi, rules) = (dmi.run(stop.clone()), rules.run(stop.clone()));
        #[expect(clippy::disallowed_methods, reason = "the test is its owner")]
        let task = tokio::spawn(async move {
            let (Ok(()), Ok(()), Ok(()), Ok(())) = tokio::join!(devices, bus, dmi, rules);
        });
        Ok(Self { store, stop, task, port, _hub: hub })
    }

    pub(crate) fn mqtt_port(&self) -> u16 {
        self.port
    }

    pub(crate) async fn end(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?;
        self.store.close().await?;
        Ok(())
    }

    pub(crate) async fn put(&self, kind: &str, name: &str, spec: &Value) -> Result<()> {
        let metadata = json!({"name": name, "namespace": "default", "uid": format!("{name}-uid")});
        let object = json!({"metadata": metadata, "spec": spec}).to_string();
        let object = Object::new(key(kind, name)?, 1, object.into());
        self.store.apply(vec![DesiredChange::Put(object)]).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.store.apply(vec![DesiredChange::Delete(key(kind, name)?)]).await?;
        Ok(())
    }

    /// As it was reported last.
    pub(crate) fn status(&self, device: &str) -> Result<Value> {
        self.status_of(&key("Device", device)?)
    }

    fn status_of(&self, key: &ResourceKey) -> Result<Value> {
        let reports = self.store.pending_reports(0, 1000)?;
        let of_device =
            |report: &&proto::Report| report.kind() == ReportKind::DeviceStatus && report.key == key.as_str();
        let report = reports.iter().rfind(of_device).context("nothing was reported")?;
        let report: Value = serde_json::from_slice(&report.payload)?;
        Ok(report["status"].clone())
    }

    pub(crate) async fn until<T>(
        &self,
        device: &str,
        what: &str,
        look: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        wait::until(&format!("{device}: {what}"), SOON, async || {
            let status = self.status(device)?;
            match look(&status) {
                Some(found) => Ok(found),
                None => bail!("{status}"),
            }
        })
        .await
    }

    /// The status of a rule.
    pub(crate) async fn until_rule(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        wait::until(&format!("rule {name}: {what}"), SOON, async || {
            let status = self.status_of(&key("DeviceRule", name)?)?;
            if holds(&status) { Ok(()) } else { bail!("{status}") }
        })
        .await
    }

    /// All that wait to be sent.
    pub(crate) fn events(&self) -> Result<Vec<Value>> {
        let reports = self.store.pending_reports(0, 1000)?;
        let events = reports.iter().filter(|report| report.kind() == ReportKind::Event);
        events.map(|report| Ok(serde_json::from_slice(&report.payload)?)).collect()
    }

    pub(crate) async fn until_reported(&self, device: &str, property: &str, value: &str) -> Result<()> {
        let what = format!("{property} is {value}");
        self.until(device, &what, |status| (reported(status, property) == value).then_some(())).await
    }
}
