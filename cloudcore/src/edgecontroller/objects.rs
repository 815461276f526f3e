//! Objects at the door: bytes in, bytes out, parsed only as far as routing needs.
//!
//! What the edge cannot use is cut out here, so that a write which changes nothing else costs nothing on any line:
//! `metadata.managedFields` and `metadata.resourceVersion` (it travels beside the bytes) of every object, `status` of
//! Pods (but see `pod::KeptStatus`), of claims, volumes, devices and rules, and all but the identity, labels, annotations and spec of
//! Nodes.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use bytes::Bytes;
pub use crds::devices::keys::{
    DEVICE, HOLDER_ANNOTATION, MODEL, RULE, SPEC_TIME_ANNOTATION, STATUS as DEVICE_STATUS,
};
use crds::devices::{conversion, v1alpha2::NodeSelector};
pub use crds::{AUTHORITIES_ANNOTATION, EDGE_LABEL, KEY_ANNOTATION, SYNC_CONFIG_ANNOTATION};
use proto::{Object, ResourceKey, limits, resource::KeyError};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    api::FIELD_MANAGER,
    print,
    protection::{EVICT_ANNOTATION, Eviction},
};
use pod::PodSpec;

mod pod;

/// On every Node, written by the control plane as the cluster grows: how long a kubelet may keep what it has read.
const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// A kind that is watched.
#[derive(Debug)]
pub struct Kind {
    /// As in [`ResourceKey::kind`].
    pub key: &'static str,
    pub kind: &'static str,
    pub api_version: &'static str,
    /// The path of the collection across all namespaces.
    pub path: &'static str,
    pub field_selector: Option<&'static str>,
    /// A cluster may lack it, or not let cloudcore read it: it was set up before there was such a kind.
    pub is_optional: bool,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Plain,
    Pod,
    Node,
    Claim,
    /// Its status is none of the edge's business.
    Volume,
    Device,
    DeviceStatus,
    Rule,
}

/// Every watched kind. To watch another one is a line here (and a reference in `objects::pod`).
pub static KINDS: [Kind; 11] = [
    Kind {
        key: "Node",
        kind: "Node",
        api_version: "v1",
        path: "/api/v1/nodes",
        field_selector: None,
        is_optional: false,
        shape: Shape::Node,
    },
    Kind {
        key: "Pod",
        kind: "Pod",
        api_version: "v1",
        path: "/api/v1/pods",
        // Pods that are not scheduled yet are no node's.
        field_selector: Some("spec.nodeName!="),
        is_optional: false,
        shape: Shape::Pod,
    },
    Kind {
        key: "ConfigMap",
        kind: "ConfigMap",
        api_version: "v1",
        path: "/api/v1/configmaps",
        field_selector: None,
        is_optional: false,
        shape: Shape::Plain,
    },
    Kind {
        key: "Secret",
        kind: "Secret",
        api_version: "v1",
        path: "/api/v1/secrets",
        field_selector: None,
        is_optional: false,
        shape: Shape::Plain,
    },
    Kind {
        key: "RuntimeClass.node.k8s.io",
        kind: "RuntimeClass",
        api_version: "node.k8s.io/v1",
        path: "/apis/node.k8s.io/v1/runtimeclasses",
        field_selector: None,
        is_optional: false,
        shape: Shape::Plain,
    },
    Kind {
        key: "PersistentVolumeClaim",
        kind: "PersistentVolumeClaim",
        api_version: "v1",
        path: "/api/v1/persistentvolumeclaims",
        field_selector: None,
        is_optional: false,
        shape: Shape::Claim,
    },
    Kind {
        key: "PersistentVolume",
        kind: "PersistentVolume",
        api_version: "v1",
        path: "/api/v1/persistentvolumes",
        field_selector: None,
        is_optional: false,
        shape: Shape::Volume,
    },
    Kind {
        key: DEVICE,
        kind: "Device",
        api_version: "devices.kubeedge.io/v1beta1",
        path: "/apis/devices.kubeedge.io/v1beta1/devices",
        field_selector: None,
        is_optional: true,
        shape: Shape::Device,
    },
    Kind {
        key: MODEL,
        kind: "DeviceModel",
        api_version: "devices.kubeedge.io/v1beta1",
        path: "/apis/devices.kubeedge.io/v1beta1/devicemodels",
        field_selector: None,
        is_optional: true,
        shape: Shape::Plain,
    },
    // No node needs it: it is watched to see what is there already.
    Kind {
        key: DEVICE_STATUS,
        kind: "DeviceStatus",
        api_version: "devices.kubeedge.io/v1beta1",
        path: "/apis/devices.kubeedge.io/v1beta1/devicestatuses",
        field_selector: None,
        is_optional: true,
        shape: Shape::DeviceStatus,
    },
    Kind {
        key: RULE,
        kind: "DeviceRule",
        api_version: "devices.skerry.io/v1alpha1",
        path: "/apis/devices.skerry.io/v1alpha1/devicerules",
        field_selector: None,
        is_optional: true,
        shape: Shape::Rule,
    },
];

