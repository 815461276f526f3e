//! What pods refer to, read from the store when it is needed: ConfigMaps, Secrets, RuntimeClasses.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Container, Secret},
    node::v1::RuntimeClass,
};
use proto::{ResourceKey, resource::KeyError};
use serde::de::DeserializeOwned;

use super::pod::DesiredPod;
use crate::metamanager::{Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("name of a reference cannot be used")]
    Name(#[from] KeyError),
    #[error("failed to read {key} from the store")]
    Store {
        key: ResourceKey,
        #[source]
        source: StoreError,
    },
    #[error("{key} does not parse")]
    Parse {
        key: ResourceKey,
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Clone)]
pub struct Sources {
    store: Store,
}

impl Sources {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    pub fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, SourceError> {
        self.get("ConfigMap", namespace, name)
    }

    pub fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, SourceError> {
        self.get("Secret", namespace, name)
    }

    pub fn runtime_class(&self, name: &str) -> Result<Option<RuntimeClass>, SourceError> {
        self.get("RuntimeClass.node.k8s.io", "", name)
    }

    fn get<T: DeserializeOwned>(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, SourceError> {
        let key = ResourceKey::new(kind, namespace, name)?;
        let found = self.store.get(&key).map_err(|source| SourceError::Store { key: key.clone(), source })?;
        found
            .map(|object| {
                serde_json::from_slice(&object.bytes).map_err(|source| SourceError::Parse { key, source })
            })
            .transpose()
    }
}

/// Everything that a pod refers to by name and that its containers or volumes follow.
pub fn references(pod: &DesiredPod) -> BTreeSet<ResourceKey> {
    let mut names: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (_, container) in pod.all_containers() {
        of_container(container, &mut names);
    }
    for volume in pod.spec.volumes.iter().flatten() {
        names.extend(volume.config_map.as_ref().map(|source| ("ConfigMap", source.name.as_str())));
        let secret = volume.secret.as_ref().and_then(|source| source.secret_name.as_deref());
        names.extend(secret.map(|name| ("Secret", name)));
        let projected = volume.projected.as_ref().and_then(|projected| projected.sources.as_ref());
        for source in projected.into_iter().flatten() {
            names.extend(source.config_map.as_ref().map(|source| ("ConfigMap", source.name.as_str())));
            names.extend(source.secret.as_ref().map(|source| ("Secret", source.name.as_str())));
        }
    }
    let secrets = pod.spec.image_pull_secrets.iter().flatten();
    names.extend(secrets.map(|reference| ("Secret", reference.name.as_str())));
    let mut keys: BTreeSet<_> = names
        .into_iter()
        .filter_map(|(kind, name)| ResourceKey::new(kind, pod.namespace(), name).ok())
        .collect();
    let class = pod.spec.runtime_class_name.as_deref();
    keys.extend(class.and_then(|name| ResourceKey::new("RuntimeClass.node.k8s.io", "", name).ok()));
    keys
}

fn of_container<'a>(container: &'a Container, names: &mut BTreeSet<(&'a str, &'a str)>) {
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        names.extend(source.config_map_key_ref.as_ref().map(|source| ("ConfigMap", source.name.as_str())));
        names.extend(source.secret_key_ref.as_ref().map(|source| ("Secret", source.name.as_str())));
    }
    for source in container.env_from.iter().flatten() {
        names.extend(source.config_map_ref.as_ref().map(|source| ("ConfigMap", source.name.as_str())));
        names.extend(source.secret_ref.as_ref().map(|source| ("Secret", source.name.as_str())));
    }
}
