//! `keadm init`: the cloud side.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail};
use crds::componentconfig::{cloudcore::CloudCoreConfig, document};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Component, Init, Mode},
    commands::gettoken::{self, NAMESPACE},
    fetch,
    init_system::{Daemon, Outcome},
    kubernetes::{Cluster, Manifest},
    output, preflight,
    preflight::{Preflight, Problem},
    settings,
};

pub(crate) mod host;
pub(crate) mod manifests;
mod node_selector;

/// A daemon that ends so often while it is waited for will not come up.
const HOPELESS: u32 = 4;

pub(crate) async fn run(args: Init) -> Result<()> {
    let Found { cluster, program, advertise } = check(&args).await?;
    let (config, config_changed) = configuration(&args, &advertise)?;
    let text = document::minimal(&config)?;
    let mut objects = manifests::custom_resources();
    objects.push(manifests::namespace());
    objects.push(manifests::service_account());
    objects.extend(manifests::permissions());
    match selector_policy(&cluster).await? {
        Some(policy) => objects.extend(policy),
        None => output::note(
            "this cluster has no mutating admission policies (Kubernetes 1.36 has): pods whose nodeSelector is \
             node-role.kubernetes.io/edge: \"\" will not be scheduled onto edge nodes; write \"true\" there, or label \
             the nodes with kubectl label --overwrite nodes NODE node-role.kubernetes.io/edge=",
        ),
    }
    let image = image(&args);
    match args.mode {
        Mode::Host => objects.push(manifests::token()),
        Mode::Deployment => objects.extend(manifests::deployment(&image, &text, args.cloudhub_port)),
    }
    let daemon = program.map(|program| host::daemon(&args, program));
    if args.dry_run {
        return plan(&objects, &args, daemon.as_ref(), &text);
    }
    for object in &objects {
        cluster.apply(object).await?;
    }
    output::done(format_args!(
        "applied {} objects; permissions are those of ServiceAccount {NAMESPACE}/cloudcore",
        objects.len()
    ));
    match daemon {
        Some(daemon) => start(&args, &cluster, &daemon, &text, config_changed).await?,
        None => output::step("cloudcore is up in the cluster", available(&cluster, args.timeout)).await?,
    }
    for address in &advertise {
        let address = std::net::SocketAddr::new(*address, args.cloudhub_port);
        output::note(format_args!(
            "edge nodes join with: keadm join --cloudcore-ipport={address} --token=$(keadm gettoken)"
        ));
    }
    Ok(())
}

/// The image of cloudcore.
fn image(args: &Init) -> String {
    match &args.image_repository {
        Some(repository) => {
            let repository = repository.trim_end_matches('/');
            format!("{repository}/cloudcore:v{}", env!("CARGO_PKG_VERSION"))
        }
        None => args.image.clone(),
    }
}

/// What makes both dialects of selecting edge nodes schedule; `None` where the cluster cannot do it.
pub(crate) async fn selector_policy(cluster: &Cluster) -> Result<Option<Vec<Manifest>>> {
    // Generally available since 1.36; before, an operator may have turned it on.
    let versions = ["v1", "v1beta1"];
    let found =
        cluster.version_with("admissionregistration.k8s.io", &versions, "mutatingadmissionpolicies").await?;
    Ok(found.map(node_selector::policy))
}

struct Found {
    cluster: Cluster,
    /// In host mode.
    program: Option<std::path::PathBuf>,
    advertise: Vec<IpAddr>,
}

async fn check(args: &Init) -> Result<Found> {
    let mut preflight = Preflight::default();
    let cluster = preflight
        .say(Cluster::connect(args.kube.kube_config.as_deref()).await, |(_, version)| {
            format!("the API server answers: Kubernetes {version}")
        })
        .map(|(cluster, _)| cluster);
    if let Some(cluster) = &cluster {
        preflight.say(cluster.may(&manifests::needed_access()).await, |()| {
            "the kubeconfig's user may install cloudcore".to_owned()
        });
    }
    let mut program = None;
    let mut advertise = args.advertise_address.clone();
    match args.mode {
        Mode::Host => {
            preflight.take(preflight::root());
            program = preflight.say(preflight::program("cloudcore", args.bin_dir.as_deref()), |program| {
                format!("cloudcore is {}", program.display())
            });
            if let Some(program) = &program {
                let running = host::daemon(args, program.clone()).is_running();
                preflight.take(host::port_is_free(args.cloudhub_port, running.unwrap_or(false)));
            }
            if let (true, Some(cluster)) = (advertise.is_empty(), &cluster) {
                advertise.extend(preflight.say(host::own_address(cluster), |address| {
                    format!("edge nodes will reach cloudcore at {address}")
                }));
            }
        }
        Mode::Deployment if advertise.is_empty() => {
            preflight.take::<()>(Err(Problem::new(
                "the address at which edge nodes reach cloudcore is not known",
                "give that of the cluster's node (or load balancer) with --advertise-address=IP",
            )));
        }
        Mode::Deployment => {}
    }
    preflight.finish(args.force)?;
    let cluster = cluster.context("without the API server there is nothing to install")?;
    if args.mode == Mode::Host && program.is_none() {
        bail!("without the program cloudcore there is nothing to start");
    }
    Ok(Found { cluster, program, advertise })
}

