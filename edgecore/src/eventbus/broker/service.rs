//! What is there as long as clients are: mqtt5's sessions and subscriptions, and its file of what is kept for those that come back.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use mqtt5::{
    MqttError,
    broker::{
        AuthProvider, BrokerConfig, DynamicStorage, FileBackend, ResourceLimits, ResourceMonitor,
        StorageBackend, StorageConfig, client_handler::ClientHandler, router::MessageRouter,
        storage::QueueLimits, sys_topics::BrokerStats, tls_acceptor::TlsStreamWrapper,
        transport::BrokerTransport,
    },
};
use rustls::ServerConfig;
use tokio::{net::TcpStream, sync::broadcast, task::JoinSet, time};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use super::Arrival;

/// For a client to come within TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Routes messages between the clients that are there, and keeps what is for those that come back.
pub(super) struct Service {
    config: Arc<BrokerConfig>,
    access: Arc<dyn AuthProvider>,
    router: Arc<MessageRouter>,
    storage: Arc<DynamicStorage>,
    stats: Arc<BrokerStats>,
    resources: Arc<ResourceMonitor>,
    /// Told when clients have to go.
    end: broadcast::Sender<()>,
}

impl Service {
    pub(super) async fn open(
        config: &Arc<BrokerConfig>,
        access: &Arc<dyn AuthProvider>,
    ) -> Result<Self, MqttError> {
        let StorageConfig { base_dir, max_queued_messages_per_client, max_queued_bytes_per_client, .. } =
            &config.storage_config;
        let limits = QueueLimits {
            max_messages: *max_queued_messages_per_client,
            max_bytes: *max_queued_bytes_per_client,
        };
        let storage = FileBackend::with_queue_limits(base_dir, limits).await?;
        let storage = Arc::new(DynamicStorage::File(storage));
        let mut router = MessageRouter::with_storage(Arc::clone(&storage))
            .with_fallback_queue_limits(limits)
            .with_retained_limits(config.max_retained_messages, config.max_retained_message_size);
        if let Some(handler) = &config.event_handler {
            router = router.with_event_handler(Arc::clone(handler));
        }
        let longest = config.session_expiry_interval.as_secs();
        router.recover_sessions(u32::try_from(longest).unwrap_or(u32::MAX)).await?;
        storage.cleanup_expired().await?;
        router.initialize().await?;
        let limits = ResourceLimits {
            max_message_rate_per_client: config.max_message_rate_per_client,
            max_bandwidth_per_client: config.max_bandwidth_per_client,
            ..ResourceLimits::default()
        };
        Ok(Self {
            config: Arc::clone(config),
            access: Arc::clone(access),
            router: Arc::new(router),
            storage,
            stats: Arc::default(),
            resources: Arc::new(ResourceMonitor::new(limits)),
            end: broadcast::Sender::new(1),
        })
    }

    pub(super) fn router(&self) -> Weak<MessageRouter> {
        Arc::downgrade(&self.router)
    }

    /// Until the connection ends.
    pub(super) async fn serve(self: Arc<Self>, Arrival { stream, from, tls }: Arrival) {
        let ended = async {
            stream.set_nodelay(true)?;
            let transport = match tls {
                Some(config) => BrokerTransport::tls(TlsStreamWrapper::new(handshake(config, stream).await?)),
                None => BrokerTransport::tcp(stream),
            };
            let client = ClientHandler::new(
                transport,
                from,
                Arc::clone(&self.config),
                Arc::clone(&self.router),
                Arc::clone(&self.access),
                Some(Arc::clone(&self.storage)),
                Arc::clone(&self.stats),
                Arc::clone(&self.resources),
                self.end.subscribe(),
            );
            client.run().await
        };
        if let Err(error) = ended.await {
            debug!(%from, error = %runtime::chain(&error), "an MQTT client is gone");
        }
    }

    /// Whether nothing is left to do for clients that are gone, such as a last will whose time has not come.
    pub(super) fn is_done(&self) -> bool {
        Arc::strong_count(&self.router) == 1
    }

    pub(super) async fn tidy(&self) {
        self.router.sweep_sessions().await;
        if let Err(error) = self.storage.cleanup_expired().await {
            warn!(error = %runtime::chain(&error), "what the MQTT broker no longer needs stays on the disk");
        }
    }

    pub(super) async fn close(&self, mut clients: JoinSet<()>) {
        // It fails if no client is there.
        drop(self.end.send(()));
        while clients.join_next().await.is_some() {}
        if let Err(error) = self.storage.shutdown().await {
            warn!(error = %runtime::chain(&error), "what waits for MQTT clients may not be on the disk");
        }
    }
}

async fn handshake(config: Arc<ServerConfig>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await?
}
