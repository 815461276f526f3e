//! What clients of MQTT brokers here have in common.

use rumqttc::{ConnectionError, Event, EventLoop, Packet};

/// Until the broker has let the client in. What it says meanwhile is none of anybody's.
pub(crate) async fn connected(events: &mut EventLoop) -> Result<(), ConnectionError> {
    loop {
        if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
            return Ok(());
        }
    }
}