/// The configuration, and whether it differs from what is on disk.
fn configuration(args: &Init, advertise: &[IpAddr]) -> Result<(CloudCoreConfig, bool)> {
    let path = host::config_file(&args.config_dir);
    let config = if args.mode == Mode::Host {
        let old = path
            .exists()
            .then(|| runtime::config::load(&path, CloudCoreConfig::validate))
            .transpose()
            .context("the configuration that is there cannot be kept; correct or remove it")?;
        let is_there = old.is_some();
        let old = old.unwrap_or_default();
        let new = host::configure(old.clone(), args, advertise);
        let changed = !is_there || new != old;
        (new, changed)
    } else {
        let mut config = CloudCoreConfig::default();
        configure_hub(&mut config, args, advertise);
        (config, true)
    };
    let (config, changed) = config;
    let before = config.clone();
    let config = settings::set(config, Component::Cloudcore, &args.set)
        .map_err(|problem| anyhow::anyhow!("{}; {}", problem.cause, problem.fix))?;
    let config = (config.clone(), changed || config != before);
    if let Err(faults) = config.0.validate() {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        bail!("the configuration would not be valid: {}", faults.join("; "));
    }
    Ok(config)
}

fn configure_hub(config: &mut CloudCoreConfig, args: &Init, advertise: &[IpAddr]) {
    let hub = &mut config.modules.cloud_hub;
    hub.websocket.port = args.cloudhub_port;
    hub.advertise_address = advertise.to_vec();
    if !args.dns_names.is_empty() {
        hub.dns_names.clone_from(&args.dns_names);
    }
}

fn plan(objects: &[Manifest], args: &Init, daemon: Option<&Daemon>, config: &str) -> Result<()> {
    for object in objects {
        output::planned(format_args!("apply {object}"));
    }
    if let Some(daemon) = daemon {
        output::planned(format_args!("write {}", daemon.config.display()));
        output::planned(format_args!("start {}", daemon.describe()));
    } else {
        output::planned(format_args!(
            "wait for Deployment {NAMESPACE}/cloudcore with the image {}",
            image(args)
        ));
    }
    output::data(config)
}

async fn start(args: &Init, cluster: &Cluster, daemon: &Daemon, config: &str, changed: bool) -> Result<()> {
    let wrote = output::step("credentials for cloudcore", host::write_kubeconfig(cluster, args)).await?;
    if changed {
        runtime::tls::write_durably(&daemon.config, 0o644, config.as_bytes())?;
        output::done(format_args!("wrote {}", daemon.config.display()));
    }
    let mut outcome = daemon.ensure_running().await?;
    if wrote && outcome == Outcome::Unchanged {
        // The kubeconfig is read at the start only.
        outcome = daemon.restart().await?;
    }
    say_outcome(daemon, outcome);
    let waited = output::step("cloudcore is ready", ready(args, cluster, daemon)).await;
    if waited.is_err() {
        output::note(format_args!("the end of cloudcore's log:\n{}", daemon.log_tail()?));
    }
    waited
}

pub(crate) fn say_outcome(daemon: &Daemon, outcome: Outcome) {
    let what = daemon.describe();
    match outcome {
        Outcome::Started => output::done(format_args!("started {what}")),
        Outcome::Restarted => {
            output::done(format_args!("restarted {what}: its program or configuration changed"));
        }
        Outcome::Unchanged => output::unchanged(format_args!("{what}: running, unchanged")),
    }
}

/// Waits until cloudcore answers on its port, with a certificate that edge nodes will accept.
async fn ready(args: &Init, cluster: &Cluster, daemon: &Daemon) -> Result<()> {
    let deadline = Instant::now() + args.timeout;
    let local = format!("127.0.0.1:{}", args.cloudhub_port);
    let before = daemon.restarts()?;
    loop {
        let problem = match gettoken::certificate_authority(cluster).await {
            Ok(ca) => match fetch::hub(&local, None, Sha256::digest(&ca).into()).await {
                Ok(()) => return Ok(()),
                Err(error) => anyhow::Error::from(error),
            },
            Err(error) => error,
        };
        if daemon.restarts()? >= before + HOPELESS {
            bail!("cloudcore ends again and again");
        }
        if Instant::now() > deadline {
            return Err(problem.context("cloudcore does not become ready"));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Waits for the Deployment, and says what the pod waits for when it does not come up.
async fn available(cluster: &Cluster, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let manifest = Manifest(serde_json::json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "namespace": NAMESPACE, "name": manifests::NAME },
    }));
    loop {
        let deployment = cluster.get(&manifest).await?.unwrap_or_default();
        let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
        let is_seen = number("/status/observedGeneration") >= number("/metadata/generation");
        if is_seen && number("/status/updatedReplicas") > 0 && number("/status/readyReplicas") > 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            let reason = cluster.waiting_reason(NAMESPACE, "kubeedge=cloudcore").await?;
            bail!("Deployment {NAMESPACE}/cloudcore is not available after {} s: {reason}", limit.as_secs());
        }
        sleep(Duration::from_secs(1)).await;
    }
}
