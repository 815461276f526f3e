//! The Kubernetes API: how it is reached, and objects that are applied to it.

use std::{io::ErrorKind, path::Path, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{ContainerStatus, Pod},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::preflight::{Check, Problem};

const FIELD_MANAGER: &str = "keadm";

/// The API server that a kubeconfig names.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) config: Config,
}

impl Cluster {
    /// Reads the kubeconfig and asks the API server for its version.
    pub(crate) async fn connect(kube_config: Option<&Path>) -> Check<(Self, String)> {
        let mut config = read_config(kube_config).await?;
        config.connect_timeout = Some(Duration::from_secs(10));
        config.read_timeout = Some(Duration::from_secs(30));
        // A refused connection is to be said at once.
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let unusable = |error: kube::Error| {
            Problem::new(
                format!("the credentials of the kubeconfig are not usable: {}", runtime::chain(&error)),
                "name the kubeconfig of a cluster administrator with --kube-config",
            )
        };
        let client = Client::try_from(config.clone()).map_err(unusable)?;
        match client.apiserver_version().await {
            Ok(version) => Ok((Self { client, config }, version.git_version)),
            Err(kube::Error::Api(status)) => Err(Problem::new(
                format!("the API server at {url} refuses the kubeconfig: {}", status.message),
                "name the kubeconfig of a cluster administrator with --kube-config",
            )),
            Err(error) => Err(Problem::new(
                format!("the API server at {url} cannot be reached: {}", runtime::chain(&error)),
                "start the API server, or name another kubeconfig with --kube-config",
            )),
        }
    }

    /// Whether the user of the kubeconfig may do all of these.
    pub(crate) async fn may(&self, asked: &[Access]) -> Check<()> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let mut missing = Vec::new();
        for access in asked {
            let attributes = ResourceAttributes {
                group: Some(access.group.clone()),
                resource: Some(access.resource.clone()),
                verb: Some(access.verb.to_owned()),
                namespace: access.namespace.clone(),
                ..ResourceAttributes::default()
            };
            let spec =
                SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(|error| {
                Problem::new(
                    format!("the API server does not say what this user may do: {}", runtime::chain(&error)),
                    "name the kubeconfig of a cluster administrator with --kube-config",
                )
            })?;
            if !answer.status.is_some_and(|status| status.allowed) {
                let place = access.namespace.as_ref().map(|name| format!(" in {name}")).unwrap_or_default();
                missing.push(format!("{} {}{place}", access.verb, access.resource));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Problem::new(
            format!("the user of this kubeconfig may not {}", missing.join(", ")),
            "name the kubeconfig of a cluster administrator with --kube-config",
        ))
    }

    /// The newest served version of a group that has this resource.
    pub(crate) async fn version_with(
        &self,
        group: &str,
        versions: &[&'static str],
        resource: &str,
    ) -> Result<Option<&'static str>> {
        for version in versions {
            match self.client.list_api_group_resources(&format!("{group}/{version}")).await {
                Ok(list) if list.resources.iter().any(|served| served.name == resource) => {
                    return Ok(Some(version));
                }
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("failed to ask for {group}/{version}"));
                }
            }
        }
        Ok(None)
    }

    /// Server-side apply: what others set on the object stays.
    pub(crate) async fn apply(&self, object: &Manifest) -> Result<()> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.api(object)
            .patch(object.name(), &params, &Patch::Apply(&object.0))
            .await
            .with_context(|| format!("failed to apply {object}"))?;
        Ok(())
    }

    pub(crate) async fn get(&self, object: &Manifest) -> Result<Option<Value>> {
        let found = self.api(object).get_opt(object.name()).await;
        let found = found.with_context(|| format!("failed to read {object}"))?;
        found.map(|found| serde_json::to_value(found).context("an object has a JSON form")).transpose()
    }

    /// Whether there was anything to delete.
    pub(crate) async fn delete(&self, object: &Manifest) -> Result<bool> {
        match self.api(object).delete(object.name(), &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error).with_context(|| format!("failed to delete {object}")),
        }
    }

    /// What the pods with these labels wait for.
    pub(crate) async fn waiting_reason(&self, namespace: &str, labels: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = pods.list(&ListParams::default().labels(labels)).await.context("failed to list pods")?;
        let reasons: Vec<String> = found.items.iter().filter_map(waiting_reason).collect();
        Ok(if reasons.is_empty() { "no pod has been made for it".to_owned() } else { reasons.join("; ") })
    }

    fn api(&self, object: &Manifest) -> Api<DynamicObject> {
        let resource = object.resource();
        match object.namespace() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

fn waiting_reason(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = pod.metadata.name.as_deref()?;
    let text = |reason: Option<&str>, message: Option<&str>| {
        let message = message.map(|message| format!(": {message}")).unwrap_or_default();
        format!("pod {name} is {}{message}", reason.unwrap_or("waiting"))
    };
    let waiting = |container: &ContainerStatus| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        Some(text(waiting.reason.as_deref(), waiting.message.as_deref()))
    };
    status.container_statuses.iter().flatten().find_map(waiting).or_else(|| {
        let unmet = status.conditions.iter().flatten().find(|condition| condition.status != "True")?;
        Some(text(unmet.reason.as_deref(), unmet.message.as_deref()))
    })
}

