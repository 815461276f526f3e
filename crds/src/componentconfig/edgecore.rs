//! `edgecore.yaml`.

use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Fault, Faults, LogFormat, is_dns_name, is_label, quantity::Memory, sync::SyncStrategy,
    threshold::Threshold,
};

mod devices;
mod event_bus;
mod paths;

pub use devices::{DeviceTwin, ModbusBus};
pub use event_bus::{EventBus, EventBusTls, MqttServerTls};
pub use paths::EdgePaths;

/// The apiVersion that is written; KubeEdge's older one is read as well.
pub const API_VERSION: &str = "edgecore.config.kubeedge.io/v1alpha2";
const API_VERSIONS: &[&str] = &[API_VERSION, "edgecore.config.kubeedge.io/v1alpha1"];
pub const KIND: &str = "EdgeCore";

/// The configuration of edgecore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeCoreConfig {
    pub api_version: String,
    pub kind: String,
    /// What is logged: error, warn, info, debug, trace, or target=level pairs with commas. Can be changed at run time
    /// on the admin address.
    pub log_level: String,
    /// How log lines look: text or json.
    pub log_format: LogFormat,
    /// The directory that everything of this edgecore is kept under. "/" means the usual places: /etc/kubeedge,
    /// /var/lib/kubeedge, /var/log, /run/kubeedge. Any other directory holds all of it, so that several can run on a machine,
    /// each with a container runtime of its own.
    pub root_directory: String,
    pub common_config: CommonConfig,
    pub database: Database,
    pub modules: Modules,
}

impl Default for EdgeCoreConfig {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            log_level: "info".to_owned(),
            log_format: LogFormat::default(),
            root_directory: "/".to_owned(),
            common_config: CommonConfig::default(),
            database: Database::default(),
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

/// The admin address: /livez, /readyz, /nodez, /metrics, and the log level.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MonitorServer {
    /// IP:PORT, or unix:///PATH. Empty: the socket edgecore-admin.sock under rootDirectory (/run/kubeedge by default),
    /// which only root can open and which needs no port at a site where ports may be taken.
    pub bind_address: String,
}

/// The store of what this node should run and has yet to report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Database {
    /// The store's directory. Empty: store under rootDirectory (/var/lib/kubeedge/store by default).
    pub data_source: String,
}

/// The parts of edgecore.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Modules {
    pub edge_hub: EdgeHub,
    pub edged: Edged,
    pub edge_stream: EdgeStream,
    pub device_twin: DeviceTwin,
    pub event_bus: EventBus,
}

/// What `kubectl logs`, `exec`, `attach`, `port-forward` and `cp` need of the node. It has no connection of its own: all goes over
/// the line to cloudcore, behind everything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeStream {
    /// false refuses them all.
    pub enable: bool,
}

impl Default for EdgeStream {
    fn default() -> Self {
        Self { enable: true }
    }
}

/// The line to cloudcore.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeHub {
    /// Seconds between the signs of life that edgecore sends on a line where nothing else is sent. Either side gives a
    /// line up after two of them, and the cloud calls the node unreachable soon after. 70, because metered lines pay for every
    /// beat: a quiet line then carries less than 12 KB an hour. On a line that costs nothing, 10 notices its end sooner. Over
    /// QUIC it is 40 at most, at the same cost: what translates addresses on the way (NAT) forgets UDP soon.
    pub heartbeat: u32,
    /// The join token, used once, to enrol. keadm join writes it to a file of its own (bootstrap-token under
    /// rootDirectory, /etc/kubeedge/bootstrap-edgecore.conf by default), which edgecore removes after enrolment and
    /// which counts for more than this key.
    pub token: String,
    /// The certificate of cloudcore's CA, PEM. Empty: ca/rootCA.crt under rootDirectory (/etc/kubeedge by default).
    pub tls_ca_file: String,
    /// This node's certificate, PEM. Empty: certs/server.crt under rootDirectory (/etc/kubeedge by default).
    pub tls_cert_file: String,
    /// This node's private key, PEM; it never leaves the node. Empty: certs/server.key under rootDirectory
    /// (/etc/kubeedge by default).
    pub tls_private_key_file: String,
    pub quic: EdgeHubQuic,
    pub websocket: EdgeHubWebSocket,
    pub sync: SyncStrategy,
}

