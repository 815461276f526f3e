//! `cloudcore.yaml`.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Fault, Faults, LogFormat, is_dns_name,
    sync::{USUAL_CONFIG_MAP, config_map_name},
};

/// The apiVersion that is written; KubeEdge's older one is read as well.
pub const API_VERSION: &str = "cloudcore.config.kubeedge.io/v1alpha2";
const API_VERSIONS: &[&str] = &[API_VERSION, "cloudcore.config.kubeedge.io/v1alpha1"];
pub const KIND: &str = "CloudCore";

/// The configuration of cloudcore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CloudCoreConfig {
    pub api_version: String,
    pub kind: String,
    /// What is logged: error, warn, info, debug, trace, or target=level pairs with commas. Can be changed at run time
    /// on the admin address.
    pub log_level: String,
    /// How log lines look: text or json.
    pub log_format: LogFormat,
    pub common_config: CommonConfig,
    #[serde(rename = "kubeAPIConfig")]
    pub kube_api_config: KubeApiConfig,
    pub modules: Modules,
}

impl Default for CloudCoreConfig {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            log_level: "info".to_owned(),
            log_format: LogFormat::default(),
            common_config: CommonConfig::default(),
            kube_api_config: KubeApiConfig::default(),
            modules: Modules::default(),
        }
    }
}

/// What is common to all modules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CommonConfig {
    pub monitor_server: MonitorServer,
}

/// The admin address: /livez, /readyz, /metrics, and the log level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MonitorServer {
    /// IP:PORT, or unix:///PATH. On the loopback by default, because it asks nobody who they are.
    pub bind_address: String,
}

impl Default for MonitorServer {
    fn default() -> Self {
        Self { bind_address: "127.0.0.1:9091".to_owned() }
    }
}

/// How the API server is reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeApiConfig {
    /// The URL of the API server, in place of the one in the kubeconfig. Empty: the kubeconfig's.
    pub master: String,
    /// The path of a kubeconfig. Empty: the ServiceAccount of the pod that cloudcore runs in.
    pub kube_config: String,
}

/// The parts of cloudcore.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Modules {
    pub cloud_hub: CloudHub,
    pub cloud_stream: CloudStream,
    pub edge_controller: EdgeController,
}

/// kubectl logs, exec, attach, port-forward and cp: the kubelet's API of the nodes that are connected here. The API server
/// connects to it, edge nodes do not. It finds the way by the addresses of each Node, where cloudcore writes its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CloudStream {
    /// false serves none of it.
    pub enable: bool,
    /// The TCP port. 0 lets the kernel choose.
    pub stream_port: u16,
    /// The address to listen on. Who connects has to show a client certificate of the cluster, but for the conversion of devices.
    pub address: IpAddr,
    /// The address at which the API server reaches this cloudcore. Left out: the one by which this cloudcore reaches the API
    /// server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_address: Option<IpAddr>,
}

impl Default for CloudStream {
    fn default() -> Self {
        Self {
            enable: true,
            stream_port: 10003,
            address: IpAddr::from([0, 0, 0, 0]),
            advertise_address: None,
        }
    }
}

/// What edge nodes are told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeController {
    /// NAMESPACE/NAME of the ConfigMap with the link settings of edge nodes (its key sync-strategy.yaml, in the form of
    /// modules.edgeHub.sync in edgecore.yaml). A node with the annotation skerry.io/sync-config has the one that is named there.
    /// Empty: only nodes with that annotation have one. It need not exist.
    pub sync_config_map: String,
}

impl Default for EdgeController {
    fn default() -> Self {
        Self { sync_config_map: USUAL_CONFIG_MAP.to_owned() }
    }
}

/// The port that edge nodes connect to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CloudHub {
    /// The addresses at which edge nodes reach cloudcore; they go into its certificate. The loopback addresses are
    /// always in it.
    pub advertise_address: Vec<IpAddr>,
    /// The names at which edge nodes reach cloudcore; they go into its certificate.
    pub dns_names: Vec<String>,
    /// How many edge nodes may be connected at once; one more is refused. A bound on memory, at about 100 KiB a node.
    pub node_limit: u32,
    /// The longest heartbeat that an edge node gets, in seconds; a line is given up after two of them without a sign of
    /// life. A node chooses its own with modules.edgeHub.heartbeat; where that is longer, cloudcore asks for a sign of life
    /// by itself. 600, which leaves the choice to the nodes: they know what their line costs.
    pub keepalive_interval: u32,
    /// Seconds that one frame may take to be written before the line is given up.
    pub write_timeout: u32,
    /// Days that an edge node's certificate is valid. The node renews it by itself once two thirds of them are over.
    pub edge_cert_signing_duration: u32,
    /// Days after the end of its certificate during which a node that was away still gets in, to renew it, if the Node in the
    /// cluster remembers its key. After that it has to join anew. 365, because a site may be off for a season.
    pub edge_cert_grace_duration: u32,
    pub node_lease: NodeLease,
    pub quic: CloudHubQuic,
    pub websocket: CloudHubWebSocket,
}

