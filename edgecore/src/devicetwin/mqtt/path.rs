//! Where in a JSON document a value is: `temperature`, `$.sensors[0].value`.

use serde_json::Value as Json;

/// Deeper than any message is.
const DEEPEST: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(Box<str>),
    Item(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(Vec<Step>);

impl Path {
    /// # Errors
    /// What is no path, for people.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no path into a JSON document, as in $.sensors[0].value");
        let rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        for part in rest.trim_start_matches('.').split('.') {
            let (field, mut items) = part.find('[').map_or((part, ""), |at| part.split_at(at));
            if !field.is_empty() {
                steps.push(Step::Field(field.into()));
            } else if items.is_empty() {
                return Err(wrong());
            }
            while !items.is_empty() {
                let (item, rest) =
                    items.strip_prefix('[').and_then(|rest| rest.split_once(']')).ok_or_else(wrong)?;
                steps.push(Step::Item(item.parse().map_err(|_| wrong())?));
                items = rest;
            }
        }
        if steps.len() > DEEPEST { Err(wrong()) } else { Ok(Self(steps)) }
    }

    /// As text.
    pub(super) fn of(&self, document: &Json) -> Result<String, String> {
        let found = self.0.iter().try_fold(document, |at, step| match step {
            Step::Field(name) => at.get(&**name),
            Step::Item(index) => at.get(index),
        });
        match found {
            Some(Json::String(text)) => Ok(text.clone()),
            Some(value @ (Json::Number(_) | Json::Bool(_))) => Ok(value.to_string()),
            Some(_) => Err("what the message has there is no single value".to_owned()),
            None => Err("the message has nothing there".to_owned()),
        }
    }

    /// A document that has this there, and nothing else; lists have it in their first place.
    pub(super) fn document(&self, value: Json) -> Json {
        self.0.iter().rev().fold(value, |value, step| match step {
            Step::Field(name) => Json::Object([(name.to_string(), value)].into_iter().collect()),
            Step::Item(_) => Json::Array(vec![value]),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_leads_to_a_value() {
        let document = json!({"a": {"b": [1, {"c": "x"}]}, "on": true, "t": 21.5});
        let of = |path: &str| Path::parse(path).unwrap().of(&document);
        for (path, wanted) in [("$.a.b[0]", "1"), ("a.b[1].c", "x"), ("on", "true"), ("$.t", "21.5")] {
            assert_eq!(of(path).as_deref(), Ok(wanted), "{path}");
        }
        assert!(of("a").unwrap_err().contains("no single value"));
        assert!(of("a.z").unwrap_err().contains("nothing there"));
        for wrong in ["", "$", "a..b", "a[", "a[x]", "a[0]b", &"a.".repeat(20)] {
            assert!(Path::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Path::parse("a.b").unwrap().document(json!(7)), json!({"a": {"b": 7}}));
    }
}
