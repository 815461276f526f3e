//! KubeEdge's device management interface: mappers, which are programs of others at the site, register here with a protocol, are
//! given the devices of it, and report what these are.
//!
//! Level-triggered: what a mapper was told last is compared with what it should know, whatever has changed. A mapper that is away is told
//! when it is back; who has registered outlasts a restart of edgecore.

mod mapper;
mod message;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proto::{ResourceKey, dmi::v1beta1 as api};
use runtime::backoff::Backoff;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{mapper::Told, server::Manager};
use super::Devices;
use crate::metamanager::{Store, StoreError};

/// Between attempts to tell a mapper something.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// Under which the store keeps who has registered, by protocol.
const PREFIX: &str = "mapper/";
/// Under which it keeps what devices they were told of.
const TOLD_PREFIX: &str = "mapper-told/";
/// Far more than any site has protocols.
const MOST_MAPPERS: usize = 64;

/// A program that drives the devices of a protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mapper {
    name: String,
    version: String,
    /// Of its socket.
    address: PathBuf,
    /// Grows with each registration: a mapper that starts anew knows of nothing.
    #[serde(default)]
    number: u64,
}

/// Who has registered, by protocol, in lower case.
#[derive(Clone)]
struct Mappers {
    known: Arc<watch::Sender<BTreeMap<String, Mapper>>>,
    store: Store,
}

impl Mappers {
    /// Those that the store has.
    fn restored(store: Store) -> Self {
        let kept = store.list_local(PREFIX).unwrap_or_else(|error| {
            warn!(error = %runtime::chain(&error), "who drives devices cannot be read; mappers have to register anew");
            Vec::new()
        });
        let known = kept.into_iter().filter_map(|(key, value)| {
            Some((key.strip_prefix(PREFIX)?.to_owned(), serde_json::from_slice(&value).ok()?))
        });
        Self { known: Arc::new(watch::Sender::new(known.collect())), store }
    }

    /// Durable when it returns.
    async fn put(&self, protocol: &str, mut mapper: Mapper) -> Result<(), StoreError> {
        mapper.number = self.known.borrow().get(protocol).map_or(0, |before| before.number) + 1;
        let kept = serde_json::to_vec(&mapper).unwrap_or_default();
        self.store.put_local(&format!("{PREFIX}{protocol}"), Bytes::from(kept)).await?;
        self.known.send_modify(|known| drop(known.insert(protocol.to_owned(), mapper)));
        Ok(())
    }
}

pub struct Dmi {
    socket: PathBuf,
    devices: Devices,
    mappers: Mappers,
    store: Store,
}

impl Dmi {
    /// `socket` is where mappers register.
    pub fn new(socket: PathBuf, store: Store, devices: Devices) -> Self {
        let mappers = Mappers::restored(store.clone());
        Self { socket, devices, mappers, store }
    }

    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let Self { socket, devices, mappers, store } = self;
        let manager = Manager { devices: devices.clone(), mappers: mappers.clone(), store: store.clone() };
        tokio::select! {
            () = server::serve(&socket, manager) => {}
            () = tell(devices, mappers, store) => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    }
}

/// Keeps mappers informed, for ever; each by itself, so that one which hangs holds up no other.
async fn tell(devices: Devices, mappers: Mappers, store: Store) {
    // Before that it looks as if there were none.
    devices.all_known().await;
    let (mut tasks, mut served) = (JoinSet::new(), BTreeSet::new());
    let mut known = mappers.known.subscribe();
    loop {
        let protocols: Vec<String> = known.borrow_and_update().keys().cloned().collect();
        for protocol in protocols {
            if served.insert(protocol.clone()) {
                tasks.spawn(tell_one(protocol, devices.clone(), mappers.known.subscribe(), store.clone()));
            }
        }
        if known.changed().await.is_err() {
            return;
        }
    }
}

async fn tell_one(
    protocol: String,
    devices: Devices,
    mut known: watch::Receiver<BTreeMap<String, Mapper>>,
    store: Store,
) {
    let changes = devices.follow();
    let mut told = Told::restored(&protocol, store.clone());
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let Some(mapper) = known.borrow_and_update().get(&protocol).cloned() else { return };
        let wanted = wanted(&devices, &store, &protocol);
        let retry = match told.bring(&mapper, &wanted).await {
            Ok(count) => {
                if count > 0 {
                    info!(protocol, mapper = mapper.name, count, "mapper told of its devices");
                }
                backoff.reset();
                false
            }
            Err(error) => {
                warn!(protocol, mapper = mapper.name, error = %runtime::chain(&error), "mapper is not told yet");
                true
            }
        };
        tokio::select! {
            _ = changes.changed() => {}
            changed = known.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = time::sleep(backoff.next_delay()), if retry => {}
        }
    }
}

/// A device, and its model.
type Described = (api::Device, Option<api::DeviceModel>);

/// All devices of a protocol, as their mapper is to know them.
fn wanted(devices: &Devices, store: &Store, protocol: &str) -> BTreeMap<ResourceKey, Described> {
    let keys: BTreeSet<ResourceKey> = devices.members().into_iter().map(|member| member.key).collect();
    keys.into_iter()
        .filter_map(|key| Some((key.clone(), message::described(devices, store, &key, protocol)?)))
        .collect()
}
