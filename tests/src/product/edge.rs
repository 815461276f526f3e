//! An edge node at a site.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{WatchEvent, WatchParams},
};

use super::cloud::{Cloud, read_pid, read_supervisor};
use crate::{
    Assets, Site,
    http::{self, Response},
    process::{Daemon, is_running, kill9, terminate, wait_gone},
    wait,
};

const SOON: Duration = Duration::from_mins(1);

/// Of `keadm join`: a node is under no DiskPressure, however full the disk is that it shares with all else on the machine.
pub const ANY_DISK: &str = "--set=modules.edged.evictionHard.nodefs.available=0%";

pub struct Edge {
    name: String,
    root: PathBuf,
    edgecore: PathBuf,
}

impl Edge {
    /// `keadm gettoken` and `keadm join`; the node is Ready then, and edgecore has a supervisor. `settings` are as for
    /// `--set`.
    pub async fn join(
        assets: &Assets,
        cloud: &Cloud,
        site: &Site,
        name: &str,
        settings: &[&str],
    ) -> Result<Self> {
        Self::join_several(assets, &[cloud], site, name, settings).await
    }

    /// As [`join`](Self::join), with several cloudcores to connect to.
    pub async fn join_several(
        assets: &Assets,
        clouds: &[&Cloud],
        site: &Site,
        name: &str,
        settings: &[&str],
    ) -> Result<Self> {
        let [first, others @ ..] = clouds else { bail!("no cloudcore") };
        let others = others.iter().map(|cloud| format!("--cloudcore-ipport={}", cloud.endpoint(site)));
        let settings = settings.iter().map(|setting| format!("--set={setting}"));
        let options: Vec<String> = others.chain(settings).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Self::try_join(assets, first, site, name, &options).await?;
        Self::joined(assets, site, name)
    }

    /// A node for which [`try_join`](Self::try_join) has been called.
    pub fn joined(assets: &Assets, site: &Site, name: &str) -> Result<Self> {
        let edgecore = assets.product()?.join("edgecore");
        Ok(Self { name: name.to_owned(), root: root(site), edgecore })
    }

    /// `keadm gettoken` and `keadm join` with further options; what it printed.
    pub async fn try_join(
        assets: &Assets,
        cloud: &Cloud,
        site: &Site,
        name: &str,
        options: &[&str],
    ) -> Result<String> {
        let mut join = vec![
            "join".to_owned(),
            format!("--cloudcore-ipport={}", cloud.endpoint(site)),
            format!("--token={}", cloud.token().await?),
            format!("--edgenode-name={name}"),
            format!("--remote-runtime-endpoint={}", site.runtime_endpoint()),
            format!("--root-dir={}", root(site).display()),
            format!("--bin-dir={}", assets.product()?.display()),
            ANY_DISK.to_owned(),
        ];
        join.extend(options.iter().map(|&option| option.to_owned()));
        site.output(cloud.keadm_program(), join).await
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `--root-dir` of the join: configuration, certificates, store, sockets.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// edgecore's own pid.
    pub fn pid(&self) -> Result<u32> {
        read_pid(&self.root.join("edgecore.pid"))
    }

    /// Waits for the supervisor to start an edgecore other than `old`.
    pub async fn come_back(&self, old: u32) -> Result<u32> {
        wait::until("edgecore started again by its supervisor", SOON, async || {
            let pid = self.pid()?;
            if pid == old || !is_running(pid) {
                bail!("edgecore.pid names {pid}, which is gone");
            }
            Ok(pid)
        })
        .await
    }

    /// Stops edgecore cleanly, and its supervisor with it; the pods go on.
    pub fn stop(&self) -> Result<()> {
        let (supervisor, edgecore) = (self.supervisor()?, self.pid()?);
        terminate(supervisor)?;
        for pid in [supervisor, edgecore] {
            ensure!(wait_gone(pid, SOON)?, "process {pid} has not ended within {SOON:?} of SIGTERM");
        }
        Ok(())
    }

    /// Kills the supervisor and then edgecore; the pods go on. For those who start edgecore themselves from then on.
    pub fn kill9(&self) -> Result<()> {
        for pid in [self.supervisor()?, self.pid()?] {
            kill9(pid)?;
            wait_gone(pid, SOON)?;
        }
        Ok(())
    }

    fn supervisor(&self) -> Result<u32> {
        read_supervisor(&self.root.join("edgecore-supervisor.json"))
    }

    /// Waits for edgecore to answer, and makes sure that it does so without a session with the cloud.
    pub async fn works_alone(&self) -> Result<()> {
        let page = wait::until("edgecore answering", SOON, async || self.admin("/nodez").await).await?;
        let state: serde_json::Value = serde_json::from_str(&page.body).context("/nodez is malformed")?;
        ensure!(page.status == 200 && state["connected"] == false, "edgecore is not alone: {state}");
        Ok(())
    }

    /// A counter or gauge of the admin socket.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let page = self.admin("/metrics").await?.body;
        let values = page.lines().filter_map(|line| line.split_once(' '));
        let found =
            values.filter(|(key, _)| key.trim_end_matches("_total") == name).map(|(_, value)| value).next();
        let value = found.with_context(|| format!("no metric {name}"))?;
        value.parse().with_context(|| format!("{name} is {value}"))
    }

    /// Where the metadata store is.
    pub fn store(&self) -> PathBuf {
        Self::store_below(&self.root)
    }

    /// Where the metadata store of a node at this site will be.
    pub fn store_at(site: &Site) -> PathBuf {
        Self::store_below(&site.dir().join("edge"))
    }

    fn store_below(root: &Path) -> PathBuf {
        root.join("store")
    }

    /// edgecore's log, while a supervisor writes it.
    pub fn log(&self) -> PathBuf {
        self.root.join("edgecore.log")
    }

    /// Starts edgecore without a supervisor, as a boot script would.
    pub fn start(&self, site: &Site) -> Result<Daemon> {
        let config = self.root.join("config/edgecore.yaml");
        let config = config.to_str().context("a run's directory has a plain name")?;
        site.spawn(&self.edgecore, ["--config", config], "edgecore")
    }

    /// `GET` of a path of the admin socket.
    pub async fn admin(&self, path: &str) -> Result<Response> {
        http::get_unix(&self.root.join("edgecore-admin.sock"), path).await
    }
}

fn root(site: &Site) -> PathBuf {
    site.dir().join("edge")
}

/// An error that says why a node is not Ready.
pub fn ready(node: &Node) -> Result<()> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    match ready {
        None => bail!("{} has no Ready condition", node.name_any()),
        Some(condition) if condition.status == "True" => Ok(()),
        Some(condition) => bail!(
            "{} is Ready={}: {}",
            node.name_any(),
            condition.status,
            condition.message.as_deref().unwrap_or_default()
        ),
    }
}

/// What the first of the nodes is that is not Ready, from this version of their list on.
///
/// # Errors
/// When the API server ends the watch.
pub async fn first_unready(nodes: &Api<Node>, of: WatchParams, from: &str) -> Result<String> {
    let (of, mut from) = (of.timeout(290), from.to_owned());
    loop {
        let mut events = Box::pin(nodes.watch(&of, &from).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                    from = node.resource_version().unwrap_or_default();
                    if let Err(unready) = ready(&node) {
                        return Ok(format!("{unready:#}"));
                    }
                }
                WatchEvent::Deleted(node) => return Ok(format!("{} is gone", node.name_any())),
                WatchEvent::Bookmark(mark) => from = mark.metadata.resource_version,
                WatchEvent::Error(error) => return Err(error.into()),
            }
        }
    }
}
