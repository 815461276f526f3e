//! A cloudcore beside a cluster, in host mode.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Assets, Cluster, Run, Site,
    http::{self, Response},
    process::{command, kill9, output_async, wait_gone},
};

const SOON: Duration = Duration::from_mins(1);

pub struct Cloud {
    keadm: PathBuf,
    kubeconfig: PathBuf,
    dir: PathBuf,
    port: u16,
    admin: SocketAddr,
    run: Arc<Run>,
}

impl Cloud {
    /// `keadm init`, for sites that reach it at `addresses`; cloudcore is ready then.
    pub async fn init(
        run: &Arc<Run>,
        assets: &Assets,
        cluster: &Cluster,
        addresses: &[Ipv4Addr],
    ) -> Result<Self> {
        let bin = assets.product()?;
        // Not 10000, which another test of this machine may have.
        let free = || anyhow::Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port());
        let port = free().context("the kernel has no free port")?;
        // The same after a restart, as 10003 would be: it is in each Node's status.
        let stream = free().context("the kernel has no free port")?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free().context("the kernel has no free port")?));
        let cloud = Self {
            keadm: bin.join("keadm"),
            kubeconfig: cluster.kubeconfig().to_owned(),
            dir: run.dir().join(run.unique_name("cloud")),
            port,
            admin,
            run: Arc::clone(run),
        };
        let addresses: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
        cloud
            .keadm([
                "init".to_owned(),
                "--mode=host".to_owned(),
                format!("--kube-config={}", cloud.kubeconfig.display()),
                format!("--advertise-address={}", addresses.join(",")),
                format!("--config-dir={}", cloud.dir.display()),
                format!("--bin-dir={}", bin.display()),
                format!("--cloudhub-port={port}"),
                format!("--admin-address={admin}"),
                format!("--set=modules.cloudStream.streamPort={stream}"),
            ])
            .await?;
        Ok(cloud)
    }

    /// `keadm gettoken`.
    pub async fn token(&self) -> Result<String> {
        let kubeconfig = format!("--kube-config={}", self.kubeconfig.display());
        let token = self.keadm(["gettoken".to_owned(), kubeconfig]).await?.trim().to_owned();
        ensure!(!token.is_empty(), "keadm gettoken printed nothing");
        Ok(token)
    }

    /// Runs keadm on the cloud's side and returns what it printed.
    pub async fn keadm(&self, args: impl IntoIterator<Item = String>) -> Result<String> {
        let mut keadm = command(&self.keadm, args);
        self.run.mark(&mut keadm);
        output_async(keadm).await
    }

    /// `address:port`, as a site sees it.
    pub fn endpoint(&self, site: &Site) -> String {
        self.endpoint_at(site.host_address())
    }

    /// `address:port`, for whoever finds this machine at that address.
    pub fn endpoint_at(&self, address: Ipv4Addr) -> String {
        format!("{address}:{}", self.port)
    }

    pub fn keadm_program(&self) -> &Path {
        &self.keadm
    }

    /// The configuration's directory, with cloudcore's log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// cloudcore's own pid. Killed, it is started again by its supervisor.
    pub fn pid(&self) -> Result<u32> {
        read_pid(&self.dir.join("cloudcore.pid"))
    }

    /// Kills the supervisor and then cloudcore, for good.
    pub fn kill9(&self) -> Result<()> {
        for pid in [read_supervisor(&self.dir.join("cloudcore-supervisor.json"))?, self.pid()?] {
            kill9(pid)?;
            wait_gone(pid, SOON)?;
        }
        Ok(())
    }

    /// `GET` of a path of the admin address.
    pub async fn admin(&self, path: &str) -> Result<Response> {
        http::get_tcp(self.admin, path).await
    }

    /// Changes cloudcore's log filter while it runs.
    pub async fn set_log_level(&self, filter: &str) -> Result<()> {
        let answer = http::put_tcp(self.admin, "/loglevel", filter).await?;
        ensure!(answer.status == 200, "cloudcore refuses the log filter {filter}: {}", answer.body);
        Ok(())
    }

    /// cloudcore's log, kept by its supervisor.
    pub fn log(&self) -> PathBuf {
        self.dir.join("cloudcore.log")
    }
}

pub(super) fn read_pid(path: &Path) -> Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no pid: {text:?}", path.display()))
}

/// The process id in what keadm's supervisor says about itself.
pub(super) fn read_supervisor(path: &Path) -> Result<u32> {
    let text = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    let state: serde_json::Value = serde_json::from_slice(&text)?;
    let pid = state.get("pid").and_then(serde_json::Value::as_u64).and_then(|pid| pid.try_into().ok());
    pid.with_context(|| format!("{} names no pid", path.display()))
}
