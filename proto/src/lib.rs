//! What cloud and edge say to each other, and what the edge says to its container runtime and to mappers of devices.
//!
//! Types, codecs and protocol state only: nothing here opens a socket, starts a task or reads a clock.
//! Every length is bounded, and decoding arbitrary bytes returns an error instead of panicking.
//!
//! Reading order: [`resource`] names an object, [`message`] is everything that can be said, [`codec`] turns it
//! into frames (with [`dictionary`]), [`lane`] says which frames go first, [`session`] holds the state of both ends, [`limits`] has every bound.

pub mod codec;
#[cfg(feature = "cri")]
pub mod cri;
pub mod dictionary;
#[cfg(feature = "dmi")]
pub mod dmi;
pub mod lane;
pub mod limits;
pub mod message;
pub mod resource;
mod seen;
pub mod session;

pub use lane::Lane;
pub use message::{Change, Frame, Report};
pub use resource::{Digest, Object, ResourceKey, Version};
pub use seen::{Seen, TooManyKinds};
