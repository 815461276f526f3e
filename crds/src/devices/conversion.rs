//! From v1alpha2 to v1beta1 and back, so that what was written in one is read in it as it was written.
//!
//! Each version can say what the other cannot. So the parts of an object are translated as far as that goes, and where translating
//! back would not give the same, the part as it was is kept beside it in an annotation ([`ALPHA`], [`BETA`]). It is taken out again as
//! long as its translation is what is there ([`print`]): whoever changes the object in the other version has said something newer.
//!
//! Cycles have the same numbers in both versions; whether they are milli- or nanoseconds, their size tells.

use serde_json::{Map, Value, json};

use super::{GROUP, v1alpha2::NodeSelector};

/// On an object in v1beta1: its `spec` as v1alpha2 had it, JSON.
pub const ALPHA: &str = "devices.skerry.io/v1alpha2";
/// On an object in v1alpha2: its `spec` and `status` as v1beta1 had them, JSON.
pub const BETA: &str = "devices.skerry.io/v1beta1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1alpha2,
    V1beta1,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    #[error("apiVersion {0:?} is neither devices.kubeedge.io/v1alpha2 nor devices.kubeedge.io/v1beta1")]
    Version(String),
    #[error("kind {0:?} is neither Device nor DeviceModel nor DeviceStatus")]
    Kind(String),
    #[error("the object has no metadata")]
    NoMetadata,
}

impl Version {
    /// # Errors
    /// An `apiVersion` of another group or version.
    pub fn of(api_version: &str) -> Result<Self, ConversionError> {
        match api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/')) {
            Some("v1alpha2") => Ok(Self::V1alpha2),
            Some("v1beta1") => Ok(Self::V1beta1),
            _ => Err(ConversionError::Version(api_version.to_owned())),
        }
    }

    fn api_version(self) -> String {
        let version = match self {
            Self::V1alpha2 => "v1alpha2",
            Self::V1beta1 => "v1beta1",
        };
        format!("{GROUP}/{version}")
    }
}

/// `object` in another version. Of its metadata only annotations are changed, as the API server demands.
///
/// # Errors
/// What is no object of this group.
pub fn convert(mut object: Value, to: Version) -> Result<Value, ConversionError> {
    let from = Version::of(object["apiVersion"].as_str().unwrap_or_default())?;
    if from == to {
        return Ok(object);
    }
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    object["apiVersion"] = to.api_version().into();
    match (kind.as_str(), to) {
        // The same in both.
        ("DeviceStatus", _) => Ok(object),
        ("Device", Version::V1beta1) => parts::<Device>(object, true),
        ("Device", Version::V1alpha2) => parts::<Device>(object, false),
        ("DeviceModel", Version::V1beta1) => parts::<Model>(object, true),
        ("DeviceModel", Version::V1alpha2) => parts::<Model>(object, false),
        _ => Err(ConversionError::Kind(kind)),
    }
}

/// `spec` and `status`, `null` where there is none.
type Parts = (Value, Value);

trait Kind {
    fn to_beta(parts: &Parts) -> Parts;
    fn to_alpha(parts: &Parts) -> Parts;
}

