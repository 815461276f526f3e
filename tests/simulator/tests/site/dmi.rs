//! A mapper as KubeEdge's mapper-framework makes them: it registers, is given its devices, and reports what they are.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use edgecore::metamanager::{DesiredChange, Options, Store};
use harness::wait;
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use proto::{
    ResourceKey,
    dmi::v1beta1::{
        self as api,
        device_manager_service_client::DeviceManagerServiceClient,
        device_mapper_service_server::{DeviceMapperService, DeviceMapperServiceServer},
    },
};
use serde_json::json;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tonic::{
    Request, Response, Status, async_trait,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    framed,
    node::{Node, SOON},
};

/// What edgecore has told the mapper.
#[derive(Debug, PartialEq)]
enum Call {
    Register(api::Device),
    Update(api::Device),
    Remove(String),
    Model(api::DeviceModel),
}

struct Mapper(mpsc::Sender<Call>);

impl Mapper {
    async fn note(&self, call: Call) -> Result<(), Status> {
        self.0.send(call).await.map_err(|error| Status::internal(error.to_string()))
    }
}

#[async_trait]
impl DeviceMapperService for Mapper {
    async fn register_device(
        &self,
        request: Request<api::RegisterDeviceRequest>,
    ) -> Result<Response<api::RegisterDeviceResponse>, Status> {
        self.note(Call::Register(request.into_inner().device.unwrap_or_default())).await?;
        Ok(Response::new(api::RegisterDeviceResponse::default()))
    }

    async fn remove_device(
        &self,
        request: Request<api::RemoveDeviceRequest>,
    ) -> Result<Response<api::RemoveDeviceResponse>, Status> {
        self.note(Call::Remove(request.into_inner().device_name)).await?;
        Ok(Response::new(api::RemoveDeviceResponse::default()))
    }

    async fn update_device(
        &self,
        request: Request<api::UpdateDeviceRequest>,
    ) -> Result<Response<api::UpdateDeviceResponse>, Status> {
        self.note(Call::Update(request.into_inner().device.unwrap_or_default())).await?;
        Ok(Response::new(api::UpdateDeviceResponse::default()))
    }

    async fn create_device_model(
        &self,
        request: Request<api::CreateDeviceModelRequest>,
    ) -> Result<Response<api::CreateDeviceModelResponse>, Status> {
        self.note(Call::Model(request.into_inner().model.unwrap_or_default())).await?;
        Ok(Response::new(api::CreateDeviceModelResponse::default()))
    }

    async fn remove_device_model(
        &self,
        _: Request<api::RemoveDeviceModelRequest>,
    ) -> Result<Response<api::RemoveDeviceModelResponse>, Status> {
        Ok(Response::new(api::RemoveDeviceModelResponse::default()))
    }

    async fn update_device_model(
        &self,
        request: Request<api::UpdateDeviceModelRequest>,
    ) -> Result<Response<api::UpdateDeviceModelResponse>, Status> {
        self.note(Call::Model(request.into_inner().model.unwrap_or_default())).await?;
        Ok(Response::new(api::UpdateDeviceModelResponse::default()))
    }

    async fn get_device(
        &self,
        _: Request<api::GetDeviceRequest>,
    ) -> Result<Response<api::GetDeviceResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// A mapper at this socket, and what it is told.
fn mapper(socket: &Path) -> Result<(JoinSet<()>, mpsc::Receiver<Call>)> {
    let (note, calls) = mpsc::channel(100);
    let service = DeviceMapperServiceServer::from_arc(Arc::new(Mapper(note)));
    let listener = UnixListener::bind(socket)?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let served =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            connections.spawn(async move { drop(served.await) });
        }
    });
    Ok((task, calls))
}

async fn manager(socket: &Path) -> Result<DeviceManagerServiceClient<Channel>> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let connect =
        async || Endpoint::from_static("http://localhost").connect_with_connector(connector.clone()).await;
    Ok(DeviceManagerServiceClient::new(wait::until("edgecore takes mappers", SOON, connect).await?))
}

async fn next(calls: &mut mpsc::Receiver<Call>) -> Result<Call> {
    timeout(SOON, calls.recv()).await.context("the mapper is told nothing")?.context("the mapper has ended")
}

fn registration(socket: &Path, protocol: &str) -> api::MapperRegisterRequest {
    api::MapperRegisterRequest {
        with_data: true,
        mapper: Some(api::MapperInfo {
            name: "bacnet-mapper".to_owned(),
            version: "v1".to_owned(),
            api_version: "v1beta1".to_owned(),
            protocol: protocol.to_owned(),
            address: socket.display().to_string().into_bytes(),
            state: "ok".to_owned(),
        }),
    }
}

fn desired(device: &api::Device) -> Option<&str> {
    Some(&device.spec.as_ref()?.properties.first()?.desired.as_ref()?.value)
}

