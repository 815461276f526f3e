//! A device as it is to be driven: what its Device says, over what its DeviceModel says.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use crds::devices::keys::SPEC_TIME_ANNOTATION;
use crds::devices::v1beta1::{
    self, AccessMode, AggregationFunction, DeviceMethod, DeviceModelSpec, DeviceProperty, ModelProperty,
    PropertyType, Protocol, PushMethod, overlaid,
};
use jiff::Timestamp;
use proto::{Object, ResourceKey};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{gathered::Aggregation, push::Target, twin::UnixMs, value::Range};

/// As KubeEdge's mappers have it.
const USUAL_CYCLE: Duration = Duration::from_secs(1);
/// Nobody reads more often; a mistake would take the whole bus.
const SHORTEST_CYCLE: Duration = Duration::from_millis(10);
/// More milliseconds than this are nanoseconds: KubeEdge has had these, and its examples still have.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// Far more than any device has, and a status with all of them still fits a report.
const MAX_PROPERTIES: usize = 2000;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct DeviceSpec {
    pub(super) key: ResourceKey,
    pub(super) uid: Box<str>,
    /// When somebody wrote to the Device last, but for its status.
    pub(super) changed_at: Option<UnixMs>,
    /// The name of its DeviceModel.
    pub(super) model: Box<str>,
    /// In lower case.
    pub(super) protocol: Box<str>,
    pub(super) connection: Map<String, Json>,
    pub(super) properties: Vec<Property>,
    /// For its mapper.
    pub(super) methods: Vec<DeviceMethod>,
    /// Properties that cannot be driven, and why.
    pub(super) refused: Vec<(Box<str>, String)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Property {
    pub(super) name: Box<str>,
    pub(super) kind: PropertyType,
    pub(super) writable: bool,
    pub(super) range: Range,
    pub(super) collect: Duration,
    pub(super) report: Duration,
    pub(super) to_cloud: bool,
    pub(super) deadband: Option<f64>,
    pub(super) aggregation: Option<Aggregation>,
    /// Where its readings go as well.
    pub(super) push: Option<Target>,
    /// Where its mapper puts them: what of `pushMethod` edgecore does not do itself.
    pub(super) mapper_push: Option<Box<PushMethod>>,
    /// As it is written; not checked.
    pub(super) desired: Option<Box<str>>,
    pub(super) visitor: Map<String, Json>,
}

impl DeviceSpec {
    /// Without what its driver has taken already: a map takes most of a kilobyte, and each property has one.
    #[must_use]
    pub(super) fn taken(mut self) -> Self {
        self.connection = Map::new();
        for property in &mut self.properties {
            property.visitor = Map::new();
        }
        self
    }
}

/// Why a device cannot be driven at all; told in its status.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpecError {
    #[error("{kind} is malformed")]
    Parse {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("spec.deviceModelRef.name is missing: name the DeviceModel that the device is of")]
    NoModel,
    #[error("DeviceModel {name} does not exist in namespace {namespace}")]
    ModelMissing { namespace: String, name: String },
    #[error("spec.protocol.protocolName is missing, and DeviceModel {model} has no spec.protocol either")]
    NoProtocol { model: String },
    #[error("the device has {count} properties, more than {MAX_PROPERTIES}")]
    TooManyProperties { count: usize },
}

