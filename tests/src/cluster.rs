//! A control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as child processes, on ports that
//! the kernel chose.
//!
//! Everything is upstream's own and set up as a cluster admin would (RBAC, NodeRestriction, client certificates),
//! but for what a throwaway cluster may give up: etcd does not sync, nothing elects leaders, all is killed at the
//! end (kube-apiserver takes up to a minute over SIGTERM).

mod components;
mod heartbeat;
mod kubeconfig;
mod outage;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    pki::{self, Authority, Identity},
    process::{Daemon, command, output_async, tail},
    run::Run,
    setup::Assets,
    wait,
};

use components::Restart;
pub use heartbeat::HeartbeatNodes;

/// Starting a port-bound daemon is tried this often: between the choice of a port and its use, another may take it.
const PORT_TRIES: usize = 5;
const START_DEADLINE: Duration = Duration::from_secs(90);
/// Services' addresses. Apart from the sites' 10.213.0.0/16 and the pods' 10.216.0.0/14.
const SERVICE_CIDR: &str = "10.96.0.0/16";
/// Of the Service `kubernetes`.
pub(crate) const FIRST_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// How fast this cluster notices and evicts, and who can reach it.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// kube-controller-manager calls a node unreachable when its Lease is older than this. Leases are renewed every ten
    /// seconds, by kubelets and by cloudcore: with less, healthy nodes come and go.
    pub node_monitor_grace_period: Duration,
    pub node_monitor_period: Duration,
    /// `tolerationSeconds` that the API server gives to pods without tolerations of their own (300 s by default
    /// elsewhere): the eviction time.
    pub eviction_after: Duration,
    /// Listen on all addresses, so that sites can reach the API server at the host's end of their line. Off, it is
    /// on 127.0.0.1 alone.
    pub reachable_from_sites: bool,
    /// More addresses for the API server's certificate.
    pub addresses: Vec<IpAddr>,
    pub kube_apiserver_args: Vec<String>,
    pub kube_controller_manager_args: Vec<String>,
    pub kube_scheduler_args: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            node_monitor_grace_period: Duration::from_secs(15),
            node_monitor_period: Duration::from_secs(1),
            eviction_after: Duration::from_secs(5),
            reachable_from_sites: false,
            addresses: Vec::new(),
            kube_apiserver_args: Vec::new(),
            kube_controller_manager_args: Vec::new(),
            kube_scheduler_args: Vec::new(),
        }
    }
}

/// A running control plane. Killed when dropped, unless its run is kept.
pub struct Cluster {
    client: Client,
    kubeconfig: PathBuf,
    port: u16,
    dir: PathBuf,
    assets: Assets,
    authority: Authority,
    // In the order in which they are to be dropped: clients of the API server before it, etcd last.
    scheduler: Daemon,
    controller_manager: Daemon,
    apiserver: Daemon,
    apiserver_start: Restart,
    etcd: Daemon,
}

struct Identities {
    server: Identity,
    admin: Identity,
    /// Of the API server, to kubelets.
    kubelet_client: Identity,
    controller_manager: Identity,
    scheduler: Identity,
    service_accounts: Identity,
}

