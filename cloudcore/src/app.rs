//! Wiring: everything is built first (addresses bound, certificates read), then it runs.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::{Client, config::KubeconfigError};
use prometheus_client::registry::Registry as MetricsRegistry;
use runtime::{
    Supervisor,
    admin::{Admin, AdminError, Page, Readiness},
    link,
    supervisor::Outcome,
    telemetry::LogLevel,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    apiserver,
    cloudhub::{
        listener::{CloudHub, HubError},
        registry::Registry,
        session::SessionContext,
    },
    cloudstream::{self, CloudStream, Endpoint},
    config::{Config, StreamConfig},
    edgecontroller::{
        cache::Reflector, claim::NoRandomness, index::Index, objects::KINDS, placement::Placing,
        protection::Protection, upstream::Upstream,
    },
    metrics::Metrics,
    secrets::{self, SecretError},
};

/// Nodes that say at once what their edge has of the CAs: a whole fleet has something else when a CA is rotated.
const NOTES: usize = 4;
/// Leases that are written at once. A fleet that comes back has one to write for each node, and reports are not to wait behind all of them.
const LEASES: usize = 32;
/// For sessions to say goodbye.
const GRACE: Duration = Duration::from_secs(8);

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("failed to listen on {address} for edge nodes")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on {address} (UDP) for edge nodes (modules.cloudHub.quic)")]
    ListenQuic {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on {address} for the API server (modules.cloudStream.streamPort)")]
    ListenStream {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("kubeconfig is not usable (kubeAPIConfig.kubeConfig)")]
    Kubeconfig(#[source] KubeconfigError),
    #[error("not in a cluster, and no kubeconfig is given (kubeAPIConfig.kubeConfig)")]
    InCluster(#[source] kube::config::InClusterError),
    #[error("kubeAPIConfig.master is not a URL")]
    Master(#[source] http::uri::InvalidUri),
    #[error("failed to set up the client of the API server")]
    Client(#[source] kube::Error),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(
        "failed to find the address by which the API server is reached; set modules.cloudStream.advertiseAddress"
    )]
    Address(#[from] io::Error),
}

/// Everything that runs, bound and connected.
pub struct App {
    tasks: Supervisor,
    address: SocketAddr,
}

impl App {
    /// Binds and wires; nothing that needs the API server happens before [`run`](Self::run).
    pub async fn build(
        config: Config,
        log_level: LogLevel,
        stop: &CancellationToken,
    ) -> Result<Self, AppError> {
        let Config {
            log_level: _,
            log_format: _,
            admin_address,
            api_server,
            hub,
            lease,
            stream,
            sync_config_map,
        } = config;
        let (client, server) = apiserver::client(&api_server).await?;
        let listen_error = |source| AppError::Listen { address: hub.listen, source };
        let listener = TcpListener::bind(hub.listen).await.map_err(listen_error)?;
        link::prepare_listener(&listener).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let udp = hub.quic.map(|quic| quic_socket(quic, address)).transpose()?;

        let metrics = Metrics::default();
        let mut registry = MetricsRegistry::default();
        metrics.register(&mut registry);
        let index = Arc::new(Index::new().with_sync_config(&sync_config_map));
        let sessions = Arc::new(Registry::default());
        let serving = Arc::new(AtomicBool::new(false));
        let ready = readiness(&serving, &index);
        let pages = vec![
            ("/status", status_page(address, &index, &sessions)),
            ("/sessions", sessions_page(&sessions)),
            ("/digestz", digests_page(&index)),
        ];
        let admin = Admin::bind(&admin_address, registry, log_level, ready, pages).await?;

        let endpoint = Endpoint::default();
        let stream = match stream {
            Some(stream) => Some(Streaming::bind(stream, server, Arc::clone(&endpoint)).await?),
            None => None,
        };
        let upstream = Upstream::new(client.clone(), Arc::clone(&index), metrics.clone(), endpoint)?;
        let context = Arc::new(SessionContext {
            client: client.clone(),
            index: Arc::clone(&index),
            upstream: Arc::new(upstream),
            notes: Semaphore::new(NOTES),
            leases: Arc::new(Semaphore::new(LEASES)),
            registry: sessions,
            patches: Arc::default(),
            metrics,
            hub,
            lease,
        });
        let mut tasks = Supervisor::new(stop.clone());
        tasks.spawn("admin", admin.run(stop.child_token()));
        for kind in &KINDS {
            let reflector = Reflector::new(client.clone(), kind, Arc::clone(&index));
            tasks.spawn(kind.key, reflector.run(stop.child_token()));
        }
        let placing = Placing::new(client.clone(), Arc::clone(&index));
        tasks.spawn("placement", placing.run(stop.child_token()));
        tasks.spawn("protection", Protection::new(client.clone(), index).run(stop.child_token()));
        tasks.spawn("cloudhub", serve(client, (listener, udp), stream, context, serving, stop.child_token()));
        Ok(Self { tasks, address })
    }

    /// Where edge nodes connect; the port may have been chosen by the kernel.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `stop` is cancelled or a task ends.
    pub async fn run(self) -> Outcome {
        self.tasks.join(GRACE).await
    }
}

/// Its port is that of the TCP listener, unless it has one of its own.
fn quic_socket(mut quic: SocketAddr, listener: SocketAddr) -> Result<UdpSocket, AppError> {
    if quic.port() == 0 {
        quic.set_port(listener.port());
    }
    UdpSocket::bind(quic).map_err(|source| AppError::ListenQuic { address: quic, source })
}

/// Waits for the API server, then serves edge nodes.
async fn serve(
    client: Client,
    (listener, udp): (TcpListener, Option<UdpSocket>),
    stream: Option<Streaming>,
    context: Arc<SessionContext>,
    serving: Arc<AtomicBool>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let authorities = tokio::select! {
        // What was created is read at the next start.
        authorities = secrets::establish(&client) => authorities?,
        () = stop.cancelled() => return Ok(()),
    };
    let stream = match stream {
        Some(stream) => Some(stream.serve(client, &context).await?),
        None => None,
    };
    let hub = CloudHub::new(listener, udp, context, authorities);
    // Ends with this.
    let mut streaming = JoinSet::new();
    if let Some(stream) = stream {
        streaming.spawn(stream.run(hub.authorities(), stop.clone()));
    }
    serving.store(true, Ordering::Relaxed);
    info!("serving edge nodes");
    let served = hub.run(stop).await;
    serving.store(false, Ordering::Relaxed);
    Ok(served?)
}

fn readiness(serving: &Arc<AtomicBool>, index: &Arc<Index>) -> Readiness {
    let (serving, index) = (Arc::clone(serving), Arc::clone(index));
    Arc::new(move || {
        if !serving.load(Ordering::Relaxed) {
            return Err("waiting for the API server, or stopping".to_owned());
        }
        let missing = index.missing_kinds();
        if missing.is_empty() { Ok(()) } else { Err(format!("not listed yet: {}", missing.join(", "))) }
    })
}

fn status_page(address: SocketAddr, index: &Arc<Index>, sessions: &Arc<Registry>) -> Page {
    let (index, sessions) = (Arc::clone(index), Arc::clone(sessions));
    Arc::new(move || {
        let (objects, _) = index.sizes();
        json!({"address": address.to_string(), "sessions": sessions.len(), "objects": objects})
    })
}

/// Each connected node, what carries its link, and the bytes by lane.
fn sessions_page(sessions: &Arc<Registry>) -> Page {
    let sessions = Arc::clone(sessions);
    Arc::new(move || sessions.page())
}

/// To be compared with what edgecore says at the same path: equal means that the node holds what it should.
fn digests_page(index: &Arc<Index>) -> Page {
    let index = Arc::clone(index);
    Arc::new(move || {
        let nodes = index.digests();
        nodes.into_iter().map(|(node, digest)| (node, json!(digest.to_string()))).collect()
    })
}

/// The port of the kubelet's API, bound.
struct Streaming {
    listener: TcpListener,
    config: StreamConfig,
    /// The API server.
    server: http::Uri,
    endpoint: Endpoint,
}

impl Streaming {
    async fn bind(config: StreamConfig, server: http::Uri, endpoint: Endpoint) -> Result<Self, AppError> {
        let listen_error = |source| AppError::ListenStream { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        Ok(Self { listener, config, server, endpoint })
    }

    /// To be called once the API server has been reached.
    async fn serve(self, client: Client, context: &SessionContext) -> Result<CloudStream, ServeError> {
        let Self { listener, config, server, endpoint } = self;
        let address = if let Some(address) = config.advertise {
            address
        } else {
            let (host, port) = (server.host().unwrap_or_default(), server.port_u16().unwrap_or(443));
            cloudstream::advertised(cloudstream::reaching(host, port).await?, &config.addresses)
        };
        Ok(CloudStream {
            listener,
            client,
            index: Arc::clone(&context.index),
            registry: Arc::clone(&context.registry),
            metrics: context.metrics.clone(),
            names: context.hub.names.clone(),
            address,
            endpoint,
        })
    }
}
