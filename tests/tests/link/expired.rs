//! A site that was off for longer than its certificate lasts comes back by itself, and has a new one then.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Site,
    product::{Scene, ready},
    wait,
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use runtime::tls::{self, CertificateAuthority};

use crate::is_over;

const NODE: &str = "edge-expired";
const SOON: Duration = Duration::from_mins(1);

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    let edge = scene.join(bench, site, NODE).await?;
    wait::until("the link up", SOON, async || is_over(&edge, "quic").await).await?;
    edge.stop()?;

    let secrets: Api<Secret> = Api::namespaced(scene.cluster.client(), "kubeedge");
    let data = secrets.get("casecret").await?.data.context("the CA's Secret has data")?;
    let part = |name: &str| data.get(name).map(|part| part.0.clone()).context("the CA's Secret is whole");
    let ca = CertificateAuthority::from_der(part("cadata")?, part("cakeydata")?)?;
    let file = |name: &str| edge.root().join("certs").join(name);
    let (certificate, key) = (file("server.crt"), file("server.key"));
    let csr = tls::node_csr_for(NODE, tls::read_key(&key)?.secret_der())?;
    let expired = ca.sign_node_csr(&csr, NODE, Duration::ZERO)?;
    tls::write_durably(&certificate, 0o644, tls::pem("CERTIFICATE", &expired).as_bytes())?;
    wait::until("its end", SOON, async || {
        ensure!(seconds_left(&certificate)? < 0, "it is valid");
        Ok(())
    })
    .await?;

    let _edgecore = edge.start(site)?;
    wait::until("a new certificate", SOON, async || {
        ensure!(seconds_left(&certificate)? > 300 * 86_400, "it is the old one");
        Ok(())
    })
    .await?;
    wait::until("the node back", SOON, async || {
        is_over(&edge, "quic").await?;
        ready(&scene.node(NODE).await?)
    })
    .await
}

/// Of the certificate's validity.
fn seconds_left(certificate: &Path) -> Result<i64> {
    let certificate =
        tls::read_certificates(certificate)?.into_iter().next().context("it is no certificate")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(tls::validity(&certificate)?.1 - i64::try_from(now)?)
}