impl Default for CloudHub {
    fn default() -> Self {
        Self {
            advertise_address: Vec::new(),
            dns_names: Vec::new(),
            node_limit: 1000,
            keepalive_interval: 600,
            write_timeout: 30,
            edge_cert_signing_duration: 365,
            edge_cert_grace_duration: 365,
            node_lease: NodeLease::default(),
            quic: CloudHubQuic::default(),
            websocket: CloudHubWebSocket::default(),
        }
    }
}

/// The Lease that cloudcore keeps for a connected node; the node goes NotReady when it is renewed no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeLease {
    /// The Lease's leaseDurationSeconds. 40, as the kubelet's.
    pub duration_seconds: u32,
    /// Seconds between renewals. 10, as the kubelet's: a quarter of the duration.
    pub renew_interval_seconds: u32,
}

impl Default for NodeLease {
    fn default() -> Self {
        Self { duration_seconds: 40, renew_interval_seconds: 10 }
    }
}

/// QUIC for the links of edge nodes. A node that UDP does not get through to uses the WebSocket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CloudHubQuic {
    /// false leaves all nodes to the WebSocket.
    pub enable: bool,
    /// The UDP port. Left out: the number of the WebSocket's, so that a firewall has one number to open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The address to listen on. Left out: the WebSocket's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl Default for CloudHubQuic {
    fn default() -> Self {
        Self { enable: true, port: None, address: None }
    }
}

/// HTTPS for enrolment and health, and the WebSocket, all on one port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CloudHubWebSocket {
    /// Must be true: nodes enrol here, and QUIC does not get through everywhere.
    pub enable: bool,
    /// The TCP port. 0 lets the kernel choose, which tests use.
    pub port: u16,
    /// The address to listen on. 0.0.0.0, because edge nodes come from other networks; :: listens on both families.
    pub address: IpAddr,
}

impl Default for CloudHubWebSocket {
    fn default() -> Self {
        Self { enable: true, port: 10000, address: IpAddr::from([0, 0, 0, 0]) }
    }
}

impl CloudCoreConfig {
    /// Checks what the types alone do not, and reports every fault.
    pub fn validate(&self) -> Result<(), Vec<Fault>> {
        let mut faults = Faults::default();
        faults.identity((&self.api_version, API_VERSIONS), (&self.kind, KIND));
        faults.check(!self.log_level.is_empty(), "logLevel", || "is empty; the default is info".to_owned());
        faults.listener(
            "commonConfig.monitorServer.bindAddress",
            &self.common_config.monitor_server.bind_address,
        );
        let master = &self.kube_api_config.master;
        let is_url = master.is_empty() || master.starts_with("https://") || master.starts_with("http://");
        faults.check(is_url, "kubeAPIConfig.master", || {
            format!("{master:?} is not a URL, as in https://192.0.2.1:6443")
        });
        self.modules.cloud_hub.validate(&mut faults);
        let map = &self.modules.edge_controller.sync_config_map;
        let ok = map.is_empty() || config_map_name(map).is_some();
        faults.check(ok, "modules.edgeController.syncConfigMap", || {
            format!("{map:?} is not NAMESPACE/NAME, as in default/sync-config")
        });
        faults.done()
    }
}

impl CloudHub {
    fn validate(&self, faults: &mut Faults) {
        for (at, name) in self.dns_names.iter().enumerate() {
            let key = format!("modules.cloudHub.dnsNames[{at}]");
            let ok = is_dns_name(name.strip_prefix("*.").unwrap_or(name));
            faults.check(ok, &key, || format!("{name:?} is not a DNS name"));
        }
        let key = |name: &str| format!("modules.cloudHub.{name}");
        faults.at_least(&key("nodeLimit"), self.node_limit.into(), 1, "no node could connect");
        let beat = u64::from(self.keepalive_interval);
        faults.at_least(&key("keepaliveInterval"), beat, 1, "it is in seconds");
        faults.at_least(&key("writeTimeout"), self.write_timeout.into(), 1, "it is in seconds");
        let days = u64::from(self.edge_cert_signing_duration);
        faults.at_least(&key("edgeCertSigningDuration"), days, 1, "it is in days");
        let NodeLease { duration_seconds, renew_interval_seconds } = self.node_lease;
        let renew = u64::from(renew_interval_seconds);
        faults.at_least(&key("nodeLease.renewIntervalSeconds"), renew, 1, "it is in seconds");
        let duration = u64::from(duration_seconds);
        let why = "two renewals have to fit in, or one slow write makes a healthy node NotReady";
        faults.at_least(&key("nodeLease.durationSeconds"), duration, renew.saturating_mul(2).max(1), why);
        faults.check(self.websocket.enable, &key("websocket.enable"), || {
            "is false, but nodes enrol here, and some are reached by the WebSocket alone".to_owned()
        });
    }
}
