//! Entering a site from a thread of the test itself.

use std::fs::File;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

use super::Site;

/// A site's namespaces, opened: they are entered later, from threads that know nothing of the site.
pub struct Namespaces {
    network: File,
    mount: File,
}

impl Site {
    /// # Errors
    /// While the power is off.
    pub fn namespaces(&self) -> Result<Namespaces> {
        let Some(holder) = &self.holder else { bail!("site {} has no power", self.name) };
        Ok(Namespaces {
            network: File::open(self.netns_file())?,
            mount: File::open(format!("/proc/{}/ns/mnt", holder.pid()))?,
        })
    }
}

impl Namespaces {
    /// From now on the calling thread is at the site, for good.
    pub fn enter(&self) -> Result<()> {
        // A thread that shares its root directory with others may not change its mounts.
        unshare(CloneFlags::CLONE_FS).context("failed to leave the other threads' root directory")?;
        setns(&self.network, CloneFlags::CLONE_NEWNET).context("failed to enter the site's network")?;
        setns(&self.mount, CloneFlags::CLONE_NEWNS).context("failed to enter the site's mounts")
    }
}
