//! Configuration files as text.

use serde::Serialize;
use serde_json::Value;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::componentconfig::edgecore::EdgeCoreConfig;

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
