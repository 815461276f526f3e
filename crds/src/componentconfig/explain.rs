//! The documentation of a configuration's keys, read from its types.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::Value;

/// A key, or a section of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    /// `modules.edgeHub.heartbeat`
    pub path: String,
    /// How many sections it is in: a name may have dots of its own.
    #[serde(skip)]
    pub depth: usize,
    /// string, integer, boolean, a list of them, or section.
    #[serde(rename = "type")]
    pub kind: String,
    /// Null where leaving the key out differs from every value.
    pub default: Value,
    /// What it is for, in one paragraph.
    pub description: String,
}

impl Key {
    pub fn is_section(&self) -> bool {
        self.kind == SECTION
    }
}

const SECTION: &str = "section";

/// Every key of a configuration in the order of its file, sections before what is in them.
pub fn keys<T: JsonSchema + Serialize + Default>() -> Result<Vec<Key>, serde_saphyr::ser::Error> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
    let default = serde_json::to_value(T::default()).expect("a configuration has a JSON form");
    let mut keys = Vec::new();
    collect(schema.as_value(), &default, &[], &mut keys);
    // A schema forgets the order of the fields, YAML does not. A key that is left out by default goes last.
    let order = paths(&serde_saphyr::to_string(&T::default())?);
    let place = |path: &str| order.iter().position(|known| known == path).unwrap_or(usize::MAX);
    keys.sort_by_cached_key(|key| {
        let ends = key.path.match_indices('.').map(|(at, _)| at).chain([key.path.len()]);
        ends.map(|end| (place(&key.path[..end]), key.path[..end].to_owned())).collect::<Vec<_>>()
    });
    Ok(keys)
}

fn collect(schema: &Value, default: &Value, sections: &[&str], keys: &mut Vec<Key>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, schema) in properties {
        let path = [sections, &[name.as_str()]].concat();
        let default = default.get(name).unwrap_or(&Value::Null);
        let is_section = schema.get("properties").is_some();
        let description = schema["description"].as_str().unwrap_or_default();
        keys.push(Key {
            path: path.join("."),
            depth: sections.len(),
            kind: if is_section { SECTION.to_owned() } else { kind(schema) },
            default: if is_section { Value::Null } else { default.clone() },
            // Line ends of the source are none of the paragraph's.
            description: description.split_whitespace().collect::<Vec<_>>().join(" "),
        });
        collect(schema, default, &path, keys);
    }
}

fn kind(schema: &Value) -> String {
    let named = match &schema["type"] {
        Value::String(name) => name.as_str(),
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("any")
        }
        // An optional or documented one of several: they are all written as strings here.
        _ => "string",
    };
    match (named, schema["format"].as_str()) {
        ("array", _) => format!("list of {}", kind(&schema["items"])),
        ("object", _) => "map of strings".to_owned(),
        (_, Some("quantity")) => "quantity".to_owned(),
        (_, Some("threshold")) => "threshold".to_owned(),
        (_, Some("ip" | "ipv4" | "ipv6")) => "IP address".to_owned(),
        (named, _) => named.to_owned(),
    }
}

/// The paths of all keys in block-style YAML.
fn paths(yaml: &str) -> Vec<String> {
    let mut stack: Vec<(usize, &str)> = Vec::new();
    let mut paths = Vec::new();
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        let Some((key, _)) = line.trim_start().split_once(':') else { continue };
        stack.retain(|(other, _)| *other < indent);
        stack.push((indent, key));
        paths.push(stack.iter().map(|(_, key)| *key).collect::<Vec<_>>().join("."));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::componentconfig::{cloudcore::CloudCoreConfig, edgecore::EdgeCoreConfig};

    #[test]
    fn every_key_says_what_it_is_for() {
        let keys = [keys::<CloudCoreConfig>().unwrap(), keys::<EdgeCoreConfig>().unwrap()].concat();
        for key in &keys {
            let plain = ["apiVersion", "kind"].contains(&key.path.as_str());
            assert!(plain || !key.description.is_empty(), "{} has no description", key.path);
        }
    }

    #[test]
    fn keys_have_their_type_and_default() {
        let keys = keys::<EdgeCoreConfig>().unwrap();
        let key = |path: &str| keys.iter().find(|key| key.path == path).unwrap();
        let heartbeat = key("modules.edgeHub.heartbeat");
        assert_eq!((heartbeat.kind.as_str(), &heartbeat.default), ("integer", &Value::from(70)));
        assert!(heartbeat.description.contains("two of them"));
        let memory = key("modules.edged.memoryCapacity");
        assert_eq!((memory.kind.as_str(), &memory.default), ("quantity", &Value::Null));
        assert_eq!(key("modules.edged.clusterDNS").kind, "list of IP address");
        assert_eq!(key("modules.edged.cpuFrequency").kind, "integer");
        assert!(key("modules.edged").is_section());
        assert_eq!(keys[0].path, "apiVersion");
        assert_eq!(keys[1].path, "kind");
    }
}
