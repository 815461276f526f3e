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

/// What is sent within the shorter time is one flight, confirmed or lost together. After the longer one, shorter than [`UNCONFIRMED`], what
/// was sent before is confirmed already, or lost.
const APART: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

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
    unconfirmed: Option<Unconfirmed>,
}

/// Something was sent that the peer has not confirmed.
#[derive(Debug)]
struct Unconfirmed {
    /// The last time.
    sent: Instant,
    /// How much the peer had confirmed then.
    before: u64,
    /// The next confirmation may be that of what was sent shortly before.
    of_another: bool,
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
        let of_another = match &self.unconfirmed {
            Some(waiting) if waiting.before == confirmed => {
                let apart = now.saturating_duration_since(waiting.sent);
                if apart <= APART.0 { waiting.of_another } else { apart <= APART.1 }
            }
            // All that was sent before the count grew is confirmed.
            _ => false,
        };
        self.unconfirmed = Some(Unconfirmed { sent: now, before: confirmed, of_another });
    }

    pub(crate) fn confirmed(&mut self, confirmed: u64) {
        if let Some(waiting) = self.unconfirmed.take_if(|waiting| waiting.before != confirmed)
            && waiting.of_another
        {
            self.unconfirmed = Some(Unconfirmed { before: confirmed, of_another: false, ..waiting });
        }
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
        self.unconfirmed
            .as_ref()
            .map_or(regular, |waiting| regular.min(waiting.sent.max(self.pinged) + UNCONFIRMED))
    }
}