#[derive(Deserialize)]
struct Stored<Spec> {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A Device of which no more is known than it says itself.
pub(super) struct RawDevice {
    key: ResourceKey,
    uid: Box<str>,
    changed_at: Option<UnixMs>,
    spec: v1beta1::DeviceSpec,
}

impl RawDevice {
    pub(super) fn parse(device: &Object) -> Result<Self, SpecError> {
        let Stored { metadata, spec } = parse("Device", device)?;
        let changed_at = metadata.annotations.get(SPEC_TIME_ANNOTATION).and_then(|time| time.parse().ok());
        let changed_at = changed_at.and_then(|time: Timestamp| UnixMs::try_from(time.as_millisecond()).ok());
        Ok(Self { key: device.key.clone(), uid: metadata.uid, changed_at, spec })
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// In the device's namespace.
    pub(super) fn model(&self) -> Option<&str> {
        self.spec.device_model_ref.as_ref().map(|model| model.name.as_str()).filter(|name| !name.is_empty())
    }

    pub(super) fn with_model(self, model: Option<&Object>) -> Result<DeviceSpec, SpecError> {
        let name = self.model().ok_or(SpecError::NoModel)?.to_owned();
        let Self { key, uid, changed_at, spec } = self;
        let model = model.ok_or_else(|| SpecError::ModelMissing {
            namespace: key.namespace().to_owned(),
            name: name.clone(),
        })?;
        let Stored::<DeviceModelSpec> { spec: model, .. } = parse("DeviceModel", model)?;
        let Protocol { protocol_name, config_data } = spec.protocol.unwrap_or_default();
        let protocol = if protocol_name.is_empty() { model.protocol } else { protocol_name };
        if protocol.is_empty() {
            return Err(SpecError::NoProtocol { model: name });
        }
        let count = spec.properties.len().max(model.properties.len());
        if count > MAX_PROPERTIES {
            return Err(SpecError::TooManyProperties { count });
        }
        let (properties, refused) = properties(&name, model.properties, spec.properties);
        Ok(DeviceSpec {
            key,
            uid,
            changed_at,
            model: name.into(),
            protocol: protocol.to_lowercase().into(),
            connection: overlaid(model.protocol_config_data, config_data),
            properties,
            methods: spec.methods,
            refused,
        })
    }
}

fn parse<'a, Spec: Deserialize<'a>>(
    kind: &'static str,
    object: &'a Object,
) -> Result<Stored<Spec>, SpecError> {
    serde_json::from_slice(&object.bytes).map_err(|source| SpecError::Parse { kind, source })
}

type Refused = Vec<(Box<str>, String)>;

/// Those of the device, and those of the model that it says nothing of and that can be driven without.
fn properties(
    model_name: &str,
    of_model: Vec<ModelProperty>,
    of_device: Vec<DeviceProperty>,
) -> (Vec<Property>, Refused) {
    let mut refused = Refused::new();
    let mut order = Vec::new();
    let mut known: HashMap<String, ModelProperty> = HashMap::new();
    for property in of_model {
        if known.contains_key(&property.name) {
            refused.push((
                property.name.as_str().into(),
                format!("DeviceModel {model_name} has the property twice; its first one counts"),
            ));
            continue;
        }
        order.push(property.name.clone());
        known.insert(property.name.clone(), property);
    }
    let mut properties = Vec::with_capacity(order.len());
    let mut named = HashSet::new();
    for property in of_device {
        if !named.insert(property.name.clone()) {
            let reason = "spec.properties has the property twice; its first one counts".to_owned();
            refused.push((property.name.into(), reason));
            continue;
        }
        let missing = || format!("DeviceModel {model_name} has no property of this name");
        match known.get(&property.name).ok_or_else(missing).and_then(|model| combined(model, &property)) {
            Ok(property) => properties.push(property),
            Err(reason) => refused.push((property.name.into(), reason)),
        }
    }
    for name in order.into_iter().filter(|name| !named.contains(name)) {
        if let Some(model) = known.get(&name).filter(|model| model.visitors.is_some()) {
            match combined(model, &DeviceProperty { name, ..DeviceProperty::default() }) {
                Ok(property) => properties.push(property),
                Err(reason) => refused.push((model.name.as_str().into(), reason)),
            }
        }
    }
    (properties, refused)
}

fn combined(model: &ModelProperty, device: &DeviceProperty) -> Result<Property, String> {
    let visitor = |visitors: &Option<Protocol>| visitors.clone().unwrap_or_default().config_data;
    Ok(Property {
        name: model.name.as_str().into(),
        kind: model.kind,
        writable: model.access_mode != Some(AccessMode::ReadOnly),
        range: Range::of(model)?,
        collect: cycle("collectCycle", device.collect_cycle)?,
        report: cycle("reportCycle", device.report_cycle)?,
        to_cloud: device.report_to_cloud.unwrap_or(true),
        deadband: deadband(model, device)?,
        aggregation: aggregation(model, device)?,
        push: device.push_method.as_ref().map(Target::parse).transpose()?.flatten(),
        mapper_push: device.push_method.as_ref().and_then(mapper_push),
        desired: device.desired.as_ref().map(|desired| desired.value.as_str().into()),
        visitor: overlaid(visitor(&model.visitors), visitor(&device.visitors)),
    })
}

fn mapper_push(method: &PushMethod) -> Option<Box<PushMethod>> {
    let rest = PushMethod { http: None, mqtt: None, ..method.clone() };
    (rest != PushMethod::default()).then(|| Box::new(rest))
}

/// What is set is compared with what is reported, which has to be what the device says then.
fn only_read(field: &str, model: &ModelProperty) -> Result<(), String> {
    if model.access_mode == Some(AccessMode::ReadOnly) {
        return Ok(());
    }
    Err(format!("{field} is for properties alone that the model has ReadOnly"))
}

fn deadband(model: &ModelProperty, device: &DeviceProperty) -> Result<Option<f64>, String> {
    let Some(deadband) = device.deadband else { return Ok(None) };
    only_read("deadband", model)?;
    let is_one = deadband.is_finite() && deadband >= 0.0;
    if is_one { Ok(Some(deadband)) } else { Err(format!("deadband {deadband} is no distance")) }
}

fn aggregation(model: &ModelProperty, device: &DeviceProperty) -> Result<Option<Aggregation>, String> {
    let Some(v1beta1::Aggregation { function, window }) = &device.aggregation else { return Ok(None) };
    only_read("aggregation", model)?;
    let is_number = matches!(model.kind, PropertyType::Int | PropertyType::Float | PropertyType::Double);
    if !is_number
        && matches!(function, AggregationFunction::Mean | AggregationFunction::Min | AggregationFunction::Max)
    {
        return Err(format!("aggregation: of what is no number there is no {function:?}").to_lowercase());
    }
    Ok(Some(Aggregation { function: *function, window: cycle("aggregation.window", Some(*window))? }))
}

fn cycle(field: &str, cycle: Option<i64>) -> Result<Duration, String> {
    let cycle = match cycle {
        None | Some(0) => return Ok(USUAL_CYCLE),
        Some(cycle) => cycle,
    };
    let number = u64::try_from(cycle).map_err(|_| format!("{field} {cycle} is less than nothing"))?;
    let cycle = if cycle > DAY_MS { Duration::from_nanos(number) } else { Duration::from_millis(number) };
    Ok(cycle.max(SHORTEST_CYCLE))
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use crds::devices::keys::{DEVICE, MODEL};
    use serde_json::json;

    use super::*;

    pub(in super::super) fn object(kind: &str, name: &str, spec: &Json) -> Object {
        let key = ResourceKey::new(kind, "a", name).unwrap();
        let object = json!({"metadata": {"name": name, "namespace": "a", "uid": "u"}, "spec": spec});
        Object::new(key, 1, Bytes::from(object.to_string()))
    }

    pub(in super::super) fn spec(device: &Json, model: &Json) -> Result<DeviceSpec, SpecError> {
        RawDevice::parse(&object(DEVICE, "pump", device))?.with_model(Some(&object(MODEL, "pumps", model)))
    }

    #[test]
    fn a_device_says_more_than_its_model() {
        let model = json!({
            "protocol": "Modbus",
            "protocolConfigData": {"slaveID": 1, "com": {"baudRate": 9600, "parity": "even"}},
            "properties": [
                {"name": "speed", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "3000",
                    "visitors": {"protocolName": "modbus", "configData": {"register": "HoldingRegister", "offset": 1}}},
                {"name": "heat", "type": "FLOAT", "accessMode": "ReadOnly",
                    "visitors": {"protocolName": "modbus", "configData": {"register": "InputRegister", "offset": 2}}},
                {"name": "unused", "type": "INT"},
            ],
        });
        let device = json!({
            "deviceModelRef": {"name": "pumps"},
            "protocol": {"protocolName": "", "configData": {"slaveID": 7, "com": {"baudRate": 19200}}},
            "properties": [
                {"name": "speed", "collectCycle": 500, "reportCycle": 10_000_000_000_i64, "desired": {"value": "900"},
                    "visitors": {"protocolName": "modbus", "configData": {"offset": 4}}},
            ],
        });
        let spec = spec(&device, &model).unwrap();
        assert_eq!(&*spec.protocol, "modbus");
        assert_eq!(
            Json::Object(spec.connection),
            json!({"slaveID": 7, "com": {"baudRate": 19200, "parity": "even"}})
        );
        let [speed, heat] = &spec.properties[..] else { panic!("{:?}", spec.properties) };
        assert_eq!((speed.collect, speed.report), (Duration::from_millis(500), Duration::from_secs(10)));
        assert_eq!(speed.desired.as_deref(), Some("900"));
        assert_eq!(speed.range, Range { minimum: Some(0.0), maximum: Some(3000.0) });
        assert_eq!(Json::Object(speed.visitor.clone()), json!({"register": "HoldingRegister", "offset": 4}));
        assert_eq!((speed.deadband, speed.aggregation), (None, None));
        assert!(speed.writable && speed.to_cloud && !heat.writable && heat.to_cloud);
        assert!(spec.refused.is_empty());
    }

    #[test]
    fn readings_may_become_fewer() {
        let model = json!({"protocol": "modbus", "properties": [
            {"name": "heat", "type": "FLOAT", "accessMode": "ReadOnly"},
            {"name": "name", "type": "STRING", "accessMode": "ReadOnly"},
            {"name": "speed", "type": "INT"},
        ]});
        let device = json!({"deviceModelRef": {"name": "pumps"}, "properties": [
            {"name": "heat", "deadband": 0.5, "aggregation": {"function": "mean", "window": 60000}},
            {"name": "name", "aggregation": {"function": "max", "window": 1000}},
            {"name": "speed", "deadband": 1},
        ]});
        let spec = spec(&device, &model).unwrap();
        let [heat] = &spec.properties[..] else { panic!("{:?}", spec.properties) };
        assert_eq!(heat.deadband, Some(0.5));
        assert_eq!(heat.aggregation.map(|one| one.window), Some(Duration::from_mins(1)));
        let refused: Vec<&str> = spec.refused.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(
            refused,
            [
                "aggregation: of what is no number there is no max",
                "deadband is for properties alone that the model has ReadOnly",
            ]
        );
    }

    #[test]
    fn what_cannot_be_driven_says_why() {
        let model = json!({"protocol": "modbus", "properties": [
            {"name": "speed", "type": "INT", "maximum": "fast"},
            {"name": "heat", "type": "FLOAT"},
            {"name": "heat", "type": "INT"},
        ]});
        let device = json!({"deviceModelRef": {"name": "pumps"}, "properties": [
            {"name": "speed"}, {"name": "heat"}, {"name": "heat"}, {"name": "noise"},
        ]});
        let refused: Vec<String> = spec(&device, &model)
            .unwrap()
            .refused
            .into_iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        assert_eq!(
            refused,
            [
                "heat: DeviceModel pumps has the property twice; its first one counts",
                r#"speed: the model's maximum "fast" is no number"#,
                "heat: spec.properties has the property twice; its first one counts",
                "noise: DeviceModel pumps has no property of this name",
            ]
        );
        let nameless = json!({"properties": []});
        assert!(matches!(spec(&nameless, &model), Err(SpecError::NoModel)));
        let device = json!({"deviceModelRef": {"name": "pumps"}});
        assert!(matches!(spec(&device, &json!({})), Err(SpecError::NoProtocol { .. })));
        let alone = RawDevice::parse(&object(DEVICE, "pump", &device)).unwrap().with_model(None);
        assert_eq!(alone.unwrap_err().to_string(), "DeviceModel pumps does not exist in namespace a");
    }
}
