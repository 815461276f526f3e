//! The API types of the product: its configuration files, and its custom resources with the CRDs generated from them.
//!
//! Types, defaults and checks only: nothing here reads a file, a socket or a clock.

pub mod componentconfig;
pub mod devices;
pub mod generated;

pub use devices::custom_resource_definitions;
