//! The device kinds in the API server, by webhooks in here: an older version of them is served, and what is written is looked at.

mod admission;
mod review;
mod serving;

pub use admission::Admission;
pub use review::convert;
pub use serving::serve_webhooks;

/// The path of the webhook that converts.
pub const CONVERT: &str = "/convert";
/// The path of the webhook that looks at what is written.
pub const VALIDATE: &str = "/validate";
