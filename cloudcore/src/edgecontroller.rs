//! The Kubernetes side: what each node should hold, and what each node reports.
//!
//! [`cache`] watches the API server and hands every object, as bytes ([`objects`]), to the [`index`], which knows what
//! each connected node needs. [`upstream`] writes what nodes report, through [`lanes`] that keep the order a key.
//! [`mod@print`] tells whether
//! a status is there already. [`lease`] keeps a connected node's Lease with the session's [`claim`], [`protection`] keeps its pods from being evicted,
//! [`tokens`] answers its questions for service account tokens. Nothing here survives a restart: it is all listed again.

pub mod api;
pub mod cache;
pub mod claim;
mod class;
pub mod index;
pub mod key_set;
pub mod lanes;
pub mod lease;
pub mod objects;
pub mod placement;
pub mod print;
pub mod protection;
pub mod tokens;
pub mod upstream;
