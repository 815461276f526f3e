//! Keeps a daemon running: a systemd unit where there is systemd, `keadm supervise` elsewhere.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{
    output,
    process::{self, RunFiles},
};

const UNITS: &str = "/etc/systemd/system";

/// A daemon that keadm installs.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    /// The unit's name without `.service`.
    pub(crate) unit: String,
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    /// Where its process id is, without systemd.
    pub(crate) run_dir: PathBuf,
    /// Its log, without systemd.
    pub(crate) log_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Started,
    /// Its program or configuration had changed.
    Restarted,
    /// It was running, from the same program and configuration.
    Unchanged,
}

pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

impl Daemon {
    /// The unit's name: the daemon's own for the usual places, with the directory in it for others.
    pub(crate) fn unit_name(name: &str, root: &Path, usual: &Path) -> String {
        if root == usual {
            return name.to_owned();
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
        let text = root.to_string_lossy();
        let dir: String = text.trim_matches('/').chars().map(|c| if allowed(c) { c } else { '-' }).collect();
        format!("{name}-{dir}")
    }

    pub(crate) fn describe(&self) -> String {
        if has_systemd() {
            format!("{} as {}.service", self.name, self.unit)
        } else {
            format!("{} under keadm supervise, log {}", self.name, self.log_file.display())
        }
    }

    /// Makes it run from the program and configuration that are there now.
    pub(crate) async fn ensure_running(&self) -> Result<Outcome> {
        let fingerprint = self.fingerprint()?;
        if has_systemd() {
            return self.ensure_unit(&fingerprint);
        }
        let files = self.files();
        let running = files.state()?;
        if running.as_ref().is_some_and(|state| state.fingerprint == fingerprint) {
            return Ok(Outcome::Unchanged);
        }
        files.stop(&self.argument()).await?;
        process::start(&files, &self.log_file, &fingerprint, &self.command()).await?;
        Ok(if running.is_some() { Outcome::Restarted } else { Outcome::Started })
    }

    /// Stops and starts it, though nothing changed.
    pub(crate) async fn restart(&self) -> Result<Outcome> {
        if has_systemd() {
            systemctl(&["restart", &self.unit_name_full()])?;
        } else {
            self.files().stop(&self.argument()).await?;
            self.ensure_running().await?;
        }
        Ok(Outcome::Restarted)
    }

    pub(crate) fn is_running(&self) -> Result<bool> {
        if has_systemd() {
            return Ok(systemctl(&["is-active", "--quiet", &self.unit_name_full()]).is_ok());
        }
        let files = self.files();
        Ok(files.state()?.is_some() || files.orphan(&self.argument()).is_some())
    }

    /// Stops it for good; whether there was anything to stop.
    pub(crate) async fn remove(&self) -> Result<bool> {
        let mut found = false;
        let unit = self.unit_file();
        if has_systemd() && unit.exists() {
            systemctl(&["disable", "--now", &self.unit_name_full()])?;
            fs::remove_file(&unit).with_context(|| format!("failed to remove {}", unit.display()))?;
            systemctl(&["daemon-reload"])?;
            found = true;
        }
        let files = self.files();
        found |= files.stop(&self.argument()).await?;
        for file in files.all() {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("failed to remove {}", file.display()));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// How often it ended by itself since it was started.
    pub(crate) fn restarts(&self) -> Result<u32> {
        if has_systemd() {
            let count = systemctl(&["show", "--property=NRestarts", "--value", &self.unit_name_full()])?;
            return count.trim().parse().with_context(|| format!("systemd counts {count:?} restarts"));
        }
        Ok(self.files().state()?.map_or(0, |state| state.restarts))
    }

    /// Shows the end of its log. One that cannot be read must not hide why it is looked at.
    pub(crate) fn show_log(&self) {
        let tail = self.log_tail().unwrap_or_else(|error| format!("({})", runtime::chain(error.as_ref())));
        output::note(format_args!("the end of {}'s log:\n{tail}", self.name));
    }

    fn log_tail(&self) -> Result<String> {
        if !has_systemd() {
            return process::tail(&self.log_file, 15);
        }
        let journal = Command::new("journalctl")
            .args(["--no-pager", "--lines=15", "--unit", &self.unit_name_full()])
            .output()
            .context("failed to run journalctl")?;
        Ok(String::from_utf8_lossy(&journal.stdout).into_owned())
    }

    fn files(&self) -> RunFiles {
        RunFiles::new(self.name, &self.run_dir)
    }

    fn command(&self) -> [PathBuf; 3] {
        [self.program.clone(), "--config".into(), self.config.clone()]
    }

    /// What tells this daemon's process from others of the same program.
    fn argument(&self) -> String {
        self.config.to_string_lossy().into_owned()
    }

    /// Changes with the program and with the configuration.
    fn fingerprint(&self) -> Result<String> {
        let config =
            fs::read(&self.config).with_context(|| format!("failed to read {}", self.config.display()))?;
        let program = File::open(&self.program)
            .and_then(|file| file.metadata())
            .with_context(|| format!("failed to read {}", self.program.display()))?;
        let mut hash = Sha256::new();
        hash.update(&config);
        hash.update(format!(
            "\0{}\0{}\0{}\0{}.{}",
            self.program.display(),
            program.ino(),
            program.len(),
            program.mtime(),
            program.mtime_nsec()
        ));
        Ok(runtime::token::hex(&hash.finalize()[..16]))
    }

    fn unit_name_full(&self) -> String {
        format!("{}.service", self.unit)
    }

    fn unit_file(&self) -> PathBuf {
        Path::new(UNITS).join(self.unit_name_full())
    }

    fn unit_text(&self, fingerprint: &str) -> String {
        let name = self.name;
        let environment = process::ENVIRONMENT.map(|(name, value)| format!("{name}={value}")).join(" ");
        // It is to come up whatever happens: without a network, which the pods of a site that is cut off do not need, and
        // however often it has ended, which without the limit of 0 would be for good after five quick times.
        // KillMode=process: pods' own processes are none of the unit's business. Delegate: they may be below its cgroup.
        format!(
            "# Written by keadm; started from {fingerprint}\n\
             [Unit]\n\
             Description={name}\n\
             After=containerd.service crio.service\n\
             StartLimitIntervalSec=0\n\
             \n\
             [Service]\n\
             ExecStart={} --config {}\n\
             Environment={environment}\n\
             Restart=always\n\
             RestartSec=5\n\
             KillMode=process\n\
             Delegate=yes\n\
             TimeoutStopSec={}\n\
             LimitNOFILE=1048576\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            quote(&self.program),
            quote(&self.config),
            process::STOP_GRACE.as_secs(),
        )
    }

    fn ensure_unit(&self, fingerprint: &str) -> Result<Outcome> {
        let (path, text) = (self.unit_file(), self.unit_text(fingerprint));
        let unit = self.unit_name_full();
        let is_active = systemctl(&["is-active", "--quiet", &unit]).is_ok();
        let is_same = fs::read_to_string(&path).is_ok_and(|old| old == text);
        if is_active && is_same {
            return Ok(Outcome::Unchanged);
        }
        if !is_same {
            fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
            systemctl(&["daemon-reload"])?;
        }
        systemctl(&["enable", "--quiet", &unit])?;
        systemctl(&["restart", &unit])?;
        Ok(if is_active { Outcome::Restarted } else { Outcome::Started })
    }
}

/// systemd keeps a slice for as long as nobody stops it, and what edgecore told it of one for longer.
pub(crate) fn stop_slice(slice: &str) {
    if !has_systemd() {
        return;
    }
    if let Err(error) = systemctl(&["stop", slice]) {
        output::note(runtime::chain(error.as_ref()));
    }
    let told = Path::new("/run/systemd/system.control").join(format!("{slice}.d"));
    match fs::remove_dir_all(&told) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            output::note(format_args!("{} is left: {error}", told.display()));
        }
        _ => {}
    }
}

