//! Which node has a device.
//!
//! A Device names its node, or in v1alpha2 selects one. Who has it is written into it ([`HOLDER_ANNOTATION`]), and only its holder is
//! given it. One that is to be elsewhere is first taken from its holder; once that is known to have dropped it, or the holder's Node is
//! deleted, the next one gets it. So no two nodes drive one device, whatever the line does: a node that is out of reach keeps what it
//! has until it is back, or until an operator deletes its Node or takes the annotation away.
//!
//! Level-triggered: the index says whom a device is to be given to now, whatever led to it.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use crds::devices::v1alpha2::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use kube::Client;
use proto::ResourceKey;
use runtime::backoff::Backoff;
use serde::Deserialize;
use serde_json::json;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    api::{self, Failure, Patch},
    index::Index,
    objects::HOLDER_ANNOTATION,
};

/// After a device could not be placed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// An edge node, for a selector to look at.
pub struct Candidate {
    name: Box<str>,
    labels: BTreeMap<String, String>,
    is_ready: bool,
}

impl Candidate {
    /// `node` is the Node as JSON.
    pub fn new(name: &str, node: &[u8], is_ready: bool) -> Self {
        #[derive(Default, Deserialize)]
        struct Node {
            #[serde(default)]
            metadata: Metadata,
        }
        #[derive(Default, Deserialize)]
        struct Metadata {
            #[serde(default)]
            labels: BTreeMap<String, String>,
        }
        let node: Node = serde_json::from_slice(node).unwrap_or_default();
        Self { name: name.into(), labels: node.metadata.labels, is_ready }
    }
}

/// Of the nodes that fit: one that is Ready, if there is one, and the first by name.
pub fn choose(selector: &NodeSelector, nodes: impl Iterator<Item = Candidate>) -> Option<Box<str>> {
    nodes
        .filter(|node| fits(selector, node))
        .min_by_key(|node| (!node.is_ready, node.name.clone()))
        .map(|node| node.name)
}

/// As in a pod's node affinity: one of the terms, and all of that one.
fn fits(selector: &NodeSelector, node: &Candidate) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        let NodeSelectorTerm { match_expressions, match_fields } = term;
        let label = |of: &NodeSelectorRequirement| node.labels.get(&of.key).map(String::as_str);
        let field = |of: &NodeSelectorRequirement| (of.key == "metadata.name").then_some(&*node.name);
        // A term of nothing fits no node.
        !(match_expressions.is_empty() && match_fields.is_empty())
            && match_expressions.iter().all(|one| holds(one, label(one)))
            && match_fields.iter().all(|one| holds(one, field(one)))
    })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let NodeSelectorRequirement { key: _, operator, values } = requirement;
    let is_in = || value.is_some_and(|value| values.iter().any(|one| one == value));
    let numbers = || {
        let [bound] = &values[..] else { return None };
        Some((value?.parse::<i64>().ok()?, bound.parse::<i64>().ok()?))
    };
    match operator.as_str() {
        "In" => is_in(),
        "NotIn" => !is_in(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Does what the index says is to be done.
pub struct Placing {
    client: Client,
    index: Arc<Index>,
}

impl Placing {
    pub fn new(client: Client, index: Arc<Index>) -> Self {
        Self { client, index }
    }

    /// One device after the other: it is a write of a millisecond or two for each, once.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let queue = Arc::clone(self.index.unplaced());
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let Some(key) = queue.pop() else {
                // A key that is marked meanwhile stays in the queue.
                tokio::select! {
                    () = queue.marked() => continue,
                    () = stop.cancelled() => return Ok(()),
                }
            };
            match self.place(&key).await {
                Ok(()) => backoff.reset(),
                Err(failure) => {
                    warn!(device = %key, error = %runtime::chain(&failure), "a device is not given to its node yet");
                    queue.mark(&key);
                    tokio::select! {
                        () = time::sleep(backoff.next_delay()) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn place(&self, key: &ResourceKey) -> Result<(), Failure> {
        let Some((holder, version)) = self.index.placement(key) else { return Ok(()) };
        // Another cloudcore may have been first, or somebody changed the device: then it is looked at again as it is then.
        let patch = json!({"metadata": {
            "resourceVersion": version.to_string(), "annotations": {HOLDER_ANNOTATION: holder},
        }});
        let path = format!(
            "/apis/devices.kubeedge.io/v1beta1/namespaces/{}/devices/{}",
            key.namespace(),
            key.name()
        );
        match api::patch(&self.client, &path, Patch::Merge, &patch).await {
            Ok(_) => {
                info!(device = %key, node = holder.as_deref(), "device given to its node");
                Ok(())
            }
            Err(Failure::Refused { code: 404, .. }) => Ok(()),
            Err(failure) if failure.is_conflict() => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> impl Iterator<Item = Candidate> {
        [("a", "north", "1", false), ("b", "north", "5", true), ("c", "south", "9", true)].into_iter().map(
            |(name, site, floor, is_ready)| {
                let node = json!({"metadata": {"labels": {"site": site, "floor": floor}}}).to_string();
                Candidate::new(name, node.as_bytes(), is_ready)
            },
        )
    }

    fn chosen(terms: &serde_json::Value) -> Option<String> {
        let selector: NodeSelector = serde_json::from_value(json!({"nodeSelectorTerms": terms})).unwrap();
        choose(&selector, nodes()).map(String::from)
    }

    #[test]
    fn a_selector_finds_the_first_node_that_is_ready() {
        let is = |key: &str, operator: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        for (terms, wanted) in [
            (is("site", "In", &["north"]), Some("b")),
            (is("site", "NotIn", &["north"]), Some("c")),
            (is("site", "Exists", &[]), Some("b")),
            (is("rack", "DoesNotExist", &[]), Some("b")),
            (is("floor", "Lt", &["5"]), Some("a")),
            (is("floor", "Gt", &["5"]), Some("c")),
            (is("floor", "Gt", &["x"]), None),
            (is("site", "Like", &["north"]), None),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]),
                Some("a"),
            ),
            (json!([{}]), None),
            (json!([]), None),
        ] {
            assert_eq!(chosen(&terms).as_deref(), wanted, "{terms}");
        }
    }
}
