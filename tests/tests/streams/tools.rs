//! Each of kubectl's commands that takes a stream.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    Bench, Site, http,
    process::{Daemon, output_async},
    product::{Edge, Scene, pod},
    setup::{AGNHOST, BUSYBOX},
    wait,
};
use kube::api::PostParams;
use serde_json::json;

use crate::SPACE;

const SOON: Duration = Duration::from_mins(1);
/// More than any window, and no round number.
const LARGE: usize = 3_000_001;
/// Counts up, several times a second.
const TALKER: &str = "i=0; while true; do echo line $i; echo oops $i >&2; i=$((i+1)); sleep 0.2; done";

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site, transport: &str) -> Result<Edge> {
    let node = format!("edge-{transport}");
    let quic = format!("modules.edgeHub.quic.enable={}", transport == "quic");
    let settings = ["modules.edgeHub.heartbeat=2", &quic];
    let edge = Edge::join(&bench.assets, &scene.cloud, site, &node, &settings).await?;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "main", "image": AGNHOST, "imagePullPolicy": "IfNotPresent",
                "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
            },
            {
                "name": "talker", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "stdin": true,
                "command": ["sh", "-c", TALKER],
            },
        ],
    });
    let ended = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "echo it went wrong; exit 3"],
        }],
    });
    let name = format!("on-{transport}");
    let ended_name = format!("ends-{transport}");
    let made = scene.pods(SPACE);
    made.create(&PostParams::default(), &pod(&ended_name, &node, &ended)).await?;
    scene.run(SPACE, &pod(&name, &node, &spec)).await?;
    let state: serde_json::Value = serde_json::from_str(&edge.admin("/nodez").await?.body)?;
    ensure!(state["transport"] == transport, "{state}");

    let kubectl = Kubectl { bench, scene, name: &name };
    kubectl.logs().await.context("logs")?;
    kubectl.previous(&ended_name).await.context("logs --previous")?;
    kubectl.exec().await.context("exec")?;
    kubectl.copy().await.context("cp")?;
    kubectl.forward().await.context("port-forward")?;
    kubectl.attach().await.context("attach")?;
    Ok(edge)
}

/// On one pod.
pub(crate) struct Kubectl<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) scene: &'a Scene,
    pub(crate) name: &'a str,
}

