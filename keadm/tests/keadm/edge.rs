//! `join` and `reset` at the site.

use std::fs;

use anyhow::{Result, ensure};

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
    Ok(())
}

/// A machine that was reset has given its name back, and joins under it with any token.
pub(crate) async fn reset_and_join_again(stage: &Stage<'_>) -> Result<()> {
    let root = format!("--root-dir={}", stage.root_dir.display());
    stage.at_site(&["reset", &root, "--dry-run"]).await?.says(&[
        "would stop edgecore",
        "would tell cloudcore",
        "would remove",
    ])?;
    ensure!(stage.root_dir.join("config/edgecore.yaml").exists(), "a dry run removed something");
    let reset = async || stage.at_site(&["reset", "edge", &root, "--force"]).await;
    reset().await?.says(&["stopped edgecore", "that the node leaves"])?;
    ensure!(!stage.root_dir.exists(), "{} is left", stage.root_dir.display());
    reset().await?.says(&["edgecore was not running"])?;

    let token = format!("--token={}", stage.token(&[]).await?);
    let endpoint = stage.endpoint(stage.port);
    stage.join(&endpoint, &stage.root_dir, &[&token]).await?.says(&["node edge-1 is Ready"])?;
    reset().await?.says(&["stopped edgecore"])?;
    Ok(())
}
