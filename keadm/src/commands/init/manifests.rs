//! What `keadm init` applies to the cluster.

use crds::{
    componentconfig::cloudcore::{CloudCoreConfig, Modules},
    devices::WEBHOOK,
};
use serde_json::{Value, json};

use super::node_selector;
use crate::{
    cli::Mode,
    commands::gettoken::NAMESPACE,
    kubernetes::{Access, Manifest},
    process::ENVIRONMENT,
};

/// The name of the ServiceAccount, the roles and the Deployment.
pub(crate) const NAME: &str = "cloudcore";
/// The Secret with the ServiceAccount's token, for a cloudcore beside the cluster.
pub(crate) const TOKEN_NAME: &str = "cloudcore-token";
/// Made by kube-controller-manager, and by nobody if none has run yet.
const LEASE_NAMESPACE: &str = "kube-node-lease";
const RBAC: &str = "rbac.authorization.k8s.io";

/// What applying all of it, and looking at what is there, takes.
pub(crate) fn needed_access(mode: Mode) -> Vec<Access> {
    let mut objects = custom_resources();
    objects.extend([namespace(), service_account()]);
    objects.extend(permissions());
    objects.push(webhooks());
    objects.extend(node_selector::policy("v1"));
    let read = match mode {
        Mode::Host => vec![token()],
        Mode::Deployment => deployment("", "", &CloudCoreConfig::default()),
    };
    let mut needed: Vec<Access> = read.iter().map(|object| object.access("get")).collect();
    objects.extend(read);
    for object in &objects {
        // Server-side apply of what is not there yet is both.
        needed.extend(["create", "patch"].map(|verb| object.access(verb)));
        // Roles with rights that the user does not have.
        if matches!(object.kind(), "ClusterRole" | "Role") {
            needed.extend(["escalate", "bind"].map(|verb| object.access(verb)));
        }
    }
    let mut asked = Vec::new();
    for access in needed {
        if !asked.contains(&access) {
            asked.push(access);
        }
    }
    asked
}

pub(super) fn meta(namespace: Option<&str>, name: &str) -> Value {
    let mut meta = json!({ "name": name, "labels": { "app.kubernetes.io/part-of": "kubeedge" } });
    if let Some(namespace) = namespace {
        meta["namespace"] = namespace.into();
    }
    meta
}

pub(crate) fn custom_resources() -> Vec<Manifest> {
    crds::custom_resource_definitions().into_iter().map(Manifest).collect()
}

/// cloudcore has the API server serve what it converts, which is to go on meanwhile.
pub(super) fn keep_served(definition: &mut Value, there: &Value) {
    let there = there["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_served = |name: &Value| there.iter().any(|one| one["name"] == *name && one["served"] == true);
    for version in definition["spec"]["versions"].as_array_mut().into_iter().flatten() {
        if is_served(&version["name"]) {
            version["served"] = true.into();
        }
    }
}

pub(crate) fn namespace() -> Manifest {
    Manifest(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": meta(None, NAMESPACE) }))
}

pub(crate) fn service_account() -> Manifest {
    let meta = meta(Some(NAMESPACE), NAME);
    Manifest(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta }))
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": groups, "resources": resources, "verbs": verbs })
}

