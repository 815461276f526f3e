//! One mapper: what it was told, and telling it the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use proto::{
    ResourceKey,
    dmi::v1beta1::{self as api, device_mapper_service_client::DeviceMapperServiceClient},
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use tracing::warn;

use super::{Described, Mapper, TOLD_PREFIX};
use crate::metamanager::{Store, StoreError};

/// For one call, as KubeEdge's.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the mapper of a protocol was told last.
pub(super) struct Told {
    /// Where the store keeps it.
    key: String,
    store: Store,
    /// Of which registration this is.
    number: u64,
    /// Of each device, the message; `None`: by an edgecore before this one.
    devices: BTreeMap<ResourceKey, Option<api::Device>>,
    models: BTreeMap<(String, String), api::DeviceModel>,
    /// The devices that the store has: all that the mapper may know of.
    kept: BTreeSet<ResourceKey>,
}

/// As the store has it.
#[derive(Serialize, Deserialize)]
struct Kept {
    number: u64,
    devices: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TellError {
    #[error(transparent)]
    Refused(#[from] Status),
    #[error("what it knows is not kept")]
    Store(#[from] StoreError),
}

impl Told {
    /// As far as the store has it: what has gone since is taken from the mapper, too.
    pub(super) fn restored(protocol: &str, store: Store) -> Self {
        let key = format!("{TOLD_PREFIX}{protocol}");
        let kept = store.local(&key).unwrap_or_else(|error| {
            warn!(protocol, error = %runtime::chain(&error), "what its mapper was told cannot be read");
            None
        });
        let kept = kept.and_then(|kept| serde_json::from_slice::<Kept>(&kept).ok());
        let Kept { number, devices } = kept.unwrap_or(Kept { number: 0, devices: Vec::new() });
        let kept: BTreeSet<ResourceKey> = devices.iter().filter_map(|key| key.parse().ok()).collect();
        let devices = kept.iter().map(|key| (key.clone(), None)).collect();
        Self { key, store, number, devices, models: BTreeMap::new(), kept }
    }

    /// Tells the mapper what it does not know, and returns of how many devices.
    pub(super) async fn bring(
        &mut self,
        mapper: &Mapper,
        wanted: &BTreeMap<ResourceKey, Described>,
    ) -> Result<usize, TellError> {
        if self.number != mapper.number {
            self.number = mapper.number;
            self.devices.clear();
            self.models.clear();
            self.kept.clear();
        }
        // Before it is told: whatever happens, it is known what it may know.
        self.keep(self.devices.keys().chain(wanted.keys()).cloned().collect()).await?;
        let mut client = client(mapper.address.clone());
        let gone: Vec<ResourceKey> =
            self.devices.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let mut count = gone.len();
        for key in gone {
            let (device_name, device_namespace) = (key.name().to_owned(), key.namespace().to_owned());
            let answer =
                client.remove_device(api::RemoveDeviceRequest { device_name, device_namespace }).await;
            // One that does not know it has none.
            match answer {
                Ok(_) => {}
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
            self.devices.remove(&key);
        }
        for (key, (device, model)) in wanted {
            if let Some(model) = model {
                self.model(&mut client, model).await?;
            }
            match self.devices.get(key) {
                Some(Some(told)) if told == device => continue,
                Some(Some(_)) => {
                    let device = Some(device.clone());
                    client.update_device(api::UpdateDeviceRequest { device }).await?;
                }
                Some(None) | None => {
                    let device = Some(device.clone());
                    client.register_device(api::RegisterDeviceRequest { device }).await?;
                }
            }
            self.devices.insert(key.clone(), Some(device.clone()));
            count += 1;
        }
        self.keep(self.devices.keys().cloned().collect()).await?;
        Ok(count)
    }

    async fn keep(&mut self, devices: BTreeSet<ResourceKey>) -> Result<(), StoreError> {
        if devices == self.kept {
            return Ok(());
        }
        let kept = Kept { number: self.number, devices: devices.iter().map(ToString::to_string).collect() };
        self.store.put_local(&self.key, serde_json::to_vec(&kept).unwrap_or_default().into()).await?;
        self.kept = devices;
        Ok(())
    }

    async fn model(
        &mut self,
        client: &mut DeviceMapperServiceClient<Channel>,
        model: &api::DeviceModel,
    ) -> Result<(), Status> {
        let key = (model.namespace.clone(), model.name.clone());
        let wanted = Some(model.clone());
        match self.models.get(&key) {
            Some(told) if told == model => return Ok(()),
            Some(_) => {
                client.update_device_model(api::UpdateDeviceModelRequest { model: wanted }).await?;
            }
            None => {
                client.create_device_model(api::CreateDeviceModelRequest { model: wanted }).await?;
            }
        }
        self.models.insert(key, model.clone());
        Ok(())
    }
}

/// Connects with the first call.
fn client(address: PathBuf) -> DeviceMapperServiceClient<Channel> {
    // The authority is not used, but must be there.
    let channel = Endpoint::from_static("http://localhost").timeout(DEADLINE).connect_with_connector_lazy(
        tower::service_fn(move |_: Uri| {
            let address = address.clone();
            async move { UnixStream::connect(address).await.map(TokioIo::new) }
        }),
    );
    DeviceMapperServiceClient::new(channel)
}
