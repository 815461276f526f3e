//! Images: whether one is there, whether it is to be pulled, and with which credentials.

use k8s_openapi::api::core::v1::{Container, Secret};
use proto::cri::v1;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{
    cri::{CriError, Runtime},
    pod::DesiredPod,
    pod_state::Waiting,
    security::ImageUser,
    sources::Sources,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub fn of(container: &Container) -> Self {
        match container.image_pull_policy.as_deref() {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            // The API server sets a default; this is the same one.
            _ => match tag(container.image.as_deref().unwrap_or_default()) {
                None | Some("latest") => Self::Always,
                Some(_) => Self::IfNotPresent,
            },
        }
    }
}

/// The tag, or the digest, of a reference.
fn tag(image: &str) -> Option<&str> {
    if let Some((_, digest)) = image.split_once('@') {
        return Some(digest);
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').map(|(_, tag)| tag)
}

/// An image that is at hand.
#[derive(Debug)]
pub struct Ready {
    /// What the container is made from: the image's id, which no later tag can change.
    pub id: String,
    pub user: ImageUser,
}

/// Why there is no image, in kubectl's words.
pub enum ImageError {
    Waiting(Waiting),
    Runtime(CriError),
}

fn waiting(reason: &str, message: String) -> ImageError {
    ImageError::Waiting(Waiting { reason: reason.to_owned(), message })
}

/// Looks for the image.
pub async fn find(runtime: &Runtime, container: &Container) -> Result<Option<Ready>, ImageError> {
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() || image.len() > 1024 || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(waiting(
            "InvalidImageName",
            format!("Failed to apply default image tag {image:?}: invalid reference format"),
        ));
    }
    let found = match runtime.image_status(image).await {
        Ok(found) => found,
        Err(CriError::Refused { message, code: tonic::Code::InvalidArgument, .. }) => {
            return Err(waiting(
                "InvalidImageName",
                format!("Failed to apply default image tag {image:?}: {message}"),
            ));
        }
        Err(error) => return Err(ImageError::Runtime(error)),
    };
    Ok(found.map(|image| Ready {
        id: image.id,
        user: ImageUser { uid: image.uid.map(|uid| uid.value), name: image.username },
    }))
}

/// Pulls the image with the first credentials that are taken, the pod's own first, then none.
pub async fn pull(
    runtime: &Runtime,
    pod: &DesiredPod,
    container: &Container,
    sources: &Sources,
    sandbox_config: v1::PodSandboxConfig,
) -> Result<(), ImageError> {
    let image = container.image.as_deref().unwrap_or_default();
    let mut attempts: Vec<Option<v1::AuthConfig>> =
        credentials(pod, image, sources).into_iter().map(Some).collect();
    attempts.push(None);
    let mut last = None;
    for auth in attempts {
        match runtime.pull_image(image, auth, sandbox_config.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_unreachable() => return Err(ImageError::Runtime(error)),
            // Credentials of the pod that were refused say more than a refusal without any.
            Err(error) => last = last.or(Some(error)),
        }
    }
    let message = last.map(|error| error.plain()).unwrap_or_default();
    Err(waiting("ErrImagePull", message))
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Clone, Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// From the pod's imagePullSecrets, those for the image's registry, the most specific first.
fn credentials(pod: &DesiredPod, image: &str, sources: &Sources) -> Vec<v1::AuthConfig> {
    let mut matches = Vec::new();
    for reference in pod.spec.image_pull_secrets.iter().flatten() {
        let Ok(Some(secret)) = sources.secret(pod.namespace(), &reference.name) else {
            tracing::warn!(secret = reference.name, "image pull secret is not there; pulling without");
            continue;
        };
        for (registry, auth) in auths(&secret) {
            if let Some(length) = matched(&registry, image) {
                matches.push((length, auth));
            }
        }
    }
    matches.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    matches
        .into_iter()
        .map(|(_, auth)| v1::AuthConfig {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identity_token: auth.identitytoken,
            registry_token: auth.registrytoken,
            ..Default::default()
        })
        .collect()
}

fn auths(secret: &Secret) -> BTreeMap<String, DockerAuth> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    if let Some(json) = data(".dockerconfigjson") {
        return serde_json::from_slice::<DockerConfig>(json).map(|config| config.auths).unwrap_or_default();
    }
    data(".dockercfg").and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default()
}

/// How much of the image's name a registry entry covers.
fn matched(registry: &str, image: &str) -> Option<usize> {
    let registry =
        registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let registry = registry.trim_end_matches("/v1").trim_end_matches("/v2");
    let first = image.split('/').next().unwrap_or_default();
    let has_host =
        image.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let full = if has_host { image.to_owned() } else { format!("docker.io/{image}") };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let rest = full.strip_prefix(registry)?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(registry.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_follows_the_tag() {
        let policy =
            |image: &str| PullPolicy::of(&Container { image: Some(image.to_owned()), ..Default::default() });
        assert_eq!(policy("a"), PullPolicy::Always);
        assert_eq!(policy("host:5000/a"), PullPolicy::Always);
        assert_eq!(policy("a:latest"), PullPolicy::Always);
        assert_eq!(policy("host:5000/a:v1"), PullPolicy::IfNotPresent);
        assert_eq!(policy("a@sha256:00"), PullPolicy::IfNotPresent);
    }

    #[test]
    fn credentials_go_to_their_registry_only() {
        assert!(matched("registry.example", "registry.example/a:1").is_some());
        assert!(matched("https://registry.example/v1/", "registry.example/a:1").is_some());
        assert!(matched("https://index.docker.io/v1/", "library/a").is_some());
        assert!(matched("registry.example", "registry.example.evil/a").is_none());
        assert!(matched("registry.example/team", "registry.example/other/a").is_none());
    }
}
