//! A machine with systemd: Debian with containerd, which a test sets up through a shell as an operator would.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{plain, qemu};
use crate::{process::Daemon, run::Run, setup::DebianAssets, wait};

/// Where the system has its shell, and its second disk.
pub(crate) const SHELL_PORT: u16 = 7000;
pub(crate) const DISK: &str = "/srv/bench";

/// A machine in software emulation takes its time, more so on a busy host.
const BOOT: Duration = Duration::from_mins(4);
const SCRIPT: Duration = Duration::from_mins(4);
const MEMORY_MIB: u32 = 768;

/// How a machine is made.
#[derive(Clone, Debug)]
pub struct DebianOptions {
    /// Its host name.
    pub name: String,
    /// Beside those that every machine has.
    pub kernel_arguments: String,
    /// An image ([`super::data_image`]) that it finds, read-only, below [`Debian::DISK`].
    pub disk: PathBuf,
}

/// A machine that runs. What it writes is gone with it.
pub struct Debian {
    qemu: Daemon,
    shell: SocketAddr,
}

impl Debian {
    pub const DISK: &str = DISK;

    /// Boots it; answers when systemd says that all is up.
    pub async fn boot(run: &Arc<Run>, assets: &DebianAssets, options: &DebianOptions) -> Result<Self> {
        let drives = [
            format!("file={},format=raw,if=virtio,snapshot=on", plain(&assets.image)?),
            format!("file={},format=raw,if=virtio,readonly=on", plain(&options.disk)?),
        ];
        let arguments = format!("systemd.hostname={} {}", options.name, options.kernel_arguments);
        let (mut qemu, shell) = qemu(&assets.vm, &arguments, MEMORY_MIB, &drives, SHELL_PORT)?;
        // There it keeps what the machine writes.
        qemu.env("TMPDIR", run.dir());
        let mut machine = Self { qemu: Daemon::start(run, &options.name, qemu)?, shell };
        machine.up().await?;
        Ok(machine)
    }

    async fn up(&mut self) -> Result<()> {
        wait::until("systemd running", BOOT, async || {
            self.qemu.check_alive()?;
            self.sh("systemctl is-system-running --wait").await
        })
        .await
        .map(drop)
    }

    /// Runs a script of bash as root, until a command of it fails; what it printed on both outputs.
    ///
    /// # Errors
    /// When one failed: all that was printed. When the machine does not answer.
    pub async fn sh(&self, script: &str) -> Result<String> {
        // What the script runs must not read on from the shell's own input.
        let input = format!(
            "bash -eu /dev/fd/3 3<<'THE-SCRIPT-ENDS-HERE' </dev/null 2>&1\n{script}\nTHE-SCRIPT-ENDS-HERE\n\
             echo \"exit status: $?\"; exit\n"
        );
        let work = async {
            let mut stream = TcpStream::connect(self.shell).await?;
            stream.write_all(input.as_bytes()).await?;
            let mut output = Vec::new();
            stream.read_to_end(&mut output).await?;
            anyhow::Ok(String::from_utf8_lossy(&output).into_owned())
        };
        let output = timeout(SCRIPT, work).await.context("the machine's shell does not come to an end")??;
        let (output, status) = output
            .rsplit_once("exit status: ")
            .with_context(|| format!("the machine's shell has ended early: {output}"))?;
        ensure!(status.trim() == "0", "exit status {}: {output}", status.trim());
        Ok(output.to_owned())
    }

    /// An orderly reboot.
    pub async fn reboot(&mut self) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.sh(BOOT_ID).await?;
        // The answer may be lost on the way down.
        drop(self.sh("systemctl reboot").await);
        wait::until("the machine booted anew", BOOT, async || {
            self.qemu.check_alive()?;
            if self.sh(BOOT_ID).await? == before {
                bail!("it is still up");
            }
            Ok(())
        })
        .await?;
        self.up().await
    }
}
