//! Which reports go up now, by the intervals of their classes: a pure function of the settings, what has been told, and
//! the time that it is given.
//!
//! An interval of a class begins with the first of its reports after a quiet time. While it lasts, what has not been said
//! in it goes up at once: the first status of a pod, and each look ([`Subject::look`]) that it has not had in this interval. What has
//! been said is held back to the end of the interval; then all that is held goes up together, each status as it is by
//! then, and the next interval begins. What is held stays in the outbox, and wakes nobody before.
//!
//! A new session tells a status again that it has not told yet, if it looks the same: the cloud may have forgotten it.
//!
//! What is remembered outlives a restart ([`Throttle::to_bytes`]), so that one does not let go what was held.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use crds::componentconfig::sync::{ClassName, LinkSettings};

/// Objects and their looks that are remembered: far above what a site has. Beyond it all is forgotten, and goes at once.
const REMEMBERED: usize = 8192;
/// A held report waits for the next heartbeat if that comes within this part of its interval.
const PATIENCE: u32 = 10;
/// Of [`Throttle::to_bytes`].
const FORMAT: u8 = 1;

/// Who chose the class of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Somebody waits for it: it is held back by nothing.
    AtOnce,
    /// Its pod did.
    Chosen(ClassName),
    /// What is seen of a status is critical, the rest of it and events are standard.
    Usual,
}

/// What has to be known of a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) id: u64,
    /// The hash of what it is about, the kind of report included.
    pub(super) key: u64,
    pub(super) class: Class,
    /// The hash of what a person sees of it first.
    pub(super) look: u64,
    /// The hash of all of it.
    pub(super) hash: u64,
    /// It says how something is, and replaces what was said before.
    pub(super) is_status: bool,
    /// The cloud needs one in each session.
    pub(super) once_a_session: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Send,
    Hold,
    /// The cloud has it already.
    Forget,
}

#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// In the order of [`ClassName::ALL`].
    windows: [Window; ClassName::ALL.len()],
    /// By [`Subject::key`], the status that was sent last.
    told: HashMap<u64, Told>,
    /// Something that outlives a restart has changed since it was last asked for.
    changed: bool,
}

/// An interval of a class.
#[derive(Debug, Default)]
struct Window {
    /// Since 1970.
    begun: Option<Duration>,
    /// Keys and looks.
    said: HashSet<(u64, u64)>,
    /// The first report that is held.
    held_from: Option<u64>,
    /// The interval before is over, and not all that it held back has been sent.
    releasing: bool,
}

#[derive(Debug)]
struct Told {
    id: u64,
    look: u64,
    hash: u64,
    in_this_session: bool,
    /// The API server has it, as of this session.
    taken: bool,
}

impl Throttle {
    /// A new session sees every report again.
    pub(super) fn begin_session(&mut self) {
        for told in self.told.values_mut() {
            (told.in_this_session, told.taken) = (false, false);
        }
        for window in &mut self.windows {
            (window.held_from, window.releasing) = (None, false);
        }
    }

    /// To be asked of each report of the outbox, in its order, after [`release`](Self::release).
    pub(super) fn judge(&mut self, subject: &Subject, settings: &LinkSettings, now: Duration) -> Verdict {
        let told = self.told.get(&subject.key).filter(|_| subject.is_status);
        if told.is_some_and(|told| told.taken && told.hash == subject.hash) && !settings.repeat {
            return Verdict::Forget;
        }
        let class = match subject.class {
            Class::AtOnce => return self.send(subject),
            Class::Chosen(class) => class,
            Class::Usual if subject.is_status && told.is_none_or(|told| told.look != subject.look) => {
                ClassName::Critical
            }
            Class::Usual => ClassName::Standard,
        };
        let interval = settings.intervals[class as usize];
        if interval.is_zero() {
            return self.send(subject);
        }
        let window = &mut self.windows[class as usize];
        if window.is_over(interval, now) {
            window.begin(now);
        }
        let again = told.is_some_and(|told| {
            !told.in_this_session && (told.look == subject.look || subject.once_a_session)
        });
        let is_first = subject.is_status && told.is_none();
        let is_new = window.said.insert((subject.key, subject.look));
        self.changed |= is_new;
        if window.releasing || is_new || again || is_first {
            return self.send(subject);
        }
        window.held_from = Some(window.held_from.map_or(subject.id, |from| from.min(subject.id)));
        Verdict::Hold
    }

