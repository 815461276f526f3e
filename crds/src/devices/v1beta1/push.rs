//! Where a property's readings are pushed to from the edge, without the cloud.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Where readings are pushed to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PushMethod {
    /// By HTTP POST.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// To an MQTT broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<Mqtt>,
    /// As OpenTelemetry metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otel: Option<Otel>,
    /// Into a database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_method: Option<DbMethod>,
    /// What watches the readings for anomalies needs to know.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub anomaly_detection: Map<String, Value>,
}

/// HTTP POST.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Http {
    /// The host, with its scheme.
    pub host_name: String,
    /// The port.
    #[schemars(range(min = 0, max = 65535))]
    pub port: i64,
    /// The path.
    pub request_path: String,
    /// Seconds that a request may take.
    #[schemars(range(min = 0))]
    pub timeout: i64,
}

/// An MQTT broker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Mqtt {
    /// The broker's address, tcp://HOST:PORT.
    pub address: String,
    /// The topic.
    pub topic: String,
    /// The quality of service: 0, 1 or 2.
    #[schemars(range(min = 0, max = 2))]
    pub qos: i32,
    /// Whether the broker keeps the last message.
    pub retained: bool,
}

/// An OpenTelemetry collector.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Otel {
    /// The collector's URL.
    #[serde(rename = "endpointURL")]
    pub endpoint_url: String,
}

/// A database.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DbMethod {
    /// InfluxDB 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub influxdb2: Option<Influxdb2>,
    /// Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// TDengine.
    #[serde(rename = "TDEngine", skip_serializing_if = "Option::is_none")]
    pub tdengine: Option<TdEngine>,
    /// MySQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mysql: Option<MySql>,
}

/// InfluxDB 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Influxdb2 {
    /// Where the database is.
    pub influxdb2_client_config: Influxdb2Client,
    /// How readings are stored.
    pub influxdb2_data_config: Influxdb2Data,
}

/// Where an InfluxDB 2 is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Influxdb2Client {
    /// The URL.
    pub url: String,
    /// The organization.
    pub org: String,
    /// The bucket.
    pub bucket: String,
}

/// How readings are stored in an InfluxDB 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Influxdb2Data {
    /// The measurement.
    pub measurement: String,
    /// Tags of each point.
    pub tag: BTreeMap<String, String>,
    /// The field that holds the reading.
    pub field_key: String,
}

/// Redis.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Redis {
    /// Where the database is.
    pub redis_client_config: RedisClient,
}

/// Where a Redis is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RedisClient {
    /// HOST:PORT.
    pub addr: String,
    /// The database's number.
    pub db: i32,
    /// Connections at most.
    pub poolsize: i32,
    /// Connections kept open.
    pub min_idle_conns: i32,
}

/// TDengine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TdEngine {
    /// Where the database is.
    #[serde(rename = "TDEngineClientConfig")]
    pub client_config: TdEngineClient,
}

/// Where a TDengine is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TdEngineClient {
    /// HOST:PORT.
    pub addr: String,
    /// The database's name.
    pub db_name: String,
}

/// MySQL.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MySql {
    /// Where the database is.
    pub mysql_client_config: MySqlClient,
}

/// Where a MySQL is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MySqlClient {
    /// HOST:PORT.
    pub addr: String,
    /// The database's name.
    pub database: String,
    /// The user.
    pub user_name: String,
}
