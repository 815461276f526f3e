//! What `edgecore.yaml` says of MQTT.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;
use crate::{broker::BrokerAddress, componentconfig::Faults};

/// MQTT for apps at the site, with KubeEdge's topics of devices: a broker in edgecore, or one that is there anyway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EventBus {
    /// false serves none of it.
    pub enable: bool,
    /// 0: the broker in edgecore. 2: one that is there anyway. 1: both.
    pub mqtt_mode: u8,
    /// Where the broker in edgecore listens: tcp://IP:PORT. Without mqttUsersFile nobody has to log in, so anything but a loopback
    /// address lets the network in.
    pub mqtt_server_internal: String,
    /// Where else it listens, within TLS.
    #[serde(rename = "mqttServerTLS")]
    pub server_tls: MqttServerTls,
    /// Who may log in at the broker in edgecore, and what each may subscribe to and publish (docs/devices.md). It is read again
    /// when it has changed. Empty: nobody has to log in, and everybody may do everything.
    pub mqtt_users_file: String,
    /// Where the other broker is: tcp://HOST:PORT, or ssl://HOST:PORT within TLS.
    pub mqtt_server_external: String,
    /// For the other broker. Empty: nobody logs in.
    pub mqtt_username: String,
    /// For the other broker.
    pub mqtt_password: Secret,
    /// How many messages the broker in edgecore keeps for a client that is away.
    pub mqtt_session_queue_size: u32,
    /// For the other broker, within TLS.
    #[serde(rename = "eventBusTLS")]
    pub tls: EventBusTls,
}

/// TLS to the broker in edgecore. The files are read for each client, so that they may be replaced.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MqttServerTls {
    /// ssl://IP:PORT. Empty: nowhere.
    pub address: String,
    /// The broker's certificate, PEM, with those between it and its CA.
    pub cert_file: String,
    /// Its key, PEM.
    pub private_key_file: String,
    /// Clients show a certificate of one of these CAs, PEM. Empty: they need none.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: String,
}

/// TLS to the other broker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EventBusTls {
    /// true speaks TLS to a tcp:// address, too.
    pub enable: bool,
    /// The CAs of its certificate, PEM. Empty: those that the system trusts.
    #[serde(rename = "tlsMqttCAFile")]
    pub ca_file: String,
    /// The certificate to show it, PEM. Empty: none.
    #[serde(rename = "tlsMqttCertFile")]
    pub cert_file: String,
    /// Its key, PEM.
    #[serde(rename = "tlsMqttPrivateKeyFile")]
    pub private_key_file: String,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            enable: true,
            mqtt_mode: 0,
            mqtt_server_internal: "tcp://127.0.0.1:1883".to_owned(),
            server_tls: MqttServerTls::default(),
            mqtt_users_file: String::new(),
            mqtt_server_external: "tcp://127.0.0.1:1883".to_owned(),
            mqtt_username: String::new(),
            mqtt_password: Secret::default(),
            mqtt_session_queue_size: 100,
            tls: EventBusTls::default(),
        }
    }
}

impl EventBus {
    /// Where the broker in edgecore listens, if there is to be one.
    pub fn own(&self) -> Option<SocketAddr> {
        (self.enable && self.mqtt_mode != 2).then(|| self.listen()).flatten()
    }

    /// Where it listens within TLS, if it is to.
    pub fn own_tls(&self) -> Option<SocketAddr> {
        self.own().and_then(|_| self.server_tls.listen())
    }

    /// The other one, if it is to be used.
    pub fn external(&self) -> Option<BrokerAddress> {
        (self.enable && self.mqtt_mode != 0).then(|| self.other()).flatten()
    }

    fn listen(&self) -> Option<SocketAddr> {
        self.mqtt_server_internal.strip_prefix("tcp://")?.parse().ok()
    }

    fn other(&self) -> Option<BrokerAddress> {
        let address: BrokerAddress = self.mqtt_server_external.parse().ok()?;
        Some(BrokerAddress { secure: address.secure || self.tls.enable, ..address })
    }

    pub(super) fn validate(&self, faults: &mut Faults) {
        let key = |name: &str| format!("modules.eventBus.{name}");
        faults.check(self.mqtt_mode <= 2, &key("mqttMode"), || {
            format!("{} is none of 0 (the broker in edgecore), 1 (both), 2 (another one)", self.mqtt_mode)
        });
        faults.check(self.listen().is_some(), &key("mqttServerInternal"), || {
            format!("{:?} is no tcp://IP:PORT, as in tcp://127.0.0.1:1883", self.mqtt_server_internal)
        });
        self.server_tls.validate(faults, &key("mqttServerTLS"));
        super::absolute(faults, &key("mqttUsersFile"), &self.mqtt_users_file);
        if let Err(error) = self.mqtt_server_external.parse::<BrokerAddress>() {
            faults.check(false, &key("mqttServerExternal"), || {
                format!("{:?} {error}", self.mqtt_server_external)
            });
        }
        let is_one = self.mqtt_mode == 1 && self.mqtt_server_internal == self.mqtt_server_external;
        faults.check(!is_one, &key("mqttServerExternal"), || {
            "is where the broker in edgecore listens; with mqttMode 1 that needs another port".to_owned()
        });
        let queue = u64::from(self.mqtt_session_queue_size);
        faults.at_least(&key("mqttSessionQueueSize"), queue, 1, "it is in messages");
        let EventBusTls { enable: _, ca_file, cert_file, private_key_file } = &self.tls;
        super::absolute(faults, &key("eventBusTLS.tlsMqttCAFile"), ca_file);
        super::absolute(faults, &key("eventBusTLS.tlsMqttCertFile"), cert_file);
        super::absolute(faults, &key("eventBusTLS.tlsMqttPrivateKeyFile"), private_key_file);
        let is_whole = cert_file.is_empty() == private_key_file.is_empty();
        faults.check(is_whole, &key("eventBusTLS.tlsMqttCertFile"), || {
            "and tlsMqttPrivateKeyFile go together: name both, or neither".to_owned()
        });
    }
}

impl MqttServerTls {
    fn listen(&self) -> Option<SocketAddr> {
        self.address.strip_prefix("ssl://")?.parse().ok()
    }

    fn validate(&self, faults: &mut Faults, key: &str) {
        let Self { address, cert_file, private_key_file, client_ca_file } = self;
        let key = |name: &str| format!("{key}.{name}");
        for (name, path) in
            [("certFile", cert_file), ("privateKeyFile", private_key_file), ("clientCAFile", client_ca_file)]
        {
            super::absolute(faults, &key(name), path);
        }
        if address.is_empty() {
            return;
        }
        faults.check(self.listen().is_some(), &key("address"), || {
            format!("{address:?} is no ssl://IP:PORT, as in ssl://0.0.0.0:8883")
        });
        for (name, path) in [("certFile", cert_file), ("privateKeyFile", private_key_file)] {
            faults.check(!path.is_empty(), &key(name), || format!("is missing: {address} needs it"));
        }
    }
}
