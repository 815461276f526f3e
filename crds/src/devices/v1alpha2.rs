//! Device and DeviceModel, v1alpha2: what KubeEdge had before 1.15, and what many manifests still have.
//!
//! The types make the schema; what is passed on is JSON, which [`super::conversion`] turns into v1beta1.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::v1beta1::{ModelReference, TwinProperty};

/// A thing at an edge site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceSpec {
    /// The model that the device is of, in the same namespace.
    pub device_model_ref: Option<ModelReference>,
    /// How the device is reached.
    pub protocol: Option<ProtocolConfig>,
    /// How its properties are read and written.
    pub property_visitors: Vec<PropertyVisitor>,
    /// What else the device sends, to whom it may concern at the edge.
    pub data: Option<DeviceData>,
    /// The node that the device is attached to: one that this selects.
    pub node_selector: Option<NodeSelector>,
}

/// How a device is reached: one of the protocols, and what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProtocolConfig {
    /// OPC UA.
    pub opcua: Option<OpcUa>,
    /// Modbus; the line is in common.
    pub modbus: Option<Modbus>,
    /// Bluetooth.
    pub bluetooth: Option<Bluetooth>,
    /// A protocol of which a mapper knows.
    pub customized_protocol: Option<CustomizedProtocol>,
    /// The line, for those protocols that have one.
    pub common: Option<Common>,
}

/// An OPC UA server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OpcUa {
    /// The server's URL.
    pub url: String,
    /// The user.
    pub user_name: String,
    /// The user's password.
    pub password: String,
    /// The security policy.
    pub security_policy: String,
    /// The security mode.
    pub security_mode: String,
    /// The client's certificate.
    pub certificate: String,
    /// The client's private key.
    pub private_key: String,
    /// Seconds that a request may take.
    pub timeout: Option<i64>,
}

/// A Modbus slave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Modbus {
    /// The slave's number on its bus.
    #[serde(rename = "slaveID")]
    pub slave_id: Option<i64>,
}

/// A Bluetooth device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Bluetooth {
    /// The device's address.
    pub mac_address: String,
}

/// A protocol of which a mapper knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CustomizedProtocol {
    /// The protocol's name.
    pub protocol_name: String,
    /// What its mapper needs to know.
    pub config_data: Map<String, Value>,
}

/// The line, for those protocols that have one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Common {
    /// A serial line.
    pub com: Option<Com>,
    /// A TCP address.
    pub tcp: Option<Tcp>,
    /// How is spoken: TCP or RTU.
    pub comm_type: String,
    /// Milliseconds between attempts to connect.
    pub reconn_timeout: Option<i64>,
    /// Attempts to connect.
    pub reconn_retry_times: Option<i64>,
    /// Milliseconds that a reading may take.
    pub collect_timeout: Option<i64>,
    /// Attempts to read.
    pub collect_retry_times: Option<i64>,
    /// sync or async.
    pub collect_type: String,
    /// What else the mapper needs to know.
    pub customized_values: Map<String, Value>,
}

/// A serial line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Com {
    /// The device file.
    pub serial_port: String,
    /// Bits a second.
    pub baud_rate: Option<i64>,
    /// Data bits of a character.
    pub data_bits: Option<i64>,
    /// none, even or odd.
    pub parity: String,
    /// Stop bits of a character.
    pub stop_bits: Option<i64>,
}

/// A TCP address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tcp {
    /// The host.
    pub ip: String,
    /// The port.
    pub port: Option<i64>,
}

/// How a property is read and written: by one of the protocols.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PropertyVisitor {
    /// The property's name, as in the model.
    pub property_name: String,
    /// Between reports to the cloud.
    pub report_cycle: Option<i64>,
    /// Between readings.
    pub collect_cycle: Option<i64>,
    /// What else the mapper needs to know.
    pub customized_values: Map<String, Value>,
    /// By OPC UA.
    pub opcua: Option<OpcUaVisitor>,
    /// By Modbus.
    pub modbus: Option<ModbusVisitor>,
    /// By Bluetooth.
    pub bluetooth: Option<BluetoothVisitor>,
    /// By a protocol of which a mapper knows.
    pub customized_protocol: Option<CustomizedProtocol>,
}

/// An OPC UA node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OpcUaVisitor {
    /// The node's id.
    #[serde(rename = "nodeID")]
    pub node_id: String,
    /// The node's name.
    #[serde(rename = "browseName")]
    pub browse_name: String,
}