impl Cluster {
    /// Starts all four and waits until pods could be made.
    pub async fn start(run: &Arc<Run>, assets: &Assets, options: &ClusterOptions) -> Result<Self> {
        // Compiled in once or not, a process picks its TLS provider once; a second call says so and changes nothing.
        drop(rustls::crypto::ring::default_provider().install_default());
        let name = run.unique_name("c");
        let dir = run.dir().join(&name);
        let authority = Authority::create(&dir.join("pki"))?;
        let ids = identities(&authority, &dir.join("pki"), options)?;
        let start = components::Start {
            run,
            assets,
            options,
            dir: &dir,
            name: &name,
            ca: authority.identity(),
            ids: &ids,
        };

        let (etcd, etcd_port) = start.etcd().await?;
        let (mut apiserver, port, apiserver_start) = start.apiserver(etcd_port).await?;
        let server = format!("https://127.0.0.1:{port}");
        let kubeconfig = dir.join("admin.kubeconfig");
        kubeconfig::write(&kubeconfig, &server, &authority.identity(), &ids.admin)?;
        let client = client_of(&kubeconfig).await?;
        until_ready(&client, &mut apiserver).await?;

        // Only now: it exits when RBAC is not there yet.
        let mut controller_manager = start.controller_manager(&server)?;
        let mut scheduler = start.scheduler(&server)?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        wait::until("default service account", START_DEADLINE, async || {
            controller_manager.check_alive()?;
            scheduler.check_alive()?;
            accounts.get("default").await.map(drop).map_err(anyhow::Error::from)
        })
        .await?;
        Ok(Self {
            client,
            kubeconfig,
            port,
            dir,
            assets: assets.clone(),
            authority,
            scheduler,
            controller_manager,
            apiserver,
            apiserver_start,
            etcd,
        })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// An admin's kubeconfig file.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Of the API server, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster's CA, to issue further client certificates with.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A kubeconfig file for another user.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        self.kubeconfig_at(Ipv4Addr::LOCALHOST, user, groups)
    }

    /// A kubeconfig file for a user who finds the API server at `address`, which its certificate must name
    /// ([`ClusterOptions::addresses`]).
    pub fn kubeconfig_at(&self, address: Ipv4Addr, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let identity = self.authority.client(user, groups)?;
        let path = self.dir.join(format!("{}.kubeconfig", user.replace(':', "-")));
        let server = format!("https://{address}:{}", self.port);
        kubeconfig::write(&path, &server, &self.authority.identity(), &identity)?;
        Ok(path)
    }

    /// Runs kubectl as admin and returns what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        output_async(self.kubectl_command(args)).await
    }

    /// kubectl as admin, to be run otherwise.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut kubectl = command(&self.assets.kubectl, args);
        kubectl.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.dir);
        kubectl
    }

    /// `kubectl apply` of a manifest.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(&self.dir)?;
        fs::write(file.path(), manifest)?;
        let path = file.path().to_str().context("a run's directory has a plain name")?;
        self.kubectl(&["apply", "-f", path]).await
    }

    /// Each component's name and version, by what the programs say.
    pub async fn versions(&self) -> Result<Vec<(String, String)>> {
        let mut versions = Vec::new();
        for program in [
            &self.assets.etcd,
            &self.assets.kube_apiserver,
            &self.assets.kube_controller_manager,
            &self.assets.kube_scheduler,
        ] {
            let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
            let text = output_async(command(program, ["--version"])).await?;
            let version = text.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or("?");
            versions.push((name, version.trim_start_matches('v').to_owned()));
        }
        Ok(versions)
    }

    /// An error, with the end of its log, if a component is no longer there.
    pub fn check_alive(&mut self) -> Result<()> {
        for daemon in [&mut self.etcd, &mut self.apiserver, &mut self.controller_manager, &mut self.scheduler]
        {
            daemon.check_alive()?;
        }
        Ok(())
    }
}

fn identities(authority: &Authority, dir: &Path, options: &ClusterOptions) -> Result<Identities> {
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), FIRST_SERVICE_IP.into()];
    addresses.extend(&options.addresses);
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    Ok(Identities {
        server: authority.server("kube-apiserver", &names, &addresses)?,
        admin: authority.client("admin", &["system:masters"])?,
        // Named as by kubeadm.
        kubelet_client: authority.client("kube-apiserver-kubelet-client", &["system:masters"])?,
        controller_manager: authority.client("system:kube-controller-manager", &[])?,
        scheduler: authority.client("system:kube-scheduler", &[])?,
        service_accounts: pki::signing_key(dir, "service-accounts")?,
    })
}

async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn until_ready(client: &Client, apiserver: &mut Daemon) -> Result<()> {
    let log = apiserver.log().to_owned();
    wait::until("kube-apiserver ready", START_DEADLINE, async || {
        apiserver.check_alive()?;
        let answer = client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
        if answer == "ok" { Ok(()) } else { bail!("/readyz says {answer}") }
    })
    .await
    .with_context(|| format!("the end of its log:\n{}", tail(&log)))
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the kernel has no free port")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
