//! `init` and `reset cloud`: a dry run changes nothing, a second run finds nothing to do.

use std::{fs, net::TcpListener};

use anyhow::{Result, ensure};

use crate::stage::Stage;

pub(crate) async fn init(stage: &Stage<'_>) -> Result<()> {
    let planned = stage.init(&["--dry-run"]).await?.says(&[
        "would apply Namespace kubeedge",
        "would apply ValidatingWebhookConfiguration devices.skerry.io",
        "would apply MutatingAdmissionPolicy skerry-edge-node-selector",
        "would start cloudcore",
    ])?;
    ensure!(planned.out.contains(&format!("port: {}", stage.port)), "{}", planned.out);
    ensure!(!stage.config_dir.exists() && namespaces(stage).await?.is_empty(), "a dry run changed something");

    stage.init(&["--set=modules.cloudHub.nodeLimitt=7"]).await?.refuses(&[
        "there is no key modules.cloudHub.nodeLimitt; did you mean modules.cloudHub.nodeLimit?",
    ])?;
    let taken = TcpListener::bind(("0.0.0.0", stage.admin))?;
    stage.init(&[]).await?.refuses(&["cannot be listened on", "choose another with --admin-address"])?;
    drop(taken);
    stage.init(&[]).await?.says(&["started cloudcore", "cloudcore is ready"])?;
    let pid = fs::read(stage.config_dir.join("cloudcore.pid"))?;
    stage.init(&[]).await?.says(&["cloudcore under keadm supervise", "running, unchanged"])?;
    ensure!(fs::read(stage.config_dir.join("cloudcore.pid"))? == pid, "cloudcore was restarted for nothing");
    let limited = ["--set=modules.cloudHub.nodeLimit=77"];
    stage.init(&limited).await?.says(&["restarted cloudcore"])?;
    stage.init(&limited).await?.says(&["running, unchanged"])?;
    let read = || fs::read_to_string(stage.config_dir.join("config/cloudcore.yaml"));
    let config = read()?;
    ensure!(config.contains("nodeLimit: 77"), "{config}");
    // What no flag speaks of stays: port, addresses, limit.
    stage.init_again(&[]).await?.says(&["running, unchanged"])?;
    ensure!(read()? == config, "{}", read()?);
    in_the_cluster(stage).await?;
    Ok(())
}

/// A dry run of Deployment mode goes by what an earlier one has left in the cluster.
async fn in_the_cluster(stage: &Stage<'_>) -> Result<()> {
    let refused = stage.keadm(&["init", "--dry-run"]).await?;
    refused.refuses(&["the address at which edge nodes reach cloudcore is not known"])?;
    let earlier = "{apiVersion: v1, kind: ConfigMap, metadata: {name: cloudcore, namespace: kubeedge}, \
                   data: {cloudcore.yaml: 'modules: {cloudHub: {advertiseAddress: [192.0.2.1], nodeLimit: 55}}'}}";
    stage.cluster.apply(earlier).await?;
    let planned = stage.keadm(&["init", "--dry-run", "--cloudhub-port=10001"]).await?;
    let planned = planned.says(&["would apply ConfigMap kubeedge/cloudcore", "skerry/cloudcore:v"])?;
    for key in ["nodeLimit: 55", "192.0.2.1", "port: 10001"] {
        ensure!(planned.out.contains(key), "{}", planned.out);
    }
    stage.cluster.kubectl(&["delete", "configmap", "cloudcore", "--namespace=kubeedge"]).await?;
    Ok(())
}

pub(crate) async fn reset(stage: &Stage<'_>) -> Result<()> {
    let config_dir = format!("--config-dir={}", stage.config_dir.display());
    let reset = async |more: &[&str]| stage.keadm(&[&["reset", "cloud", &config_dir], more].concat()).await;
    reset(&["--dry-run"]).await?.says(&[
        "would stop cloudcore",
        "would delete MutatingAdmissionPolicy skerry-edge-node-selector",
        "would delete Namespace kubeedge",
    ])?;
    ensure!(!namespaces(stage).await?.is_empty(), "a dry run changed something");
    reset(&[]).await?.refuses(&["Standard input is no terminal; say --force"])?;
    reset(&["--force"]).await?.says(&["stopped cloudcore", "namespace kubeedge is gone"])?;
    let left = stage
        .cluster
        .kubectl(&[
            "get",
            "clusterroles,clusterrolebindings,validatingwebhookconfigurations,\
             mutatingadmissionpolicies,mutatingadmissionpolicybindings",
            "--selector=app.kubernetes.io/part-of=kubeedge",
            "--output=name",
        ])
        .await?;
    ensure!(left.is_empty() && namespaces(stage).await?.is_empty(), "{left}");
    ensure!(!stage.config_dir.exists(), "{} is left", stage.config_dir.display());
    reset(&["--force"]).await?.says(&["no cloudcore was installed", "deleted 0 objects"])?;
    Ok(())
}

async fn namespaces(stage: &Stage<'_>) -> Result<String> {
    stage.cluster.kubectl(&["get", "namespace", "kubeedge", "--ignore-not-found", "--output=name"]).await
}
