//! What goes first on the link.
//!
//! Each lane keeps its order; between lanes there is none, but that the first frame of either side (`Hello`, `Welcome`) comes
//! before all others. So a large object delays no heartbeat, on a line that takes minutes for it.

use std::collections::VecDeque;

use crate::{limits::MAX_FRAME, message::Body};

/// The most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Greetings, heartbeats, acks: a few bytes each.
    Control,
    /// What happens at the edge, and questions, both ways.
    Status,
    /// What the edge is to hold.
    Objects,
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Control, Self::Status, Self::Objects];

    /// For people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Status => "status",
            Self::Objects => "objects",
        }
    }

    /// The longest frame that either side accepts on the lane, in bytes.
    pub fn max_frame(self) -> usize {
        match self {
            Self::Control => 64 << 10,
            Self::Status => 2 << 20,
            Self::Objects => MAX_FRAME,
        }
    }
}

impl Body {
    pub fn lane(&self) -> Lane {
        match self {
            Self::Hello(_)
            | Self::Welcome(_)
            | Self::Goodbye(_)
            | Self::Ping(_)
            | Self::Pong(_)
            | Self::Ack(_) => Lane::Control,
            Self::Reports(_) | Self::ReportAcks(_) | Self::Request(_) | Self::Response(_) => Lane::Status,
            Self::InventoryRequest(_) | Self::Inventory(_) | Self::Batch(_) | Self::Synced(_) => {
                Lane::Objects
            }
        }
    }
}

/// Frames that wait for their turn, by lane.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    lanes: [VecDeque<Body>; Lane::ALL.len()],
    /// The last word has been said.
    closed: bool,
}

impl Queues {
    pub(crate) fn push(&mut self, body: Body) {
        if !self.closed {
            self.lanes[body.lane() as usize].push_back(body);
        }
    }

    pub(crate) fn pop(&mut self, lane: Lane) -> Option<Body> {
        pop(&mut self.lanes[lane as usize])
    }

    pub(crate) fn lane(&mut self, lane: Lane) -> &mut VecDeque<Body> {
        &mut self.lanes[lane as usize]
    }

    /// Nothing else is sent any more, whatever comes to be pushed.
    pub(crate) fn close(&mut self, goodbye: Body) {
        self.lanes.iter_mut().for_each(VecDeque::clear);
        self.closed = false;
        self.push(goodbye);
        self.closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// A queue is empty most of the time, and there are thousands of sessions: its room goes with what was in it.
pub(crate) fn pop<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
    first
}