/// An object of the cache.
#[derive(Debug)]
pub struct Cached {
    pub object: Object,
    pub uid: Box<str>,
    pub facts: Facts,
}

/// What routing needs to know of an object.
#[derive(Debug)]
pub enum Facts {
    Plain,
    Pod(PodFacts),
    Node(NodeFacts),
    /// The volume that a claim is bound to.
    Claim(Option<ResourceKey>),
    Device(DeviceFacts),
    /// The [`mod@print`](super::print) of its status.
    DeviceStatus(Option<u64>),
    Rule(RuleFacts),
}

impl Facts {
    /// The node that the object is bound to, and what else this node needs for it.
    pub fn binding(&self) -> Option<(&str, &[ResourceKey])> {
        match self {
            Self::Pod(pod) => Some((&pod.node, &pod.references)),
            Self::Device(device) if !device.node.is_empty() => Some((&device.node, &device.references)),
            Self::Rule(rule) if !rule.node.is_empty() => Some((&rule.node, &[])),
            _ => None,
        }
    }

    /// The [`mod@print`](super::print) of its status, of a kind that an edge reports; none of one that cannot be read.
    pub fn status(&self) -> Option<Option<u64>> {
        match self {
            Self::Pod(pod) => Some(pod.status),
            Self::Node(node) => Some(node.status),
            Self::Device(device) => Some(device.status),
            Self::DeviceStatus(status) => Some(*status),
            Self::Rule(rule) => Some(rule.status),
            Self::Plain | Self::Claim(_) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    pub uid: Box<str>,
    pub node: Box<str>,
    pub service_account: Box<str>,
    /// Of the tokens in its volumes; empty for the API server's own.
    pub token_audiences: Vec<Box<str>>,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// Its phase is one that no pod leaves.
    pub ended: bool,
    /// It asks to be evicted as Kubernetes does by default.
    pub opted_out: bool,
    pub eviction: Eviction,
    pub references: Vec<ResourceKey>,
    /// The [`mod@print`](super::print) of its status; none of one that cannot be read.
    pub status: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    pub uid: Box<str>,
    /// Its node: where it is to be, unless another one still has it. Empty: none is to have it now.
    pub node: Box<str>,
    pub wanted: Placement,
    /// [`HOLDER_ANNOTATION`].
    pub holder: Option<Box<str>>,
    /// Its model.
    pub references: Vec<ResourceKey>,
    /// The [`mod@print`](super::print) of its status; none of one that cannot be read.
    pub status: Option<u64>,
}

impl DeviceFacts {
    /// It is not with whom it is to be with, as far as it tells itself.
    pub fn is_displaced(&self) -> bool {
        match &self.wanted {
            Placement::Nowhere => self.holder.is_some(),
            Placement::Node(node) => self.holder.as_ref() != Some(node),
            Placement::Selected(_) => self.holder.is_none(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFacts {
    pub uid: Box<str>,
    /// Whose rule it is.
    pub node: Box<str>,
    /// The [`mod@print`](super::print) of its status; none of one that cannot be read.
    pub status: Option<u64>,
}

/// A device or a rule, as far as it is told whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub uid: Box<str>,
    pub node: Box<str>,
}

impl Owned {
    /// `None` of anything else.
    pub fn of(facts: &Facts) -> Option<Self> {
        let (uid, node) = match facts {
            Facts::Device(device) => (&device.uid, &device.node),
            Facts::Rule(rule) => (&rule.uid, &rule.node),
            _ => return None,
        };
        Some(Self { uid: uid.clone(), node: node.clone() })
    }
}

/// Where a device is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    Nowhere,
    Node(Box<str>),
    /// One of these, and then there.
    Selected(NodeSelector),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    pub uid: Box<str>,
    pub edge: bool,
    /// Its pods are not to be protected from eviction.
    pub opted_out: bool,
    /// Status of the condition Ready.
    pub ready: Option<Box<str>>,
    /// [`KEY_ANNOTATION`].
    pub key_hash: Option<Box<str>>,
    /// The [`mod@print`](super::print) of its status; none of one that cannot be read.
    pub status: Option<u64>,
    /// What [`AUTHORITIES_ANNOTATION`] says.
    pub authorities: Option<Box<str>>,
    /// [`SYNC_CONFIG_ANNOTATION`].
    pub sync_config: Option<Box<str>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("failed to parse an object of kind {kind}")]
    Parse {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("object of kind {kind} has no {field}")]
    Missing { kind: &'static str, field: &'static str },
    #[error("{key} has {size} bytes as JSON; an edge node takes {}", limits::MAX_OBJECT)]
    TooLarge { key: ResourceKey, size: usize },
    #[error("object of kind {kind} has a name that cannot be sent")]
    Key {
        kind: &'static str,
        #[source]
        source: KeyError,
    },
}

/// A JSON object whose values are left alone, in its order.
pub(super) struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for FieldsVisitor<'a> {
            type Value = Fields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(field) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor(PhantomData))
    }
}

