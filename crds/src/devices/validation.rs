//! What the edge would refuse of a Device, as far as its DeviceModel tells; to be said when it is written.
//!
//! The edge has the last word, and says it in the status: of a device nothing is refused here that edgecore would do.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use serde_json::Value as Json;

use super::{
    v1beta1::{
        AccessMode, DeviceModelSpec, DeviceProperty, DeviceSpec, ModelProperty, PropertyType, Protocol,
        overlaid,
    },
    value::{Range, Value, type_name},
};

/// Of what somebody wrote, so many characters are repeated.
const SHOWN: usize = 64;
/// Of a model's properties, so many are named.
const NAMED: usize = 10;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// By the names of properties, which stay when others come and go.
    pub field: String,
    /// With the value, and the way out.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// What is wrong with a device of this model.
pub fn device(spec: &DeviceSpec, model: &DeviceModelSpec) -> Vec<Fault> {
    let model_name = spec.device_model_ref.as_ref().map_or("", |model| model.name.as_str());
    let mut known = HashMap::new();
    for property in &model.properties {
        // Of two the first counts.
        known.entry(property.name.as_str()).or_insert(property);
    }
    let protocol = spec.protocol.as_ref().map_or("", |protocol| protocol.protocol_name.as_str());
    let protocol = if protocol.is_empty() { model.protocol.as_str() } else { protocol };
    let is_modbus = protocol.to_lowercase() == "modbus";
    let mut faults = Vec::new();
    for property in &spec.properties {
        let Some(of_model) = known.get(property.name.as_str()).copied() else {
            faults.push(unknown(model_name, model, &property.name));
            continue;
        };
        let both = Both { model_name, of_model, of_device: property };
        faults.extend(both.desired());
        if is_modbus {
            faults.extend(both.modbus());
        }
    }
    faults
}

/// What is wrong with a model.
pub fn model(spec: &DeviceModelSpec) -> Vec<Fault> {
    let faults = spec.properties.iter().filter_map(|property| {
        let (field, reason) = bounds(property).err()?;
        Some(Fault { field: path(&property.name, field), reason })
    });
    faults.collect()
}

/// What is wrong now, and was not before.
pub fn added(now: Vec<Fault>, before: Vec<Fault>) -> Vec<Fault> {
    let before: HashSet<Fault> = before.into_iter().collect();
    now.into_iter().filter(|fault| !before.contains(fault)).collect()
}

fn path(property: &str, field: &str) -> String {
    format!("spec.properties[name={property:?}]{field}")
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn unknown(model_name: &str, model: &DeviceModelSpec, property: &str) -> Fault {
    let mut known: Vec<&str> = model.properties.iter().take(NAMED).map(|known| known.name.as_str()).collect();
    if model.properties.len() > NAMED {
        known.push("and others");
    }
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let reason = format!(
        "DeviceModel {model_name} has no property {property:?}, it has {known}; name one of these, or add it to the model"
    );
    Fault { field: path(property, ".name"), reason }
}

/// A property, as the device has it and as its model has it.
struct Both<'a> {
    model_name: &'a str,
    of_model: &'a ModelProperty,
    of_device: &'a DeviceProperty,
}