/// What cloudcore may do, and no more.
pub(crate) fn permissions() -> Vec<Manifest> {
    const READ: &[&str] = &["get", "list", "watch"];
    const WRITE: &[&str] = &["get", "update", "patch"];
    let cluster_rules = json!([
        // Edge nodes register through cloudcore, and it labels them.
        rule(&[""], &["nodes"], &["get", "list", "watch", "create", "update", "patch"]),
        rule(&[""], &["nodes/status"], WRITE),
        // patch: tolerations, so that a node that is out of reach keeps its pods. delete: a pod that has ended at the edge.
        rule(&[""], &["pods"], &["get", "list", "watch", "patch", "update", "delete"]),
        rule(&[""], &["pods/status"], WRITE),
        // Which of them a node gets is decided by the pods on it, and enforced by cloudcore.
        rule(&[""], &["configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes"], READ),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        // Whether who asks for logs and the like may.
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
        rule(&["", "events.k8s.io"], &["events"], &["create", "patch"]),
        rule(&["node.k8s.io"], &["runtimeclasses"], READ),
        rule(&["devices.kubeedge.io"], &["devicemodels"], READ),
        // patch: which node has it.
        rule(&["devices.kubeedge.io"], &["devices"], &["get", "list", "watch", "patch"]),
        rule(&["devices.kubeedge.io"], &["devices/status"], WRITE),
        rule(&["devices.kubeedge.io"], &["devicestatuses"], &["get", "list", "watch", "create", "patch"]),
        rule(&["devices.skerry.io"], &["devicerules"], READ),
        rule(&["devices.skerry.io"], &["devicerules/status"], WRITE),
        // Where its conversion is, and that its other version is served.
        json!({
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "resourceNames": ["devices.devices.kubeedge.io", "devicemodels.devices.kubeedge.io"],
            "verbs": ["get", "patch"],
        }),
        // Where they are looked at before they are written. No create, which cannot be limited by name: init makes it.
        json!({
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["validatingwebhookconfigurations"],
            "resourceNames": [WEBHOOK],
            "verbs": ["get", "patch"],
        }),
    ]);
    let lease_rules = json!([rule(
        &["coordination.k8s.io"],
        &["leases"],
        &["get", "list", "watch", "create", "update", "patch", "delete"]
    ),]);
    // create cannot be limited by name.
    let own_rules = json!([rule(&[""], &["secrets"], &["get", "create", "update", "patch"])]);
    let mut manifests =
        vec![role("ClusterRole", None, &cluster_rules), binding("ClusterRole", None), namespace_of_leases()];
    for (namespace, rules) in [(LEASE_NAMESPACE, &lease_rules), (NAMESPACE, &own_rules)] {
        manifests.push(role("Role", Some(namespace), rules));
        manifests.push(binding("Role", Some(namespace)));
    }
    manifests
}

/// Empty: cloudcore puts the webhook in, which stays when this is applied again.
pub(crate) fn webhooks() -> Manifest {
    Manifest(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": meta(None, WEBHOOK),
    }))
}

fn namespace_of_leases() -> Manifest {
    Manifest(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": LEASE_NAMESPACE } }))
}

fn role(kind: &str, namespace: Option<&str>, rules: &Value) -> Manifest {
    let api_version = format!("{RBAC}/v1");
    Manifest(json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": meta(namespace, NAME),
        "rules": rules,
    }))
}

fn binding(role_kind: &str, namespace: Option<&str>) -> Manifest {
    let api_version = format!("{RBAC}/v1");
    Manifest(json!({
        "apiVersion": api_version,
        "kind": format!("{role_kind}Binding"),
        "metadata": meta(namespace, NAME),
        "roleRef": { "apiGroup": RBAC, "kind": role_kind, "name": NAME },
        "subjects": [{ "kind": "ServiceAccount", "namespace": NAMESPACE, "name": NAME }],
    }))
}

/// A lasting token: a cloudcore beside the cluster has no kubelet that would renew one.
pub(crate) fn token() -> Manifest {
    let mut meta = meta(Some(NAMESPACE), TOKEN_NAME);
    meta["annotations"] = json!({ "kubernetes.io/service-account.name": NAME });
    Manifest(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta,
        "type": "kubernetes.io/service-account-token",
    }))
}

