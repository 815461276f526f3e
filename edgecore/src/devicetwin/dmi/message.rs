//! Devices as DMI has them.

use std::collections::HashMap;

use crds::devices::{
    keys::MODEL,
    v1beta1::{
        AccessMode, DeviceMethod, DeviceModelSpec, PushMethod,
        push::{
            DbMethod, Influxdb2, Influxdb2Data, MySql, MySqlClient, Redis, RedisClient, TdEngine,
            TdEngineClient,
        },
    },
};
use prost::Message as _;
use prost_types::Any;
use proto::{ResourceKey, dmi::v1beta1 as api};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::Described;
use crate::{
    devicetwin::{Devices, handle::Known, spec::Property, twin::Twin, value::type_name},
    metamanager::Store,
};

/// `None` of what is no device of the protocol that others drive.
pub(super) fn described(
    devices: &Devices,
    store: &Store,
    key: &ResourceKey,
    protocol: &str,
) -> Option<Described> {
    let known = devices.known();
    let Known::Driven(device) = known.get(key)? else { return None };
    let spec = &device.spec;
    if *spec.protocol != *protocol || !device.is_external() {
        return None;
    }
    let twin = device.twin();
    let described = api::Device {
        name: key.name().to_owned(),
        namespace: key.namespace().to_owned(),
        spec: Some(api::DeviceSpec {
            device_model_reference: spec.model.to_string(),
            protocol: Some(api::ProtocolConfig {
                protocol_name: protocol.to_owned(),
                config_data: Some(customized(&spec.connection)),
            }),
            properties: spec.properties.iter().map(|one| property(one, &twin, protocol)).collect(),
            methods: spec.methods.iter().map(method).collect(),
        }),
        status: None,
    };
    let model = ResourceKey::new(MODEL, key.namespace(), &spec.model).ok()?;
    // Without one the device would not be driven.
    let model = store.get(&model).ok().flatten().and_then(|object| model_of(&model, &object.bytes));
    Some((described, model))
}

fn property(property: &Property, twin: &Twin, protocol: &str) -> api::DeviceProperty {
    let desired = twin.properties.get(&property.name).and_then(|twin| twin.desired.as_ref());
    let desired = desired.map(|desired| api::TwinProperty {
        value: desired.value.to_string(),
        metadata: HashMap::from([
            ("timestamp".to_owned(), desired.at.to_string()),
            ("type".to_owned(), type_name(property.kind).to_owned()),
        ]),
    });
    let millis = |cycle: std::time::Duration| i64::try_from(cycle.as_millis()).unwrap_or(i64::MAX);
    api::DeviceProperty {
        name: property.name.to_string(),
        desired,
        visitors: Some(api::VisitorConfig {
            protocol_name: protocol.to_owned(),
            config_data: Some(customized(&property.visitor)),
        }),
        report_cycle: millis(property.report),
        collect_cycle: millis(property.collect),
        report_to_cloud: property.to_cloud,
        push_method: property.mapper_push.as_deref().map(push_method),
    }
}

fn method(method: &DeviceMethod) -> api::DeviceMethod {
    let DeviceMethod { name, description, property_names } = method.clone();
    api::DeviceMethod { name, description, property_names }
}

/// Without HTTP and MQTT, over which edgecore pushes what the mapper reports: so it waits on the disk while nobody takes it.
fn push_method(method: &PushMethod) -> api::PushMethod {
    let PushMethod { http: _, mqtt: _, otel, db_method, anomaly_detection } = method;
    let is_watched = !anomaly_detection.is_empty();
    api::PushMethod {
        http: None,
        mqtt: None,
        db_method: db_method.clone().map(db_method_of),
        otel: otel.clone().map(|otel| api::PushMethodOtel { endpoint_url: otel.endpoint_url }),
        anomaly_detection: is_watched
            .then(|| api::AnomalyDetection { data: customized(anomaly_detection).data }),
    }
}

