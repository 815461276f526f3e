//! securityContext as the runtime's options, for the sandbox and for each container.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, PodSecurityContext, SeccompProfile};
use proto::cri::v1;

use super::pod::DesiredPod;

/// What a container must not read, unless its procMount says otherwise.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Says `Y` where the kernel has AppArmor on.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";

/// The user that an image says it runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

/// Why a container may not run as it would.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    #[error("container's runAsUser breaks non-root policy")]
    RunAsRoot,
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root"
    )]
    UserName(String),
    #[error("localhostProfile {0:?} is not a relative path below the node's seccomp directory")]
    Profile(String),
    #[error(
        "securityContext.appArmorProfile.type {0:?} needs AppArmor, which this node has not; only Unconfined runs here"
    )]
    AppArmor(String),
}

/// `profiles`: where `localhostProfile` is looked for.
pub fn sandbox(pod: &DesiredPod, profiles: &Path) -> Result<v1::LinuxSandboxSecurityContext, SecurityError> {
    let security = pod.spec.security_context.as_ref();
    // A profile that cannot be is told before anything runs.
    seccomp(security.and_then(|security| security.seccomp_profile.as_ref()), profiles)?;
    let privileged = pod.all_containers().any(|(_, container)| {
        container.security_context.as_ref().and_then(|own| own.privileged) == Some(true)
    });
    Ok(v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: int64(security.and_then(|security| security.run_as_user)),
        run_as_group: int64(security.and_then(|security| security.run_as_group)),
        supplemental_groups: groups(security),
        privileged,
        // As kubelet: pause runs under the runtime's profile, whatever the pod's own.
        seccomp: Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..Default::default()
    })
}

pub fn container(
    pod: &DesiredPod,
    container: &Container,
    image: &ImageUser,
    profiles: &Path,
) -> Result<v1::LinuxContainerSecurityContext, SecurityError> {
    let of_pod = pod.spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let run_as_user = own.and_then(|own| own.run_as_user).or(of_pod.and_then(|pod| pod.run_as_user));
    let run_as_group = own.and_then(|own| own.run_as_group).or(of_pod.and_then(|pod| pod.run_as_group));
    let non_root = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|pod| pod.run_as_non_root));
    if non_root == Some(true) {
        match (run_as_user, image.uid) {
            (Some(0), _) => return Err(SecurityError::RunAsRoot),
            (None, Some(0)) => return Err(SecurityError::Root),
            (Some(_), _) | (None, Some(_)) => {}
            (None, None) if image.name.is_empty() => return Err(SecurityError::Root),
            (None, None) => return Err(SecurityError::UserName(image.name.clone())),
        }
    }
    let privileged = own.and_then(|own| own.privileged).unwrap_or(false);
    let unmasked = privileged || own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let paths =
        |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(|p| (*p).to_owned()).collect() };
    let capabilities = own.and_then(|own| own.capabilities.as_ref());
    let profile = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or(of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    let armor = own
        .and_then(|own| own.app_armor_profile.as_ref())
        .or(of_pod.and_then(|pod| pod.app_armor_profile.as_ref()));
    // A group without a user is refused by runtimes: then the user of the image is named.
    let user = run_as_user.or(image.uid);
    Ok(v1::LinuxContainerSecurityContext {
        capabilities: capabilities.map(|capabilities| v1::Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int64(user),
        run_as_username: if user.is_none() { image.name.clone() } else { String::new() },
        run_as_group: int64(run_as_group),
        readonly_rootfs: own.and_then(|own| own.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: groups(of_pod),
        no_new_privs: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(profile, profiles)?),
        apparmor: apparmor(armor, Path::new(APPARMOR))?,
        ..Default::default()
    })
}

fn namespaces(pod: &DesiredPod) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod};
    let spec = &pod.spec;
    let pid = if spec.host_pid == Some(true) {
        Node
    } else if spec.share_process_namespace == Some(true) {
        Pod
    } else {
        Container
    };
    let mode = |host: bool| i32::from(if host { Node } else { Pod });
    v1::NamespaceOption {
        network: mode(pod.host_network()),
        pid: pid.into(),
        ipc: mode(spec.host_ipc == Some(true)),
        ..Default::default()
    }
}

