//! Device and DeviceModel, v1beta1.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub mod push;

pub use push::PushMethod;

/// A thing at an edge site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceSpec {
    /// The model that the device is of, in the same namespace.
    pub device_model_ref: Option<ModelReference>,
    /// The edge node that the device is attached to.
    pub node_name: String,
    /// The device's properties: what is wanted of them, and how they are read and reported.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub properties: Vec<DeviceProperty>,
    /// How the device is reached.
    pub protocol: Option<Protocol>,
    /// Commands that the device's mapper offers.
    pub methods: Vec<DeviceMethod>,
}

/// The name of a DeviceModel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelReference {
    /// The DeviceModel's name.
    pub name: String,
}

/// One property of a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProperty {
    /// The property's name, as in the model.
    pub name: String,
    /// What the property should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<TwinProperty>,
    /// How it is read and written. Keys here count for more than those of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visitors: Option<Protocol>,
    /// Milliseconds between reports to the cloud; without it 1000. More than a day is taken as nanoseconds, as KubeEdge has had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub report_cycle: Option<i64>,
    /// Milliseconds between readings; without it 1000. More than a day is taken as nanoseconds, as KubeEdge has had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub collect_cycle: Option<i64>,
    /// Whether readings are reported to the cloud. They are, if this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_to_cloud: Option<bool>,
    /// Where readings are pushed to from the edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_method: Option<PushMethod>,
    /// The least change of a number that is reported; any, if this is left out. Of properties that are ReadOnly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub deadband: Option<f64>,
    /// What is reported in place of each reading. Of properties that are ReadOnly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
}

/// Many readings that become one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Aggregation {
    /// What becomes of them.
    pub function: AggregationFunction,
    /// Of how many milliseconds.
    #[schemars(range(min = 1))]
    pub window: i64,
}

/// What becomes of many readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AggregationFunction {
    Mean,
    Min,
    Max,
    Last,
    Count,
}

/// A value, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TwinProperty {
    /// The value, as text.
    pub value: String,
    /// What is known of the value: its timestamp in milliseconds, its type.
    pub metadata: BTreeMap<String, String>,
}

/// A protocol, and what it needs to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Protocol {
    /// The protocol's name, by which a driver or mapper is found.
    pub protocol_name: String,
    /// What that driver or mapper needs to know.
    pub config_data: Map<String, Value>,
}

/// What a device says over what its model says: key by key, and so within objects.
pub fn overlaid(mut below: Map<String, Value>, above: Map<String, Value>) -> Map<String, Value> {
    for (key, value) in above {
        let merged = match (below.remove(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => Value::Object(overlaid(below, above)),
            (_, value) => value,
        };
        below.insert(key, merged);
    }
    below
}

/// A command that a mapper offers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceMethod {
    /// The command's name.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: String,
    /// The properties that it can be applied to.
    #[serde(default)]
    pub property_names: Vec<String>,
}

/// What the edge reports of a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceStatus {
    /// The properties as they were last reported.
    pub twins: Vec<Twin>,
    /// online, offline, ok, unknown or unhealthy.
    pub state: String,
    /// When the device was last online, RFC 3339.
    pub last_online_time: String,
    /// What else there is to say; in `error`, why the device cannot be driven or reached.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub extensions: Map<String, Value>,
}

/// A property as it was last reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Twin {
    /// The property's name.
    pub property_name: String,
    /// What the device says.
    #[serde(default)]
    pub reported: TwinProperty,
    /// The desired value that the edge has seen.
    #[serde(default)]
    pub observed_desired: TwinProperty,
}

/// What devices of one make have in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceModelSpec {
    /// The properties that every such device has.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub properties: Vec<ModelProperty>,
    /// The name of the protocol that such devices speak.
    pub protocol: String,
    /// What the protocol needs to know; keys of the device count for more.
    pub protocol_config_data: Map<String, Value>,
}

/// One property of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelProperty {
    /// The property's name.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// The type of its values.
    #[serde(rename = "type")]
    pub kind: PropertyType,
    /// Whether it can be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
    /// The least value that it takes.
    #[serde(default)]
    #[schemars(regex(pattern = r"^$|^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"))]
    pub minimum: String,
    /// The greatest value that it takes.
    #[serde(default)]
    #[schemars(regex(pattern = r"^$|^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"))]
    pub maximum: String,
    /// The unit of its values.
    #[serde(default)]
    pub unit: String,
    /// How it is read and written; keys of the device count for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visitors: Option<Protocol>,
}

/// The type of a property's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PropertyType {
    Int,
    Float,
    Double,
    String,
    Boolean,
    Bytes,
    Stream,
}

/// Whether a property can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    ReadWrite,
    ReadOnly,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_kubeedge_reads() {
        let yaml = "
deviceModelRef: { name: thermometer }
nodeName: pump-7
protocol: { protocolName: modbus, configData: { communicateMode: RTU, slaveID: 1 } }
properties:
- name: temperature
  collectCycle: 500
  reportToCloud: true
  desired: { value: '21' }
  visitors: { protocolName: modbus, configData: { register: HoldingRegister, offset: 2, scale: 0.1 } }
  pushMethod:
    mqtt: { address: 'tcp://127.0.0.1:1883', topic: temperature, qos: 0, retained: false }
";
        let device: DeviceSpec = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(device.properties[0].collect_cycle, Some(500));
        assert_eq!(device.protocol.unwrap().config_data["slaveID"], 1);
        let mqtt = device.properties[0].push_method.as_ref().unwrap().mqtt.as_ref().unwrap();
        assert_eq!(mqtt.topic, "temperature");
    }
}
