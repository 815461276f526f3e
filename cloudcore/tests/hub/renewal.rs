//! Certificates are renewed for the machine that has them, also after they have expired.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Bench, ClusterOptions, wait};
use proto::message::{Answer, Question, ReportKind};
use runtime::tls::{self, CertificateAuthority};
use rustls_pki_types::CertificateDer;

use crate::{
    cloud::{Cloud, join, node_report, now, secret},
    edge::{Edge, Identity, LONG, Stored},
};

pub(crate) async fn renewal(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let identity = join(&client, cloud.address, "edge-1").await?;
    let mut edge = Edge::connect(cloud.address, &identity, Stored::default()).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());

    // For the session's node and its key, and for nothing else.
    let csr = tls::node_csr_for("edge-1", &identity.key)?;
    let renewed = CertificateDer::from(renew(&mut edge, csr.clone()).await??);
    ensure!(tls::node_of(&renewed).as_deref() == Some("edge-1"));
    for (csr, why) in [
        (tls::node_csr_for("edge-2", &identity.key)?, "subject"),
        (tls::node_csr("edge-1")?.1, "another key"),
        (b"garbage".to_vec(), "malformed"),
    ] {
        let refused = renew(&mut edge, csr).await?.err().context("it was signed")?.to_string();
        ensure!(refused.contains(why), "{refused}");
    }
    drop(edge);
    let renewed = Identity::new("edge-1", identity.ca.clone(), identity.key.clone(), renewed.to_vec())?;
    let mut edge = Edge::connect(cloud.address, &renewed, Stored::default()).await?;
    edge.until("a sync with the new certificate", |edge| edge.synced).await?;

    // A machine that was away for too long gets in, as long as the Node remembers it, and renews.
    let ca = secret(&client, "casecret").await?;
    let ca = CertificateAuthority::from_der(ca["cadata"].clone(), ca["cakeydata"].clone())?;
    let expired = async |node: &str, key: &[u8]| -> Result<Identity> {
        let certificate = ca.sign_node_csr(&tls::node_csr_for(node, key)?, node, Duration::ZERO)?;
        let (_, ends) = tls::validity(&CertificateDer::from(certificate.as_slice()))?;
        wait::until("its end", LONG, async || {
            ensure!(now() > u64::try_from(ends)?, "it is valid");
            Ok(())
        })
        .await?;
        Identity::new(node, ca.certificate().clone(), key.to_vec(), certificate)
    };
    let late = expired("edge-1", &identity.key).await?;
    let mut edge = Edge::connect(cloud.address, &late, Stored::default()).await?;
    let certificate = CertificateDer::from(renew(&mut edge, csr).await??);
    ensure!(tls::validity(&certificate)?.1 > 0);
    for (node, key) in [("edge-1", &tls::node_csr("edge-1")?.0), ("edge-9", &identity.key)] {
        let late = expired(node, key).await?;
        let refused = Edge::refusal(cloud.address, &late).await?;
        ensure!(refused.contains("403"), "{refused}");
    }
    cloud.stop().await
}

/// The certificate, or why there is none.
pub(crate) async fn renew(edge: &mut Edge, csr: Vec<u8>) -> Result<Result<Vec<u8>>> {
    let id = edge.ask(Question::Certificate(csr.into()));
    edge.until("answer", |edge| edge.answers.iter().any(|(of, _)| *of == id)).await?;
    let (_, answer) = edge.answers.iter().find(|(of, _)| *of == id).context("it was there")?;
    match answer {
        Answer::Certificate(certificate) => Ok(Ok(certificate.to_vec())),
        Answer::Refused(why) => Ok(Err(anyhow::anyhow!("{why}"))),
        Answer::ServiceAccountToken(_) | Answer::Authorities(_) => bail!("an answer to another question"),
    }
}