fn groups(security: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(security) = security else { return Vec::new() };
    let mut groups = security.supplemental_groups.clone().unwrap_or_default();
    groups.extend(security.fs_group);
    groups
}

/// Without a profile the runtime has its own choice.
fn apparmor(
    profile: Option<&AppArmorProfile>,
    enabled: &Path,
) -> Result<Option<v1::SecurityProfile>, SecurityError> {
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let Some(profile) = profile else { return Ok(None) };
    let (kind, reference) = match profile.type_.as_str() {
        "Unconfined" => (Unconfined, String::new()),
        "Localhost" => (Localhost, profile.localhost_profile.clone().unwrap_or_default()),
        _ => (RuntimeDefault, String::new()),
    };
    let on = || std::fs::read_to_string(enabled).is_ok_and(|text| text.trim() == "Y");
    if kind != Unconfined && !on() {
        return Err(SecurityError::AppArmor(profile.type_.clone()));
    }
    Ok(Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: reference }))
}

/// Without a profile a container is unconfined, as on a kubelet with its defaults.
fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Result<v1::SecurityProfile, SecurityError> {
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let (kind, reference) = match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => (RuntimeDefault, String::new()),
        Some("Localhost") => {
            let name = profile.and_then(|profile| profile.localhost_profile.as_deref()).unwrap_or_default();
            let relative = Path::new(name);
            // It names a file of the node: not just any.
            if name.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(SecurityError::Profile(name.to_owned()));
            }
            (Localhost, profiles.join(relative).to_string_lossy().into_owned())
        }
        _ => (Unconfined, String::new()),
    };
    Ok(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: reference })
}

fn int64(value: Option<i64>) -> Option<v1::Int64Value> {
    value.map(|value| v1::Int64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::pod_state::tests::pod;

    #[test]
    fn root_is_refused_where_it_is_barred() {
        let spec =
            serde_json::json!({"containers": [{"name": "a", "securityContext": {"runAsNonRoot": true}}]});
        let pod = pod(&spec);
        let user = |uid, name: &str| ImageUser { uid, name: name.to_owned() };
        let refused = |user| container(&pod, &pod.spec.containers[0], &user, Path::new("/p")).unwrap_err();
        assert_eq!(refused(user(Some(0), "")), SecurityError::Root);
        assert_eq!(refused(user(None, "")), SecurityError::Root);
        assert_eq!(refused(user(None, "web")), SecurityError::UserName("web".to_owned()));
        let context = container(&pod, &pod.spec.containers[0], &user(Some(7), ""), Path::new("/p")).unwrap();
        assert_eq!(context.run_as_user, Some(v1::Int64Value { value: 7 }));
        assert_eq!(context.masked_paths.len(), MASKED.len());
    }

    #[test]
    fn a_profile_that_the_node_cannot_enforce_is_refused() {
        let ask = |kind: &str, enabled: &str| {
            let profile = AppArmorProfile { type_: kind.to_owned(), localhost_profile: None };
            apparmor(Some(&profile), Path::new(enabled)).map(|profile| profile.is_some())
        };
        assert_eq!(ask("Unconfined", "/absent"), Ok(true));
        let refused = SecurityError::AppArmor("RuntimeDefault".to_owned());
        assert_eq!(ask("RuntimeDefault", "/absent"), Err(refused));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "Y\n").unwrap();
        assert_eq!(ask("RuntimeDefault", file.path().to_str().unwrap()), Ok(true));
    }

    #[test]
    fn profiles_of_the_node_are_below_their_directory() {
        let profile = |name: &str| {
            let profile =
                SeccompProfile { type_: "Localhost".to_owned(), localhost_profile: Some(name.to_owned()) };
            seccomp(Some(&profile), Path::new("/p")).map(|profile| profile.localhost_ref)
        };
        assert_eq!(profile("a/b.json").unwrap(), "/p/a/b.json");
        for name in ["", "/etc/passwd", "../x", "a/../../x"] {
            assert!(profile(name).is_err(), "{name} was taken");
        }
    }
}
