//! `keadm join`: this machine becomes an edge node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use crds::componentconfig::{
    document,
    edgecore::{EdgeCoreConfig, EdgePaths},
};
use runtime::tls::write_durably;
use serde::Deserialize;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    cli::Join,
    commands::init::say_outcome,
    fetch,
    init_system::{Daemon, Outcome},
    output, preflight,
    preflight::{Check, Preflight, Problem},
};

mod checks;
pub(crate) mod cri;
mod neighbours;
mod settings;

/// A daemon that ends so often while it is waited for will not come up.
const HOPELESS: u32 = 4;

pub(crate) async fn run(args: Join) -> Result<()> {
    let Found { config, is_written, is_enrolled, program, token } = check(&args).await?;
    let paths = config.paths();
    let daemon = daemon(&args.root_dir, &paths, program);
    let text = document::minimal(&config)?;
    if args.dry_run {
        output::planned(format_args!("write {}", paths.config_file.display()));
        if !is_enrolled {
            output::planned(format_args!("write the token to {}", paths.bootstrap_token_file.display()));
        }
        output::planned(format_args!("start {}, and wait until the node is Ready", daemon.describe()));
        return output::data(&text);
    }
    if !is_written {
        crate::settings::write(&paths.config_file, &text)?;
        output::done(format_args!("wrote {}", paths.config_file.display()));
    }
    if let (false, Some(token)) = (is_enrolled, &token) {
        write_durably(&paths.bootstrap_token_file, 0o600, token.as_bytes())?;
    }
    let mut outcome = daemon.ensure_running().await?;
    if !is_enrolled && outcome == Outcome::Unchanged {
        // It may be waiting for long after a token that was refused.
        outcome = daemon.restart().await?;
    }
    say_outcome(&daemon, outcome);
    let name = &config.modules.edged.hostname_override;
    let waited = output::step(&format!("node {name} is Ready"), ready(&args, &paths, &daemon)).await;
    if waited.is_err() {
        daemon.show_log();
    }
    waited
}

pub(crate) fn daemon(root: &Path, paths: &EdgePaths, program: PathBuf) -> Daemon {
    Daemon {
        name: "edgecore",
        unit: Daemon::unit_name("edgecore", root, Path::new("/")),
        program,
        config: paths.config_file.clone(),
        run_dir: paths.pid_file.parent().map_or_else(|| root.to_owned(), Path::to_owned),
        log_file: paths.log_file.clone(),
    }
}

struct Found {
    config: EdgeCoreConfig,
    /// It is on disk already, just so.
    is_written: bool,
    /// Nothing is left for a token to do.
    is_enrolled: bool,
    program: PathBuf,
    /// As it was given.
    token: Option<String>,
}

async fn check(args: &Join) -> Result<Found> {
    let mut preflight = Preflight::default();
    preflight.take(preflight::root());
    let program = preflight.say(preflight::program("edgecore", args.bin_dir.as_deref()), |program| {
        format!("edgecore is {}", program.display())
    });
    let old = preflight.take(existing(&args.root_dir));
    let name = preflight.take(settings::node_name(args, old.as_ref().and_then(Option::as_ref)));
    let runtime = checks::runtime(args.remote_runtime_endpoint.as_deref()).await;
    let runtime = preflight.say(runtime, |runtime| {
        format!("the container runtime at {} answers: {}", runtime.endpoint, runtime.version)
    });
    if let Some(runtime) = &runtime {
        preflight.take(checks::cgroup_driver(args.cgroupdriver, runtime));
        preflight.take(checks::readiness(runtime));
        let own = EdgePaths::under(&args.root_dir).config_file;
        preflight.take(neighbours::edgecore(Path::new("/proc"), &own, &runtime.endpoint));
    }
    preflight.take(neighbours::kubelet(neighbours::KUBELET_PORT));
    preflight.take(checks::disk_space(&args.root_dir));
    let mut config = None;
    if let (Some(name), Some(runtime), Some(old)) = (&name, &runtime, &old) {
        config = preflight.take(settings::configure(
            args,
            old.clone().unwrap_or_default(),
            name,
            &runtime.endpoint,
        ));
    }
    let mut is_enrolled = false;
    if let Some(config) = &config {
        let node = &config.modules.edged.hostname_override;
        let joined = preflight.take(checks::joined_cas(&config.paths(), node));
        is_enrolled = matches!(joined, Some(Some(_)));
        let proxy = preflight.take(checks::proxy(&config.modules.edge_hub.websocket));
        if let (Some(joined), Some(proxy)) = (joined, proxy) {
            let (servers, token) = (&args.cloudcore_ipport, args.token.as_deref());
            let hub = checks::any_hub(servers, proxy.as_ref(), token, node, joined.as_deref()).await;
            preflight
                .say(hub, |server| format!("cloudcore answers at {server}, and its CA is the expected one"));
        }
    }
    preflight.finish(args.force)?;
    let config = config.context("without a name and a container runtime there is no node")?;
    let is_written = old.is_some_and(|old| old.as_ref() == Some(&config));
    let program = program.context("without the program edgecore there is nothing to start")?;
    Ok(Found { config, is_written, is_enrolled, program, token: args.token.clone() })
}

/// The configuration of an earlier join; what an operator wrote into it stays.
fn existing(root: &Path) -> Check<Option<EdgeCoreConfig>> {
    let path = EdgePaths::under(root).config_file;
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    runtime::config::load(&path, EdgeCoreConfig::validate).map(Some).map_err(|error| {
        Problem::new(
            runtime::chain(&error).to_string(),
            format!("correct {}, or run keadm reset first", path.display()),
        )
    })
}

/// What edgecore says of itself at `/nodez`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeState {
    connected: bool,
    node_ready: bool,
    last_error: Option<String>,
}

async fn ready(args: &Join, paths: &EdgePaths, daemon: &Daemon) -> Result<()> {
    let deadline = Instant::now() + args.timeout;
    let before = daemon.restarts()?;
    loop {
        let mut state = NodeState::default();
        let mut reason = String::new();
        match fetch::admin(&paths.admin_address, "/nodez").await {
            Ok((_, body)) => {
                state = serde_json::from_slice(&body).context("edgecore's /nodez is malformed")?;
            }
            Err(error) => {
                reason = runtime::chain(error.as_ref()).to_string();
                if daemon.restarts()? >= before + HOPELESS {
                    bail!("edgecore ends again and again");
                }
            }
        }
        if state.node_ready {
            return Ok(());
        }
        if let Some(error) = state.last_error.filter(|error| !error.is_empty()) {
            reason = error;
        } else if state.connected {
            "it is connected, but its node is not Ready in the cluster yet".clone_into(&mut reason);
        }
        if Instant::now() > deadline {
            bail!("the node is not Ready after {} s: {reason}", args.timeout.as_secs());
        }
        sleep(Duration::from_millis(100)).await;
    }
}