    fn send(&mut self, subject: &Subject) -> Verdict {
        if self.told.len() >= REMEMBERED || self.windows.iter().any(|window| window.said.len() >= REMEMBERED)
        {
            self.told.clear();
            self.windows.iter_mut().for_each(|window| window.said.clear());
        }
        if subject.is_status {
            let Subject { id, look, hash, .. } = *subject;
            let told = Told { id, look, hash, in_this_session: true, taken: false };
            self.told.insert(subject.key, told);
            self.changed = true;
        }
        Verdict::Send
    }

    /// If an interval that held something back is over: the first report that has to be judged again.
    pub(super) fn release(&mut self, settings: &LinkSettings, now: Duration) -> Option<u64> {
        let mut first: Option<u64> = None;
        for (window, interval) in self.windows.iter_mut().zip(settings.intervals) {
            if let Some(from) = window.held_from
                && window.is_over(interval, now)
            {
                window.begin(now);
                window.releasing = true;
                self.changed = true;
                first = Some(first.map_or(from, |first| first.min(from)));
            }
        }
        first
    }

    /// Every report of the outbox has been judged since [`release`](Self::release).
    pub(super) fn all_judged(&mut self) {
        self.windows.iter_mut().for_each(|window| window.releasing = false);
    }

    /// The first report that is held back, whatever its class.
    pub(super) fn held_from(&self) -> Option<u64> {
        self.windows.iter().filter_map(|window| window.held_from).min()
    }

    /// When the next interval that holds something back is over, and until when that may wait for something else to wake the
    /// line.
    pub(super) fn due(&mut self, settings: &LinkSettings, now: Duration) -> Option<(Duration, Duration)> {
        let windows = self.windows.iter_mut().zip(settings.intervals);
        let held = windows.filter(|(window, _)| window.held_from.is_some());
        held.map(|(window, interval)| {
            let end = window.begun(now).unwrap_or_default() + interval;
            (end, end + interval / PATIENCE)
        })
        .min()
    }

    /// The cloud has taken the report, or refused it for good.
    pub(super) fn answered(&mut self, key: u64, id: u64, refused: bool) {
        match self.told.get_mut(&key) {
            Some(told) if told.id == id && refused => drop(self.told.remove(&key)),
            Some(told) if told.id == id => told.taken = true,
            _ => {}
        }
    }

    /// What is to be kept over a restart, if it has changed since it was last asked for and there is a reason to.
    pub(super) fn take_changes(&mut self, settings: &LinkSettings) -> Option<Bytes> {
        let wanted = settings.intervals.iter().any(|interval| !interval.is_zero());
        (wanted && std::mem::take(&mut self.changed)).then(|| self.to_bytes())
    }

    /// Little-endian: the format's number, each window (when it begun in milliseconds since 1970, 0 if it did not; the number of
    /// what was said, and that), then of each status that was told key, look and hash.
    fn to_bytes(&self) -> Bytes {
        let said: usize = self.windows.iter().map(|window| window.said.len()).sum();
        let mut out = Vec::with_capacity(1 + 12 * self.windows.len() + 16 * said + 24 * self.told.len());
        out.put_u8(FORMAT);
        for window in &self.windows {
            let begun = window.begun.unwrap_or_default().as_millis();
            out.put_u64_le(u64::try_from(begun).unwrap_or(u64::MAX));
            out.put_u32_le(u32::try_from(window.said.len()).unwrap_or(u32::MAX));
            for (key, look) in &window.said {
                out.put_u64_le(*key);
                out.put_u64_le(*look);
            }
        }
        for (key, told) in &self.told {
            out.put_u64_le(*key);
            out.put_u64_le(told.look);
            out.put_u64_le(told.hash);
        }
        out.into()
    }

