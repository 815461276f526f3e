//! The command line. Flags that KubeEdge's keadm has mean the same here.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use crds::componentconfig::{edgecore::CgroupDriver, is_dns_name, is_endpoint, is_label};

const KUBEEDGE_VERSION: &str = "The KubeEdge dialect that manifests and habits follow; nothing is downloaded. \
    1.12.0 and later are understood alike";

const IMAGE: &str = concat!(
    "Deployment mode: the image of cloudcore [default: skerry/cloudcore:v",
    env!("CARGO_PKG_VERSION"),
    ", or that of an earlier init if it is of another repository]"
);

/// Set up the cloud side, join edge nodes, and take both away again.
#[derive(Parser)]
#[command(name = "keadm", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Init(Init),
    #[command(name = "gettoken")]
    GetToken(GetToken),
    Join(Box<Join>),
    Revoke(Revoke),
    Certs(Certs),
    Reset(Reset),
    Config(Config),
    Ctl(ctl::Ctl),
    Version(Version),
    /// Print a completion script for a shell.
    Completion {
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    Supervise(Supervise),
}

/// Where the Kubernetes API is.
#[derive(Args)]
pub(crate) struct KubeConfig {
    /// The kubeconfig of a cluster administrator [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "PATH")]
    pub(crate) kube_config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// cloudcore runs in the cluster, as a Deployment
    Deployment,
    /// cloudcore runs on this machine, beside the cluster
    Host,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[value(alias = "short")]
    Text,
    Json,
}

/// Install the cloud side: custom resources, namespace, permissions, cloudcore.
///
/// Running it again changes only what its flags say; cloudcore is restarted only if its program or configuration changed.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm init --advertise-address=192.0.2.10 --kubeedge-version=1.12.0
  keadm init --mode=host --advertise-address=192.0.2.10 --kube-config=/root/.kube/config
  keadm init --advertise-address=192.0.2.10 --dry-run")]
pub(crate) struct Init {
    /// The addresses at which edge nodes reach cloudcore; several with commas [default: those of an earlier init; in host
    /// mode, this machine's address towards the API server]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) advertise_address: Vec<IpAddr>,
    /// Names at which edge nodes reach cloudcore, for its certificate; several with commas [default: those of an earlier
    /// init]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = dns_name)]
    pub(crate) dns_names: Vec<String>,
    #[arg(long, value_name = "VERSION", help = KUBEEDGE_VERSION, value_parser = kubeedge_version)]
    pub(crate) kubeedge_version: Option<String>,
    #[command(flatten)]
    pub(crate) kube: KubeConfig,
    /// Where cloudcore runs
    #[arg(long, value_enum, default_value_t = Mode::Deployment)]
    pub(crate) mode: Mode,
    #[arg(long, value_name = "IMAGE", help = IMAGE)]
    pub(crate) image: Option<String>,
    /// Deployment mode: where that image is, as in registry.example/skerry
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "image")]
    pub(crate) image_repository: Option<String>,
    /// Host mode: the directory of cloudcore's configuration, kubeconfig, log and process id
    #[arg(long, value_name = "DIR", default_value = "/etc/kubeedge", value_parser = absolute)]
    pub(crate) config_dir: PathBuf,
    /// Host mode: the directory of the program cloudcore [default: keadm's own, then /usr/local/bin]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// The one port that edge nodes connect to [default: that of an earlier init, or 10000]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) cloudhub_port: Option<u16>,
    /// Host mode: cloudcore's admin address (health, metrics, log level) [default: that of an earlier init, or
    /// 127.0.0.1:9091]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin_address: Option<String>,
    /// How long to wait for cloudcore
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::time::parse)]
    pub(crate) timeout: Duration,
    /// Only print what would be done
    #[arg(long, short = 'd')]
    pub(crate) dry_run: bool,
    /// Set a key of cloudcore.yaml, as in modules.cloudHub.nodeLimit=5000; several with commas
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = setting)]
    pub(crate) set: Vec<(String, String)>,
    /// Go on although preflight checks fail
    #[arg(long, alias = "skip-preflight-checks")]
    pub(crate) force: bool,
    #[command(flatten)]
    _foreign: foreign::ChartFlags,
}

