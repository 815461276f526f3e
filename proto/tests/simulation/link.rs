//! One connection, as QUIC or the WebSocket gives it to a session: reliable and in order within a lane, until
//! it is cut. What is lost, doubled or turned round below that shows as time.

use std::collections::VecDeque;

use bytes::Bytes;
use proto::Lane;

use super::{
    rng::Rng,
    world::{MILLISECOND, SECOND},
};

/// Frames of one lane that the transport takes before the sender has to wait.
pub(crate) const WRITE_QUEUE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Edge,
    Cloud,
}

impl Side {
    pub(crate) fn peer(self) -> Self {
        match self {
            Self::Edge => Self::Cloud,
            Self::Cloud => Self::Edge,
        }
    }
}

/// What one side sends.
#[derive(Default)]
struct Direction {
    lanes: [VecDeque<InFlight>; Lane::ALL.len()],
    /// When the first frame arrives, which nothing overtakes.
    first: Option<u64>,
    greeted: bool,
    /// The line is busy with earlier bytes.
    busy_until: u64,
    last_byte: u64,
    closed: bool,
}

struct InFlight {
    frame: Bytes,
    start: u64,
    due: u64,
}

pub(crate) struct Connection {
    pub(crate) node: usize,
    pub(crate) replica: usize,
    /// QUIC has a stream a lane, the WebSocket one for all.
    pub(crate) laned: bool,
    latency: u64,
    jitter: u64,
    /// Microseconds a byte.
    pace: u64,
    directions: [Direction; 2],
    pub(crate) cut_at: Option<u64>,
    /// Since then one side is gone, or both cannot reach each other.
    pub(crate) dead_since: Option<u64>,
}

impl Connection {
    /// `large`: what it is to carry would take minutes on the slowest line.
    pub(crate) fn new(node: usize, replica: usize, large: bool, rng: &mut Rng) -> Self {
        let latency = rng.pick(&[2, 5, 20, 80, 400]) * MILLISECOND;
        Self {
            node,
            replica,
            laned: rng.percent(60),
            latency,
            jitter: latency * rng.pick(&[1, 1, 5]),
            pace: rng.pick(&[0, 1, 20, if large { 20 } else { 300 }]),
            directions: [Direction::default(), Direction::default()],
            cut_at: None,
            dead_since: None,
        }
    }

    pub(crate) fn latency(&self) -> u64 {
        self.latency
    }

    pub(crate) fn queue_of(&self, lane: Lane) -> usize {
        if self.laned { lane as usize } else { 0 }
    }

    pub(crate) fn queued(&self, from: Side, queue: usize) -> usize {
        self.directions[from as usize].lanes[queue].len()
    }

    pub(crate) fn has_room(&self, from: Side, queue: usize) -> bool {
        self.queued(from, queue) < WRITE_QUEUE
    }

    /// Says when the frame arrives.
    pub(crate) fn send(&mut self, from: Side, queue: usize, frame: Bytes, now: u64, rng: &mut Rng) -> u64 {
        let length = frame.len() as u64;
        let direction = &mut self.directions[from as usize];
        let start = direction.busy_until.max(now);
        direction.busy_until = start + length * self.pace;
        let mut due = direction.busy_until + self.latency + rng.below(self.jitter + 1);
        // Lost, and sent again.
        if rng.percent(2) {
            due += rng.between(1, 3) * (self.latency + 200 * MILLISECOND);
        }
        if let Some(before) = direction.lanes[queue].back() {
            due = due.max(before.due);
        }
        due = due.max(*direction.first.get_or_insert(due));
        direction.lanes[queue].push_back(InFlight { frame, start, due });
        due
    }

    /// Hands the last two frames out in the wrong order.
    pub(crate) fn swap_last(&mut self, from: Side, queue: usize) {
        let lane = &mut self.directions[from as usize].lanes[queue];
        if let [.., before, last] = lane.make_contiguous() {
            std::mem::swap(&mut before.frame, &mut last.frame);
        }
    }

    /// The first frame has come, or this is it: others wait for it.
    pub(crate) fn may_pass(&self, from: Side, queue: usize) -> bool {
        self.directions[from as usize].greeted || queue == 0
    }

    pub(crate) fn postpone(&mut self, from: Side, queue: usize, due: u64) {
        for frame in &mut self.directions[from as usize].lanes[queue] {
            frame.due = frame.due.max(due);
        }
    }

    pub(crate) fn next_due(&self, from: Side, queue: usize) -> Option<u64> {
        self.directions[from as usize].lanes[queue].front().map(|frame| frame.due)
    }

    pub(crate) fn receive(&mut self, from: Side, queue: usize, now: u64) -> Option<Bytes> {
        let direction = &mut self.directions[from as usize];
        let frame = direction.lanes[queue].pop_front()?.frame;
        direction.greeted = true;
        direction.last_byte = now;
        Some(frame)
    }

    pub(crate) fn close(&mut self, from: Side) {
        self.directions[from as usize].closed = true;
    }

    /// The other end has closed, and all that it sent has come.
    pub(crate) fn has_ended(&self, from: Side) -> bool {
        let direction = &self.directions[from as usize];
        direction.closed && direction.lanes.iter().all(VecDeque::is_empty)
    }

    /// When the last byte came, of a whole frame or of a part.
    pub(crate) fn last_byte(&self, from: Side, now: u64) -> u64 {
        let direction = &self.directions[from as usize];
        let until = self.cut_at.unwrap_or(now).min(now);
        let moving = direction.lanes.iter().flatten().any(|frame| {
            frame.due - frame.start > SECOND && frame.start + self.latency <= until && until < frame.due
        });
        if moving { direction.last_byte.max(until) } else { direction.last_byte }
    }
}
