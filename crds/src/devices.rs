//! Devices and their models, group `devices.kubeedge.io`, with the fields of KubeEdge.
//!
//! v1beta1 is stored and served. v1alpha2 has other fields: cloudcore converts, and has it served while it does.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

pub mod conversion;
pub mod rules;
mod structural;
pub mod v1alpha2;
pub mod v1beta1;
pub mod validation;
pub mod value;

pub const GROUP: &str = "devices.kubeedge.io";
/// Of kinds that KubeEdge has not.
pub const OWN_GROUP: &str = "devices.skerry.io";
/// The version that is not stored, and served for as long as a cloudcore converts it.
pub const CONVERTED: &str = "v1alpha2";
/// The ValidatingWebhookConfiguration of these kinds, and the one webhook in it: `keadm init` makes it empty, cloudcore says where it is.
pub const WEBHOOK: &str = "devices.skerry.io";

/// The kinds as they are named on the link and in the edge's store.
pub mod keys {
    pub const DEVICE: &str = "Device.devices.kubeedge.io";
    pub const MODEL: &str = "DeviceModel.devices.kubeedge.io";
    pub const STATUS: &str = "DeviceStatus.devices.kubeedge.io";
    pub const RULE: &str = "DeviceRule.devices.skerry.io";
    /// On a Device as the edge has it, by cloudcore: when somebody wrote to it last, but for its status. RFC 3339.
    pub const SPEC_TIME_ANNOTATION: &str = "skerry.io/spec-time";
    /// On a Device, by cloudcore: the node that has it, or has had it and not given it up.
    pub const HOLDER_ANNOTATION: &str = "devices.skerry.io/holder";
}

/// The CustomResourceDefinitions of all kinds here.
pub fn custom_resource_definitions() -> Vec<Value> {
    vec![
        definition(
            GROUP,
            ("Device", "devices"),
            "A thing at an edge site: a sensor, a drive, a meter.",
            &[
                Version {
                    columns: &[
                        ("Node", "string", ".spec.nodeName"),
                        ("Model", "string", ".spec.deviceModelRef.name"),
                        ("Protocol", "string", ".spec.protocol.protocolName"),
                        ("State", "string", ".status.state"),
                        ("Last seen", "date", ".status.lastOnlineTime"),
                    ],
                    status_apart: true,
                    ..Version::stored::<v1beta1::DeviceSpec, v1beta1::DeviceStatus>()
                },
                Version {
                    columns: &[("Model", "string", ".spec.deviceModelRef.name")],
                    // What is desired is written there.
                    status_apart: false,
                    ..Version::converted::<v1alpha2::DeviceSpec, v1alpha2::DeviceStatus>()
                },
            ],
        ),
        definition(
            GROUP,
            ("DeviceModel", "devicemodels"),
            "What devices of one make have in common: their properties, and how these are read.",
            &[
                Version {
                    columns: &[("Protocol", "string", ".spec.protocol")],
                    ..Version::stored::<v1beta1::DeviceModelSpec, ()>()
                },
                Version::converted::<v1alpha2::DeviceModelSpec, ()>(),
            ],
        ),
        definition(
            GROUP,
            ("DeviceStatus", "devicestatuses"),
            "What the edge reports of the Device of the same name; written by cloudcore.",
            &[Version {
                columns: &[
                    ("State", "string", ".status.state"),
                    ("Last seen", "date", ".status.lastOnlineTime"),
                ],
                // Created with its status by whoever reports.
                ..Version::stored::<(), v1beta1::DeviceStatus>()
            }],
        ),
        definition(
            OWN_GROUP,
            ("DeviceRule", "devicerules"),
            "What is done at the edge when an expression over properties of devices becomes true.",
            &[Version {
                name: "v1alpha1",
                columns: &[
                    ("Node", "string", ".spec.nodeName"),
                    ("When", "string", ".spec.when"),
                    ("Active", "boolean", ".status.active"),
                    ("Fired", "integer", ".status.fired"),
                    ("Last fired", "date", ".status.lastFired"),
                    ("Error", "string", ".status.error"),
                ],
                status_apart: true,
                ..Version::stored::<rules::DeviceRuleSpec, rules::DeviceRuleStatus>()
            }],
        ),
    ]
}

struct Version {
    name: &'static str,
    is_stored: bool,
    spec: Value,
    status: Value,
    /// It has the subresource `status`.
    status_apart: bool,
    /// Of `kubectl get`, but for the age: name, type, path.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

impl Version {
    fn stored<Spec: JsonSchema, Status: JsonSchema>() -> Self {
        Self {
            name: "v1beta1",
            is_stored: true,
            spec: schema::<Spec>(),
            status: schema::<Status>(),
            status_apart: false,
            columns: &[],
        }
    }

    fn converted<Spec: JsonSchema, Status: JsonSchema>() -> Self {
        Self { name: CONVERTED, is_stored: false, ..Self::stored::<Spec, Status>() }
    }

    fn definition(&self, description: &str) -> Value {
        let Self { name, is_stored, spec, status, status_apart, columns } = self;
        let mut columns: Vec<Value> = columns
            .iter()
            .map(|(name, kind, path)| json!({ "name": name, "type": kind, "jsonPath": path }))
            .collect();
        columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
        let mut properties = json!({
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
        });
        // A kind that lacks one of them has () for it.
        let has_spec = spec["type"] == "object";
        properties["spec"] =
            if has_spec { spec.clone() } else { json!({ "type": "object", "description": "Empty." }) };
        if status["type"] == "object" {
            properties["status"] = status.clone();
        }
        let required: &[&str] = if has_spec { &["spec"] } else { &[] };
        json!({
            "name": name,
            // Without a webhook the API server would take an object of one version for one of the other, and drop what it does
            // not know. So cloudcore has it serve the other one, once it converts.
            "served": is_stored,
            "storage": is_stored,
            "additionalPrinterColumns": columns,
            "subresources": if *status_apart { json!({ "status": {} }) } else { json!({}) },
            "schema": { "openAPIV3Schema": {
                "type": "object",
                "description": description,
                "required": required,
                "properties": properties,
            } },
        })
    }
}

fn definition(group: &str, (kind, plural): (&str, &str), description: &str, versions: &[Version]) -> Value {
    let singular = kind.to_lowercase();
    let versions: Vec<Value> = versions.iter().map(|version| version.definition(description)).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular },
            "scope": "Namespaced",
            "versions": versions,
        },
    })
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value();
    structural::rewrite(&mut schema);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything below a schema that is not a property's name has to be a keyword that the API server takes.
    fn check(schema: &Value, path: &str) {
        const KEYWORDS: &[&str] = &[
            "type",
            "description",
            "properties",
            "required",
            "items",
            "enum",
            "format",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "pattern",
            "minProperties",
            "maxProperties",
            "maxItems",
            "additionalProperties",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
        ];
        let schema = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema} is no schema"));
        for keyword in schema.keys() {
            assert!(KEYWORDS.contains(&keyword.as_str()), "{path}: {keyword}");
        }
        assert!(schema["type"].is_string(), "{path} has no type");
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.{name}");
            let is_ours = path.contains(".spec.") || path.contains(".status.");
            assert!(!is_ours || property["description"].is_string(), "{path} has no description");
            check(property, &path);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner) {
                check(inner, &format!("{path}[]"));
            }
        }
    }

    #[test]
    fn schemas_are_structural_and_described() {
        for definition in custom_resource_definitions() {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
            for version in definition["spec"]["versions"].as_array().unwrap() {
                check(&version["schema"]["openAPIV3Schema"], kind);
            }
        }
    }
}
