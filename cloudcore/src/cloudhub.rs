//! The edge's side of cloudcore: one port, TCP for HTTPS (enrollment, health) and the link, UDP for the link over QUIC.
//!
//! [`listener`] accepts, `guests` says who of the strangers may stay, `authorities` tells edges of the CAs, `roll_call` calls those that
//! were connected before a restart, [`enrollment`] signs certificates for holders of a join token, [`session`] drives one node's session,
//! `frames` makes its frames, `pace` says how much of a core it takes, `told` keeps what it was told of statuses, [`traffic`] counts its bytes,
//! [`registry`] sees to it that a node has one session, [`holder`] says which machine a node's name belongs to, [`authz`] what a node may
//! see and write.

mod authorities;
pub mod authz;
pub mod enrollment;
mod frames;
mod guests;
mod held;
pub mod holder;
pub mod listener;
mod pace;
pub mod registry;
mod roll_call;
pub mod session;
mod settings;
mod told;
pub mod traffic;
