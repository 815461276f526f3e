//! The configuration as the components take it, made once from the file's types. The file is taken apart with no `..`, so
//! that a new key does not compile until something uses it.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use crds::{
    broker::BrokerAddress,
    componentconfig::{
        LogFormat as RawLogFormat,
        edgecore::{
            CgroupDriver, CommonConfig, Database, EdgeCoreConfig, EdgeHub, EdgeHubQuic, EdgeHubWebSocket,
            EdgeStream, Edged, EventBusTls, Modules, MonitorServer, MqttServerTls,
        },
    },
};
use runtime::{
    telemetry::LogFormat,
    tls::{ServerIdentity, Trust},
};

use crate::{
    access::{Access, ExternalBroker, OwnBroker},
    devicetwin::{BusAddress, DevicesConfig},
    edged::{EdgedConfig, node_status::NodeStatusConfig},
    edgehub::{HubConfig, IdentityPaths},
    eventbus::{BrokerSettings, BrokerTls, BrokerUsers, Place, own_login},
};

/// Between attempts to get through with QUIC while the WebSocket does: what blocks UDP for a minute may do so for months, and
/// each attempt costs the line a few kilobytes.
const QUIC_PROBES: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(6));

/// The whole of edgecore's configuration, checked.
pub struct Config {
    pub log_level: String,
    pub log_format: LogFormat,
    pub admin_address: String,
    pub store_dir: PathBuf,
    pub pid_file: PathBuf,
    pub hub: HubConfig,
    pub edged: EdgedConfig,
    /// Whether logs and the like are served to the cloud.
    pub serve_streams: bool,
    /// Missing: devices are left alone.
    pub devices: Option<DevicesConfig>,
    /// Where apps that speak MQTT are; nowhere: there is none of it.
    pub mqtt: Vec<Place>,
    /// Where mappers register; missing: they cannot.
    pub dmi_socket: Option<PathBuf>,
}

