//! The configuration as the components take it, made once from the file's types.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crds::componentconfig::{
    LogFormat as RawLogFormat,
    cloudcore::{
        CloudCoreConfig, CloudHub, CloudHubWebSocket, CloudStream, CommonConfig, EdgeController,
        KubeApiConfig, Modules, NodeLease,
    },
};
use runtime::telemetry::LogFormat;

use crate::edgecontroller::lease::LeaseConfig;

/// The whole of cloudcore's configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub log_level: String,
    pub log_format: LogFormat,
    pub admin_address: String,
    pub api_server: ApiServerConfig,
    pub hub: HubConfig,
    pub lease: LeaseConfig,
    pub stream: Option<StreamConfig>,
    /// The ConfigMap with the link settings of nodes that name none; empty for none.
    pub sync_config_map: String,
}

/// How the API server is reached.
#[derive(Debug, Clone)]
pub struct ApiServerConfig {
    /// In place of the kubeconfig's.
    pub master: Option<String>,
    /// Without one, the ServiceAccount of the pod that cloudcore runs in.
    pub kubeconfig: Option<PathBuf>,
}

/// The port that the API server connects to.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    pub listen: SocketAddr,
    /// In place of the one by which the API server is reached.
    pub advertise: Option<IpAddr>,
    /// Those that edge nodes are given.
    pub addresses: Vec<IpAddr>,
}

/// The port that edge nodes connect to.
#[derive(Debug, Clone)]
pub struct HubConfig {
    pub listen: SocketAddr,
    /// With the port 0: the same as that of `listen`.
    pub quic: Option<SocketAddr>,
    /// Addresses and DNS names of the server's certificate.
    pub names: Vec<String>,
    pub node_limit: usize,
    /// The longest heartbeat that a node gets.
    pub keepalive: Duration,
    pub write_timeout: Duration,
    pub certificate_validity: Duration,
    /// How long after its end a certificate still gets a node in.
    pub certificate_grace: Duration,
}

impl From<CloudCoreConfig> for Config {
    fn from(raw: CloudCoreConfig) -> Self {
        let CloudCoreConfig {
            api_version: _,
            kind: _,
            log_level,
            log_format,
            common_config: CommonConfig { monitor_server },
            kube_api_config: KubeApiConfig { master, kube_config },
            modules: Modules { cloud_hub, cloud_stream, edge_controller: EdgeController { sync_config_map } },
        } = raw;
        let CloudHub {
            advertise_address,
            dns_names,
            node_limit,
            keepalive_interval,
            write_timeout,
            edge_cert_signing_duration,
            edge_cert_grace_duration,
            node_lease: NodeLease { duration_seconds, renew_interval_seconds },
            quic,
            websocket: CloudHubWebSocket { enable: _, port, address },
        } = cloud_hub;
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let mut names: Vec<String> = ["127.0.0.1", "::1", "localhost"].map(str::to_owned).to_vec();
        names.extend(advertise_address.iter().map(ToString::to_string));
        names.extend(dns_names);
        names.sort_unstable();
        names.dedup();
        let CloudStream { enable, stream_port, address: stream_address, advertise_address: advertise } =
            cloud_stream;
        let stream = enable.then(|| StreamConfig {
            listen: SocketAddr::new(stream_address, stream_port),
            advertise,
            addresses: advertise_address,
        });
        Self {
            log_level,
            log_format: match log_format {
                RawLogFormat::Text => LogFormat::Text,
                RawLogFormat::Json => LogFormat::Json,
            },
            admin_address: monitor_server.bind_address,
            api_server: ApiServerConfig {
                master: Some(master).filter(|master| !master.is_empty()),
                kubeconfig: Some(kube_config).filter(|path| !path.is_empty()).map(PathBuf::from),
            },
            hub: HubConfig {
                listen: SocketAddr::new(address, port),
                quic: quic
                    .enable
                    .then(|| SocketAddr::new(quic.address.unwrap_or(address), quic.port.unwrap_or(port))),
                names,
                node_limit: usize::try_from(node_limit).unwrap_or(usize::MAX),
                keepalive: seconds(keepalive_interval),
                write_timeout: seconds(write_timeout),
                certificate_validity: Duration::from_secs(u64::from(edge_cert_signing_duration) * 86_400),
                certificate_grace: Duration::from_secs(u64::from(edge_cert_grace_duration) * 86_400),
            },
            lease: LeaseConfig {
                renew_every: seconds(renew_interval_seconds),
                duration: seconds(duration_seconds),
            },
            stream,
            sync_config_map,
        }
    }
}
