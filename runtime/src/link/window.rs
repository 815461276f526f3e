//! How much a peer may send of a stream that nobody has read yet. Little at first, so that a stream that nobody reads holds
//! little; twice as much each time that all of it was read within about a round trip, so that a long line is filled by whoever
//! reads what comes, or so soon that it would be asked for more all the time. It knows no clock.

use std::time::{Duration, Instant};

/// Bytes of a stream, each way, before anything was read of it. With what the sender holds back it is less than 64 KiB.
pub(super) const FIRST: u32 = 32 << 10;
/// The most: enough for 1.7 MB a second on a round trip of 600 ms.
pub(super) const LARGEST: u32 = 1 << 20;
/// What all streams of a link may have beyond [`FIRST`], together.
pub(super) const SPARE: u32 = 4 << 20;

/// Whoever reads a window's worth so fast is given more on the shortest line, too: each credit takes its turn at both ends.
const SOON: Duration = Duration::from_millis(10);

/// Of one stream, at its reader's end.
#[derive(Debug)]
pub(super) struct Window {
    size: u32,
    /// Read, and not yet told to the peer.
    untold: u32,
    /// Since when so much was read, of as much as the window has.
    since: Instant,
    read: u32,
    /// The shortest that was seen of the way to the peer and back.
    trip: Option<Duration>,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self { size: FIRST, untold: 0, since: now, read: 0, trip: None }
    }

    /// What the peer's answer to what it was told took.
    pub(super) fn note_trip(&mut self, trip: Duration) {
        self.trip = Some(self.trip.map_or(trip, |shortest| shortest.min(trip)));
    }

    /// So many bytes were read. How many more the peer may send, if it is worth telling it; of `spare` the window takes what it
    /// grows by.
    pub(super) fn read(&mut self, bytes: u32, now: Instant, spare: &mut u32) -> Option<u32> {
        self.untold += bytes;
        self.read += bytes;
        if self.read >= self.size {
            let took = now.saturating_duration_since(self.since);
            // On a line that is full it takes nearly two of them: half a window is on it when the other half is told.
            let soon = self.trip.map_or(SOON, |trip| SOON.max(trip * 17 / 10));
            (self.read, self.since) = (0, now);
            if took < soon && self.size < LARGEST && self.size <= *spare {
                *spare -= self.size;
                self.untold += self.size;
                self.size *= 2;
            }
        }
        (self.untold >= self.size / 2).then(|| std::mem::take(&mut self.untold))
    }

    /// What it had of `spare`.
    pub(super) fn grown(&self) -> u32 {
        self.size - FIRST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u32 = 1 << 10;

    /// What a stream carries in a second of an ideal line, and how large its window is then.
    fn carried(round_trip: Duration, bytes_a_second: u32, reader: Duration) -> (u32, u32) {
        let (mut spare, begun) = (SPARE, Instant::now());
        let mut window = Window::new(begun);
        let half = round_trip / 2;
        let packet = Duration::from_secs(1) * PACKET / bytes_a_second;
        // When each credit reaches the sender, and when the line is free.
        let (mut credits, mut credit) = (std::collections::VecDeque::new(), FIRST);
        let (mut free, mut read_until, mut carried) = (Duration::ZERO, Duration::ZERO, 0);
        // The end of what was granted before, and when more was: the peer's answer comes beyond it.
        let (mut sent, mut limit, mut told) = (0, FIRST, None);
        while read_until < Duration::from_secs(10) {
            while credit < PACKET {
                let (at, more): (Duration, u32) = credits.pop_front().expect("the stream stands still");
                free = free.max(at);
                credit += more;
            }
            free += packet;
            credit -= PACKET;
            sent += PACKET;
            let arrived = free + half;
            if let Some((beyond, at)) = told
                && sent > beyond
            {
                window.note_trip(arrived.saturating_sub(at));
                told = None;
            }
            read_until = arrived.max(read_until + reader);
            if let Some(more) = window.read(PACKET, begun + read_until, &mut spare) {
                credits.push_back((read_until + half, more));
                told = told.or(Some((limit, read_until)));
                limit += more;
            }
            if read_until > Duration::from_secs(9) {
                carried += PACKET;
            }
        }
        (carried, window.size)
    }

    #[test]
    fn a_long_line_is_filled_and_a_thin_one_or_a_slow_reader_is_not_given_more() {
        let (line, none) = (1_000_000, Duration::ZERO);
        for millis in [50, 100, 200, 600] {
            let round_trip = Duration::from_millis(millis);
            let (carried, size) = carried(round_trip, line, none);
            assert!(carried > line * 9 / 10, "{carried} bytes a second at {millis} ms");
            assert!(size <= LARGEST, "{size}");
        }
        // A thin line.
        let (_, size) = carried(Duration::from_millis(50), 8_000, none);
        assert!(size <= 2 * FIRST, "{size}");
        // A reader that takes 100 KB a second of what comes.
        let (_, size) = carried(Duration::from_millis(50), 100_000_000, Duration::from_millis(10));
        assert!(size <= 2 * FIRST, "{size}");
    }

    #[test]
    fn nothing_grows_beyond_the_bound_of_all() {
        let (mut spare, now) = (SPARE, Instant::now());
        let mut windows: Vec<Window> = (0..64).map(|_| Window::new(now)).collect();
        for _ in 0..100 {
            for window in &mut windows {
                window.note_trip(Duration::from_millis(1));
                window.read(window.size, now, &mut spare);
            }
        }
        let grown: u32 = windows.iter().map(Window::grown).sum();
        assert_eq!(grown + spare, SPARE);
        assert!(windows.iter().all(|window| window.size <= LARGEST) && spare < LARGEST);
    }
}
