//! A CA takes the place of another, under sessions that go on.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use harness::{Bench, ClusterOptions, wait};
use kube::Client;
use proto::message::{Answer, AuthoritiesHeld, Question, ReportKind};
use runtime::tls::{self, Authorities, authorities::SECRET_KEYS};
use rustls::HandshakeKind;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    cloud::{Cloud, get, join, node_report, request, secret, token},
    edge::{Edge, Identity, LONG, Stored, enroll},
    renewal::renew,
};

const NODE: &str = "edge-1";
const SECRET: &str = "/api/v1/namespaces/kubeedge/secrets/casecret";

pub(crate) async fn rotation(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let address = cloud.address;
    let identity = join(&client, address, NODE).await?;
    let absent = join(&client, address, "edge-absent").await?;
    let early = token(&client).await?;
    let steady = Authorities::from_secret(&secret(&client, "casecret").await?)?;
    let old = steady.ids()[0];
    let mut edge = Edge::connect(address, &identity, Stored::default()).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report(NODE));
    ensure!(edge.ack(id).await?.is_empty());
    let question = ask(&mut edge, &[old], old);
    edge.idle_for_heartbeats(1).await?;
    ensure!(edge.answers.is_empty() && noted(&client).await?.is_null(), "there is nothing to be told");

    let prepared = steady.prepared()?;
    write(&client, &prepared).await?;
    ensure!(answer(&mut edge, question).await? == prepared.trusted());
    let question = ask(&mut edge, prepared.ids(), old);
    let wanted = json!({"trusted": texts(&prepared), "issuer": format!("{old:016x}")});
    until_noted(&client, &mut edge, &wanted).await?;
    // A question is taken back by the next one.
    let again = ask(&mut edge, prepared.ids(), old);
    let refused = answer(&mut edge, question).await.err().context("it was answered")?.to_string();
    ensure!(refused.contains("asked again"), "{refused}");
    enroll(address, &early, "edge-prepared").await?;

    let issuing = prepared.issuing()?;
    let [new_ca, old_ca] = &issuing.trusted()[..] else { unreachable!("there are two") };
    write(&client, &issuing).await?;
    ensure!(answer(&mut edge, again).await? == issuing.trusted());
    let csr = tls::node_csr_for(NODE, &identity.key)?;
    let renewed = CertificateDer::from(renew(&mut edge, csr).await??);
    ensure!(tls::is_issued_by(&renewed, new_ca)?, "the CA before has issued it");
    ask(&mut edge, issuing.ids(), issuing.ids()[0]);
    let wanted = json!({"trusted": texts(&issuing), "issuer": texts(&issuing)[0]});
    until_noted(&client, &mut edge, &wanted).await?;
    let node = edge.json("Node//edge-1").context("the edge has its Node")?;
    ensure!(!node.to_string().contains("skerry.io/authorities"), "it was sent to the edge: {node}");

    // A Secret that is no good changes nothing.
    let cross = json!({"data": {"crosscadata": BASE64_STANDARD.encode("garbage")}});
    request(&client, "PATCH", SECRET, Some(&cross)).await?;
    edge.idle_for_heartbeats(1).await?;
    comes_in(address, &absent).await?;
    write(&client, &issuing).await?;

    // Whoever knows the CA before alone gets in, also at a cloudcore that has just started; so does a token that names it.
    let other = Cloud::start(cluster.kubeconfig()).await?;
    let follower = Identity::new(NODE, new_ca.clone(), identity.key.clone(), renewed.to_vec())?;
    for address in [address, other.address] {
        for early in [&early, &token(&client).await?] {
            let late =
                wait::until("enrollment", LONG, async || enroll(address, early, "edge-late").await).await?;
            comes_in(address, &late).await?;
        }
        comes_in(address, &absent).await?;
    }
    drop(edge);
    comes_in(other.address, &follower).await?;
    // TLS sessions are gone on with at either cloudcore.
    let dialing = with_ca(&absent, &issuing.trusted()[0])?;
    ensure!(!resumes(address, &dialing).await? && resumes(other.address, &dialing).await?);
    other.stop().await?;

    let mut edge = Edge::connect(address, &follower, Stored::default()).await?;
    let question = ask(&mut edge, issuing.ids(), issuing.ids()[0]);
    let (old_ca, new_ca) = (old_ca.clone(), new_ca.clone());
    let dropped = issuing.dropped()?;
    write(&client, &dropped).await?;
    ensure!(answer(&mut edge, question).await? == dropped.trusted());
    let refused = Edge::refusal(address, &with_ca(&absent, &new_ca)?).await?;
    ensure!(refused.contains("does not trust the CA of this node's certificate"), "{refused}");
    let refused = Edge::refusal(address, &with_ca(&absent, &old_ca)?).await?;
    ensure!(refused.contains("a certificate of a CA that this node does not trust"), "{refused}");
    let refused = format!("{:#}", enroll(address, &early, "edge-late").await.err().context("it was let in")?);
    ensure!(refused.contains("rotated since the token was made"), "{refused}");
    // Nor by an earlier TLS session, in which no certificate is verified.
    ensure!(resumes(address, &dialing).await.is_err(), "it was let in");
    // The session that there is goes on.
    edge.idle_for_heartbeats(1).await?;
    comes_in(address, &follower).await?;
    taken_back(&client, address, dropped, &follower).await?;
    cloud.stop().await
}

