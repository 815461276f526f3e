//! The broker for apps at the site: mqtt5, MQTT 3.1.1 and 5, with everything bounded.

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use mqtt5::{
    MqttError, QoS,
    broker::{
        BrokerConfig, BrokerEventHandler, ClientPublishEvent, MqttBroker, PublishAction, StorageBackendType,
        StorageConfig, router::MessageRouter,
    },
    packet::publish::PublishPacket,
};
use rumqttc::AsyncClient;
use tokio::sync::mpsc;

use super::{gate::Gate, users::BrokerUsers};

const CLIENTS: usize = 200;
const LONGEST: usize = 1 << 20;
const SUBSCRIPTIONS: usize = 200;
const RETAINED: usize = 1000;
const LONGEST_RETAINED: usize = 64 << 10;
/// That wait for a client that is away, in bytes.
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
    /// Sessions, queued and retained messages.
    pub directory: PathBuf,
    /// Messages that wait for a client that is away.
    pub queue: usize,
    /// `None`: nobody has to log in.
    pub users: Option<BrokerUsers>,
}

/// A message of a client.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) topic: Arc<str>,
    pub(super) payload: Bytes,
}

pub(super) struct Broker(MqttBroker);

impl Broker {
    /// Messages to watched topics go to `heard` as well, which holds up the clients that send them while it is full.
    pub(super) async fn bind(
        settings: &BrokerSettings,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Self, MqttError> {
        let config = BrokerConfig {
            bind_addresses: vec![settings.listen],
            max_clients: CLIENTS,
            session_expiry_interval: SESSION,
            max_packet_size: LONGEST,
            max_subscriptions_per_client: SUBSCRIPTIONS,
            max_retained_messages: RETAINED,
            max_retained_message_size: LONGEST_RETAINED,
            client_channel_capacity: ON_THE_WAY,
            sys_topics_enabled: false,
            storage_config: StorageConfig {
                backend: StorageBackendType::File,
                // What was kept for nobody in particular is no user's: mqtt5 would refuse whoever comes back for it.
                base_dir: if settings.users.is_some() {
                    settings.directory.join("users")
                } else {
                    settings.directory.clone()
                },
                enable_persistence: true,
                max_queued_messages_per_client: settings.queue,
                max_queued_bytes_per_client: QUEUED,
                ..StorageConfig::default()
            },
            event_handler: Some(Arc::new(Listener(heard))),
            ..BrokerConfig::default()
        };
        let broker = MqttBroker::with_config(config).await?;
        Ok(Self(match &settings.users {
            Some(users) => broker.with_auth_provider(Arc::new(Gate::open(users).await)),
            None => broker,
        }))
    }

    pub(super) fn publisher(&self) -> Publisher {
        Publisher::Own(self.0.router())
    }

    /// Until it is dropped.
    pub(super) async fn run(mut self) -> Result<(), MqttError> {
        self.0.run().await
    }
}

/// Sends to whoever has subscribed.
pub(super) enum Publisher {
    Own(Arc<MessageRouter>),
    External(AsyncClient),
}

impl Publisher {
    pub(super) async fn publish(&self, topic: String, payload: &serde_json::Value) {
        match self {
            Self::Own(router) => {
                let packet = PublishPacket::new(topic, payload.to_string(), QoS::AtMostOnce);
                router.route_message(&packet, None).await;
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
