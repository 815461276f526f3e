//! `keadm revoke`: a Node is to remember a key that no machine has.

use anyhow::{Context, Result};
use crds::{EDGE_LABEL, KEY_ANNOTATION};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    cli::Revoke,
    kubernetes::Cluster,
    output,
    preflight::{Check, Preflight, Problem},
};

/// No hash of a key.
const NOBODY: &str = "revoked";

pub(crate) async fn run(args: Revoke) -> Result<()> {
    let mut preflight = Preflight::default();
    let cluster = preflight.take(Cluster::connect(args.kube.kube_config.as_deref()).await);
    let mut nodes = Vec::new();
    if let Some((cluster, _)) = &cluster {
        for name in &args.nodes {
            nodes.extend(preflight.take(edge_node(cluster, name).await));
        }
    }
    preflight.finish(false)?;
    let (cluster, _) = cluster.context("the API server was reached")?;
    let api: Api<Node> = Api::all(cluster.client);
    for node in nodes {
        let name = node.name_any();
        if node.annotations().get(KEY_ANNOTATION).is_some_and(|key| key == NOBODY) {
            output::unchanged(format!("{name} is shut out already"));
        } else if args.dry_run {
            output::planned(format!("shut {name} out"));
        } else {
            let patch = json!({"metadata": {"annotations": {KEY_ANNOTATION: NOBODY}}});
            let written = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            written.with_context(|| format!("failed to annotate Node {name}"))?;
            output::done(format!(
                "{name} is shut out; for the machine that replaces it: keadm gettoken --node={name}"
            ));
        }
    }
    Ok(())
}

async fn edge_node(cluster: &Cluster, name: &str) -> Check<Node> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    match api.get_opt(name).await {
        Ok(Some(node)) if node.labels().contains_key(EDGE_LABEL) => Ok(node),
        Ok(Some(_)) => Err(Problem::new(
            format!("{name} is no edge node: it has no label {EDGE_LABEL}"),
            format!("name an edge node, as in kubectl get nodes -l {EDGE_LABEL}"),
        )),
        Ok(None) => Err(Problem::new(
            format!("there is no Node {name}, and without one nothing shuts its machine out"),
            "let the machine register it again, or name another, as in kubectl get nodes",
        )),
        Err(error) => Err(Problem::new(
            format!("Node {name} cannot be read: {}", runtime::chain(&error)),
            "name the kubeconfig of a cluster administrator with --kube-config",
        )),
    }
}
