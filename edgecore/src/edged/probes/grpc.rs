//! gRPC's own health service, `grpc.health.v1.Health/Check`: one message each way, too small for generated code.

use std::marker::PhantomData;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Endpoint,
};

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "Health", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
enum Health {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

pub(super) async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| runtime::chain(&error).to_string())?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| runtime::chain(&error).to_string())?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let answer = client.unary(request, path, Protobuf::<_, HealthCheckResponse>::default()).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(Health::Serving) => Ok(()),
        Ok(status) => Err(format!("service unhealthy (responded with {:?})", name(status))),
        Err(status) if status.code() == Code::Unimplemented => {
            Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned())
        }
        Err(status) => {
            Err(format!("health rpc probe failed with status {:?}: {}", status.code(), status.message()))
        }
    }
}

fn name(status: Health) -> &'static str {
    match status {
        Health::Unknown => "UNKNOWN",
        Health::Serving => "SERVING",
        Health::NotServing => "NOT_SERVING",
        Health::ServiceUnknown => "SERVICE_UNKNOWN",
    }
}

/// Protobuf as gRPC's encoding.
struct Protobuf<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Protobuf<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for Protobuf<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<T: Message, U> Encoder for Protobuf<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<T, U: Message + Default> Decoder for Protobuf<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
