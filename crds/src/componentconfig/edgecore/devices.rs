//! What `edgecore.yaml` says of devices.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::absolute;
use crate::componentconfig::Faults;

/// Devices of the group devices.kubeedge.io that are bound to this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceTwin {
    /// false leaves them alone.
    pub enable: bool,
    /// Where mappers, programs of others that drive devices, register (DMI): a socket, or the directory for dmi.sock. Empty:
    /// dmi.sock in /etc/kubeedge, or in rootDirectory.
    pub dmi_sock_path: String,
    /// The CAs of the brokers and collectors that devices, readings and rules go to within TLS, PEM. Empty: those that the system
    /// trusts.
    pub ca_file: String,
    pub modbus: ModbusBus,
}

impl Default for DeviceTwin {
    fn default() -> Self {
        Self {
            enable: true,
            dmi_sock_path: String::new(),
            ca_file: String::new(),
            modbus: ModbusBus::default(),
        }
    }
}

/// The bus of Modbus devices that name no address of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ModbusBus {
    /// The host of a bus over TCP. Empty: there is none.
    pub ip: String,
    /// Its port.
    pub port: u16,
    /// The device file of a serial line, as in /dev/ttyS0. Empty: there is none.
    pub serial_port: String,
    /// Bits a second on it.
    pub baud_rate: u32,
    /// Data bits of a character: 5 to 8.
    pub data_bits: u8,
    /// none, even or odd.
    pub parity: String,
    /// Stop bits of a character: 1 or 2.
    pub stop_bits: u8,
}

impl Default for ModbusBus {
    fn default() -> Self {
        Self {
            ip: String::new(),
            port: 502,
            serial_port: String::new(),
            baud_rate: 9600,
            data_bits: 8,
            parity: "none".to_owned(),
            stop_bits: 1,
        }
    }
}

impl DeviceTwin {
    pub(super) fn validate(&self, faults: &mut Faults) {
        let key = |name: &str| format!("modules.deviceTwin.modbus.{name}");
        let ModbusBus { ip, port, serial_port, baud_rate, data_bits, parity, stop_bits } = &self.modbus;
        absolute(faults, "modules.deviceTwin.dmiSockPath", &self.dmi_sock_path);
        absolute(faults, "modules.deviceTwin.caFile", &self.ca_file);
        faults.check(ip.is_empty() || serial_port.is_empty(), &key("ip"), || {
            "is set, and so is serialPort: a node has one usual bus; devices at the other name its address".to_owned()
        });
        faults.at_least(&key("port"), u64::from(*port), 1, "it is a TCP port");
        absolute(faults, &key("serialPort"), serial_port);
        faults.at_least(&key("baudRate"), u64::from(*baud_rate), 1, "it is in bits a second");
        faults.check((5..=8).contains(data_bits), &key("dataBits"), || {
            format!("{data_bits} is not from 5 to 8")
        });
        faults.check(matches!(parity.as_str(), "none" | "even" | "odd"), &key("parity"), || {
            format!("{parity:?} is none of none, even, odd")
        });
        faults.check((1..=2).contains(stop_bits), &key("stopBits"), || {
            format!("{stop_bits} is neither 1 nor 2")
        });
    }
}
