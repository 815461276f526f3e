//! A pod as it is desired: the object from the store, parsed once, with its defaults spelled out.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, EphemeralContainer, Pod, PodCondition, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proto::{Object, ResourceKey};
use sha2::{Digest as _, Sha256};

use super::unsupported;

const DEFAULT_GRACE_SECONDS: i64 = 30;

/// A pod's uid: also the name of its directory, so nothing but letters, digits and dashes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Box<str>);

impl PodUid {
    pub fn new(text: &str) -> Option<Self> {
        let plain = !text.is_empty()
            && text.len() <= 128
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        plain.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the bytes of an object are no pod that can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("{key} does not parse as a v1.Pod")]
    Parse {
        key: ResourceKey,
        #[source]
        source: serde_json::Error,
    },
    #[error("{key} has no usable {field}")]
    Field { key: ResourceKey, field: &'static str },
}

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: started in order, then runs beside the others.
    Sidecar,
    Main,
    /// Put beside the others while they run, to look at them; started once.
    Ephemeral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// See the module.
pub struct DesiredPod {
    pub key: ResourceKey,
    pub uid: PodUid,
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    /// The cloud holds an end of it, and whether it succeeded: it is not run, whatever is left of it here.
    pub ended: Option<bool>,
    /// What others say of the conditions that its readiness gates name.
    pub gates: Vec<PodCondition>,
    /// The path of the first field of the spec that edged knows nothing of.
    pub unread: Option<String>,
    ephemeral: Vec<Ephemeral>,
}

struct Ephemeral {
    container: Container,
    /// The container whose processes it sees.
    target: Option<String>,
}

impl DesiredPod {
    pub fn parse(object: &Object) -> Result<Self, PodError> {
        let key = object.key.clone();
        let pod: Pod = serde_json::from_slice(&object.bytes)
            .map_err(|source| PodError::Parse { key: key.clone(), source })?;
        let uid = pod.metadata.uid.as_deref().and_then(PodUid::new);
        let Some(uid) = uid else { return Err(PodError::Field { key, field: "metadata.uid" }) };
        let Some(spec) = pod.spec else { return Err(PodError::Field { key, field: "spec" }) };
        let unread =
            unread_field(object, &spec).map_err(|source| PodError::Parse { key: key.clone(), source })?;
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(ephemeral).collect::<Result<_, _>>();
        let ephemeral = ephemeral.map_err(|source| PodError::Parse { key: key.clone(), source })?;
        if !spec.volumes.iter().flatten().all(|volume| is_label(&volume.name)) {
            return Err(PodError::Field { key, field: "spec.volumes[].name" });
        }
        let status = pod.status.unwrap_or_default();
        let ended = match status.phase.as_deref() {
            Some("Succeeded") => Some(true),
            Some("Failed") => Some(false),
            _ => None,
        };
        let gates = status.conditions.unwrap_or_default();
        let pod = Self { key, uid, metadata: pod.metadata, spec, ended, gates, unread, ephemeral };
        if !pod.all_containers().all(|(_, container)| is_label(&container.name)) {
            return Err(PodError::Field { key: pod.key, field: "spec.containers[].name" });
        }
        Ok(pod)
    }

    /// A pod of which nothing is left but what the runtime's labels say: enough to take it down.
    pub fn orphan(key: ResourceKey, uid: PodUid, grace: Option<i64>) -> Self {
        let metadata = ObjectMeta {
            name: Some(key.name().to_owned()),
            namespace: Some(key.namespace().to_owned()),
            uid: Some(uid.to_string()),
            ..Default::default()
        };
        let spec = PodSpec { termination_grace_period_seconds: grace, ..Default::default() };
        Self { key, uid, metadata, spec, ended: None, gates: Vec::new(), unread: None, ephemeral: Vec::new() }
    }

    pub fn name(&self) -> &str {
        self.key.name()
    }

    pub fn namespace(&self) -> &str {
        self.key.namespace()
    }

    pub fn is_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers may take to end; a deletion may shorten it.
    pub fn grace(&self) -> Duration {
        let seconds = self
            .metadata
            .deletion_grace_period_seconds
            .or(self.spec.termination_grace_period_seconds)
            .unwrap_or(DEFAULT_GRACE_SECONDS);
        // Zero would be killed with no signal to end; kubelet, too, gives one second.
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
    }

    pub fn restart_policy(&self) -> RestartPolicy {
        match self.spec.restart_policy.as_deref() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        }
    }

    pub fn host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }

    pub fn init_containers(&self) -> &[Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    pub fn ephemeral_containers(&self) -> impl Iterator<Item = &Container> {
        self.ephemeral.iter().map(|ephemeral| &ephemeral.container)
    }

    /// The container whose processes an ephemeral one is to see.
    pub fn target(&self, name: &str) -> Option<&str> {
        self.ephemeral.iter().find(|ephemeral| ephemeral.container.name == name)?.target.as_deref()
    }

    /// Init containers first, in their order.
    pub fn all_containers(&self) -> impl Iterator<Item = (Role, &Container)> {
        self.init_containers()
            .iter()
            .map(|container| (init_role(container), container))
            .chain(self.spec.containers.iter().map(|container| (Role::Main, container)))
            .chain(self.ephemeral_containers().map(|container| (Role::Ephemeral, container)))
    }

    pub fn container(&self, name: &str) -> Option<(Role, &Container)> {
        self.all_containers().find(|(_, container)| container.name == name)
    }

    pub fn created(&self) -> Option<Timestamp> {
        self.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }
}

fn unread_field(object: &Object, spec: &PodSpec) -> Result<Option<String>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Raw {
        spec: serde_json::Value,
    }
    let Raw { spec: raw } = serde_json::from_slice(&object.bytes)?;
    Ok(unsupported::unread(&raw, &serde_json::to_value(spec)?))
}

/// An ephemeral container has the fields of a container, but for one.
fn ephemeral(spec: &EphemeralContainer) -> Result<Ephemeral, serde_json::Error> {
    let target = spec.target_container_name.clone().filter(|name| !name.is_empty());
    Ok(Ephemeral { container: serde_json::from_value(serde_json::to_value(spec)?)?, target })
}

pub fn init_role(container: &Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}

/// Of the fields that can change in a running pod, only the image needs a new container.
pub fn container_hash(container: &Container) -> String {
    let mut sum = Sha256::new();
    sum.update(container.name.as_bytes());
    sum.update([0]);
    sum.update(container.image.as_deref().unwrap_or_default().as_bytes());
    let hash = sum.finalize().iter().take(4).fold(0_u32, |hash, byte| hash << 8 | u32::from(*byte));
    format!("{hash:x}")
}

/// A DNS label: names of containers and volumes become names of files.
fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
