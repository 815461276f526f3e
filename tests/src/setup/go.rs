//! Programs built from a Go module of `tests/`, which pins their versions; built once, kept under the hash of go.sum.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{cache_dir, on_path, source_dir};
use crate::{
    oci::sha256_hex,
    process::{command, output_async},
    progress::during,
};

pub(super) struct GoModule {
    dir: PathBuf,
    built: PathBuf,
}

impl GoModule {
    /// The module in `tests/<name>`, whose programs are in `<cache>/<name>/<first 16 hex digits of go.sum's SHA-256>/`.
    pub(super) fn new(name: &str) -> Result<Self> {
        let dir = source_dir().join("tests").join(name);
        let sum = fs::read(dir.join("go.sum")).with_context(|| format!("failed to read {name}/go.sum"))?;
        let built = cache_dir()?.join(name).join(&sha256_hex(&sum)[..16]);
        Ok(Self { dir, built })
    }

    /// Where the built programs are.
    pub(super) fn built(&self) -> &Path {
        &self.built
    }

    /// Builds packages with one command, so that what they share is compiled once, and puts the programs in place when
    /// all are there: an interrupted build leaves nothing that looks finished. Programs are named as asked.
    pub(super) async fn build(&self, what: &str, flags: &str, programs: &[(&str, &str)]) -> Result<()> {
        if on_path("go").is_none() {
            bail!("Go is not on PATH; it builds upstream's programs for the tests");
        }
        let parent = self.built.parent().context("the cache has a parent directory")?;
        fs::create_dir_all(parent)?;
        let scratch = tempfile::Builder::new().prefix(".building-").tempdir_in(parent)?;
        let out = match programs {
            [(name, _)] => scratch.path().join(name),
            // With a slash at its end: a directory.
            _ => scratch.path().join(""),
        };
        let mut go = command("go", ["build", "-trimpath", "-ldflags", &format!("-s -w {flags}"), "-o"]);
        go.arg(out).args(programs.iter().map(|(_, package)| package));
        go.current_dir(&self.dir).env("CGO_ENABLED", "0");
        during(what, output_async(go)).await.with_context(|| format!("failed: {what}"))?;
        fs::create_dir_all(&self.built)?;
        for (name, _) in programs {
            fs::rename(scratch.path().join(name), self.built.join(name))
                .with_context(|| format!("failed to put {name} in place"))?;
        }
        Ok(())
    }

    /// The version of a module that go.mod requires.
    pub(super) fn required_version(&self, module: &str) -> Result<String> {
        let path = self.dir.join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let version = text.lines().find_map(|line| {
            let mut words = line.trim().trim_start_matches("require ").split_whitespace();
            // The `tool` directive names a package alone; only a requirement has a version after it.
            (words.next() == Some(module)).then(|| words.next().filter(|word| word.starts_with('v')))?
        });
        version.map(str::to_owned).with_context(|| format!("{} requires no {module}", path.display()))
    }
}
