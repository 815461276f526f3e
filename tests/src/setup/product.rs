//! cloudcore, edgecore and keadm from the source tree, each built with its own `-p`: one build of the whole
//! workspace would unite the features of all, and the programs would not be those that ship.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::source_dir;
use crate::{process::output_async, progress::during};

const PROGRAMS: &[&str] = &["cloudcore", "edgecore", "keadm"];
/// Set by `cargo xtask test` once it has built them, so that no test builds again.
const BUILT: &str = "SKERRY_BIN_DIR";

pub(super) async fn build() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BUILT) {
        return Ok(dir.into());
    }
    build_as(&[], "").await
}

/// As they ship. The last step of each is one compilation of everything at once: minutes.
pub(super) async fn build_release() -> Result<PathBuf> {
    build_as(&["--release"], " as it ships, which takes minutes").await
}

async fn build_as(profile: &[&str], how: &str) -> Result<PathBuf> {
    let mut dir = None;
    for program in PROGRAMS {
        let built = build_one(program, profile, how).await?;
        // Out of cargo's way: a build of the workspace puts its own file of the same name in the same place.
        let place = built.parent().context("cargo names a file in a directory")?.join("bench-bin");
        fs::create_dir_all(&place)?;
        install(&built, &place.join(program))?;
        dir = Some(place);
    }
    dir.context("there are programs to build")
}

/// The simulator of devices, as a program.
pub async fn build_simulator() -> Result<PathBuf> {
    build_one("simulator", &[], "").await
}

/// As fast as it can be: it is not to be what is measured.
pub async fn build_simulator_release() -> Result<PathBuf> {
    build_one("simulator", &["--release"], " with optimisations").await
}

async fn build_one(program: &str, profile: &[&str], how: &str) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--message-format=json-render-diagnostics", "-p", program]);
    build.args(profile);
    let messages = during(&format!("building {program}{how}"), output_async(build)).await?;
    executable(&messages, program)
}

/// cargo in the source tree, as a shell would start it. `cargo run` describes the package that it runs in the
/// environment; build scripts that look at it (ring's) would be run anew at each change from one to the other.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(source_dir());
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The path of the program in cargo's JSON messages.
fn executable(messages: &str, program: &str) -> Result<PathBuf> {
    let path = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message.pointer("/target/name")?.as_str()?;
        let path = message.get("executable")?.as_str()?;
        (name == program).then(|| PathBuf::from(path))
    });
    path.with_context(|| format!("cargo built no {program}"))
}

/// By rename, because the file that is there may be running.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("failed to copy {}", from.display()))?;
    fs::rename(&new, to).with_context(|| format!("failed to put {} in place", to.display()))
}
