//! The command lines of the four programs.

use std::{
    ffi::{OsStr, OsString},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;

use super::{ClusterOptions, Identities, PORT_TRIES, SERVICE_CIDR, START_DEADLINE, free_ports, kubeconfig};
use crate::{
    pki::Identity,
    process::{Daemon, command, tail},
    run::Run,
    setup::Assets,
    wait,
};

pub(super) struct Start<'a> {
    pub(super) run: &'a Arc<Run>,
    pub(super) assets: &'a Assets,
    pub(super) options: &'a ClusterOptions,
    pub(super) dir: &'a Path,
    pub(super) name: &'a str,
    pub(super) ca: Identity,
    pub(super) ids: &'a Identities,
}

/// A program that can be started once more, just as it was.
pub(super) struct Restart {
    run: Arc<Run>,
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
}

impl Restart {
    pub(super) fn daemon(&self) -> Result<Daemon> {
        Daemon::start(&self.run, &self.name, command(&self.program, &self.args))
    }
}

impl Start<'_> {
    pub(super) async fn etcd(&self) -> Result<(Daemon, u16)> {
        let (daemon, port, _) = self
            .with_ports("etcd", |[client, peer]| {
                let url = format!("http://127.0.0.1:{client}");
                let peer = format!("http://127.0.0.1:{peer}");
                let mut etcd = command(&self.assets.etcd, ["--unsafe-no-fsync", "--log-level=warn"]);
                etcd.arg(format!("--data-dir={}", self.dir.join("etcd").display()))
                    .arg(format!("--listen-client-urls={url}"))
                    .arg(format!("--advertise-client-urls={url}"))
                    .arg(format!("--listen-peer-urls={peer}"))
                    .arg(format!("--initial-advertise-peer-urls={peer}"))
                    .arg(format!("--initial-cluster=default={peer}"));
                (etcd, client)
            })
            .await?;
        Ok((daemon, port))
    }

    pub(super) async fn apiserver(&self, etcd_port: u16) -> Result<(Daemon, u16, Restart)> {
        let options = self.options;
        let bind = if options.reachable_from_sites { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        self.with_ports("kube-apiserver", |[port]| {
            let mut apiserver = Command::new(&self.assets.kube_apiserver);
            apiserver
                .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
                .arg(format!("--bind-address={bind}"))
                .arg(format!("--secure-port={port}"))
                .arg("--advertise-address=127.0.0.1")
                // A loopback address may not be an endpoint of the `kubernetes` Service.
                .arg("--endpoint-reconciler-type=none")
                .arg(format!("--service-cluster-ip-range={SERVICE_CIDR}"))
                .arg(format!("--client-ca-file={}", self.ca.cert.display()))
                .arg(format!("--tls-cert-file={}", self.ids.server.cert.display()))
                .arg(format!("--tls-private-key-file={}", self.ids.server.key.display()))
                .arg("--service-account-issuer=https://kubernetes.default.svc")
                .arg(format!("--service-account-key-file={}", self.ids.service_accounts.cert.display()))
                .arg(format!(
                    "--service-account-signing-key-file={}",
                    self.ids.service_accounts.key.display()
                ))
                .arg("--authorization-mode=Node,RBAC")
                .arg("--enable-admission-plugins=NodeRestriction")
                .arg("--allow-privileged=true")
                .arg("--profiling=false")
                .arg(format!("--kubelet-client-certificate={}", self.ids.kubelet_client.cert.display()))
                .arg(format!("--kubelet-client-key={}", self.ids.kubelet_client.key.display()))
                .arg(format!("--default-not-ready-toleration-seconds={}", options.eviction_after.as_secs()))
                .arg(format!("--default-unreachable-toleration-seconds={}", options.eviction_after.as_secs()))
                .args(&options.kube_apiserver_args);
            (apiserver, port)
        })
        .await
    }

    pub(super) fn controller_manager(&self, server: &str) -> Result<Daemon> {
        let options = self.options;
        let config = self.dir.join("kube-controller-manager.kubeconfig");
        kubeconfig::write(&config, server, &self.ca, &self.ids.controller_manager)?;
        let mut manager = Command::new(&self.assets.kube_controller_manager);
        manager
            .arg(format!("--kubeconfig={}", config.display()))
            .arg("--leader-elect=false")
            .arg("--secure-port=0")
            .arg("--use-service-account-credentials=true")
            .arg(format!("--service-account-private-key-file={}", self.ids.service_accounts.key.display()))
            .arg(format!("--root-ca-file={}", self.ca.cert.display()))
            .arg(format!("--cluster-signing-cert-file={}", self.ca.cert.display()))
            .arg(format!("--cluster-signing-key-file={}", self.ca.key.display()))
            .arg(format!("--node-monitor-grace-period={}", go_duration(options.node_monitor_grace_period)))
            .arg(format!("--node-monitor-period={}", go_duration(options.node_monitor_period)))
            // The default is one node in ten seconds, which a test would wait for.
            .arg("--node-eviction-rate=10")
            .arg("--profiling=false")
            .args(&options.kube_controller_manager_args);
        Daemon::start(self.run, &self.log_name("kube-controller-manager"), manager)
    }

    pub(super) fn scheduler(&self, server: &str) -> Result<Daemon> {
        let config = self.dir.join("kube-scheduler.kubeconfig");
        kubeconfig::write(&config, server, &self.ca, &self.ids.scheduler)?;
        let mut scheduler = Command::new(&self.assets.kube_scheduler);
        scheduler
            .arg(format!("--kubeconfig={}", config.display()))
            .arg("--leader-elect=false")
            .arg("--secure-port=0")
            .arg("--profiling=false")
            .args(&self.options.kube_scheduler_args);
        Daemon::start(self.run, &self.log_name("kube-scheduler"), scheduler)
    }

    fn log_name(&self, program: &str) -> String {
        format!("{}-{program}", self.name)
    }

    /// Starts a program on ports chosen now, again with others if one was taken meanwhile, until the port that
    /// `command` returns answers.
    async fn with_ports<const N: usize>(
        &self,
        program: &str,
        command: impl Fn([u16; N]) -> (Command, u16),
    ) -> Result<(Daemon, u16, Restart)> {
        for attempt in 1..=PORT_TRIES {
            let (command, port) = command(free_ports()?);
            let start = Restart {
                run: Arc::clone(self.run),
                name: self.log_name(program),
                program: command.get_program().into(),
                args: command.get_args().map(OsStr::to_owned).collect(),
            };
            let mut daemon = start.daemon()?;
            let listening =
                wait::until(&format!("{program} listening on {port}"), START_DEADLINE, async || {
                    if daemon.exited()?.is_some() {
                        return Ok(false);
                    }
                    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                    anyhow::Ok(true)
                })
                .await
                .with_context(|| format!("the end of its log:\n{}", tail(daemon.log())))?;
            // A process that lost the race for its port ends; then it was the winner who answered.
            if listening && daemon.exited()?.is_none() {
                return Ok((daemon, port, start));
            }
            let log = tail(daemon.log());
            if !log.contains("address already in use") || attempt == PORT_TRIES {
                bail!("{program} ended at once:\n{log}");
            }
        }
        bail!("{program} found no free port in {PORT_TRIES} tries")
    }
}

fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
