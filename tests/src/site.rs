//! A site: a machine at the far end of a line, as a network namespace and a mount namespace with its own containerd.
//!
//! What a site shares with the host is the kernel, the programs in `/usr`, the cgroup hierarchies and the process
//! table. Its own are its interfaces, routes and rules; `/run` (a fresh tmpfs: containerd's state, the pods' network
//! namespaces); `/var/log` and `/var/lib/cni` (bound to its directory). So several edgecores on one machine do
//! not meet in `/var/log/pods`, and a [`Site::power_off`] loses what a power cut loses, and no more.
//!
//! ```text
//! <run>/s0/
//!   containerd.sock   containerd.toml   containerd/   (its root: images, snapshots, metadata; survives a power cut)
//!   cni/              the network configuration      cni-state/ -> /var/lib/cni      log/ -> /var/log
//! ```
//!
//! Things of the kernel that shaped this. `ip netns exec` mounts a new /sys, so the cgroup mounts are gone for what it
//! starts: programs enter with `nsenter`. Without CAP_SYS_RESOURCE runc may not lower an oom_score_adj:
//! `restrict_oom_score_adj`. overlayfs works on ext4 here and is used; cgroup v1 works with the cgroupfs driver.

mod address;
mod containerd;
mod cri;
mod line;
mod namespaces;
mod wire;

use std::{
    ffi::{OsStr, OsString},
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub use cri::{Asking, BarePod, Container};
pub use line::{Impairment, LineCut};
pub use namespaces::Namespaces;
pub use wire::{Counts, Flap, Silent, Terms, Wire};

use crate::{
    process::{Daemon, command, output, output_async},
    run::{Resource, Run, kill_all, remove_network},
    setup::Assets,
    wait,
};
use address::Address;

const BOOT_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// Import the test images into containerd.
    pub images: bool,
    pub containerd: Containerd,
}

/// Which container runtime a site has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Containerd {
    /// Debian's, 1.6: CRI v1 without container events.
    #[default]
    Debian,
    /// Upstream's current one.
    Current,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self { images: true, containerd: Containerd::default() }
    }
}

/// A running site. Taken down with everything in it when dropped, unless its run is kept.
pub struct Site {
    name: String,
    dir: PathBuf,
    address: Address,
    run: Arc<Run>,
    line: Option<LineCut>,
    containerd: Option<Daemon>,
    /// Where containerd's programs are; `None` for those on PATH.
    programs: Option<PathBuf>,
    /// Holds the mount namespace open; `None` while the power is off.
    holder: Option<Daemon>,
}

impl Site {
    /// Lays the line, boots, starts containerd, imports the images.
    pub async fn start(run: &Arc<Run>, assets: &Assets, options: &SiteOptions) -> Result<Self> {
        let name = run.unique_name("s");
        let dir = run.dir().join(&name);
        for sub in ["containerd", "cni", "cni-state", "log"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let address = Address::claim()?;
        run.record(&Resource::Site {
            netns: address.netns.clone(),
            host_interface: address.host_interface.clone(),
        })?;
        containerd::write_config(&dir, &address)?;
        let programs = match options.containerd {
            Containerd::Debian => None,
            Containerd::Current => Some(assets.containerd.clone()),
        };
        let mut site = Self {
            name,
            dir,
            address,
            run: Arc::clone(run),
            line: None,
            containerd: None,
            programs,
            holder: None,
        };
        site.power_on().await?;
        if options.images {
            for archive in &assets.images {
                site.import(archive).await?;
            }
        }
        Ok(site)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The site's own address on the line.
    pub fn address(&self) -> Ipv4Addr {
        self.address.site_ip
    }

    /// The host's end of the line: where the site finds cloudcore.
    pub fn host_address(&self) -> Ipv4Addr {
        self.address.host_ip
    }

    /// The network from which containerd gives pods their addresses.
    pub fn pod_cidr(&self) -> &str {
        &self.address.pod_cidr
    }

    /// For edgecore: `unix:///…`.
    pub fn runtime_endpoint(&self) -> String {
        format!("unix://{}", self.dir.join("containerd.sock").display())
    }

    /// The runtime's own process; its shims and what they run are others.
    pub fn runtime_pid(&self) -> Result<u32> {
        let containerd =
            self.containerd.as_ref().with_context(|| format!("site {} has no power", self.name))?;
        Ok(containerd.pid())
    }

    /// A host path as the site's own mounts have it: a tmpfs that edgecore mounts is seen nowhere else.
    ///
    /// # Errors
    /// While the power is off; `path` is relative.
    pub fn path(&self, path: &Path) -> Result<PathBuf> {
        let Some(holder) = &self.holder else { bail!("site {} has no power", self.name) };
        let below = path.strip_prefix("/").context("a path at the site is absolute")?;
        Ok(PathBuf::from(format!("/proc/{}/root", holder.pid())).join(below))
    }

    /// A command that will run inside the site.
    ///
    /// # Errors
    /// While the power is off.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let Some(holder) = &self.holder else { bail!("site {} has no power", self.name) };
        let mut inside = command("nsenter", [self.netns_option()]);
        inside.arg(format!("--mount=/proc/{}/ns/mnt", holder.pid())).arg("--").arg(program).args(args);
        self.run.mark(&mut inside);
        Ok(inside)
    }

    /// Starts a daemon inside the site. It keeps the pid of what was started: nsenter replaces itself by `program`.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
        log: &str,
    ) -> Result<Daemon> {
        let name = format!("{}-{log}", self.name);
        Daemon::start(&self.run, &name, self.command(program, args)?)
    }

