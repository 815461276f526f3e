//! Rules at the edge, group `devices.skerry.io/v1alpha1`: ours, since KubeEdge has none that see values.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rule that a node keeps with no cloud in reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRuleSpec {
    /// The edge node that keeps the rule; it has to have the devices.
    pub node_name: String,
    /// Names for expressions, and the Devices of this namespace that they stand for.
    pub devices: BTreeMap<String, String>,
    /// What has to become true: a CEL expression over properties, as in boiler.temperature > 80. What cannot be read now has no
    /// value; an expression that needs it is neither true nor false, and nothing happens.
    #[schemars(length(min = 1, max = 1024))]
    pub when: String,
    /// What has to become true for it to be over; a CEL expression. Without it, it is over when `when` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub until: Option<String>,
    /// For how many seconds `when` has to be true without a break.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 86_400))]
    pub hold_seconds: u32,
    /// What is done when it begins, in this order.
    #[schemars(length(max = 16))]
    pub then: Vec<Action>,
    /// What is done when it is over, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub otherwise: Vec<Action>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// One of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct Action {
    /// Sets a property, as keadm ctl set does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Set>,
    /// Publishes to the node's MQTT broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
    /// Calls a URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post: Option<Post>,
    /// Raises a Kubernetes event about the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<RaiseEvent>,
}

/// A property, and what it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Set {
    /// One of the names in devices.
    pub device: String,
    /// A property of it that can be written.
    pub property: String,
    /// What it is to be.
    pub value: String,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Publish {
    /// Where to.
    pub topic: String,
    /// What.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub payload: String,
}

/// A POST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Post {
    /// http://HOST:PORT/PATH, or with https.
    pub url: String,
    /// What is sent. Left out: JSON with the rule's name, and when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub body: Option<String>,
}

/// An event, beside the ones that say that the rule has begun, and is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RaiseEvent {
    /// In one word, for programs.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// For people.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// What has become of a rule; written by the edge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceRuleStatus {
    /// It has begun, and is not over.
    pub active: bool,
    /// How often it has begun.
    pub fired: u64,
    /// When it began last. RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_fired: Option<String>,
    /// Why it is not kept, or what of it failed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
