//! Examples of edgecore: what measures a part of it in a process of its own, built as it would ship.

use std::path::PathBuf;

use anyhow::{Context, Result};
use harness::{process::output_async, progress::during, setup};
use serde_json::Value;

pub(super) async fn build(name: &str) -> Result<PathBuf> {
    let build = ["build", "--release", "-p", "edgecore", "--example", name];
    let build = setup::cargo(&[&build[..], &["--message-format=json-render-diagnostics"]].concat());
    let messages = during("building the example, which takes minutes", output_async(build)).await?;
    let path = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    path.context("cargo built no example")
}