impl Kubectl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        self.scene.cluster.kubectl_command(&[&["-n", SPACE], args].concat())
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Result<String> {
        output_async(self.command(args)).await
    }

    pub(crate) fn start(&self, what: &str, args: &[&str]) -> Result<Daemon> {
        Daemon::start(&self.bench.run, &format!("kubectl-{what}-{}", self.name), self.command(args))
    }

    /// Its output goes into a pipe that nobody reads; it is killed when this is dropped.
    pub(crate) fn start_unread(&self, args: &[&str]) -> Result<tokio::process::Child> {
        let mut command = tokio::process::Command::from(self.command(args));
        Ok(command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }

    /// How many bytes it prints.
    pub(crate) async fn count(&self, args: &[&str]) -> Result<u64> {
        let mut child = self.start_unread(args)?;
        let mut out = child.stdout.take().context("it has an output")?;
        let count = tokio::io::copy(&mut out, &mut tokio::io::sink()).await?;
        ensure!(child.wait().await?.success(), "kubectl failed after {count} bytes");
        Ok(count)
    }

    /// Fails, and says this.
    pub(crate) async fn fails(&self, args: &[&str], words: &str) -> Result<()> {
        match self.run(args).await {
            Ok(out) => bail!("{args:?} did not fail: {out}"),
            Err(error) => {
                ensure!(format!("{error:#}").contains(words), "{args:?} fails without {words:?}: {error:#}");
            }
        }
        Ok(())
    }

    async fn logs(&self) -> Result<()> {
        wait::until("ten lines", SOON, async || {
            let log = self.run(&["logs", self.name, "-c", "talker"]).await?;
            ensure!(log.contains("line 0\n") && log.contains("oops 0\n"), "{log}");
            ensure!(log.lines().count() > 10, "{log}");
            Ok(())
        })
        .await?;
        let tail = self.run(&["logs", self.name, "-c", "talker", "--tail=3"]).await?;
        ensure!(tail.lines().count() == 3, "{tail}");
        let cut = self.run(&["logs", self.name, "-c", "talker", "--limit-bytes=5"]).await?;
        ensure!(cut.len() == 5, "{cut:?}");
        let timed = self.run(&["logs", self.name, "-c", "talker", "--timestamps", "--since=1s"]).await?;
        ensure!((1..=20).contains(&timed.lines().count()), "of one second: {timed}");
        ensure!(timed.lines().all(|line| line.starts_with("20") && line.contains("Z ")), "{timed}");
        let all = self.run(&["logs", self.name, "--all-containers", "--tail=2", "--prefix"]).await?;
        ensure!(all.contains("talker]"), "{all}");
        self.fails(&["logs", self.name, "-c", "nobody"], "nobody").await?;
        self.fails(&["logs", self.name, "-c", "main", "--previous"], "previous terminated container").await
    }

    async fn previous(&self, ended: &str) -> Result<()> {
        wait::until("the log of a container that ended", SOON, async || {
            let log = self.run(&["logs", ended, "--previous"]).await?;
            ensure!(log == "it went wrong\n", "{log:?}");
            Ok(())
        })
        .await
    }

    async fn exec(&self) -> Result<()> {
        let out = self.run(&["exec", self.name, "-c", "talker", "--", "echo", "a b", "c&d"]).await?;
        ensure!(out == "a b c&d\n", "{out:?}");
        let script = "echo out; echo wrong >&2; exit 7";
        let exec = ["exec", self.name, "-c", "talker", "--", "sh", "-c", script];
        let ended = tokio::process::Command::from(self.command(&exec)).kill_on_drop(true).output().await?;
        let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        ensure!(ended.status.code() == Some(7), "{}: {out} {err}", ended.status);
        ensure!(out == "out\n" && err.contains("wrong"), "{out:?} {err:?}");
        // What goes in comes out.
        let input = self.bench.run.dir().join(format!("{}.in", self.name));
        fs::write(&input, bytes())?;
        let mut cat = self.command(&["exec", "-i", self.name, "-c", "talker", "--", "cat"]);
        let piped = tokio::process::Command::from({
            cat.stdin(File::open(&input)?);
            cat
        })
        .kill_on_drop(true)
        .output()
        .await?;
        ensure!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
        ensure!(piped.stdout == bytes(), "{} bytes came back, or others", piped.stdout.len());
        self.fails(&["exec", self.name, "-c", "nobody", "--", "true"], "nobody").await
    }

    async fn copy(&self) -> Result<()> {
        let dir = self.bench.run.dir();
        let (here, back) = (dir.join(format!("{}.file", self.name)), dir.join(format!("{}.back", self.name)));
        fs::write(&here, bytes())?;
        let there = format!("{}:/tmp/file", self.name);
        self.run(&["cp", text(&here)?, &there, "-c", "talker"]).await?;
        self.run(&["cp", &there, text(&back)?, "-c", "talker"]).await?;
        ensure!(fs::read(&back)? == bytes(), "another file came back");
        Ok(())
    }

    async fn forward(&self) -> Result<()> {
        let forward = self.start("port-forward", &["port-forward", self.name, ":8080"])?;
        let address = wait::until("kubectl listening", SOON, async || {
            let said = fs::read_to_string(forward.log())?;
            let address =
                said.lines().find_map(|line| line.strip_prefix("Forwarding from ")?.split(' ').next());
            address.context("nothing said")?.parse::<SocketAddr>().map_err(anyhow::Error::from)
        })
        .await?;
        // One connection after the other, over one forwarding.
        for _ in 0..3 {
            let answer = http::get_tcp(address, "/hostname").await?;
            ensure!(answer.status == 200 && answer.body == self.name, "{}: {}", answer.status, answer.body);
        }
        Ok(())
    }

    async fn attach(&self) -> Result<()> {
        let attached = self.start("attach", &["attach", self.name, "-c", "talker"])?;
        wait::until("lines of the process", SOON, async || {
            let said = fs::read_to_string(attached.log())?;
            ensure!(said.contains("line ") && said.contains("oops "), "{said}");
            Ok(())
        })
        .await
    }
}

fn bytes() -> Vec<u8> {
    (0..LARGE).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap_or_default()).collect()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a run's directory has a plain name")
}
