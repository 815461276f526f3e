//! `cargo xtask image`: cloudcore as an image, for clusters whose nodes it is imported on or a registry it is pushed to.

use anyhow::{Context, Result};
use harness::{
    process::output_async,
    progress::during,
    setup::{cargo, of_program, source_dir},
};

use crate::say;

pub(crate) async fn run() -> Result<()> {
    let build = cargo(&["build", "--release", "--package", "cloudcore"]);
    during("building cloudcore", output_async(build)).await?;
    let release = source_dir().join("target/release");
    let archive = release.join("cloudcore-image.tar");
    let name = format!("docker.io/skerry/cloudcore:v{}", env!("CARGO_PKG_VERSION"));
    of_program(&name, &release.join("cloudcore"), &archive).context("failed to make the image")?;
    say(&format!("{name}: {}", archive.display()))?;
    say(&format!("on each node that is to run it: ctr -n k8s.io images import {}", archive.display()))
}