impl Default for EdgeHub {
    fn default() -> Self {
        Self {
            heartbeat: 70,
            token: String::new(),
            tls_ca_file: String::new(),
            tls_cert_file: String::new(),
            tls_private_key_file: String::new(),
            quic: EdgeHubQuic::default(),
            websocket: EdgeHubWebSocket::default(),
            sync: SyncStrategy::default(),
        }
    }
}

impl std::fmt::Debug for EdgeHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token.
        f.debug_struct("EdgeHub")
            .field("heartbeat", &self.heartbeat)
            .field("quic", &self.quic)
            .field("websocket", &self.websocket)
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}

/// QUIC to cloudcore: tried first, because it starts with fewer round trips and goes on when the node's address changes.
/// Where UDP does not get through, the WebSocket is used within seconds, and QUIC tried again from time to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeHubQuic {
    /// false leaves the link to the WebSocket.
    pub enable: bool,
    /// cloudcore's HOST:PORT for UDP; of several cloudcores, in the order of websocket.server. Empty: that of the WebSocket.
    pub server: String,
}

impl Default for EdgeHubQuic {
    fn default() -> Self {
        Self { enable: true, server: String::new() }
    }
}

/// The WebSocket to cloudcore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeHubWebSocket {
    /// false leaves the link to QUIC; enrolment uses the server below all the same.
    pub enable: bool,
    /// cloudcore's HOST:PORT; of several cloudcores each one's, with commas: when one fails, or has answered nothing for two seconds,
    /// the next is tried.
    pub server: String,
    /// The HTTP proxy that leads to cloudcore, as in http://USER:PASSWORD@192.0.2.1:3128, or the same with https:// for one that is
    /// spoken to within TLS; enrolment uses it, too. QUIC does not: where a proxy is the only way out, the link is a WebSocket.
    /// Empty: none; the environment (HTTPS_PROXY and the like) is not asked.
    pub proxy: Secret,
    /// The CAs of which the certificate of an https:// proxy has to be, PEM. Empty: those that the system trusts.
    pub proxy_ca_file: String,
    /// Seconds that connecting may take, TLS and all, with whichever cloudcore, before it is tried anew.
    pub handshake_timeout: u32,
    /// Seconds that one frame may take to be written before the line is given up.
    pub write_deadline: u32,
}

impl Default for EdgeHubWebSocket {
    fn default() -> Self {
        Self {
            enable: true,
            server: "127.0.0.1:10000".to_owned(),
            proxy: Secret::default(),
            proxy_ca_file: String::new(),
            handshake_timeout: 30,
            write_deadline: 15,
        }
    }
}

/// A text that may hold a password, and is not shown in logs.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "set" })
    }
}

/// Which mechanism the runtime manages cgroups with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// As the runtime says; cgroupfs where it does not say.
    #[default]
    Auto,
    Cgroupfs,
    Systemd,
}

/// The node, and the pods on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edged {
    /// The node's name. Empty: the host's name in lower case.
    pub hostname_override: String,
    /// The address that the node reports. Empty: the one that the way to cloudcore leads out of.
    #[serde(rename = "nodeIP")]
    pub node_ip: String,
    /// Labels that the node registers with, beside those of every edge node.
    pub node_labels: BTreeMap<String, String>,
    /// Whether the scheduler may place pods here from the first moment. false registers the node cordoned.
    pub register_schedulable: bool,
    /// Seconds between looks at the node's own state. It is sent only when it changed.
    pub node_status_update_frequency: u32,
    /// The CRI socket.
    pub remote_runtime_endpoint: String,
    /// auto, cgroupfs or systemd. It must be what the runtime uses, so it is asked.
    pub cgroup_driver: CgroupDriver,
    /// The image of the sandbox container. Empty: the one that the runtime is set up with, so that a site needs no
    /// image beyond those of its pods.
    pub pod_sandbox_image: String,
    /// How many pods the node offers to run. 110, as the kubelet.
    pub max_pods: u32,
    /// The most memory that the node offers to pods. Left out: all of the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_capacity: Option<Memory>,
    /// The most CPU that the node offers to pods, in milli-CPU: 100 is a tenth of a core. Left out: all cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_frequency: Option<u32>,
    /// Where pods' volumes are kept, in its directory pods. Empty: rootDirectory (/var/lib/kubeedge by default).
    pub root_directory: String,
    /// Where container logs are written. Empty: logs/pods under rootDirectory (/var/log/pods by default).
    pub pod_logs_directory: String,
    /// Where the links to them are made that log collectors read. Empty: logs/containers under rootDirectory
    /// (/var/log/containers by default).
    pub container_logs_directory: String,
    /// The DNS servers that pods with dnsPolicy ClusterFirst are given. Empty: the host's own.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain, for the search list of pods with dnsPolicy ClusterFirst.
    pub cluster_domain: String,
    /// The file with the host's resolver settings, for pods with dnsPolicy Default.
    pub resolv_conf: String,
    pub eviction_hard: EvictionHard,
}

