//! Where a device is: its bus, and its number on it.

use std::{fmt, time::Duration};

use crds::componentconfig::edgecore::ModbusBus;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

/// What all devices at one bus have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BusAddress {
    Tcp { host: Box<str>, port: u16 },
    Serial(SerialLine),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SerialLine {
    pub(super) path: Box<str>,
    pub(super) baud_rate: u32,
    pub(super) data_bits: u8,
    pub(super) parity: Parity,
    pub(super) stop_bits: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Parity {
    None,
    Even,
    Odd,
}

/// One slave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bus: BusAddress,
    pub(super) unit: u8,
    /// For one answer.
    pub(super) timeout: Duration,
    /// How often a request is made again at once.
    pub(super) retries: u32,
}

const USUAL_TIMEOUT_MS: u64 = 1000;
const LONGEST_TIMEOUT_MS: u64 = 60_000;
const MOST_RETRIES: u32 = 10;
/// IANA's.
const TCP_PORT: u16 = 502;

/// `configData` of a device's protocol: KubeEdge's mappers have the keys at the top, v1alpha2 has them in `com` and `tcp`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Connection {
    #[serde(rename = "slaveID", alias = "slaveId", alias = "deviceID", alias = "unitID")]
    slave_id: Option<Number>,
    ip: Option<String>,
    port: Option<Number>,
    tcp: Option<Tcp>,
    #[serde(flatten)]
    serial: Com,
    com: Option<Com>,
    /// Milliseconds.
    collect_timeout: Option<Number>,
    collect_retry_times: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tcp {
    ip: Option<String>,
    port: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Com {
    serial_port: Option<String>,
    baud_rate: Option<Number>,
    data_bits: Option<Number>,
    parity: Option<String>,
    stop_bits: Option<Number>,
}

/// KubeEdge's examples have numbers as text here and there.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    Number(i64),
    Text(String),
}

impl Number {
    fn of<T: TryFrom<i64>>(number: Option<Self>, field: &str, usual: T) -> Result<T, String> {
        let Some(number) = number else { return Ok(usual) };
        let (parsed, text) = match number {
            Self::Number(number) => (Some(number), number.to_string()),
            Self::Text(text) => (text.trim().parse().ok(), text),
        };
        parsed
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("protocol.configData: {field} {text} is out of range"))
    }
}

impl Place {
    /// The error names the field. `None` for the bus: the device names no address, so that the node's is meant.
    pub(super) fn parse(config: &Map<String, Json>, of_node: Option<&BusAddress>) -> Result<Self, String> {
        let Connection { slave_id, ip, port, tcp, serial, com, collect_timeout, collect_retry_times } =
            serde_json::from_value(Json::Object(config.clone()))
                .map_err(|error| format!("protocol.configData: {error}"))?;
        let unit = Number::of(slave_id, "slaveID", 1_u8)?;
        let tcp = tcp.unwrap_or_default();
        let host = ip.or(tcp.ip).filter(|host| !host.is_empty());
        let com = com.unwrap_or_default();
        let path = serial.serial_port.or(com.serial_port).filter(|path| !path.is_empty());
        let bus = match (host, path) {
            (Some(host), None) => {
                let port = Number::of(port.or(tcp.port), "port", TCP_PORT)?;
                BusAddress::Tcp { host: host.into(), port }
            }
            (None, Some(path)) => BusAddress::Serial(SerialLine {
                path: path.into(),
                baud_rate: Number::of(serial.baud_rate.or(com.baud_rate), "baudRate", 9600)?,
                data_bits: Number::of(serial.data_bits.or(com.data_bits), "dataBits", 8)?,
                parity: parity(serial.parity.or(com.parity).as_deref())?,
                stop_bits: Number::of(serial.stop_bits.or(com.stop_bits), "stopBits", 1)?,
            }),
            (Some(_), Some(_)) => {
                return Err("protocol.configData has both ip and serialPort: leave one out".to_owned());
            }
            (None, None) => of_node.cloned().ok_or(
                "the device names no address (ip or serialPort in protocol.configData), and the node has no \
                 usual bus (modules.deviceTwin.modbus in edgecore.yaml)",
            )?,
        };
        if let BusAddress::Serial(line) = &bus {
            line.check(unit)?;
        }
        let timeout = Number::of(collect_timeout, "collectTimeout", USUAL_TIMEOUT_MS)?;
        let timeout = if timeout == 0 { USUAL_TIMEOUT_MS } else { timeout.min(LONGEST_TIMEOUT_MS) };
        let retries = Number::of(collect_retry_times, "collectRetryTimes", 1_u32)?.min(MOST_RETRIES);
        Ok(Self { bus, unit, timeout: Duration::from_millis(timeout), retries })
    }
}

