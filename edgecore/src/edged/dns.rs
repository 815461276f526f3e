//! dnsPolicy and dnsConfig as the sandbox's resolv.conf.

use std::{fs, path::Path};

use proto::cri::v1;

use super::pod::DesiredPod;

/// The C library reads no more than three.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What the node knows of DNS.
#[derive(Clone, Debug, Default)]
pub struct DnsSettings {
    /// Servers for `ClusterFirst`; none: such pods use the node's own, as with kubelet.
    pub cluster_servers: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: std::path::PathBuf,
}

pub fn sandbox_dns(pod: &DesiredPod, settings: &DnsSettings) -> v1::DnsConfig {
    let policy = pod.spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match policy {
        "None" => v1::DnsConfig::default(),
        _ => host_dns(&settings.resolv_conf),
    };
    if cluster_first && !settings.cluster_servers.is_empty() {
        let domain = &settings.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
        searches.append(&mut dns.searches);
        dns = v1::DnsConfig {
            servers: settings.cluster_servers.clone(),
            searches,
            options: vec!["ndots:5".to_owned()],
        };
    }
    if let Some(own) = &pod.spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            // The pod's value of an option replaces the one before.
            dns.options.retain(|old| old.split(':').next() != Some(name));
            dns.options
                .push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut seen = Vec::new();
    dns.servers.retain(|server| {
        !seen.contains(server) && {
            seen.push(server.clone());
            true
        }
    });
    dns.servers.truncate(MAX_SERVERS);
    let mut seen = Vec::new();
    dns.searches.retain(|search| {
        !seen.contains(search) && {
            seen.push(search.clone());
            true
        }
    });
    dns.searches.truncate(MAX_SEARCHES);
    dns
}

/// A file that is missing is an empty one: a node without DNS is a fine node.
fn host_dns(path: &Path) -> v1::DnsConfig {
    let mut dns = v1::DnsConfig::default();
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.filter(|word| *word != ".").map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::pod_state::tests::pod;

    #[test]
    fn policies() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# x\nnameserver 192.0.2.1\nsearch site.example\noptions ndots:2\n").unwrap();
        let settings = DnsSettings {
            cluster_servers: vec!["10.0.0.10".to_owned()],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: file.path().to_owned(),
        };
        let dns = |spec: serde_json::Value| sandbox_dns(&pod(&spec), &settings);
        let first = dns(serde_json::json!({"containers": []}));
        assert_eq!(first.servers, ["10.0.0.10"]);
        assert_eq!(
            first.searches,
            ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "site.example"]
        );
        let host = dns(serde_json::json!({"containers": [], "hostNetwork": true}));
        assert_eq!(host.servers, ["192.0.2.1"]);
        let none = dns(serde_json::json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["9.9.9.9"], "options": [{"name": "ndots", "value": "3"}]}}));
        assert_eq!((none.servers, none.options), (vec!["9.9.9.9".to_owned()], vec!["ndots:3".to_owned()]));
    }
}
