//! The environment of a container, its command and its arguments.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, EnvVarSource, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};
use proto::cri::v1::KeyValue;

use super::{
    expand::expand,
    pod::DesiredPod,
    resources,
    sources::{SourceError, Sources},
    status::{self, NodeFacts},
};

/// Why an environment cannot be made: the container waits with `CreateContainerConfigError`.
/// Of all strings together: Linux takes three quarters of the stack's 8 MiB.
const LONGEST: usize = 6 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    Missing { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
    #[error("fieldPath {0:?} of env is not supported")]
    Field(String),
    #[error("resource {0:?} of resourceFieldRef is not supported")]
    Resource(String),
    #[error("valueFrom of env {0:?} is of a kind that is not supported")]
    Source(String),
    #[error("the environment is longer than {LONGEST} bytes, with which no program can be started")]
    TooLong,
    #[error(transparent)]
    Read(#[from] SourceError),
}

/// What an environment is made from.
pub struct Context<'a> {
    pub pod: &'a DesiredPod,
    pub sources: &'a Sources,
    pub pod_ips: &'a [String],
    pub node: &'a NodeFacts,
    /// The API server's address as pods see it, when the node has a way to it.
    pub api_server: Option<&'a (String, u16)>,
    pub capacity: Capacity,
}

/// What stands in for a limit that is not set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capacity {
    pub milli_cpu: i128,
    pub memory: u64,
    pub ephemeral_storage: u64,
}

impl Context<'_> {
    /// In the order in which they are defined, so that the later may refer to the earlier.
    pub fn variables(&self, container: &Container) -> Result<Vec<(String, Vec<u8>)>, EnvError> {
        let mut list: Vec<(String, Vec<u8>)> = Vec::new();
        if let Some((host, port)) = self.api_server {
            let entries = [
                ("KUBERNETES_SERVICE_HOST", host.clone()),
                ("KUBERNETES_SERVICE_PORT", port.to_string()),
                ("KUBERNETES_SERVICE_PORT_HTTPS", port.to_string()),
            ];
            list.extend(entries.map(|(name, value)| (name.to_owned(), value.into_bytes())));
        }
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            if let Some(reference) = &source.config_map_ref {
                match self.sources.config_map(self.pod.namespace(), &reference.name)? {
                    Some(map) => {
                        let data = map.data.unwrap_or_default();
                        list.extend(data.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v.into_bytes())));
                    }
                    None => optional(reference.optional, "configmap", &reference.name)?,
                }
            }
            if let Some(reference) = &source.secret_ref {
                match self.sources.secret(self.pod.namespace(), &reference.name)? {
                    Some(secret) => {
                        let data = secret.data.unwrap_or_default();
                        list.extend(data.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v.0)));
                    }
                    None => optional(reference.optional, "secret", &reference.name)?,
                }
            }
        }
        let mut length = list.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        for env in container.env.iter().flatten() {
            let value = match &env.value_from {
                None => Some(expand_one(env.value.as_deref().unwrap_or_default(), &list).into_bytes()),
                Some(source) => self.value(container, &env.name, source)?,
            };
            if let Some(value) = value {
                length += env.name.len() + value.len();
                if length > LONGEST {
                    return Err(EnvError::TooLong);
                }
                list.retain(|(name, _)| *name != env.name);
                list.push((env.name.clone(), value));
            }
        }
        Ok(list)
    }

    fn value(
        &self,
        container: &Container,
        name: &str,
        source: &EnvVarSource,
    ) -> Result<Option<Vec<u8>>, EnvError> {
        let namespace = self.pod.namespace();
        if let Some(reference) = &source.config_map_key_ref {
            let map = self.sources.config_map(namespace, &reference.name)?;
            let Some(map) = map else {
                optional(reference.optional, "configmap", &reference.name)?;
                return Ok(None);
            };
            let value = map.data.and_then(|mut data| data.remove(&reference.key)).map(String::into_bytes);
            return self.keyed(value, reference.optional, "ConfigMap", &reference.name, &reference.key);
        }
        if let Some(reference) = &source.secret_key_ref {
            let secret = self.sources.secret(namespace, &reference.name)?;
            let Some(secret) = secret else {
                optional(reference.optional, "secret", &reference.name)?;
                return Ok(None);
            };
            let value = secret.data.and_then(|mut data| data.remove(&reference.key)).map(|value| value.0);
            return self.keyed(value, reference.optional, "Secret", &reference.name, &reference.key);
        }
        if let Some(reference) = &source.field_ref {
            let value = status::field(self.pod, &reference.field_path, self.pod_ips, self.node);
            return value
                .map(|value| Some(value.into_bytes()))
                .ok_or_else(|| EnvError::Field(reference.field_path.clone()));
        }
        if let Some(reference) = &source.resource_field_ref {
            return Ok(Some(resource(self.pod, container, reference, self.capacity)?.into_bytes()));
        }
        Err(EnvError::Source(name.to_owned()))
    }

    fn keyed(
        &self,
        value: Option<Vec<u8>>,
        is_optional: Option<bool>,
        kind: &'static str,
        name: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, EnvError> {
        if value.is_none() && is_optional != Some(true) {
            return Err(EnvError::Key {
                kind,
                namespace: self.pod.namespace().to_owned(),
                name: name.to_owned(),
                key: key.to_owned(),
            });
        }
        Ok(value)
    }
}