/// A path as systemd reads it: quoted, and with its specifiers' sign doubled.
fn quote(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("\"{text}\"")
}

/// What it printed.
fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("failed to run systemctl")?;
    ensure!(
        output.status.success(),
        "systemctl {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_several_roots_differ() {
        let usual = Path::new("/");
        assert_eq!(Daemon::unit_name("edgecore", usual, usual), "edgecore");
        assert_eq!(Daemon::unit_name("edgecore", Path::new("/srv/edge 1"), usual), "edgecore-srv-edge-1");
    }

    fn unit_text() -> String {
        let daemon = Daemon {
            name: "edgecore",
            unit: "edgecore".to_owned(),
            program: "/opt/my programs/edgecore".into(),
            config: "/srv/100%/edgecore.yaml".into(),
            run_dir: "/run/kubeedge".into(),
            log_file: "/var/log/kubeedge/edgecore.log".into(),
        };
        daemon.unit_text("abc")
    }

    #[test]
    fn the_unit_starts_without_a_network_and_again_however_often_it_ended() {
        let text = unit_text();
        let (unit, service) = text.split_once("\n[Service]\n").unwrap();
        assert!(unit.contains("\nStartLimitIntervalSec=0\n"), "{text}");
        assert!(unit.contains("\nAfter=containerd.service crio.service\n"), "{text}");
        assert!(service.contains("\nRestart=always\nRestartSec=5\n"), "{text}");
        assert!(!text.contains("network"), "{text}");
    }

    #[test]
    fn the_unit_quotes_its_paths() {
        let text = unit_text();
        assert!(
            text.contains("ExecStart=\"/opt/my programs/edgecore\" --config \"/srv/100%%/edgecore.yaml\"\n")
        );
    }
}