impl Both<'_> {
    fn fault(&self, field: &str, reason: String) -> Fault {
        Fault { field: path(&self.of_device.name, field), reason }
    }

    fn is_writable(&self) -> bool {
        self.of_model.access_mode != Some(AccessMode::ReadOnly)
    }

    fn desired(&self) -> Option<Fault> {
        let value = &self.of_device.desired.as_ref()?.value;
        Some(self.fault(".desired.value", self.check(value).err()?))
    }

    fn check(&self, value: &str) -> Result<(), String> {
        let Self { model_name, of_model, .. } = self;
        if !self.is_writable() {
            return Err(format!(
                "{:?} cannot be set, the property is ReadOnly in DeviceModel {model_name}; leave desired out, or make it ReadWrite there",
                shown(value)
            ));
        }
        let parsed = Value::parse(of_model.kind, value).map_err(|error| {
            format!("{error}; DeviceModel {model_name} takes {} there", form(of_model.kind))
        })?;
        // A bound that is none is told with the model.
        let range = Range::of(of_model).unwrap_or_default();
        range
            .check(&parsed)
            .map_err(|error| format!("{error}; set another value, or the bound in DeviceModel {model_name}"))
    }

    /// As edgecore's driver looks at a visitor.
    fn modbus(&self) -> Vec<Fault> {
        let config = |visitors: &Option<Protocol>| visitors.clone().unwrap_or_default().config_data;
        let visitor = overlaid(config(&self.of_model.visitors), config(&self.of_device.visitors));
        let Some(register) = visitor.get("register") else { return Vec::new() };
        let (has_bits, takes_values) = match register.as_str() {
            Some("CoilRegister" | "Coil") => (true, true),
            Some("DiscreteInputRegister" | "DiscreteInput") => (true, false),
            Some("InputRegister" | "Input") => (false, false),
            Some("HoldingRegister" | "Holding") => (false, true),
            _ => {
                let reason = format!(
                    "{} is none of CoilRegister, DiscreteInputRegister, InputRegister, HoldingRegister",
                    shown(&register.to_string())
                );
                return vec![self.visitor_fault("register", reason)];
            }
        };
        let name = register.as_str().unwrap_or_default();
        let mut faults = Vec::new();
        let limit = match visitor.get("limit") {
            Some(Json::String(text)) => text.trim().parse::<f64>().ok(),
            limit => limit.and_then(Json::as_f64),
        };
        let data_type = visitor.get("dataType").and_then(Json::as_str).map(str::to_lowercase);
        let is_bit = self.of_model.kind == PropertyType::Boolean
            && matches!(data_type.as_deref(), None | Some("bool" | "boolean"));
        if let Some(limit) = limit.filter(|limit| *limit > 1.0)
            && (has_bits || is_bit)
        {
            let what =
                if has_bits { format!("{name} is one bit") } else { "BOOLEAN is one register".to_owned() };
            let reason = format!("{limit} is too many, a {what}; leave limit out");
            faults.push(self.visitor_fault("limit", reason));
        }
        if let Some(desired) = &self.of_device.desired
            && self.is_writable()
            && !takes_values
        {
            let reason = format!(
                "{:?} cannot be written, {name} can only be read; leave desired out, or name CoilRegister or HoldingRegister",
                shown(&desired.value)
            );
            faults.push(self.fault(".desired.value", reason));
        }
        faults
    }

    /// Of a key that the device or its model may have.
    fn visitor_fault(&self, key: &str, reason: String) -> Fault {
        let fault = self.fault(&format!(".visitors.configData.{key}"), reason);
        let visitors = self.of_device.visitors.as_ref();
        if visitors.is_some_and(|visitors| visitors.config_data.contains_key(key)) {
            fault
        } else {
            Fault { field: format!("DeviceModel {}, {}", self.model_name, fault.field), ..fault }
        }
    }
}

/// How a value of a type is written.
fn form(kind: PropertyType) -> &'static str {
    match kind {
        PropertyType::Int => "a whole number",
        PropertyType::Float | PropertyType::Double => "a number",
        PropertyType::String => "a text",
        PropertyType::Boolean => "true or false",
        PropertyType::Bytes => "base64",
        PropertyType::Stream => "nothing",
    }
}