impl From<EdgeCoreConfig> for Config {
    fn from(raw: EdgeCoreConfig) -> Self {
        let paths = raw.paths();
        let EdgeCoreConfig {
            api_version: _,
            kind: _,
            log_level,
            log_format,
            // Paths have taken these in.
            root_directory: _,
            common_config: CommonConfig { monitor_server: MonitorServer { bind_address: _ } },
            database: Database { data_source: _ },
            modules:
                Modules {
                    edge_hub,
                    edged,
                    edge_stream: EdgeStream { enable: serve_streams },
                    device_twin,
                    event_bus,
                },
        } = raw;
        let EdgeHub {
            heartbeat,
            token,
            tls_ca_file: _,
            tls_cert_file: _,
            tls_private_key_file: _,
            quic: EdgeHubQuic { enable: quic, server: quic_server },
            websocket:
                EdgeHubWebSocket {
                    enable: websocket,
                    server,
                    proxy,
                    proxy_ca_file,
                    handshake_timeout,
                    write_deadline,
                },
            sync,
        } = edge_hub;
        let Edged {
            hostname_override,
            node_ip,
            node_labels,
            register_schedulable,
            node_status_update_frequency,
            remote_runtime_endpoint,
            cgroup_driver,
            pod_sandbox_image,
            max_pods,
            memory_capacity,
            cpu_frequency,
            root_directory: _,
            pod_logs_directory: _,
            container_logs_directory: _,
            cluster_dns,
            cluster_domain,
            resolv_conf,
            eviction_hard,
        } = edged;
        let node = if hostname_override.is_empty() { hostname() } else { hostname_override };
        // The configuration's check has parsed it.
        let node_ip: Option<IpAddr> = node_ip.parse().ok();
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let node_status = NodeStatusConfig {
            node: node.clone(),
            node_ip,
            // Of several, all are reached the same way.
            cloud: server.split(',').next().unwrap_or_default().to_owned(),
            labels: node_labels,
            schedulable: register_schedulable,
            max_pods,
            memory_capacity: memory_capacity.map(|memory| memory.bytes()),
            cpu_millis: cpu_frequency,
            every: seconds(node_status_update_frequency),
            pods_dir: paths.pods_dir.clone(),
            least: eviction_hard,
        };
        let users = &event_bus.mqtt_users_file;
        let users = (!users.is_empty()).then(|| BrokerUsers { file: PathBuf::from(users), own: own_login() });
        let file = |path: String| (!path.is_empty()).then(|| PathBuf::from(path));
        let MqttServerTls { address: _, cert_file, private_key_file, client_ca_file } =
            event_bus.server_tls.clone();
        let identity = ServerIdentity {
            certificate: cert_file.into(),
            key: private_key_file.into(),
            client_ca_file: file(client_ca_file),
            clock: Arc::default(),
        };
        let broker = event_bus.own().map(|listen| BrokerSettings {
            tls: event_bus.own_tls().map(|listen| BrokerTls { listen, identity }),
            queue: usize::try_from(event_bus.mqtt_session_queue_size).unwrap_or(usize::MAX),
            users,
            ..BrokerSettings::open(listen, paths.mqtt_dir)
        });
        let EventBusTls { enable: _, ca_file, cert_file, private_key_file } = event_bus.tls.clone();
        let external = event_bus.external().map(|address| ExternalBroker {
            address,
            login: Some((event_bus.mqtt_username, event_bus.mqtt_password))
                .filter(|(user, _)| !user.is_empty()),
            trust: Trust {
                ca_file: file(ca_file),
                identity: file(cert_file).zip(file(private_key_file)),
                clock: Arc::default(),
            },
        });
        let usual_broker = match (&broker, &external) {
            (Some(own), _) => Some(BrokerAddress::from(own.listen)),
            (None, external) => external.as_ref().map(|external| external.address.clone()),
        };
        let own_broker = broker.as_ref().and_then(|broker| {
            let users = broker.users.as_ref()?;
            Some(OwnBroker { listen: broker.listen, login: users.own.clone() })
        });
        let access = Access {
            own: own_broker,
            external: external.clone(),
            trust: Trust { ca_file: file(device_twin.ca_file), ..Trust::default() },
        };
        let mqtt = broker.map(Place::Own).into_iter().chain(external.map(Place::External)).collect();
        Self {
            log_level,
            log_format: match log_format {
                RawLogFormat::Text => LogFormat::Text,
                RawLogFormat::Json => LogFormat::Json,
            },
            admin_address: paths.admin_address,
            store_dir: paths.store_dir,
            pid_file: paths.pid_file,
            hub: HubConfig {
                node: node.clone(),
                quic: quic.then(|| if quic_server.is_empty() { server.clone() } else { quic_server }),
                quic_probes: QUIC_PROBES,
                websocket,
                server,
                proxy: proxy.0,
                proxy_ca_file,
                heartbeat: seconds(heartbeat),
                handshake_timeout: seconds(handshake_timeout),
                write_deadline: seconds(write_deadline),
                sync,
                identity: IdentityPaths {
                    ca: paths.ca_file,
                    certificate: paths.cert_file,
                    key: paths.key_file,
                },
                token_file: paths.bootstrap_token_file,
                token,
            },
            edged: EdgedConfig {
                node,
                node_status,
                runtime_endpoint: remote_runtime_endpoint,
                cgroup_driver: match cgroup_driver {
                    CgroupDriver::Auto => None,
                    CgroupDriver::Cgroupfs => Some(proto::cri::v1::CgroupDriver::Cgroupfs),
                    CgroupDriver::Systemd => Some(proto::cri::v1::CgroupDriver::Systemd),
                },
                sandbox_image: pod_sandbox_image,
                pods_dir: paths.pods_dir,
                pod_logs_dir: paths.pod_logs_dir,
                container_logs_dir: paths.container_logs_dir,
                cluster_dns,
                cluster_domain,
                resolv_conf: PathBuf::from(resolv_conf),
            },
            serve_streams,
            devices: device_twin.enable.then(|| DevicesConfig {
                modbus: BusAddress::of_node(&device_twin.modbus),
                broker: usual_broker,
                access,
            }),
            mqtt,
            dmi_socket: device_twin.enable.then_some(paths.dmi_socket),
        }
    }
}

/// As the kubelet: lower case.
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