impl<'a> Fields<'a> {
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(field, value)| (field.as_str(), *value))
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| *value)
    }

    fn write(&self, out: &mut Vec<u8>, without: &[&str]) -> Result<(), serde_json::Error> {
        out.push(b'{');
        let start = out.len();
        for (field, value) in self.0.iter().filter(|(field, _)| !without.contains(&field.as_str())) {
            if out.len() > start {
                out.push(b',');
            }
            serde_json::to_writer(&mut *out, field)?;
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    resource_version: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Of a Pod or a Node.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    phase: Box<str>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: Box<str>,
    status: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_transition_time: Option<Box<str>>,
}

/// An object's resource version as a number; 0 when it is not one.
pub fn resource_version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

impl Kind {
    /// Takes an object as the API server sent it.
    pub fn take(&self, raw: &str) -> Result<Cached, ObjectError> {
        let parse = |source| ObjectError::Parse { kind: self.kind, source };
        let missing = |field| ObjectError::Missing { kind: self.kind, field };
        let fields: Fields<'_> = serde_json::from_str(raw).map_err(parse)?;
        let raw_metadata = fields.get("metadata").ok_or_else(|| missing("metadata"))?.get();
        let metadata: Metadata = serde_json::from_str(raw_metadata).map_err(parse)?;
        let key = ResourceKey::new(self.key, &metadata.namespace, &metadata.name)
            .map_err(|source| ObjectError::Key { kind: self.kind, source })?;
        let (bytes, facts) = match self.shape {
            Shape::Plain => (self.bytes(&fields, raw_metadata, &[]).map_err(parse)?, Facts::Plain),
            Shape::Volume => (self.bytes(&fields, raw_metadata, &["status"]).map_err(parse)?, Facts::Plain),
            Shape::Claim => {
                let bytes = self.bytes(&fields, raw_metadata, &["status"]).map_err(parse)?;
                (bytes, Facts::Claim(fields.get("spec").and_then(|spec| volume(spec.get()))))
            }
            Shape::Device => {
                let dated = with_spec_time(raw_metadata).map_err(parse)?;
                let bytes = self.bytes(&fields, &dated, &["status"]).map_err(parse)?;
                let spec = fields.get("spec").ok_or_else(|| missing("spec"))?.get();
                let status = fields.get("status").map_or("{}", |status| status.get());
                (bytes, Facts::Device(device_facts(raw, spec, status, &metadata).map_err(parse)?))
            }
            Shape::DeviceStatus => {
                let bytes = self.bytes(&fields, raw_metadata, &["status"]).map_err(parse)?;
                let status = fields.get("status").and_then(|status| print::of_device(status.get()).ok());
                (bytes, Facts::DeviceStatus(status))
            }
            Shape::Rule => {
                let bytes = self.bytes(&fields, raw_metadata, &["status"]).map_err(parse)?;
                let spec = fields.get("spec").ok_or_else(|| missing("spec"))?.get();
                let status = fields.get("status").map_or("{}", |status| status.get());
                (bytes, Facts::Rule(rule_facts(spec, status, &metadata).map_err(parse)?))
            }
            Shape::Pod => {
                let spec = fields.get("spec").ok_or_else(|| missing("spec"))?.get();
                let spec: PodSpec = serde_json::from_str(spec).map_err(parse)?;
                let mut bytes = self.bytes(&fields, raw_metadata, &["status"]).map_err(parse)?;
                let kept =
                    fields.get("status").map(|status| spec.kept_status(status.get())).unwrap_or_default();
                if !kept.is_empty() {
                    bytes.pop();
                    bytes.extend_from_slice(br#","status":"#);
                    serde_json::to_writer(&mut bytes, &kept).map_err(parse)?;
                    bytes.push(b'}');
                }
                let status = fields.get("status").and_then(|status| spec.print(status.get()));
                (bytes, Facts::Pod(spec.facts(&metadata, kept.has_ended(), status)))
            }
            Shape::Node => {
                let facts = NodeFacts {
                    uid: metadata.uid.clone(),
                    edge: metadata.labels.iter().any(|labels| labels.contains_key(EDGE_LABEL)),
                    opted_out: evicts(metadata.annotations.as_ref()),
                    ready: fields.get("status").and_then(|status| ready(status.get())),
                    key_hash: annotation(metadata.annotations.as_ref(), KEY_ANNOTATION).map(Into::into),
                    status: fields.get("status").and_then(|status| print::of_node(status.get()).ok()),
                    authorities: annotation(metadata.annotations.as_ref(), AUTHORITIES_ANNOTATION)
                        .map(Into::into),
                    sync_config: annotation(metadata.annotations.as_ref(), SYNC_CONFIG_ANNOTATION)
                        .map(Into::into),
                };
                (node_bytes(&fields, raw_metadata).map_err(parse)?, Facts::Node(facts))
            }
        };
        if bytes.len() > limits::MAX_OBJECT {
            return Err(ObjectError::TooLarge { key, size: bytes.len() });
        }
        let object = Object::new(key, resource_version(&metadata.resource_version), Bytes::from(bytes));
        Ok(Cached { object, uid: metadata.uid, facts })
    }

    /// Items of a list carry no kind, those of a watch do: it is written here, so that both give the same bytes.
    fn bytes(
        &self,
        fields: &Fields<'_>,
        metadata: &str,
        without: &[&str],
    ) -> Result<Vec<u8>, serde_json::Error> {
        let metadata: Fields<'_> = serde_json::from_str(metadata)?;
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(br#"{"apiVersion":""#);
        out.extend_from_slice(self.api_version.as_bytes());
        out.extend_from_slice(br#"","kind":""#);
        out.extend_from_slice(self.kind.as_bytes());
        out.extend_from_slice(br#"","metadata":"#);
        metadata.write(&mut out, &["managedFields", "resourceVersion"])?;
        for (field, value) in &fields.0 {
            if matches!(field.as_str(), "apiVersion" | "kind" | "metadata")
                || without.contains(&field.as_str())
            {
                continue;
            }
            out.push(b',');
            serde_json::to_writer(&mut out, field)?;
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        Ok(out)
    }
}

/// The edge needs its node's identity, labels, annotations and addresses of pods; the control plane's own taints come and
/// go with every cut of the line, and [`TTL`] with the number of nodes.
fn node_bytes(fields: &Fields<'_>, metadata: &str) -> Result<Vec<u8>, serde_json::Error> {
    let mut metadata: serde_json::Map<String, serde_json::Value> = serde_json::from_str(metadata)?;
    metadata.retain(|field, _| {
        matches!(field.as_str(), "name" | "uid" | "labels" | "annotations" | "creationTimestamp")
    });
    if let Some(serde_json::Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.remove(TTL);
        // It knows what it has.
        annotations.remove(AUTHORITIES_ANNOTATION);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    let mut spec: serde_json::Value =
        fields.get("spec").map_or(Ok(serde_json::json!({})), |spec| serde_json::from_str(spec.get()))?;
    if let Some(taints) = spec.get_mut("taints").and_then(serde_json::Value::as_array_mut) {
        taints
            .retain(|taint| !taint["key"].as_str().is_some_and(|key| key.starts_with("node.kubernetes.io/")));
    }
    if spec["taints"].as_array().is_some_and(Vec::is_empty)
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("taints");
    }
    serde_json::to_vec(&serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec,
    }))
}

fn ready(status: &str) -> Option<Box<str>> {
    let status: Status = serde_json::from_str(status).ok()?;
    let ready = status.conditions.into_iter().find(|condition| &*condition.r#type == "Ready")?;
    Some(ready.status)
}

fn volume(spec: &str) -> Option<ResourceKey> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        volume_name: String,
    }
    let spec: Spec = serde_json::from_str(spec).ok()?;
    ResourceKey::new("PersistentVolume", "", &spec.volume_name).ok()
}

/// The metadata with [`SPEC_TIME_ANNOTATION`]. What was said in the cloud and what was set at the edge meanwhile are settled by it, so that
/// what is written here, who holds the device, is none of it, and none of the edge's business.
fn with_spec_time(metadata: &str) -> Result<String, serde_json::Error> {
    #[derive(Deserialize)]
    struct Written<'a> {
        time: Option<&'a str>,
        subresource: Option<&'a str>,
        manager: Option<&'a str>,
    }
    let mut metadata: serde_json::Map<String, serde_json::Value> = serde_json::from_str(metadata)?;
    let entries = metadata.get("managedFields").cloned().unwrap_or_default();
    let times = entries.as_array().into_iter().flatten().filter_map(|entry| {
        let Written { time, subresource, manager } = Written::deserialize(entry).ok()?;
        // In UTC, as the API server writes them: later ones sort later.
        time.filter(|_| subresource.is_none_or(str::is_empty) && manager != Some(FIELD_MANAGER))
    });
    if let Some(serde_json::Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.remove(HOLDER_ANNOTATION);
    }
    if let Some(newest) = times.max() {
        let annotations = metadata.entry("annotations").or_insert_with(|| serde_json::json!({}));
        annotations[SPEC_TIME_ANNOTATION] = newest.into();
    }
    serde_json::to_string(&metadata)
}

fn rule_facts(spec: &str, status: &str, metadata: &Metadata) -> Result<RuleFacts, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        node_name: Box<str>,
    }
    let Spec { node_name: node } = serde_json::from_str(spec)?;
    Ok(RuleFacts { uid: metadata.uid.clone(), node, status: print::of_device(status).ok() })
}

