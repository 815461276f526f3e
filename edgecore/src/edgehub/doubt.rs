//! Whether the line still carries what is sent. A session is given up after two heartbeats of silence, which may be minutes; what the
//! edge has sent and nobody confirms puts it in doubt after a few seconds. Then another link is looked for beside it, and taken if
//! this one is silent still when the other is up.
//!
//! Whatever comes from the peer is life, and so is each confirmation: a line that is slow, or loses much, is not to be left. So nothing
//! is in doubt before several round trips have passed, and over QUIC the peer is asked several times meanwhile; over TCP the
//! kernel asks. A doubt that was wrong doubles the patience of the next.
//!
//! Knows neither sockets nor a clock.

use std::time::{Duration, Instant};

use runtime::link::Delivery;

/// How long what was sent may be unconfirmed in silence, at least; with a short heartbeat three quarters of one.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(2500));
/// The same, in round trips. As many attempts of TCP as it takes to tell a line that loses 20 % from a dead one.
const ROUND_TRIPS: u32 = 8;
/// Of what is measured as a round trip.
const LONGEST: Duration = Duration::from_secs(3);
/// Looks in that time.
const LOOKS: u32 = 4;
/// So many times the patience may double.
const ALARMS: u32 = 3;
/// Questions after which the session's own pings do.
const QUESTIONS: u32 = 16;
/// Between looks from then on.
const SELDOM: Duration = Duration::from_secs(3);
/// How long the line may take to answer a last question when another link is up: so many round trips, at least and at most.
const LAST_WORD: (u32, Duration, Duration) = (4, Duration::from_millis(300), Duration::from_secs(3));

#[derive(Debug)]
pub(super) struct Doubt {
    patience: Duration,
    round_trip: Duration,
    /// Doubts of this session that were wrong.
    alarms: u32,
    on: bool,
    waiting: Option<Waiting>,
    /// Another link is up; it is taken then.
    leaving: Option<Instant>,
}

/// Something was sent and is not known to be confirmed.
#[derive(Debug)]
struct Waiting {
    /// Since then nothing was heard.
    silent: Instant,
    /// The last time that something was sent.
    sent: Instant,
    confirmed: Option<u64>,
    look: Instant,
    asked: u32,
}

/// What is to be done after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Ask the peer for a sign of life.
    Ask,
    /// Another link is up, and this one is silent.
    Leave,
}

