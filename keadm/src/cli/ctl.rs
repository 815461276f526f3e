//! `keadm ctl`: at an edge node, with no cloud in reach.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::absolute;

/// Look at what this edge node has, and set its devices; no cloud need be in reach.
#[derive(Args)]
#[command(after_help = "Examples:
  keadm ctl get device
  keadm ctl get device pump-7 -n north -o json
  keadm ctl describe device pump-7
  keadm ctl set device pump-7 speed=1200")]
pub(crate) struct Ctl {
    #[command(subcommand)]
    pub(crate) command: CtlCommand,
}

#[derive(Subcommand)]
pub(crate) enum CtlCommand {
    /// List objects, or those that are named
    Get(CtlGet),
    /// Say all that is known of objects
    Describe(CtlDescribe),
    /// Set properties of a device, until the cloud says something new of them
    Set(CtlSet),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CtlKind {
    #[value(alias = "devices")]
    Device,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CtlFormat {
    Wide,
    Json,
}

/// Of which objects.
#[derive(Args)]
pub(crate) struct Scope {
    /// The namespace
    #[arg(long, short, default_value = "default")]
    pub(crate) namespace: String,
    /// All namespaces
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// The directory that holds everything of this edgecore; / for the usual places
    #[arg(long, value_name = "DIR", default_value = "/", value_parser = absolute)]
    pub(crate) root_dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct CtlGet {
    #[arg(value_enum)]
    pub(crate) kind: CtlKind,
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// wide, with each property; or json
    #[arg(long, short, value_enum)]
    pub(crate) output: Option<CtlFormat>,
}

#[derive(Args)]
pub(crate) struct CtlDescribe {
    #[arg(value_enum)]
    pub(crate) kind: CtlKind,
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
}

#[derive(Args)]
pub(crate) struct CtlSet {
    #[arg(value_enum)]
    pub(crate) kind: CtlKind,
    pub(crate) name: String,
    /// What its properties are to be; several, one after the other
    #[arg(value_name = "PROPERTY=VALUE", required = true, value_parser = assignment)]
    pub(crate) values: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) scope: Scope,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((property, value)) if !property.is_empty() => Ok((property.to_owned(), value.to_owned())),
        _ => Err("is not PROPERTY=VALUE, as in speed=1200".to_owned()),
    }
}
