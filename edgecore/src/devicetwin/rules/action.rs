//! What a rule does.

use std::time::Duration;

use bytes::Bytes;
use crds::{
    broker::BrokerAddress,
    devices::rules::{self, Post, Publish, RaiseEvent},
};
use proto::{ResourceKey, message::ReportKind};
use serde_json::json;
use tokio::time;

use super::Moment;
use crate::{
    access::Access,
    devicetwin::{
        Devices,
        events::{About, event},
        push::{Letter, Refused, Sink, Target},
        twin::UnixMs,
    },
    metamanager::Store,
};

/// How often something that somebody does not take now is offered, and how long after the last time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// Checked as far as that goes without devices.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Set {
        device: ResourceKey,
        property: String,
        value: String,
    },
    /// To the broker of the node.
    Publish {
        topic: String,
        payload: String,
    },
    Post {
        target: Target,
        body: Option<String>,
    },
    Event {
        reason: String,
        message: String,
    },
}

impl Action {
    /// `device` finds the device of a name. The error says what is wrong.
    pub(super) fn parse(
        action: &rules::Action,
        device: impl Fn(&str) -> Option<ResourceKey>,
    ) -> Result<Self, String> {
        match action {
            rules::Action { set: Some(set), publish: None, post: None, event: None } => {
                let name = &set.device;
                let device =
                    device(name).ok_or_else(|| format!("set.device {name:?} is none of spec.devices"))?;
                Ok(Self::Set { device, property: set.property.clone(), value: set.value.clone() })
            }
            rules::Action {
                set: None,
                publish: Some(Publish { topic, payload }),
                post: None,
                event: None,
            } => {
                if topic.is_empty() || topic.contains(['+', '#', '\0']) {
                    return Err(format!("publish.topic {topic:?} is no topic to publish to"));
                }
                Ok(Self::Publish { topic: topic.clone(), payload: payload.clone() })
            }
            rules::Action { set: None, publish: None, post: Some(Post { url, body }), event: None } => {
                let target = Target::of_url(url).map_err(|error| format!("post.url {error}"))?;
                Ok(Self::Post { target, body: body.clone() })
            }
            rules::Action {
                set: None,
                publish: None,
                post: None,
                event: Some(RaiseEvent { reason, message }),
            } => Ok(Self::Event { reason: reason.clone(), message: message.clone() }),
            _ => Err("is not just one of set, publish, post and event".to_owned()),
        }
    }
}

/// What it takes to do it.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) devices: Devices,
    pub(super) store: Store,
    /// The node's.
    pub(super) broker: Option<BrokerAddress>,
    pub(super) access: Access,
}

/// The rule, and when it was that it began or was over.
pub(super) struct Occasion {
    pub(super) rule: ResourceKey,
    pub(super) uid: Box<str>,
    pub(super) moment: Moment,
    pub(super) at: UnixMs,
}

impl Means {
    /// Does all of it, in this order, whatever fails; what failed, for people.
    pub(super) async fn perform(&self, actions: &[Action], occasion: &Occasion) -> Vec<String> {
        let mut failed = Vec::new();
        for (at, action) in actions.iter().enumerate() {
            if let Err(reason) = self.perform_one(action, occasion).await {
                let list = if occasion.moment == Moment::Begins { "then" } else { "otherwise" };
                failed.push(format!("{list}[{at}]: {reason}"));
            }
        }
        failed
    }

    async fn perform_one(&self, action: &Action, occasion: &Occasion) -> Result<(), String> {
        match action {
            Action::Set { device, property, value } => self
                .devices
                .set(device, property, value)
                .await
                .map_err(|error| runtime::chain(&error).to_string()),
            Action::Publish { topic, payload } => {
                let broker = self.broker.as_ref().ok_or("the node has no MQTT broker (modules.eventBus)")?;
                let target = Target::of_broker(broker, topic);
                self.send(&target, &Letter { content_type: "text/plain", body: payload.clone() }).await
            }
            Action::Post { target, body } => {
                let letter = match body {
                    Some(body) => Letter { content_type: "text/plain; charset=utf-8", body: body.clone() },
                    None => Letter { content_type: "application/json", body: occasion.describe() },
                };
                self.send(target, &letter).await
            }
            Action::Event { reason, message } => {
                self.tell(occasion, "Warning", reason, message).await.map_err(|error| error.to_string())
            }
        }
    }

    async fn send(&self, target: &Target, letter: &Letter) -> Result<(), String> {
        let mut attempt = 1;
        loop {
            let sent = async { Sink::open(target, &self.access).await?.send(target, letter).await };
            match sent.await {
                Ok(()) => return Ok(()),
                Err(Refused::Now(_)) if attempt < ATTEMPTS => time::sleep(PAUSE * attempt).await,
                Err(Refused::Now(reason) | Refused::ForGood(reason)) => {
                    return Err(format!("{target}: {reason}"));
                }
            }
            attempt += 1;
        }
    }

    /// Raises an event about the rule. Durable when it returns.
    pub(super) async fn tell(
        &self,
        occasion: &Occasion,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), crate::metamanager::StoreError> {
        let about = About {
            api_version: "devices.skerry.io/v1alpha1",
            kind: "DeviceRule",
            key: &occasion.rule,
            uid: &occasion.uid,
            component: "devicerules",
        };
        let event: Bytes = event(&about, kind, reason, message);
        self.store.report(ReportKind::Event, &occasion.rule, event).await.map(drop)
    }
}

impl Occasion {
    fn describe(&self) -> String {
        json!({"namespace": self.rule.namespace(), "rule": self.rule.name(), "active": self.moment == Moment::Begins,
            "timestamp": self.at})
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(action: serde_json::Value) -> Result<Action, String> {
        let fan = |name: &str| (name == "fan").then(|| "Device.devices.kubeedge.io/d/fan-1".parse().unwrap());
        Action::parse(&serde_json::from_value(action).unwrap(), fan)
    }

    #[test]
    fn an_action_is_one_of_four() {
        let set = json!({"set": {"device": "fan", "property": "running", "value": "true"}});
        assert!(matches!(parse(set), Ok(Action::Set { property, .. }) if property == "running"));
        assert!(matches!(
            parse(json!({"post": {"url": "http://h:81/x"}})),
            Ok(Action::Post { body: None, .. })
        ));
        for (action, reason) in [
            (json!({"set": {"device": "pump", "property": "p", "value": ""}}), "none of spec.devices"),
            (json!({"publish": {"topic": "a/#"}}), "no topic"),
            (json!({"post": {"url": "ftp://h"}}), "post.url"),
            (json!({}), "not just one"),
            (json!({"publish": {"topic": "a"}, "post": {"url": "http://h"}}), "not just one"),
        ] {
            let error = parse(action).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
