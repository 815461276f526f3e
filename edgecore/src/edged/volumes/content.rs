//! The files of the volumes that come from the API: configMap, secret, downwardAPI, projected.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};

use super::{
    VolumeError, Volumes,
    atomic::{File, Files},
};
use crate::edged::{
    env,
    pod::DesiredPod,
    sources::SourceError,
    status::{self, NodeFacts},
};

const DEFAULT_MODE: i32 = 0o644;

pub(super) struct Context<'a> {
    pub(super) volumes: &'a Volumes,
    pub(super) pod: &'a DesiredPod,
    pub(super) pod_ips: &'a [String],
    pub(super) node: &'a NodeFacts,
}

#[derive(Default)]
pub(super) struct Payload {
    pub(super) files: Files,
    pub(super) refresh: Option<Timestamp>,
}

/// A ConfigMap's or Secret's keys and how they are to be laid out.
struct Keys<'a> {
    kind: &'static str,
    name: &'a str,
    data: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&'a Vec<KeyToPath>>,
    optional: bool,
    mode: i32,
}

impl Context<'_> {
    pub(super) async fn payload(&self, volume: &Volume) -> Result<Payload, VolumeError> {
        let mut payload = Payload::default();
        if let Some(source) = &volume.config_map {
            let keys = Keys {
                kind: "configmap",
                name: &source.name,
                data: self.config_map(volume, &source.name)?,
                items: source.items.as_ref(),
                optional: source.optional == Some(true),
                mode: source.default_mode.unwrap_or(DEFAULT_MODE),
            };
            add_keys(volume, keys, &mut payload)?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let keys = Keys {
                kind: "secret",
                name,
                data: self.secret(volume, name)?,
                items: source.items.as_ref(),
                optional: source.optional == Some(true),
                mode: source.default_mode.unwrap_or(DEFAULT_MODE),
            };
            add_keys(volume, keys, &mut payload)?;
        } else if let Some(source) = &volume.downward_api {
            self.downward(
                volume,
                source.items.as_ref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                &mut payload,
            )?;
        } else if volume.projected.is_some() {
            self.projected(volume, &mut payload).await?;
        } else {
            let field = super::unsupported(volume).unwrap_or_else(|| "source".to_owned());
            return Err(VolumeError::Unsupported { volume: volume.name.clone(), field });
        }
        Ok(payload)
    }

    async fn projected(&self, volume: &Volume, payload: &mut Payload) -> Result<(), VolumeError> {
        let Some(projected) = &volume.projected else { return Ok(()) };
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let keys = Keys {
                    kind: "configmap",
                    name: &source.name,
                    data: self.config_map(volume, &source.name)?,
                    items: source.items.as_ref(),
                    optional: source.optional == Some(true),
                    mode,
                };
                add_keys(volume, keys, payload)?;
            }
            if let Some(source) = &source.secret {
                let keys = Keys {
                    kind: "secret",
                    name: &source.name,
                    data: self.secret(volume, &source.name)?,
                    items: source.items.as_ref(),
                    optional: source.optional == Some(true),
                    mode,
                };
                add_keys(volume, keys, payload)?;
            }
            if let Some(source) = &source.downward_api {
                self.downward(volume, source.items.as_ref(), mode, payload)?;
            }
            if let Some(source) = &source.service_account_token {
                let audience = source.audience.as_deref().unwrap_or_default();
                let seconds = u64::try_from(source.expiration_seconds.unwrap_or(3600)).unwrap_or(3600);
                let token = self
                    .volumes
                    .tokens
                    .get(self.pod, audience, seconds)
                    .await
                    .map_err(|source| VolumeError::Token { volume: volume.name.clone(), source })?;
                payload.refresh =
                    Some(payload.refresh.map_or(token.refresh, |other| other.min(token.refresh)));
                // A process that is not root must be able to read its own token; without fsGroup kubelet, too, opens
                // it to the pod's user.
                let group = self.pod.spec.security_context.as_ref().and_then(|security| security.fs_group);
                let mode = if group.is_some() { 0o600 } else { self.token_mode(mode) };
                insert(volume, &source.path, token.text.into_bytes(), mode, payload)?;
            }
        }
        Ok(())
    }

    /// Closed to others where every container runs as root.
    fn token_mode(&self, default: i32) -> i32 {
        let user = |security: Option<i64>| security.is_some_and(|user| user != 0);
        let of_pod = self.pod.spec.security_context.as_ref().and_then(|security| security.run_as_user);
        let other = self.pod.all_containers().any(|(_, container)| {
            let own = container.security_context.as_ref().and_then(|security| security.run_as_user);
            user(own.or(of_pod))
        });
        if other { 0o644 } else { default }
    }

    fn config_map(
        &self,
        volume: &Volume,
        name: &str,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, VolumeError> {
        let map = self.volumes.sources.config_map(self.pod.namespace(), name).map_err(|e| read(volume, e))?;
        Ok(map.map(|map| {
            let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
            let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
            text.chain(binary).collect()
        }))
    }

    fn secret(&self, volume: &Volume, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, VolumeError> {
        let secret = self.volumes.sources.secret(self.pod.namespace(), name).map_err(|e| read(volume, e))?;
        Ok(secret.map(|secret| {
            secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()
        }))
    }

    fn downward(
        &self,
        volume: &Volume,
        items: Option<&Vec<DownwardAPIVolumeFile>>,
        default_mode: i32,
        payload: &mut Payload,
    ) -> Result<(), VolumeError> {
        let unsupported = |field: String| VolumeError::Unsupported { volume: volume.name.clone(), field };
        for item in items.into_iter().flatten() {
            let text = if let Some(field) = &item.field_ref {
                status::field(self.pod, &field.field_path, self.pod_ips, self.node)
                    .ok_or_else(|| unsupported(format!("fieldPath={}", field.field_path)))?
            } else if let Some(selector) = &item.resource_field_ref {
                let Some(container) = self.pod.spec.containers.first() else { continue };
                env::resource(self.pod, container, selector, self.volumes.capacity)
                    .map_err(|_| unsupported(format!("resource={}", selector.resource)))?
            } else {
                return Err(unsupported("downwardAPI.items[]".to_owned()));
            };
            insert(volume, &item.path, text.into_bytes(), item.mode.unwrap_or(default_mode), payload)?;
        }
        Ok(())
    }
}

fn read(volume: &Volume, source: SourceError) -> VolumeError {
    VolumeError::Read { volume: volume.name.clone(), source }
}

fn add_keys(volume: &Volume, keys: Keys<'_>, payload: &mut Payload) -> Result<(), VolumeError> {
    let Keys { kind, name, data, items, optional, mode } = keys;
    let Some(mut data) = data else {
        if optional {
            return Ok(());
        }
        return Err(VolumeError::Missing { volume: volume.name.clone(), kind, name: name.to_owned() });
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, content) in data {
            insert(volume, &key, content, mode, payload)?;
        }
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(content) => insert(volume, &item.path, content, item.mode.unwrap_or(mode), payload)?,
            None if optional => {}
            None => {
                let (volume, name) = (volume.name.clone(), name.to_owned());
                return Err(VolumeError::Key { volume, kind, name, key: item.key.clone() });
            }
        }
    }
    Ok(())
}

fn insert(
    volume: &Volume,
    path: &str,
    content: Vec<u8>,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    // Names that begin with two dots are the layout's own.
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(VolumeError::Path { volume: volume.name.clone(), path: path.to_owned() });
    }
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    payload.files.insert(PathBuf::from(relative), File { content, mode });
    Ok(())
}
