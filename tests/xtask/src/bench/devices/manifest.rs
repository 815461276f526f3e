//! Modbus devices as they are applied, and the registers that they have.

use serde_json::{Value, json};

pub(super) const VERSION: &str = "v1beta1";
pub(super) const GROUP: &str = "devices.kubeedge.io";
const MODEL: &str = "model";
/// Milliseconds; a property is reported no more often.
const REPORT_CYCLE: u64 = 1000;

/// With properties p0, p1 and so on, of which a device has as many as it has registers.
pub(super) fn model(properties: usize) -> Value {
    let properties: Vec<Value> = (0..properties)
        .map(|number| json!({"name": format!("p{number}"), "type": "INT", "accessMode": "ReadWrite"}))
        .collect();
    object("DeviceModel", MODEL, &json!({"protocol": "modbus", "properties": properties}))
}

/// Each property is one holding register. `cycle` is in milliseconds.
pub(super) fn device(name: &str, node: &str, connection: &Value, registers: &[u16], cycle: u64) -> Value {
    let properties: Vec<Value> = registers
        .iter()
        .enumerate()
        .map(|(number, register)| {
            json!({
                "name": format!("p{number}"),
                "collectCycle": cycle,
                "reportCycle": REPORT_CYCLE,
                "visitors": {
                    "protocolName": "modbus",
                    "configData": {"register": "HoldingRegister", "offset": register},
                },
            })
        })
        .collect();
    let spec = json!({
        "deviceModelRef": {"name": MODEL},
        "nodeName": node,
        "protocol": {"protocolName": "modbus", "configData": connection},
        "properties": properties,
    });
    object("Device", name, &spec)
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}

/// Holding registers from an address on, as the simulator's `--set` has them.
pub(super) fn holding(unit: u8, first: u16, count: usize) -> String {
    format!("{unit}:holding:{first}={}", vec!["0"; count].join(","))
}