/// Modbus registers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModbusVisitor {
    /// CoilRegister, DiscreteInputRegister, InputRegister or HoldingRegister.
    pub register: String,
    /// The first register, from 0.
    pub offset: Option<i64>,
    /// The number of registers.
    pub limit: Option<i64>,
    /// What the number in the registers is multiplied by.
    pub scale: Option<f64>,
    /// Whether the bytes of each register change places.
    pub is_swap: Option<bool>,
    /// Whether the registers come in the opposite order.
    pub is_register_swap: Option<bool>,
}

/// A Bluetooth characteristic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BluetoothVisitor {
    /// The characteristic's UUID.
    #[serde(rename = "characteristicUUID")]
    pub characteristic_uuid: String,
    /// What is written for which value.
    pub data_write: BTreeMap<String, String>,
    /// How what is read becomes a value.
    pub data_converter: Option<DataConverter>,
}

/// How bytes become a value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataConverter {
    /// The first byte.
    pub start_index: Option<i64>,
    /// The last byte.
    pub end_index: Option<i64>,
    /// Bits by which it is shifted left.
    pub shift_left: Option<i64>,
    /// Bits by which it is shifted right.
    pub shift_right: Option<i64>,
    /// What is done with the number then.
    pub order_of_operations: Vec<Operation>,
}

/// One step of a computation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Add, Subtract, Multiply or Divide.
    pub operation_type: String,
    /// By this number.
    pub operation_value: Option<f64>,
}

/// What else the device sends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceData {
    /// What it sends.
    pub data_properties: Vec<DataProperty>,
    /// The topic that it is sent to.
    pub data_topic: String,
}

/// One of the things that the device sends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataProperty {
    /// Its name.
    pub property_name: String,
    /// What is known of it.
    pub metadata: BTreeMap<String, String>,
}

/// Nodes, as in a pod's node affinity: one of the terms has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// Each selects nodes by itself.
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// Nodes for which all of it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// Of the node's labels.
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// Of the node's fields: metadata.name.
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// What has to hold for a label or a field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeSelectorRequirement {
    /// The label or field.
    pub key: String,
    /// In, NotIn, Exists, DoesNotExist, Gt or Lt.
    pub operator: String,
    /// What it is compared with.
    pub values: Vec<String>,
}

/// What is wanted of a device, and what it reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeviceStatus {
    /// The properties: as they should be, and as they were last reported.
    pub twins: Vec<Twin>,
}

/// A property: as it should be, and as it was last reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Twin {
    /// The property's name.
    pub property_name: String,
    /// As it should be.
    pub desired: Option<TwinProperty>,
    /// As it was last reported.
    pub reported: Option<TwinProperty>,
}

/// What devices of one make have in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeviceModelSpec {
    /// The properties that every such device has.
    pub properties: Vec<ModelProperty>,
    /// The name of the protocol that such devices speak.
    pub protocol: String,
}

/// One property of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelProperty {
    /// The property's name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// The type of its values: one of them.
    #[serde(rename = "type")]
    pub kind: Option<PropertyType>,
}

/// The type of a property's values: one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PropertyType {
    /// A whole number.
    pub int: Option<IntType>,
    /// A number of 32 bits.
    pub float: Option<FloatType>,
    /// A number of 64 bits.
    pub double: Option<FloatType>,
    /// Text.
    pub string: Option<StringType>,
    /// true or false.
    pub boolean: Option<BooleanType>,
    /// Bytes.
    pub bytes: Option<BytesType>,
}

/// A whole number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IntType {
    /// ReadWrite or ReadOnly.
    pub access_mode: String,
    /// What it is if nothing else is known.
    pub default_value: Option<i64>,
    /// The least value that it takes.
    pub minimum: Option<i64>,
    /// The greatest value that it takes.
    pub maximum: Option<i64>,
    /// The unit of its values.
    pub unit: String,
}

/// A number that need not be whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FloatType {
    /// ReadWrite or ReadOnly.
    pub access_mode: String,
    /// What it is if nothing else is known.
    pub default_value: Option<f64>,
    /// The least value that it takes.
    pub minimum: Option<f64>,
    /// The greatest value that it takes.
    pub maximum: Option<f64>,
    /// The unit of its values.
    pub unit: String,
}

/// Text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StringType {
    /// ReadWrite or ReadOnly.
    pub access_mode: String,
    /// What it is if nothing else is known.
    pub default_value: String,
}

/// true or false.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BooleanType {
    /// ReadWrite or ReadOnly.
    pub access_mode: String,
    /// What it is if nothing else is known.
    pub default_value: Option<bool>,
}

/// Bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BytesType {
    /// ReadWrite or ReadOnly.
    pub access_mode: String,
}