impl Doubt {
    pub(super) fn new(heartbeat: Duration) -> Self {
        Self {
            patience: (heartbeat * 3 / 4).clamp(PATIENCE.0, PATIENCE.1),
            round_trip: Duration::ZERO,
            alarms: 0,
            on: false,
            waiting: None,
            leaving: None,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// How long a round trip takes, as it was measured last.
    pub(super) fn note_round_trip(&mut self, took: Duration) {
        self.round_trip = took.min(LONGEST);
    }

    /// Something was sent that the peer's transport is to confirm; `confirmed` is its count, where it costs nothing to ask.
    pub(super) fn sent(&mut self, now: Instant, confirmed: Option<u64>) {
        let look = now + self.step();
        match &mut self.waiting {
            // All that was sent before it grew is confirmed.
            Some(waiting) if confirmed.is_none() || waiting.confirmed == confirmed => waiting.sent = now,
            _ => {
                self.believe();
                self.waiting = Some(Waiting { silent: now, sent: now, confirmed, look, asked: 0 });
            }
        }
    }

    /// When to look next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let look = self.waiting.as_ref()?.look;
        Some(self.leaving.map_or(look, |leaving| look.min(leaving)))
    }

    /// Another link is up. Returns whether the peer is to be asked once more; the answer has a moment to come.
    pub(super) fn rival_is_up(&mut self, now: Instant) -> bool {
        if self.on {
            let (round_trips, least, most) = LAST_WORD;
            self.leaving = Some(now + (round_trips * self.round_trip).clamp(least, most));
        }
        self.on
    }

    /// `heard` is when something came from the peer last.
    pub(super) fn look(&mut self, now: Instant, heard: Instant, delivery: Option<Delivery>) -> Next {
        let (step, patience, round_trip) = (self.step(), self.span() * (1 << self.alarms), self.round_trip);
        let Some(waiting) = &mut self.waiting else { return Next::Wait };
        let mut lives = heard > waiting.silent;
        if lives {
            waiting.silent = heard;
        }
        let grew = |confirmed| waiting.confirmed.is_some_and(|before| before != confirmed);
        match delivery {
            Some(Delivery { confirmed, open: true }) => {
                let grew = grew(confirmed);
                waiting.confirmed = Some(confirmed);
                // What was sent just now may be on its way.
                if grew && now > waiting.sent + 2 * round_trip + step / 2 {
                    return self.settle();
                }
                if grew {
                    waiting.silent = now;
                    lives = true;
                }
            }
            // All is confirmed, or nothing can be found out.
            Some(Delivery { open: false, .. }) | None => return self.settle(),
        }
        if lives {
            waiting.asked = 0;
            waiting.look = now + step;
            self.believe();
            return Next::Wait;
        }
        if self.on && self.leaving.is_some_and(|leaving| now >= leaving) {
            return Next::Leave;
        }
        self.on |= now >= waiting.silent + patience;
        if now < waiting.look {
            return Next::Wait;
        }
        let seldom = waiting.asked >= QUESTIONS;
        waiting.asked += 1;
        waiting.look = now + if seldom { SELDOM } else { step };
        if seldom { Next::Wait } else { Next::Ask }
    }

    /// There is nothing to wait for.
    fn settle(&mut self) -> Next {
        self.waiting = None;
        self.believe();
        Next::Wait
    }

    /// The line has shown that it carries.
    fn believe(&mut self) {
        if std::mem::take(&mut self.on) {
            self.alarms = (self.alarms + 1).min(ALARMS);
        }
        self.leaving = None;
    }

    fn span(&self) -> Duration {
        self.patience.max(ROUND_TRIPS * self.round_trip)
    }

    fn step(&self) -> Duration {
        self.span() / LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_secs(70);
    const STEP: Duration = Duration::from_millis(5);

    /// A line, and time that goes by.
    struct Line {
        doubt: Doubt,
        now: Instant,
        heard: Instant,
        delivery: Delivery,
        asked: u32,
    }

    impl Line {
        fn new(round_trip: u64) -> Self {
            let now = Instant::now();
            let mut doubt = Doubt::new(USUAL);
            doubt.note_round_trip(Duration::from_millis(round_trip));
            Self { doubt, now, heard: now, delivery: Delivery { confirmed: 7, open: true }, asked: 0 }
        }

        fn send(&mut self) {
            self.doubt.sent(self.now, Some(self.delivery.confirmed));
        }

        /// Until the session is in doubt; `None` if it is not so soon.
        fn doubted_within(&mut self, seconds: u64) -> Option<Duration> {
            let begun = self.now;
            while self.now < begun + Duration::from_secs(seconds) {
                if self.doubt.is_on() {
                    return Some(self.now - begun);
                }
                assert_eq!(self.pass(), None);
            }
            None
        }

        /// When another link is taken.
        fn pass(&mut self) -> Option<Instant> {
            self.now += STEP;
            if self.doubt.deadline().is_none_or(|look| look > self.now) {
                return None;
            }
            match self.doubt.look(self.now, self.heard, Some(self.delivery)) {
                Next::Wait => None,
                Next::Ask => {
                    self.asked += 1;
                    // As the session would.
                    self.send();
                    None
                }
                Next::Leave => Some(self.now),
            }
        }
    }

    #[test]
    fn what_nobody_confirms_is_in_doubt_after_seconds_or_several_round_trips() {
        for (round_trip, wanted) in [(0, 2.5), (50, 2.5), (600, 4.8), (800, 6.4), (60_000, 24.0)] {
            let mut line = Line::new(round_trip);
            assert_eq!(line.doubt.deadline(), None, "a quiet line wakes nobody");
            line.send();
            let took = line.doubted_within(100).unwrap().as_secs_f64();
            assert!((wanted..wanted + 0.1).contains(&took), "{took} for {round_trip} ms");
            assert!(line.asked >= 3, "asked {} times", line.asked);
        }
        // Before a short heartbeat has ended the session.
        let mut line = Line { doubt: Doubt::new(Duration::from_secs(2)), ..Line::new(0) };
        line.send();
        assert!(line.doubted_within(2).is_some());
    }

    #[test]
    fn what_is_confirmed_soon_leaves_nothing_to_look_at() {
        let mut line = Line::new(50);
        line.send();
        line.delivery.confirmed += 1;
        assert_eq!(line.doubted_within(60), None);
        assert_eq!((line.doubt.deadline(), line.asked), (None, 0));
        // By a kernel that says that nothing is open, and by one that says nothing.
        for delivery in [Some(Delivery { confirmed: 7, open: false }), None] {
            line.send();
            let look = line.doubt.deadline().unwrap();
            assert_eq!(line.doubt.look(look, line.heard, delivery), Next::Wait);
            assert_eq!(line.doubt.deadline(), None);
        }
    }

    #[test]
    fn what_was_sent_just_before_a_confirmation_is_looked_at_again() {
        let mut line = Line::new(50);
        line.send();
        line.now += Duration::from_millis(740);
        line.send();
        line.delivery.confirmed += 1;
        assert!(line.doubted_within(60).is_some());
    }

    #[test]
    fn bytes_and_confirmations_are_life_however_slow() {
        let mut line = Line::new(100);
        line.send();
        for second in 0..300 {
            line.doubt.sent(line.now, None);
            if second % 2 == 0 {
                line.heard = line.now;
            } else {
                line.delivery.confirmed += 1;
            }
            assert_eq!(line.doubted_within(2), None);
        }
    }

    #[test]
    fn another_link_is_taken_if_a_last_question_is_not_answered() {
        for answered in [false, true] {
            let mut line = Line::new(50);
            assert!(!line.doubt.rival_is_up(line.now), "nothing is in doubt");
            line.send();
            line.doubted_within(10).unwrap();
            assert!(line.doubt.rival_is_up(line.now));
            let begun = line.now;
            if answered {
                line.heard = begun + STEP;
            }
            let mut taken = None;
            while taken.is_none() && line.now < begun + Duration::from_secs(1) {
                taken = line.pass();
            }
            let took = taken.map(|taken| taken - begun);
            assert_eq!(took.is_none(), answered, "{took:?}");
            assert!(took.is_none_or(|took| took <= LAST_WORD.1 + STEP), "{took:?}");
            assert_eq!(line.doubt.is_on(), !answered);
        }
    }

    #[test]
    fn a_doubt_that_was_wrong_makes_the_next_more_patient() {
        let mut line = Line::new(50);
        for wanted in [2.5, 5.0, 10.0, 20.0, 20.0] {
            line.send();
            let took = line.doubted_within(100).unwrap().as_secs_f64();
            assert!((wanted..wanted + SELDOM.as_secs_f64()).contains(&took), "{took} and not {wanted}");
            line.delivery.confirmed += 1;
            while line.doubt.is_on() {
                assert_eq!(line.pass(), None);
            }
        }
    }

    #[test]
    fn a_line_that_is_silent_for_long_is_not_asked_for_ever() {
        let mut line = Line::new(0);
        line.send();
        let begun = line.now;
        while line.now < begun + Duration::from_mins(2) {
            assert_eq!(line.pass(), None);
        }
        assert_eq!(line.asked, QUESTIONS);
    }
}
