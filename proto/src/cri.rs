//! The Container Runtime Interface v1, and the part of containerd's own API that mends what containerd's CRI loses:
//! types and clients generated from `protos` and checked in. `tests/bootstrap.rs` generates them again and fails on a
//! difference.

use std::{collections::HashMap, fmt};

use serde_json::Value;

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

/// The cgroup driver by what containerd adds to a verbose `Status`: its CRI plugin's configuration, in JSON. For versions
/// before 2.0, which do not have `RuntimeConfig`. `None` when that says nothing of containerd's runtimes.
pub fn configured_driver<S: std::hash::BuildHasher>(
    info: &HashMap<String, String, S>,
) -> Option<v1::CgroupDriver> {
    let config: Value = serde_json::from_str(info.get("config")?).ok()?;
    let containerd = config.get("containerd")?;
    let runtime = containerd.get("runtimes")?.get(containerd.get("defaultRuntimeName")?.as_str()?)?;
    let by_systemd = runtime.pointer("/options/SystemdCgroup").and_then(Value::as_bool);
    // Its own default is the other.
    Some(if by_systemd == Some(true) { v1::CgroupDriver::Systemd } else { v1::CgroupDriver::Cgroupfs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_tells_its_driver_in_its_configuration() {
        let driver =
            |config: &str| configured_driver(&HashMap::from([("config".to_owned(), config.to_owned())]));
        let options = |options: &str| {
            format!(
                r#"{{"containerd":{{"defaultRuntimeName":"runc","runtimes":{{"runc":{{"options":{options}}}}}}}}}"#
            )
        };
        assert_eq!(driver(&options(r#"{"SystemdCgroup":true}"#)), Some(v1::CgroupDriver::Systemd));
        assert_eq!(driver(&options(r#"{"SystemdCgroup":false}"#)), Some(v1::CgroupDriver::Cgroupfs));
        assert_eq!(driver(&options("null")), Some(v1::CgroupDriver::Cgroupfs));
        for unknown in ["", "[]", "{}", r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{}}}"#] {
            assert_eq!(driver(unknown), None, "{unknown}");
        }
        assert_eq!(configured_driver(&HashMap::<_, _>::new()), None);
    }
}
