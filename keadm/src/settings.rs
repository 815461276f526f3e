//! `--set KEY=VALUE`, and writing, for both configuration files.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use runtime::tls::{TlsError, write_durably};
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
        let (mut at, mut rest) = (&mut value, key.as_str());
        while !rest.is_empty() {
            let Value::Object(map) = at else { return Err(invalid(format!("--set {key}: no such key"))) };
            let (part, after) = step(map, rest);
            at = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
            rest = after;
        }
        *at = scalar(text);
    }
    serde_json::from_value(value).map_err(|error| invalid(format!("--set: {error}")))
}

/// The first key of a path, and the path below it. A key may have dots of its own, as nodefs.available has.
fn step<'a>(map: &Map<String, Value>, path: &'a str) -> (&'a str, &'a str) {
    let below = |key: &str| path.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with('.'));
    let length = map
        .keys()
        .find(|key| below(key).is_some())
        .map_or_else(|| path.find('.').unwrap_or(path.len()), String::len);
    (&path[..length], path[length..].trim_start_matches('.'))
}

/// What the flags have made of a configuration, if it is one.
pub(crate) fn valid<T>(config: T, verdict: Result<(), Vec<impl ToString>>) -> Check<T> {
    verdict.map(|()| config).map_err(|faults| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        Problem::new(
            format!("the configuration would not be valid: {}", faults.join("; ")),
            "correct the flags; keadm config explain KEY says what a key is for",
        )
    })
}

/// With the mode that the file has. A new one is root's alone, since a token can be in it.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), TlsError> {
    let mode = fs::metadata(path).map_or(0o600, |old| old.permissions().mode() & 0o777);
    write_durably(path, mode, text.as_bytes())
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

#[cfg(test)]
mod tests {
    use crds::componentconfig::edgecore::EdgeCoreConfig;

    use super::*;

    #[test]
    fn a_key_may_have_dots() {
        let set = |key: &str, text: &str| {
            set(EdgeCoreConfig::default(), Component::Edgecore, &[(key.to_owned(), text.to_owned())])
        };
        let config = set("modules.edged.evictionHard.nodefs.available", "1%").unwrap();
        assert_eq!(config.modules.edged.eviction_hard.disk, "1%".parse().unwrap());
        let problem = set("modules.edged.evictionHard.nodefs.available", "much").unwrap_err();
        assert!(problem.cause.contains("\"much\" is not a threshold"), "{}", problem.cause);
        let problem = set("modules.edged.evictionHard.nodefs", "1%").unwrap_err();
        assert!(problem.cause.contains("modules.edged.evictionHard.nodefs"), "{}", problem.cause);
    }

    #[test]
    fn a_configuration_keeps_its_mode_and_a_new_one_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config/edgecore.yaml");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write(&path, "a: 1\n").unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, "a: 2\n").unwrap();
        assert_eq!((mode(), fs::read_to_string(&path).unwrap()), (0o640, "a: 2\n".to_owned()));
    }
}
