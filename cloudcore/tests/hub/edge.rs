//! An edge for tests: the real session, link and enrollment, with a map for a store.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use proto::{
    Digest, Lane, Object, Report, ResourceKey, Seen, codec,
    message::{Answer, Body, GoodbyeReason, Question, ReportAck, ReportKind},
    session::edge::{Desired, EdgeEvent, EdgeSession},
};
use runtime::{
    link::{
        FrameReceiver, Link, LinkError, Progress,
        queue::{Frames, queue},
        quic, websocket,
    },
    tls,
    token::Token,
};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

pub(crate) const LONG: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport {
    Quic,
    WebSocket,
}

tokio::task_local! {
    /// What carries the links of the scenario.
    pub(crate) static TRANSPORT: Transport;
}

/// What a joined node has on its disk.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) certificate: CertificateDer<'static>,
    /// PKCS#8, DER.
    pub(crate) key: Vec<u8>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

/// `POST /edge.crt`; the answer is status and body.
pub(crate) async fn post_csr(
    address: SocketAddr,
    token: &Token,
    node: &str,
    csr: Vec<u8>,
) -> Result<(u16, Bytes, CertificateDer<'static>)> {
    let (config, ca) = tls::pinned_client_config(token.ca_hash)?;
    let request = enrollment("POST", token, node).body(Full::new(Bytes::from(csr)))?;
    let (code, body) = exchange(address, Arc::new(config), request).await?;
    Ok((code, body, ca.get().context("the CA was seen")?))
}

