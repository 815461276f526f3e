//! An app at the site, as far as MQTT goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, MqttOptions, Packet, QoS, SubscribeFilter,
    SubscribeReasonCode, Transport,
};
use runtime::tls::Trust;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::node::SOON;

const QUEUE: usize = 100;

pub(crate) struct App {
    client: AsyncClient,
    heard: mpsc::Receiver<(String, Value)>,
    acks: mpsc::Receiver<Vec<SubscribeReasonCode>>,
    _connection: JoinSet<()>,
}

/// User and password.
pub(crate) type Login<'a> = Option<(&'a str, &'a str)>;

fn options(name: &str, port: u16, login: Login<'_>) -> MqttOptions {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20);
    if let Some((user, password)) = login {
        options.set_credentials(user, password);
    }
    options
}

fn secured(name: &str, trust: &Trust, port: u16) -> Result<MqttOptions> {
    let mut options = options(name, port, None);
    options.set_transport(Transport::tls_with_config(trust.client_config()?.into()));
    Ok(options)
}

/// Whether somebody is let in who comes so, within TLS.
pub(crate) async fn is_let_in(trust: &Trust, port: u16) -> Result<bool> {
    let (_client, mut connection) = AsyncClient::new(secured("somebody", trust, port)?, QUEUE);
    let answer = timeout(SOON, connection.poll()).await.context("the broker does not answer")?;
    Ok(matches!(answer, Ok(Event::Incoming(Packet::ConnAck(_)))))
}

/// An app that was there once comes back: what has waited for it, up to the one with this topic.
pub(crate) async fn waited(name: &str, port: u16, last: &str) -> Result<Vec<String>> {
    let (client, mut connection) = AsyncClient::new(returning(name, port), QUEUE);
    let mut topics = Vec::new();
    let heard = async {
        while topics.last().is_none_or(|topic| topic != last) {
            if let Event::Incoming(Packet::Publish(publish)) = connection.poll().await? {
                topics.push(publish.topic);
            }
        }
        client.try_disconnect()?;
        while connection.poll().await.is_ok() {}
        anyhow::Ok(())
    };
    let in_time = timeout(SOON, heard).await;
    in_time.with_context(|| format!("{last} did not come; before it {topics:?}"))??;
    Ok(topics)
}

/// An app is there once, and has subscribed to this when it goes.
pub(crate) async fn leave_subscribed(name: &str, port: u16, topic: &str) -> Result<()> {
    let (client, mut connection) = AsyncClient::new(returning(name, port), QUEUE);
    client.try_subscribe(topic, QoS::AtLeastOnce)?;
    let subscribed = async {
        while !matches!(connection.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
        client.try_disconnect()?;
        while connection.poll().await.is_ok() {}
        anyhow::Ok(())
    };
    timeout(SOON, subscribed).await.context("the broker does not answer")?
}

fn returning(name: &str, port: u16) -> MqttOptions {
    let mut options = options(name, port, None);
    options.set_clean_session(false);
    options
}

/// What the broker says to somebody who comes so.
pub(crate) async fn greeting(port: u16, login: Login<'_>) -> Result<ConnectReturnCode> {
    let (_client, mut connection) = AsyncClient::new(options("somebody", port, login), QUEUE);
    let answered = async {
        loop {
            match connection.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(ack))) => return ack.code,
                Err(ConnectionError::ConnectionRefused(code)) => return code,
                Ok(_) => {}
                // The broker may not be there yet.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(SOON, answered).await.context("the broker does not answer")
}

impl App {
    /// As [`start`](Self::start), within TLS.
    pub(crate) async fn start_within_tls(
        name: &str,
        trust: &Trust,
        port: u16,
        topics: &[&str],
    ) -> Result<Self> {
        Self::connect(secured(name, trust, port)?, topics).await
    }

    /// One that has subscribed to these.
    pub(crate) async fn start(name: &str, port: u16, topics: &[&str]) -> Result<Self> {
        Self::start_as(name, None, port, topics).await
    }

    /// As [`start`](Self::start), of a user.
    pub(crate) async fn start_as(name: &str, login: Login<'_>, port: u16, topics: &[&str]) -> Result<Self> {
        Self::connect(options(name, port, login), topics).await
    }

    async fn connect(options: MqttOptions, topics: &[&str]) -> Result<Self> {
        let (client, mut connection) = AsyncClient::new(options, QUEUE);
        let (said, heard) = mpsc::channel(QUEUE);
        let (subscribed, acks) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        let (again, wanted) =
            (client.clone(), topics.iter().map(|&topic| topic.to_owned()).collect::<Vec<_>>());
        let mut is_first = true;
        task.spawn(async move {
            loop {
                match connection.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let payload = serde_json::from_slice(&publish.payload).unwrap_or_default();
                        if said.send((publish.topic, payload)).await.is_err() {
                            return;
                        }
                    }
                    // A broker that has ended knows of nothing.
                    Ok(Event::Incoming(Packet::ConnAck(_))) if !std::mem::take(&mut is_first) => {
                        let filters = wanted.iter().cloned();
                        let filters = filters.map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce));
                        if again.try_subscribe_many(filters).is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(ack))) => drop(subscribed.send(ack.return_codes).await),
                    Ok(_) => {}
                    // The broker may not be there yet.
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let mut app = Self { client, heard, acks, _connection: task };
        for topic in topics {
            ensure!(app.subscribe(topic).await?, "the broker refuses the subscription to {topic}");
        }
        Ok(app)
    }

    /// Whether the broker lets it. What was said before has been heard there by then.
    pub(crate) async fn subscribe(&mut self, topic: &str) -> Result<bool> {
        self.client.subscribe(topic, QoS::AtLeastOnce).await?;
        let ack = timeout(SOON, self.acks.recv()).await;
        let ack = ack.with_context(|| format!("no answer to the subscription to {topic}"))?;
        let codes = ack.context("the app's connection has ended")?;
        Ok(!codes.contains(&SubscribeReasonCode::Failure))
    }

    pub(crate) async fn say(&self, topic: &str, payload: impl Into<Vec<u8>>) -> Result<()> {
        Ok(self.client.publish(topic, QoS::AtLeastOnce, false, payload).await?)
    }

    /// For whoever subscribes later, too.
    pub(crate) async fn leave(&self, topic: &str, payload: &str) -> Result<()> {
        Ok(self.client.publish(topic, QoS::AtLeastOnce, true, payload).await?)
    }

    pub(crate) async fn ask(&mut self, topic: &str, payload: &Value) -> Result<Value> {
        self.say(topic, payload.to_string()).await?;
        let event_id = payload["event_id"].clone();
        self.until(&format!("{topic}/result"), |answer| answer["event_id"] == event_id).await
    }

    /// The next message to this topic for which this holds; what comes before is dropped.
    pub(crate) async fn until(&mut self, topic: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + SOON;
        let mut last = json!(null);
        loop {
            let heard = timeout_at(deadline, self.heard.recv()).await;
            let heard = heard.with_context(|| format!("nothing such on {topic}; the last there: {last}"))?;
            let (at, payload) = heard.context("the app's connection has ended")?;
            if at == topic && holds(&payload) {
                return Ok(payload);
            }
            if at == topic {
                last = payload;
            }
        }
    }
}
