//! The broker in edgecore, as devices come to it that speak MQTT and readings that are pushed, where everybody has to log in.

use std::net::{IpAddr, SocketAddr};

use crds::componentconfig::edgecore::Secret;

#[derive(Debug, Clone)]
pub struct OwnBroker {
    pub listen: SocketAddr,
    /// User and password.
    pub login: (String, Secret),
}

impl OwnBroker {
    /// `None`: another broker is there, which is to be told nothing.
    pub(super) fn login_at(&self, host: &str, port: u16) -> Option<(&str, &str)> {
        let here = self.listen.ip();
        let is_here = match host.parse::<IpAddr>() {
            Ok(ip) => ip == here || (ip.is_loopback() && here.is_unspecified()),
            Err(_) => host == "localhost" && (here.is_loopback() || here.is_unspecified()),
        };
        let (user, password) = &self.login;
        (is_here && port == self.listen.port()).then_some((user.as_str(), password.0.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_broker_is_told_the_password() {
        let is_told = |listen: &str, host: &str, port: u16| {
            let login = ("user".to_owned(), Secret("secret".to_owned()));
            let own = OwnBroker { listen: listen.parse().unwrap(), login };
            own.login_at(host, port) == Some(("user", "secret"))
        };
        assert!(is_told("127.0.0.1:1883", "127.0.0.1", 1883));
        assert!(is_told("127.0.0.1:1883", "localhost", 1883));
        assert!(is_told("[::1]:1883", "::1", 1883));
        assert!(is_told("0.0.0.0:1883", "0.0.0.0", 1883));
        assert!(is_told("0.0.0.0:1883", "127.0.0.1", 1883));
        assert!(!is_told("127.0.0.1:1883", "127.0.0.1", 1884));
        assert!(!is_told("127.0.0.1:1883", "127.0.0.2", 1883));
        assert!(!is_told("192.0.2.1:1883", "localhost", 1883));
        assert!(!is_told("0.0.0.0:1883", "192.0.2.1", 1883));
        assert!(!is_told("127.0.0.1:1883", "broker", 1883));
    }
}
