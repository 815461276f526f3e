//! Both dialects of `nodeSelector` for edge nodes: the field writes `node-role.kubernetes.io/edge: "true"` and `: ""`, and
//! a node has one value of the label.
//!
//! A mutating admission policy of the API server's own (no webhook, nothing that must run) puts a requirement that the
//! label exists in the place of either selector: in pods when they are created, whoever creates them, and in the
//! templates of DaemonSets, whose controller compares them with the nodes by itself. A policy that fails lets the object
//! through unchanged.

use serde_json::{Value, json};

use super::manifests::meta;
use crate::kubernetes::Manifest;

const NAME: &str = "skerry-edge-node-selector";

/// The pod's spec, in a pod or a DaemonSet.
const SPEC: &str = r#"(request.resource.resource == "daemonsets" ? object.spec.template.spec : object.spec)"#;

/// The policy and its binding, in a version of the group `admissionregistration.k8s.io`.
pub(crate) fn policy(version: &str) -> Vec<Manifest> {
    let api_version = format!("admissionregistration.k8s.io/{version}");
    let on = |group: &str, resource: &str, operations: &[&str]| json!({ "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource], "operations": operations });
    let condition =
        format!(r#"{SPEC}.?nodeSelector[?"node-role.kubernetes.io/edge"].orValue("other") in ["", "true"]"#);
    let policy = json!({
        "apiVersion": api_version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": meta(None, NAME),
        "spec": {
            "failurePolicy": "Ignore",
            "reinvocationPolicy": "IfNeeded",
            "matchConstraints": { "resourceRules": [
                on("", "pods", &["CREATE"]),
                on("apps", "daemonsets", &["CREATE", "UPDATE"]),
            ] },
            "matchConditions": [{ "name": "selects-edge-nodes", "expression": condition }],
            "variables": variables(),
            "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression": PATCH } }],
        },
    });
    let binding = json!({
        "apiVersion": api_version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": meta(None, NAME),
        "spec": { "policyName": NAME },
    });
    [policy, binding].map(Manifest).to_vec()
}

fn variables() -> Value {
    let variable = |name: &str, expression: &str| json!({ "name": name, "expression": expression });
    json!([
        variable("spec", SPEC),
        variable("at", r#"request.resource.resource == "daemonsets" ? "/spec/template/spec" : "/spec""#),
        variable("edge", r#"{"key": "node-role.kubernetes.io/edge", "operator": "Exists"}"#),
        variable("required", r#"{"nodeSelectorTerms": [{"matchExpressions": [variables.edge]}]}"#),
        variable(
            "terms",
            r#"variables.at
              + "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/""#,
        ),
    ])
}

/// The terms of a required node affinity are alternatives, so the requirement goes into each; one that is empty matches
/// no node, and stays so. What is there cannot be part of a patch's value, so it is patched in place.
const PATCH: &str = r#"[
  JSONPatch{op: "remove", path: variables.at + "/nodeSelector/node-role.kubernetes.io~1edge"}
] + (!has(variables.spec.affinity) ? [
  JSONPatch{op: "add", path: variables.at + "/affinity", value: {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": variables.required}}}
] : !has(variables.spec.affinity.nodeAffinity) ? [
  JSONPatch{op: "add", path: variables.at + "/affinity/nodeAffinity", value: {
    "requiredDuringSchedulingIgnoredDuringExecution": variables.required}}
] : !has(variables.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution) ? [
  JSONPatch{op: "add",
    path: variables.at + "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution",
    value: variables.required}
] : variables.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
  .transformList(i, term, has(term.matchExpressions) || has(term.matchFields),
    !has(term.matchExpressions)
      ? JSONPatch{op: "add", path: variables.terms + string(i) + "/matchExpressions", value: [variables.edge]}
      : JSONPatch{op: "add", path: variables.terms + string(i) + "/matchExpressions/-", value: variables.edge}
))"#;
