//! Where edgecore and keadm find each other's files.

use std::path::{Path, PathBuf};

use super::EdgeCoreConfig;

/// Every path of one edgecore. Below the root `/` they are KubeEdge's; below any other root they are all in that
/// directory, so that a machine can hold several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgePaths {
    /// `config/edgecore.yaml`
    pub config_file: PathBuf,
    /// Written by `keadm join`, removed by edgecore after enrolment.
    pub bootstrap_token_file: PathBuf,
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub store_dir: PathBuf,
    /// What the MQTT broker keeps.
    pub mqtt_dir: PathBuf,
    /// `<pods_dir>/<uid>/volumes/…`
    pub pods_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    pub container_logs_dir: PathBuf,
    /// edgecore's own process id, where no systemd keeps it.
    pub pid_file: PathBuf,
    /// edgecore's own log, where no systemd keeps it.
    pub log_file: PathBuf,
    /// Where mappers of devices register.
    pub dmi_socket: PathBuf,
    /// The admin server: `IP:PORT`, or `unix:///PATH`.
    pub admin_address: String,
}

const DMI_SOCKET: &str = "dmi.sock";

impl EdgePaths {
    /// The paths of an edgecore with no path set in its configuration.
    pub fn under(root: &Path) -> Self {
        let (etc, lib, run, log) = if root == Path::new("/") {
            let path = PathBuf::from;
            (path("/etc/kubeedge"), path("/var/lib/kubeedge"), path("/run/kubeedge"), path("/var/log"))
        } else {
            (root.to_owned(), root.to_owned(), root.to_owned(), root.join("logs"))
        };
        let is_default = root == Path::new("/");
        Self {
            config_file: etc.join("config/edgecore.yaml"),
            bootstrap_token_file: etc.join(if is_default {
                "bootstrap-edgecore.conf"
            } else {
                "bootstrap-token"
            }),
            ca_file: etc.join("ca/rootCA.crt"),
            cert_file: etc.join("certs/server.crt"),
            key_file: etc.join("certs/server.key"),
            store_dir: lib.join("store"),
            mqtt_dir: lib.join("mqtt"),
            pods_dir: lib.join("pods"),
            dmi_socket: etc.join(DMI_SOCKET),
            pod_logs_dir: log.join("pods"),
            container_logs_dir: log.join("containers"),
            pid_file: run.join("edgecore.pid"),
            log_file: if is_default { log.join("kubeedge/edgecore.log") } else { root.join("edgecore.log") },
            admin_address: format!("unix://{}", run.join("edgecore-admin.sock").display()),
        }
    }

    pub(super) fn of(config: &EdgeCoreConfig) -> Self {
        let mut paths = Self::under(Path::new(&config.root_directory));
        let hub = &config.modules.edge_hub;
        let edged = &config.modules.edged;
        for (path, set) in [
            (&mut paths.ca_file, &hub.tls_ca_file),
            (&mut paths.cert_file, &hub.tls_cert_file),
            (&mut paths.key_file, &hub.tls_private_key_file),
            (&mut paths.store_dir, &config.database.data_source),
            (&mut paths.pod_logs_dir, &edged.pod_logs_directory),
            (&mut paths.container_logs_dir, &edged.container_logs_directory),
        ] {
            if !set.is_empty() {
                *path = PathBuf::from(set);
            }
        }
        if !edged.root_directory.is_empty() {
            paths.pods_dir = Path::new(&edged.root_directory).join("pods");
        }
        let socket = &config.modules.device_twin.dmi_sock_path;
        if !socket.is_empty() {
            let path = PathBuf::from(socket);
            paths.dmi_socket =
                if path.extension().is_some_and(|it| it == "sock") { path } else { path.join(DMI_SOCKET) };
        }
        let address = &config.common_config.monitor_server.bind_address;
        if !address.is_empty() {
            paths.admin_address.clone_from(address);
        }
        paths
    }
}
