//! Wiring: everything is built first (store open, socket bound), then it runs. Nothing of it waits for the network.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use crds::{
    componentconfig::{
        edgecore::EdgeCoreConfig,
        sync::{ClassName, LinkSettings},
    },
    devices::keys::DEVICE,
};
use prometheus_client::registry::Registry;
use proto::ResourceKey;
use runtime::{
    Supervisor,
    admin::{Admin, Order, Page, Readiness},
    signals::Signals,
    supervisor::Outcome,
    telemetry::{self, LogLevel},
    tls,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    devicetwin::{DeviceTwin, Devices, DevicesConfig, Dmi},
    doors::{self, Doors},
    edged::Edged,
    edgehub::{EdgeHub, HubState, LinkUse, Renewal},
    edgestream::{self, EdgeStream},
    eventbus::{EventBus, Place},
    metamanager::{Options, Store},
    metrics,
};

/// For the last reports, the goodbye, and the store's clean stop.
const GRACE: Duration = Duration::from_secs(8);
/// Questions that wait for the line: a pod that starts asks for a token or two.
const ASKS: usize = 64;
/// The work is waiting for sockets, disks and the runtime; a second thread keeps one slow disk read from holding it all up.
const WORKERS: usize = 2;

/// `--defaultconfig`.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub fn print_default_config() -> anyhow::Result<()> {
    print!("{}", serde_saphyr::to_string(&EdgeCoreConfig::default())?);
    Ok(())
}

/// Runs edgecore until a signal, or until a part of it fails.
pub fn run(config: &Path) -> anyhow::Result<()> {
    tls::install_provider();
    let raw = runtime::config::load(config, EdgeCoreConfig::validate)?;
    let config = Config::from(raw);
    let log_level = telemetry::init(&config.log_level, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("failed to start the asynchronous runtime")?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::hook().context("failed to hook signals")?;
        tokio::select! {
            outcome = serve(config, log_level, &stop) => outcome,
            // The second signal means: leave at once. Nothing that was acked is lost.
            () = signals.run(stop.clone()) => Ok(Outcome::Stopped),
        }
    });
    runtime.shutdown_background();
    match outcome? {
        Outcome::Stopped => Ok(()),
        outcome => anyhow::bail!("{outcome}"),
    }
}

async fn serve(config: Config, log_level: LogLevel, stop: &CancellationToken) -> anyhow::Result<Outcome> {
    let Config {
        log_level: _,
        log_format: _,
        admin_address,
        store_dir,
        pid_file,
        hub,
        edged,
        serve_streams,
        devices,
        mqtt,
        dmi_socket,
    } = config;
    let node = hub.node.clone();
    let opening = store_dir.clone();
    let store = tokio::task::spawn_blocking(move || Store::open(&opening, Options::default()))
        .await
        .context("the store's opening was cut short")?
        .with_context(|| format!("failed to open the store in {}", store_dir.display()))?;
    for damage in &store.opened().healed {
        warn!(damage, "the store was damaged and healed");
    }
    // After the store's lock was taken: never the id of a second edgecore that could not start.
    let written = std::fs::create_dir_all(pid_file.parent().unwrap_or(Path::new("/")))
        .and_then(|()| std::fs::write(&pid_file, std::process::id().to_string()));
    if let Err(error) = written {
        // A full disk: the pods have to come up all the same.
        warn!(%error, path = %pid_file.display(), "the pid file was not written");
    }
    let (asks, asked) = mpsc::channel(ASKS);
    let identity = hub.identity.clone();
    let (hub, state) = EdgeHub::new(hub, store.clone(), asked)?;
    let (streams, opened) = mpsc::channel(edgestream::WAITING);
    let hub = if serve_streams { hub.serving(streams) } else { hub };
    let clock = Arc::clone(hub.clock());
    let renewal = Renewal {
        node: node.clone(),
        identity,
        asks: asks.clone(),
        hub: state.clone(),
        clock: Arc::clone(&clock),
    };
    let mut registry = Registry::default();
    metrics::register(&mut registry, store.clone(), state.clone());
    let mut pages =
        vec![("/nodez", nodez(&state, hub.link_use(), &store)), ("/digestz", digestz(&node, &store))];
    if let Some(directory) = admin_address.strip_prefix("unix://").and_then(|path| Path::new(path).parent()) {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("failed to make {} for the admin socket", directory.display()))?;
    }
    let devices = devices.map(|devices| {
        let devices = DevicesConfig { access: devices.access.at(&clock), ..devices };
        DeviceTwin::new(devices, store.clone(), state.clone())
    });
    let known = devices.as_ref().map(DeviceTwin::devices);
    if let Some(known) = known.clone() {
        registry.register_collector(Box::new(known.clone()));
        pages.push(("/devices", Arc::new(move || known.page())));
    }
    let doors = Doors::default();
    let edged = Edged::new(edged, store.clone(), asks, state, doors.clone())?;
    registry.register_collector(Box::new(edged.calls()));
    let edge_stream = EdgeStream::new(store.clone(), edged.runtime(), opened);
    let mut admin = Admin::bind(&admin_address, registry, log_level, readiness(&store), pages).await?;
    let dmi = known.clone().zip(dmi_socket).map(|(known, socket)| Dmi::new(socket, store.clone(), known));
    let rules = devices.as_ref().map(DeviceTwin::rules);
    let door_to_broker = mqtt.first().and_then(Place::door);
    let buses: Vec<EventBus> = known
        .iter()
        .flat_map(|known| {
            mqtt.iter().map(|place| EventBus::new(place.clone().at(&clock), node.clone(), known.clone()))
        })
        .collect();
    if let Some(known) = known {
        admin = admin.taking("/devices", set_device(known));
    }
    info!(node, version = env!("CARGO_PKG_VERSION"), objects = store.digest().count, "edgecore started");

    let mut tasks = Supervisor::new(stop.clone());
    tasks.spawn("admin", admin.run(stop.child_token()));
    tasks.spawn("edgestream", edge_stream.run(stop.child_token()));
    tasks.spawn("edged", edged.run(stop.child_token()));
    if let Some(devices) = devices {
        tasks.spawn("devicetwin", devices.run(stop.child_token()));
    }
    if let Some(rules) = rules {
        tasks.spawn("rules", rules.run(stop.child_token()));
    }
    if let Some(dmi) = dmi {
        tasks.spawn("dmi", dmi.run(stop.child_token()));
    }
    if let Some((port, target)) = door_to_broker {
        tasks.spawn("doors", doors::keep(doors, port, target, stop.child_token()));
    }
    for bus in buses {
        tasks.spawn("eventbus", bus.run(stop.child_token()));
    }
    tasks.spawn("edgehub", hub.run(stop.child_token()));
    tasks.spawn("renewal", renewal.run(stop.child_token()));
    let outcome = tasks.join(GRACE).await;
    store.close().await.context("failed to close the store; the next start rebuilds its index")?;
    Ok(outcome)
}

