//! From a JSON schema to what the API server takes: a structural schema, in which each value has just one type.

use serde_json::{Map, Value};

/// Rewrites a schema, and those within it.
pub(super) fn rewrite(schema: &mut Value) {
    let Value::Object(map) = schema else {
        // `true`: anything. JSON that is passed on as it is.
        *schema = free();
        return;
    };
    // Defaults are not written into what users apply, or GitOps tools would see a difference that nobody made.
    for keyword in ["$schema", "title", "nullable", "unevaluatedProperties", "default"] {
        map.remove(keyword);
    }
    unwrap_option(map);
    merge_constants(map);
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|name| name != "null");
        if let [name] = &types[..] {
            let name = name.clone();
            map.insert("type".to_owned(), name);
        }
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    // The API server knows int32, int64, float, double; unsigned integers have a minimum.
    if let Some(format) = map.get("format").and_then(Value::as_str) {
        let known = match format {
            "uint8" | "uint16" | "int8" | "int16" => Some("int32"),
            "uint32" | "uint64" | "uint" | "int" => Some("int64"),
            "int32" | "int64" | "float" | "double" | "date-time" | "byte" => Some(format),
            _ => None,
        };
        match known.map(str::to_owned) {
            Some(known) => map.insert("format".to_owned(), known.into()),
            None => map.remove("format"),
        };
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(rewrite);
    }
    if let Some(items) = map.get_mut("items") {
        rewrite(items);
    }
    match map.get_mut("additionalProperties") {
        Some(Value::Bool(true)) => {
            map.remove("additionalProperties");
            map.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
        }
        Some(inner) => rewrite(inner),
        None => {}
    }
}

fn free() -> Value {
    serde_json::json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// `anyOf: [schema, null]` is an optional value; so is a property that is not required, and that is enough.
fn unwrap_option(map: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = map.get_mut("anyOf") else { return };
    choices.retain(|choice| choice["type"] != "null");
    if let [Value::Object(inner)] = &choices[..] {
        let inner = inner.clone();
        map.remove("anyOf");
        for (keyword, value) in inner {
            // The field's own description counts for more than its type's.
            map.entry(keyword).or_insert(value);
        }
    }
}

/// `oneOf: [{const: A}, {const: B}]`, as variants with a description are written, is an enum.
fn merge_constants(map: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = map.get("oneOf") else { return };
    let constants: Option<Vec<Value>> = choices.iter().map(|choice| choice.get("const").cloned()).collect();
    if let Some(constants) = constants {
        map.remove("oneOf");
        map.insert("type".to_owned(), "string".into());
        map.insert("enum".to_owned(), constants.into());
    }
}