/// The field that is wrong, and why.
fn bounds(property: &ModelProperty) -> Result<(), (&'static str, String)> {
    let ModelProperty { kind, minimum, maximum, .. } = property;
    let is_number = matches!(kind, PropertyType::Int | PropertyType::Float | PropertyType::Double);
    for (field, bound) in [(".minimum", minimum), (".maximum", maximum)] {
        if !is_number && !bound.trim().is_empty() {
            let reason = format!("a {} has no bound, and not {bound:?}; leave it out", type_name(*kind));
            return Err((field, reason));
        }
    }
    let range = Range::of(property).map_err(|reason| ("", format!("{reason}; leave it out")))?;
    match (range.minimum, range.maximum) {
        (Some(least), Some(greatest)) if least > greatest => {
            let reason = format!("{minimum} is more than the maximum {maximum}; raise that, or lower this");
            Err((".minimum", reason))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pumps() -> DeviceModelSpec {
        let model = json!({"protocol": "Modbus", "properties": [
            {"name": "pressure", "type": "FLOAT", "accessMode": "ReadOnly"},
            {"name": "speed", "type": "INT", "minimum": "0", "maximum": "3000"},
            {"name": "running", "type": "BOOLEAN", "accessMode": "ReadWrite"},
            {"name": "valve", "type": "BOOLEAN", "visitors": {"protocolName": "modbus", "configData": {
                "register": "HoldingRegister", "offset": 1, "limit": 2}}},
            {"name": "film", "type": "STREAM"},
        ]});
        serde_json::from_value(model).unwrap()
    }

    /// With one property.
    fn pump(name: &str, desired: Option<&str>, visitor: Option<Json>) -> DeviceSpec {
        let mut property = json!({"name": name});
        if let Some(desired) = desired {
            property["desired"] = json!({"value": desired});
        }
        if let Some(visitor) = visitor {
            property["visitors"] = json!({"protocolName": "modbus", "configData": visitor});
        }
        serde_json::from_value(json!({"deviceModelRef": {"name": "pumps"}, "properties": [property]}))
            .unwrap()
    }

    fn faults(device: &DeviceSpec) -> Vec<String> {
        super::device(device, &pumps()).iter().map(Fault::to_string).collect()
    }

    fn fault(device: &DeviceSpec) -> String {
        let mut faults = faults(device);
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.remove(0)
    }

    #[test]
    fn what_the_edge_would_do_is_no_fault() {
        let register = |register: &str| Some(json!({"register": register, "offset": 1}));
        for device in [
            pump("pressure", None, None),
            pump("pressure", None, register("InputRegister")),
            pump("speed", Some("3000"), register("HoldingRegister")),
            pump("speed", Some(" 21.0 "), None),
            pump("running", Some("on"), register("Coil")),
            // As KubeEdge's example has it; it can be read.
            pump("running", None, register("DiscreteInputRegister")),
            pump("running", None, Some(json!({"register": "Input", "limit": "2", "dataType": "int32"}))),
            pump("speed", None, Some(json!({"register": "Input", "limit": 2}))),
            pump("valve", None, Some(json!({"limit": 1}))),
        ] {
            let faults = faults(&device);
            assert!(faults.is_empty(), "{faults:?}");
        }
        let mut other = pump("running", Some("1"), register("DiscreteInputRegister"));
        other.protocol = Some(Protocol { protocol_name: "opcua".to_owned(), ..Protocol::default() });
        assert!(faults(&other).is_empty(), "it has another driver");
    }

    #[test]
    fn a_fault_names_field_value_and_way_out() {
        for (device, wanted) in [
            (
                pump("noise", None, None),
                r#"spec.properties[name="noise"].name: DeviceModel pumps has no property "noise", it has pressure, speed, running, valve, film; name one of these, or add it to the model"#,
            ),
            (
                pump("speed", Some("fast"), None),
                r#"spec.properties[name="speed"].desired.value: "fast" is no int; DeviceModel pumps takes a whole number there"#,
            ),
            (
                pump("speed", Some("3001"), None),
                r#"spec.properties[name="speed"].desired.value: 3001 is more than the model's maximum 3000; set another value, or the bound in DeviceModel pumps"#,
            ),
            (
                pump("film", Some("x"), None),
                r#"spec.properties[name="film"].desired.value: a STREAM has no values; DeviceModel pumps takes nothing there"#,
            ),
            (
                pump("pressure", Some("1"), None),
                r#"spec.properties[name="pressure"].desired.value: "1" cannot be set, the property is ReadOnly in DeviceModel pumps; leave desired out, or make it ReadWrite there"#,
            ),
            (
                pump("speed", None, Some(json!({"register": "Register"}))),
                r#"spec.properties[name="speed"].visitors.configData.register: "Register" is none of CoilRegister, DiscreteInputRegister, InputRegister, HoldingRegister"#,
            ),
            (
                pump("running", Some("1"), Some(json!({"register": "DiscreteInputRegister"}))),
                r#"spec.properties[name="running"].desired.value: "1" cannot be written, DiscreteInputRegister can only be read; leave desired out, or name CoilRegister or HoldingRegister"#,
            ),
            (
                pump("speed", None, Some(json!({"register": "CoilRegister", "limit": 2}))),
                r#"spec.properties[name="speed"].visitors.configData.limit: 2 is too many, a CoilRegister is one bit; leave limit out"#,
            ),
            (
                pump("valve", None, None),
                r#"DeviceModel pumps, spec.properties[name="valve"].visitors.configData.limit: 2 is too many, a BOOLEAN is one register; leave limit out"#,
            ),
        ] {
            assert_eq!(fault(&device), wanted);
        }
    }

    #[test]
    fn bounds_of_a_model_are_those_of_a_number_and_the_least_first() {
        for (kind, minimum, maximum, wanted) in [
            ("INT", "0", "10", None),
            ("FLOAT", "5", "5", None),
            ("STRING", "", "", None),
            ("INT", "10", "9.5", Some(".minimum: 10 is more than the maximum 9.5")),
            ("DOUBLE", "0", "1e999", Some(r#": the model's maximum "1e999" is no number"#)),
            ("STRING", "", "10", Some(r#".maximum: a string has no bound, and not "10""#)),
        ] {
            let property = json!({"name": "p", "type": kind, "minimum": minimum, "maximum": maximum});
            let spec: DeviceModelSpec = serde_json::from_value(json!({"properties": [property]})).unwrap();
            let fault = model(&spec).pop().map(|fault| fault.to_string());
            let is_so = match (&fault, wanted) {
                (Some(fault), Some(wanted)) => fault.contains(wanted),
                (fault, wanted) => fault.is_none() && wanted.is_none(),
            };
            assert!(is_so, "{fault:?} and not {wanted:?}");
        }
    }

    #[test]
    fn a_fault_that_was_there_is_not_added() {
        let pumps = pumps();
        let mut before = pump("speed", Some("9000"), None);
        before.properties.extend(pump("noise", None, None).properties);
        let mut now = before.clone();
        now.properties.reverse();
        let all = |spec: &DeviceSpec| super::device(spec, &pumps);
        assert!(added(all(&now), all(&before)).is_empty());
        now.properties.extend(pump("pressure", Some("1"), None).properties);
        let added: Vec<String> =
            added(all(&now), all(&before)).into_iter().map(|fault| fault.field).collect();
        assert_eq!(added, [r#"spec.properties[name="pressure"].desired.value"#]);
    }
}
