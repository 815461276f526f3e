//! One mapper: what it was told, and telling it the rest.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use proto::{
    ResourceKey,
    dmi::v1beta1::{self as api, device_mapper_service_client::DeviceMapperServiceClient},
};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{Described, Mapper};

/// For one call, as KubeEdge's.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the mapper of a protocol was told last: of each device, the message.
#[derive(Default)]
pub(super) struct Told {
    /// Of which registration this is.
    number: u64,
    devices: BTreeMap<ResourceKey, api::Device>,
    models: BTreeMap<(String, String), api::DeviceModel>,
}

impl Told {
    /// Tells the mapper what it does not know, and returns of how many devices.
    pub(super) async fn bring(
        &mut self,
        mapper: &Mapper,
        wanted: &BTreeMap<ResourceKey, Described>,
    ) -> Result<usize, Status> {
        if self.number != mapper.number {
            *self = Self { number: mapper.number, ..Self::default() };
        }
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
                Err(status) => return Err(status),
            }
            self.devices.remove(&key);
        }
        for (key, (device, model)) in wanted {
            if let Some(model) = model {
                self.model(&mut client, model).await?;
            }
            match self.devices.get(key) {
                Some(told) if told == device => continue,
                Some(_) => {
                    let device = Some(device.clone());
                    client.update_device(api::UpdateDeviceRequest { device }).await?;
                }
                None => {
                    let device = Some(device.clone());
                    client.register_device(api::RegisterDeviceRequest { device }).await?;
                }
            }
            self.devices.insert(key.clone(), device.clone());
            count += 1;
        }
        Ok(count)
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
