//! What a node, or somebody who would like to be one, must not get away with.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{Bench, ClusterOptions};
use proto::{
    codec,
    limits::MAX_FRAME,
    message::{Ack, Answer, Body, GoodbyeReason, Question, ReportKind, TokenQuestion},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType,
    ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth},
    IsCa, KeyPair,
};
use runtime::{
    tls::{self, CertificateAuthority},
    token::{SigningKeys, Token},
};
use serde_json::json;

use crate::{
    cloud::{Cloud, get, join, node_report, now, pod, prepare, request, running, secret, token},
    edge::{Edge, Identity, LONG, Stored, post_csr},
};

/// A request in the name of edge-2, with something else in it.
fn csr_with(organization: &str, change: impl Fn(&mut CertificateParams)) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, "system:node:edge-2");
    params.extended_key_usages = vec![ClientAuth];
    change(&mut params);
    Ok(params.serialize_request(&KeyPair::generate()?)?.der().to_vec())
}

pub(crate) async fn confinement(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let good = token(&client).await?;
    let mine = join(&client, cloud.address, "edge-1").await?;

    // Tokens.
    let keys = SigningKeys::from_secret(&secret(&client, "tokensecret").await?)?;
    let ca = secret(&client, "casecret").await?;
    let (_, csr) = tls::node_csr("edge-2")?;
    let expired = Token::parse(&keys.sign(&ca["cadata"], Duration::from_secs(1), now() - 100)?)?;
    let (code, body, _) = post_csr(cloud.address, &expired, "edge-2", csr.clone()).await?;
    ensure!(code == 401 && String::from_utf8_lossy(&body).contains("expired"), "{code} {body:?}");
    let foreign = Token::parse(&SigningKeys::generate(now())?.sign(&ca["cadata"], LONG, now())?)?;
    let (code, body, _) = post_csr(cloud.address, &foreign, "edge-2", csr.clone()).await?;
    ensure!(code == 401 && String::from_utf8_lossy(&body).contains("not issued"), "{code} {body:?}");
    let elsewhere = Token { ca_hash: [7; 32], ..good.clone() };
    let error = post_csr(cloud.address, &elsewhere, "edge-2", csr.clone()).await.err().context("pin")?;
    ensure!(format!("{error:#}").contains("does not match the pin in the token"), "{error:#}");
    // Signing requests.
    for (node, csr) in [
        ("edge-3", csr.clone()),
        ("edge-2", b"garbage".to_vec()),
        ("../x", csr.clone()),
        ("edge-2", vec![0; 70_000]),
        ("edge-2", csr_with("system:nodes", |csr| csr.extended_key_usages = vec![ServerAuth])?),
        ("edge-2", csr_with("system:nodes", |csr| csr.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))?),
        ("edge-2", csr_with("system:masters", |_| {})?),
    ] {
        let (code, body, _) = post_csr(cloud.address, &good, node, csr).await?;
        ensure!(code == 400, "{node}: {code} {body:?}");
    }

    // The same request without anything unusual is granted.
    let (code, body, ca) =
        post_csr(cloud.address, &good, "edge-2", csr_with("system:nodes", |_| {})?).await?;
    ensure!(code == 200, "{code} {body:?}");

    // No link without a certificate, nor with one that another CA signed.
    let (nobody, _) = tls::pinned_client_config(good.ca_hash)?;
    let (key, csr) = tls::node_csr("edge-1")?;
    let signed = CertificateAuthority::generate()?.sign_node_csr(&csr, "edge-1", LONG)?;
    let foreign = Identity::new("edge-1", ca, key, signed)?;
    let nobody = Identity { tls: Arc::new(nobody), ..foreign.clone() };
    for (stranger, told) in
        [(nobody, "no client certificate"), (foreign, "does not trust the CA of this node's certificate")]
    {
        let error = Edge::refusal(cloud.address, &stranger).await?;
        ensure!(error.contains(told), "{error}");
    }

    // A certificate of another node.
    let mut edge = Edge::connect_as(cloud.address, &mine, "edge-2", Stored::default()).await?;
    let refused = edge.until("refusal", |edge| edge.goodbye == Some(GoodbyeReason::Forbidden)).await;
    refused?;
    // Garbage, truncated and oversized frames end the session, and cloudcore lives on.
    let whole = codec::encode(Body::Ack(Ack { seq: 1 << 40 }))?;
    let truncated = whole[..whole.len() - 1].to_vec();
    for frame in [vec![0xff; 100], vec![1, 2, 3], Vec::new(), truncated, vec![0; MAX_FRAME + 1]] {
        let mut edge = Edge::connect(cloud.address, &mine, Stored::default()).await?;
        edge.until("first sync", |edge| edge.synced).await?;
        edge.send_raw(frame.into());
        let ended = edge.until("goodbye", |edge| edge.goodbye == Some(GoodbyeReason::Violation)).await;
        // Or the link is gone at once, which is no answer within the time either.
        let why = ended.err().map(|error| format!("{error:#}")).unwrap_or_default();
        let told = edge.goodbye.is_none_or(|reason| reason == GoodbyeReason::Violation);
        ensure!(told && !why.contains("not within"), "{:?}: {why}", edge.goodbye);
    }

    // Another node's objects.
    let theirs =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("theirs", "edge-2"))).await?;
    let uid = &theirs["metadata"]["uid"];
    let mut edge = Edge::connect(cloud.address, &mine, Stored::default()).await?;
    edge.until("first sync", |edge| edge.synced).await?;
    let event = |kind: &str, namespace: &str, name: &str| json!({"metadata": {"name": "e.1"}, "involvedObject": {"kind": kind, "namespace": namespace, "name": name, "uid": uid}, "reason": "R", "type": "Normal"});
    for (kind, key, payload) in [
        (ReportKind::NodeStatus, "Node//edge-2", node_report("edge-2")),
        (ReportKind::NodeStatus, "Node//edge-1", node_report("edge-2")),
        (ReportKind::PodStatus, "Pod/default/theirs", running(uid)),
        (ReportKind::PodStatus, "Pod/default/theirs%2fstatus", running(uid)),
        (ReportKind::PodTerminated, "Pod/default/theirs", json!({"uid": uid})),
        (ReportKind::Event, "Pod/default/theirs", event("Pod", "default", "theirs")),
        (ReportKind::Event, "Node//edge-2", event("Node", "", "edge-2")),
        (ReportKind::Event, "Node//edge-1", event("Node", "", "edge-2")),
        (ReportKind::Event, "Secret/default/x", event("Secret", "default", "x")),
    ] {
        let id = edge.report(kind, key, &payload);
        ensure!(!edge.ack(id).await?.is_empty(), "{kind:?} {key} was taken");
    }
    let id = edge.ask(Question::ServiceAccountToken(TokenQuestion {
        namespace: "default".to_owned(),
        service_account: "default".to_owned(),
        pod_name: "theirs".to_owned(),
        pod_uid: uid.as_str().unwrap_or_default().to_owned(),
        audiences: Vec::new(),
        expiration_seconds: 3600,
    }));
    edge.until("answer", |edge| edge.answers.iter().any(|(of, _)| *of == id)).await?;
    ensure!(matches!(edge.answers[0].1, Answer::Refused(_)));
    ensure!(edge.store.objects.keys().all(|key| key.kind() == "Node"), "{:?}", edge.store.objects.keys());
    let theirs = get(&client, "/api/v1/namespaces/default/pods/theirs").await?;
    ensure!(theirs["status"]["phase"] == "Pending");

    // A newer session takes over, and the older one's end does not take it away.
    let mut newer = Edge::connect(cloud.address, &mine, Stored::default()).await?;
    newer.until("first sync", |edge| edge.synced).await?;
    edge.until("goodbye", |edge| edge.goodbye == Some(GoodbyeReason::Superseded)).await?;
    drop(edge);
    request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("mine", "edge-1"))).await?;
    newer.until("the pod", |edge| edge.holds("Pod/default/mine")).await?;
    cloud.stop().await
}