/// A node that has joined since knows the new CA alone; `before` has heard of nothing.
async fn taken_back(
    client: &Client,
    address: SocketAddr,
    steady: Authorities,
    before: &Identity,
) -> Result<()> {
    let first = steady.trusted().remove(0);
    let issuing = steady.prepared()?.issuing()?;
    let mut edge = Edge::connect(address, before, Stored::default()).await?;
    let first_id = tls::authority_id(&first);
    let question = ask(&mut edge, &[first_id], first_id);
    write(client, &issuing).await?;
    ensure!(answer(&mut edge, question).await? == issuing.trusted());
    drop(edge);
    let newcomer = enroll(address, &token(client).await?, "edge-newcomer").await?;
    ensure!(newcomer.ca == *issuing.issuer().certificate(), "its token names another CA");
    let mut edge = Edge::connect(address, &newcomer, Stored::default()).await?;
    let question = ask(&mut edge, issuing.ids(), issuing.ids()[0]);
    let returning = issuing.aborted()?;
    write(client, &returning).await?;
    ensure!(answer(&mut edge, question).await? == returning.trusted());
    comes_in(address, before).await?;
    let csr = tls::node_csr_for(&newcomer.node, &newcomer.key)?;
    let renewed = CertificateDer::from(renew(&mut edge, csr).await??);
    ensure!(tls::is_issued_by(&renewed, &first)?, "the CA that is given up has issued it");
    drop(edge);
    comes_in(address, &newcomer).await?;
    let gone_back = Identity::new(&newcomer.node, first, newcomer.key.clone(), renewed.to_vec())?;
    let mut edge = Edge::connect(address, &gone_back, Stored::default()).await?;
    let question = ask(&mut edge, returning.ids(), returning.ids()[0]);
    let steady = returning.dropped()?;
    write(client, &steady).await?;
    ensure!(answer(&mut edge, question).await? == steady.trusted());
    drop(edge);
    for identity in [before, &gone_back] {
        comes_in(address, identity).await?;
    }
    ensure!(comes_in(address, &newcomer).await.is_err(), "it was let in");
    Ok(())
}

/// What `keadm certs rotate-ca` writes.
async fn write(client: &Client, authorities: &Authorities) -> Result<()> {
    let data = authorities.to_secret();
    let encode = |key| (key, data.get(key).map(|value| BASE64_STANDARD.encode(value)));
    let entries: BTreeMap<&str, Option<String>> = SECRET_KEYS.into_iter().map(encode).collect();
    request(client, "PATCH", SECRET, Some(&json!({"data": entries}))).await.map(drop)
}

fn ask(edge: &mut Edge, trusted: &[u64], issuer: u64) -> u64 {
    edge.ask(Question::Authorities(AuthoritiesHeld { trusted: trusted.to_vec(), issuer }))
}

async fn answer(edge: &mut Edge, id: u64) -> Result<Vec<CertificateDer<'static>>> {
    edge.until("other CAs", |edge| edge.answers.iter().any(|(of, _)| *of == id)).await?;
    let (_, answer) = edge.answers.iter().find(|(of, _)| *of == id).context("it was there")?;
    match answer {
        Answer::Authorities(told) => {
            Ok(told.certificates.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect())
        }
        other => anyhow::bail!("{other:?}"),
    }
}

fn texts(authorities: &Authorities) -> Vec<String> {
    authorities.ids().iter().map(|id| format!("{id:016x}")).collect()
}

async fn noted(client: &Client) -> Result<Value> {
    let node = get(client, &format!("/api/v1/nodes/{NODE}")).await?;
    let text = node["metadata"]["annotations"]["skerry.io/authorities"].as_str();
    Ok(text.map(serde_json::from_str).transpose()?.unwrap_or_default())
}

/// The edge goes on with its heartbeats meanwhile.
async fn until_noted(client: &Client, edge: &mut Edge, wanted: &Value) -> Result<()> {
    let noted = wait::until("the node's CAs noted", LONG, async || {
        let noted = noted(client).await?;
        ensure!(noted == *wanted, "{noted} instead of {wanted}");
        Ok(())
    });
    tokio::select! {
        noted = noted => noted,
        ended = edge.until("nothing", |_| false) => ended,
    }
}

async fn comes_in(address: SocketAddr, identity: &Identity) -> Result<()> {
    let mut edge = Edge::connect(address, identity, Stored::default()).await?;
    edge.until("a sync", |edge| edge.synced).await
}

/// Whether a TLS session with cloudcore goes on with an earlier one.
async fn resumes(address: SocketAddr, identity: &Identity) -> Result<bool> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = TlsConnector::from(Arc::clone(&identity.tls)).connect(name, tcp).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: cloudcore\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    // The ticket for the next session comes before the answer.
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed))
}

/// The same machine, with trust in another CA.
fn with_ca(identity: &Identity, ca: &CertificateDer<'static>) -> Result<Identity> {
    let certificate = identity.certificate.to_vec();
    Identity::new(&identity.node, ca.clone(), identity.key.clone(), certificate)
}