fn optional(is_optional: Option<bool>, kind: &'static str, name: &str) -> Result<(), EnvError> {
    if is_optional == Some(true) { Ok(()) } else { Err(EnvError::Missing { kind, name: name.to_owned() }) }
}

fn lookup(list: &[(String, Vec<u8>)], name: &str) -> Option<String> {
    let (_, value) = list.iter().rev().find(|(known, _)| known == name)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// With `$(VAR)` replaced.
pub fn expand_all(texts: Option<&Vec<String>>, list: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut length = 0;
    let expanded = texts.into_iter().flatten().map(|text| {
        let text = expand(text, &|name| lookup(list, name).filter(|_| length <= LONGEST));
        length += text.len();
        text
    });
    expanded.collect()
}

pub fn expand_one(text: &str, list: &[(String, Vec<u8>)]) -> String {
    expand(text, &|name| lookup(list, name))
}

pub fn key_values(list: Vec<(String, Vec<u8>)>) -> Vec<KeyValue> {
    list.into_iter().map(|(key, value)| KeyValue { key, value }).collect()
}

/// `limits.cpu` and the like, in units of the divisor, rounded up.
pub fn resource(
    pod: &DesiredPod,
    container: &Container,
    selector: &ResourceFieldSelector,
    capacity: Capacity,
) -> Result<String, EnvError> {
    let unknown = || EnvError::Resource(selector.resource.clone());
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => pod.container(name).ok_or_else(unknown)?.1,
        None => container,
    };
    let (map, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let requirements = container.resources.as_ref();
    let limits = requirements.and_then(|resources| resources.limits.as_ref());
    let requests = requirements.and_then(|resources| resources.requests.as_ref());
    let of = |map: Option<&BTreeMap<String, Quantity>>| {
        map.and_then(|map| map.get(name)).and_then(resources::milli)
    };
    let node = match name {
        "cpu" => capacity.milli_cpu,
        "memory" => i128::from(capacity.memory) * 1000,
        "ephemeral-storage" => i128::from(capacity.ephemeral_storage) * 1000,
        _ => return Err(unknown()),
    };
    let value = match map {
        "limits" => of(limits).unwrap_or(node),
        "requests" => of(requests).or(of(limits)).unwrap_or(0),
        _ => return Err(unknown()),
    };
    let divisor =
        selector.divisor.as_ref().and_then(resources::milli).filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok((value.saturating_add(divisor - 1) / divisor).to_string())
}
