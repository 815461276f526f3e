//! When a rule begins, and when it is over.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::devicetwin::twin::UnixMs;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Moment {
    Begins,
    IsOver,
}

/// What the store keeps of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// A rule of the same name with another uid begins anew.
    pub(super) uid: Box<str>,
    /// It has begun, and is not over.
    pub(super) active: bool,
    /// How often it has begun.
    pub(super) fired: u64,
    pub(super) last_fired: Option<UnixMs>,
    /// What is to be done for is not done yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) due: Option<Moment>,
}

/// Since when its condition has been true, of a rule that is not active.
#[derive(Debug, Default)]
pub(super) struct Held(Option<Instant>);

impl Held {
    /// Takes in whether the condition is true, and whether it is over; `None`: not known. Of a rule that waits for its hold time,
    /// [`until`](Self::until) says when to look again.
    pub(super) fn step(
        &mut self,
        kept: &mut Kept,
        (when, over): (Option<bool>, Option<bool>),
        hold: Duration,
        (now, time): (Instant, UnixMs),
    ) -> Option<Moment> {
        if kept.active {
            self.0 = None;
            if over != Some(true) {
                return None;
            }
            (kept.active, kept.due) = (false, Some(Moment::IsOver));
            return kept.due;
        }
        if when != Some(true) {
            self.0 = None;
            return None;
        }
        let since = *self.0.get_or_insert(now);
        if now.saturating_duration_since(since) < hold {
            return None;
        }
        self.0 = None;
        (kept.active, kept.fired, kept.last_fired, kept.due) =
            (true, kept.fired + 1, Some(time), Some(Moment::Begins));
        kept.due
    }

    /// When it begins, if its condition stays true.
    pub(super) fn until(&self, hold: Duration) -> Option<Instant> {
        self.0.map(|since| since + hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_once_after_the_hold_time_and_is_over_when_that_is_said() {
        let (begun, hold) = (Instant::now(), Duration::from_secs(3));
        let (mut held, mut kept) = (Held::default(), Kept::default());
        let mut step = |second: u64, when, over| {
            held.step(&mut kept, (when, over), hold, (begun + Duration::from_secs(second), second))
        };
        let (yes, no, unknown) = (Some(true), Some(false), None);
        assert_eq!(step(0, yes, no), None);
        assert_eq!(step(2, yes, no), None);
        // A break.
        assert_eq!(step(3, no, yes), None);
        assert_eq!(step(4, yes, no), None);
        // Not known is no longer held.
        assert_eq!(step(5, unknown, unknown), None);
        assert_eq!(step(6, yes, no), None);
        assert_eq!(step(9, yes, no), Some(Moment::Begins));
        assert_eq!(step(10, yes, no), None);
        assert_eq!(step(11, no, no), None);
        assert_eq!(step(12, unknown, unknown), None);
        assert_eq!(step(13, no, yes), Some(Moment::IsOver));
        assert_eq!(step(14, no, yes), None);
        assert_eq!((kept.active, kept.fired, kept.last_fired), (false, 1, Some(9)));
    }
}
