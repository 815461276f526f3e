//! Devices: reads the properties of those that are bound to this node, writes what is desired, and reports what is.
//!
//! The store has the Devices and DeviceModels; for each Device there is one actor, with its twin in the store. All of it works the same
//! with no cloud in reach. A Device that cannot be driven says why in its status.

mod actor;
mod changes;
mod device;
mod dmi;
mod driver;
mod events;
mod external;
mod gathered;
mod handle;
mod kept;
mod metrics;
mod modbus;
mod mqtt;
mod push;
mod rules;
mod simulated;
mod spec;
mod twin;

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use crds::broker::BrokerAddress;
use crds::devices::{
    keys::{DEVICE, MODEL},
    value,
};
use proto::{Object, ResourceKey, Version, message::ReportKind};
use serde_json::json;
use tokio::{
    sync::watch,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    actor::Actor,
    device::Device,
    driver::Driver,
    external::{External, Inbox},
    handle::Known,
    modbus::{Buses, Modbus},
    mqtt::Mqtt,
    push::{Push, Pusher},
    rules::Rules,
    simulated::Virtual,
    spec::{DeviceSpec, RawDevice},
};
pub use self::{
    changes::Follower,
    device::SetError,
    dmi::Dmi,
    handle::{Devices, Member, PropertyView},
    modbus::{BusAddress, SerialLine},
};
use crate::{
    access::Access,
    edgehub::{HubState, next_session},
    metamanager::{Store, StoreError},
};

/// Protocols that edgecore drives itself.
const DRIVEN_HERE: [&str; 3] = ["modbus", "mqtt", "virtual"];
/// When the store could not be read or written, or an actor died.
const RETRY: Duration = Duration::from_secs(2);

pub struct DevicesConfig {
    /// The bus of Modbus devices that name no address.
    pub modbus: Option<BusAddress>,
    /// The broker of MQTT devices that name none, and of rules.
    pub broker: Option<BrokerAddress>,
    pub access: Access,
}

/// Keeps an actor for each device.
pub struct DeviceTwin {
    config: DevicesConfig,
    store: Store,
    hub: watch::Receiver<HubState>,
    buses: Buses,
    devices: HashMap<ResourceKey, Driven>,
    handle: Devices,
    actors: JoinSet<()>,
    push: Push,
    /// Until it runs.
    pusher: Option<Pusher>,
    retry_at: Option<Instant>,
}

struct Driven {
    /// Of the Device and its DeviceModel.
    versions: (Version, Option<Version>),
    /// The DeviceModel that it names.
    model: Option<ResourceKey>,
    /// `None`: it cannot be driven.
    actor: Option<AbortHandle>,
    /// In whose session it was said that it cannot, and what was said.
    undriven: Option<(String, String)>,
}

impl DeviceTwin {
    pub fn new(config: DevicesConfig, store: Store, hub: watch::Receiver<HubState>) -> Self {
        let pusher = Pusher::new(store.clone(), config.access.clone());
        Self {
            config,
            handle: Devices::new(store.clone()),
            push: pusher.push(),
            pusher: Some(pusher),
            store,
            hub,
            buses: Buses::default(),
            devices: HashMap::new(),
            actors: JoinSet::new(),
            retry_at: None,
        }
    }

    /// To be run beside it.
    pub fn rules(&self) -> Rules {
        let DevicesConfig { modbus: _, broker, access } = &self.config;
        Rules::new(self.store.clone(), self.handle.clone(), broker.clone(), access.clone())
    }