fn device_facts(
    raw: &str,
    spec: &str,
    status: &str,
    metadata: &Metadata,
) -> Result<DeviceFacts, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        #[serde(default)]
        node_name: Box<str>,
        device_model_ref: Option<Reference>,
    }
    #[derive(Deserialize)]
    struct Reference {
        #[serde(default)]
        name: String,
    }
    let spec: Spec = serde_json::from_str(spec)?;
    // One whose name is none does not exist, which the edge says.
    let model = spec
        .device_model_ref
        .and_then(|model| ResourceKey::new(MODEL, &metadata.namespace, &model.name).ok());
    let holder: Option<Box<str>> =
        annotation(metadata.annotations.as_ref(), HOLDER_ANNOTATION).map(Into::into);
    let wanted =
        if spec.node_name.is_empty() { selected(raw, metadata)? } else { Placement::Node(spec.node_name) };
    let node = match (&wanted, &holder) {
        (Placement::Node(node), None) => node.clone(),
        (Placement::Node(node), Some(holder)) if node == holder => node.clone(),
        (Placement::Selected(_), Some(holder)) => holder.clone(),
        _ => Box::default(),
    };
    Ok(DeviceFacts {
        uid: metadata.uid.clone(),
        node,
        wanted,
        holder,
        references: model.into_iter().collect(),
        status: print::of_device(status).ok(),
    })
}

