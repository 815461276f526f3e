//! A site's container runtime: its configuration and its life.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use proto::cri::v1::VersionRequest;
use serde_json::json;

use super::{Site, address::Address};
use crate::{
    process::{Daemon, tail},
    progress::during,
    setup::PAUSE,
    wait,
};

const START_DEADLINE: Duration = Duration::from_mins(1);
const STOP_GRACE: Duration = Duration::from_secs(20);

impl Site {
    /// Starts containerd and waits until it answers.
    pub async fn start_containerd(&mut self) -> Result<()> {
        let config = self.dir.join("containerd.toml");
        let config = config.to_str().context("a run's directory has a plain name")?;
        let mut command = self.command(self.program("containerd"), ["--config", config])?;
        if let Some(programs) = &self.programs {
            // It looks for its shim on PATH first.
            let path = env::var_os("PATH").unwrap_or_default();
            let path = [programs.clone()].into_iter().chain(env::split_paths(&path));
            command.env("PATH", env::join_paths(path)?);
        }
        let mut daemon = Daemon::start(&self.run, &format!("{}-containerd", self.name), command)?;
        wait::until("containerd answering", START_DEADLINE, async || {
            daemon.check_alive()?;
            // It answers its own client before it does CRI's.
            self.runtime().await?.version(VersionRequest::default()).await?;
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("the end of its log:\n{}", tail(daemon.log())))?;
        self.containerd = Some(daemon);
        Ok(())
    }

    /// Stops containerd as an upgrade does; containers go on.
    pub fn stop_containerd(&mut self) -> Result<()> {
        match self.containerd.take() {
            Some(mut daemon) => daemon.terminate(STOP_GRACE).map(drop),
            None => Ok(()),
        }
    }

    /// Kills containerd; containers go on.
    pub fn kill9_containerd(&mut self) -> Result<()> {
        match self.containerd.take() {
            Some(mut daemon) => daemon.kill9(),
            None => Ok(()),
        }
    }

    /// Runs containerd's own client inside the site, in the namespace that CRI uses.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.dir.join("containerd.sock");
        let socket = socket.to_str().context("a run's directory has a plain name")?;
        let common = ["--address", socket, "--namespace", "k8s.io"];
        self.output(self.program("ctr"), common.iter().chain(args)).await
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.as_ref().map_or_else(|| PathBuf::from(name), |dir| dir.join(name))
    }

    /// Imports all images of an OCI archive.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("the cache has a plain path")?;
        during("importing the test images", self.ctr(&["images", "import", archive])).await?;
        Ok(())
    }
}

/// containerd's and CNI's configuration.
pub(super) fn write_config(dir: &Path, address: &Address) -> Result<()> {
    let root = dir.display();
    // The state is on the site's own /run, as everywhere: a power cut takes it.
    let config = format!(
        r#"version = 2
root = "{root}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{root}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{root}/cni"
max_conf_num = 1
"#
    );
    fs::write(dir.join("containerd.toml"), config)?;
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "site",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": address.pod_cidr }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs::write(dir.join("cni/10-site.conflist"), serde_json::to_vec_pretty(&network)?)?;
    Ok(())
}
