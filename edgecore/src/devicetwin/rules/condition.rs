//! What a rule waits for: a CEL expression over what devices are now.

use std::collections::{BTreeMap, HashMap, HashSet};

use cel::{
    Context, ExecutionError, IdedExpr, Value as Cel,
    common::ast::{EntryExpr, Expr},
    parser::PrattParser,
};

use crate::devicetwin::{device::Device, twin::State, value::Value};

/// With the next two the stack that an expression takes is bounded; the crate's other parser takes any, and a megabyte for a line of it.
const LONGEST: usize = 1024;
const DEEPEST: u16 = 32;
const MOST_NODES: usize = 256;

pub(super) struct Condition(IdedExpr);

/// What is known of one device.
#[derive(Default)]
pub(super) struct Facts {
    /// What could be read last.
    values: HashMap<String, Cel>,
    properties: HashSet<String>,
}

impl Facts {
    pub(super) fn of(device: &Device) -> Self {
        let twin = device.twin();
        let mut facts = Self::default();
        for property in &device.spec.properties {
            facts.properties.insert(property.name.to_string());
            let Some(of_twin) = twin.properties.get(&property.name) else { continue };
            let reported = of_twin.reported.as_ref().filter(|_| twin.state == State::Online);
            let Some(value) = reported.and_then(|one| Value::parse(property.kind, &one.value).ok()) else {
                continue;
            };
            // What is beyond the model's bounds is what the device says all the same; anything else that is wrong is that it says nothing.
            if of_twin.read_error.is_none() || property.range.check(&value).is_err() {
                facts.values.insert(property.name.to_string(), cel(value));
            }
        }
        facts
    }
}

fn cel(value: Value) -> Cel {
    match value {
        Value::Integer(number) => match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => Cel::Int(number),
            (_, Ok(number)) => Cel::UInt(number),
            #[expect(clippy::cast_precision_loss, reason = "no register has more than 64 bits")]
            _ => Cel::Float(number as f64),
        },
        Value::Float(number) => Cel::Float(number),
        Value::Boolean(state) => Cel::Bool(state),
        Value::Text(text) => Cel::String(String::from(text).into()),
        Value::Bytes(bytes) => Cel::Bytes(Vec::from(bytes).into()),
    }
}

impl Condition {
    /// `field` is where it stands in the rule.
    pub(super) fn parse(field: &str, text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("{field} has {} bytes, more than {LONGEST}", text.len()));
        }
        let parsed = PrattParser::new().max_recursion_depth(DEEPEST).parse(text);
        let parsed = parsed.map_err(|error| format!("{field} {text:?} is no CEL expression: {error}"))?;
        check(&parsed).map_err(|reason| format!("{field} {text:?} {reason}"))?;
        Ok(Self(parsed))
    }

    /// `None`: what it needs is not known now.
    ///
    /// # Errors
    ///
    /// If it can never be told, with the reason.
    pub(super) fn holds(&self, devices: &BTreeMap<String, Facts>) -> Result<Option<bool>, String> {
        let mut context = Context::default();
        for (name, facts) in devices {
            context.add_variable_from_value(name.as_str(), facts.values.clone());
        }
        match Cel::resolve(&self.0, &context) {
            Ok(Cel::Bool(holds)) => Ok(Some(holds)),
            Ok(other) => Err(format!("it is neither true nor false, but {other:?}")),
            Err(ExecutionError::NoSuchKey(name))
                if devices.values().any(|facts| facts.properties.contains(name.as_str())) =>
            {
                Ok(None)
            }
            Err(ExecutionError::NoSuchKey(name)) => Err(format!("none of its devices has a property {name}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// An expression is evaluated by recursion, and while it is, nothing else goes on.
fn check(expression: &IdedExpr) -> Result<(), String> {
    let (mut count, mut rest) = (0, vec![expression]);
    while let Some(part) = rest.pop() {
        count += 1;
        match &part.expr {
            Expr::Comprehension(_) => {
                return Err("has a loop (all, exists, map, filter), which no rule may have".to_owned());
            }
            Expr::Call(call) => rest.extend(call.target.as_deref().into_iter().chain(&call.args)),
            Expr::List(list) => rest.extend(&list.elements),
            Expr::Select(select) => rest.push(&select.operand),
            Expr::Map(map) => rest.extend(map.entries.iter().flat_map(|entry| parts(&entry.expr))),
            Expr::Struct(made) => rest.extend(made.entries.iter().flat_map(|entry| parts(&entry.expr))),
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        }
        if count > MOST_NODES {
            return Err(format!("has more than {MOST_NODES} parts"));
        }
    }
    Ok(())
}

fn parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boiler() -> BTreeMap<String, Facts> {
        let values = [
            ("temperature", Cel::Float(81.5)),
            ("running", Cel::Bool(false)),
            ("level", Cel::Int(3)),
            ("mode", Cel::String("eco".to_owned().into())),
        ];
        let values: HashMap<String, Cel> =
            values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let properties = values.keys().cloned().chain(["pressure".to_owned()]).collect();
        [("boiler".to_owned(), Facts { values, properties })].into()
    }

    fn holds(text: &str) -> Result<Option<bool>, String> {
        Condition::parse("when", text)?.holds(&boiler())
    }

    #[test]
    fn an_expression_is_true_false_or_not_known() {
        for (text, wanted) in [
            ("boiler.temperature > 80", Some(true)),
            ("boiler.temperature > 80.0 && !boiler.running", Some(true)),
            ("boiler.level == 3.0 && boiler[\"mode\"] == \"eco\"", Some(true)),
            ("boiler.temperature - 2.0 > 80.0", Some(false)),
            ("boiler.pressure > 1", None),
            ("boiler.pressure > 1 || boiler.running", None),
            ("has(boiler.pressure) && boiler.pressure > 1", Some(false)),
        ] {
            assert_eq!(holds(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_can_never_be_told_says_why() {
        let long = format!("boiler.level > {}", "1".repeat(LONGEST));
        let many = format!("0{} > 1", "+1".repeat(300));
        let deep = format!("{}1{} == 1", "[".repeat(200), "]".repeat(200));
        for (text, reason) in [
            ("boiler.temprature > 80", "none of its devices has a property temprature"),
            ("kettle.temperature > 80", "Undeclared reference to 'kettle'"),
            ("boiler.temperature", "neither true nor false"),
            ("boiler.mode > 1", "found no matching overload"),
            ("boiler.temperature >", "when \"boiler.temperature >\" is no CEL expression"),
            (long.as_str(), "more than 1024"),
            (many.as_str(), "has more than 256 parts"),
            ("[1, 2].all(x, x > 0)", "has a loop"),
            (deep.as_str(), "is no CEL expression"),
        ] {
            let error = holds(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
