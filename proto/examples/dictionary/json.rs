//! JSON as text, so that fields stand in the order in which the API server writes them.

/// Fields without a value are left out.
pub(crate) fn object<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
    let fields: Vec<String> = fields.map(|(name, value)| format!("{}:{value}", text(name))).collect();
    format!("{{{}}}", fields.join(","))
}

/// No value at all when it is empty.
pub(crate) fn array(items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!("[{}]", items.join(",")) }
}

pub(crate) fn texts<T: AsRef<str>>(items: &[T]) -> String {
    array(&items.iter().map(|item| text(item.as_ref())).collect::<Vec<_>>())
}

/// A map of texts, in order as Go and serde write it; no value when it is empty.
pub(crate) fn map(mut entries: Vec<(String, String)>) -> String {
    entries.sort();
    entries.dedup_by(|a, b| a.0 == b.0);
    if entries.is_empty() {
        return String::new();
    }
    object(entries.iter().map(|(name, value)| (name.as_str(), text(value))))
}

/// Escaped as Go does it.
pub(crate) fn text(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// The text if `holds`.
pub(crate) fn when(holds: bool, value: impl Into<String>) -> String {
    if holds { value.into() } else { String::new() }
}
