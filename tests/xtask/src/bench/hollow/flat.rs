//! Each thread competes for the cores by itself, and not for a share of its session's (autogroups, sched(7)): what that does to the times
//! is the kernel's, and not what is measured.

use std::{fs, io};

use anyhow::{Context, Result};

use crate::bench::tell;

const AUTOGROUPS: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// Of what is started from now on, until it is dropped.
pub(super) struct Flat {
    was: Option<String>,
}

impl Flat {
    pub(super) fn set() -> Result<Self> {
        match fs::read_to_string(AUTOGROUPS) {
            Ok(was) => {
                fs::write(AUTOGROUPS, "0").with_context(|| format!("failed to write {AUTOGROUPS}"))?;
                Ok(Self { was: Some(was) })
            }
            // A kernel without them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { was: None }),
            Err(error) => Err(error).with_context(|| format!("failed to read {AUTOGROUPS}")),
        }
    }
}

impl Drop for Flat {
    fn drop(&mut self) {
        if let Some(was) = &self.was
            && let Err(error) = fs::write(AUTOGROUPS, was)
        {
            tell(&format!("{AUTOGROUPS} stays 0: {error}"));
        }
    }
}