fn parts<K: Kind>(mut object: Value, to_beta: bool) -> Result<Value, ConversionError> {
    let translations: [fn(&Parts) -> Parts; 2] = [K::to_alpha, K::to_beta];
    let (forth, back) = (translations[usize::from(to_beta)], translations[usize::from(!to_beta)]);
    let (left, kept) = if to_beta { (BETA, ALPHA) } else { (ALPHA, BETA) };
    let here = (object["spec"].take(), object["status"].take());
    let before =
        take_annotation(&mut object, left)?.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let mut there = forth(&here);
    // Part by part: a status changes all the time, and says nothing of what the spec was.
    let kept_part = |name: &str, now: &Value| {
        let kept = before.as_ref()?.get(name)?;
        (kept["for"] == print(now)).then(|| (kept["was"].clone(), kept["desired"].clone()))
    };
    if let Some((spec, desired)) = kept_part("spec", &here.0) {
        there.0 = spec;
        if desired != print(&wanted(&here.1)) {
            desire(&mut there.0, &here.1);
        }
    }
    if let Some((status, _)) = kept_part("status", &here.1) {
        there.1 = status;
    }
    let again = back(&there);
    let mut lost = Map::new();
    if again.0 != here.0 {
        let desired = print(&wanted(&there.1));
        lost.insert("spec".to_owned(), json!({"was": here.0, "for": print(&there.0), "desired": desired}));
    }
    if again.1 != here.1 {
        lost.insert("status".to_owned(), json!({"was": here.1, "for": print(&there.1)}));
    }
    for (name, part) in [("spec", there.0), ("status", there.1)] {
        if !part.is_null() {
            object[name] = part;
        } else if let Some(fields) = object.as_object_mut() {
            fields.remove(name);
        }
    }
    if !lost.is_empty() {
        object["metadata"]["annotations"][kept] = Value::Object(lost).to_string().into();
    }
    Ok(object)
}

fn take_annotation(object: &mut Value, name: &str) -> Result<Option<String>, ConversionError> {
    let metadata =
        object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(ConversionError::NoMetadata)?;
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else {
        return Ok(None);
    };
    let taken = annotations.remove(name);
    if annotations.is_empty() && taken.is_some() {
        metadata.remove("annotations");
    }
    Ok(taken.and_then(|taken| taken.as_str().map(str::to_owned)))
}

/// The desired values that a status of v1alpha2 has, by property; that of v1beta1 has none.
fn wanted(status: &Value) -> Value {
    each(&status["twins"])
        .filter_map(|twin| Some(json!([twin["propertyName"], twin.get("desired")?])))
        .collect()
}

/// Has the properties of a spec of v1beta1 desire what a status of v1alpha2 says.
fn desire(spec: &mut Value, status: &Value) {
    for property in spec["properties"].as_array_mut().into_iter().flatten() {
        let twin = each(&status["twins"]).find(|twin| twin["propertyName"] == property["name"]);
        match (twin.and_then(|twin| twin.get("desired")), property.as_object_mut()) {
            (Some(desired), Some(property)) => drop(property.insert("desired".to_owned(), desired.clone())),
            (None, Some(property)) => drop(property.remove("desired")),
            (_, None) => {}
        }
    }
}

/// The same for what the API server takes for the same: the order of fields, and how a number is written, are its own. 16 digits.
fn print(value: &Value) -> String {
    format!("{:016x}", hash(value))
}

/// FNV-1a, which no version of the standard library changes.
fn hash(value: &Value) -> u64 {
    let of = |bytes: &[u8]| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    match value {
        Value::Null => 1,
        Value::Bool(state) => 2 + u64::from(*state),
        Value::Number(number) => of(&number.as_f64().unwrap_or_default().to_bits().to_be_bytes()),
        Value::String(text) => of(text.as_bytes()).wrapping_add(5),
        Value::Array(items) => {
            items.iter().fold(7, |sum, item| of(&[sum, hash(item)].map(u64::to_be_bytes).concat()))
        }
        Value::Object(fields) => fields.iter().fold(11_u64, |sum, (name, value)| {
            sum.wrapping_add(of(&[of(name.as_bytes()), hash(value)].map(u64::to_be_bytes).concat()))
        }),
    }
}

/// Of an object, in the order in which they are written, those that are there.
fn moved(from: &Value, to: &mut Map<String, Value>, fields: &[&str]) {
    for field in fields {
        if let Some(value) = from.get(field) {
            to.insert((*field).to_owned(), value.clone());
        }
    }
}

