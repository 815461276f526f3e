//! Eviction protection: a pod on an edge node outlives any outage of the line.
//!
//! The control plane evicts what runs on a node that it cannot reach once the pod's tolerations of the taints not-ready
//! and unreachable run out, 300 s by default. Those of a bound pod may still be extended, so every pod bound to an edge node
//! gets them without an end, unless the pod or its Node is annotated [`EVICT_ANNOTATION`]` = "true"`. An annotation that
//! comes later does not take the protection back: the API allows no toleration to be removed from a bound pod.
//!
//! Level-triggered: the index says which pods are without protection now, whatever led to it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use kube::Client;
use proto::ResourceKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    api::{self, Failure, Patch},
    index::Index,
};

/// On a Pod or a Node: evict as Kubernetes does by default.
pub const EVICT_ANNOTATION: &str = "skerry.io/evict-when-unreachable";

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Patches under way at once: enough to protect thousands of pods in a minute, few enough to leave the API server alone.
const CONCURRENCY: usize = 8;

/// Before a pod that could not be patched is looked at again.
const RETRY: Duration = Duration::from_secs(2);

/// A toleration, as far as it matters here; the rest of it is kept.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    operator: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    effect: String,
    #[serde(rename = "tolerationSeconds", skip_serializing_if = "Option::is_none")]
    seconds: Option<i64>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

impl Toleration {
    fn unlimited(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            operator: "Exists".to_owned(),
            value: String::new(),
            effect: "NoExecute".to_owned(),
            seconds: None,
            rest: serde_json::Map::new(),
        }
    }

    /// Whether it tolerates the taint `key` with effect NoExecute, which has no value.
    fn matches(&self, key: &str) -> bool {
        let effect = self.effect.is_empty() || self.effect == "NoExecute";
        let exists = self.operator == "Exists";
        let equal = matches!(self.operator.as_str(), "" | "Equal") && self.value.is_empty();
        effect && ((self.key == key && (exists || equal)) || (self.key.is_empty() && exists))
    }
}

/// Whether a pod with these tolerations would be evicted from a node that cannot be reached.
pub fn needs_protection(tolerations: &[Toleration]) -> bool {
    protected(tolerations).is_some()
}

/// The tolerations that protect the pod, if they are not what it has.
///
/// The first toleration that matches a taint decides how long it is tolerated, so those that name the taints lose their
/// end, and what is missing goes to the front. One for every taint is left as it is: it is about other taints too.
fn protected(tolerations: &[Toleration]) -> Option<Vec<Toleration>> {
    let mut wanted = tolerations.to_vec();
    for toleration in &mut wanted {
        if TAINTS.iter().any(|key| toleration.key == *key && toleration.matches(key)) {
            toleration.seconds = None;
        }
    }
    for key in TAINTS.iter().rev() {
        let first = wanted.iter().find(|toleration| toleration.matches(key));
        if first.is_none_or(|first| first.seconds.is_some()) {
            wanted.insert(0, Toleration::unlimited(key));
        }
    }
    (wanted != tolerations).then_some(wanted)
}

/// The JSON patch for a pod, or `None` if it is protected. It applies only to the very pod, and to the tolerations, that
/// were looked at.
fn patch(pod: &[u8], resource_version: u64) -> Result<Option<Value>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Pod {
        metadata: Metadata,
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Metadata {
        uid: String,
    }
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        tolerations: Vec<Toleration>,
    }
    let pod: Pod = serde_json::from_slice(pod)?;
    let Some(wanted) = protected(&pod.spec.tolerations) else { return Ok(None) };
    let same_pod = json!({"op": "test", "path": "/metadata/uid", "value": pod.metadata.uid});
    let (test, op) = if pod.spec.tolerations.is_empty() {
        let version = resource_version.to_string();
        (json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}), "add")
    } else {
        (json!({"op": "test", "path": "/spec/tolerations", "value": pod.spec.tolerations}), "replace")
    };
    Ok(Some(json!([same_pod, test, {"op": op, "path": "/spec/tolerations", "value": wanted}])))
}

/// Protects what the index says is unprotected.
pub struct Protection {
    client: Client,
    index: Arc<Index>,
}

impl Protection {
    pub fn new(client: Client, index: Arc<Index>) -> Self {
        Self { client, index }
    }

    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut patches: JoinSet<(ResourceKey, bool)> = JoinSet::new();
        let queue = Arc::clone(self.index.unprotected());
        loop {
            while patches.len() < CONCURRENCY
                && let Some(key) = queue.pop()
            {
                if let Some((bytes, version)) = self.index.unprotected_pod(&key) {
                    let client = self.client.clone();
                    patches.spawn(async move {
                        let done = protect(&client, &key, &bytes, version).await;
                        if !done {
                            // The slot is held meanwhile: an API server that refuses is not asked more often.
                            tokio::time::sleep(RETRY).await;
                        }
                        (key, done)
                    });
                }
            }
            tokio::select! {
                // A key that is marked while another arm runs stays in the queue.
                () = queue.marked(), if patches.len() < CONCURRENCY => {}
                Some(ended) = patches.join_next() => {
                    if let Ok((key, false)) = ended {
                        queue.mark(&key);
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// Whether the pod needs no further attempt.
async fn protect(client: &Client, key: &ResourceKey, bytes: &[u8], version: u64) -> bool {
    let patch = match patch(bytes, version) {
        Ok(Some(patch)) => patch,
        Ok(None) => return true,
        Err(error) => {
            warn!(pod = %key, error = %runtime::chain(&error), "cannot protect a pod that does not parse");
            return true;
        }
    };
    let path = format!("/api/v1/namespaces/{}/pods/{}", key.namespace(), key.name());
    match api::patch(client, &path, Patch::Json, &patch).await {
        Ok(_) => {
            info!(pod = %key, "pod protected from eviction");
            true
        }
        // Gone: nothing to protect. Changed since: the watch brings its new state, and it is looked at again.
        Err(Failure::Refused { code: 404, .. }) => true,
        Err(error) => {
            warn!(pod = %key, error = %runtime::chain(&error), "failed to protect a pod from eviction; trying again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tolerations(value: Value) -> Vec<Toleration> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_default_tolerations_lose_their_end() {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "mine", "operator": "Exists"}]}});
        let patch = patch(pod.to_string().as_bytes(), 7).unwrap().unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/uid", "value": "u"},
                {"op": "test", "path": "/spec/tolerations", "value": pod["spec"]["tolerations"]},
                {"op": "replace", "path": "/spec/tolerations", "value": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "mine", "operator": "Exists"}]}])
        );
    }

    #[test]
    fn missing_ones_are_added_and_what_is_protected_is_left_alone() {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {}});
        let patch = patch(pod.to_string().as_bytes(), 7).unwrap().unwrap();
        assert_eq!(patch[1], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "7"}));
        let added = tolerations(patch[2]["value"].clone());
        assert_eq!(added.len(), 2);
        assert!(!needs_protection(&added));
        assert!(!needs_protection(&tolerations(json!([{"operator": "Exists"}]))));
    }

    #[test]
    fn a_limited_wildcard_is_kept_and_overruled() {
        let wildcard = json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10});
        let wanted = protected(&tolerations(json!([wildcard]))).unwrap();
        assert_eq!(wanted.len(), 3);
        assert_eq!(serde_json::to_value(&wanted[2]).unwrap(), wildcard);
        assert!(!needs_protection(&wanted));
    }
}
