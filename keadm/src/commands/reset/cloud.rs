//! The cloud side: cloudcore on this machine if it runs here, then what init applied to the cluster.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::files;
use crate::{
    cli::Reset,
    commands::{
        gettoken::NAMESPACE,
        init::{host, manifests, selector_policy},
    },
    kubernetes::{Cluster, Manifest},
    output,
    preflight::Preflight,
};

pub(super) async fn run(args: &Reset) -> Result<()> {
    let mut preflight = Preflight::default();
    let connected = Cluster::connect(args.kube.kube_config.as_deref()).await;
    let cluster =
        preflight.say(connected, |(_, version)| format!("the API server answers: Kubernetes {version}"));
    preflight.finish(false)?;
    let (cluster, _) = cluster.context("the API server was reached")?;
    let question = format!(
        "Remove cloudcore, with the CA of all edge nodes, from the cluster at {}?",
        cluster.config.cluster_url
    );
    super::consent(args, &question)?;
    remove_host(args).await?;
    let mut removed = 0;
    let mut objects = objects(args.crds);
    objects.extend(selector_policy(&cluster).await?.unwrap_or_default());
    for object in objects {
        if args.dry_run {
            output::planned(format_args!("delete {object}"));
        } else {
            removed += usize::from(cluster.delete(&object).await?);
        }
    }
    if !args.dry_run {
        output::step(&format!("namespace {NAMESPACE} is gone"), gone(&cluster)).await?;
        output::done(format_args!("deleted {removed} objects"));
    }
    Ok(())
}

async fn remove_host(args: &Reset) -> Result<()> {
    let dir = &args.config_dir;
    let config = host::config_file(dir);
    if !config.exists() {
        output::unchanged(format_args!("no cloudcore was installed in {}", dir.display()));
        return Ok(());
    }
    let daemon = host::daemon(dir, PathBuf::from("cloudcore"));
    if args.dry_run {
        output::planned(format_args!("stop {}", daemon.describe()));
    } else if output::step("cloudcore stops", daemon.remove()).await? {
        output::done("stopped cloudcore");
    }
    let old_log = daemon.log_file.with_extension("log.1");
    for file in [config, host::kubeconfig_file(dir), daemon.log_file, old_log] {
        files::remove(&file, args.dry_run)?;
    }
    files::remove_if_empty(&dir.join("config"), args.dry_run)?;
    files::remove_if_empty(dir, args.dry_run)
}

/// What init applied, but what the cluster has anyway. The namespace takes all within it away.
fn objects(crds: bool) -> Vec<Manifest> {
    let mut objects: Vec<Manifest> =
        manifests::permissions().into_iter().filter(|object| object.kind() != "Namespace").collect();
    objects.push(manifests::webhooks());
    if crds {
        objects.extend(manifests::custom_resources());
    }
    objects.push(manifests::namespace());
    objects
}

async fn gone(cluster: &Cluster) -> Result<()> {
    let namespace =
        Manifest(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }));
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(2);
    while cluster.get(&namespace).await?.is_some() {
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "the namespace is not gone after 120 s: is kube-controller-manager running?"
        );
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    Ok(())
}
