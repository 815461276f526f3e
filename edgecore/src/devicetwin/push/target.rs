//! Where readings are pushed to.

use std::fmt;

use crds::{
    broker::{BrokerAddress, authority},
    devices::v1beta1::PushMethod,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const USUAL_PORT: u16 = 80;
const USUAL_SECURE_PORT: u16 = 443;
/// Seconds that a request may take, if the Device does not say.
const USUAL_TIMEOUT: u64 = 10;
const LONGEST_TIMEOUT: u64 = 60;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::devicetwin) enum Target {
    Http { secure: bool, host: String, port: u16, path: String, timeout_seconds: u64 },
    Mqtt { broker: BrokerAddress, topic: String, qos: u8, retain: bool },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { secure, host, port, path, .. } => {
                let scheme = if *secure { "https" } else { "http" };
                write!(f, "{scheme}://{}{path}", authority(host, *port))
            }
            Self::Mqtt { broker, topic, .. } => write!(f, "{topic} at {broker}"),
        }
    }
}

impl Target {
    /// What a property's `pushMethod` names; of a database, `Ok(None)`: that is for a mapper.
    pub(in crate::devicetwin) fn parse(method: &PushMethod) -> Result<Option<Self>, String> {
        if let Some(http) = &method.http {
            let (secure, host) = match http.host_name.split_once("://") {
                None => (false, http.host_name.as_str()),
                Some(("http", host)) => (false, host),
                Some(("https", host)) => (true, host),
                Some(_) => (false, ""),
            };
            let host = host.trim_end_matches('/');
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            if host.is_empty() || authority(host, 1).parse::<http::uri::Authority>().is_err() {
                return Err(format!(
                    "pushMethod.http.hostName {:?} is no http://HOST and no https://HOST",
                    http.host_name
                ));
            }
            let path = format!("/{}", http.request_path.trim_start_matches('/'));
            if path.parse::<http::Uri>().is_err() {
                return Err(format!("pushMethod.http.requestPath {path:?} is no path"));
            }
            let timeout = u64::try_from(http.timeout).unwrap_or_default();
            return Ok(Some(Self::Http {
                secure,
                host: host.to_owned(),
                port: port("pushMethod.http.port", http.port)?.unwrap_or(usual_port(secure)),
                path,
                timeout_seconds: if timeout == 0 { USUAL_TIMEOUT } else { timeout.min(LONGEST_TIMEOUT) },
            }));
        }
        let Some(mqtt) = &method.mqtt else { return Ok(None) };
        let broker = mqtt
            .address
            .parse()
            .map_err(|error| format!("pushMethod.mqtt.address {:?} {error}", mqtt.address))?;
        if mqtt.topic.is_empty() || mqtt.topic.contains(['+', '#', '\0']) {
            return Err(format!("pushMethod.mqtt.topic {:?} is no topic to publish to", mqtt.topic));
        }
        Ok(Some(Self::Mqtt {
            broker,
            topic: mqtt.topic.clone(),
            qos: u8::try_from(mqtt.qos).ok().filter(|qos| *qos <= 2).unwrap_or_default(),
            retain: mqtt.retained,
        }))
    }

    /// Of `http://HOST:PORT/PATH`, or with https. The error has it.
    pub(in crate::devicetwin) fn of_url(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url:?} is no http://HOST:PORT/PATH and no https://HOST:PORT/PATH");
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().ok_or_else(wrong)?;
        Ok(Self::Http {
            secure,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(usual_port(secure)),
            path: uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned(),
            timeout_seconds: USUAL_TIMEOUT,
        })
    }

    pub(in crate::devicetwin) fn of_broker(broker: &BrokerAddress, topic: &str) -> Self {
        Self::Mqtt { broker: broker.clone(), topic: topic.to_owned(), qos: 1, retain: false }
    }

    /// The same for the same target, and short.
    pub(super) fn id(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        runtime::token::hex(&Sha256::digest(text)[..8])
    }
}

const fn usual_port(secure: bool) -> u16 {
    if secure { USUAL_SECURE_PORT } else { USUAL_PORT }
}

/// 0 is none.
fn port(field: &str, port: i64) -> Result<Option<u16>, String> {
    match u16::try_from(port) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err(format!("{field} {port} is no port")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(method: serde_json::Value) -> Result<Option<String>, String> {
        let method: PushMethod = serde_json::from_value(method).unwrap();
        Ok(Target::parse(&method)?.map(|target| target.to_string()))
    }

    #[test]
    fn a_push_method_names_a_place() {
        for (method, wanted) in [
            (
                json!({"http": {"hostName": "http://10.0.0.1", "port": 8080, "requestPath": "/in", "timeout": 2}}),
                Some("http://10.0.0.1:8080/in"),
            ),
            (json!({"http": {"hostName": "collector", "requestPath": "in"}}), Some("http://collector:80/in")),
            (
                json!({"mqtt": {"address": "tcp://broker:1884", "topic": "t", "qos": 1}}),
                Some("t at tcp://broker:1884"),
            ),
            (json!({"http": {"hostName": "https://[::1]/"}}), Some("https://[::1]:443/")),
            (json!({"mqtt": {"address": "ssl://b", "topic": "t"}}), Some("t at ssl://b:8883")),
            (json!({}), None),
        ] {
            assert_eq!(parse(method).unwrap().as_deref(), wanted);
        }
        for (method, reason) in [
            (json!({"http": {"hostName": "ftp://h"}}), "no http://HOST and no https://HOST"),
            (json!({"http": {"hostName": "h/x"}}), "no http://HOST and no https://HOST"),
            (json!({"http": {"hostName": "h\r\nx"}}), "no http://HOST and no https://HOST"),
            (json!({"http": {"hostName": "h", "port": 70000}}), "70000 is no port"),
            (json!({"mqtt": {"address": "tcp://b:x", "topic": "t"}}), "is no tcp://HOST:PORT"),
            (json!({"mqtt": {"address": "b", "topic": "a/#"}}), "no topic"),
        ] {
            let error = parse(method).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