    /// Of what a later version wrote nothing is known.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self::read(bytes).unwrap_or_default()
    }

    fn read(mut from: &[u8]) -> Option<Self> {
        let mut throttle = Self::default();
        if from.try_get_u8().ok()? != FORMAT {
            return None;
        }
        for window in &mut throttle.windows {
            let begun = from.try_get_u64_le().ok()?;
            window.begun = (begun > 0).then(|| Duration::from_millis(begun));
            for _ in 0..from.try_get_u32_le().ok()? {
                window.said.insert((from.try_get_u64_le().ok()?, from.try_get_u64_le().ok()?));
            }
        }
        while from.has_remaining() {
            let key = from.try_get_u64_le().ok()?;
            let (look, hash) = (from.try_get_u64_le().ok()?, from.try_get_u64_le().ok()?);
            let told = Told { id: 0, look, hash, in_this_session: false, taken: false };
            throttle.told.insert(key, told);
        }
        Some(throttle)
    }
}

impl Window {
    fn begin(&mut self, now: Duration) {
        *self = Self { begun: Some(now), ..Self::default() };
    }

    /// A clock that was set back has been so by nobody knows how much: the interval begins anew.
    fn begun(&mut self, now: Duration) -> Option<Duration> {
        self.begun = self.begun.map(|begun| begun.min(now));
        self.begun
    }

