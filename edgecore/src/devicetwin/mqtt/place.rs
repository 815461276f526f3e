//! What a Device says of where an MQTT device, and its properties, are.

use crds::broker::BrokerAddress;
use serde_json::{Map, Value as Json};

use super::{super::value::Value, path::Path};

/// MQTT allows 65,535 bytes; nobody has more than this.
const LONGEST_TOPIC: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: BrokerAddress,
    pub(super) login: Option<(String, String)>,
}

/// A device's last will, as it were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) topic: Box<str>,
    pub(super) online: Box<str>,
    pub(super) offline: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) topic: Box<str>,
    /// `None`: the whole message is the value.
    pub(super) path: Option<Path>,
    pub(super) write: Option<Write>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) topic: Box<str>,
    /// `None`: the value is the whole message.
    path: Option<Path>,
    pub(super) retain: bool,
}

fn text<'a>(config: &'a Map<String, Json>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Json::as_str).filter(|text| !text.is_empty())
}

fn topic(config: &Map<String, Json>, key: &str) -> Result<Option<Box<str>>, String> {
    let Some(topic) = text(config, key) else { return Ok(None) };
    if topic.contains(['+', '#', '\0']) {
        return Err(format!("{key} {topic:?} has a wildcard in it: it has to name one topic"));
    }
    if topic.len() > LONGEST_TOPIC {
        return Err(format!("{key} has {} bytes, more than {LONGEST_TOPIC}", topic.len()));
    }
    Ok(Some(topic.into()))
}

fn path(config: &Map<String, Json>, key: &str) -> Result<Option<Path>, String> {
    text(config, key).map(Path::parse).transpose().map_err(|error| format!("{key}: {error}"))
}

impl Server {
    pub(super) fn parse(config: &Map<String, Json>, of_node: Option<&BrokerAddress>) -> Result<Self, String> {
        let address = match text(config, "server") {
            Some(server) => server
                .parse()
                .map_err(|error| format!("spec.protocol.configData.server {server:?} {error}"))?,
            None => of_node.cloned().ok_or(
                "spec.protocol.configData.server is missing, and the node has no broker of its own (modules.eventBus)",
            )?,
        };
        let login = text(config, "username")
            .map(|user| (user.to_owned(), text(config, "password").unwrap_or_default().to_owned()));
        Ok(Self { address, login })
    }
}

impl Status {
    pub(super) fn parse(config: &Map<String, Json>) -> Result<Option<Self>, String> {
        let Some(topic) = topic(config, "statusTopic")? else { return Ok(None) };
        let word = |key: &str, usual: &str| text(config, key).unwrap_or(usual).into();
        Ok(Some(Self {
            topic,
            online: word("onlinePayload", "online"),
            offline: word("offlinePayload", "offline"),
        }))
    }
}

impl Place {
    /// Of a property's visitor.
    pub(super) fn parse(visitor: &Map<String, Json>) -> Result<Self, String> {
        let topic_of = topic(visitor, "topic")?.ok_or("the property's visitor names no topic")?;
        let write = topic(visitor, "writeTopic")?.map(|topic| {
            let retain = visitor.get("retain").and_then(Json::as_bool).unwrap_or_default();
            Ok::<_, String>(Write { topic, path: path(visitor, "writePath")?, retain })
        });
        Ok(Self { topic: topic_of, path: path(visitor, "jsonPath")?, write: write.transpose()? })
    }
}

impl Write {
    pub(super) fn payload(&self, value: &Value) -> Vec<u8> {
        let text = value.to_string();
        match (&self.path, value) {
            (None, Value::Bytes(bytes)) => bytes.to_vec(),
            (None, _) => text.into(),
            (Some(path), Value::Text(_) | Value::Bytes(_)) => path.document(text.into()).to_string().into(),
            // As it is written it is JSON.
            (Some(path), _) => {
                let value = serde_json::from_str(&text).unwrap_or(Json::String(text));
                path.document(value).to_string().into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "callers make it for it")]
    fn map(config: Json) -> Map<String, Json> {
        config.as_object().unwrap().clone()
    }

    #[test]
    fn a_broker_is_the_one_that_is_named_or_the_nodes() {
        let node = "tcp://127.0.0.1:1883".parse().unwrap();
        let of = |server: &str| Server::parse(&map(json!({"server": server})), Some(&node));
        assert_eq!(of("").unwrap().address, node);
        assert_eq!(of("ssl://broker").unwrap().address.to_string(), "ssl://broker:8883");
        assert!(of("broker:x").unwrap_err().contains("server \"broker:x\" is no tcp://HOST:PORT"));
        assert!(Server::parse(&Map::new(), None).is_err());
    }

    #[test]
    fn a_property_has_a_topic_and_no_wildcard() {
        let place = Place::parse(&map(json!({"topic": "t/state", "jsonPath": "$.level",
            "writeTopic": "t/set", "writePath": "level", "retain": true})))
        .unwrap();
        let write = place.write.unwrap();
        assert_eq!(write.payload(&Value::Integer(7)), br#"{"level":7}"#);
        assert!(write.retain);
        let plain = Place::parse(&map(json!({"topic": "t", "writeTopic": "t/set"}))).unwrap();
        assert_eq!(plain.write.unwrap().payload(&Value::Boolean(true)), b"true");
        for (visitor, reason) in [
            (json!({}), "names no topic"),
            (json!({"topic": "a/#"}), "wildcard"),
            (json!({"topic": "a", "writeTopic": "a/+/b"}), "wildcard"),
            (json!({"topic": "a", "jsonPath": "a["}), "jsonPath"),
            (json!({"topic": "a".repeat(600)}), "600 bytes"),
        ] {
            let error = Place::parse(&map(visitor)).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
