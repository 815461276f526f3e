//! What `edgecore.yaml` says of MQTT.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;
use crate::componentconfig::Faults;

/// MQTT for apps at the site, with KubeEdge's topics of devices: a broker in edgecore, or one that is there anyway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EventBus {
    /// false serves none of it.
    pub enable: bool,
    /// 0: the broker in edgecore. 2: one that is there anyway. 1: both.
    pub mqtt_mode: u8,
    /// Where the broker in edgecore listens: tcp://IP:PORT. There is no TLS, and without mqttUsersFile nobody has to log in, so
    /// anything but a loopback address lets the network in.
    pub mqtt_server_internal: String,
    /// Who may log in at the broker in edgecore, and what each may subscribe to and publish (docs/devices.md). It is read again
    /// when it has changed. Empty: nobody has to log in, and everybody may do everything.
    pub mqtt_users_file: String,
    /// Where the other broker is: tcp://HOST:PORT.
    pub mqtt_server_external: String,
    /// For the other broker. Empty: nobody logs in.
    pub mqtt_username: String,
    /// For the other broker.
    pub mqtt_password: Secret,
    /// How many messages the broker in edgecore keeps for a client that is away.
    pub mqtt_session_queue_size: u32,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            enable: true,
            mqtt_mode: 0,
            mqtt_server_internal: "tcp://127.0.0.1:1883".to_owned(),
            mqtt_users_file: String::new(),
            mqtt_server_external: "tcp://127.0.0.1:1883".to_owned(),
            mqtt_username: String::new(),
            mqtt_password: Secret::default(),
            mqtt_session_queue_size: 100,
        }
    }
}

impl EventBus {
    /// Where the broker in edgecore listens, if there is to be one.
    pub fn own(&self) -> Option<SocketAddr> {
        (self.enable && self.mqtt_mode != 2).then(|| self.listen()).flatten()
    }

    /// Host and port of the other one, if it is to be used.
    pub fn external(&self) -> Option<(String, u16)> {
        (self.enable && self.mqtt_mode != 0).then(|| self.other()).flatten()
    }

    fn listen(&self) -> Option<SocketAddr> {
        self.mqtt_server_internal.strip_prefix("tcp://")?.parse().ok()
    }

    fn other(&self) -> Option<(String, u16)> {
        let (host, port) = self.mqtt_server_external.strip_prefix("tcp://")?.rsplit_once(':')?;
        let host = host.trim_matches(['[', ']']);
        (!host.is_empty()).then_some((host.to_owned(), port.parse().ok()?))
    }

    pub(super) fn validate(&self, faults: &mut Faults) {
        let key = |name: &str| format!("modules.eventBus.{name}");
        faults.check(self.mqtt_mode <= 2, &key("mqttMode"), || {
            format!("{} is none of 0 (the broker in edgecore), 1 (both), 2 (another one)", self.mqtt_mode)
        });
        faults.check(self.listen().is_some(), &key("mqttServerInternal"), || {
            format!("{:?} is no tcp://IP:PORT, as in tcp://127.0.0.1:1883", self.mqtt_server_internal)
        });
        super::absolute(faults, &key("mqttUsersFile"), &self.mqtt_users_file);
        faults.check(self.other().is_some(), &key("mqttServerExternal"), || {
            format!("{:?} is no tcp://HOST:PORT, as in tcp://127.0.0.1:1883", self.mqtt_server_external)
        });
        let is_one = self.mqtt_mode == 1 && self.mqtt_server_internal == self.mqtt_server_external;
        faults.check(!is_one, &key("mqttServerExternal"), || {
            "is where the broker in edgecore listens; with mqttMode 1 that needs another port".to_owned()
        });
        let queue = u64::from(self.mqtt_session_queue_size);
        faults.at_least(&key("mqttSessionQueueSize"), queue, 1, "it is in messages");
    }
}
