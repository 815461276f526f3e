//! Whose a node's name is.
//!
//! The Node remembers the hash of the key that its machine has proven to hold ([`KEY_ANNOTATION`]), written when the node
//! registers. From then on no other key opens a link under the name, and a join token alone does not take the name over:
//! that takes a token that was made for this very node (`keadm gettoken --node`), the machine's own leave (`keadm reset`),
//! or the deletion of the Node. A node of the cluster that is no edge node cannot be joined at all.
//!
//! A Node that is missing shuts nobody out: somebody may have deleted it by mistake, and nobody is to travel to a site for
//! that. To shut a machine out, the annotation is overwritten with anything else, and the Node kept.

use kube::Client;
use runtime::token::Grant;
use serde_json::json;

use crate::edgecontroller::{
    api::{self, Failure, Patch},
    objects::{EDGE_LABEL, KEY_ANNOTATION, NodeFacts},
};

/// Reads and conditional writes of a Node before whoever asks is told to try again: others write it, too.
const TRIES: usize = 5;

/// Why a name is not to be had; told to whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotYours {
    #[error("{node} is a node of the cluster and no edge node; choose another name with --edgenode-name")]
    NoEdgeNode { node: String },
    #[error(
        "a machine has joined as {node} before; run keadm reset there, or get a token for its replacement with \
         `keadm gettoken --node={node}`, or remove it with `kubectl delete node {node}`"
    )]
    Taken { node: String },
    #[error(
        "{node} is another machine now, or an operator shut this one out; to join anew: keadm reset, \
         then a token from `keadm gettoken --node={node}`"
    )]
    ShutOut { node: String },
    #[error("the token is for node {granted}, not for {node}")]
    OtherNode { node: String, granted: String },
}

/// Whether the holder of the key may open a link as `node`.
pub fn may_link(node: &str, held: Option<&NodeFacts>, key_hash: &str) -> Result<(), NotYours> {
    let node = node.to_owned();
    match held {
        Some(NodeFacts { key_hash: Some(held), .. }) if **held != *key_hash => {
            Err(NotYours::ShutOut { node })
        }
        Some(NodeFacts { key_hash: None, edge: false, .. }) => Err(NotYours::NoEdgeNode { node }),
        Some(_) | None => Ok(()),
    }
}

/// What has to be done before a certificate is issued.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// The Node is to remember the new key.
    TakeOver,
}

/// Whether who holds `grant` may enroll as `node`; without a key, before it has shown one.
fn may_enroll(
    node: &str,
    held: Option<&NodeFacts>,
    key_hash: Option<&str>,
    grant: &Grant,
) -> Result<Step, NotYours> {
    let owned = || node.to_owned();
    if let Some(granted) = grant.node.as_deref().filter(|granted| *granted != node) {
        return Err(NotYours::OtherNode { node: owned(), granted: granted.to_owned() });
    }
    match held {
        None | Some(NodeFacts { key_hash: None, edge: true, .. }) => Ok(Step::Nothing),
        Some(NodeFacts { key_hash: None, edge: false, .. }) => Err(NotYours::NoEdgeNode { node: owned() }),
        Some(NodeFacts { key_hash: Some(held), .. }) if key_hash == Some(&**held) => Ok(Step::Nothing),
        Some(_) if grant.node.is_some() => Ok(Step::TakeOver),
        Some(_) => Err(NotYours::Taken { node: owned() }),
    }
}

/// What the API server says of a node, where the cache's word is not enough.
struct Held {
    facts: NodeFacts,
    resource_version: String,
}