/// Print a new join token.
///
/// A token holds the hash of the cluster's CA, so that an edge node knows from the first contact whom it speaks to, and a
/// credential that expires. Any number can be valid at a time. Without --node it is for every node that is new to the
/// cluster; a name that a machine has joined under is taken over with a token for that very node only.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm gettoken --kube-config=/root/.kube/config
  keadm gettoken --node=pump-7
  keadm gettoken --ttl=7d -o json")]
pub(crate) struct GetToken {
    #[command(flatten)]
    pub(crate) kube: KubeConfig,
    /// How long the token is valid, as in 90m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::time::parse)]
    pub(crate) ttl: Duration,
    /// The only node that the token is for; needed where a machine that had joined as NAME is replaced
    #[arg(long, value_name = "NAME", value_parser = dns_name)]
    pub(crate) node: Option<String>,
    /// text, or json with the expiry
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

/// Make this machine an edge node; returns once the node is Ready in the cluster.
///
/// Running it again with the same flags changes nothing; edgecore is restarted only if its program or configuration
/// changed, and its pods run on in any case.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm join --cloudcore-ipport=192.0.2.10:10000 --token=$(keadm gettoken) --kubeedge-version=1.12.0
  keadm join --cloudcore-ipport=192.0.2.10:10000 --token=$TOKEN --edgenode-name=pump-7 --labels=site=north")]
pub(crate) struct Join {
    /// HOST:PORT of cloudcore, as advertised by keadm init; of several cloudcores each one's, with commas
    #[arg(long, short = 'e', value_name = "HOST:PORT", value_delimiter = ',', required = true, value_parser = endpoint)]
    pub(crate) cloudcore_ipport: Vec<String>,
    /// The token that keadm gettoken printed; not needed by a node that has joined before
    #[arg(long, short, value_name = "TOKEN", env = "KEADM_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    #[arg(long, value_name = "VERSION", help = KUBEEDGE_VERSION, value_parser = kubeedge_version)]
    pub(crate) kubeedge_version: Option<String>,
    /// The node's name [default: this machine's]
    #[arg(long, short = 'i', value_name = "NAME")]
    pub(crate) edgenode_name: Option<String>,
    /// The CRI socket [default: containerd's or CRI-O's, whichever is there]
    #[arg(long, short = 'p', value_name = "ENDPOINT")]
    pub(crate) remote_runtime_endpoint: Option<String>,
    /// auto, cgroupfs or systemd [default: auto, as the runtime says]
    #[arg(long, value_name = "DRIVER", value_parser = cgroup_driver)]
    pub(crate) cgroupdriver: Option<CgroupDriver>,
    /// The directory that holds everything of this edgecore; / for the usual places
    #[arg(long, value_name = "DIR", default_value = "/", value_parser = absolute)]
    pub(crate) root_dir: PathBuf,
    /// The directory of the program edgecore [default: keadm's own, then /usr/local/bin]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// The address that the node reports [default: the one towards cloudcore]
    #[arg(long, value_name = "IP")]
    pub(crate) node_ip: Option<IpAddr>,
    /// Labels of the node, as KEY=VALUE; several with commas
    #[arg(long, short, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Set a key of edgecore.yaml, as in modules.edged.memoryCapacity=100Mi; several with commas
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = setting)]
    pub(crate) set: Vec<(String, String)>,
    /// How long to wait for the node to be Ready
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::time::parse)]
    pub(crate) timeout: Duration,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Go on although preflight checks fail
    #[arg(long)]
    pub(crate) force: bool,
    /// The HTTP proxy that leads to cloudcore, as in http://USER:PASSWORD@192.0.2.1:3128, or https://… for one that is spoken to
    /// within TLS [default: that of an earlier join]
    #[arg(long, value_name = "URL", env = "KEADM_PROXY", hide_env_values = true)]
    pub(crate) proxy: Option<String>,
    /// The file with the CAs, PEM, of which the certificate of an https:// proxy has to be; edgecore reads it, too [default: that of
    /// an earlier join, or what the system trusts]
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    pub(crate) proxy_ca_file: Option<PathBuf>,
    /// What carries the link [default: quic, and the WebSocket where UDP does not get through]
    #[arg(long, value_name = "PROTOCOL", value_enum)]
    pub(crate) hub_protocol: Option<HubProtocol>,
    #[command(flatten)]
    _foreign: foreign::DownloadFlags,
}

