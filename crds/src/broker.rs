//! Where an MQTT broker is, as configurations and Devices have it.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where an MQTT broker is: `tcp://HOST:PORT`, or `ssl://HOST:PORT` for one that is spoken to within TLS. `mqtt://` and no scheme are
/// the former, `mqtts://` and `tls://` the latter; without a port it is the usual one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BrokerAddress {
    /// A name or an IP address, without brackets.
    pub host: String,
    pub port: u16,
    /// Within TLS.
    pub secure: bool,
}

const USUAL_PORT: u16 = 1883;
const USUAL_SECURE_PORT: u16 = 8883;

/// It is none. To be told with the field and the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no tcp://HOST:PORT and no ssl://HOST:PORT, as in tcp://127.0.0.1:1883")]
pub struct NoBrokerAddress;

/// `HOST:PORT`, as URLs and `Host` have it.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl FromStr for BrokerAddress {
    type Err = NoBrokerAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (secure, address) = match text.split_once("://") {
            None => (false, text),
            Some(("tcp" | "mqtt", address)) => (false, address),
            Some(("ssl" | "tls" | "mqtts", address)) => (true, address),
            Some(_) => return Err(NoBrokerAddress),
        };
        let usual = if secure { USUAL_SECURE_PORT } else { USUAL_PORT };
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| NoBrokerAddress)?),
            None => (address, usual),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let is_host =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(is_host) || (host.contains(':') && bracketed.is_none()) {
            return Err(NoBrokerAddress);
        }
        Ok(Self { host: host.to_owned(), port, secure })
    }
}

/// Spoken to in the clear.
impl From<SocketAddr> for BrokerAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port(), secure: false }
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, secure } = self;
        let scheme = if *secure { "ssl" } else { "tcp" };
        write!(f, "{scheme}://{}", authority(host, *port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_shown() {
        for (text, shown) in [
            ("tcp://127.0.0.1:1884", "tcp://127.0.0.1:1884"),
            ("mqtt://broker", "tcp://broker:1883"),
            ("broker:1", "tcp://broker:1"),
            ("[::1]:1883", "tcp://[::1]:1883"),
            ("ssl://broker.example", "ssl://broker.example:8883"),
            ("mqtts://b:1", "ssl://b:1"),
            ("tls://[fe80::1%eth0]:2", "ssl://[fe80::1%eth0]:2"),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
        for text in [
            "",
            "tcp://",
            "ws://b:1",
            "b:",
            "b:x",
            "b:70000",
            "::1:1883",
            "a b:1",
            "user@b:1",
            "b:1/topic",
            "[::1",
        ] {
            assert_eq!(text.parse::<BrokerAddress>(), Err(NoBrokerAddress), "{text}");
        }
    }
}
