//! Who else runs pods on this machine: of each other's pods in a container runtime they would think that nobody wants
//! them.

use std::{
    ffi::OsStr,
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crds::componentconfig::edgecore::EdgeCoreConfig;

use crate::preflight::{Check, Problem};

/// The kubelet's, also where it is a part of another program.
pub(super) const KUBELET_PORT: u16 = 10250;

pub(super) fn kubelet(port: u16) -> Check<()> {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Problem::new(
            format!(
                "something listens on port {port}, as a kubelet does; it would remove the edge node's pods"
            ),
            format!(
                "stop and disable the kubelet; if it is something else (ss -ltnp 'sport = :{port}'), go on with --force"
            ),
        )),
        _ => Ok(()),
    }
}

/// An edgecore with another configuration than `own`, but with the same runtime. `proc` is `/proc`.
pub(super) fn edgecore(proc: &Path, own: &Path, endpoint: &str) -> Check<()> {
    let Ok(processes) = fs::read_dir(proc) else { return Ok(()) };
    for process in processes.flatten() {
        let Some(config) = configuration_of(&process.path()) else { continue };
        // One whose configuration is not here runs in a container, or in a machine of its own.
        if config == own || !config.exists() {
            continue;
        }
        // What is not understood may be KubeEdge's, and then it may be any runtime.
        let is_elsewhere = runtime::config::load(&config, EdgeCoreConfig::validate)
            .is_ok_and(|other| other.modules.edged.remote_runtime_endpoint != endpoint);
        if is_elsewhere {
            continue;
        }
        return Err(Problem::new(
            format!(
                "another edgecore (process {}, configuration {}) has the container runtime at {endpoint}; each would \
                 remove the other's pods",
                process.file_name().display(),
                config.display()
            ),
            "take it away (keadm reset with its --root-dir), or give this one a container runtime of its own with \
             --remote-runtime-endpoint",
        ));
    }
    Ok(())
}

/// If it is an edgecore.
fn configuration_of(process: &Path) -> Option<PathBuf> {
    let line = fs::read(process.join("cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    if Path::new(arguments.next()?).file_name()? != "edgecore" {
        return None;
    }
    let mut config = None;
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            config = arguments.next();
        } else if let Some(path) = argument.as_bytes().strip_prefix(b"--config=") {
            config = Some(OsStr::from_bytes(path));
        }
    }
    Some(config.map_or_else(|| PathBuf::from("/etc/kubeedge/config/edgecore.yaml"), PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_a_kubelets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let problem = kubelet(port).unwrap_err();
        assert!(problem.cause.contains(&format!("port {port}, as a kubelet does")), "{problem:?}");
        drop(listener);
        kubelet(port).unwrap();
    }

    #[test]
    fn an_edgecore_with_the_same_runtime_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = |name: &str| dir.path().join(name);
        let process = |pid: &str, line: &str| {
            let place = dir.path().join(pid);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("cmdline"), line.replace(' ', "\0")).unwrap();
        };
        let find = || edgecore(dir.path(), &config("own.yaml"), "unix:///run/a.sock");
        process("1", "/sbin/init ");
        process("2", &format!("/opt/edgecore --config {} ", config("own.yaml").display()));
        process("3", &format!("/opt/edgecore --config={} ", config("other.yaml").display()));
        fs::write(
            config("other.yaml"),
            "apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\n\
             modules: {edged: {remoteRuntimeEndpoint: 'unix:///run/b.sock'}}\n",
        )
        .unwrap();
        find().unwrap();
        let text = fs::read_to_string(config("other.yaml")).unwrap();
        fs::write(config("other.yaml"), text.replace("b.sock", "a.sock")).unwrap();
        let problem = find().unwrap_err();
        assert!(problem.cause.starts_with("another edgecore (process 3, "), "{problem:?}");
        fs::write(config("other.yaml"), "modules: {metaManager: {}}\n").unwrap();
        assert!(find().is_err());
        fs::remove_file(config("other.yaml")).unwrap();
        find().unwrap();
    }
}