impl Default for Edged {
    fn default() -> Self {
        Self {
            hostname_override: String::new(),
            node_ip: String::new(),
            node_labels: BTreeMap::new(),
            register_schedulable: true,
            node_status_update_frequency: 10,
            remote_runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            cgroup_driver: CgroupDriver::Auto,
            pod_sandbox_image: String::new(),
            max_pods: 110,
            memory_capacity: None,
            cpu_frequency: None,
            root_directory: String::new(),
            pod_logs_directory: String::new(),
            container_logs_directory: String::new(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".to_owned(),
            eviction_hard: EvictionHard::default(),
        }
    }
}

/// How little may be left before the node is under pressure: it is offered no more pods then. Its pods go on; nothing is
/// evicted. The kubelet's names and defaults; 0% is never.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvictionHard {
    /// Memory that processes could have: MemoryPressure.
    #[serde(rename = "memory.available")]
    pub memory: Threshold,
    /// Space on the disk of the pods' volumes: DiskPressure.
    #[serde(rename = "nodefs.available")]
    pub disk: Threshold,
    /// Files that could be made there: DiskPressure.
    #[serde(rename = "nodefs.inodesFree")]
    pub inodes: Threshold,
    /// Process ids: PIDPressure.
    #[serde(rename = "pid.available")]
    pub pids: Threshold,
}

impl Default for EvictionHard {
    fn default() -> Self {
        Self {
            memory: Threshold::mebibytes(100),
            disk: Threshold::percent(10),
            inodes: Threshold::percent(5),
            pids: Threshold::percent(10),
        }
    }
}

impl EdgeCoreConfig {
    /// Checks what the types alone do not, and reports every fault.
    pub fn validate(&self) -> Result<(), Vec<Fault>> {
        let mut faults = Faults::default();
        faults.identity((&self.api_version, API_VERSIONS), (&self.kind, KIND));
        faults.check(!self.log_level.is_empty(), "logLevel", || "is empty; the default is info".to_owned());
        faults.check(self.root_directory.starts_with('/'), "rootDirectory", || {
            format!("{:?} is not an absolute path", self.root_directory)
        });
        let bind_address = &self.common_config.monitor_server.bind_address;
        if !bind_address.is_empty() {
            faults.listener("commonConfig.monitorServer.bindAddress", bind_address);
        }
        absolute(&mut faults, "database.dataSource", &self.database.data_source);
        self.modules.edge_hub.validate(&mut faults);
        self.modules.edged.validate(&mut faults);
        self.modules.device_twin.validate(&mut faults);
        self.modules.event_bus.validate(&mut faults);
        faults.done()
    }

    /// Where everything of this edgecore is.
    pub fn paths(&self) -> EdgePaths {
        EdgePaths::of(self)
    }
}