    fn is_over(&mut self, interval: Duration, now: Duration) -> bool {
        self.begun(now).is_none_or(|begun| now >= begun + interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const NOON: Duration = Duration::from_hours(500_000);

    /// What the documentation shows.
    fn shown() -> LinkSettings {
        LinkSettings { intervals: [5 * MINUTE, 60 * MINUTE, 1440 * MINUTE], ..LinkSettings::default() }
    }

    fn status(id: u64, key: u64, look: u64, hash: u64) -> Subject {
        Subject { id, key, class: Class::Usual, look, hash, is_status: true, once_a_session: false }
    }

    fn event(id: u64, key: u64, look: u64) -> Subject {
        Subject { is_status: false, hash: id, ..status(id, key, look, id) }
    }

    /// An outbox: newer state replaces what is pending.
    #[derive(Default)]
    struct Outbox {
        throttle: Throttle,
        pending: Vec<Subject>,
        cursor: u64,
        sent: Vec<u64>,
    }

    impl Outbox {
        fn add(&mut self, subject: Subject) {
            let same = |held: &Subject| held.is_status && subject.is_status && held.key == subject.key;
            self.pending.retain(|held| !same(held));
            self.pending.push(subject);
        }

        /// What goes up at this time; it is taken at once.
        fn go(&mut self, settings: &LinkSettings, now: Duration) -> Vec<u64> {
            if let Some(from) = self.throttle.release(settings, now) {
                self.cursor = self.cursor.min(from - 1);
            }
            let judged: Vec<Subject> =
                self.pending.iter().filter(|subject| subject.id > self.cursor).copied().collect();
            let mut gone = Vec::new();
            for subject in judged {
                self.cursor = subject.id;
                let verdict = self.throttle.judge(&subject, settings, now);
                if verdict != Verdict::Hold {
                    self.pending.retain(|held| held.id != subject.id);
                }
                if verdict == Verdict::Send {
                    self.throttle.answered(subject.key, subject.id, false);
                    gone.push(subject.id);
                }
            }
            self.throttle.all_judged();
            self.sent.extend(&gone);
            gone
        }

        fn new_session(&mut self) {
            self.cursor = 0;
            self.throttle.begin_session();
        }
    }

    #[test]
    fn without_settings_all_goes_at_once() {
        let (mut outbox, none) = (Outbox::default(), LinkSettings::default());
        for id in 1..100 {
            outbox.add(status(2 * id, id % 3, id % 2, id));
            outbox.add(event(2 * id + 1, 7, 1));
            assert_eq!(outbox.go(&none, NOON), [2 * id, 2 * id + 1]);
            assert_eq!(outbox.throttle.due(&none, NOON), None);
        }
        assert_eq!(outbox.throttle.take_changes(&none), None);
    }

    #[test]
    fn what_has_been_said_waits_for_the_end_of_the_interval() {
        let mut outbox = Outbox::default();
        // Three pods become ready, one after the other; no first status waits.
        for (id, key) in [(1, 1), (2, 2), (3, 3)] {
            outbox.add(status(id, key, 0, id));
            assert_eq!(outbox.go(&shown(), NOON), [id]);
        }
        outbox.add(status(4, 1, 1, 4));
        assert_eq!(outbox.go(&shown(), NOON + MINUTE), [4]);
        // It was not ready before, and it has said that it is.
        outbox.add(status(5, 1, 0, 5));
        assert_eq!(outbox.go(&shown(), NOON + 2 * MINUTE), [0; 0]);
        assert_eq!(
            outbox.throttle.due(&shown(), NOON + 2 * MINUTE).map(|due| due.0),
            Some(NOON + 5 * MINUTE)
        );
        outbox.add(status(6, 1, 1, 6));
        outbox.add(status(7, 1, 0, 7));
        outbox.add(status(8, 2, 5, 8));
        assert_eq!(outbox.go(&shown(), NOON + 3 * MINUTE), [8], "only what is new");
        outbox.add(status(9, 2, 0, 9));
        assert_eq!(outbox.go(&shown(), NOON + 5 * MINUTE), [7, 9], "the newest of each, together");
        assert_eq!(outbox.throttle.due(&shown(), NOON + 5 * MINUTE), None);
        // The next interval has begun with these.
        outbox.add(status(10, 1, 1, 10));
        assert_eq!(outbox.go(&shown(), NOON + 6 * MINUTE), [10]);
        outbox.add(status(11, 1, 0, 11));
        assert_eq!(outbox.go(&shown(), NOON + 6 * MINUTE), [0; 0]);
        // A quiet time, and all is as at the beginning.
        assert_eq!(outbox.go(&shown(), NOON + 10 * MINUTE), [11]);
        outbox.add(status(12, 1, 1, 12));
        assert_eq!(outbox.go(&shown(), NOON + 60 * MINUTE), [12]);
    }

    #[test]
    fn what_is_not_seen_is_standard_and_so_are_events() {
        let mut outbox = Outbox::default();
        outbox.add(status(1, 1, 7, 1));
        assert_eq!(outbox.go(&shown(), NOON), [1]);
        for id in [2, 4, 6] {
            outbox.add(status(id, 1, 7, id));
            outbox.add(event(id + 1, 9, 3));
            let wanted = if id == 2 { vec![2, 3] } else { Vec::new() };
            assert_eq!(outbox.go(&shown(), NOON + 10 * MINUTE), wanted);
        }
        assert_eq!(outbox.throttle.held_from(), Some(4));
        // Events are all told in the end.
        assert_eq!(outbox.go(&shown(), NOON + 70 * MINUTE), [5, 6, 7]);
        let chosen = |id, class| Subject { class, ..status(id, 50, id % 2, id) };
        for (id, wanted) in [(20, 1), (21, 1), (22, 0), (23, 0)] {
            outbox.add(chosen(id, Class::Chosen(ClassName::Batch)));
            assert_eq!(outbox.go(&shown(), NOON + 80 * MINUTE).len(), wanted, "{id}");
        }
        outbox.add(chosen(24, Class::AtOnce));
        assert_eq!(outbox.go(&shown(), NOON + 80 * MINUTE), [24]);
    }

    #[test]
    fn a_new_session_tells_again_what_has_not_changed_and_holds_what_has() {
        let mut outbox = Outbox::default();
        for (id, look) in [(1, 0), (3, 1)] {
            outbox.add(status(id, 1, look, look));
            outbox.add(status(id + 1, 2, look, look));
            assert_eq!(outbox.go(&shown(), NOON), [id, id + 1]);
        }
        outbox.add(status(5, 1, 0, 0));
        assert_eq!(outbox.go(&shown(), NOON + MINUTE), [0; 0]);
        let kept = outbox.throttle.take_changes(&shown()).unwrap();
        assert_eq!(outbox.throttle.take_changes(&shown()), None);
        for restarted in [false, true] {
            if restarted {
                outbox.throttle = Throttle::from_bytes(&kept);
            }
            outbox.new_session();
            outbox.add(status(20 + u64::from(restarted), 2, 1, 1));
            assert_eq!(outbox.go(&shown(), NOON + 2 * MINUTE), [20 + u64::from(restarted)]);
        }
        // The node's own is told in every session, changed or not.
        outbox.add(Subject { once_a_session: true, ..status(30, 2, 0, 5) });
        assert_eq!(outbox.go(&shown(), NOON + 2 * MINUTE), [0; 0]);
        outbox.new_session();
        assert_eq!(outbox.go(&shown(), NOON + 2 * MINUTE), [30]);
        assert_eq!(outbox.go(&shown(), NOON + 5 * MINUTE), [5]);
    }

    #[test]
    fn a_shorter_interval_lets_go_and_so_does_none() {
        let short = LinkSettings { intervals: [MINUTE; 3], ..shown() };
        for (settings, later) in [(short, 2), (LinkSettings::default(), 0)] {
            let mut outbox = Outbox::default();
            for (id, look) in [(1, 0), (2, 1), (3, 0)] {
                outbox.add(status(id, 1, look, id));
                assert_eq!(outbox.go(&shown(), NOON).len(), usize::from(id < 3));
            }
            assert_eq!(outbox.go(&settings, NOON + later * MINUTE), [3]);
        }
    }

    #[test]
    fn a_status_that_is_told_already_is_forgotten() {
        let mut outbox = Outbox::default();
        for (id, look) in [(1, 0), (2, 1), (3, 0)] {
            outbox.add(status(id, 1, look, look));
            outbox.go(&shown(), NOON);
        }
        // Back to what was told last, while that was held.
        outbox.add(status(4, 1, 1, 1));
        assert_eq!(outbox.go(&shown(), NOON + MINUTE), [0; 0]);
        assert!(outbox.pending.is_empty());
        let repeat = LinkSettings { repeat: true, ..shown() };
        outbox.add(status(5, 1, 1, 1));
        outbox.go(&repeat, NOON + MINUTE);
        assert_eq!(outbox.go(&repeat, NOON + 70 * MINUTE), [0; 0], "the first of the standard ones went");
        assert_eq!(outbox.sent.last(), Some(&5));
        // What was refused was not told.
        outbox.throttle.answered(1, 5, true);
        outbox.add(status(6, 1, 1, 1));
        assert_eq!(outbox.go(&shown(), NOON + 71 * MINUTE), [6]);
    }

    #[test]
    fn a_clock_that_is_set_back_costs_one_interval() {
        let mut outbox = Outbox::default();
        for (id, look) in [(1, 0), (2, 1), (3, 0)] {
            outbox.add(status(id, 1, look, id));
            outbox.go(&shown(), NOON);
        }
        let early = Duration::from_hours(3);
        let end = early + 5 * MINUTE;
        assert_eq!(outbox.throttle.due(&shown(), early), Some((end, end + MINUTE / 2)));
        assert_eq!(outbox.go(&shown(), early + MINUTE), [0; 0]);
        assert_eq!(outbox.go(&shown(), early + 5 * MINUTE), [3]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_bytes_that_are_none_are_nothing() {
        let mut throttle = Throttle::default();
        for id in 0..4 * REMEMBERED as u64 {
            assert_eq!(throttle.judge(&status(id, id, 1, id), &shown(), NOON), Verdict::Send);
        }
        assert!(throttle.told.len() <= REMEMBERED && throttle.windows[0].said.len() <= REMEMBERED);
        let bytes = throttle.to_bytes();
        for length in 0..bytes.len().min(200) {
            Throttle::from_bytes(&bytes[..length]);
        }
        let again = Throttle::from_bytes(&bytes);
        assert_eq!((again.told.len(), again.windows[0].begun), (throttle.told.len(), Some(NOON)));
        Throttle::from_bytes(&[FORMAT, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    }
}
