//! What edged has no way to do yet. A pod that asks for it is not started with that part left out: it waits, with the
//! field's name in its status and in an event.

use super::{pod::DesiredPod, volumes};

/// The path of the first field that is not supported.
pub fn find(pod: &DesiredPod) -> Option<String> {
    of_pod(pod).or_else(|| of_volumes(pod)).or_else(|| of_containers(pod))
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

fn of_containers(pod: &DesiredPod) -> Option<String> {
    pod.all_containers().find_map(|(_, container)| {
        let security = container.security_context.as_ref();
        let lifecycle = container.lifecycle.as_ref();
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        let armor = security.and_then(|security| security.app_armor_profile.as_ref());
        let set = [
            (container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()), "volumeDevices"),
            (
                container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty()),
                "restartPolicyRules",
            ),
            (container.restart_policy.as_deref().is_some_and(|policy| policy != "Always"), "restartPolicy"),
            (security.is_some_and(|own| own.se_linux_options.is_some()), "securityContext.seLinuxOptions"),
            (
                armor.is_some_and(|profile| profile.type_ == "Localhost"),
                "securityContext.appArmorProfile.type=Localhost",
            ),
            (lifecycle.is_some_and(|lifecycle| lifecycle.stop_signal.is_some()), "lifecycle.stopSignal"),
            (
                limits.is_some_and(|limits| limits.keys().any(|name| name.starts_with("hugepages-"))),
                "resources.limits.hugepages",
            ),
        ];
        let (_, field) = set.iter().find(|(is_set, _)| *is_set)?;
        Some(format!("spec.containers[{:?}].{field}", container.name))
    })
}