async fn held(client: &Client, node: &str) -> Result<Option<Held>, Failure> {
    let object = match api::get(client, &format!("/api/v1/nodes/{node}")).await {
        Ok(object) => object,
        Err(Failure::Refused { code: 404, .. }) => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let metadata = &object["metadata"];
    let text = |value: &serde_json::Value| value.as_str().map(Box::from);
    let facts = NodeFacts {
        uid: text(&metadata["uid"]).unwrap_or_default(),
        edge: metadata["labels"].get(EDGE_LABEL).is_some(),
        opted_out: false,
        ready: None,
        key_hash: text(&metadata["annotations"][KEY_ANNOTATION]),
        status: None,
        authorities: None,
        sync_config: None,
    };
    let resource_version = metadata["resourceVersion"].as_str().unwrap_or_default().to_owned();
    Ok(Some(Held { facts, resource_version }))
}

/// Asks the API server itself: a link that the cache would refuse.
pub async fn check_link(
    client: &Client,
    node: &str,
    key_hash: &str,
) -> Result<Result<(), NotYours>, Failure> {
    let held = held(client, node).await?;
    Ok(may_link(node, held.as_ref().map(|held| &held.facts), key_hash))
}

/// Whether the Node is there and remembers this key.
pub async fn is_held_by(client: &Client, node: &str, key_hash: &str) -> Result<bool, Failure> {
    let held = held(client, node).await?;
    Ok(held.is_some_and(|held| held.facts.key_hash.as_deref() == Some(key_hash)))
}

/// Whether who holds `grant` may enroll as `node`, as far as that can be said before there is a key.
pub async fn check_name(client: &Client, node: &str, grant: &Grant) -> Result<Result<(), NotYours>, Failure> {
    let held = held(client, node).await?;
    Ok(may_enroll(node, held.as_ref().map(|held| &held.facts), None, grant).map(drop))
}

/// Makes `node` the name of the key's machine, if that may be.
pub async fn claim(
    client: &Client,
    node: &str,
    key_hash: &str,
    grant: &Grant,
) -> Result<Result<(), NotYours>, Failure> {
    for _ in 1..TRIES {
        match try_claim(client, node, key_hash, grant).await {
            Err(failure) if failure.is_conflict() => {}
            claimed => return claimed,
        }
    }
    try_claim(client, node, key_hash, grant).await
}

async fn try_claim(
    client: &Client,
    node: &str,
    key_hash: &str,
    grant: &Grant,
) -> Result<Result<(), NotYours>, Failure> {
    let held = held(client, node).await?;
    let facts = held.as_ref().map(|held| &held.facts);
    let step = match may_enroll(node, facts, Some(key_hash), grant) {
        Ok(step) => step,
        Err(not_yours) => return Ok(Err(not_yours)),
    };
    if let (Step::TakeOver, Some(held)) = (step, &held) {
        remember(client, node, held, Some(key_hash)).await?;
    }
    Ok(Ok(()))
}

/// The machine leaves: its name is free for whoever joins next. Whether it was the machine's.
pub async fn release(client: &Client, node: &str, key_hash: &str) -> Result<bool, Failure> {
    for _ in 1..TRIES {
        match try_release(client, node, key_hash).await {
            Err(failure) if failure.is_conflict() => {}
            released => return released,
        }
    }
    try_release(client, node, key_hash).await
}

async fn try_release(client: &Client, node: &str, key_hash: &str) -> Result<bool, Failure> {
    match held(client, node).await? {
        Some(held) if held.facts.key_hash.as_deref() == Some(key_hash) => {
            remember(client, node, &held, None).await.map(|()| true)
        }
        Some(_) | None => Ok(false),
    }
}

async fn remember(client: &Client, node: &str, held: &Held, key_hash: Option<&str>) -> Result<(), Failure> {
    let patch = json!({"metadata": {
        "resourceVersion": held.resource_version,
        "annotations": {KEY_ANNOTATION: key_hash},
    }});
    api::patch(client, &format!("/api/v1/nodes/{node}"), Patch::Merge, &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(edge: bool, key_hash: Option<&str>) -> NodeFacts {
        NodeFacts {
            uid: "u".into(),
            edge,
            opted_out: false,
            ready: None,
            key_hash: key_hash.map(Into::into),
            status: None,
            authorities: None,
            sync_config: None,
        }
    }

    #[test]
    fn a_link_takes_the_key_that_the_node_remembers() {
        assert_eq!(may_link("n", None, "k"), Ok(()));
        assert_eq!(may_link("n", Some(&facts(true, None)), "k"), Ok(()));
        assert_eq!(
            may_link("n", Some(&facts(false, Some("k"))), "k"),
            Ok(()),
            "an operator took the label off"
        );
        let shut_out = may_link("n", Some(&facts(true, Some("revoked"))), "k");
        assert!(matches!(shut_out, Err(NotYours::ShutOut { .. })));
        let cloud = may_link("n", Some(&facts(false, None)), "k");
        assert!(matches!(cloud, Err(NotYours::NoEdgeNode { .. })));
    }

    #[test]
    fn a_name_that_is_taken_needs_a_token_for_it() {
        let any = Grant { node: None };
        let mine = Grant { node: Some("n".to_owned()) };
        let other = Grant { node: Some("m".to_owned()) };
        let taken = facts(true, Some("old"));
        assert_eq!(may_enroll("n", None, Some("k"), &any), Ok(Step::Nothing));
        assert_eq!(may_enroll("n", Some(&facts(true, None)), Some("k"), &any), Ok(Step::Nothing));
        assert_eq!(may_enroll("n", Some(&taken), Some("old"), &any), Ok(Step::Nothing));
        assert_eq!(may_enroll("n", Some(&taken), Some("k"), &mine), Ok(Step::TakeOver));
        assert!(matches!(may_enroll("n", Some(&taken), Some("k"), &any), Err(NotYours::Taken { .. })));
        assert!(matches!(may_enroll("n", None, Some("k"), &other), Err(NotYours::OtherNode { .. })));
        let cloud = may_enroll("n", Some(&facts(false, None)), Some("k"), &mine);
        assert!(matches!(cloud, Err(NotYours::NoEdgeNode { .. })));
    }
}
