//! The store's index is damaged while edgecore is stopped: bytes flipped, a file cut short. The site comes up from the
//! rest, with no cloud in reach.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, LineCut, Site,
    process::Daemon,
    product::{Edge, Life, Scene, pod},
    wait,
};
use kube::ResourceExt;
use serde_json::json;

const NODE: &str = "edge-damage";
const SPACE: &str = "damage";
const SOON: Duration = Duration::from_secs(90);

/// The node and its edgecore, which has no supervisor any more.
pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &mut Site) -> Result<(Edge, Daemon)> {
    let edge = scene.join(bench, site, NODE).await?;
    scene.namespace(SPACE).await?;
    let uid = scene.run(SPACE, &pod("steady", NODE, &json!({}))).await?.uid().context("a pod has a uid")?;
    let life = Life::of(site, &uid).await?;
    let objects = edge.metric("edgecore_desired_objects").await?;
    site.cut(LineCut::Silent)?;
    edge.stop()?;

    // The containers run: they are adopted, not made anew.
    flip(&sled_files(&edge)?)?;
    let mut edgecore = edge.start(site)?;
    holds(&edge, &mut edgecore, objects).await?;
    let log = fs::read_to_string(edgecore.log())?;
    ensure!(log.contains("the store was damaged and healed"), "nothing is said of the damage:\n{log}");
    life.check(site).await?;

    // Nothing runs: the pods are made from what was healed, and damaged again.
    site.power_off()?;
    drop(edgecore);
    let files = sled_files(&edge)?;
    let largest = files.iter().max_by_key(|path| fs::metadata(path).map_or(0, |meta| meta.len()));
    let file = File::options().write(true).open(largest.context("sled has files")?)?;
    file.set_len(file.metadata()?.len() / 3)?;
    site.power_on().await?;
    let mut edgecore = edge.start(site)?;
    holds(&edge, &mut edgecore, objects).await?;
    wait::until("the pod answering at the site", SOON, async || {
        ensure!(site.get(&uid, "/echo?msg=hello").await? == "hello");
        Ok(())
    })
    .await?;
    let life = Life::of(site, &uid).await?;

    site.restore()?;
    scene.until_ready(NODE).await?;
    let shown = async || life.check_status(&scene.pods(SPACE).get("steady").await?);
    wait::until("the API showing the containers that run", SOON, shown).await?;
    life.check(site).await?;
    Ok((edge, edgecore))
}

async fn holds(edge: &Edge, edgecore: &mut Daemon, objects: u64) -> Result<()> {
    wait::until("the store with all it had", SOON, async || {
        edgecore.check_alive()?;
        let held = edge.metric("edgecore_desired_objects").await?;
        ensure!(held == objects, "{held} objects, {objects} before");
        Ok(())
    })
    .await
}

fn sled_files(edge: &Edge) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(edge.store())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("sled.") {
            list(&entry.path(), &mut files)?;
        }
    }
    ensure!(!files.is_empty(), "the store in {} has no sled directory", edge.store().display());
    Ok(files)
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { list(&entry.path(), files)? } else { files.push(entry.path()) }
    }
    Ok(())
}

/// Every 64th byte of each file.
fn flip(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let mut bytes = fs::read(path)?;
        bytes.iter_mut().step_by(64).for_each(|byte| *byte = !*byte);
        fs::write(path, bytes)?;
    }
    Ok(())
}
