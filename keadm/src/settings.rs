//! `--set KEY=VALUE`, for both configuration files.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    cli::Component,
    commands::config,
    preflight::{Check, Problem},
};

/// Puts each value in the place of its key.
pub(crate) fn set<T: Serialize + DeserializeOwned>(
    config: T,
    component: Component,
    settings: &[(String, String)],
) -> Check<T> {
    if settings.is_empty() {
        return Ok(config);
    }
    let invalid =
        |cause: String| Problem::new(cause, "keadm config explain lists the keys and what they take");
    let mut value = serde_json::to_value(&config).map_err(|error| invalid(error.to_string()))?;
    for (key, text) in settings {
        if let Some(reason) = config::unknown_key(key, component) {
            return Err(invalid(format!("--set: {reason}")));
        }
        let mut at = &mut value;
        for part in key.split('.') {
            let Value::Object(map) = at else { return Err(invalid(format!("--set {key}: no such key"))) };
            at = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
        }
        *at = scalar(text);
    }
    serde_json::from_value(value).map_err(|error| invalid(format!("--set: {error}")))
}

/// As YAML would read it.
fn scalar(text: &str) -> Value {
    match (text, text.parse::<u64>()) {
        ("true", _) => true.into(),
        ("false", _) => false.into(),
        (_, Ok(number)) => number.into(),
        _ => text.into(),
    }
}
