//! The edge node: edgecore first, so that it brings nothing back; then its pods, their mounts, and its files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use crds::componentconfig::edgecore::{EdgeCoreConfig, EdgePaths};

use runtime::{link::proxy::Proxy, tls};

use super::{files, pods};
use crate::{
    cli::Reset,
    commands::join::daemon,
    fetch, output,
    preflight::{self, Preflight},
};

pub(super) async fn run(args: &Reset) -> Result<()> {
    let mut preflight = Preflight::default();
    preflight.take(preflight::root());
    preflight.finish(false)?;
    let config = configuration(args);
    let paths = config.paths();
    let root = &args.root_dir;
    super::consent(
        args,
        &format!("Stop edgecore, remove its pods and all of its data below {}?", root.display()),
    )?;
    let daemon = daemon(root, &paths, PathBuf::from("edgecore"));
    if args.dry_run {
        output::planned(format_args!("stop {}", daemon.describe()));
    } else if output::step("edgecore stops", daemon.remove()).await? {
        output::done("stopped edgecore");
    } else {
        output::unchanged("edgecore was not running");
    }
    pods::remove(&config.modules.edged.remote_runtime_endpoint, &paths, args.dry_run).await?;
    leave(args, &config).await;
    let owned = owned(root, &paths);
    files::unmount_below(&[owned.clone(), vec![paths.pods_dir.clone()]].concat(), args.dry_run)?;
    let mut removed = 0;
    for path in &owned {
        removed += usize::from(files::remove(path, args.dry_run)?);
    }
    for dir in shared(root, &paths) {
        files::remove_if_empty(&dir, args.dry_run)?;
    }
    if args.dry_run {
        return Ok(());
    }
    output::done(format_args!("removed {removed} files and directories"));
    let name = &config.modules.edged.hostname_override;
    if !name.is_empty() {
        output::note(format_args!(
            "in the cloud, kubectl delete node {name} removes the node from the cluster"
        ));
    }
    Ok(())
}

/// The configuration that is there; the defaults if it cannot be read, since what is broken has to go away, too.
fn configuration(args: &Reset) -> EdgeCoreConfig {
    let file = EdgePaths::under(&args.root_dir).config_file;
    let loaded = runtime::config::load(&file, EdgeCoreConfig::validate);
    let mut config = loaded.unwrap_or_else(|error| {
        output::note(format_args!("going by the default paths: {}", runtime::chain(&error)));
        EdgeCoreConfig::default()
    });
    config.root_directory = args.root_dir.to_string_lossy().into_owned();
    if let Some(endpoint) = &args.remote_runtime_endpoint {
        config.modules.edged.remote_runtime_endpoint.clone_from(endpoint);
    }
    config
}

/// Tells cloudcore that the name is free. The key is about to go, and with it the only proof of who this machine was.
async fn leave(args: &Reset, config: &EdgeCoreConfig) {
    let paths = config.paths();
    let server = &config.modules.edge_hub.websocket.server;
    // One that cannot be read is none that the node has joined through.
    let websocket = &config.modules.edge_hub.websocket;
    let proxy = Proxy::configured(&websocket.proxy.0, &websocket.proxy_ca_file).unwrap_or_default();
    if !paths.cert_file.exists() {
        return;
    }
    if args.dry_run {
        output::planned(format_args!("tell cloudcore at {server} that the node leaves"));
        return;
    }
    let credentials = || {
        let ca = tls::read_certificates(&paths.ca_file)?;
        tls::client_config(
            &ca,
            tls::read_certificates(&paths.cert_file)?,
            tls::read_key(&paths.key_file)?,
            Arc::default(),
        )
    };
    let left = match credentials() {
        Ok(client) => {
            let mut left = Err(String::new());
            for one in server.split(',') {
                left = fetch::release(one, proxy.as_ref(), client.clone())
                    .await
                    .map_err(|error| runtime::chain(&error).to_string());
                if left.is_ok() {
                    break;
                }
            }
            left
        }
        Err(error) => Err(runtime::chain(&error).to_string()),
    };
    match left {
        Ok(()) => output::done(format_args!("told cloudcore at {server} that the node leaves")),
        // The site may be offline for good, and reset goes on.
        Err(reason) => output::note(format_args!(
            "cloudcore could not be told that the node leaves ({reason}); to join again under its name, use a token from \
             keadm gettoken --node={}",
            config.modules.edged.hostname_override
        )),
    }
}

/// What is ours alone.
fn owned(root: &Path, paths: &EdgePaths) -> Vec<PathBuf> {
    let mut owned: Vec<PathBuf> = [
        &paths.config_file,
        &paths.bootstrap_token_file,
        &paths.ca_file,
        &paths.cert_file,
        &paths.key_file,
        &paths.store_dir,
        &paths.mqtt_dir,
        &paths.dmi_socket,
        &paths.pods_dir,
        &paths.pid_file,
        &paths.log_file,
    ]
    .map(PathBuf::clone)
    .to_vec();
    owned.push(paths.log_file.with_extension("log.1"));
    owned.extend(paths.admin_address.strip_prefix("unix://").map(PathBuf::from));
    if root == Path::new("/") {
        owned.extend(["/var/lib/kubeedge", "/run/kubeedge"].map(PathBuf::from));
    } else {
        owned.extend([paths.pod_logs_dir.clone(), paths.container_logs_dir.clone()]);
    }
    owned
}

/// Directories that are removed only once they are empty: others may have put something there.
fn shared(root: &Path, paths: &EdgePaths) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = [&paths.config_file, &paths.ca_file, &paths.cert_file, &paths.log_file]
        .into_iter()
        .filter_map(|file| file.parent().map(Path::to_owned))
        .collect();
    if root == Path::new("/") {
        dirs.push("/etc/kubeedge".into());
    } else {
        dirs.push(root.join("logs"));
        dirs.push(root.to_owned());
    }
    dirs
}
