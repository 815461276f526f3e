//! What edged has no way to do yet. A pod that asks for it is not started with that part left out: it waits, with the
//! field's name in its status and in an event.

use k8s_openapi::{
    api::core::v1::{Container, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::Value;

use super::{
    pod::{DesiredPod, Role},
    probes::check,
    volumes,
};

/// Parts of a pod's spec in which the keys of objects are fields, and no names that people choose.
const FIELDS_ONLY: [&str; 4] = ["volumes", "containers", "initContainers", "ephemeralContainers"];

/// The path of the first field that is not supported.
pub fn find(pod: &DesiredPod) -> Option<String> {
    pod.unread.clone().or_else(|| of_pod(pod)).or_else(|| of_volumes(pod)).or_else(|| {
        let started = pod.all_containers().filter(|(role, _)| *role != Role::Ephemeral);
        started.into_iter().find_map(|(role, container)| of_container(role, container))
    })
}

/// Each ephemeral container that cannot be started as it is, and the field for which.
pub fn of_ephemeral_containers(pod: &DesiredPod) -> Vec<(String, String)> {
    let faults = pod
        .ephemeral_containers()
        .filter_map(|container| Some((container.name.clone(), of_container(Role::Ephemeral, container)?)));
    faults.collect()
}

/// The path of the first field of a pod's spec that nobody here reads: one of a Kubernetes newer than the types that
/// edged was built with, which drop it (`known` is what they keep of `raw`), or one of the newest that is not done yet.
pub fn unread(raw: &Value, known: &Value) -> Option<String> {
    let parts = raw.as_object()?;
    parts.iter().find_map(|(part, value)| {
        let path = format!("spec.{part}");
        let Some(known) = known.get(part) else { return says_something(value).then_some(path) };
        walk(value, known, part, &path, FIELDS_ONLY.contains(&part.as_str()))
    })
}

fn walk(raw: &Value, known: &Value, parent: &str, path: &str, fields_only: bool) -> Option<String> {
    match (raw, known) {
        (Value::Object(raw), Value::Object(known)) => raw.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match known.get(key) {
                None => says_something(value).then_some(path),
                Some(_) if fields_only && not_done(parent, key) => says_something(value).then_some(path),
                Some(known) => walk(value, known, key, &path, fields_only),
            }
        }),
        (Value::Array(raw), Value::Array(known)) => {
            let pairs = raw.iter().zip(known).enumerate();
            pairs.into_iter().find_map(|(at, (raw, known))| {
                walk(raw, known, parent, &format!("{path}[{at}]"), fields_only)
            })
        }
        _ => None,
    }
}

/// Fields that came with Kubernetes 1.37.
fn not_done(parent: &str, key: &str) -> bool {
    matches!(
        (parent, key),
        ("emptyDir", "mode")
            | ("httpGet", "protocol")
            | ("items" | "serviceAccountToken", "user")
            | (_, "bindMountOptions" | "defaultUser")
    )
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn of_pod(pod: &DesiredPod) -> Option<String> {
    let spec = &pod.spec;
    let security = spec.security_context.as_ref();
    let set = [
        (spec.host_users == Some(false), "spec.hostUsers"),
        (spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()), "spec.resourceClaims"),
        (spec.os.as_ref().is_some_and(|os| os.name != "linux"), "spec.os"),
        (spec.resources.is_some(), "spec.resources"),
        (spec.set_hostname_as_fqdn == Some(true), "spec.setHostnameAsFQDN"),
        (spec.overhead.as_ref().is_some_and(|overhead| !overhead.is_empty()), "spec.overhead"),
        (
            security.is_some_and(|security| security.se_linux_options.is_some()),
            "spec.securityContext.seLinuxOptions",
        ),
        (
            security.and_then(|security| security.supplemental_groups_policy.as_deref()) == Some("Strict"),
            "spec.securityContext.supplementalGroupsPolicy",
        ),
    ];
    let armor = security.and_then(|security| security.app_armor_profile.as_ref());
    if armor.is_some_and(|profile| profile.type_ == "Localhost") {
        return Some("spec.securityContext.appArmorProfile.type=Localhost".to_owned());
    }
    set.iter().find(|(is_set, _)| *is_set).map(|(_, field)| (*field).to_owned())
}

fn of_volumes(pod: &DesiredPod) -> Option<String> {
    pod.spec.volumes.iter().flatten().enumerate().find_map(|(index, volume)| {
        volumes::unsupported(volume)
            .map(|kind| format!("spec.volumes[{index}].{kind} (volume {:?})", volume.name))
    })
}

