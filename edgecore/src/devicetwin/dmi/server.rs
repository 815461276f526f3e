//! What mappers call.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use proto::{
    ResourceKey,
    dmi::v1beta1::{
        self as api,
        device_manager_service_server::{DeviceManagerService, DeviceManagerServiceServer},
    },
};
use tokio::{net::UnixListener, task::JoinSet, time};
use tonic::{Request, Response, Status, async_trait};
use tracing::{debug, info, warn};

use super::{MOST_MAPPERS, Mapper, Mappers, wanted};
use crate::{
    devicetwin::{DRIVEN_HERE, Devices, SetError},
    metamanager::Store,
};
use crds::devices::keys::DEVICE;

const RETRY: Duration = Duration::from_secs(10);
/// Mappers of a site.
const CONNECTIONS: usize = 64;
/// Of a name or a protocol.
const LONGEST_NAME: usize = 128;

#[derive(Clone)]
pub(super) struct Manager {
    pub(super) devices: Devices,
    pub(super) mappers: Mappers,
    pub(super) store: Store,
}

/// Serves mappers, for ever. A socket that cannot be had is tried again: most sites have no mapper.
pub(super) async fn serve(socket: &Path, manager: Manager) {
    let service = DeviceManagerServiceServer::new(manager);
    let mut connections = JoinSet::new();
    loop {
        let listener = match listen(socket) {
            Ok(listener) => listener,
            Err(error) => {
                warn!(socket = %socket.display(), %error, "mappers cannot register (modules.deviceTwin.dmiSockPath)");
                time::sleep(RETRY).await;
                continue;
            }
        };
        info!(socket = %socket.display(), "mappers may register");
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        let service = TowerToHyperService::new(service.clone());
                        let served =
                            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                        connections.spawn(async move {
                            if let Err(error) = served.await {
                                debug!(error = %runtime::chain(&error), "connection of a mapper ended");
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "failed to accept a mapper");
                        time::sleep(RETRY).await;
                        break;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// For root alone, as the socket of the container runtime: who drives devices may do anything to them.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // Left behind by the one before: the store's lock says that it has ended.
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn key(namespace: &str, name: &str) -> Result<ResourceKey, Status> {
    // KubeEdge had no namespaces once.
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    ResourceKey::new(DEVICE, namespace, name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn status(error: &SetError) -> Status {
    let reason = runtime::chain(error).to_string();
    match error {
        SetError::NoDevice { .. } | SetError::NoProperty { .. } => Status::not_found(reason),
        SetError::Refused { .. } => Status::invalid_argument(reason),
        SetError::Driven { .. } => Status::failed_precondition(reason),
        SetError::Store(_) => Status::unavailable(reason),
    }
}

#[async_trait]
impl DeviceManagerService for Manager {
    async fn mapper_register(
        &self,
        request: Request<api::MapperRegisterRequest>,
    ) -> Result<Response<api::MapperRegisterResponse>, Status> {
        let api::MapperRegisterRequest { with_data, mapper } = request.into_inner();
        let mapper = mapper.ok_or_else(|| Status::invalid_argument("mapper is missing"))?;
        let protocol = mapper.protocol.to_lowercase();
        let text = |field: &str, text: &str| {
            let is_one = !text.is_empty() && text.len() <= LONGEST_NAME && !text.contains(['/', '\0']);
            let reason = format!("mapper.{field} {text:?} is no name of up to {LONGEST_NAME} bytes");
            if is_one { Ok(()) } else { Err(Status::invalid_argument(reason)) }
        };
        text("name", &mapper.name)?;
        text("protocol", &protocol)?;
        if DRIVEN_HERE.contains(&protocol.as_str()) {
            return Err(Status::failed_precondition(format!(
                "edgecore drives {protocol} by itself; a mapper of it would be a second one"
            )));
        }
        let address = String::from_utf8(mapper.address).unwrap_or_default();
        let address = address.strip_prefix("unix://").unwrap_or(&address);
        if !address.starts_with('/') {
            return Err(Status::invalid_argument(format!(
                "mapper.address {address:?} is no path of a socket"
            )));
        }
        let is_one_too_many = {
            let known = self.mappers.known.borrow();
            !known.contains_key(&protocol) && known.len() >= MOST_MAPPERS
        };
        if is_one_too_many {
            return Err(Status::resource_exhausted(format!("{MOST_MAPPERS} mappers have registered")));
        }
        let registered =
            Mapper { name: mapper.name, version: mapper.version, address: address.into(), number: 0 };
        info!(protocol, mapper = registered.name, version = registered.version, "mapper registered");
        self.mappers
            .put(&protocol, registered)
            .await
            .map_err(|error| Status::unavailable(runtime::chain(&error).to_string()))?;
        let mut response = api::MapperRegisterResponse::default();
        if with_data {
            for (device, model) in wanted(&self.devices, &self.store, &protocol).into_values() {
                response.device_list.push(device);
                response.model_list.extend(model);
            }
        }
        Ok(Response::new(response))
    }

    async fn report_device_status(
        &self,
        request: Request<api::ReportDeviceStatusRequest>,
    ) -> Result<Response<api::ReportDeviceStatusResponse>, Status> {
        let api::ReportDeviceStatusRequest { device_name, reported_device, device_namespace } =
            request.into_inner();
        let key = key(&device_namespace, &device_name)?;
        for twin in reported_device.unwrap_or_default().twins {
            if let Some(reported) = twin.reported {
                self.devices
                    .report(&key, &twin.property_name, &reported.value)
                    .map_err(|error| status(&error))?;
            }
        }
        Ok(Response::new(api::ReportDeviceStatusResponse {}))
    }

    async fn report_device_states(
        &self,
        request: Request<api::ReportDeviceStatesRequest>,
    ) -> Result<Response<api::ReportDeviceStatesResponse>, Status> {
        let api::ReportDeviceStatesRequest { device_name, device_namespace, state } = request.into_inner();
        let key = key(&device_namespace, &device_name)?;
        self.devices.report_state(&key, &state).map_err(|error| status(&error))?;
        Ok(Response::new(api::ReportDeviceStatesResponse {}))
    }
}
