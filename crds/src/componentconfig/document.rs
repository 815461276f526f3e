//! Configuration files as text.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::explain::{Key, keys};

/// Comments are broken before this column.
const WIDTH: usize = 110;

/// The keys that differ from the defaults, with apiVersion and kind: short, and a later version's better defaults apply.
pub fn minimal<T: Serialize + Default>(config: &T) -> Result<String, serde_saphyr::ser::Error> {
    // The types have no maps with other keys than strings and no floats, so they have a JSON form.
    let json = |config: &T| serde_json::to_value(config).expect("a configuration has a JSON form");
    let (mut value, defaults) = (json(config), json(&T::default()));
    let kept = ["apiVersion", "kind"].map(|key| (key, value[key].clone()));
    prune(&mut value, &defaults);
    for (key, kept) in kept {
        value[key] = kept;
    }
    serde_saphyr::to_string(&value)
}

/// Removes what is equal.
fn prune(value: &mut Value, defaults: &Value) {
    let (Value::Object(value), Value::Object(defaults)) = (value, defaults) else { return };
    value.retain(|key, value| {
        let Some(default) = defaults.get(key) else { return true };
        if value == default {
            return false;
        }
        prune(value, default);
        true
    });
}

/// The whole default configuration, each key below a comment that says what it is for.
pub fn annotated<T: JsonSchema + Serialize + Default>() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for key in keys::<T>()? {
        annotate(&mut text, &key);
    }
    Ok(text)
}

fn annotate(text: &mut String, key: &Key) {
    let indent = "  ".repeat(key.depth);
    let name = key.path.splitn(key.depth + 1, '.').last().unwrap_or(&key.path);
    let mut line = format!("{indent}#");
    for word in key.description.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = format!("{indent}#");
        }
        line.push(' ');
        line.push_str(word);
    }
    if !key.description.is_empty() {
        text.push_str(&line);
        text.push('\n');
    }
    // JSON is YAML.
    let written = match &key.default {
        _ if key.is_section() => writeln!(text, "{indent}{name}:"),
        Value::Null => writeln!(text, "{indent}# {name}:"),
        value => writeln!(text, "{indent}{name}: {value}"),
    };
    written.expect("a String takes all that is written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::componentconfig::{cloudcore::CloudCoreConfig, edgecore::EdgeCoreConfig};

    #[test]
    fn the_annotated_file_is_the_defaults() {
        let edge = annotated::<EdgeCoreConfig>().unwrap();
        assert_eq!(serde_saphyr::from_str::<EdgeCoreConfig>(&edge).unwrap(), EdgeCoreConfig::default());
        assert!(edge.contains("    # memoryCapacity:\n"), "{edge}");
        let cloud = annotated::<CloudCoreConfig>().unwrap();
        assert_eq!(serde_saphyr::from_str::<CloudCoreConfig>(&cloud).unwrap(), CloudCoreConfig::default());
        assert!(cloud.lines().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn the_minimal_file_is_short_and_reads_back() {
        let mut config = EdgeCoreConfig::default();
        config.modules.edged.hostname_override = "pump-7".to_owned();
        config.modules.edged.memory_capacity = Some("100Mi".parse().unwrap());
        config.modules.edged.node_labels.insert("site".to_owned(), "north".to_owned());
        let text = minimal(&config).unwrap();
        assert_eq!(
            text,
            "apiVersion: edgecore.config.kubeedge.io/v1alpha2\n\
             kind: EdgeCore\n\
             modules:\n  edged:\n    hostnameOverride: pump-7\n    memoryCapacity: 100Mi\n    nodeLabels:\n      site: north\n"
        );
        assert_eq!(serde_saphyr::from_str::<EdgeCoreConfig>(&text).unwrap(), config);
    }
}
