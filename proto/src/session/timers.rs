//! When to ping, and when to give a silent peer up.

use std::time::{Duration, Instant};

use super::Dead;

/// Heartbeats outside these bounds are brought inside them: a peer must not make us spin, nor keep a dead link for ever.
pub const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_mins(10));

/// A connection that has not got through its handshake by then is closed.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a peer whose transport confirms what it gets may leave something unconfirmed before it is pinged. Transports ask
/// ever more seldom; a line that is back is to be noticed soon.
const UNCONFIRMED: Duration = Duration::from_secs(3);

/// Liveness of one link. The edge pings when a heartbeat has passed without an exchange; the cloud only answers, and
/// pings by itself when an expected ping is overdue. Either gives up after two heartbeats of silence.
#[derive(Debug)]
pub(crate) struct Timers {
    ping_after: Duration,
    heartbeat: Duration,
    heard: Instant,
    /// Parts of a frame came. They put off the end, but no ping: the peer, too, wants to hear something meanwhile.
    progressed: Instant,
    pinged: Instant,
    /// Something was sent at this time that the peer has not confirmed, and how much it had confirmed then.
    unconfirmed: Option<(Instant, u64)>,
}

impl Timers {
    pub(crate) fn edge(heartbeat: Duration, now: Instant) -> Self {
        let heartbeat = heartbeat.clamp(HEARTBEAT.0, HEARTBEAT.1);
        Self { ping_after: heartbeat, heartbeat, heard: now, progressed: now, pinged: now, unconfirmed: None }
    }

    pub(crate) fn cloud(heartbeat: Duration, now: Instant) -> Self {
        let heartbeat = heartbeat.clamp(HEARTBEAT.0, HEARTBEAT.1);
        Self {
            ping_after: heartbeat * 5 / 4,
            heartbeat,
            heard: now,
            progressed: now,
            pinged: now,
            unconfirmed: None,
        }
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(crate) fn sent(&mut self, now: Instant, confirmed: u64) {
        // What was sent before the count grew is confirmed.
        self.confirmed(confirmed);
        self.unconfirmed.get_or_insert((now, confirmed));
    }

    pub(crate) fn confirmed(&mut self, confirmed: u64) {
        self.unconfirmed = self.unconfirmed.filter(|(_, before)| confirmed == *before);
    }

    /// The peer's session has answered all that matters.
    pub(crate) fn answered(&mut self) {
        self.unconfirmed = None;
    }

    pub(crate) fn progressed(&mut self, at: Instant) {
        self.progressed = at;
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.ping_due().min(self.alive() + 2 * self.heartbeat)
    }

    /// Whether a ping is due now, or the peer is to be given up.
    pub(crate) fn check(&mut self, now: Instant) -> Result<bool, Dead> {
        let silence = now.saturating_duration_since(self.alive());
        if silence >= 2 * self.heartbeat {
            return Err(Dead { silence });
        }
        let due = now >= self.ping_due();
        if due {
            self.pinged = now;
        }
        Ok(due)
    }

    fn alive(&self) -> Instant {
        self.heard.max(self.progressed)
    }

    fn ping_due(&self) -> Instant {
        let regular = self.heard.max(self.pinged) + self.ping_after;
        self.unconfirmed.map_or(regular, |(sent, _)| regular.min(sent.max(self.pinged) + UNCONFIRMED))
    }
}