fn renamed(from: &Value, field: &str, to: &mut Map<String, Value>, name: &str) {
    if let Some(value) = from.get(field) {
        to.insert(name.to_owned(), value.clone());
    }
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The one node that a selector of v1alpha2 names, if it names one.
pub fn selected_node(selector: &Value) -> Option<&str> {
    let [term] = &selector["nodeSelectorTerms"].as_array()?[..] else { return None };
    let [requirement] = &term["matchExpressions"].as_array()?[..] else { return None };
    let [node] = &requirement["values"].as_array()?[..] else { return None };
    let is_name = requirement["key"] == "kubernetes.io/hostname" && requirement["operator"] == "In";
    let more = term.get("matchFields").and_then(Value::as_array).is_some_and(|fields| !fields.is_empty());
    node.as_str().filter(|_| is_name && !more)
}

/// Of a Device in v1beta1 that names no node: where it is to be, as v1alpha2 has it.
pub fn node_selector(device: &Value) -> Option<NodeSelector> {
    let device = convert(device.clone(), Version::V1alpha2).ok()?;
    let selector: NodeSelector = serde_json::from_value(device["spec"].get("nodeSelector")?.clone()).ok()?;
    Some(selector).filter(|selector| !selector.node_selector_terms.is_empty())
}

fn selector_of(node: &str) -> Value {
    json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
    ]}]})
}

struct Device;

/// Protocols that v1alpha2 has fields for.
const PROTOCOLS: [&str; 3] = ["modbus", "opcua", "bluetooth"];

impl Kind for Device {
    fn to_beta((spec, status): &Parts) -> Parts {
        (device_spec_to_beta(spec, status), device_status_to_beta(status))
    }

    fn to_alpha((spec, status): &Parts) -> Parts {
        (device_spec_to_alpha(spec), device_status_to_alpha(spec, status))
    }
}

fn device_spec_to_beta(spec: &Value, status: &Value) -> Value {
    let mut out = Map::new();
    moved(spec, &mut out, &["deviceModelRef"]);
    if let Some(node) = selected_node(&spec["nodeSelector"]) {
        out.insert("nodeName".to_owned(), node.into());
    }
    let protocol = &spec["protocol"];
    if let Some((name, mut config)) = protocol_to_beta(protocol, "customizedProtocol") {
        if let Some(common) = protocol["common"].as_object() {
            config.extend(common.clone());
        }
        out.insert("protocol".to_owned(), json!({"protocolName": name, "configData": config}));
    }
    let desired =
        |name: &Value| each(&status["twins"]).find(|twin| twin["propertyName"] == *name)?.get("desired");
    let mut properties: Vec<Value> = Vec::new();
    for visitor in each(&spec["propertyVisitors"]) {
        let mut property = Map::new();
        renamed(visitor, "propertyName", &mut property, "name");
        moved(visitor, &mut property, &["reportCycle", "collectCycle"]);
        if let Some((name, mut config)) = protocol_to_beta(visitor, "customizedProtocol") {
            if let Some(values) = visitor["customizedValues"].as_object() {
                config.insert("customizedValues".to_owned(), Value::Object(values.clone()));
            }
            property.insert("visitors".to_owned(), json!({"protocolName": name, "configData": config}));
        }
        if let Some(desired) = desired(&visitor["propertyName"]) {
            property.insert("desired".to_owned(), desired.clone());
        }
        properties.push(Value::Object(property));
    }
    if spec.get("propertyVisitors").is_some() {
        out.insert("properties".to_owned(), properties.into());
    }
    Value::Object(out)
}

/// The name, and what is known of it.
fn protocol_to_beta(protocol: &Value, customized: &str) -> Option<(String, Map<String, Value>)> {
    for name in PROTOCOLS {
        if let Some(config) = protocol[name].as_object() {
            return Some((name.to_owned(), config.clone()));
        }
    }
    let customized = protocol[customized].as_object()?;
    let config = customized.get("configData").and_then(Value::as_object).cloned().unwrap_or_default();
    Some((customized.get("protocolName").and_then(Value::as_str).unwrap_or_default().to_owned(), config))
}

/// Fields that are `common` in v1alpha2.
const COMMON: [&str; 9] = [
    "com",
    "tcp",
    "commType",
    "reconnTimeout",
    "reconnRetryTimes",
    "collectTimeout",
    "collectRetryTimes",
    "collectType",
    "customizedValues",
];

