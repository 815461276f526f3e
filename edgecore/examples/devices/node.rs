//! An edgecore as far as devices go, with no cloud.

use std::{convert::Infallible, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, bail};
use edgecore::{
    access::Access,
    devicetwin::{DeviceTwin, Devices, DevicesConfig},
    edgehub::HubState,
    eventbus::{BrokerSettings, EventBus, Place},
    metamanager::{DesiredChange, Options, Store},
};
use proto::{Object, ResourceKey};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "default";

pub(crate) struct Node {
    pub(crate) store: Store,
    pub(crate) devices: Devices,
    tasks: JoinSet<Result<(), Infallible>>,
    // What is not looked at must still not be closed.
    _hub: watch::Sender<HubState>,
}

pub(crate) async fn run(dir: &Path, broker: SocketAddr, manifests: &Path) -> Result<()> {
    let manifests: Vec<Value> = serde_json::from_slice(&fs::read(manifests)?)?;
    Node::start(dir, broker, &manifests).await?.until_killed().await
}

impl Node {
    pub(crate) async fn start(dir: &Path, broker: SocketAddr, manifests: &[Value]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let store = Store::open(&dir.join("store"), Options::default())?;
        let (hub, state) = watch::channel(HubState::default());
        let config = DevicesConfig { modbus: None, broker: Some(broker.into()), access: Access::default() };
        let twin = DeviceTwin::new(config, store.clone(), state);
        let devices = twin.devices();
        let settings = BrokerSettings::open(broker, dir.join("mqtt"));
        let bus = EventBus::new(Place::Own(settings), "edge-1".to_owned(), devices.clone());
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(twin.run(stop.clone()));
        tasks.spawn(bus.run(stop));
        let changes = manifests.iter().map(wanted).collect::<Result<Vec<_>>>()?;
        if !changes.is_empty() {
            store.apply(changes).await?;
        }
        Ok(Self { store, devices, tasks, _hub: hub })
    }

    async fn until_killed(mut self) -> Result<()> {
        let ended = self.tasks.join_next().await;
        bail!("a part of the node has ended: {ended:?}")
    }
}

pub(crate) fn key(kind: &str, name: &str) -> Result<ResourceKey> {
    Ok(ResourceKey::new(&format!("{kind}.devices.kubeedge.io"), NAMESPACE, name)?)
}

/// As the cloud would have sent it.
fn wanted(manifest: &Value) -> Result<DesiredChange> {
    let kind = manifest["kind"].as_str().context("a manifest has a kind")?;
    let name = manifest["metadata"]["name"].as_str().context("a manifest has a name")?;
    let metadata = json!({"name": name, "namespace": NAMESPACE, "uid": format!("{name}-uid")});
    let object = json!({"metadata": metadata, "spec": manifest["spec"]}).to_string();
    Ok(DesiredChange::Put(Object::new(key(kind, name)?, 1, object.into())))
}
