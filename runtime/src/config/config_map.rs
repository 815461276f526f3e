//! A configuration in a ConfigMap of the cluster: one document of it, read as a file is.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{Deserialize, de::DeserializeOwned};

use super::{ConfigError, parse};

/// Of a document. Each is read again at every connection of every node.
const MAX_DOCUMENT: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("ConfigMap {map} cannot be read")]
    Map {
        map: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("ConfigMap {map} has no {document} in its data")]
    Missing { map: String, document: String },
    #[error("ConfigMap {map}: {document} has {length} bytes; no more than {MAX_DOCUMENT} are read")]
    TooLarge { map: String, document: String, length: usize },
    #[error(transparent)]
    Content(ConfigError),
}

#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Reads a document of a ConfigMap, given as JSON; `map` is what it is called in errors.
pub fn document<T, F>(
    map: &str,
    json: &[u8],
    document: &str,
    check: impl FnOnce(&T) -> Result<(), Vec<F>>,
) -> Result<(T, String), DocumentError>
where
    T: DeserializeOwned,
    F: fmt::Display,
{
    let (map, named) = (map.to_owned(), document.to_owned());
    let mut data = match serde_json::from_slice::<ConfigMap>(json) {
        Ok(ConfigMap { data }) => data,
        Err(source) => return Err(DocumentError::Map { map, source }),
    };
    let Some(text) = data.remove(document) else {
        return Err(DocumentError::Missing { map, document: named });
    };
    if text.len() > MAX_DOCUMENT {
        return Err(DocumentError::TooLarge { map, document: named, length: text.len() });
    }
    let path = format!("ConfigMap {map}: {document}");
    let value = parse(&text, Path::new(&path), check).map_err(DocumentError::Content)?;
    Ok((value, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        number: u32,
    }

    fn read(json: &str) -> Result<(Small, String), String> {
        let check = |small: &Small| if small.number > 9 { Err(vec!["number: above 9"]) } else { Ok(()) };
        document("a/b", json.as_bytes(), "small.yaml", check).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wrong_is_said_with_the_map_and_the_document() {
        let good = read(r#"{"data": {"small.yaml": "number: 7\n"}}"#).unwrap();
        assert_eq!(good, (Small { number: 7 }, "number: 7\n".to_owned()));
        let large = format!(r#"{{"data": {{"small.yaml": "{}"}}}}"#, "#".repeat(MAX_DOCUMENT + 1));
        for (json, wanted) in [
            ("7", "ConfigMap a/b cannot be read"),
            (r#"{"data": {"other": ""}}"#, "ConfigMap a/b has no small.yaml in its data"),
            (&large, "ConfigMap a/b: small.yaml has 16385 bytes"),
            (r#"{"data": {"small.yaml": "number: 10"}}"#, "ConfigMap a/b: small.yaml: number: above 9"),
            (r#"{"data": {"small.yaml": "numer: 1"}}"#, "unknown key \"numer\"; did you mean \"number\"?"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
