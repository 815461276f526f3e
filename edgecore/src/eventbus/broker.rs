//! The broker for apps at the site: mqtt5, MQTT 3.1.1 and 5, with everything bounded.

mod service;

use std::{
    future::{self, Future},
    io, mem,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use mqtt5::{
    MqttError, QoS,
    broker::{
        AllowAllAuthProvider, AuthProvider, BrokerConfig, BrokerEventHandler, ClientPublishEvent,
        PublishAction, StorageConfig, router::MessageRouter,
    },
    packet::publish::PublishPacket,
};
use rumqttc::AsyncClient;
use runtime::tls::ServerIdentity;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::service::Service;
use super::{gate::Gate, users::BrokerUsers};

/// Those that have not logged in yet counted; whoever comes then waits.
const CONNECTIONS: usize = 256;
/// As long as a client that connects for each message is likely to be away.
const LINGER: Duration = Duration::from_mins(1);
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Between looks for sessions and messages whose time is over.
const TIDY: Duration = Duration::from_hours(1);
/// For clients to be told that the broker ends, and for what waits for them to be on the disk.
const FAREWELL: Duration = Duration::from_secs(2);
const LONGEST: usize = 1 << 20;
const SUBSCRIPTIONS: usize = 200;
const RETAINED: usize = 1000;
const LONGEST_RETAINED: usize = 64 << 10;
/// Messages that wait for a client that is away.
const QUEUE: usize = 100;
/// The same, in bytes.
const QUEUED: usize = 1 << 20;
/// On their way to one client that is there; each is one message.
const ON_THE_WAY: usize = 128;
/// What a client that stays away has subscribed to is kept so long.
const SESSION: Duration = Duration::from_hours(24);
/// Topics of whose messages somebody is told.
const WATCHED: &str = "$hw/";

#[derive(Debug, Clone)]
pub struct BrokerSettings {
    pub listen: SocketAddr,
    pub tls: Option<BrokerTls>,
    /// Sessions, queued and retained messages.
    pub directory: PathBuf,
    /// Messages that wait for a client that is away.
    pub queue: usize,
    /// `None`: nobody has to log in.
    pub users: Option<BrokerUsers>,
    /// From the last client's leaving until nothing is there for the next but the port.
    pub linger: Duration,
}

impl BrokerSettings {
    /// Open to everybody there, with what is usual besides.
    pub fn open(listen: SocketAddr, directory: PathBuf) -> Self {
        Self { listen, tls: None, directory, queue: QUEUE, users: None, linger: LINGER }
    }
}

/// Where it listens within TLS.
#[derive(Debug, Clone)]
pub struct BrokerTls {
    pub listen: SocketAddr,
    pub identity: ServerIdentity,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    #[error("cannot listen at {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot use what is kept in {directory}")]
    Storage {
        directory: PathBuf,
        #[source]
        source: MqttError,
    },
}

/// A message of a client.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) topic: Arc<str>,
    pub(super) payload: Bytes,
}

/// Its ports, and behind them what serves clients, as long as there are some: what mqtt5 keeps of sessions wakes the machine four times
/// a second (0.49, `INFLIGHT_SETTLE`), and many sites have no client. Sessions and what waits for them are on the disk meanwhile.
pub(super) struct Broker {
    plain: TcpListener,
    tls: Option<Secure>,
    config: Arc<BrokerConfig>,
    access: Arc<dyn AuthProvider>,
    linger: Duration,
    /// That of the clients that are there; nobody's, if there are none.
    router: watch::Sender<Weak<MessageRouter>>,
}

