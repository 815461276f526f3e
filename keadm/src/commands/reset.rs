//! `keadm reset`: takes away what init or join set up, and nothing else.

use anyhow::{Result, bail};

use crate::{
    cli::{Reset, Side},
    output,
};

mod cgroups;
mod cloud;
mod edge;
mod files;
mod pods;

pub(crate) async fn run(args: Reset) -> Result<()> {
    let side = args.side.unwrap_or(if args.kube.kube_config.is_some() { Side::Cloud } else { Side::Edge });
    match side {
        Side::Edge => edge::run(&args).await,
        Side::Cloud => cloud::run(&args).await,
    }
}

/// Asks, unless told not to.
fn consent(args: &Reset, question: &str) -> Result<()> {
    if args.force || args.dry_run || output::confirm(question)? {
        return Ok(());
    }
    bail!("nothing was changed")
}
