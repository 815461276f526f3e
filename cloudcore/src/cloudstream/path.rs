//! The paths that are served: those of the kubelet's API that are about a pod, and three of our own.

use proto::ResourceKey;

use crate::devicecontroller;

pub(super) const SESSIONS: &str = "sessions";
pub(super) const CONVERT: &str = "convert";
pub(super) const VALIDATE: &str = "validate";

/// For metrics: the first part of a path that is served, or `other`.
pub(super) fn kind(path: &str) -> &'static str {
    match path.split('/').nth(1).unwrap_or_default() {
        "containerLogs" => "containerLogs",
        "exec" => "exec",
        "attach" => "attach",
        "portForward" => "portForward",
        // Nothing is below it.
        _ if path == "/sessions" => SESSIONS,
        _ if path == devicecontroller::CONVERT => CONVERT,
        _ if path == devicecontroller::VALIDATE => VALIDATE,
        _ => "other",
    }
}

/// Whose node is asked.
///
/// # Errors
/// It is about none.
pub(super) fn pod(path: &str) -> Result<ResourceKey, String> {
    let mut parts = path.split('/').skip(2);
    let (Some(namespace), Some(name), true) = (parts.next(), parts.next(), kind(path) != "other") else {
        return Err(format!("{path:?} is not served: it names no pod, and this port stands for many nodes"));
    };
    let key = ResourceKey::new("Pod", namespace, name).map_err(|error| error.to_string())?;
    if namespace.is_empty() { Err(format!("{path:?} names no namespace")) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_pod_or_is_not_served() {
        for (path, wanted) in [
            ("/containerLogs/default/web-0/main", "Pod/default/web-0"),
            ("/exec/a/b/c", "Pod/a/b"),
            ("/exec/a/b/1234-uid/c", "Pod/a/b"),
            ("/portForward/a/b", "Pod/a/b"),
        ] {
            assert_eq!(pod(path).unwrap().as_str(), wanted);
        }
        for path in [
            "/",
            "",
            "/exec",
            "/exec/a",
            "/exec//b/c",
            "/exec/a//c",
            "/metrics",
            "/stats/summary",
            "/run/a/b/c",
            "/sessions",
            "/sessions/a/b",
            "/convert",
            "/validate",
        ] {
            assert!(pod(path).is_err(), "{path}");
        }
    }
}