/// The node does its work without the cloud, but not without a disk that takes what it is to keep.
fn readiness(store: &Store) -> Readiness {
    let store = store.clone();
    Arc::new(move || match store.failure() {
        None => Ok(()),
        Some(failure) => Err(format!("the store takes no changes: {failure}")),
    })
}

/// What `keadm join` waits for and `keadm` shows.
fn nodez(state: &watch::Receiver<HubState>, link: watch::Receiver<LinkUse>, store: &Store) -> Page {
    let (state, store) = (state.clone(), store.clone());
    Arc::new(move || {
        let mut page = serde_json::to_value(&*state.borrow()).unwrap_or_default();
        page["sync"] = link_page(*link.borrow());
        page["storeError"] = store.failure().unwrap_or_default().into();
        page
    })
}

/// How the link is used now: bytes a second, and seconds by class.
fn link_page(LinkUse { settings, holding }: LinkUse) -> serde_json::Value {
    let LinkSettings { full, plain, repeat, intervals, up, down } = settings;
    let intervals: serde_json::Map<_, _> = ClassName::ALL
        .into_iter()
        .zip(intervals)
        .map(|(name, interval)| (name.as_str().to_owned(), interval.as_secs_f64().into()))
        .collect();
    serde_json::json!({
        "strategy": if full { "full" } else { "differential" },
        "compression": !plain,
        "deduplication": !repeat,
        "syncIntervals": intervals,
        "bandwidth": { "up": up, "down": down },
        "holding": holding,
    })
}

/// `{"namespace": "…", "name": "…", "property": "…", "value": "…"}`
fn set_device(devices: Devices) -> Order {
    #[derive(serde::Deserialize)]
    struct Asked {
        namespace: String,
        name: String,
        property: String,
        value: String,
    }
    Arc::new(move |asked| {
        let devices = devices.clone();
        Box::pin(async move {
            let Asked { namespace, name, property, value } =
                serde_json::from_value(asked).map_err(|error| error.to_string())?;
            let key = ResourceKey::new(DEVICE, &namespace, &name).map_err(|error| error.to_string())?;
            let set = devices.set(&key, &property, &value).await;
            set.map_err(|error| runtime::chain(&error).to_string())
        })
    })
}

/// Of the objects that the store holds, in the form of cloudcore's page of that name.
fn digestz(node: &str, store: &Store) -> Page {
    let (node, store) = (node.to_owned(), store.clone());
    Arc::new(move || serde_json::json!({ node.as_str(): store.digest().to_string() }))
}
