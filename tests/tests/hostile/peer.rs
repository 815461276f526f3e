//! A peer that holds a node's certificate and says what the test has it say, frame by frame.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use harness::{Bench, Cluster, product::Cloud};
use hollow::Transport;
use proto::{
    Lane, codec,
    message::{Body, Goodbye, Hello, PROTOCOL, Ping, Pong},
};
use runtime::{
    link::{
        FrameReceiver, Link, LinkError,
        queue::{Frames, queue},
        quic, websocket,
    },
    tls::{self, Authorities},
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{task::JoinSet, time};

use crate::SOON;

pub(crate) const TRANSPORTS: [Transport; 2] = [Transport::Quic, Transport::Websocket];

/// What all scenarios have.
pub(crate) struct Stage<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) cluster: &'a Cluster,
    pub(crate) cloud: &'a Cloud,
    pub(crate) authorities: Authorities,
}

impl Stage<'_> {
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.cloud.endpoint_at(Ipv4Addr::LOCALHOST).parse()?)
    }

    /// TLS with a certificate of this node.
    pub(crate) fn identity(&self, node: &str) -> Result<ClientConfig> {
        let (key, csr) = tls::node_csr(node)?;
        let chain = vec![CertificateDer::from(self.authorities.issuer().sign_node_csr(
            &csr,
            node,
            Duration::from_hours(1),
        )?)];
        Ok(tls::client_config(
            &[self.authorities.issuer().certificate().clone()],
            chain,
            tls::pkcs8(key),
            Arc::default(),
        )?)
    }

    /// The value of a metric of cloudcore, with its labels; 0 for what has not been counted yet.
    pub(crate) async fn metric(&self, name: &str) -> Result<u64> {
        let page = self.cloud.admin("/metrics").await?.body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("0");
        value.trim().parse().with_context(|| format!("{name} is {value:?}"))
    }
}

impl Stage<'_> {
    /// cloudcore's resident memory, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.cloud.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Files that cloudcore has open, sockets among them.
    pub(crate) fn files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.cloud.pid()?))?.count())
    }

    /// The nodes that are connected.
    pub(crate) async fn sessions(&self) -> Result<BTreeSet<String>> {
        let page: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&self.cloud.admin("/sessions").await?.body)?;
        Ok(page.into_keys().collect())
    }
}

pub(crate) fn hello(node: &str, heartbeat: Duration) -> Result<Hello> {
    Ok(Hello {
        protocol_min: PROTOCOL.0,
        protocol_max: PROTOCOL.1,
        software: "edgecore of a test".to_owned(),
        node: node.to_owned(),
        heartbeat_ms: heartbeat.as_millis().try_into()?,
        ..Hello::default()
    })
}

pub(crate) struct Peer {
    pub(crate) frames: Frames,
    pub(crate) receiver: Box<dyn FrameReceiver>,
    _writer: JoinSet<Result<(), LinkError>>,
}

impl Peer {
    /// Connects to `address`, where cloudcore is or somebody in between.
    pub(crate) async fn connect(
        transport: Transport,
        address: SocketAddr,
        identity: &ClientConfig,
    ) -> Result<Self> {
        let (name, text) = (ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()), address.to_string());
        let link = match transport {
            Transport::Quic => quic::connect(address, &text, &name, identity).await,
            _ => websocket::connect(&text, name, Arc::new(identity.clone())).await,
        };
        let Link { sender, receiver, .. } = link?;
        let (frames, queue) = queue();
        let mut writer = JoinSet::new();
        writer.spawn(sender.run(queue, SOON));
        Ok(Self { frames, receiver, _writer: writer })
    }

    /// Connects and is welcomed.
    pub(crate) async fn greeted(stage: &Stage<'_>, transport: Transport, node: &str) -> Result<Self> {
        let mut peer = Self::connect(transport, stage.address()?, &stage.identity(node)?).await?;
        peer.say(Body::Hello(hello(node, Duration::from_mins(5))?))?;
        match peer.hear().await? {
            Some(Body::Welcome(_)) => Ok(peer),
            other => bail!("no welcome: {other:?}"),
        }
    }

    pub(crate) fn say(&self, body: Body) -> Result<()> {
        self.frames.push(body.lane(), codec::encode(body)?);
        Ok(())
    }

    /// Any bytes as a frame.
    pub(crate) fn say_bytes(&self, lane: Lane, frame: &[u8]) {
        self.frames.push(lane, frame.to_vec().into());
    }

    /// What is said next; whether it is still here is answered.
    pub(crate) async fn hear(&mut self) -> Result<Option<Body>> {
        loop {
            let frame =
                time::timeout(SOON, self.receiver.receive()).await.context("cloudcore says nothing")??;
            match frame.map(codec::decode).transpose()? {
                Some(Body::Ping(Ping { number })) => self.say(Body::Pong(Pong { number }))?,
                body => return Ok(body),
            }
        }
    }

    /// The first that `wanted` takes, of all that is said.
    pub(crate) async fn until<T>(&mut self, wanted: impl Fn(Body) -> Option<T>) -> Result<T> {
        loop {
            let body = self.hear().await?.context("cloudcore closed the link")?;
            if let Some(found) = wanted(body) {
                return Ok(found);
            }
        }
    }

    /// The cloud's last word.
    pub(crate) async fn goodbye(&mut self) -> Result<Goodbye> {
        self.until(|body| match body {
            Body::Goodbye(goodbye) => Some(goodbye),
            _ => None,
        })
        .await
    }
}