/// Where v1alpha2 has what v1beta1 may have beside everything else.
const LINES: [(&str, &[&str]); 2] =
    [("tcp", &["ip", "port"]), ("com", &["serialPort", "baudRate", "dataBits", "parity", "stopBits"])];

/// Puts these fields into an object of their own, unless there is one of that name.
fn nest(from: &mut Map<String, Value>, to: &mut Map<String, Value>, name: &str, fields: &[&str]) {
    let is_there = from.get(fields[0]).is_some();
    if to.contains_key(name) || !is_there {
        return;
    }
    let nested: Map<String, Value> =
        fields.iter().filter_map(|field| Some(((*field).to_owned(), from.remove(*field)?))).collect();
    to.insert(name.to_owned(), nested.into());
}

fn device_spec_to_alpha(spec: &Value) -> Value {
    let mut out = Map::new();
    moved(spec, &mut out, &["deviceModelRef"]);
    if let Some(node) = spec["nodeName"].as_str().filter(|node| !node.is_empty()) {
        out.insert("nodeSelector".to_owned(), selector_of(node));
    }
    if let Some(protocol) = spec.get("protocol") {
        let mut config = protocol["configData"].as_object().cloned().unwrap_or_default();
        let mut common = Map::new();
        for field in COMMON {
            if let Some(value) = config.remove(field) {
                common.insert(field.to_owned(), value);
            }
        }
        let name = protocol["protocolName"].as_str().unwrap_or_default();
        if name == "modbus" {
            for (nested, fields) in LINES {
                nest(&mut config, &mut common, nested, fields);
            }
        }
        let mut alpha = protocol_to_alpha(name, config);
        if !common.is_empty() {
            alpha.insert("common".to_owned(), common.into());
        }
        out.insert("protocol".to_owned(), alpha.into());
    }
    if let Some(properties) = spec["properties"].as_array() {
        let visitors = properties.iter().map(|property| {
            let mut visitor = Map::new();
            renamed(property, "name", &mut visitor, "propertyName");
            moved(property, &mut visitor, &["reportCycle", "collectCycle"]);
            if let Some(visitors) = property.get("visitors") {
                let mut config = visitors["configData"].as_object().cloned().unwrap_or_default();
                if let Some(values) = config.remove("customizedValues") {
                    visitor.insert("customizedValues".to_owned(), values);
                }
                visitor
                    .extend(protocol_to_alpha(visitors["protocolName"].as_str().unwrap_or_default(), config));
            }
            Value::Object(visitor)
        });
        out.insert("propertyVisitors".to_owned(), visitors.collect());
    }
    Value::Object(out)
}

fn protocol_to_alpha(name: &str, config: Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    if PROTOCOLS.contains(&name) {
        out.insert(name.to_owned(), config.into());
    } else {
        out.insert("customizedProtocol".to_owned(), json!({"protocolName": name, "configData": config}));
    }
    out
}

fn device_status_to_beta(status: &Value) -> Value {
    let twins = each(&status["twins"]).filter(|twin| twin.get("reported").is_some()).map(|twin| {
        let mut out = Map::new();
        moved(twin, &mut out, &["propertyName", "reported"]);
        Value::Object(out)
    });
    let twins: Vec<Value> = twins.collect();
    if twins.is_empty() { Value::Null } else { json!({"twins": twins}) }
}

/// Desired values are in the status here. What the edge has seen of them ([`BETA`]) has no place.
fn device_status_to_alpha(spec: &Value, status: &Value) -> Value {
    let desired_of =
        |name: &Value| each(&spec["properties"]).find(|one| one["name"] == *name)?.get("desired");
    let mut twins = Vec::new();
    for twin in each(&status["twins"]) {
        let mut out = Map::new();
        moved(twin, &mut out, &["propertyName", "reported"]);
        if let Some(desired) = desired_of(&twin["propertyName"]) {
            out.insert("desired".to_owned(), desired.clone());
        }
        twins.push(Value::Object(out));
    }
    for property in each(&spec["properties"]) {
        let is_there = each(&status["twins"]).any(|twin| twin["propertyName"] == property["name"]);
        if let Some(desired) = property.get("desired").filter(|_| !is_there) {
            twins.push(json!({"propertyName": property["name"], "desired": desired}));
        }
    }
    if twins.is_empty() { Value::Null } else { json!({"twins": twins}) }
}

