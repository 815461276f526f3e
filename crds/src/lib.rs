//! The API of the product: its configuration files, its custom resources with the CRDs generated from them, and the names that
//! its programs leave on Kubernetes' own objects.
//!
//! Types, defaults and checks only: nothing here reads a file, a socket or a clock.

pub mod broker;
pub mod componentconfig;
pub mod devices;
pub mod generated;

pub use devices::custom_resource_definitions;

/// Presence of this label makes a node an edge node, whatever its value.
pub const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

/// On a Node: the hash of the key of the machine that is this node, written by cloudcore. Anything else that an operator
/// writes shuts the machine out (`kubectl annotate --overwrite node N skerry.io/enrolled-key=revoked`).
pub const KEY_ANNOTATION: &str = "skerry.io/enrolled-key";

/// On a Node, written by cloudcore while a CA is rotated: what the node has on its disk, as in
/// `{"trusted":["0123456789abcdef"],"issuer":"0123456789abcdef"}`, each CA by the first eight bytes of its certificate's SHA-256.
pub const AUTHORITIES_ANNOTATION: &str = "skerry.io/authorities";
/// On a Node: `NAMESPACE/NAME` of the ConfigMap with its link settings, in place of cloudcore's own choice.
pub const SYNC_CONFIG_ANNOTATION: &str = "skerry.io/sync-config";

/// On a Pod: the class of the reports about it, critical, standard or batch.
pub const PRIORITY_CLASS_ANNOTATION: &str = "skerry.io/priority-class";
