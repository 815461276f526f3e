//! How edgecore gets in at the brokers and collectors that devices, readings and rules have it go to.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crds::{broker::BrokerAddress, componentconfig::edgecore::Secret};
use runtime::tls::{Clock, Trust};

/// What edgecore knows of brokers and collectors.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// edgecore's own broker; `None`: there is none, or nobody has to log in there.
    pub own: Option<OwnBroker>,
    /// The site's broker that edgecore is a client of, if there is one.
    pub external: Option<ExternalBroker>,
    /// Whom to believe anywhere else.
    pub trust: Trust,
}

/// The broker in edgecore, where everybody has to log in.
#[derive(Debug, Clone)]
pub struct OwnBroker {
    pub listen: SocketAddr,
    /// User and password.
    pub login: (String, Secret),
}

/// A broker that is there anyway.
#[derive(Debug, Clone)]
pub struct ExternalBroker {
    pub address: BrokerAddress,
    /// User and password.
    pub login: Option<(String, Secret)>,
    pub trust: Trust,
}

impl Access {
    /// Has certificates verified at the time of this clock.
    #[must_use]
    pub fn at(mut self, clock: &Arc<Clock>) -> Self {
        self.trust.clock = Arc::clone(clock);
        if let Some(external) = &mut self.external {
            external.trust.clock = Arc::clone(clock);
        }
        self
    }

    /// `None`: another broker is there, which is to be told nothing.
    pub(crate) fn login_at(&self, address: &BrokerAddress) -> Option<(&str, &str)> {
        let own = self.own.as_ref().filter(|own| own.is_at(address)).map(|own| &own.login);
        let (user, password) = own.or_else(|| self.external_at(address)?.login.as_ref())?;
        Some((user.as_str(), password.0.as_str()))
    }

    pub(crate) fn trust_at(&self, address: &BrokerAddress) -> &Trust {
        self.external_at(address).map_or(&self.trust, |external| &external.trust)
    }

    fn external_at(&self, address: &BrokerAddress) -> Option<&ExternalBroker> {
        self.external.as_ref().filter(|external| external.address == *address)
    }
}

impl OwnBroker {
    fn is_at(&self, BrokerAddress { host, port, secure }: &BrokerAddress) -> bool {
        let here = self.listen.ip();
        let is_here = match host.parse::<IpAddr>() {
            Ok(ip) => ip == here || (ip.is_loopback() && here.is_unspecified()),
            Err(_) => host == "localhost" && (here.is_loopback() || here.is_unspecified()),
        };
        is_here && *port == self.listen.port() && !secure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str) -> (String, Secret) {
        (user.to_owned(), Secret("secret".to_owned()))
    }

    #[test]
    fn no_other_broker_is_told_the_password() {
        let is_told = |listen: &str, address: &str| {
            let own = OwnBroker { listen: listen.parse().unwrap(), login: login("own") };
            let access = Access { own: Some(own), ..Access::default() };
            access.login_at(&address.parse().unwrap()) == Some(("own", "secret"))
        };
        assert!(is_told("127.0.0.1:1883", "127.0.0.1:1883"));
        assert!(is_told("127.0.0.1:1883", "localhost:1883"));
        assert!(is_told("[::1]:1883", "[::1]:1883"));
        assert!(is_told("0.0.0.0:1883", "0.0.0.0:1883"));
        assert!(is_told("0.0.0.0:1883", "127.0.0.1:1883"));
        assert!(!is_told("127.0.0.1:1883", "127.0.0.1:1884"));
        assert!(!is_told("127.0.0.1:1883", "127.0.0.2:1883"));
        assert!(!is_told("127.0.0.1:1883", "ssl://127.0.0.1:1883"));
        assert!(!is_told("192.0.2.1:1883", "localhost:1883"));
        assert!(!is_told("0.0.0.0:1883", "192.0.2.1:1883"));
        assert!(!is_told("127.0.0.1:1883", "broker:1883"));
    }

    #[test]
    fn the_sites_broker_is_told_its_own() {
        let ca_file = Some("ca.crt".into());
        let external = ExternalBroker {
            address: "ssl://broker:8883".parse().unwrap(),
            login: Some(login("site")),
            trust: Trust { ca_file: ca_file.clone(), ..Trust::default() },
        };
        let access = Access { external: Some(external), ..Access::default() };
        let at = |address: &str| {
            let address = address.parse().unwrap();
            (access.login_at(&address).map(|(user, _)| user), access.trust_at(&address).ca_file.clone())
        };
        assert_eq!(at("ssl://broker"), (Some("site"), ca_file));
        assert_eq!(at("tcp://broker:8883"), (None, None));
        assert_eq!(at("ssl://other"), (None, None));
    }
}
