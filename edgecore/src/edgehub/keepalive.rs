//! How long a line may be idle. What translates addresses on the way (NAT) forgets a line on which nothing is said, and what the cloud
//! then says gets nowhere until the edge has said something. How soon it forgets is learnt: over QUIC the cloud asks anew who it
//! is when the edge comes from another port than before, over TCP the connection is reset. Then the line is used after half of the time
//! that was too long; and some day again after half as much more. Where nothing forgets this costs nothing.

use std::time::Duration;

/// However soon it is forgotten.
const SHORTEST: Duration = Duration::from_secs(10);
/// So many silences that were not too long make the next ones longer; more and more, as it is seen that they may not be.
const HELD: (u32, u32) = (60, 60 * 24);

#[derive(Debug, Clone)]
pub(super) struct Keepalive {
    longest: Duration,
    after: Duration,
    held: u32,
    /// Silences before the next attempt with longer ones.
    wanted: u32,
}

impl Keepalive {
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, after: longest, held: 0, wanted: HELD.0 }
    }

    /// How long the line may be idle.
    pub(super) fn after(&self) -> Duration {
        self.after
    }

    /// Whether a silence is of the kind from which something can be learnt.
    pub(super) fn tells(&self, silence: Duration) -> bool {
        silence >= self.after * 3 / 4
    }

    pub(super) fn forgotten(&mut self, silence: Duration) {
        self.after = (silence.min(self.after) / 2).max(SHORTEST).min(self.longest);
        (self.held, self.wanted) = (0, (2 * self.wanted).min(HELD.1));
    }

    pub(super) fn held(&mut self) {
        if self.after == self.longest {
            return;
        }
        self.held += 1;
        if self.held >= self.wanted {
            self.held = 0;
            self.after = (self.after * 3 / 2).min(self.longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_secs(40);

    #[test]
    fn a_line_that_is_forgotten_soon_is_used_more_often() {
        let mut keepalive = Keepalive::new(USUAL);
        let memory = Duration::from_secs(25);
        let mut forgotten = Vec::new();
        for round in 0..2_000 {
            let silence = keepalive.after();
            assert!(keepalive.tells(silence) && !keepalive.tells(silence / 2));
            if silence > memory {
                forgotten.push(round);
                keepalive.forgotten(silence);
            } else {
                keepalive.held();
            }
            assert!(round == 0 || round > forgotten[0] && keepalive.after() >= SHORTEST);
        }
        // At once, and then ever more seldom.
        assert_eq!(forgotten[0], 0);
        assert!((2..=5).contains(&forgotten.len()), "{forgotten:?}");
        let gaps: Vec<i32> = forgotten.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.is_sorted(), "{gaps:?}");
    }

    #[test]
    fn where_nothing_is_forgotten_nothing_changes_and_what_was_learnt_is_unlearnt() {
        let mut keepalive = Keepalive::new(USUAL);
        for _ in 0..HELD.0 {
            keepalive.held();
        }
        assert_eq!(keepalive.after(), USUAL);
        keepalive.forgotten(USUAL);
        assert_eq!(keepalive.after(), USUAL / 2);
        for _ in 0..4 * HELD.0 {
            keepalive.held();
        }
        assert_eq!(keepalive.after(), USUAL);
        // A heartbeat that is shorter than all of this stays.
        let mut short = Keepalive::new(Duration::from_secs(2));
        short.forgotten(Duration::from_secs(2));
        assert_eq!(short.after(), Duration::from_secs(2));
    }
}
