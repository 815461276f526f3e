//! Step 2: `keadm init`.

use std::{net::TcpListener, path::PathBuf};

use anyhow::{Context, Result};
use harness::process::{command, output_async};

use super::{Demo, story::Story};

/// A cloudcore beside the cluster.
pub(crate) struct Cloud {
    /// `address:port`, as the site sees it.
    pub(crate) endpoint: String,
    pub(crate) keadm: PathBuf,
}

pub(crate) async fn init(demo: &Demo, story: &mut Story) -> Result<Cloud> {
    let bin = demo.assets.product()?;
    let keadm = bin.join("keadm");
    let address = demo.site.host_address();
    // Not 10000, which another demo of this machine may have.
    let free = || anyhow::Ok(TcpListener::bind((address, 0))?.local_addr()?.port());
    let port = free().context("the kernel has no free port")?;
    let admin = free().context("the kernel has no free port")?;
    let mut init = command(&keadm, ["init", "--mode=host"]);
    init.arg(format!("--kube-config={}", demo.cluster.kubeconfig().display()))
        .arg(format!("--advertise-address={address}"))
        .arg(format!("--config-dir={}", demo.run.dir().join("cloud").display()))
        .arg(format!("--bin-dir={}", bin.display()))
        .arg(format!("--cloudhub-port={port}"))
        .arg(format!("--admin-address=127.0.0.1:{admin}"));
    demo.run.mark(&mut init);
    let endpoint = format!("{address}:{port}");
    let line = format!("keadm init: cloudcore is ready on {endpoint}");
    story.step("keadm init", |_| line, output_async(init)).await?;
    Ok(Cloud { endpoint, keadm })
}
