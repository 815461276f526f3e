//! Hollow nodes: thousands of edges in one process, to load a cloudcore with. Each has a certificate of its own, holds a
//! session over the real transports with edgecore's own code, and keeps in memory what edgecore keeps on a disk; there is no
//! container runtime, and a pod that is bound to one is said to run.
//!
//! [`Fleet`] is all of them. [`cluster`] makes what they are to run, and [`changes`] changes it and measures how long that
//! takes to arrive, [`flood`] how much arrives at most, [`fairness`] what another node's return does to it.

#![allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]

mod apart;
pub mod beside;
pub mod changes;
pub mod cluster;
pub mod fairness;
mod fleet;
pub mod flood;
mod guest;
mod identity;
mod latency;
mod machine;
mod node;
mod reports;
mod store;

pub use fleet::{Fleet, FleetConfig, Snapshot, Transport};
pub use identity::Identities;