    /// For the rest of the process.
    pub fn devices(&self) -> Devices {
        self.handle.clone()
    }

    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut pushing = JoinSet::new();
        if let Some(pusher) = self.pusher.take() {
            pushing.spawn(pusher.run(stop.clone()));
        }
        let mut changes = self.store.desired_changes();
        changes.mark_changed();
        let mut sessions = self.hub.clone();
        let mut session = 0;
        loop {
            let retry_at = self.retry_at;
            // Nothing is lost when another arm wins: the watches stay changed, and what has ended stays in its set.
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = changes.changed() => {
                    changes.mark_unchanged();
                    self.look().await;
                }
                new = next_session(&mut sessions, session) => {
                    session = new;
                    self.say_undriven().await;
                }
                Some(ended) = self.actors.join_next_with_id() => self.bury(ended),
                () = self.buses.ended() => {}
                () = time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.retry_at = None;
                    self.look().await;
                }
            }
        }
        self.actors.shutdown().await;
        // It keeps what waits.
        drop(pushing.join_all().await);
        Ok(())
    }

    /// Compares what is driven with what the store has. A store that cannot be read changes nothing.
    async fn look(&mut self) {
        let versions: BTreeMap<ResourceKey, Version> = match self.store.inventory() {
            Ok(inventory) => {
                inventory.into_iter().filter(|(key, _)| matches!(key.kind(), DEVICE | MODEL)).collect()
            }
            Err(failure) => {
                error!(error = %runtime::chain(&failure), "the devices cannot be read");
                return self.try_again();
            }
        };
        let gone: Vec<ResourceKey> =
            self.devices.keys().filter(|key| !versions.contains_key(*key)).cloned().collect();
        for key in gone {
            self.release(&key).await;
        }
        for (key, version) in versions.iter().filter(|(key, _)| key.kind() == DEVICE) {
            let model_version =
                |model: &Option<ResourceKey>| model.as_ref().and_then(|model| versions.get(model));
            let is_as_it_was = self
                .devices
                .get(key)
                .is_some_and(|device| device.versions == (*version, model_version(&device.model).copied()));
            if !is_as_it_was && let Err(failure) = self.drive(key, *version, &versions).await {
                error!(device = %key, error = %runtime::chain(&failure), "a device cannot be read");
                self.try_again();
            }
        }
        if self.retry_at.is_none() {
            self.handle.note_all_known();
        }
    }

    /// Starts an actor for what the store has of a device, and ends the one before.
    async fn drive(
        &mut self,
        key: &ResourceKey,
        version: Version,
        versions: &BTreeMap<ResourceKey, Version>,
    ) -> Result<(), StoreError> {
        // Gone in between: the next change says so.
        let Some(object) = self.store.get(key)? else { return Ok(()) };
        let mut device = Driven { versions: (version, None), model: None, actor: None, undriven: None };
        let spec = match RawDevice::parse(&object) {
            Ok(raw) => {
                let model = raw.model().and_then(|name| ResourceKey::new(MODEL, key.namespace(), name).ok());
                let of_model: Option<Object> = match &model {
                    Some(model) => self.store.get(model)?,
                    None => None,
                };
                device.versions.1 = model.as_ref().and_then(|model| versions.get(model)).copied();
                device.model = model;
                let uid = raw.uid().to_owned();
                raw.with_model(of_model.as_ref()).map_err(|error| (uid, runtime::chain(&error).to_string()))
            }
            // Not even its uid is known, so that nothing can be reported.
            Err(error) => Err((String::new(), runtime::chain(&error).to_string())),
        };
        match spec {
            Ok(spec) => {
                let uid = spec.uid.to_string();
                match self.start(spec) {
                    Ok((driven, actor)) => {
                        info!(device = %key, "device is driven");
                        self.handle.put(key, Known::Driven(driven));
                        device.actor = Some(actor);
                    }
                    Err(reason) => device.undriven = Some((uid, reason)),
                }
            }
            Err(undriven) => device.undriven = Some(undriven),
        }
        if let Some((_, reason)) = &device.undriven {
            warn!(device = %key, reason, "device cannot be driven");
            self.handle.put(key, Known::Undriven(reason.clone()));
        }
        // After the new one has its bus, which stays open so.
        if let Some(before) = self.devices.insert(key.clone(), device).and_then(|device| device.actor) {
            before.abort();
        }
        self.say_undriven_of(key).await;
        Ok(())
    }

    fn start(&mut self, spec: DeviceSpec) -> Result<(Arc<Device>, AbortHandle), String> {
        let before = match self.handle.known().get(&spec.key) {
            Some(Known::Driven(before)) if before.is_as(&spec) => Some(Arc::clone(before)),
            _ => None,
        };
        let before = before.as_deref();
        match &*spec.protocol {
            "modbus" => {
                let (driver, unread) = Modbus::new(&spec, &mut self.buses, self.config.modbus.as_ref())?;
                Ok(self.spawn(spec.taken(), driver, unread, None, before))
            }
            "mqtt" => {
                let (driver, unread) = Mqtt::new(&spec, self.config.broker.as_ref(), &self.config.access)?;
                Ok(self.spawn(spec.taken(), driver, unread, None, before))
            }
            // KubeEdge's example of a mapper calls it the latter.
            "virtual" | "virtualprotocol" => {
                let driver = Virtual::new(&spec)?;
                Ok(self.spawn(spec.taken(), driver, Vec::new(), None, before))
            }
            _ => {
                let inbox = before.and_then(Device::shared_inbox).unwrap_or_default();
                let driver = External::new(inbox.clone(), &spec);
                Ok(self.spawn(spec, driver, Vec::new(), Some(inbox), before))
            }
        }
    }

    fn spawn(
        &mut self,
        spec: DeviceSpec,
        driver: impl Driver,
        unread: Vec<(usize, String)>,
        inbox: Option<Inbox>,
        before: Option<&Device>,
    ) -> (Arc<Device>, AbortHandle) {
        let unread = unread.into_iter().map(|(at, reason)| (spec.properties[at].name.clone(), reason));
        let refused = spec.refused.iter().cloned().chain(unread).collect();
        let device =
            Arc::new(Device::new(spec, refused, inbox, before, (self.handle.changes(), &self.store)));
        let actor =
            Actor::new(Arc::clone(&device), driver, self.store.clone(), self.hub.clone(), self.push.clone());
        (device, self.actors.spawn(actor.run()))
    }

    /// The device is no longer this node's.
    async fn release(&mut self, key: &ResourceKey) {
        let Some(device) = self.devices.remove(key) else { return };
        if let Some(actor) = device.actor {
            actor.abort();
        }
        self.handle.remove(key);
        info!(device = %key, "device is released");
        if let Err(failure) = kept::forget(key, &self.store).await {
            // It is a few bytes, and a device of that name with another uid begins anew.
            warn!(device = %key, error = %runtime::chain(&failure), "the twin of a device that is gone stays");
        }
    }

    async fn say_undriven(&mut self) {
        let undriven: Vec<ResourceKey> = self
            .devices
            .iter()
            .filter(|(_, device)| device.undriven.is_some())
            .map(|(key, _)| key.clone())
            .collect();
        for key in undriven {
            self.say_undriven_of(&key).await;
        }
    }

    async fn say_undriven_of(&mut self, key: &ResourceKey) {
        let Some((uid, reason)) = self.devices.get(key).and_then(|device| device.undriven.as_ref()) else {
            return;
        };
        if uid.is_empty() {
            return;
        }
        let payload = json!({"uid": uid, "status": twin::undriven(reason)}).to_string();
        if let Err(failure) =
            self.store.report_in_memory(ReportKind::DeviceStatus, key, Bytes::from(payload)).await
        {
            warn!(device = %key, error = %runtime::chain(&failure), "that a device cannot be driven is not kept yet");
            // To be looked at as if it were new.
            self.devices.remove(key);
            self.try_again();
        }
    }

    /// An actor ends when it is aborted; one that panicked is started again, and not at once.
    fn bury(&mut self, ended: Result<(Id, ()), JoinError>) {
        let Err(failure) = ended else { return };
        if failure.is_cancelled() {
            return;
        }
        let id = failure.id();
        error!(error = %failure, "the actor of a device died; another follows");
        self.devices.retain(|_, device| device.actor.as_ref().is_none_or(|actor| actor.id() != id));
        self.try_again();
    }

    fn try_again(&mut self) {
        self.retry_at = Some(Instant::now() + RETRY);
    }
}
