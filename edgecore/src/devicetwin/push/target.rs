//! Where readings are pushed to.

use std::fmt;

use crds::devices::v1beta1::PushMethod;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const USUAL_MQTT_PORT: u16 = 1883;
const USUAL_HTTP_PORT: u16 = 80;
/// Seconds that a request may take, if the Device does not say.
const USUAL_TIMEOUT: u64 = 10;
const LONGEST_TIMEOUT: u64 = 60;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::devicetwin) enum Target {
    Http { host: String, port: u16, path: String, timeout_seconds: u64 },
    Mqtt { host: String, port: u16, topic: String, qos: u8, retain: bool },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { host, port, path, .. } => write!(f, "http://{host}:{port}{path}"),
            Self::Mqtt { host, port, topic, .. } => write!(f, "mqtt://{host}:{port}/{topic}"),
        }
    }
}

impl Target {
    /// What a property's `pushMethod` names; of a database, `Ok(None)`: that is for a mapper.
    pub(in crate::devicetwin) fn parse(method: &PushMethod) -> Result<Option<Self>, String> {
        if let Some(http) = &method.http {
            let host =
                http.host_name.strip_prefix("http://").unwrap_or(&http.host_name).trim_end_matches('/');
            if host.is_empty() || host.contains("://") || host.contains(['/', ' ', '\r', '\n']) {
                let name = &http.host_name;
                return Err(format!(
                    "pushMethod.http.hostName {name:?} is no http://HOST; https is not spoken yet"
                ));
            }
            let path = format!("/{}", http.request_path.trim_start_matches('/'));
            if path.parse::<http::Uri>().is_err() {
                return Err(format!("pushMethod.http.requestPath {path:?} is no path"));
            }
            let timeout = u64::try_from(http.timeout).unwrap_or_default();
            return Ok(Some(Self::Http {
                host: host.to_owned(),
                port: port("pushMethod.http.port", http.port, USUAL_HTTP_PORT)?,
                path,
                timeout_seconds: if timeout == 0 { USUAL_TIMEOUT } else { timeout.min(LONGEST_TIMEOUT) },
            }));
        }
        let Some(mqtt) = &method.mqtt else { return Ok(None) };
        let address = mqtt.address.strip_prefix("tcp://").unwrap_or(&mqtt.address);
        let wrong = || format!("pushMethod.mqtt.address {:?} is no tcp://HOST:PORT", mqtt.address);
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (address, USUAL_MQTT_PORT),
        };
        if host.is_empty() || host.contains("://") {
            return Err(wrong());
        }
        if mqtt.topic.is_empty() || mqtt.topic.contains(['+', '#', '\0']) {
            return Err(format!("pushMethod.mqtt.topic {:?} is no topic to publish to", mqtt.topic));
        }
        Ok(Some(Self::Mqtt {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            topic: mqtt.topic.clone(),
            qos: u8::try_from(mqtt.qos).ok().filter(|qos| *qos <= 2).unwrap_or_default(),
            retain: mqtt.retained,
        }))
    }

    /// Of `http://HOST:PORT/PATH`. The error has it.
    pub(in crate::devicetwin) fn of_url(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url:?} is no http://HOST:PORT/PATH; https is not spoken yet");
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|_| uri.scheme() == Some(&http::uri::Scheme::HTTP)).ok_or_else(wrong)?;
        Ok(Self::Http {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(USUAL_HTTP_PORT),
            path: uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned(),
            timeout_seconds: USUAL_TIMEOUT,
        })
    }

    /// `broker` is HOST:PORT. The error has it.
    pub(in crate::devicetwin) fn of_broker(broker: &str, topic: &str) -> Result<Self, String> {
        let wrong = || format!("{broker:?} is no HOST:PORT of a broker");
        let (host, port) = broker.rsplit_once(':').ok_or_else(wrong)?;
        Ok(Self::Mqtt {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port.parse().map_err(|_| wrong())?,
            topic: topic.to_owned(),
            qos: 1,
            retain: false,
        })
    }

    /// The same for the same target, and short.
    pub(super) fn id(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        runtime::token::hex(&Sha256::digest(text)[..8])
    }
}

fn port(field: &str, port: i64, usual: u16) -> Result<u16, String> {
    match u16::try_from(port) {
        Ok(0) => Ok(usual),
        Ok(port) => Ok(port),
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
                Some("mqtt://broker:1884/t"),
            ),
            (json!({}), None),
        ] {
            assert_eq!(parse(method).unwrap().as_deref(), wanted);
        }
        for (method, reason) in [
            (json!({"http": {"hostName": "https://secure"}}), "https is not spoken"),
            (json!({"http": {"hostName": "h", "port": 70000}}), "70000 is no port"),
            (json!({"mqtt": {"address": "tcp://b:x", "topic": "t"}}), "no tcp://HOST:PORT"),
            (json!({"mqtt": {"address": "b", "topic": "a/#"}}), "no topic"),
        ] {
            let error = parse(method).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