fn of_container(role: Role, container: &Container) -> Option<String> {
    let security = container.security_context.as_ref();
    let lifecycle = container.lifecycle.as_ref();
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let armor = security.and_then(|security| security.app_armor_profile.as_ref());
    let policy = container.restart_policy.as_deref();
    let tcp = |hook: Option<&LifecycleHandler>| hook.is_some_and(|hook| hook.tcp_socket.is_some());
    let set = [
        (container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()), "volumeDevices"),
        (
            container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty()),
            "restartPolicyRules",
        ),
        (policy.is_some() && role != Role::Sidecar, "restartPolicy"),
        (security.is_some_and(|own| own.se_linux_options.is_some()), "securityContext.seLinuxOptions"),
        (
            armor.is_some_and(|profile| profile.type_ == "Localhost"),
            "securityContext.appArmorProfile.type=Localhost",
        ),
        (lifecycle.is_some_and(|lifecycle| lifecycle.stop_signal.is_some()), "lifecycle.stopSignal"),
        (tcp(lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())), "lifecycle.postStart.tcpSocket"),
        (tcp(lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())), "lifecycle.preStop.tcpSocket"),
        (
            limits.is_some_and(|limits| limits.keys().any(|name| name.starts_with("hugepages-"))),
            "resources.limits.hugepages",
        ),
    ];
    let named = set.iter().find(|(is_set, _)| *is_set).map(|(_, field)| (*field).to_owned());
    let field = named.or_else(|| unknown_port(container))?;
    let list = match role {
        Role::Init | Role::Sidecar => "initContainers",
        Role::Main => "containers",
        Role::Ephemeral => "ephemeralContainers",
    };
    Some(format!("spec.{list}[{:?}].{field}", container.name))
}

/// A probe or hook that names a port which the container does not have would never be made.
fn unknown_port(container: &Container) -> Option<String> {
    fn of_probe(probe: &Probe) -> Option<(&'static str, &IntOrString)> {
        let http = probe.http_get.as_ref().map(|get| ("httpGet", &get.port));
        http.or_else(|| probe.tcp_socket.as_ref().map(|tcp| ("tcpSocket", &tcp.port)))
    }
    fn of_hook(hook: &LifecycleHandler) -> Option<(&'static str, &IntOrString)> {
        hook.http_get.as_ref().map(|get| ("httpGet", &get.port))
    }
    let lifecycle = container.lifecycle.as_ref();
    let ports = [
        ("startupProbe", container.startup_probe.as_ref().and_then(of_probe)),
        ("livenessProbe", container.liveness_probe.as_ref().and_then(of_probe)),
        ("readinessProbe", container.readiness_probe.as_ref().and_then(of_probe)),
        ("lifecycle.postStart", lifecycle.and_then(|all| all.post_start.as_ref()).and_then(of_hook)),
        ("lifecycle.preStop", lifecycle.and_then(|all| all.pre_stop.as_ref()).and_then(of_hook)),
    ];
    ports.into_iter().find_map(|(place, named)| {
        let (how, port) = named?;
        let IntOrString::String(name) = port else { return None };
        check::port(port, container)
            .is_none()
            .then(|| format!("{place}.{how}.port={name:?}, a name of none of its ports,"))
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use serde_json::json;

    use super::*;

    fn unread_of(raw: &Value) -> Option<String> {
        let spec: PodSpec = serde_json::from_value(raw.clone()).unwrap();
        unread(raw, &serde_json::to_value(spec).unwrap())
    }

    #[test]
    fn a_field_that_nobody_reads_is_named() {
        let spec = |more: Value| {
            let mut spec = json!({"containers": [{"name": "a", "image": "b", "resources": {"limits": {"cpu": "1"}}}],
                "nodeSelector": {"defaultUser": "x"}, "tolerations": [], "hostAliases": null});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        assert_eq!(unread_of(&spec(json!({}))), None);
        for (more, field) in [
            (json!({"warpDrive": true}), "spec.warpDrive"),
            (json!({"securityContext": {"tea": "hot"}}), "spec.securityContext.tea"),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {"mode": 511}}]}),
                "spec.volumes[1].emptyDir.mode",
            ),
            (
                json!({"containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/", "bindMountOptions": ["x"]}]}]}),
                "spec.containers[0].volumeMounts[0].bindMountOptions",
            ),
        ] {
            assert_eq!(unread_of(&spec(more)).as_deref(), Some(field));
        }
    }

    #[test]
    fn a_container_is_refused_by_the_path_of_its_field() {
        let container = |value: Value| -> Container { serde_json::from_value(value).unwrap() };
        let probed = json!({"name": "a", "ports": [{"name": "http", "containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": "http"}}});
        assert_eq!(of_container(Role::Main, &container(probed.clone())), None);
        for (role, field, value) in [
            (Role::Main, "livenessProbe", json!({"tcpSocket": {"port": "https"}})),
            (Role::Init, "lifecycle", json!({"preStop": {"tcpSocket": {"port": 1}}})),
            (Role::Ephemeral, "restartPolicy", json!("Never")),
            (Role::Main, "restartPolicy", json!("Always")),
        ] {
            let mut asked = probed.clone();
            asked[field] = value;
            let told = of_container(role, &container(asked)).unwrap();
            assert!(told.contains(&format!("[\"a\"].{field}")), "{told}");
        }
        let sidecar = container(json!({"name": "a", "restartPolicy": "Always"}));
        assert_eq!(of_container(Role::Sidecar, &sidecar), None);
    }
}
