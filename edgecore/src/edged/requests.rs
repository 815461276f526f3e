//! What the runtime is asked for: the configuration of a pod's sandbox and of its containers.

use std::{collections::HashMap, path::Path};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use proto::cri::v1;

use super::{
    cgroup,
    dns::{self, DnsSettings},
    hosts, labels,
    logs::LogPaths,
    pod::{DesiredPod, container_hash},
    resources,
    security::{self, SecurityError},
};

pub fn sandbox(
    pod: &DesiredPod,
    attempt: u32,
    pod_start: Timestamp,
    logs: &LogPaths,
    dns: &DnsSettings,
    driver: v1::CgroupDriver,
    profiles: &Path,
) -> Result<v1::PodSandboxConfig, SecurityError> {
    let mut annotations: HashMap<String, String> =
        pod.metadata.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.insert(labels::POD_START.to_owned(), pod_start.to_string());
    annotations.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
    let security = pod.spec.security_context.as_ref();
    let sysctls = security.and_then(|security| security.sysctls.as_ref()).into_iter().flatten();
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name().to_owned(),
            uid: pod.uid.to_string(),
            namespace: pod.namespace().to_owned(),
            attempt,
        }),
        // In the host's network the pod has the host's name.
        hostname: if pod.host_network() { String::new() } else { hosts::hostname(pod) },
        log_directory: logs.pod(pod).to_string_lossy().into_owned(),
        dns_config: Some(dns::sandbox_dns(pod, dns)),
        port_mappings: port_mappings(pod),
        labels: labels::sandbox_labels(
            pod.name(),
            pod.namespace(),
            pod.uid.as_str(),
            pod.metadata.labels.as_ref(),
        ),
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup::parent(driver, resources::qos_class(&pod.spec), &pod.uid),
            security_context: Some(security::sandbox(pod, profiles)?),
            sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
            ..Default::default()
        }),
    })
}

/// The CNI chain's portmap does the rest. In the host's network a port is a host port already.
fn port_mappings(pod: &DesiredPod) -> Vec<v1::PortMapping> {
    if pod.host_network() {
        return Vec::new();
    }
    let ports = pod.all_containers().flat_map(|(_, container)| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = port.host_port.filter(|host_port| *host_port > 0)?;
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            };
            Some(v1::PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port,
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

/// What of a container's configuration was worked out elsewhere.
pub struct ContainerParts {
    pub attempt: u32,
    pub image_id: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub envs: Vec<v1::KeyValue>,
    pub mounts: Vec<v1::Mount>,
    pub security: v1::LinuxContainerSecurityContext,
    pub resources: v1::LinuxContainerResources,
}

pub fn container(pod: &DesiredPod, spec: &Container, parts: ContainerParts) -> v1::ContainerConfig {
    let grace = pod.spec.termination_grace_period_seconds.unwrap_or(30);
    let annotations = HashMap::from(
        [
            (labels::CONTAINER_HASH, container_hash(spec)),
            (labels::RESTART_COUNT, parts.attempt.to_string()),
            (labels::TERMINATION_MESSAGE_PATH, termination_message_path(spec).to_owned()),
            (
                labels::TERMINATION_MESSAGE_POLICY,
                spec.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned()),
            ),
            (labels::GRACE_PERIOD, grace.to_string()),
            (labels::RESOURCES, resources::resizable(spec)),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: spec.name.clone(), attempt: parts.attempt }),
        image: Some(v1::ImageSpec {
            image: parts.image_id,
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: parts.command,
        args: parts.args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: parts.envs,
        mounts: parts.mounts,
        labels: labels::container_labels(pod.name(), pod.namespace(), pod.uid.as_str(), &spec.name),
        annotations,
        log_path: LogPaths::container(&spec.name, parts.attempt),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(parts.resources),
            security_context: Some(parts.security),
        }),
        ..Default::default()
    }
}

pub fn termination_message_path(spec: &Container) -> &str {
    spec.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log")
}