/// Shut a machine out: cloudcore cuts its link at once, and takes no new one.
///
/// For a machine that was stolen or broken into. It keeps the certificate and what it holds; change the Secrets that its pods
/// used. Its Node stays, since that is what shuts it out: a machine whose Node was deleted may come back. The name goes to
/// another machine, or back to this one after keadm reset there, with a token from `keadm gettoken --node=NAME`.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm revoke pump-7
  keadm revoke pump-7 pump-8 --kube-config=/root/.kube/config")]
pub(crate) struct Revoke {
    /// The edge nodes whose machines are shut out
    #[arg(value_name = "NAME", required = true, value_parser = dns_name)]
    pub(crate) nodes: Vec<String>,
    #[command(flatten)]
    pub(crate) kube: KubeConfig,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Look after the certificate authority of the cluster's edge nodes.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm certs status
  keadm certs rotate-ca")]
pub(crate) struct Certs {
    #[command(subcommand)]
    pub(crate) command: CertsCommand,
}

#[derive(Subcommand)]
pub(crate) enum CertsCommand {
    Status(CertsStatus),
    #[command(name = "rotate-ca")]
    RotateCa(RotateCa),
}

/// Say which CA issues, how far a rotation is, and which nodes it waits for.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm certs status
  keadm certs status -o json")]
pub(crate) struct CertsStatus {
    #[command(flatten)]
    pub(crate) kube: KubeConfig,
    /// text, or json
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

/// Take the next step of putting another CA in the place of the one that there is; three steps make a rotation.
///
/// prepare makes a CA that all trust beside the one that issues; issue has it issue, and nodes renew their certificates within
/// minutes; drop ends the trust in the CA before. No link is cut, nothing is restarted, and a site that was off all the while gets
/// in as long as the CA before is not dropped. A token counts as long as the CA of its time is trusted. A node that has not
/// followed when the CA before is dropped has to join anew, so drop is refused while there is one.
///
/// Before drop, abort takes the rotation back. One that is prepared is over at once. In one whose new CA has issued, the CA before
/// issues again, nodes renew once more, and drop then ends the trust in the new one, with the same care.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm certs rotate-ca prepare
  keadm certs rotate-ca issue
  keadm certs status
  keadm certs rotate-ca drop
  keadm certs rotate-ca abort
  keadm certs rotate-ca --dry-run -o json")]
pub(crate) struct RotateCa {
    /// The step, for scripts: one that has been taken is not taken again [default: the next one]
    #[arg(value_enum, value_name = "STEP")]
    pub(crate) step: Option<RotateStep>,
    #[command(flatten)]
    pub(crate) kube: KubeConfig,
    /// How long to wait for the nodes that are connected
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::time::parse)]
    pub(crate) timeout: Duration,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take the step although nodes have not followed
    #[arg(long)]
    pub(crate) force: bool,
    /// text, or json with how far the rotation is after the step
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotateStep {
    /// A new CA is made, and trusted beside the one that issues
    Prepare,
    /// The new CA issues; nodes renew
    Issue,
    /// The CA before is trusted no more
    Drop,
    /// The rotation is taken back, shutting nobody out
    Abort,
}

/// Take this machine's edge node away, or with --kube-config the cloud side.
///
/// On an edge node: edgecore, its pods, mounts, sockets, unit and directories. With --kube-config (or `keadm reset cloud`):
/// cloudcore, its namespace, permissions and, with --crds, the custom resources.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm reset
  keadm reset --root-dir=/srv/edge-1 --force
  keadm reset cloud --kube-config=/root/.kube/config")]
pub(crate) struct Reset {
    /// What to take away [default: edge; cloud if --kube-config is given]
    #[arg(value_enum)]
    pub(crate) side: Option<Side>,
    #[command(flatten)]
    pub(crate) kube: KubeConfig,
    /// The edge node's directory, as given to keadm join
    #[arg(long, value_name = "DIR", default_value = "/", value_parser = absolute)]
    pub(crate) root_dir: PathBuf,
    /// The CRI socket [default: the one in edgecore.yaml]
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) remote_runtime_endpoint: Option<String>,
    /// The cloud side's directory, as given to keadm init
    #[arg(long, value_name = "DIR", default_value = "/etc/kubeedge", value_parser = absolute)]
    pub(crate) config_dir: PathBuf,
    /// Remove the custom resource definitions too, and with them every Device and DeviceModel
    #[arg(long)]
    pub(crate) crds: bool,
    /// Ask nothing
    #[arg(long)]
    pub(crate) force: bool,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    _scripts: foreign::ScriptFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HubProtocol {
    /// QUIC, and the WebSocket where UDP does not get through
    Quic,
    /// The WebSocket alone
    Websocket,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    Edge,
    Cloud,
}

/// Print and check configuration files.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm config defaults edgecore > edgecore.yaml
  keadm config explain modules.edged.memoryCapacity
  keadm config check /etc/kubeedge/config/edgecore.yaml")]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the whole default configuration, each key with what it is for
    Defaults { component: Component },
    /// Say what a key, or all keys below it, are for
    Explain {
        /// As in modules.edgeHub.heartbeat; nothing for all keys
        key: Option<String>,
        /// Whose key; needed only where both have it
        #[arg(long, value_enum)]
        component: Option<Component>,
        /// text or json
        #[arg(long, short, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Check a file as the daemons do
    Check { file: PathBuf },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Component {
    Cloudcore,
    Edgecore,
}

/// Print the version.
#[derive(Args)]
pub(crate) struct Version {
    /// text or json
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

/// Keep a daemon running where there is no systemd.
#[derive(Args)]
pub(crate) struct Supervise {
    /// The daemon's name
    #[arg(long)]
    pub(crate) name: String,
    /// The directory of its process id and state
    #[arg(long)]
    pub(crate) run_dir: PathBuf,
    #[arg(long)]
    pub(crate) log_file: PathBuf,
    /// What it was started from
    #[arg(long)]
    pub(crate) fingerprint: String,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<PathBuf>,
}

fn dns_name(text: &str) -> Result<String, String> {
    if is_dns_name(text) { Ok(text.to_owned()) } else { Err("not a DNS name".to_owned()) }
}

fn endpoint(text: &str) -> Result<String, String> {
    let reason = "not HOST:PORT, as in 192.0.2.10:10000";
    if is_endpoint(text) { Ok(text.to_owned()) } else { Err(reason.to_owned()) }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if is_label(key, value) {
        Ok((key.to_owned(), value.to_owned()))
    } else {
        Err("not a Kubernetes label KEY=VALUE".to_owned())
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn cgroup_driver(text: &str) -> Result<CgroupDriver, String> {
    match text {
        "auto" => Ok(CgroupDriver::Auto),
        "cgroupfs" => Ok(CgroupDriver::Cgroupfs),
        "systemd" => Ok(CgroupDriver::Systemd),
        _ => Err("one of auto, cgroupfs, systemd".to_owned()),
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(Path::new(text)).map_err(|error| error.to_string())
}

/// `1.12.0` or `v1.12.0`.
fn kubeedge_version(text: &str) -> Result<String, String> {
    let version = text.strip_prefix('v').unwrap_or(text);
    let parts: Vec<_> = version.split('.').map(str::parse::<u32>).collect();
    match parts[..] {
        [Ok(1), Ok(12..), Ok(_)] | [Ok(1), Ok(12..)] => Ok(version.to_owned()),
        [Ok(_), Ok(_), Ok(_)] | [Ok(_), Ok(_)] => {
            Err("1.12.0 is the oldest dialect that is followed".to_owned())
        }
        _ => Err("not a version, as in 1.12.0".to_owned()),
    }
}

pub(crate) mod ctl;
mod foreign;
#[cfg(test)]
mod tests;