/// Tells whether a text is the same.
pub(crate) fn hash(text: &str) -> String {
    runtime::token::hex(&Sha256::digest(text)[..16])
}

async fn read_config(kube_config: Option<&Path>) -> Check<Config> {
    let options = KubeConfigOptions::default();
    let problem = |error: &(dyn std::error::Error + 'static), fix: &str| {
        Problem::new(format!("the kubeconfig cannot be used: {}", runtime::chain(error)), fix)
    };
    match kube_config {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .map_err(|error| problem(&error, "name a kubeconfig that can be read with --kube-config"))?;
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| problem(&error, "check its current context, cluster and user"))
        }
        None => match Config::from_kubeconfig(&options).await {
            Ok(config) => Ok(config),
            // In a pod, its ServiceAccount.
            Err(error) => Config::incluster().map_err(|_| {
                let place = match std::env::var("KUBECONFIG") {
                    Ok(paths) if !paths.is_empty() => format!("{paths} (of $KUBECONFIG)"),
                    _ => "~/.kube/config".to_owned(),
                };
                unusable(&error, &place)
            }),
        },
    }
}

/// A kubeconfig that nobody named with --kube-config: there is none, or it is no good.
fn unusable(error: &KubeconfigError, place: &str) -> Problem {
    let is_missing = match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(source, _) => source.kind() == ErrorKind::NotFound,
        _ => false,
    };
    if is_missing {
        return Problem::new(
            format!("there is no kubeconfig {place}"),
            "name the kubeconfig of a cluster administrator with --kube-config",
        );
    }
    Problem::new(
        format!("the kubeconfig {place} cannot be used: {}", runtime::chain(error)),
        "correct it, or name another with --kube-config",
    )
}

/// A right that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) namespace: Option<String>,
}

/// An object as it is applied. Built by keadm itself, so apiVersion, kind and name are there.
#[derive(Debug, Clone)]
pub(crate) struct Manifest(pub(crate) Value);

impl Manifest {
    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    fn namespace(&self) -> Option<&str> {
        self.0.pointer("/metadata/namespace")?.as_str()
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(crate) fn access(&self, verb: &'static str) -> Access {
        let ApiResource { group, plural, .. } = self.resource();
        Access { verb, group, resource: plural, namespace: self.namespace().map(str::to_owned) }
    }

    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn resource(&self) -> ApiResource {
        let api_version = self.text("/apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        // Every kind that keadm applies has a regular plural.
        let singular = self.kind().to_lowercase();
        let plural =
            singular.strip_suffix('y').map_or_else(|| format!("{singular}s"), |stem| format!("{stem}ies"));
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, self.kind()), &plural)
    }
}

impl std::fmt::Display for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name()),
            None => write!(f, "{} {}", self.kind(), self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_that_is_no_good_is_told_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let place = path.to_str().unwrap();
        let read = || unusable(&Kubeconfig::read_from(&path).unwrap_err(), place);
        assert_eq!(read().cause, format!("there is no kubeconfig {place}"));
        std::fs::write(&path, "clusters: 7\n").unwrap();
        let problem = read();
        assert!(
            problem.cause.starts_with(&format!("the kubeconfig {place} cannot be used: ")),
            "{problem:?}"
        );
        // Nobody can read a directory, not even root.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(read().cause.contains(" cannot be used: "), "{:?}", read());
    }
}
