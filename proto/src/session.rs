//! The state of a session at either end, without I/O and without a clock: `now` is an argument.
//!
//! `handle_*` takes what came in, `poll_*` gives what is to be done and is called until it returns `None` after
//! anything happened, `deadline` says when [`cloud::CloudSession::handle_deadline`] or
//! [`edge::EdgeSession::handle_deadline`] is due at the latest.

pub mod cloud;
pub mod edge;
mod holds;
pub mod patches;
pub mod timers;

#[cfg(test)]
mod tests;

pub use cloud::{CloudEvent, CloudSession, Freshness, View};
pub use edge::{EdgeEvent, EdgeSession};
pub use holds::CLASSES;
pub use patches::Patches;

/// The peer broke the protocol; the link is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("peer broke the protocol: {0}")]
pub struct Violation(pub String);

/// Nothing came from the peer for two heartbeats; the link is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing heard from the peer for {:.1} s", silence.as_secs_f64())]
pub struct Dead {
    pub silence: std::time::Duration,
}
