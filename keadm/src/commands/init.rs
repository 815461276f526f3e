//! `keadm init`: the cloud side.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use crds::componentconfig::{cloudcore::CloudCoreConfig, document};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Component, Init, Mode},
    commands::gettoken::{self, NAMESPACE},
    fetch,
    init_system::{Daemon, Outcome},
    kubernetes::{Cluster, Manifest},
    output, preflight,
    preflight::{Check, Preflight, Problem},
    settings,
};

mod deployment;
pub(crate) mod host;
pub(crate) mod manifests;
mod node_selector;

/// A daemon that ends so often while it is waited for will not come up.
const HOPELESS: u32 = 4;

pub(crate) async fn run(args: Init) -> Result<()> {
    let Found { cluster, program, config, is_written } = check(&args).await?;
    let hub = &config.modules.cloud_hub;
    let text = document::minimal(&config)?;
    let mut objects = manifests::custom_resources();
    objects.push(manifests::namespace());
    objects.push(manifests::service_account());
    objects.extend(manifests::permissions());
    objects.push(manifests::webhooks());
    match selector_policy(&cluster).await? {
        Some(policy) => objects.extend(policy),
        None => output::note(
            "this cluster has no mutating admission policies (Kubernetes 1.36 has): pods whose nodeSelector is \
             node-role.kubernetes.io/edge: \"\" will not be scheduled onto edge nodes; write \"true\" there, or label \
             the nodes with kubectl label --overwrite nodes NODE node-role.kubernetes.io/edge=",
        ),
    }
    let image = match args.mode {
        Mode::Host => String::new(),
        Mode::Deployment => image(&args, deployment::image(&cluster).await?),
    };
    match args.mode {
        Mode::Host => objects.push(manifests::token()),
        Mode::Deployment => objects.extend(manifests::deployment(&image, &text, &config)),
    }
    let daemon = program.map(|program| host::daemon(&args.config_dir, program));
    if args.dry_run {
        return plan(&objects, &image, daemon.as_ref(), &text);
    }
    for object in &mut objects {
        if object.kind() == "CustomResourceDefinition"
            && let Some(there) = cluster.get(object).await?
        {
            manifests::keep_served(&mut object.0, &there);
        }
        cluster.apply(object).await?;
    }
    output::done(format_args!(
        "applied {} objects; permissions are those of ServiceAccount {NAMESPACE}/cloudcore",
        objects.len()
    ));
    if let Some(daemon) = daemon {
        if !is_written {
            settings::write(&daemon.config, &text)?;
            output::done(format_args!("wrote {}", daemon.config.display()));
        }
        start(&args, &cluster, &daemon, &config).await?;
    } else {
        let up = deployment::available(&cluster, &image, args.timeout);
        output::step("cloudcore is up in the cluster", up).await?;
    }
    for address in &hub.advertise_address {
        let address = SocketAddr::new(*address, hub.websocket.port);
        output::note(format_args!(
            "edge nodes join with: keadm join --cloudcore-ipport={address} --token=$(keadm gettoken)"
        ));
    }
    Ok(())
}

