//! edgecore's configuration from the command line.

use std::path::Path;

use crds::componentconfig::{edgecore::EdgeCoreConfig, is_dns_name};

use crate::{
    cli::{Component, HubProtocol, Join},
    preflight::{Check, Problem},
    settings::{set, valid},
};

/// The name that was given, that of an earlier join, or this machine's.
pub(super) fn node_name(args: &Join, old: Option<&EdgeCoreConfig>) -> Check<String> {
    let joined = old.map(|old| old.modules.edged.hostname_override.as_str()).filter(|name| !name.is_empty());
    let name = match (&args.edgenode_name, joined) {
        (Some(name), Some(joined)) if name != joined => {
            return Err(Problem::new(
                format!("this machine has joined as {joined}, not as {name}"),
                format!("leave --edgenode-name out, or run keadm reset first to become {name}"),
            ));
        }
        (Some(name), _) => name.clone(),
        (None, Some(joined)) => joined.to_owned(),
        (None, None) => host_name(),
    };
    if is_dns_name(&name) {
        return Ok(name);
    }
    Err(Problem::new(
        format!("{name:?} cannot name a node: Kubernetes takes lower-case letters, digits, - and ."),
        "give another name with --edgenode-name",
    ))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}

/// Adds what the command line says to the configuration that is there.
pub(super) fn configure(
    args: &Join,
    mut config: EdgeCoreConfig,
    name: &str,
    runtime: &str,
) -> Check<EdgeCoreConfig> {
    config.root_directory = args.root_dir.to_string_lossy().into_owned();
    config.modules.edge_hub.websocket.server = args.cloudcore_ipport.join(",");
    if let Some(proxy) = &args.proxy {
        config.modules.edge_hub.websocket.proxy.0.clone_from(proxy);
    }
    if let Some(file) = &args.proxy_ca_file {
        config.modules.edge_hub.websocket.proxy_ca_file = file.to_string_lossy().into_owned();
    }
    if let Some(protocol) = args.hub_protocol {
        config.modules.edge_hub.quic.enable = protocol == HubProtocol::Quic;
    }
    let edged = &mut config.modules.edged;
    name.clone_into(&mut edged.hostname_override);
    runtime.clone_into(&mut edged.remote_runtime_endpoint);
    if let Some(driver) = args.cgroupdriver {
        edged.cgroup_driver = driver;
    }
    if let Some(ip) = args.node_ip {
        edged.node_ip = ip.to_string();
    }
    edged.node_labels.extend(args.labels.iter().cloned());
    let config = set(config, Component::Edgecore, &args.set)?;
    check_socket(&config)?;
    let verdict = config.validate();
    valid(config, verdict)
}

/// The kernel's limit on the path of a socket.
fn check_socket(config: &EdgeCoreConfig) -> Check<()> {
    const MAX: usize = 107;
    let address = config.paths().admin_address;
    let Some(path) = address.strip_prefix("unix://").map(Path::new) else { return Ok(()) };
    if path.as_os_str().len() <= MAX {
        return Ok(());
    }
    Err(Problem::new(
        format!("the path of edgecore's admin socket is longer than {MAX} bytes: {}", path.display()),
        "choose a shorter --root-dir, or --set commonConfig.monitorServer.bindAddress=unix:///run/NAME.sock",
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn join(more: &str) -> Join {
        let line = format!("keadm join --cloudcore-ipport=192.0.2.1:10000 {more}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Join(join) => *join,
            _ => unreachable!("it is join"),
        }
    }

    const SOCKET: &str = "unix:///run/containerd/containerd.sock";

    #[test]
    fn flags_become_keys() {
        let args = join(
            "--root-dir=/srv/e1 --labels=site=north --cgroupdriver=systemd \
             --set=modules.edged.memoryCapacity=100Mi,modules.edged.cpuFrequency=100",
        );
        let config = configure(&args, EdgeCoreConfig::default(), "pump-7", SOCKET).unwrap();
        let edged = &config.modules.edged;
        assert_eq!(edged.hostname_override, "pump-7");
        assert_eq!(edged.memory_capacity.as_ref().unwrap().bytes(), 100 << 20);
        assert_eq!(edged.cpu_frequency, Some(100));
        assert_eq!(edged.node_labels["site"], "north");
        assert_eq!(config.paths().store_dir, Path::new("/srv/e1/store"));
    }

    #[test]
    fn a_protocol_that_is_asked_for_is_used() {
        let quic = |old: &EdgeCoreConfig, flag: &str| {
            let config = configure(&join(flag), old.clone(), "n", SOCKET).unwrap();
            assert!(config.modules.edge_hub.websocket.enable);
            config.modules.edge_hub.quic.enable
        };
        let mut old = EdgeCoreConfig::default();
        assert!(quic(&old, "") && !quic(&old, "--hub-protocol=websocket"));
        old.modules.edge_hub.quic.enable = false;
        assert!(quic(&old, "--hub-protocol=quic") && !quic(&old, ""));
    }

    #[test]
    fn what_an_operator_wrote_stays() {
        let mut old = EdgeCoreConfig::default();
        old.modules.edge_hub.heartbeat = 60;
        let config = configure(&join(""), old, "n", SOCKET).unwrap();
        assert_eq!(config.modules.edge_hub.heartbeat, 60);
        assert_eq!(configure(&join(""), config.clone(), "n", SOCKET).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_a_problem() {
        let args = join("--set=modules.edged.memoryCapasity=100Mi");
        let problem = configure(&args, EdgeCoreConfig::default(), "n", SOCKET).unwrap_err();
        let wanted =
            "there is no key modules.edged.memoryCapasity; did you mean modules.edged.memoryCapacity?";
        assert!(problem.cause.ends_with(wanted), "{}", problem.cause);
        let args = join("--set=modules.edged.nodeLabels.site=north");
        let config = configure(&args, EdgeCoreConfig::default(), "n", SOCKET).unwrap();
        assert_eq!(config.modules.edged.node_labels["site"], "north");
    }

    #[test]
    fn a_second_name_is_refused() {
        let mut old = EdgeCoreConfig::default();
        old.modules.edged.hostname_override = "pump-7".to_owned();
        let problem = node_name(&join("--edgenode-name=pump-8"), Some(&old)).unwrap_err();
        assert_eq!(problem.cause, "this machine has joined as pump-7, not as pump-8");
        assert_eq!(node_name(&join(""), Some(&old)).unwrap(), "pump-7");
        assert!(node_name(&join("--edgenode-name=Pump_8"), None).is_err());
    }
}