/// cloudcore in the cluster. On the host's network, so that the port is that of the node and of nothing in between.
pub(crate) fn deployment(image: &str, text: &str, config: &CloudCoreConfig) -> Vec<Manifest> {
    let Modules { cloud_hub, cloud_stream, edge_controller: _ } = &config.modules;
    let port = cloud_hub.websocket.port;
    let mut ports = vec![
        json!({ "name": "cloudhub", "containerPort": port, "hostPort": port, "protocol": "TCP" }),
        json!({ "name": "cloudhub-quic", "containerPort": port, "hostPort": port, "protocol": "UDP" }),
    ];
    if cloud_stream.enable && cloud_stream.stream_port != 0 {
        let port = cloud_stream.stream_port;
        ports.push(
            json!({ "name": "cloudstream", "containerPort": port, "hostPort": port, "protocol": "TCP" }),
        );
    }
    let selector = json!({ "k8s-app": "kubeedge", "kubeedge": NAME });
    let config_map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta(Some(NAMESPACE), NAME),
        "data": { "cloudcore.yaml": text },
    });
    let mut template = json!({ "metadata": { "labels": selector } });
    // A changed configuration is a changed template, so the pods are replaced.
    template["metadata"]["annotations"] = json!({ "node.skerry.io/config": crate::kubernetes::hash(text) });
    template["spec"] = json!({
        "serviceAccountName": NAME,
        "hostNetwork": true,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "node-role.kubernetes.io/edge", "operator": "DoesNotExist" },
            ] }],
        } } },
        "tolerations": [{ "key": "node-role.kubernetes.io/control-plane", "operator": "Exists" }],
        "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": NAME,
            "image": image,
            "command": [NAME],
            "args": ["--config", "/etc/kubeedge/config/cloudcore.yaml"],
            "env": ENVIRONMENT.map(|(name, value)| json!({ "name": name, "value": value })),
            "ports": ports,
            "readinessProbe": { "httpGet": { "path": "/healthz", "port": port, "scheme": "HTTPS" }, "periodSeconds": 5 },
            "resources": { "requests": { "cpu": "50m", "memory": "64Mi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [{ "name": "config", "mountPath": "/etc/kubeedge/config", "readOnly": true }],
        }],
        "volumes": [{ "name": "config", "configMap": { "name": NAME } }],
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(Some(NAMESPACE), NAME),
        // Recreate: on a cluster of one node two of them would want the same port.
        "spec": { "replicas": 1, "strategy": { "type": "Recreate" }, "selector": { "matchLabels": selector }, "template": template },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(Some(NAMESPACE), NAME),
        "spec": {
            "selector": selector,
            "ports": [{ "name": "cloudhub", "port": port, "targetPort": "cloudhub", "protocol": "TCP" }],
        },
    });
    [config_map, deployment, service].map(Manifest).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_served_stays_so() {
        let mut definition = json!({"spec": {"versions": [
            {"name": "v2", "served": true}, {"name": "v1", "served": false}, {"name": "v0", "served": false},
        ]}});
        let there =
            json!({"spec": {"versions": [{"name": "v1", "served": true}, {"name": "v0", "served": false}]}});
        keep_served(&mut definition, &there);
        let served: Vec<_> = definition["spec"]["versions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["served"] == true)
            .collect();
        assert_eq!(served, [true, true, false]);
    }

    #[test]
    fn the_access_asked_for_is_what_applying_takes_once_each() {
        let asked = |mode| -> Vec<String> {
            let text = |access: Access| {
                let namespace = access.namespace.unwrap_or_default();
                format!("{} {}/{} {namespace}", access.verb, access.group, access.resource)
            };
            needed_access(mode).into_iter().map(text).collect()
        };
        let both = [
            "create apiextensions.k8s.io/customresourcedefinitions ",
            "create /namespaces ",
            "patch rbac.authorization.k8s.io/rolebindings kube-node-lease",
            "create rbac.authorization.k8s.io/rolebindings kubeedge",
            "escalate rbac.authorization.k8s.io/roles kubeedge",
            "bind rbac.authorization.k8s.io/clusterroles ",
            "create admissionregistration.k8s.io/mutatingadmissionpolicies ",
            "patch admissionregistration.k8s.io/validatingwebhookconfigurations ",
        ];
        let deployment = [
            "get /configmaps kubeedge",
            "create /configmaps kubeedge",
            "create apps/deployments kubeedge",
            "patch /services kubeedge",
        ];
        let host = ["get /secrets kubeedge", "create /secrets kubeedge"];
        for (mode, own, others) in
            [(Mode::Deployment, &deployment[..], &host[..]), (Mode::Host, &host[..], &deployment[..])]
        {
            let asked = asked(mode);
            for access in both.iter().chain(own) {
                assert_eq!(asked.iter().filter(|one| one == access).count(), 1, "{access}: {asked:?}");
            }
            assert!(!others.iter().any(|access| asked.iter().any(|one| one == access)), "{asked:?}");
        }
    }
}