/// The image of cloudcore. That of an earlier init stays if it is from elsewhere: the default one is not where that is.
fn image(args: &Init, deployed: Option<String>) -> String {
    const DEFAULT: &str = "skerry/cloudcore";
    let version = env!("CARGO_PKG_VERSION");
    if let Some(image) = &args.image {
        return image.clone();
    }
    if let Some(repository) = &args.image_repository {
        return format!("{}/cloudcore:v{version}", repository.trim_end_matches('/'));
    }
    match deployed.filter(|image| image.rsplit_once(':').is_none_or(|(name, _)| name != DEFAULT)) {
        Some(image) => {
            output::unchanged(format_args!("the image stays {image}; --image names another"));
            image
        }
        None => format!("{DEFAULT}:v{version}"),
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
    program: Option<PathBuf>,
    config: CloudCoreConfig,
    /// It is on disk already, just so.
    is_written: bool,
}

async fn check(args: &Init) -> Result<Found> {
    let mut preflight = Preflight::default();
    let cluster = preflight
        .say(Cluster::connect(args.kube.kube_config.as_deref()).await, |(_, version)| {
            format!("the API server answers: Kubernetes {version}")
        })
        .map(|(cluster, _)| cluster);
    if let Some(cluster) = &cluster {
        preflight.say(cluster.may(&manifests::needed_access(args.mode)).await, |()| {
            "the kubeconfig's user may install cloudcore".to_owned()
        });
    }
    let mut program = None;
    let old = match (args.mode, &cluster) {
        (Mode::Host, _) => {
            preflight.take(preflight::root());
            program = preflight.say(preflight::program("cloudcore", args.bin_dir.as_deref()), |program| {
                format!("cloudcore is {}", program.display())
            });
            preflight.take(host::existing(&args.config_dir))
        }
        (Mode::Deployment, Some(cluster)) => preflight.take(deployment::existing(cluster).await),
        (Mode::Deployment, None) => None,
    };
    let mut config = None;
    if let Some(old) = &old {
        config = preflight.take(configure(args, old.clone().unwrap_or_default()));
    }
    if let Some(config) = &mut config {
        let advertise = &mut config.modules.cloud_hub.advertise_address;
        match (args.mode, &cluster) {
            _ if !advertise.is_empty() => {}
            (Mode::Host, Some(cluster)) => {
                advertise.extend(preflight.say(host::own_address(cluster), |address| {
                    format!("edge nodes will reach cloudcore at {address}")
                }));
            }
            (Mode::Host, None) => {}
            (Mode::Deployment, _) => {
                preflight.take::<()>(Err(Problem::new(
                    "the address at which edge nodes reach cloudcore is not known",
                    "give that of the cluster's node (or load balancer) with --advertise-address=IP",
                )));
            }
        }
    }
    if let (Some(program), Some(config), Some(old)) = (&program, &config, &old) {
        let is_running = host::daemon(&args.config_dir, program.clone()).is_running().unwrap_or(false);
        for problem in host::ports_are_free(config, old.as_ref().filter(|_| is_running)) {
            preflight.take::<()>(Err(problem));
        }
    }
    preflight.finish(args.force)?;
    let cluster = cluster.context("without the API server there is nothing to install")?;
    let config = config.context("without a configuration there is nothing to install")?;
    if args.mode == Mode::Host && program.is_none() {
        bail!("without the program cloudcore there is nothing to start");
    }
    let is_written = old.is_some_and(|old| old.as_ref() == Some(&config));
    Ok(Found { cluster, program, config, is_written })
}

/// Adds what the command line says to the configuration that is there; what an operator wrote into it stays.
fn configure(args: &Init, mut config: CloudCoreConfig) -> Check<CloudCoreConfig> {
    if args.mode == Mode::Host {
        let kubeconfig = host::kubeconfig_file(&args.config_dir);
        config.kube_api_config.kube_config = kubeconfig.to_string_lossy().into_owned();
        if let Some(address) = &args.admin_address {
            config.common_config.monitor_server.bind_address.clone_from(address);
        }
    }
    let hub = &mut config.modules.cloud_hub;
    if let Some(port) = args.cloudhub_port {
        hub.websocket.port = port;
    }
    if !args.advertise_address.is_empty() {
        hub.advertise_address.clone_from(&args.advertise_address);
    }
    if !args.dns_names.is_empty() {
        hub.dns_names.clone_from(&args.dns_names);
    }
    let config = settings::set(config, Component::Cloudcore, &args.set)?;
    let verdict = config.validate();
    settings::valid(config, verdict)
}

fn plan(objects: &[Manifest], image: &str, daemon: Option<&Daemon>, config: &str) -> Result<()> {
    for object in objects {
        output::planned(format_args!("apply {object}"));
    }
    if let Some(daemon) = daemon {
        output::planned(format_args!("write {}", daemon.config.display()));
        output::planned(format_args!("start {}", daemon.describe()));
    } else {
        output::planned(format_args!("wait for Deployment {NAMESPACE}/cloudcore with the image {image}"));
    }
    output::data(config)
}

async fn start(args: &Init, cluster: &Cluster, daemon: &Daemon, config: &CloudCoreConfig) -> Result<()> {
    let wrote =
        output::step("credentials for cloudcore", host::write_kubeconfig(cluster, &args.config_dir)).await?;
    let mut outcome = daemon.ensure_running().await?;
    if wrote && outcome == Outcome::Unchanged {
        // The kubeconfig is read at the start only.
        outcome = daemon.restart().await?;
    }
    say_outcome(daemon, outcome);
    let port = config.modules.cloud_hub.websocket.port;
    let waited = output::step("cloudcore is ready", ready(args.timeout, cluster, daemon, port)).await;
    if waited.is_err() {
        daemon.show_log();
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
async fn ready(limit: Duration, cluster: &Cluster, daemon: &Daemon, port: u16) -> Result<()> {
    let deadline = Instant::now() + limit;
    let local = format!("127.0.0.1:{port}");
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

#[cfg(test)]
mod tests;