    /// Runs a command inside the site to its end and returns what it printed.
    pub async fn output<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        output_async(self.command(program, args)?).await
    }

    /// Everything that runs at the site ends at once: edgecore and whatever supervises it, containerd, its shims, every
    /// container. What was in memory is gone: `/run`, tmpfs volumes, mounts, interfaces. The disk stays as it was.
    pub fn power_off(&mut self) -> Result<()> {
        kill_all(&self.dir)?;
        // Reaped by their drop; what a daemon of the caller's was is dead too, and is reaped by its owner.
        self.containerd = None;
        self.holder = None;
        remove_network(&self.address.netns, &self.address.host_interface)
    }

    /// Boots: the line (as cut as it was before), a fresh `/run`, containerd.
    pub async fn power_on(&mut self) -> Result<()> {
        self.address.lay(self.line)?;
        self.boot().await?;
        self.start_containerd().await
    }

    async fn boot(&mut self) -> Result<()> {
        let mut hold = command("nsenter", [self.netns_option()]);
        hold.args(["--", "unshare", "--mount", "--propagation", "private", "--", "sleep", "infinity"]);
        let mut holder = Daemon::start(&self.run, &format!("{}-boot", self.name), hold)?;
        let pid = holder.pid();
        wait::until("the site's mount namespace", BOOT_DEADLINE, async || {
            holder.check_alive()?;
            // Past both execs: what is there then is in its namespaces.
            match fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() {
                "sleep" => Ok(()),
                other => bail!("still {other}"),
            }
        })
        .await?;
        self.holder = Some(holder);
        // Containers get mounts that propagate into them from here, never from or to the host.
        self.mount(&["--make-rshared", "/"])?;
        self.mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
        fs::create_dir_all("/var/lib/cni").context("failed to make /var/lib/cni to mount on")?;
        self.bind("cni-state", "/var/lib/cni")?;
        self.bind("log", "/var/log")?;
        output(self.command("mkdir", ["-p", "/run/netns", "/run/lock"])?)?;
        Ok(())
    }

    fn mount(&self, args: &[&str]) -> Result<()> {
        output(self.command("mount", args)?).map(drop)
    }

    fn bind(&self, from: &str, to: &str) -> Result<()> {
        let from = self.dir.join(from);
        output(self.command("mount", [OsStr::new("--bind"), from.as_os_str(), OsStr::new(to)])?).map(drop)
    }

    pub(crate) fn netns_file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.address.netns)
    }

    fn netns_option(&self) -> OsString {
        format!("--net=/run/netns/{}", self.address.netns).into()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.run.is_kept() {
            return;
        }
        if let Err(error) = self.power_off() {
            eprintln!("harness: failed to take down site {}: {error:#}", self.name);
        }
    }
}
