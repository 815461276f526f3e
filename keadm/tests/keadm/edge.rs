//! `join` and `reset` at the site.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{http, wait};

use crate::stage::Stage;

pub(crate) async fn join(stage: &Stage<'_>) -> Result<()> {
    let endpoint = stage.endpoint(stage.port);
    let token = format!("--token={}", stage.token(&[]).await?);
    let args = [&*token, "--labels=site=north"];
    let planned = stage
        .join(&endpoint, &stage.root_dir, &[&args[..], &["--dry-run"]].concat())
        .await?
        .says(&["would write the token", "would start edgecore"])?;
    ensure!(planned.out.contains(&endpoint) && !planned.out.contains(&token), "{}", planned.out);
    ensure!(!stage.root_dir.exists(), "a dry run wrote {}", stage.root_dir.display());

    stage.join(&endpoint, &stage.root_dir, &args).await?.says(&["node edge-1 is Ready"])?;
    let ready = stage.cluster.kubectl(&["get", "nodes", "edge-1", "--no-headers"]).await?;
    ensure!(ready.split_whitespace().nth(1) == Some("Ready"), "{ready}");
    ensure!(!stage.root_dir.join("bootstrap-edgecore.conf").exists(), "the token is left on the disk");
    let pid = fs::read(stage.root_dir.join("edgecore.pid"))?;
    // The token has done its work: without one, and with another, nothing changes.
    stage
        .join(&endpoint, &stage.root_dir, &[])
        .await?
        .says(&["running, unchanged", "node edge-1 is Ready"])?;
    stage.join(&endpoint, &stage.root_dir, &args).await?.says(&["running, unchanged"])?;
    ensure!(fs::read(stage.root_dir.join("edgecore.pid"))? == pid, "edgecore was restarted for nothing");
    // Without its key it is a machine that has not joined.
    let (key, aside) = (stage.root_dir.join("certs/server.key"), stage.root_dir.join("certs/aside"));
    fs::rename(&key, &aside)?;
    stage.join(&endpoint, &stage.root_dir, &[]).await?.refuses(&["no token was given"])?;
    let token = format!("--token={}", stage.token(&["--node=edge-1"]).await?);
    let planned = stage.join(&endpoint, &stage.root_dir, &[&token, "--dry-run"]).await?;
    planned.says(&["would write the token"])?;
    fs::rename(&aside, &key)?;
    Ok(())
}

/// A slip in the root directory costs no pod its sandbox.
async fn a_reset_of_another_root_leaves_the_pods(stage: &Stage<'_>) -> Result<()> {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: guest}, spec: {nodeName: edge-1, \
               terminationGracePeriodSeconds: 0, containers: [{name: c, image: registry.invalid/none}]}}";
    stage.cluster.apply(pod).await?;
    wait::until("a sandbox", Duration::from_mins(1), async || {
        let ip = stage.cluster.kubectl(&["get", "pod", "guest", "-o", "jsonpath={.status.podIP}"]).await?;
        ensure!(!ip.is_empty(), "the pod has no address");
        // Pods of the steps before this one may be on their way out.
        let sandboxes = stage.site.containers().await?.into_iter().filter(|one| one.sandbox).count();
        ensure!(sandboxes == 1, "{sandboxes} sandboxes");
        Ok(())
    })
    .await?;
    let root = format!("--root-dir={}", stage.site.dir().join("egde").display());
    let runtime = format!("--remote-runtime-endpoint={}", stage.site.runtime_endpoint());
    let ran = stage.at_site(&["reset", &root, &runtime, "--force"]).await?;
    ran.says(&["left alone: 1 pod sandboxes"])?;
    Ok(())
}

/// A machine that was reset has given its name back, and joins under it with any token.
pub(crate) async fn reset_and_join_again(stage: &Stage<'_>) -> Result<()> {
    a_reset_of_another_root_leaves_the_pods(stage).await?;
    let root = format!("--root-dir={}", stage.root_dir.display());
    stage.at_site(&["reset", &root, "--dry-run"]).await?.says(&[
        "would stop edgecore",
        "would tell cloudcore",
        "would remove",
    ])?;
    ensure!(stage.root_dir.join("config/edgecore.yaml").exists(), "a dry run removed something");
    let reset = async || stage.at_site(&["reset", "edge", &root, "--force"]).await;
    reset().await?.says(&["stopped edgecore", "pods are removed: 1", "that the node leaves"])?;
    ensure!(!stage.root_dir.exists(), "{} is left", stage.root_dir.display());
    reset().await?.says(&["edgecore was not running"])?;

    let token = format!("--token={}", stage.token(&[]).await?);
    let endpoint = stage.endpoint(stage.port);
    stage.join(&endpoint, &stage.root_dir, &[&token]).await?.says(&["node edge-1 is Ready"])?;
    reset().await?.says(&["stopped edgecore"])?;
    Ok(())
}

/// A machine that was shut out loses its link at once, and its name goes with a token for it alone.
pub(crate) async fn revoke(stage: &Stage<'_>) -> Result<()> {
    let linked = async || {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, stage.admin));
        let page = http::get_tcp(admin, "/sessions").await?.body;
        Ok::<_, anyhow::Error>(page.contains("edge-1"))
    };
    let any = format!("--token={}", stage.token(&[]).await?);
    let endpoint = stage.endpoint(stage.port);
    stage.join(&endpoint, &stage.root_dir, &[&any]).await?.says(&["node edge-1 is Ready"])?;
    ensure!(linked().await?, "no session");

    stage.keadm(&["revoke", "egde-1"]).await?.refuses(&["there is no Node egde-1"])?;
    stage.keadm(&["revoke", "edge-1", "--dry-run"]).await?.says(&["would shut edge-1 out"])?;
    ensure!(linked().await?, "a dry run cut the link");
    stage
        .keadm(&["revoke", "edge-1"])
        .await?
        .says(&["edge-1 is shut out", "keadm gettoken --node=edge-1"])?;
    wait::until("the end of the link", Duration::from_secs(5), async || {
        ensure!(!linked().await?, "it lives on");
        Ok(())
    })
    .await?;
    stage.keadm(&["revoke", "edge-1"]).await?.says(&["edge-1 is shut out already"])?;

    let root = format!("--root-dir={}", stage.root_dir.display());
    stage.at_site(&["reset", "edge", &root, "--force"]).await?.says(&["stopped edgecore"])?;
    let taken = ["a machine has joined as edge-1 before"];
    stage.join(&endpoint, &stage.root_dir, &[&any]).await?.refuses(&taken)?;
    let own = format!("--token={}", stage.token(&["--node=edge-1"]).await?);
    stage.join(&endpoint, &stage.root_dir, &[&own]).await?.says(&["node edge-1 is Ready"])?;
    stage.at_site(&["reset", "edge", &root, "--force"]).await?.says(&["stopped edgecore"])?;
    Ok(())
}
