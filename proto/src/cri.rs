//! The Container Runtime Interface v1, and the part of containerd's own API that mends what containerd's CRI loses:
//! types and clients generated from `protos` and checked in. `tests/bootstrap.rs` generates them again and fails on a
//! difference.

use std::fmt;

pub mod runtime {
    #[allow(
        clippy::pedantic,
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        elided_lifetimes_in_paths,
        reason = "generated"
    )]
    pub mod v1 {
        include!("gen/runtime.v1.rs");
    }
}

pub use runtime::v1;

pub mod containerd {
    #[allow(
        clippy::pedantic,
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        elided_lifetimes_in_paths,
        reason = "generated"
    )]
    pub mod tasks {
        include!("gen/containerd.services.tasks.v1.rs");
    }
}

// Requests are logged when they fail: what may hold a secret is named, not shown.

impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue").field("key", &self.key).finish_non_exhaustive()
    }
}
