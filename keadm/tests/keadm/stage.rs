//! A control plane, a site, and the programs between them.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{Bench, Cluster, ClusterOptions, Site, SiteOptions, process::command, product::ANY_DISK};

pub(crate) struct Stage<'a> {
    bench: &'a Bench,
    pub(crate) cluster: Cluster,
    pub(crate) site: Site,
    pub(crate) config_dir: PathBuf,
    pub(crate) root_dir: PathBuf,
    pub(crate) port: u16,
    /// cloudcore's admin port, which speaks plain HTTP.
    pub(crate) admin: u16,
}

/// What a command came to.
pub(crate) struct Ran {
    line: String,
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It worked, and said so.
    pub(crate) fn says(self, words: &[&str]) -> Result<Self> {
        ensure!(self.ok, "{} failed:\n{}", self.line, self.err);
        self.contains(words)
    }

    /// It failed, and said why.
    pub(crate) fn refuses(self, words: &[&str]) -> Result<Self> {
        ensure!(!self.ok, "{} worked:\n{}", self.line, self.err);
        self.contains(words)
    }

    fn contains(self, words: &[&str]) -> Result<Self> {
        for word in words {
            ensure!(self.err.contains(word), "{} does not say {word:?}:\n{}", self.line, self.err);
        }
        Ok(self)
    }
}

impl<'a> Stage<'a> {
    pub(crate) async fn start(bench: &'a Bench) -> Result<Self> {
        let site = bench.site(&SiteOptions::default()).await?;
        let options = ClusterOptions {
            reachable_from_sites: true,
            addresses: vec![site.host_address().into()],
            ..ClusterOptions::default()
        };
        let cluster = bench.cluster(&options).await?;
        let dir = bench.run.dir().join("keadm");
        let root_dir = site.dir().join("edge");
        let (port, admin) = (free_port()?, free_port()?);
        Ok(Self { bench, cluster, site, config_dir: dir, root_dir, port, admin })
    }

    pub(crate) fn endpoint(&self, port: u16) -> String {
        format!("{}:{port}", self.site.host_address())
    }

    fn keadm_program(&self) -> Result<PathBuf> {
        Ok(self.bench.assets.product()?.join("keadm"))
    }

    /// On the cloud's side.
    pub(crate) async fn keadm(&self, args: &[&str]) -> Result<Ran> {
        let mut keadm = command(self.keadm_program()?, args);
        keadm.env("KUBECONFIG", self.cluster.kubeconfig());
        self.bench.run.mark(&mut keadm);
        run(keadm, args).await
    }

    pub(crate) async fn init(&self, more: &[&str]) -> Result<Ran> {
        let flags = [
            format!("--advertise-address={}", self.site.host_address()),
            format!("--cloudhub-port={}", self.port),
            format!("--admin-address=0.0.0.0:{}", self.admin),
            "--set=modules.cloudStream.streamPort=0".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.init_again(&flags).await
    }

    /// With what was configured before.
    pub(crate) async fn init_again(&self, more: &[&str]) -> Result<Ran> {
        let flags = [
            format!("--config-dir={}", self.config_dir.display()),
            format!("--bin-dir={}", self.bench.assets.product()?.display()),
        ];
        let mut args = vec!["init", "--mode=host", "--kubeedge-version=1.12.0"];
        args.extend(flags.iter().map(String::as_str).chain(more.iter().copied()));
        self.keadm(&args).await
    }

    pub(crate) async fn token(&self, more: &[&str]) -> Result<String> {
        let ran = self.keadm(&[&["gettoken"], more].concat()).await?.says(&[])?;
        Ok(ran.out.trim().to_owned())
    }

    /// At the site.
    pub(crate) async fn join(&self, endpoint: &str, root: &Path, more: &[&str]) -> Result<Ran> {
        let flags = [
            format!("--cloudcore-ipport={endpoint}"),
            format!("--remote-runtime-endpoint={}", self.site.runtime_endpoint()),
            format!("--root-dir={}", root.display()),
            format!("--bin-dir={}", self.bench.assets.product()?.display()),
        ];
        let mut args = vec!["join", "--edgenode-name=edge-1", "--kubeedge-version=1.12.0", ANY_DISK];
        args.extend(flags.iter().map(String::as_str).chain(more.iter().copied()));
        self.at_site(&args).await
    }

    pub(crate) async fn at_site(&self, args: &[&str]) -> Result<Ran> {
        run(self.site.command(self.keadm_program()?, args)?, args).await
    }
}

async fn run(command: Command, args: &[&str]) -> Result<Ran> {
    // A token is a secret, in the failures of tests as well.
    let shown = args.iter().map(|arg| if arg.starts_with("--token=") { "--token=…" } else { *arg });
    let line = shown.collect::<Vec<_>>().join(" ");
    let mut command = tokio::process::Command::from(command);
    let out = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let out = out.with_context(|| format!("failed to run keadm {line}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { line, ok: out.status.success(), out: text(&out.stdout), err: text(&out.stderr) })
}

/// One that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("the kernel has no free port")?;
    Ok(listener.local_addr()?.port())
}
