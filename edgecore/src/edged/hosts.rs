//! The `/etc/hosts` of a pod.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
};

use super::pod::DesiredPod;

const MANAGED: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// `<hostname>` as the pod sees it.
pub fn hostname(pod: &DesiredPod) -> String {
    let spec = &pod.spec;
    let name = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).unwrap_or(pod.name());
    // A pod's name may be longer than the kernel lets a host name be.
    let short: String = name.chars().take(63).collect();
    short.trim_end_matches(['-', '.']).to_owned()
}

/// `devices` are those of the node in the pod's namespace, and the address at which it reaches what speaks for them.
pub fn content(
    pod: &DesiredPod,
    ips: &[String],
    cluster_domain: &str,
    host_file: &Path,
    devices: Option<(IpAddr, &[Box<str>])>,
) -> String {
    let mut text = if pod.host_network() {
        let own = fs::read_to_string(host_file).unwrap_or_default();
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        let mut text = MANAGED.to_owned();
        let hostname = hostname(pod);
        let names = match &pod.spec.subdomain {
            Some(sub) => format!("{hostname}.{sub}.{}.svc.{cluster_domain}\t{hostname}", pod.namespace()),
            None => hostname,
        };
        for ip in ips {
            push_line(&mut text, ip, &names);
        }
        text
    };
    if let Some((ip, names)) = devices.filter(|(_, names)| !names.is_empty()) {
        text.push_str("\n# Devices of this node: its MQTT broker.\n");
        push_line(&mut text, &ip.to_string(), &names.join("\t"));
    }
    let aliases = pod.spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            push_line(&mut text, &alias.ip, &alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

fn push_line(text: &mut String, ip: &str, names: &str) {
    // Writing to a String cannot fail.
    writeln!(text, "{ip}\t{names}").unwrap_or_default();
}

/// Written in place: it is bind-mounted into containers that run, which read at any time. So it is never empty, either.
pub fn write(path: &Path, content: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(content.as_bytes())?;
    file.set_len(content.len() as u64)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}
