//! What a pod needs, read from its spec.

use proto::ResourceKey;
use serde::{Deserialize, Serialize};

use super::{Condition, Metadata, PodFacts, Status, annotation, evicts};
use crate::{
    cloudhub::authz,
    edgecontroller::{
        print,
        protection::{Eviction, RECORD_ANNOTATION, Toleration},
    },
};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    node_name: Box<str>,
    service_account_name: Box<str>,
    runtime_class_name: String,
    image_pull_secrets: Vec<Name>,
    volumes: Vec<Volume>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    tolerations: Vec<Toleration>,
    readiness_gates: Vec<Gate>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Gate {
    condition_type: Box<str>,
}

/// What of a pod's status travels to the edge, which writes the rest of it: an end, since nobody else remembers it when the
/// edge has lost its store and it must not run again; and the conditions that its readiness gates wait for (KEP-580).
#[derive(Debug, Default, Serialize)]
pub(super) struct KeptStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<Box<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
}

impl KeptStatus {
    pub(super) fn is_empty(&self) -> bool {
        self.phase.is_none() && self.conditions.is_empty()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.phase.is_some()
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Name {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    config_map: Option<Name>,
    secret: Option<SecretVolume>,
    projected: Option<Projected>,
    persistent_volume_claim: Option<Claim>,
    csi: Option<Csi>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    claim_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Csi {
    node_publish_secret_ref: Option<Name>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Projected {
    sources: Vec<ProjectedSource>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ProjectedSource {
    config_map: Option<Name>,
    secret: Option<Name>,
    service_account_token: Option<Token>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    audience: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Vec<Env>,
    env_from: Vec<EnvFrom>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Env {
    value_from: Option<ValueFrom>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    config_map_key_ref: Option<Name>,
    secret_key_ref: Option<Name>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    config_map_ref: Option<Name>,
    secret_ref: Option<Name>,
}

impl PodSpec {
    /// Nothing of one that does not parse.
    pub(super) fn kept_status(&self, status: &str) -> KeptStatus {
        let Ok(mut status) = serde_json::from_str::<Status>(status) else { return KeptStatus::default() };
        status.conditions.retain(|condition| {
            self.readiness_gates.iter().any(|gate| gate.condition_type == condition.r#type)
        });
        let ended = authz::is_terminal(&status.phase);
        KeptStatus { phase: ended.then_some(status.phase), conditions: status.conditions }
    }

    /// Of the status of such a pod.
    pub(super) fn print(&self, status: &str) -> Option<u64> {
        let gates: Vec<&str> = self.readiness_gates.iter().map(|gate| &*gate.condition_type).collect();
        print::of_pod(status, &gates).ok()
    }

    pub(super) fn facts(self, metadata: &Metadata, ended: bool, status: Option<u64>) -> PodFacts {
        let references = self.references(&metadata.namespace);
        let sources = self.volumes.iter().filter_map(|volume| volume.projected.as_ref());
        let tokens = sources
            .flat_map(|projected| &projected.sources)
            .filter_map(|source| source.service_account_token.as_ref());
        let token_audiences = tokens.map(|token| token.audience.clone()).collect();
        let deleting = metadata.deletion_timestamp.is_some();
        let service_account =
            if self.service_account_name.is_empty() { "default".into() } else { self.service_account_name };
        PodFacts {
            uid: metadata.uid.clone(),
            node: self.node_name,
            service_account,
            token_audiences,
            deleting,
            ended,
            opted_out: evicts(metadata.annotations.as_ref()),
            eviction: Eviction::of(
                &self.tolerations,
                annotation(metadata.annotations.as_ref(), RECORD_ANNOTATION).is_some(),
            ),
            references,
            status,
        }
    }

    /// Every object that the pod cannot start without, each once. References to kinds that are not watched cost nothing.
    fn references(&self, namespace: &str) -> Vec<ResourceKey> {
        let mut config_maps: Vec<Option<&Name>> = Vec::new();
        let mut secrets: Vec<Option<&Name>> = Vec::new();
        let containers =
            self.containers.iter().chain(&self.init_containers).chain(&self.ephemeral_containers);
        for container in containers {
            for from in container.env.iter().filter_map(|env| env.value_from.as_ref()) {
                config_maps.push(from.config_map_key_ref.as_ref());
                secrets.push(from.secret_key_ref.as_ref());
            }
            for from in &container.env_from {
                config_maps.push(from.config_map_ref.as_ref());
                secrets.push(from.secret_ref.as_ref());
            }
        }
        for volume in &self.volumes {
            config_maps.push(volume.config_map.as_ref());
            secrets.push(volume.csi.as_ref().and_then(|csi| csi.node_publish_secret_ref.as_ref()));
            for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
                config_maps.push(source.config_map.as_ref());
                secrets.push(source.secret.as_ref());
            }
        }
        secrets.extend(self.image_pull_secrets.iter().map(Some));
        let named = |kind, names: Vec<Option<&'_ Name>>| -> Vec<(&'static str, &str, String)> {
            names.into_iter().flatten().map(|name| (kind, namespace, name.name.clone())).collect()
        };
        let mut names = named("ConfigMap", config_maps);
        names.extend(named("Secret", secrets));
        for volume in &self.volumes {
            let secret = volume.secret.as_ref().map(|secret| secret.secret_name.clone());
            let claim = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
            names.extend(secret.map(|name| ("Secret", namespace, name)));
            names.extend(claim.map(|name| ("PersistentVolumeClaim", namespace, name)));
        }
        names.push(("RuntimeClass.node.k8s.io", "", self.runtime_class_name.clone()));
        let mut keys: Vec<_> = names
            .into_iter()
            .filter(|(_, _, name)| !name.is_empty())
            // A name that makes no key is one that no object can have.
            .filter_map(|(kind, namespace, name)| ResourceKey::new(kind, namespace, &name).ok())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests {
    use proto::ResourceKey;
    use serde_json::json;

    use crate::edgecontroller::objects::{Facts, KINDS};

    #[test]
    fn every_reference_of_a_pod_is_found() {
        let pod = json!({"metadata": {"name": "web", "namespace": "a", "uid": "u"}, "spec": {
            "nodeName": "n", "serviceAccountName": "robot", "runtimeClassName": "gvisor",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "1", "configMap": {"name": "vol-cm"}}, {"name": "2", "secret": {"secretName": "vol-secret"}},
                {"name": "3", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}},
                    {"secret": {"name": "proj-secret"}}, {"serviceAccountToken": {"path": "token"}}]}},
                {"name": "4", "persistentVolumeClaim": {"claimName": "disk"}}, {"name": "5", "emptyDir": {}}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "env-cm", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "D", "value": "x"}]}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "from-cm"}},
                {"secretRef": {"name": "from-secret"}}, {"configMapRef": {"name": "env-cm"}}]}]}});
        let cached = KINDS.iter().find(|kind| kind.key == "Pod").unwrap().take(&pod.to_string()).unwrap();
        let Facts::Pod(facts) = cached.facts else { panic!("no pod") };
        let found: Vec<_> = facts.references.iter().map(ResourceKey::as_str).collect();
        assert_eq!(
            found,
            [
                "ConfigMap/a/env-cm",
                "ConfigMap/a/from-cm",
                "ConfigMap/a/kube-root-ca.crt",
                "ConfigMap/a/vol-cm",
                "PersistentVolumeClaim/a/disk",
                "RuntimeClass.node.k8s.io//gvisor",
                "Secret/a/env-secret",
                "Secret/a/from-secret",
                "Secret/a/proj-secret",
                "Secret/a/pull",
                "Secret/a/vol-secret",
            ]
        );
        assert_eq!(&*facts.service_account, "robot");
    }
}
