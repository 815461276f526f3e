//! What both daemons need to run: supervised tasks, signals, backoff, telemetry, the admin port, TLS, the link's
//! transports, HTTP requests that are passed on, and how their configuration files are read.

pub mod admin;
pub mod backoff;
pub mod config;
pub mod error_chain;
pub mod link;
pub mod passage;
pub mod signals;
pub mod supervisor;
pub mod telemetry;
pub mod tls;
pub mod token;

pub use error_chain::chain;
pub use supervisor::Supervisor;
