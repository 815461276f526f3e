//! A broker that is not ours: what apps want of devices is subscribed to there, and what devices are is published there.

use std::time::Duration;

use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS, SubscribeFilter};
use runtime::tls::TlsError;
use tokio::{sync::mpsc, time};

use super::broker::{Heard, Publisher};
use crate::{
    access::ExternalBroker,
    mqtt::{connected, transport},
};

/// Messages on their way there; who has more waits.
const REQUESTS: usize = 100;
const LONGEST: usize = 1 << 20;
/// To connect.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub(super) enum ExternalError {
    #[error("the broker did not answer within {PATIENCE:?}")]
    TimedOut,
    #[error(transparent)]
    Trust(#[from] TlsError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("it takes no subscriptions now")]
    Subscribe(#[from] rumqttc::ClientError),
}

pub(super) struct External {
    client: AsyncClient,
    events: EventLoop,
    heard: mpsc::Sender<Heard>,
}

impl External {
    /// Connected, and subscribed to what is asked of devices.
    pub(super) async fn connect(
        broker: &ExternalBroker,
        node: &str,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Self, ExternalError> {
        // One edgecore has one connection; what apps ask while it is away the broker keeps.
        let ExternalBroker { address, login, trust } = broker;
        let mut options = MqttOptions::new(format!("skerry-{node}"), address.host.clone(), address.port);
        options.set_clean_session(false);
        options.set_max_packet_size(LONGEST, LONGEST);
        if let Some((user, password)) = login {
            options.set_credentials(user.clone(), password.0.clone());
        }
        if address.secure {
            options.set_transport(transport(trust)?);
        }
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        time::timeout(PATIENCE, connected(&mut events)).await.map_err(|_| ExternalError::TimedOut)??;
        let filters = super::topic::asked(node).into_iter();
        client.try_subscribe_many(filters.map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce)))?;
        Ok(Self { client, events, heard })
    }

    pub(super) fn publisher(&self) -> Publisher {
        Publisher::External(self.client.clone())
    }

    /// Until the connection ends.
    pub(super) async fn run(mut self) -> Result<(), ExternalError> {
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = self.events.poll().await? {
                let heard = Heard { topic: publish.topic.into(), payload: publish.payload };
                if self.heard.send(heard).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