impl BusAddress {
    /// That of the node's configuration, which has been checked; `None` if it names none.
    pub fn of_node(config: &ModbusBus) -> Option<Self> {
        let ModbusBus { ip, port, serial_port, baud_rate, data_bits, parity: named, stop_bits } = config;
        if !ip.is_empty() {
            return Some(Self::Tcp { host: ip.as_str().into(), port: *port });
        }
        (!serial_port.is_empty()).then(|| {
            Self::Serial(SerialLine {
                path: serial_port.as_str().into(),
                baud_rate: *baud_rate,
                data_bits: *data_bits,
                parity: parity(Some(named)).unwrap_or(Parity::None),
                stop_bits: *stop_bits,
            })
        })
    }
}

impl SerialLine {
    fn check(&self, unit: u8) -> Result<(), String> {
        // Modbus over Serial Line V1.02, 2.2: 0 is everybody, who do not answer.
        if !(1..=247).contains(&unit) {
            return Err(format!("protocol.configData: slaveID {unit} is not from 1 to 247"));
        }
        if self.baud_rate == 0 {
            return Err("protocol.configData: baudRate 0 is out of range".to_owned());
        }
        if !(5..=8).contains(&self.data_bits) {
            return Err(format!("protocol.configData: dataBits {} is not from 5 to 8", self.data_bits));
        }
        if !(1..=2).contains(&self.stop_bits) {
            return Err(format!("protocol.configData: stopBits {} is neither 1 nor 2", self.stop_bits));
        }
        Ok(())
    }

    /// How long one character takes on the wire, with its start, parity and stop bits.
    pub(super) fn character(&self) -> Duration {
        let parity = u32::from(self.parity != Parity::None);
        let bits = 1 + u32::from(self.data_bits) + parity + u32::from(self.stop_bits);
        Duration::from_secs(1) * bits / self.baud_rate
    }

    /// The silence that ends a frame: Modbus over Serial Line V1.02, 2.5.1.1.
    pub(super) fn silence(&self) -> Duration {
        if self.baud_rate > 19_200 { Duration::from_micros(1750) } else { self.character() * 7 / 2 }
    }
}

fn parity(named: Option<&str>) -> Result<Parity, String> {
    match named.map(str::to_lowercase).as_deref() {
        None | Some("" | "none" | "n") => Ok(Parity::None),
        Some("even" | "e") => Ok(Parity::Even),
        Some("odd" | "o") => Ok(Parity::Odd),
        Some(other) => Err(format!("protocol.configData: parity {other:?} is none of none, even, odd")),
    }
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Serial(line) => f.write_str(&line.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: Json, of_node: Option<&BusAddress>) -> Result<Place, String> {
        let Json::Object(config) = config else { panic!("no object") };
        Place::parse(&config, of_node)
    }

    #[test]
    fn addresses_are_as_kubeedge_writes_them() {
        let tcp = BusAddress::Tcp { host: "172.17.0.3".into(), port: 1502 };
        let place = parse(json!({"ip": "172.17.0.3", "port": "1502"}), None).unwrap();
        assert_eq!((&place.bus, place.unit, place.timeout), (&tcp, 1, Duration::from_secs(1)));
        let nested = json!({"slaveID": 3, "tcp": {"ip": "172.17.0.3", "port": 1502}, "collectTimeout": 200});
        let place = parse(nested, None).unwrap();
        assert_eq!((&place.bus, place.unit, place.timeout), (&tcp, 3, Duration::from_millis(200)));
        let serial =
            json!({"slaveID": 1, "com": {"serialPort": "/dev/ttyS0", "baudRate": 115_200, "parity": "even"}});
        let BusAddress::Serial(line) = parse(serial, None).unwrap().bus else { panic!("no serial line") };
        assert_eq!((&*line.path, line.baud_rate, line.parity), ("/dev/ttyS0", 115_200, Parity::Even));
        assert_eq!(line.silence(), Duration::from_micros(1750));
        let flat = json!({"serialPort": "/dev/ttyS0"});
        let BusAddress::Serial(line) = parse(flat, None).unwrap().bus else { panic!("no serial line") };
        assert_eq!((line.baud_rate, line.data_bits, line.stop_bits), (9600, 8, 1));
        assert_eq!(parse(json!({"slaveID": 9}), Some(&tcp)).unwrap().bus, tcp);
    }

    #[test]
    fn a_wrong_address_says_which_field() {
        for (config, message) in [
            (json!({"slaveID": 1}), "modules.deviceTwin.modbus in edgecore.yaml"),
            (json!({"ip": "10.0.0.1", "serialPort": "/dev/ttyS0"}), "both ip and serialPort"),
            (json!({"ip": "10.0.0.1", "port": 65536}), "port 65536 is out of range"),
            (json!({"ip": "10.0.0.1", "slaveID": 256}), "slaveID 256 is out of range"),
            (json!({"serialPort": "/dev/ttyS0", "slaveID": 248}), "slaveID 248 is not from 1 to 247"),
            (json!({"serialPort": "/dev/ttyS0", "parity": "mark"}), r#"parity "mark" is none of"#),
            (json!({"serialPort": "/dev/ttyS0", "stopBits": 3}), "stopBits 3 is neither"),
            (json!({"serialPort": "/dev/ttyS0", "baudRate": 0}), "baudRate 0"),
            (json!({"ip": 7}), "invalid type"),
        ] {
            let error = parse(config, None).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
