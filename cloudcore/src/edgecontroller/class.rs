//! Which class an object has on its way down: the one that its annotation names. An object that names none, or one that there is not,
//! waits for nothing, whatever the intervals are: a ConfigMap that comes an hour late is wrong for the whole life of a pod that has
//! started meanwhile, and who may change it need not know of the link's settings.

use std::{borrow::Cow, collections::BTreeMap};

use crds::{PRIORITY_CLASS_ANNOTATION, componentconfig::sync::ClassName};
use proto::{ResourceKey, session::CLASSES};
use serde::Deserialize;

const _: () = assert!(CLASSES == ClassName::ALL.len());

#[derive(Deserialize)]
struct Annotated<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default, borrow)]
    annotations: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    #[serde(default, borrow)]
    deletion_timestamp: Option<Cow<'a, str>>,
}

/// In the order of [`ClassName::ALL`].
pub(super) fn of(key: &ResourceKey, bytes: &[u8], gone: bool) -> Option<usize> {
    let is_pod = key.kind() == "Pod";
    // What the link itself is used by; and whoever deletes a pod waits for it.
    if key.kind() == "Node" || (is_pod && gone) {
        return None;
    }
    // Most have none, and are not parsed for it.
    let wanted = PRIORITY_CLASS_ANNOTATION.as_bytes();
    bytes.windows(wanted.len()).find(|window| *window == wanted)?;
    let Annotated { metadata } = serde_json::from_slice(bytes).ok()?;
    if is_pod && metadata.deletion_timestamp.is_some() {
        return None;
    }
    let annotations = metadata.annotations?;
    let named = annotations.get(PRIORITY_CLASS_ANNOTATION)?;
    ClassName::ALL.iter().position(|name| name.as_str() == named)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn class(key: &str, metadata: &Value, gone: bool) -> Option<usize> {
        let object = json!({ "data": { "skerry.io/priority-class": "critical" }, "metadata": metadata });
        of(&key.parse().unwrap(), object.to_string().as_bytes(), gone)
    }

    #[test]
    fn an_object_has_the_class_that_it_names() {
        let named = |name: &str| json!({ "annotations": { "a/b": "c", PRIORITY_CLASS_ANNOTATION: name } });
        for (name, wanted) in
            [("critical", Some(0)), ("standard", Some(1)), ("batch", Some(2)), ("urgent", None)]
        {
            assert_eq!(class("ConfigMap/a/b", &named(name), false), wanted, "{name}");
            assert_eq!(class("ConfigMap/a/b", &named(name), true), wanted, "{name}");
        }
        for none in [json!({}), json!({ "annotations": null }), json!({ "annotations": { "a/b": "batch" } })]
        {
            assert_eq!(class("Secret/a/b", &none, false), None, "{none}");
        }
        assert_eq!(class("Node//n", &named("batch"), false), None);
        assert_eq!(of(&"Secret/a/b".parse().unwrap(), b"skerry.io/priority-class", false), None);
    }

    #[test]
    fn a_pod_that_is_deleted_has_none() {
        let mut pod = json!({ "annotations": { PRIORITY_CLASS_ANNOTATION: "batch" } });
        assert_eq!(class("Pod/a/b", &pod, false), Some(2));
        assert_eq!(class("Pod/a/b", &pod, true), None);
        pod["deletionTimestamp"] = json!("2026-11-01T00:00:00Z");
        assert_eq!(class("Pod/a/b", &pod, false), None);
    }
}
