//! MQTT for apps at the site: an embedded broker, or one that is there anyway, and KubeEdge's topics of devices on it.
//!
//! What is wanted of devices comes in as messages of clients and is answered one after the other. What devices are is published
//! when it changes, compared with what was published last: a device that changes faster than its subscribers read is told of less often.

mod broker;
mod external;
mod filter;
mod gate;
mod payload;
mod topic;
mod users;

use std::{collections::BTreeSet, collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use crds::broker::{BrokerAddress, authority};
use jiff::Timestamp;
use proto::ResourceKey;
use runtime::{backoff::Backoff, tls::Clock};
use serde_json::{Value as Json, json};
use tokio::{sync::mpsc, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    broker::{Broker, Heard, Publisher},
    external::External,
    payload::{Question, Refusal, StateUpdate, TwinUpdate, Twins},
    topic::{Asked, DeviceId},
};
pub use self::{
    broker::{BrokerSettings, BrokerTls},
    users::{BrokerUsers, own_login},
};
use crate::access::ExternalBroker;
use crate::devicetwin::{Devices, Follower, Member, SetError};

/// Messages of clients that wait to be answered.
const WAITING: usize = 64;
/// Between attempts to listen.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Where apps are to be found.
#[derive(Debug, Clone)]
pub enum Place {
    /// At a broker of edgecore's own.
    Own(BrokerSettings),
    External(ExternalBroker),
}

impl Place {
    /// Has certificates verified at the time of this clock.
    #[must_use]
    pub fn at(mut self, clock: &Arc<Clock>) -> Self {
        match &mut self {
            Self::External(external) => external.trust.clock = Arc::clone(clock),
            Self::Own(BrokerSettings { tls: Some(tls), .. }) => tls.identity.clock = Arc::clone(clock),
            Self::Own(_) => {}
        }
        self
    }

    /// The port at which pods expect it, and where it is. `None`: it is open to them, and to everybody, as it is.
    pub fn door(&self) -> Option<(u16, String)> {
        match self {
            Self::Own(BrokerSettings { listen, .. }) => {
                listen.ip().is_loopback().then(|| (listen.port(), listen.to_string()))
            }
            Self::External(ExternalBroker { address: BrokerAddress { host, port, secure: _ }, .. }) => {
                Some((*port, authority(host, *port)))
            }
        }
    }
}

/// One broker's.
pub struct EventBus {
    place: Place,
    node: String,
    devices: Devices,
    changes: Follower,
    /// What was published last of each device.
    published: HashMap<ResourceKey, Twins>,
    /// Why there is no broker, as it was said last.
    said: Option<String>,
}

impl EventBus {
    pub fn new(place: Place, node: String, devices: Devices) -> Self {
        let changes = devices.follow();
        Self { place, node, devices, changes, published: HashMap::new(), said: None }
    }

    /// Until `stop` is cancelled. A port that is taken, or a broker that is away, is tried again: a node is more than its broker.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while !stop.is_cancelled() {
            let ended = self.once(&mut backoff, &stop).await;
            if let Err(reason) = ended
                && self.said.as_ref() != Some(&reason)
            {
                match &self.place {
                    Place::Own(BrokerSettings { listen, .. }) => warn!(
                        address = %listen, reason,
                        "apps at this site have no MQTT; modules.eventBus.mqttServerInternal may name another address"
                    ),
                    Place::External(ExternalBroker { address, .. }) => {
                        warn!(broker = %address, reason, "the MQTT broker of this site is away");
                    }
                }
                self.said = Some(reason);
            }
            tokio::select! {
                () = time::sleep(backoff.next_delay()) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// As long as the broker, or the connection to it, lasts.
    async fn once(&mut self, backoff: &mut Backoff, stop: &CancellationToken) -> Result<(), String> {
        let (heard, incoming) = mpsc::channel(WAITING);
        let mut running: JoinSet<Result<(), String>> = JoinSet::new();
        let publisher = match &self.place {
            Place::Own(settings) => {
                let broker = Broker::bind(settings, heard)
                    .await
                    .map_err(|error| runtime::chain(&error).to_string())?;
                info!(address = %settings.listen, "serving MQTT");
                let publisher = broker.publisher();
                let stop = stop.clone();
                running.spawn(async move {
                    broker.run(stop).await.map_err(|error| runtime::chain(&error).to_string())
                });
                publisher
            }
            Place::External(broker) => {
                let external = External::connect(broker, &self.node, heard)
                    .await
                    .map_err(|error| runtime::chain(&error).to_string())?;
                info!(broker = %broker.address, "connected to the MQTT broker");
                let publisher = external.publisher();
                let stop = stop.clone();
                running.spawn(async move {
                    let ended = stop.run_until_cancelled(external.run()).await.unwrap_or(Ok(()));
                    ended.map_err(|error| runtime::chain(&error).to_string())
                });
                publisher
            }
        };
        backoff.reset();
        self.said = None;
        self.serve(&publisher, incoming, running, stop).await
    }

    async fn serve(
        &mut self,
        publisher: &Publisher,
        mut incoming: mpsc::Receiver<Heard>,
        mut running: JoinSet<Result<(), String>>,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        // Nobody here has heard of any.
        self.published.clear();
        let all = self.devices.members().into_iter().map(|member| member.key).collect();
        self.publish(all, publisher).await;
        loop {
            // A message, and a change, are still there when another arm wins.
            tokio::select! {
                Some(heard) = incoming.recv() => self.answer(&heard, publisher).await,
                changed = self.changes.changed() => self.publish(changed, publisher).await,
                Some(ended) = running.join_next() => return ended.map_err(|error| error.to_string())?,
                () = stop.cancelled() => break,
            }
        }
        // Whoever waits to be heard is not.
        drop(incoming);
        running.join_next().await.transpose().map_err(|error| error.to_string())?.unwrap_or(Ok(()))
    }

    /// Publishes what has changed.
    async fn publish(&mut self, changed: BTreeSet<ResourceKey>, publisher: &Publisher) {
        let now = unix_ms();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for key in changed {
            let Some(current) = self.devices.twins(&key) else {
                if self.published.remove(&key).is_some() {
                    removed.push(member(&key));
                }
                continue;
            };
            let last = self.published.get(&key);
            if last.is_none() {
                added.push(member(&key));
            }
            let nothing = Twins::new();
            let (last, id) = (last.unwrap_or(&nothing), id(&key));
            for (topic, payload) in [
                (topic::of_device(&id, "twin/update/document"), payload::document(now, last, &current)),
                (topic::of_device(&id, "twin/update/delta"), payload::delta(now, &current)),
                (topic::of_data(&id), payload::data(now, last, &current)),
            ] {
                if let Some(payload) = payload {
                    publisher.publish(topic, &payload).await;
                }
            }
            self.published.insert(key, current);
        }
        if !added.is_empty() || !removed.is_empty() {
            let members =
                json!({"event_id": "", "timestamp": now, "added_devices": added, "removed_devices": removed});
            publisher.publish(topic::of_node(&self.node, "membership/updated"), &members).await;
        }
    }

    async fn answer(&self, heard: &Heard, publisher: &Publisher) {
        let Some(asked) = Asked::of(&heard.topic, &self.node) else { return };
        let (topic, answer) = match asked {
            Asked::MembershipGet => {
                (topic::of_node(&self.node, "membership/get/result"), self.members(&heard.payload))
            }
            Asked::TwinGet(device) => {
                (topic::of_device(&device, "twin/get/result"), self.twins(&device, &heard.payload))
            }
            Asked::TwinUpdate(device) => {
                let answer = self.update(&device, &heard.payload).await;
                (topic::of_device(&device, "twin/update/result"), answer)
            }
            Asked::StateUpdate(device) => {
                (topic::of_device(&device, "state/update/result"), self.state(&device, &heard.payload))
            }
        };
        publisher.publish(topic, &answer).await;
    }

    fn find(&self, device: &DeviceId) -> Result<ResourceKey, Refusal> {
        let found = self.devices.find(device.namespace.as_deref(), &device.name);
        found.ok_or_else(|| SetError::NoDevice { device: device.to_string() }.into())
    }

    fn members(&self, payload: &[u8]) -> Json {
        let Question { event_id } = payload::read(payload).unwrap_or_default();
        let devices: Vec<Json> = self
            .devices
            .members()
            .into_iter()
            .map(|Member { key, state, last_online }| {
                let last_online = last_online.and_then(rfc3339).unwrap_or_default();
                json!({"id": id(&key), "name": key.name(), "state": state, "last_online": last_online})
            })
            .collect();
        json!({"event_id": event_id, "timestamp": unix_ms(), "devices": devices})
    }

    fn twins(&self, device: &DeviceId, payload: &[u8]) -> Json {
        // An app may ask with nothing.
        let Question { event_id } = payload::read(payload).unwrap_or_default();
        let twins = self.find(device).map(|key| self.devices.twins(&key).unwrap_or_default());
        match twins {
            Ok(twins) => payload::twins(&event_id, unix_ms(), &twins),
            Err(refusal) => payload::refused(&event_id, unix_ms(), &refusal),
        }
    }

    async fn update(&self, device: &DeviceId, payload: &[u8]) -> Json {
        let update: TwinUpdate = match payload::read(payload) {
            Ok(update) => update,
            Err(refusal) => return payload::refused("", unix_ms(), &refusal),
        };
        match self.updated(device, &update).await {
            Ok(twins) => payload::twins(&update.event_id, unix_ms(), &twins),
            Err(refusal) => payload::refused(&update.event_id, unix_ms(), &refusal),
        }
    }

    /// Those of its properties that the update names. What comes before one that is refused has been done.
    async fn updated(&self, device: &DeviceId, update: &TwinUpdate) -> Result<Twins, Refusal> {
        let key = self.find(device)?;
        for (property, entry) in &update.twin {
            let entry = entry.as_ref().ok_or_else(|| {
                Refusal::bad(format!("property {property} is the model's, and cannot be removed at the edge"))
            })?;
            if let Some(value) = entry.actual.as_ref().and_then(payload::Said::text) {
                self.devices.report(&key, property, &value)?;
            }
            if let Some(value) = entry.expected.as_ref().and_then(payload::Said::text) {
                self.devices.set(&key, property, &value).await?;
            }
        }
        let mut twins = self.devices.twins(&key).unwrap_or_default();
        twins.retain(|name, _| update.twin.contains_key(&**name));
        Ok(twins)
    }

    fn state(&self, device: &DeviceId, payload: &[u8]) -> Json {
        let update: StateUpdate = match payload::read(payload) {
            Ok(update) => update,
            Err(refusal) => return payload::refused("", unix_ms(), &refusal),
        };
        let now = unix_ms();
        let done = self.find(device).and_then(|key| Ok(self.devices.report_state(&key, &update.state)?));
        match done {
            Ok(()) => {
                let state = update.state.to_lowercase();
                let is_live = matches!(state.as_str(), "online" | "ok");
                let online = if is_live { rfc3339(now).unwrap_or_default() } else { String::new() };
                json!({"event_id": update.event_id, "timestamp": now,
                    "device": {"name": device.name, "state": state, "lastOnlineTime": online}})
            }
            Err(refusal) => payload::refused(&update.event_id, now, &refusal),
        }
    }
}

/// As topics have it.
fn id(key: &ResourceKey) -> String {
    format!("{}/{}", key.namespace(), key.name())
}

fn member(key: &ResourceKey) -> Json {
    json!({"id": id(key), "name": key.name()})
}

fn unix_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

fn rfc3339(at: u64) -> Option<String> {
    let seconds = i64::try_from(at / 1000).ok()?;
    Some(Timestamp::from_second(seconds).ok()?.to_string())
}