impl Broker {
    /// Messages to watched topics go to `heard` as well, which holds up the clients that send them while it is full.
    pub(super) async fn bind(
        settings: &BrokerSettings,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Self, BrokerError> {
        let config = BrokerConfig {
            session_expiry_interval: SESSION,
            max_packet_size: LONGEST,
            max_subscriptions_per_client: SUBSCRIPTIONS,
            max_retained_messages: RETAINED,
            max_retained_message_size: LONGEST_RETAINED,
            client_channel_capacity: ON_THE_WAY,
            storage_config: StorageConfig {
                // What was kept for nobody in particular is no user's: mqtt5 would refuse whoever comes back for it.
                base_dir: if settings.users.is_some() {
                    settings.directory.join("users")
                } else {
                    settings.directory.clone()
                },
                max_queued_messages_per_client: settings.queue,
                max_queued_bytes_per_client: QUEUED,
                ..StorageConfig::default()
            },
            event_handler: Some(Arc::new(Listener(heard))),
            ..BrokerConfig::default()
        };
        let access: Arc<dyn AuthProvider> = match &settings.users {
            Some(users) => Arc::new(Gate::open(users).await),
            None => Arc::new(AllowAllAuthProvider),
        };
        let tls = match &settings.tls {
            Some(BrokerTls { listen, identity }) => {
                let listener = listener(*listen).await?;
                let secure = Secure { listener, identity: identity.clone(), said: Mutex::default() };
                // What is wrong is said before a client comes.
                secure.config();
                Some(secure)
            }
            None => None,
        };
        Ok(Self {
            plain: listener(settings.listen).await?,
            tls,
            config: Arc::new(config),
            access,
            linger: settings.linger,
            router: watch::Sender::default(),
        })
    }

    pub(super) fn publisher(&self) -> Publisher {
        Publisher::Own(self.router.subscribe())
    }

    /// Until `stop` is cancelled, or what is kept on the disk cannot be used.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        while let Some(first) = stop.run_until_cancelled(self.accept()).await {
            let service = Service::open(&self.config, &self.access).await.map_err(|source| {
                BrokerError::Storage { directory: self.config.storage_config.base_dir.clone(), source }
            })?;
            self.router.send_replace(service.router());
            self.serve(&Arc::new(service), first, &stop).await;
        }
        Ok(())
    }

    async fn accept(&self) -> Arrival {
        loop {
            match self.accept_one().await {
                Ok(Some(arrival)) => return arrival,
                // Its certificate's file was at fault, and that is said.
                Ok(None) => {}
                Err(error) => {
                    warn!(error = %runtime::chain(&error), "the MQTT broker cannot take a client");
                    time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn accept_one(&self) -> io::Result<Option<Arrival>> {
        let plain = async {
            let (stream, from) = self.plain.accept().await?;
            Ok(Some(Arrival { stream, from, tls: None }))
        };
        let secure = async {
            match &self.tls {
                Some(secure) => secure.accept().await,
                None => future::pending().await,
            }
        };
        tokio::select! { arrival = plain => arrival, arrival = secure => arrival }
    }

    /// Until the last client has been gone for a while, or `stop` is cancelled.
    async fn serve(&self, service: &Arc<Service>, first: Arrival, stop: &CancellationToken) {
        let mut clients = JoinSet::new();
        clients.spawn(Arc::clone(service).serve(first));
        let mut left = Instant::now();
        let mut tidying = time::interval_at(left + TIDY, TIDY);
        let mut has_been_full = false;
        loop {
            tokio::select! {
                arrival = self.accept(), if clients.len() < CONNECTIONS => {
                    clients.spawn(Arc::clone(service).serve(arrival));
                    if clients.len() == CONNECTIONS && !mem::replace(&mut has_been_full, true) {
                        warn!(most = CONNECTIONS, "the MQTT broker is full: whoever comes waits until a client goes");
                    }
                }
                Some(ended) = clients.join_next() => {
                    if let Err(failure) = ended {
                        error!(%failure, "an MQTT client has ended with a defect");
                    }
                    left = Instant::now();
                }
                () = time::sleep_until(left + self.linger), if clients.is_empty() => {
                    if service.is_done() {
                        break;
                    }
                    left = Instant::now();
                }
                _ = tidying.tick() => service.tidy().await,
                () = stop.cancelled() => break,
            }
        }
        // Whoever does not go within the time is gone with the process.
        drop(time::timeout(FAREWELL, service.close(clients)).await);
    }
}

async fn listener(address: SocketAddr) -> Result<TcpListener, BrokerError> {
    TcpListener::bind(address).await.map_err(|source| BrokerError::Bind { address, source })
}

/// Where it listens within TLS.
struct Secure {
    listener: TcpListener,
    identity: ServerIdentity,
    /// What is wrong with the files, as it was said last.
    said: Mutex<Option<String>>,
}

impl Secure {
    /// As the files are now; `None`: they will not do.
    fn config(&self) -> Option<Arc<ServerConfig>> {
        let config = self.identity.server_config().map_err(|error| runtime::chain(&error).to_string());
        let (config, reason) = match config {
            Ok(config) => (Some(Arc::new(config)), None),
            Err(reason) => (None, Some(reason)),
        };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = reason.as_ref().filter(|&reason| said.as_ref() != Some(reason)) {
            error!(
                reason,
                "nobody gets in at the MQTT broker within TLS until modules.eventBus.mqttServerTLS is put right"
            );
        }
        *said = reason;
        config
    }

    async fn accept(&self) -> io::Result<Option<Arrival>> {
        let (stream, from) = self.listener.accept().await?;
        Ok(self.config().map(|config| Arrival { stream, from, tls: Some(config) }))
    }
}

/// A client that has just connected.
struct Arrival {
    stream: TcpStream,
    from: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
}

/// Sends to whoever has subscribed.
pub(super) enum Publisher {
    Own(watch::Receiver<Weak<MessageRouter>>),
    External(AsyncClient),
}

impl Publisher {
    pub(super) async fn publish(&self, topic: String, payload: &serde_json::Value) {
        match self {
            Self::Own(router) => {
                let router = router.borrow().upgrade();
                if let Some(router) = router {
                    let packet = PublishPacket::new(topic, payload.to_string(), QoS::AtMostOnce);
                    router.route_message(&packet, None).await;
                }
            }
            Self::External(client) => {
                let sent = client.publish(topic, rumqttc::QoS::AtLeastOnce, false, payload.to_string()).await;
                // It fails only when the connection ends, and with the next one all is published anew.
                drop(sent);
            }
        }
    }
}

struct Listener(mpsc::Sender<Heard>);

impl BrokerEventHandler for Listener {
    fn on_client_publish<'a>(
        &'a self,
        event: ClientPublishEvent,
    ) -> Pin<Box<dyn Future<Output = PublishAction> + Send + 'a>> {
        Box::pin(async move {
            if event.topic.starts_with(WATCHED) {
                let heard = Heard { topic: event.topic, payload: event.payload };
                // It fails only when the process ends.
                drop(self.0.send(heard).await);
            }
            PublishAction::Continue
        })
    }
}