/// `GET /edge.crt`: whether the token lets the node join.
pub(crate) async fn check_token(address: SocketAddr, token: &Token, node: &str) -> Result<(u16, String)> {
    let (config, _) = tls::pinned_client_config(token.ca_hash)?;
    let request = enrollment("GET", token, node).body(Full::default())?;
    let (code, body) = exchange(address, Arc::new(config), request).await?;
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

/// `DELETE /edge.crt`: the node leaves.
pub(crate) async fn release(address: SocketAddr, identity: &Identity) -> Result<u16> {
    let request = http::Request::delete("/edge.crt").header("Host", "cloudcore").body(Full::default())?;
    Ok(exchange(address, Arc::clone(&identity.tls), request).await?.0)
}

fn enrollment(method: &str, token: &Token, node: &str) -> http::request::Builder {
    http::Request::builder()
        .method(method)
        .uri("/edge.crt")
        .header("Host", "cloudcore")
        .header("Authorization", format!("Bearer {}", token.bearer))
        .header("NodeName", node)
}

async fn exchange(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    request: http::Request<Full<Bytes>>,
) -> Result<(u16, Bytes)> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(config).connect(name, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let code = answer.status().as_u16();
        Ok::<_, anyhow::Error>((code, answer.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

pub(crate) async fn enroll(address: SocketAddr, token: &Token, node: &str) -> Result<Identity> {
    let (key, csr) = tls::node_csr(node)?;
    let (code, body, ca) = post_csr(address, token, node, csr).await?;
    if code != 200 {
        bail!("enrollment refused: {code} {}", String::from_utf8_lossy(&body));
    }
    Identity::new(node, ca, key, body.to_vec())
}

impl Identity {
    pub(crate) fn new(
        node: &str,
        ca: CertificateDer<'static>,
        key: Vec<u8>,
        certificate: Vec<u8>,
    ) -> Result<Self> {
        let (roots, certificate) = ([ca.clone()], CertificateDer::from(certificate));
        let chain = vec![certificate.clone()];
        let tls = tls::client_config(&roots, chain, tls::pkcs8(key.clone()), Arc::default())?;
        Ok(Self { node: node.to_owned(), ca, certificate, key, tls: Arc::new(tls) })
    }
}

pub(crate) struct Edge {
    frames: Frames,
    writer: JoinSet<Result<(), LinkError>>,
    receiver: Box<dyn FrameReceiver>,
    progress: Progress,
    session: EdgeSession,
    pub(crate) store: Stored,
    pub(crate) synced: bool,
    pub(crate) acks: Vec<ReportAck>,
    pub(crate) answers: Vec<(u64, Answer)>,
    pub(crate) goodbye: Option<GoodbyeReason>,
    pub(crate) changes: usize,
    next_report: u64,
}

/// What an edge holds.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) objects: BTreeMap<ResourceKey, Object>,
    seen: Seen,
}

impl Edge {
    /// Connects with what an earlier connection has stored.
    pub(crate) async fn connect(address: SocketAddr, identity: &Identity, store: Stored) -> Result<Self> {
        Self::connect_as(address, identity, &identity.node, store).await
    }

    /// Connects, and says to be `node`.
    pub(crate) async fn connect_as(
        address: SocketAddr,
        identity: &Identity,
        node: &str,
        store: Stored,
    ) -> Result<Self> {
        Self::connect_with(address, identity, node, store, HEARTBEAT).await
    }

    /// Connects, and is not called silent before two of these heartbeats have passed.
    pub(crate) async fn connect_beating(
        address: SocketAddr,
        identity: &Identity,
        store: Stored,
        heartbeat: Duration,
    ) -> Result<Self> {
        Self::connect_with(address, identity, &identity.node, store, heartbeat).await
    }

    async fn connect_with(
        address: SocketAddr,
        identity: &Identity,
        node: &str,
        store: Stored,
        heartbeat: Duration,
    ) -> Result<Self> {
        let name = ServerName::IpAddress(address.ip().into());
        let text = address.to_string();
        let link = match TRANSPORT.get() {
            Transport::Quic => quic::connect(address, &text, &name, &identity.tls).await?,
            Transport::WebSocket => websocket::connect(&text, name, Arc::clone(&identity.tls)).await?,
        };
        let digest: Digest = store.objects.iter().map(|(key, object)| (key, object.version.hash)).collect();
        let held = (digest, store.seen.clone());
        let session = EdgeSession::new(node, "test", held, heartbeat, Instant::now().into_std());
        let Link { sender, receiver, progress, .. } = link;
        let (frames, queue) = queue();
        let mut writer = JoinSet::new();
        writer.spawn(sender.run(queue, LONG));
        Ok(Self {
            frames,
            writer,
            receiver,
            progress,
            session,
            store,
            synced: false,
            acks: Vec::new(),
            answers: Vec::new(),
            goodbye: None,
            changes: 0,
            next_report: 1,
        })
    }

    /// Why nobody with this identity is let in.
    pub(crate) async fn refusal(address: SocketAddr, identity: &Identity) -> Result<String> {
        let attempt = async {
            let mut edge = Self::connect(address, identity, Stored::default()).await?;
            edge.until("a sync", |edge| edge.synced).await
        };
        Ok(format!("{:#}", attempt.await.err().context("it was let in")?))
    }

    pub(crate) fn send_raw(&self, frame: Bytes) {
        self.frames.push(Lane::Control, frame);
    }

    pub(crate) fn report(&mut self, kind: ReportKind, key: &str, payload: &Value) -> u64 {
        let id = self.next_report;
        self.next_report += 1;
        let payload = payload.to_string().into();
        self.session.report(vec![Report { id, kind: kind.into(), key: key.to_owned(), payload }]);
        id
    }

    pub(crate) fn ask(&mut self, question: Question) -> u64 {
        self.session.ask(question)
    }

    /// Runs until `done`, the cloud's goodbye or the end of the link.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + LONG;
        loop {
            self.flush()?;
            if done(self) {
                return Ok(());
            }
            if let Some(reason) = self.goodbye {
                bail!("{what}: the cloud said goodbye: {reason:?}");
            }
            if Instant::now() > deadline {
                bail!("{what}: not within {LONG:?}; store: {:?}", self.store.objects.keys());
            }
            let due = Instant::from_std(self.session.deadline()).min(deadline + HEARTBEAT);
            let wait = due.saturating_duration_since(Instant::now());
            let came = tokio::select! {
                came = timeout(wait, self.receiver.receive()) => came,
                Some(ended) = self.writer.join_next() => {
                    ended?.context(what.to_owned())?;
                    continue;
                }
            };
            match came {
                Ok(Ok(Some(frame))) => {
                    let body: Body = codec::decode(frame)?;
                    let store = &self.store;
                    let held = |key: &ResourceKey| store.objects.get(key).cloned();
                    self.session.handle_frame(body, &held, Instant::now().into_std())?;
                }
                Ok(Ok(None)) => bail!("{what}: the cloud closed the link"),
                Ok(Err(error)) => return Err(error).context(what.to_owned()),
                Err(_) => {
                    self.session.handle_progress(self.progress.last().into_std());
                    self.session.handle_deadline(Instant::now().into_std())?;
                }
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        loop {
            while let Some(event) = self.session.poll_event() {
                self.handle(event);
            }
            let Some(body) = self.session.poll_frame() else { return Ok(()) };
            self.frames.push(body.lane(), codec::encode(body)?);
        }
    }

    fn handle(&mut self, event: EdgeEvent) {
        match event {
            EdgeEvent::Connected { .. } => {}
            EdgeEvent::InventoryWanted => {
                let entries: Vec<_> =
                    self.store.objects.iter().map(|(key, object)| (key.clone(), object.version)).collect();
                self.session.inventory(&entries);
            }
            EdgeEvent::Apply { seq, changes, seen } => {
                self.store.seen = seen;
                self.changes += changes.len();
                for change in changes {
                    match change {
                        Desired::Put(object) => drop(self.store.objects.insert(object.key.clone(), object)),
                        Desired::Delete(key) => drop(self.store.objects.remove(&key)),
                    }
                }
                self.session.committed(seq);
            }
            EdgeEvent::Synced => self.synced = true,
            EdgeEvent::ReportsDone(acks) => self.acks.extend(acks),
            EdgeEvent::Answered { id, answer } => self.answers.push((id, answer)),
            EdgeEvent::Goodbye { reason, .. } => self.goodbye = Some(reason),
        }
    }

    /// The stored object as JSON.
    pub(crate) fn json(&self, key: &str) -> Option<Value> {
        let object = self.store.objects.get(&key.parse::<ResourceKey>().ok()?)?;
        serde_json::from_slice(&object.bytes).ok()
    }

    pub(crate) fn holds(&self, key: &str) -> bool {
        self.json(key).is_some()
    }

    /// What the cloud says last to an edge that does not answer any more; `None` if it just closes the link.
    pub(crate) async fn last_word(&mut self) -> Result<Option<GoodbyeReason>> {
        loop {
            let came = timeout(LONG, self.receiver.receive()).await.context("the session goes on")?;
            match came.ok().flatten().map(codec::decode).transpose()? {
                Some(Body::Goodbye(goodbye)) => return Ok(Some(goodbye.reason())),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Keeps the session alive for some heartbeats.
    pub(crate) async fn idle_for_heartbeats(&mut self, count: u32) -> Result<()> {
        self.idle(HEARTBEAT * count).await
    }

    pub(crate) async fn idle(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.until("idling", |_| Instant::now() >= end).await
    }

    /// Waits for the ack of a report; `Ok(reason)` is empty if it was taken.
    pub(crate) async fn ack(&mut self, id: u64) -> Result<String> {
        self.until("ack of a report", |edge| edge.acks.iter().any(|ack| ack.id == id)).await?;
        Ok(self.acks.iter().find(|ack| ack.id == id).map(|ack| ack.refused.clone()).unwrap_or_default())
    }
}
