//! Sending something somewhere, and readings as KubeEdge's mappers do it.

use std::{
    future::{self, Future},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use crds::broker::authority;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::{Timestamp, tz::TimeZone};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time,
};
use tokio_rustls::TlsConnector;

use super::{Sample, Target};
use crate::{access::Access, mqtt};

/// For a broker to confirm.
const MQTT_PATIENCE: Duration = Duration::from_secs(15);
const MQTT_REQUESTS: usize = 8;

/// What is sent.
pub(in crate::devicetwin) struct Letter {
    /// For HTTP.
    pub(in crate::devicetwin) content_type: &'static str,
    pub(in crate::devicetwin) body: String,
}

impl Letter {
    /// A reading, as KubeEdge's mappers write it there.
    pub(super) fn of(target: &Target, sample: &Sample) -> Self {
        let content_type = "application/x-www-form-urlencoded";
        let body = match target {
            Target::Mqtt { topic, .. } => {
                format!("time is {}  {topic}: {}", local_time(sample), sample.value)
            }
            Target::Http { .. } => form_urlencoded::Serializer::new(String::new())
                .append_pair(&sample.property, &sample.value)
                .append_pair("time", &local_time(sample))
                .finish(),
        };
        Self { content_type, body }
    }
}

/// Why something was not taken.
pub(in crate::devicetwin) enum Refused {
    /// It may be later.
    Now(String),
    ForGood(String),
}

pub(in crate::devicetwin) enum Sink {
    /// A connection for each: collectors are not asked often.
    Http {
        tls: Option<Arc<ClientConfig>>,
    },
    Mqtt {
        client: AsyncClient,
        events: Box<EventLoop>,
    },
}

/// `2026-01-31 09:30:00`, in the node's time zone, as mappers write it.
fn local_time(sample: &Sample) -> String {
    let at =
        i64::try_from(sample.at).ok().and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or_default();
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

impl Sink {
    pub(in crate::devicetwin) async fn open(target: &Target, access: &Access) -> Result<Self, Refused> {
        match target {
            Target::Http { secure, .. } => {
                let tls = secure.then(|| access.trust.client_config()).transpose();
                let tls = tls.map_err(|error| Refused::Now(runtime::chain(&error).to_string()))?;
                Ok(Self::Http { tls: tls.map(Arc::new) })
            }
            Target::Mqtt { broker, .. } => {
                let id = format!("skerry-push-{}", target.id());
                let mut options = MqttOptions::new(id, broker.host.clone(), broker.port);
                if let Some((user, password)) = access.login_at(broker) {
                    options.set_credentials(user, password);
                }
                if broker.secure {
                    let transport = mqtt::transport(access.trust_at(broker));
                    options.set_transport(
                        transport.map_err(|error| Refused::Now(runtime::chain(&error).to_string()))?,
                    );
                }
                let (client, mut events) = AsyncClient::new(options, MQTT_REQUESTS);
                within(MQTT_PATIENCE, mqtt::connected(&mut events)).await?;
                Ok(Self::Mqtt { client, events: Box::new(events) })
            }
        }
    }

    /// Keeps what is open alive, until it is not.
    pub(super) async fn idle(&mut self) {
        match self {
            Self::Http { .. } => future::pending().await,
            Self::Mqtt { events, .. } => while events.poll().await.is_ok() {},
        }
    }

    pub(in crate::devicetwin) async fn send(
        &mut self,
        target: &Target,
        letter: &Letter,
    ) -> Result<(), Refused> {
        match (self, target) {
            (Self::Mqtt { client, events }, Target::Mqtt { topic, qos, retain, .. }) => {
                let qos = match qos {
                    0 => QoS::AtMostOnce,
                    1 => QoS::AtLeastOnce,
                    _ => QoS::ExactlyOnce,
                };
                client
                    .try_publish(topic.clone(), qos, *retain, letter.body.clone())
                    .map_err(|error| Refused::Now(error.to_string()))?;
                within(MQTT_PATIENCE, taken(events, qos)).await
            }
            (Self::Http { tls }, Target::Http { secure: _, host, port, path, timeout_seconds }) => {
                let posted = post(host, *port, path, letter, tls.clone());
                let posted = time::timeout(Duration::from_secs(*timeout_seconds), posted);
                let status = match posted.await {
                    Ok(Ok(status)) => status,
                    Ok(Err(reason)) => return Err(Refused::Now(reason)),
                    Err(_) => return Err(Refused::Now(format!("no answer within {timeout_seconds} s"))),
                };
                let is_for_good = status.is_client_error()
                    && !matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
                match status {
                    _ if status.is_success() => Ok(()),
                    _ if is_for_good => Err(Refused::ForGood(format!("HTTP {status}"))),
                    _ => Err(Refused::Now(format!("HTTP {status}"))),
                }
            }
            (Self::Http { .. }, Target::Mqtt { .. }) | (Self::Mqtt { .. }, Target::Http { .. }) => {
                Err(Refused::Now("opened for another target".to_owned()))
            }
        }
    }
}

/// Until the broker has confirmed what was published, or, where it confirms nothing, until it is on its way.
async fn taken(events: &mut EventLoop, qos: QoS) -> Result<(), rumqttc::ConnectionError> {
    loop {
        match (events.poll().await?, qos) {
            (Event::Incoming(Packet::PubAck(_)), QoS::AtLeastOnce)
            | (Event::Incoming(Packet::PubComp(_)), QoS::ExactlyOnce)
            | (Event::Outgoing(Outgoing::Publish(_)), QoS::AtMostOnce) => return Ok(()),
            _ => {}
        }
    }
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, rumqttc::ConnectionError>>,
) -> Result<T, Refused> {
    match time::timeout(patience, work).await {
        Ok(done) => done.map_err(|error| Refused::Now(runtime::chain(&error).to_string())),
        Err(_) => Err(Refused::Now(format!("no answer within {patience:?}"))),
    }
}

async fn post(
    host: &str,
    port: u16,
    path: &str,
    letter: &Letter,
    tls: Option<Arc<ClientConfig>>,
) -> Result<StatusCode, String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, authority(host, port))
        .header(header::CONTENT_TYPE, letter.content_type)
        .body(Full::new(Bytes::from(letter.body.clone())))
        .map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    let answered = match tls {
        None => exchange(stream, request).await,
        Some(tls) => {
            let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
            let stream = TlsConnector::from(tls).connect(name, stream).await;
            exchange(stream.map_err(|error| format!("no TLS with it: {error}"))?, request).await
        }
    };
    answered.map_err(|error| runtime::chain(&error).to_string())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> hyper::Result<StatusCode> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    Ok(sender.send_request(request).await?.status())
}