/// Where a Device is to be that names no node.
fn selected(raw: &str, metadata: &Metadata) -> Result<Placement, serde_json::Error> {
    if annotation(metadata.annotations.as_ref(), conversion::ALPHA).is_none() {
        return Ok(Placement::Nowhere);
    }
    let mut device: serde_json::Value = serde_json::from_str(raw)?;
    // In a list it is not said.
    device["apiVersion"] = "devices.kubeedge.io/v1beta1".into();
    device["kind"] = "Device".into();
    Ok(conversion::node_selector(&device).map_or(Placement::Nowhere, Placement::Selected))
}

fn annotation<'a>(annotations: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    annotations?.get(name).map(String::as_str)
}

fn evicts(annotations: Option<&BTreeMap<String, String>>) -> bool {
    annotation(annotations, EVICT_ANNOTATION) == Some("true")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kind(key: &str) -> &'static Kind {
        KINDS.iter().find(|kind| kind.key == key).unwrap()
    }

    #[test]
    fn a_status_or_managed_fields_change_nothing() {
        let pod = |version: &str, phase: &str| {
            json!({"kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "web", "namespace": "a", "uid": "u", "resourceVersion": version,
                    "managedFields": [{"manager": version}], "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": "n"}, "status": {"phase": phase}})
            .to_string()
        };
        let one = kind("Pod").take(&pod("7", "Pending")).unwrap();
        let two = kind("Pod").take(&pod("8", "Running")).unwrap();
        assert_eq!(one.object.bytes, two.object.bytes);
        assert_eq!((one.object.version.resource_version, two.object.version.resource_version), (7, 8));
        let value: Value = serde_json::from_slice(&one.object.bytes).unwrap();
        assert_eq!(value["metadata"]["deletionTimestamp"], "2026-01-01T00:00:00Z");
        assert_eq!(value["metadata"]["uid"], "u");
        assert!(value["metadata"].get("managedFields").is_none() && value.get("status").is_none());
    }

    #[test]
    fn of_an_ended_pod_the_phase_is_passed_on() {
        let pod = |status: Value| {
            let pod = json!({"metadata": {"name": "job", "namespace": "a", "uid": "u", "resourceVersion": "1"},
                "spec": {"nodeName": "n"}, "status": status});
            let cached = kind("Pod").take(&pod.to_string()).unwrap();
            let Facts::Pod(facts) = cached.facts else { panic!("no pod") };
            (serde_json::from_slice::<Value>(&cached.object.bytes).unwrap(), facts.ended)
        };
        let (object, ended) = pod(json!({"phase": "Failed", "podIP": "10.0.0.1", "reason": "Evicted"}));
        assert_eq!((object["status"].clone(), ended), (json!({"phase": "Failed"}), true));
        assert_eq!(object["spec"]["nodeName"], "n");
        let (object, ended) = pod(json!({"phase": "Running"}));
        assert!(object.get("status").is_none() && !ended);
    }

    #[test]
    fn conditions_of_readiness_gates_are_passed_on() {
        let pod = |switch: &str, ready: &str| {
            json!({"metadata": {"name": "web", "namespace": "a", "uid": "u"},
                "spec": {"nodeName": "n", "readinessGates": [{"conditionType": "example.com/switch"}]},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": null},
                    {"type": "example.com/switch", "status": switch, "message": "m", "lastProbeTime": null,
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
        };
        let bytes = |pod: Value| kind("Pod").take(&pod.to_string()).unwrap().object.bytes;
        assert_eq!(bytes(pod("True", "True")), bytes(pod("True", "False")));
        let value: Value = serde_json::from_slice(&bytes(pod("False", "False"))).unwrap();
        let kept = json!({"conditions": [{"type": "example.com/switch", "status": "False",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        assert_eq!(value["status"], kept);
        let mut before = pod("True", "False");
        before["status"] = json!({"phase": "Pending"});
        assert!(serde_json::from_slice::<Value>(&bytes(before)).unwrap().get("status").is_none());
    }

    #[test]
    fn a_listed_item_and_a_watched_one_are_the_same() {
        let bare = r#"{"metadata":{"name":"c","namespace":"a","resourceVersion":"1"},"data":{"k":"v"}}"#;
        let full = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c","namespace":"a","resourceVersion":"2"},"data":{"k":"v"}}"#;
        let (bare, full) = (kind("ConfigMap").take(bare).unwrap(), kind("ConfigMap").take(full).unwrap());
        assert_eq!(bare.object.bytes, full.object.bytes);
        assert_eq!(
            bare.object.bytes,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":"a"},"data":{"k":"v"}}"#
        );
    }

    #[test]
    fn a_node_keeps_labels_and_loses_what_changes_by_itself() {
        let node = |taints: Value, ready: &str| {
            json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "1", "labels": {EDGE_LABEL: "true"}},
                "spec": {"podCIDR": "10.0.0.0/24", "taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
            .to_string()
        };
        let calm = kind("Node").take(&node(json!([]), "True")).unwrap();
        let taint = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
        let cut = kind("Node").take(&node(taint, "Unknown")).unwrap();
        assert_eq!(calm.object.bytes, cut.object.bytes);
        let mut crowded: Value = serde_json::from_str(&node(json!([]), "True")).unwrap();
        crowded["metadata"]["annotations"] = json!({TTL: "15", AUTHORITIES_ANNOTATION: "{}"});
        assert_eq!(calm.object.bytes, kind("Node").take(&crowded.to_string()).unwrap().object.bytes);
        crowded["metadata"]["annotations"]["a"] = "b".into();
        let kept: Value =
            serde_json::from_slice(&kind("Node").take(&crowded.to_string()).unwrap().object.bytes).unwrap();
        assert_eq!(kept["metadata"]["annotations"], json!({"a": "b"}));
        let Facts::Node(facts) = cut.facts else { panic!("no node") };
        assert!(facts.edge && !facts.opted_out);
        assert_eq!(facts.ready.as_deref(), Some("Unknown"));
    }

    #[test]
    fn a_device_needs_its_model_and_its_status_is_not_passed_on() {
        let device = |status: Value| {
            let fields = json!([{"time": "2026-01-01T00:00:00Z"}, {"time": "2026-01-02T00:00:00Z"},
                {"time": "2026-01-03T00:00:00Z", "subresource": "status"},
                {"time": "2026-01-04T00:00:00Z", "manager": FIELD_MANAGER}]);
            let device = json!({"metadata": {"name": "pump", "namespace": "a", "uid": "u", "resourceVersion": "1",
                    "managedFields": fields, "annotations": {HOLDER_ANNOTATION: "n"}},
                "spec": {"nodeName": "n", "deviceModelRef": {"name": "pumps"}}, "status": status});
            let cached = kind(DEVICE).take(&device.to_string()).unwrap();
            let Facts::Device(facts) = cached.facts else { panic!("no device") };
            (cached.object.bytes, facts)
        };
        let (offline, online) = (device(json!({"state": "offline"})), device(json!({"state": "online"})));
        assert_eq!(offline.0, online.0);
        assert_ne!(offline.1.status, online.1.status);
        let bytes: Value = serde_json::from_slice(&online.0).unwrap();
        let annotations = json!({SPEC_TIME_ANNOTATION: "2026-01-02T00:00:00Z"});
        assert_eq!(bytes["metadata"]["annotations"], annotations);
        assert_eq!(
            (&*online.1.node, online.1.references[0].as_str()),
            ("n", "DeviceModel.devices.kubeedge.io/a/pumps")
        );
    }

    #[test]
    fn a_device_is_with_its_holder_if_that_is_where_it_is_to_be() {
        let node = |wanted: &str, holder: Value| {
            let device = json!({"metadata": {"name": "pump", "namespace": "a", "uid": "u",
                "annotations": {HOLDER_ANNOTATION: holder}}, "spec": {"nodeName": wanted}});
            let Facts::Device(facts) = kind(DEVICE).take(&device.to_string()).unwrap().facts else {
                panic!()
            };
            facts.node
        };
        assert_eq!(&*node("n", json!("n")), "n");
        assert_eq!(&*node("m", json!("n")), "", "it is moving");
        assert_eq!(&*node("m", json!("")), "", "nobody's name is no node's");
        let selector =
            json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "site", "operator": "Exists"}]}]});
        let alpha = json!({"apiVersion": "devices.kubeedge.io/v1alpha2", "kind": "Device",
            "metadata": {"name": "pump", "namespace": "a", "uid": "u", "annotations": {HOLDER_ANNOTATION: "n"}},
            "spec": {"nodeSelector": selector}});
        let device = conversion::convert(alpha, conversion::Version::V1beta1).unwrap();
        let Facts::Device(facts) = kind(DEVICE).take(&device.to_string()).unwrap().facts else { panic!() };
        assert!(matches!(facts.wanted, Placement::Selected(_)));
        assert_eq!(&*facts.node, "n");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for raw in
            ["", "[]", "{}", r#"{"metadata":{}}"#, r#"{"metadata":{"name":"a/b"}}"#, r#"{"metadata":7}"#]
        {
            assert!(kind("Secret").take(raw).is_err(), "{raw:?} was taken");
        }
        let large = |length: usize| {
            let data = json!({"k": "x".repeat(length)});
            kind("ConfigMap")
                .take(&json!({"metadata": {"name": "one", "namespace": "a"}, "data": data}).to_string())
        };
        assert!(large(limits::MAX_OBJECT - 200).is_ok());
        let error = large(limits::MAX_OBJECT).unwrap_err().to_string();
        assert!(error.starts_with("ConfigMap/a/one has "), "{error}");
    }
}
