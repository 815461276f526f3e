//! Flags of KubeEdge's keadm that can have no meaning here: each says why, in place of being unknown or of doing nothing.

use std::convert::Infallible;

use clap::Args;

#[derive(Args)]
pub(crate) struct ChartFlags {
    #[arg(long, hide = true, value_parser = chart)]
    profile: Option<Infallible>,
    #[arg(long, hide = true, value_parser = chart)]
    external_helm_root: Option<Infallible>,
    #[arg(long, hide = true, value_parser = chart)]
    manifests: Option<Infallible>,
    #[arg(long, short = 'f', hide = true, value_parser = chart)]
    files: Option<Infallible>,
}

#[derive(Args)]
pub(crate) struct DownloadFlags {
    #[arg(long, short = 's', hide = true, value_parser = certificate_port)]
    certport: Option<Infallible>,
    #[arg(long = "certPath", hide = true, value_parser = certificate_path)]
    cert_path: Option<Infallible>,
    #[arg(long, hide = true, value_parser = tarball)]
    tarballpath: Option<Infallible>,
    #[arg(long, hide = true, value_parser = image)]
    image_repository: Option<Infallible>,
    #[command(flatten)]
    scripts: ScriptFlags,
}

#[derive(Args)]
pub(crate) struct ScriptFlags {
    #[arg(long, hide = true, value_parser = script)]
    pre_run: Option<Infallible>,
    #[arg(long, hide = true, value_parser = script)]
    post_run: Option<Infallible>,
}

type Refused = Result<Infallible, &'static str>;

fn chart(_: &str) -> Refused {
    Err("keadm init applies no Helm chart; set keys of cloudcore.yaml with --set, and see --dry-run")
}

fn certificate_port(_: &str) -> Refused {
    Err("certificates come over the same port as everything else, that of --cloudcore-ipport; leave it out")
}

fn certificate_path(_: &str) -> Refused {
    Err("certificates are kept with everything else of this node, below --root-dir")
}

fn tarball(_: &str) -> Refused {
    Err("nothing is downloaded; put the program edgecore beside keadm, or name its directory with --bin-dir")
}

fn image(_: &str) -> Refused {
    Err("no image is pulled; put the program edgecore beside keadm, or name its directory with --bin-dir")
}

fn script(_: &str) -> Refused {
    Err("keadm runs no scripts; run it before or after keadm")
}
