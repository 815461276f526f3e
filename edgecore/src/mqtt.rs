//! What clients of MQTT brokers here have in common.

use std::sync::Arc;

use rumqttc::{ConnectionError, Event, EventLoop, Packet, TlsConfiguration, Transport};
use runtime::tls::{TlsError, Trust};

/// TLS, with whom the files of `trust` say now that is to be believed.
pub(crate) fn transport(trust: &Trust) -> Result<Transport, TlsError> {
    Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(trust.client_config()?))))
}

/// Until the broker has let the client in. What it says meanwhile is none of anybody's.
pub(crate) async fn connected(events: &mut EventLoop) -> Result<(), ConnectionError> {
    loop {
        if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
            return Ok(());
        }
    }
}
