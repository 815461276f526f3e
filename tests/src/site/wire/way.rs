//! One direction of a line: which frames arrive, and when. Knows neither sockets nor a clock.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use super::{
    frame::{HEADER, Transport, UDP},
    terms::{Counts, Silent, Terms},
};
use crate::random::Random;

/// Frames that are under way at most, and bytes of them: four seconds' worth of 10 Mbit/s. What comes then is dropped.
const UNDER_WAY: (usize, usize) = (8192, 5 << 20);
/// How long a frame that is reordered is held up.
const HELD: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(60));
/// How long after the first one a duplicate comes.
const TWICE: Duration = Duration::from_millis(10);
const HUNDRED: u64 = 100;

pub(super) struct Way {
    random: Random,
    terms: Terms,
    direction: Silent,
    /// When the terms began.
    since: Duration,
    /// When the line has put on the way all that waits.
    free: Duration,
    /// When each that waits is begun, and how long it is.
    waiting: VecDeque<(Duration, usize)>,
    /// When the last one arrives that was not held up.
    last: Duration,
    flights: BinaryHeap<Reverse<Flight>>,
    bytes: usize,
    number: u64,
    counts: Counts,
}

/// In the order of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    arrival: Duration,
    number: u64,
    bytes: Vec<u8>,
}

impl Way {
    pub(super) fn new(random: Random, direction: Silent) -> Self {
        Self {
            random,
            terms: Terms::default(),
            direction,
            since: Duration::ZERO,
            free: Duration::ZERO,
            waiting: VecDeque::new(),
            last: Duration::ZERO,
            flights: BinaryHeap::new(),
            bytes: 0,
            number: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn set(&mut self, now: Duration, terms: Terms) {
        (self.terms, self.since) = (terms, now);
    }

    /// A frame comes to the line. Every frame takes as much of the seed, whatever the terms are.
    pub(super) fn offer(&mut self, now: Duration, frame: &[u8]) {
        self.counts.offered += 1;
        let [is_lost, is_twice, is_held] = [(); 3].map(|()| self.random.below(HUNDRED));
        let [jitter, twice, held] = [(); 3].map(|()| self.random.below(u64::from(u32::MAX)));
        let length = frame.len().saturating_sub(HEADER);
        let Terms { loss, delay, duplicated, reordered, mtu, silent, without_udp, gone, flap, .. } =
            self.terms;
        let down = flap.is_some_and(|flap| flap.is_down(now.saturating_sub(self.since)));
        let is_udp = || Transport::of(frame).is_some_and(|transport| transport.protocol == UDP);
        let is_gone = |port| Transport::of(frame).is_some_and(|transport| transport.has(frame, port));
        if silent.is(self.direction) || down || (without_udp && is_udp()) || gone.is_some_and(is_gone) {
            self.counts.swallowed += 1;
            return;
        }
        if mtu.is_some_and(|mtu| length > mtu) {
            self.counts.too_long += 1;
            return;
        }
        let Some(sent) = self.transmit(now, length) else {
            self.counts.overflowed += 1;
            return;
        };
        // It has taken its time of the line all the same.
        if is_lost < u64::from(loss) {
            self.counts.lost += 1;
            return;
        }
        let mut arrival = (sent + delay + share(self.terms.jitter, jitter)).max(self.last);
        if is_held < u64::from(reordered) {
            self.counts.reordered += 1;
            arrival += HELD.0 + share(HELD.1.saturating_sub(HELD.0), held);
        } else {
            self.last = arrival;
        }
        self.put(arrival, frame);
        if is_twice < u64::from(duplicated) {
            self.counts.duplicated += 1;
            self.put(arrival + share(TWICE, twice), frame);
        }
    }

    /// When the last bit of it is on the way; `None` when it may not even wait.
    fn transmit(&mut self, now: Duration, length: usize) -> Option<Duration> {
        let Terms { rate, queue: (packets, bytes), .. } = self.terms;
        if rate == 0 {
            return Some(now);
        }
        while self.waiting.front().is_some_and(|(begins, _)| *begins <= now) {
            self.waiting.pop_front();
        }
        let waiting: usize = self.waiting.iter().map(|(_, length)| length).sum();
        let begins = self.free.max(now);
        if begins > now && (self.waiting.len() >= packets || waiting + length > bytes) {
            return None;
        }
        self.waiting.push_back((begins, length));
        // A kilobit a second is a bit a millisecond.
        let takes = Duration::from_nanos(length as u64 * 8 * 1_000_000 / u64::from(rate));
        self.free = begins + takes;
        Some(self.free)
    }

    fn put(&mut self, arrival: Duration, frame: &[u8]) {
        if self.flights.len() >= UNDER_WAY.0 || self.bytes + frame.len() > UNDER_WAY.1 {
            self.counts.overflowed += 1;
            return;
        }
        self.number += 1;
        self.bytes += frame.len();
        self.flights.push(Reverse(Flight { arrival, number: self.number, bytes: frame.to_vec() }));
    }

    /// The next frame that has arrived by now.
    pub(super) fn arrived(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_arrival()? > now {
            return None;
        }
        let Reverse(flight) = self.flights.pop()?;
        self.bytes -= flight.bytes.len();
        Some(flight.bytes)
    }

    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.flights.peek().map(|Reverse(flight)| flight.arrival)
    }

    pub(super) fn note_delivered(&mut self, taken: bool) {
        *(if taken { &mut self.counts.delivered } else { &mut self.counts.refused }) += 1;
    }

    pub(super) fn note_untranslated(&mut self) {
        self.counts.untranslated += 1;
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }
}

/// So much of `whole` as `part` is of all 32-bit numbers.
fn share(whole: Duration, part: u64) -> Duration {
    let nanos = whole.as_nanos() * u128::from(part) / u128::from(u32::MAX);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