struct Model;

/// As v1alpha2 and v1beta1 name them.
const TYPES: [(&str, &str); 6] = [
    ("int", "INT"),
    ("float", "FLOAT"),
    ("double", "DOUBLE"),
    ("string", "STRING"),
    ("boolean", "BOOLEAN"),
    ("bytes", "BYTES"),
];

impl Kind for Model {
    fn to_beta((spec, status): &Parts) -> Parts {
        let mut out = Map::new();
        if spec.get("properties").is_some() {
            let properties = each(&spec["properties"]).map(|property| {
                let mut out = Map::new();
                moved(property, &mut out, &["name", "description"]);
                for (alpha, beta) in TYPES {
                    let Some(kind) = property["type"].get(alpha).filter(|kind| kind.is_object()) else {
                        continue;
                    };
                    out.insert("type".to_owned(), beta.into());
                    moved(kind, &mut out, &["accessMode", "unit"]);
                    for bound in ["minimum", "maximum"] {
                        if let Some(number) = kind.get(bound).filter(|number| number.is_number()) {
                            out.insert(bound.to_owned(), number.to_string().into());
                        }
                    }
                    break;
                }
                Value::Object(out)
            });
            out.insert("properties".to_owned(), properties.collect());
        }
        moved(spec, &mut out, &["protocol"]);
        (Value::Object(out), status.clone())
    }

    fn to_alpha((spec, status): &Parts) -> Parts {
        let mut out = Map::new();
        if spec.get("properties").is_some() {
            let properties = each(&spec["properties"]).map(|property| {
                let mut out = Map::new();
                moved(property, &mut out, &["name", "description"]);
                let of = TYPES.iter().find(|(_, beta)| property["type"] == **beta);
                if let Some((alpha, _)) = of {
                    let mut kind = Map::new();
                    moved(property, &mut kind, &["accessMode", "unit"]);
                    for bound in ["minimum", "maximum"] {
                        let number =
                            property[bound].as_str().and_then(|text| serde_json::from_str(text).ok());
                        if let Some(number) = number.filter(Value::is_number) {
                            kind.insert(bound.to_owned(), number);
                        }
                    }
                    out.insert("type".to_owned(), json!({*alpha: kind}));
                }
                Value::Object(out)
            });
            out.insert("properties".to_owned(), properties.collect());
        }
        moved(spec, &mut out, &["protocol"]);
        (Value::Object(out), status.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "callers make them for it")]
    fn object(version: &str, kind: &str, spec: Value, status: Option<Value>) -> Value {
        let mut object = json!({
            "apiVersion": format!("{GROUP}/{version}"), "kind": kind, "metadata": {"name": "one"}, "spec": spec,
        });
        if let Some(status) = status {
            object["status"] = status;
        }
        object
    }

    fn there_and_back(object: &Value) -> Value {
        let from = Version::of(object["apiVersion"].as_str().unwrap()).unwrap();
        let to = if from == Version::V1alpha2 { Version::V1beta1 } else { Version::V1alpha2 };
        convert(convert(object.clone(), to).unwrap(), from).unwrap()
    }

