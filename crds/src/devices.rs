//! Devices and their models, group `devices.kubeedge.io`, with the fields of KubeEdge.
//!
//! v1beta1 is stored and served. v1alpha2 has other fields, so serving it takes a conversion webhook; it is not served.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

mod structural;
pub mod v1beta1;

pub const GROUP: &str = "devices.kubeedge.io";

/// The CustomResourceDefinitions of all kinds here.
pub fn custom_resource_definitions() -> Vec<Value> {
    vec![
        definition::<v1beta1::DeviceSpec, v1beta1::DeviceStatus>(&Names {
            kind: "Device",
            plural: "devices",
            description: "A thing at an edge site: a sensor, a drive, a meter.",
            columns: &[
                ("Node", "string", ".spec.nodeName"),
                ("Model", "string", ".spec.deviceModelRef.name"),
                ("Protocol", "string", ".spec.protocol.protocolName"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
        }),
        definition::<v1beta1::DeviceModelSpec, ()>(&Names {
            kind: "DeviceModel",
            plural: "devicemodels",
            description: "What devices of one make have in common: their properties, and how these are read.",
            columns: &[
                ("Protocol", "string", ".spec.protocol"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
        }),
    ]
}

struct Names {
    kind: &'static str,
    plural: &'static str,
    description: &'static str,
    /// Of `kubectl get`: name, type, path.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

fn definition<Spec: JsonSchema, Status: JsonSchema>(names: &Names) -> Value {
    let Names { kind, plural, description, columns } = names;
    let singular = kind.to_lowercase();
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, kind, path)| json!({ "name": name, "type": kind, "jsonPath": path }))
        .collect();
    let mut properties = json!({
        "apiVersion": { "type": "string" },
        "kind": { "type": "string" },
        "metadata": { "type": "object" },
        "spec": schema::<Spec>(),
    });
    // A kind without a status has () for it.
    let status = schema::<Status>();
    let mut subresources = json!({});
    if status["type"] == "object" {
        properties["status"] = status;
        subresources["status"] = json!({});
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{GROUP}") },
        "spec": {
            "group": GROUP,
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular },
            "scope": "Namespaced",
            "versions": [{
                "name": "v1beta1",
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "subresources": subresources,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": description,
                    "required": ["spec"],
                    "properties": properties,
                } },
            }],
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
            check(property, &format!("{path}.{name}"));
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
            let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            check(schema, kind);
            for (name, property) in schema["properties"]["spec"]["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{kind}.spec.{name} has no description");
            }
        }
    }
}