fn db_method_of(DbMethod { influxdb2, redis, tdengine, mysql }: DbMethod) -> api::DbMethod {
    api::DbMethod {
        influxdb2: influxdb2.map(
            |Influxdb2 { influxdb2_client_config: client, influxdb2_data_config: data }| {
                let Influxdb2Data { measurement, tag, field_key } = data;
                api::DbMethodInfluxdb2 {
                    influxdb2_client_config: Some(api::Influxdb2ClientConfig {
                        url: client.url,
                        org: client.org,
                        bucket: client.bucket,
                    }),
                    influxdb2_data_config: Some(api::Influxdb2DataConfig {
                        measurement,
                        tag: tag.into_iter().collect(),
                        field_key,
                    }),
                }
            },
        ),
        redis: redis.map(
            |Redis { redis_client_config: RedisClient { addr, db, poolsize, min_idle_conns } }| {
                let client = api::RedisClientConfig { addr, db, poolsize, min_idle_conns };
                api::DbMethodRedis { redis_client_config: Some(client) }
            },
        ),
        tdengine: tdengine.map(|TdEngine { client_config: TdEngineClient { addr, db_name } }| {
            let client = api::TdEngineClientConfig { addr, dbname: db_name };
            api::DbMethodTdEngine { td_engine_client_config: Some(client) }
        }),
        mysql: mysql.map(|MySql { mysql_client_config: MySqlClient { addr, database, user_name } }| {
            let client = api::MySqlClientConfig { addr, database, user_name };
            api::DbMethodMySql { mysql_client_config: Some(client) }
        }),
    }
}

fn model_of(key: &ResourceKey, bytes: &[u8]) -> Option<api::DeviceModel> {
    #[derive(Deserialize)]
    struct Model {
        spec: DeviceModelSpec,
    }
    let Model { spec } = serde_json::from_slice(bytes).ok()?;
    let properties = spec.properties.into_iter().map(|property| api::ModelProperty {
        name: property.name,
        description: property.description,
        r#type: type_name(property.kind).to_owned(),
        access_mode: match property.access_mode {
            Some(AccessMode::ReadOnly) => "ReadOnly",
            Some(AccessMode::ReadWrite) | None => "ReadWrite",
        }
        .to_owned(),
        minimum: property.minimum,
        maximum: property.maximum,
        unit: property.unit,
    });
    Some(api::DeviceModel {
        name: key.name().to_owned(),
        namespace: key.namespace().to_owned(),
        spec: Some(api::DeviceModelSpec { properties: properties.collect(), commands: Vec::new() }),
    })
}

/// Text, numbers and truth; what is nested has no place there, as in KubeEdge.
fn customized(config: &Map<String, Json>) -> api::CustomizedValue {
    let data = config.iter().filter_map(|(name, value)| {
        let (kind, value) = match value {
            Json::String(text) => ("StringValue", text.encode_to_vec()),
            Json::Bool(state) => ("BoolValue", state.encode_to_vec()),
            #[expect(clippy::cast_possible_truncation, reason = "mappers read a FloatValue")]
            Json::Number(number) => ("FloatValue", (number.as_f64()? as f32).encode_to_vec()),
            Json::Null | Json::Array(_) | Json::Object(_) => return None,
        };
        Some((name.clone(), Any { type_url: format!("type.googleapis.com/google.protobuf.{kind}"), value }))
    });
    api::CustomizedValue { data: data.collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_free_becomes_what_mappers_read() {
        let config = json!({"name": "x", "port": 502, "fast": true, "nested": {"a": 1}});
        let data = customized(config.as_object().unwrap()).data;
        assert_eq!(data.len(), 3);
        assert_eq!(data["port"].type_url, "type.googleapis.com/google.protobuf.FloatValue");
        assert_eq!(f32::decode(&*data["port"].value), Ok(502.0));
        assert_eq!(String::decode(&*data["name"].value).as_deref(), Ok("x"));
        assert_eq!(bool::decode(&*data["fast"].value), Ok(true));
    }
}