    fn seeds() -> [Value; 2] {
        [
            object(
                "v1alpha2",
                "DeviceModel",
                json!({"properties": [
                    {"name": "temperature", "description": "temperature in Celsius",
                        "type": {"int": {"accessMode": "ReadOnly", "maximum": 100, "minimum": -50}}},
                    {"name": "temperature-enable", "description": "enable data collection",
                        "type": {"boolean": {"accessMode": "ReadWrite"}}},
                ]}),
                None,
            ),
            object(
                "v1alpha2",
                "Device",
                json!({
                    "deviceModelRef": {"name": "temperature-sensor"},
                    "protocol": {"modbus": {"slaveID": 1}},
                    "nodeSelector": selector_of("edge-node-1"),
                    "propertyVisitors": [
                        {"propertyName": "temperature",
                            "modbus": {"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.0}},
                        {"propertyName": "temperature-enable",
                            "modbus": {"register": "DiscreteInputRegister", "offset": 3, "limit": 1}},
                    ],
                }),
                None,
            ),
        ]
    }

    #[test]
    fn the_seeds_manifests_become_what_v1beta1_means_by_it() {
        let [model, device] = seeds();
        let beta = convert(model.clone(), Version::V1beta1).unwrap();
        assert_eq!(beta["apiVersion"], "devices.kubeedge.io/v1beta1");
        assert_eq!(
            beta["spec"]["properties"][0],
            json!({"name": "temperature", "description": "temperature in Celsius", "type": "INT",
                "accessMode": "ReadOnly", "minimum": "-50", "maximum": "100"})
        );
        assert_eq!(beta["metadata"], json!({"name": "one"}), "nothing is lost");
        let beta = convert(device.clone(), Version::V1beta1).unwrap();
        assert_eq!(
            beta["spec"],
            json!({
                "deviceModelRef": {"name": "temperature-sensor"},
                "nodeName": "edge-node-1",
                "protocol": {"protocolName": "modbus", "configData": {"slaveID": 1}},
                "properties": [
                    {"name": "temperature", "visitors": {"protocolName": "modbus",
                        "configData": {"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.0}}},
                    {"name": "temperature-enable", "visitors": {"protocolName": "modbus",
                        "configData": {"register": "DiscreteInputRegister", "offset": 3, "limit": 1}}},
                ],
            })
        );
        assert_eq!(beta["metadata"], json!({"name": "one"}), "nothing is lost");
        for object in [model, device] {
            assert_eq!(there_and_back(&object), object);
        }
    }

    #[test]
    fn what_the_other_version_cannot_say_is_kept_until_somebody_says_something_else() {
        let [_, mut device] = seeds();
        device["spec"]["nodeSelector"] = json!({"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "site", "operator": "In", "values": ["north", "south"]}]}]});
        device["spec"]["data"] = json!({"dataTopic": "somewhere"});
        assert_eq!(there_and_back(&device), device);
        let selector = node_selector(&convert(device.clone(), Version::V1beta1).unwrap()).unwrap();
        assert_eq!(selector.node_selector_terms[0].match_expressions[0].values, ["north", "south"]);
        let mut beta = convert(device.clone(), Version::V1beta1).unwrap();
        assert!(beta["metadata"]["annotations"][ALPHA].is_string());
        // Reports come and go.
        let reported = json!({"twins": [{"propertyName": "temperature", "reported": {"value": "1"},
            "observedDesired": {"value": ""}}], "state": "online"});
        beta["status"] = reported.clone();
        let alpha = convert(beta.clone(), Version::V1alpha2).unwrap();
        assert_eq!(alpha["spec"], device["spec"]);
        assert_eq!(alpha["status"]["twins"][0]["reported"]["value"], "1");
        assert_eq!(convert(alpha, Version::V1beta1).unwrap(), beta);
        beta["spec"]["nodeName"] = "edge-2".into();
        let alpha = convert(beta, Version::V1alpha2).unwrap();
        assert_eq!(alpha["spec"]["nodeSelector"], selector_of("edge-2"));
        assert!(alpha["metadata"]["annotations"].get(ALPHA).is_none());
    }

    #[test]
    fn an_address_is_where_v1alpha2_has_it() {
        let config = json!({"ip": "192.0.2.7", "port": 502, "slaveID": 1});
        let spec = json!({"deviceModelRef": {"name": "m"}, "nodeName": "n",
            "protocol": {"protocolName": "modbus", "configData": config}, "properties": []});
        let device = object("v1beta1", "Device", spec, None);
        assert_eq!(there_and_back(&device), device);
        let mut alpha = convert(device, Version::V1alpha2).unwrap();
        let protocol = json!({"modbus": {"slaveID": 1}, "common": {"tcp": {"ip": "192.0.2.7", "port": 502}}});
        assert_eq!(alpha["spec"]["protocol"], protocol);
        // And is still there when somebody changes something else.
        alpha["spec"]["nodeSelector"] = selector_of("other");
        let beta = convert(alpha, Version::V1beta1).unwrap();
        let config = json!({"slaveID": 1, "tcp": {"ip": "192.0.2.7", "port": 502}});
        assert_eq!(beta["spec"]["protocol"]["configData"], config);
    }

    #[test]
    fn desired_values_change_places() {
        let [_, mut device] = seeds();
        device["status"] =
            json!({"twins": [{"propertyName": "temperature-enable", "desired": {"value": "true"}}]});
        let beta = convert(device.clone(), Version::V1beta1).unwrap();
        assert_eq!(beta["spec"]["properties"][1]["desired"], json!({"value": "true"}));
        assert_eq!(there_and_back(&device), device);
    }

    #[test]
    fn what_is_none_of_it_is_an_error() {
        let error = |object: Value| convert(object, Version::V1beta1).unwrap_err();
        assert!(matches!(error(json!({"apiVersion": "v1"})), ConversionError::Version(_)));
        assert!(matches!(
            error(json!({"apiVersion": "devices.kubeedge.io/v1alpha2", "kind": "Rule"})),
            ConversionError::Kind(_)
        ));
        let bare = json!({"apiVersion": "devices.kubeedge.io/v1alpha2", "kind": "Device"});
        assert_eq!(error(bare), ConversionError::NoMetadata);
    }

    fn text() -> impl Strategy<Value = Value> {
        prop_oneof![Just(json!("")), "[a-z]{1,6}".prop_map(Value::from)]
    }

    fn free() -> impl Strategy<Value = Value> {
        prop::collection::btree_map(
            "[a-z]{1,4}|com|tcp|slaveID|customizedValues",
            prop_oneof![
                text(),
                any::<i32>().prop_map(Value::from),
                any::<bool>().prop_map(Value::from),
                Just(json!({"ip": "10.0.0.1"})),
                Just(json!({})),
            ],
            0..4,
        )
        .prop_map(|map| json!(map))
    }

    /// Some of these fields.
    fn some(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
        let fields: Vec<BoxedStrategy<Option<(String, Value)>>> = fields
            .into_iter()
            .map(|(name, value)| {
                prop::option::of(value.prop_map(move |value| (name.to_owned(), value))).boxed()
            })
            .collect();
        fields.prop_map(|fields| fields.into_iter().flatten().collect::<Map<_, _>>().into()).boxed()
    }

    fn list(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
        prop::collection::vec(item, 0..3).prop_map(Value::from).boxed()
    }

    fn value() -> BoxedStrategy<Value> {
        some(vec![("value", text().boxed()), ("metadata", free().boxed())])
    }

    fn number() -> BoxedStrategy<Value> {
        prop_oneof![any::<i64>().prop_map(Value::from), (-1e6..1e6).prop_map(Value::from)].boxed()
    }

    fn customized() -> BoxedStrategy<Value> {
        some(vec![("protocolName", text().boxed()), ("configData", free().boxed())])
    }

    fn alpha_device() -> BoxedStrategy<Value> {
        let selector = prop_oneof![
            "[a-z]{1,4}".prop_map(|node| selector_of(&node)),
            Just(json!({})),
            Just(json!({"nodeSelectorTerms": [{"matchFields": []}, {}]})),
        ];
        let visitor = some(vec![
            ("propertyName", text().boxed()),
            ("reportCycle", any::<i64>().prop_map(Value::from).boxed()),
            ("customizedValues", free().boxed()),
            ("modbus", free().boxed()),
            ("opcua", free().boxed()),
            ("customizedProtocol", customized()),
        ]);
        let spec = some(vec![
            ("deviceModelRef", Just(json!({"name": "m"})).boxed()),
            (
                "protocol",
                some(vec![
                    ("modbus", free().boxed()),
                    ("customizedProtocol", customized()),
                    ("common", free().boxed()),
                ]),
            ),
            ("propertyVisitors", list(visitor)),
            ("data", free().boxed()),
            ("nodeSelector", selector.boxed()),
        ]);
        let twin = some(vec![("propertyName", text().boxed()), ("desired", value()), ("reported", value())]);
        let status = prop::option::of(some(vec![("twins", list(twin))]));
        (spec, status).prop_map(|(spec, status)| object("v1alpha2", "Device", spec, status)).boxed()
    }

    fn beta_device() -> BoxedStrategy<Value> {
        let property = some(vec![
            ("name", text().boxed()),
            ("desired", value()),
            ("visitors", customized()),
            ("reportCycle", any::<i64>().prop_map(Value::from).boxed()),
            ("reportToCloud", any::<bool>().prop_map(Value::from).boxed()),
        ]);
        let protocol = (prop_oneof![Just("modbus"), Just("bluetooth"), Just("mine")], free())
            .prop_map(|(name, config)| json!({"protocolName": name, "configData": config}));
        let spec = some(vec![
            ("deviceModelRef", Just(json!({"name": "m"})).boxed()),
            ("nodeName", text().boxed()),
            ("protocol", protocol.boxed()),
            ("properties", list(property)),
            ("methods", list(some(vec![("name", text().boxed())]))),
        ]);
        let twin =
            some(vec![("propertyName", text().boxed()), ("reported", value()), ("observedDesired", value())]);
        let status = prop::option::of(some(vec![
            ("twins", list(twin)),
            ("state", text().boxed()),
            ("lastOnlineTime", text().boxed()),
        ]));
        (spec, status).prop_map(|(spec, status)| object("v1beta1", "Device", spec, status)).boxed()
    }

    fn alpha_model() -> BoxedStrategy<Value> {
        let bounds = || {
            some(vec![
                ("accessMode", Just(json!("ReadOnly")).boxed()),
                ("defaultValue", number()),
                ("minimum", number()),
                ("maximum", number()),
                ("unit", text().boxed()),
            ])
        };
        let kind = some(vec![("int", bounds()), ("double", bounds()), ("string", bounds())]);
        let property = some(vec![("name", text().boxed()), ("description", text().boxed()), ("type", kind)]);
        some(vec![("properties", list(property)), ("protocol", text().boxed())])
            .prop_map(|spec| object("v1alpha2", "DeviceModel", spec, None))
            .boxed()
    }

    fn beta_model() -> BoxedStrategy<Value> {
        let property = some(vec![
            ("name", text().boxed()),
            ("type", prop_oneof![Just(json!("INT")), Just(json!("STREAM")), Just(json!("FLOAT"))].boxed()),
            ("minimum", prop_oneof![text(), Just(json!("1.50")), Just(json!("-3"))].boxed()),
            ("maximum", text().boxed()),
            ("visitors", customized()),
        ]);
        some(vec![
            ("properties", list(property)),
            ("protocol", text().boxed()),
            ("protocolConfigData", free().boxed()),
        ])
        .prop_map(|spec| object("v1beta1", "DeviceModel", spec, None))
        .boxed()
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same(
            object in prop_oneof![alpha_device(), beta_device(), alpha_model(), beta_model()],
        ) {
            prop_assert_eq!(there_and_back(&object), object);
        }

        #[test]
        fn so_it_is_twice(object in prop_oneof![alpha_device(), beta_device()]) {
            let once = convert(object.clone(), Version::V1beta1).unwrap();
            let twice = convert(convert(once.clone(), Version::V1alpha2).unwrap(), Version::V1beta1).unwrap();
            prop_assert_eq!(once, twice);
        }
    }
}
