//! What quinn's congestion control alone is told of a connection: whether large packets arrive. And that it lets the end of the
//! connection through.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use quinn::{
    Connection, VarInt,
    congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig},
};
use quinn_proto::RttEstimator;

/// Bytes of a packet that is full: the smallest limit for QUIC's is 1200 (RFC 9000, section 14), and the pieces of streams do not fill
/// each to the last byte.
const LARGE: u64 = 1150;

#[derive(Default)]
pub(super) struct Watching(Arc<CubicConfig>);

impl ControllerFactory for Watching {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Cubic::new(Arc::clone(&self.0), now, current_mtu);
        Box::new(Watched { inner, large: Large::default(), shared: Arc::default() })
    }
}

/// What is known of large packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Large {
    /// When the first was sent after all that have arrived, as far as is known.
    pub(super) since: Option<Instant>,
    /// A smaller one that was sent later has arrived.
    pub(super) overtaken: bool,
}

impl Large {
    pub(super) fn of(connection: &Connection) -> Self {
        watched(connection).map(|watched| watched.large()).unwrap_or_default()
    }

    /// What was sent so far: the last of a handshake, and what looks for the peer at another address, are confirmed to nobody.
    pub(super) fn forget(connection: &Connection) {
        if let Some(watched) = watched(connection) {
            watched.shared.forget.store(true, Ordering::Relaxed);
        }
    }

    /// Of several that are sent at once only the last may be smaller.
    fn sent(&mut self, now: Instant, bytes: u64) {
        if bytes >= LARGE {
            self.since.get_or_insert(now);
        }
    }

    fn confirmed(&mut self, sent: Instant, bytes: u64) {
        if bytes >= LARGE {
            *self = Self::default();
        } else if self.since.is_some_and(|since| since <= sent) {
            self.overtaken = true;
        }
    }
}

/// Ends a connection, and sees to it that the peer learns of it: when there is data to send and the window is full, quinn holds
/// the packet that says it back as if it were data (quinn-rs/quinn#2785, in 0.11.19 still).
pub(super) fn close(connection: &Connection, code: VarInt, reason: &[u8]) {
    if let Some(watched) = watched(connection) {
        watched.shared.ending.store(true, Ordering::Relaxed);
    }
    connection.close(code, reason);
}

/// As it is now.
fn watched(connection: &Connection) -> Option<Box<Watched>> {
    connection.congestion_state().into_any().downcast().ok()
}

#[derive(Clone)]
struct Watched {
    inner: Cubic,
    large: Large,
    shared: Arc<Shared>,
}

/// With all copies.
#[derive(Default)]
struct Shared {
    /// What was sent so far.
    forget: AtomicBool,
    /// Nothing is sent any more but the end.
    ending: AtomicBool,
}

impl Watched {
    fn large(&self) -> Large {
        if self.shared.forget.load(Ordering::Relaxed) { Large::default() } else { self.large }
    }
}

impl Controller for Watched {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.large = self.large();
        self.shared.forget.store(false, Ordering::Relaxed);
        self.large.sent(now, bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.large.confirmed(sent, bytes);
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.shared.ending.load(Ordering::Relaxed) { u64::MAX } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_large_packet_is_open_until_one_arrives() {
        let begun = Instant::now();
        let mut watched = build(begun);
        watched.on_sent(begun, LARGE - 1, 0);
        assert_eq!(watched.large, Large::default());
        let at = |seconds| begun + Duration::from_secs(seconds);
        watched.on_sent(at(1), 5 * LARGE, 1);
        watched.on_sent(at(2), LARGE, 6);
        assert_eq!(watched.large, Large { since: Some(at(1)), overtaken: false });
        watched.on_congestion_event(at(3), at(1), false, LARGE);
        assert_eq!(watched.large.since, Some(at(1)), "lost is not confirmed");
        watched.shared.forget.store(true, Ordering::Relaxed);
        assert_eq!(watched.large(), Large::default());
        watched.on_sent(at(3), LARGE - 1, 7);
        assert_eq!(watched.large(), Large::default());
        watched.on_sent(at(4), LARGE, 8);
        assert_eq!(watched.large().since, Some(at(4)));
    }

    #[test]
    fn what_was_sent_before_overtakes_nothing() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut large = Large::default();
        large.confirmed(at(0), LARGE - 1);
        assert_eq!(large, Large::default());
        large.sent(at(1), LARGE);
        large.confirmed(at(0), LARGE - 1);
        assert_eq!(large, Large { since: Some(at(1)), overtaken: false });
        large.confirmed(at(2), LARGE - 1);
        assert_eq!(large, Large { since: Some(at(1)), overtaken: true });
        large.confirmed(at(1), LARGE);
        assert_eq!(large, Large::default());
    }

    #[test]
    fn the_end_has_room() {
        let begun = Instant::now();
        let watched = build(begun);
        assert!(watched.window() < 1 << 20, "{}", watched.window());
        let copy = watched.clone_box().into_any().downcast::<Watched>().unwrap();
        copy.shared.ending.store(true, Ordering::Relaxed);
        assert_eq!(watched.window(), u64::MAX);
        assert_eq!(build(begun).window(), watched.initial_window(), "of another connection");
    }

    fn build(now: Instant) -> Watched {
        *Arc::new(Watching::default()).build(now, 1200).into_any().downcast().unwrap()
    }
}