/// Its first method, and the Redis that its first property is to go to.
fn passed_on(device: &api::Device) -> Option<(&str, &str)> {
    let spec = device.spec.as_ref()?;
    let database = spec.properties.first()?.push_method.as_ref()?.db_method.as_ref()?;
    Some((&spec.methods.first()?.name, &database.redis.as_ref()?.redis_client_config.as_ref()?.addr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapper_registers_and_is_told_what_it_does_not_know() -> Result<()> {
    framed(async |run| {
        let model =
            json!({"properties": [{"name": "level", "type": "INT", "minimum": "0", "maximum": "100"}]});
        let mut device = json!({"deviceModelRef": {"name": "lamp"},
            "protocol": {"protocolName": "bacnet", "configData": {"ip": "192.0.2.1", "port": 47808}},
            "methods": [{"name": "dim", "propertyNames": ["level"]}],
            "properties": [{"name": "level", "reportCycle": 100, "desired": {"value": "40"},
                "pushMethod": {"dbMethod": {"redis": {"redisClientConfig": {"addr": "db:6379", "poolsize": 2}}}},
                "visitors": {"protocolName": "bacnet", "configData": {"object": "AV1"}}}]});
        let node = Node::start(run)?;
        node.put("DeviceModel", "lamp", &model).await?;
        node.put("Device", "lamp", &device).await?;
        let (own, edges) = (run.dir().join("mapper.sock"), run.dir().join("dmi.sock"));
        let (_serving, mut calls) = mapper(&own)?;
        let mut manager_of_node = manager(&edges).await?;
        let refused = manager_of_node.mapper_register(registration(&own, "modbus")).await.unwrap_err();
        ensure!(refused.message().contains("edgecore drives modbus by itself"), "{refused}");
        let given = wait::until("it is given its device", SOON, async || {
            let given =
                manager_of_node.clone().mapper_register(registration(&own, "BACnet")).await?.into_inner();
            ensure!(given.device_list.len() == 1 && given.model_list.len() == 1, "{given:?}");
            Ok::<_, anyhow::Error>(given)
        })
        .await?;
        ensure!(desired(&given.device_list[0]) == Some("40"), "{given:?}");
        let told = [next(&mut calls).await?, next(&mut calls).await?];
        ensure!(matches!(&told[0], Call::Model(model) if model.name == "lamp"), "{told:?}");
        ensure!(matches!(&told[1], Call::Register(device) if desired(device) == Some("40")), "{told:?}");
        ensure!(passed_on(&given.device_list[0]) == Some(("dim", "db:6379")), "{given:?}");

        let reported = api::TwinProperty { value: "40".to_owned(), ..Default::default() };
        let twin =
            api::Twin { property_name: "level".to_owned(), reported: Some(reported), ..Default::default() };
        let report = api::ReportDeviceStatusRequest {
            device_name: "lamp".to_owned(),
            device_namespace: "default".to_owned(),
            reported_device: Some(api::DeviceStatus { twins: vec![twin], ..Default::default() }),
        };
        manager_of_node.report_device_status(report.clone()).await?;
        node.until_reported("lamp", "level", "40").await?;
        let state = api::ReportDeviceStatesRequest {
            device_name: "lamp".to_owned(),
            device_namespace: "default".to_owned(),
            state: "offline".to_owned(),
        };
        manager_of_node.report_device_states(state).await?;
        node.until("lamp", "offline", |status| (status["state"] == "offline").then_some(())).await?;
        let mut foreign = report;
        foreign.device_name = "none".to_owned();
        let refused = manager_of_node.report_device_status(foreign).await.unwrap_err();
        ensure!(refused.code() == tonic::Code::NotFound, "{refused}");

        // Another edgecore knows who drives it.
        node.end().await?;
        let node = Node::start(run)?;
        device["properties"][0]["desired"] = json!({"value": "70"});
        node.put("Device", "lamp", &device).await?;
        wait::until("it is told of the change", Duration::from_secs(30), async || {
            let call = next(&mut calls).await?;
            let (Call::Register(device) | Call::Update(device)) = call else { anyhow::bail!("{call:?}") };
            ensure!(desired(&device) == Some("70"), "{device:?}");
            Ok(())
        })
        .await?;
        // One that goes while edgecore is away is taken from it all the same.
        node.end().await?;
        {
            let store = Store::open(&run.dir().join("store"), Options::default())?;
            let key: ResourceKey = "Device.devices.kubeedge.io/default/lamp".parse()?;
            store.apply(vec![DesiredChange::Delete(key)]).await?;
            store.close().await?;
        }
        let node = Node::start(run)?;
        wait::until("the device is taken from it", SOON, async || {
            let call = next(&mut calls).await?;
            ensure!(call == Call::Remove("lamp".to_owned()), "{call:?}");
            Ok(())
        })
        .await?;
        node.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapper_that_hangs_holds_up_no_other() -> Result<()> {
    framed(async |run| {
        let node = Node::start(run)?;
        let mut manager_of_node = manager(&run.dir().join("dmi.sock")).await?;
        let (hanging, own) = (run.dir().join("hanging.sock"), run.dir().join("mapper.sock"));
        // It takes connections, and answers nothing.
        let _listener = UnixListener::bind(&hanging)?;
        let (_serving, mut calls) = mapper(&own)?;
        for (protocol, socket) in [("aaa", &hanging), ("bacnet", &own)] {
            manager_of_node.mapper_register(registration(socket, protocol)).await?;
        }
        let model = json!({"properties": [{"name": "level", "type": "INT"}]});
        node.put("DeviceModel", "lamp", &model).await?;
        for (name, protocol) in [("first", "aaa"), ("second", "bacnet")] {
            let device = json!({"deviceModelRef": {"name": "lamp"}, "protocol": {"protocolName": protocol},
                "properties": [{"name": "level"}]});
            node.put("Device", name, &device).await?;
        }
        let asked = std::time::Instant::now();
        let told = [next(&mut calls).await?, next(&mut calls).await?];
        ensure!(matches!(&told[1], Call::Register(device) if device.name == "second"), "{told:?}");
        // A call may take 10 s.
        ensure!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        node.end().await
    })
    .await
}