impl EdgeHub {
    fn validate(&self, faults: &mut Faults) {
        let key = |name: &str| format!("modules.edgeHub.{name}");
        faults.at_least(&key("heartbeat"), self.heartbeat.into(), 1, "it is in seconds");
        absolute(faults, &key("tlsCaFile"), &self.tls_ca_file);
        absolute(faults, &key("tlsCertFile"), &self.tls_cert_file);
        absolute(faults, &key("tlsPrivateKeyFile"), &self.tls_private_key_file);
        faults.check(self.websocket.enable || self.quic.enable, &key("websocket.enable"), || {
            "is false, and so is quic.enable: the node could not connect".to_owned()
        });
        if !self.quic.server.is_empty() {
            faults.endpoints(&key("quic.server"), &self.quic.server);
            let count = |list: &str| list.split(',').count();
            faults.check(
                count(&self.quic.server) == count(&self.websocket.server),
                &key("quic.server"),
                || "names another number of cloudcores than websocket.server; leave it empty if they are the same".to_owned(),
            );
        }
        faults.endpoints(&key("websocket.server"), &self.websocket.server);
        let proxy = &self.websocket.proxy.0;
        let is_url = proxy.starts_with("http://") || proxy.starts_with("https://");
        faults.check(proxy.is_empty() || is_url, &key("websocket.proxy"), || {
            "is not the URL of an HTTP proxy, as in http://192.0.2.1:3128 or https://proxy.example:3129"
                .to_owned()
        });
        absolute(faults, &key("websocket.proxyCaFile"), &self.websocket.proxy_ca_file);
        let timeout = self.websocket.handshake_timeout.into();
        faults.at_least(&key("websocket.handshakeTimeout"), timeout, 1, "it is in seconds");
        let deadline = self.websocket.write_deadline.into();
        faults.at_least(&key("websocket.writeDeadline"), deadline, 1, "it is in seconds");
        self.sync.check(faults, &key("sync."));
    }
}

impl Edged {
    fn validate(&self, faults: &mut Faults) {
        let key = |name: &str| format!("modules.edged.{name}");
        let name = &self.hostname_override;
        faults.check(name.is_empty() || is_dns_name(name), &key("hostnameOverride"), || {
            format!("{name:?} cannot name a node: use lower-case letters, digits, - and .")
        });
        let ip = &self.node_ip;
        faults.check(ip.is_empty() || ip.parse::<IpAddr>().is_ok(), &key("nodeIP"), || {
            format!("{ip:?} is not an IP address")
        });
        for (label, value) in &self.node_labels {
            faults.check(is_label(label, value), &key("nodeLabels"), || {
                format!("{label}={value} is not a label that Kubernetes takes")
            });
        }
        let every = self.node_status_update_frequency.into();
        faults.at_least(&key("nodeStatusUpdateFrequency"), every, 1, "it is in seconds");
        let socket = self.remote_runtime_endpoint.strip_prefix("unix://");
        faults.check(socket.is_some_and(|path| path.starts_with('/')), &key("remoteRuntimeEndpoint"), || {
            let endpoint = &self.remote_runtime_endpoint;
            format!("{endpoint:?} is not unix:///PATH, as in unix:///run/containerd/containerd.sock")
        });
        faults.at_least(&key("maxPods"), self.max_pods.into(), 1, "the node could run nothing");
        if let Some(memory) = &self.memory_capacity {
            let why = "no pod could run; leave the key out to offer all of the machine's";
            faults.at_least(&key("memoryCapacity"), memory.bytes(), 1 << 20, why);
        }
        if let Some(cpu) = self.cpu_frequency {
            let why = "no pod could run; leave the key out to offer all cores";
            faults.at_least(&key("cpuFrequency"), cpu.into(), 1, why);
        }
        absolute(faults, &key("rootDirectory"), &self.root_directory);
        absolute(faults, &key("podLogsDirectory"), &self.pod_logs_directory);
        absolute(faults, &key("containerLogsDirectory"), &self.container_logs_directory);
        let domain = &self.cluster_domain;
        faults.check(is_dns_name(domain), &key("clusterDomain"), || format!("{domain:?} is not a DNS name"));
        faults.check(self.resolv_conf.starts_with('/'), &key("resolvConf"), || {
            format!("{:?} is not an absolute path", self.resolv_conf)
        });
    }
}

/// A path that may be left empty.
fn absolute(faults: &mut Faults, key: &str, path: &str) {
    let ok = path.is_empty() || path.starts_with('/');
    faults.check(ok, key, || format!("{path:?} is not an absolute path"));
}
