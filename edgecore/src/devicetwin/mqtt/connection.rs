//! One device's connection to its broker.

use std::{collections::BTreeSet, time::Duration};

use crds::{broker::BrokerAddress, devices::v1beta1::PropertyType};
use rumqttc::{AsyncClient, Event, EventLoop, Packet, Publish, QoS, SubscribeFilter};
use runtime::{backoff::Backoff, tls::Trust};
use tokio::{sync::mpsc, time};
use tracing::debug;

use super::{path::Path, place::Status};
use crate::{
    devicetwin::{
        driver::{Heard, Reading, Trouble},
        twin::State,
        value::Value,
    },
    mqtt,
};

const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Where a property's value comes from.
pub(super) struct Route {
    /// The property's position.
    pub(super) at: usize,
    pub(super) kind: PropertyType,
    pub(super) topic: Box<str>,
    pub(super) path: Option<Path>,
}

pub(super) struct Connection {
    pub(super) client: AsyncClient,
    pub(super) events: EventLoop,
    pub(super) broker: BrokerAddress,
    /// Whom to believe, if it is spoken to within TLS.
    pub(super) trust: Option<Trust>,
    pub(super) routes: Vec<Route>,
    pub(super) status: Option<Status>,
    pub(super) say: mpsc::Sender<Heard>,
}

impl Connection {
    /// Until it is dropped, or nobody listens.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let heard = match self.next().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    backoff.reset();
                    self.subscribe();
                    continue;
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => self.heard(&publish),
                Ok(_) => continue,
                Err(reason) => {
                    let reason = format!("no connection to the broker at {}: {reason}", self.broker);
                    let away = |route: &Route| (route.at, Err(Trouble::device(reason.clone())));
                    let heard = Heard { readings: self.routes.iter().map(away).collect(), state: None };
                    if self.say.send(heard).await.is_err() {
                        return;
                    }
                    time::sleep(backoff.next_delay()).await;
                    continue;
                }
            };
            if heard != Heard::default() && self.say.send(heard).await.is_err() {
                return;
            }
        }
    }

    /// What happens next. An error is the end of a connection, or of an attempt to have one.
    async fn next(&mut self) -> Result<Event, String> {
        // With each attempt anew: the files may have been replaced.
        if let Some(trust) = &self.trust
            && self.events.network.is_none()
        {
            let transport = mqtt::transport(trust).map_err(|error| runtime::chain(&error).to_string())?;
            self.events.mqtt_options.set_transport(transport);
        }
        self.events.poll().await.map_err(|error| runtime::chain(&error).to_string())
    }

    /// With each connection anew: the broker keeps no session of it. Nothing waits in the queue yet, so that there is room for it.
    fn subscribe(&self) {
        let topics: BTreeSet<&str> = self
            .routes
            .iter()
            .map(|route| &*route.topic)
            .chain(self.status.iter().map(|one| &*one.topic))
            .collect();
        if topics.is_empty() {
            return;
        }
        let filters =
            topics.into_iter().map(|topic| SubscribeFilter::new(topic.to_owned(), QoS::AtLeastOnce));
        if let Err(error) = self.client.try_subscribe_many(filters) {
            debug!(error = %runtime::chain(&error), "not subscribed; the next connection is");
        }
    }

    fn heard(&self, publish: &Publish) -> Heard {
        let routes = self.routes.iter().filter(|route| *route.topic == *publish.topic);
        // Several properties may be in one message.
        let document = serde_json::from_slice(&publish.payload);
        let readings: Vec<Reading> = routes
            .map(|route| {
                let text = match (&route.path, &document) {
                    (None, _) => raw(route.kind, &publish.payload),
                    (Some(path), Ok(document)) => path.of(document),
                    (Some(_), Err(error)) => Err(format!("the message is no JSON: {error}")),
                };
                let value =
                    text.and_then(|text| Value::parse(route.kind, &text).map_err(|error| error.to_string()));
                (route.at, value.map_err(Trouble::property))
            })
            .collect();
        let state =
            self.status.as_ref().filter(|status| *status.topic == *publish.topic).and_then(|status| {
                let said = String::from_utf8_lossy(&publish.payload);
                let is = |word: &str| said.trim().eq_ignore_ascii_case(word);
                if is(&status.offline) {
                    Some(State::Offline)
                } else {
                    is(&status.online).then_some(State::Online)
                }
            });
        Heard { readings, state }
    }
}

/// A message that is the value.
fn raw(kind: PropertyType, payload: &[u8]) -> Result<String, String> {
    if kind == PropertyType::Bytes {
        return Ok(Value::Bytes(payload.into()).to_string());
    }
    std::str::from_utf8(payload).map(str::to_owned).map_err(|_| "the message is no text".to_owned())
}
