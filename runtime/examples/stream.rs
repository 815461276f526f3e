//! A stream of the link beside raw TLS over TCP, both ends in this process: throughput, memory a stream, and how late heartbeats
//! come meanwhile. Prints JSON; `cargo xtask bench stream` runs it. Each figure in a process of its own: memory that one has
//! freed would be used again unseen by the next.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use proto::Lane;
use quinn::{
    TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use runtime::{
    link::{
        Link, Watched, prepare,
        queue::{Frames, queue},
        quic,
        streams::{MAX, Stream, Streams},
        websocket,
    },
    tls::{self, CertificateAuthority},
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_tungstenite::tungstenite::Message;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "stream rate tls|bare-quic|bare-quic-1200|bare-websocket|quic|websocket BYTES, \
                     or stream full quic|websocket";
const NODE: &str = "edge-1";
const YEAR: Duration = Duration::from_hours(365 * 24);
const CHUNK: usize = 32 << 10;
const BEAT: Duration = Duration::from_millis(50);
/// For what is filled to come to rest.
const REST: Duration = Duration::from_millis(500);

struct Ends {
    server: rustls::ServerConfig,
    client: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
}

/// An end whose frames are received all the time, as by a session.
struct End {
    frames: Frames,
    streams: Streams,
    received: mpsc::Receiver<Bytes>,
    _tasks: JoinSet<()>,
}

fn main() -> Outcome<()> {
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // As in the daemons, a task among the others, not a thread of its own.
    let measured = runtime.block_on(runtime.spawn(measure()))?;
    print(&measured?);
    Ok(())
}

async fn measure() -> Outcome<serde_json::Value> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["rate", bare @ ("tls" | "bare-quic" | "bare-quic-1200" | "bare-websocket"), bytes] => {
            let (ends, bytes) = (Ends::new()?, bytes.parse()?);
            let rate = match bare {
                "tls" => ends.over_tls(bytes).await?,
                "bare-quic" => ends.over_bare_quic(TransportConfig::default(), bytes).await?,
                "bare-quic-1200" => {
                    let mut transport = TransportConfig::default();
                    transport.mtu_discovery_config(None);
                    ends.over_bare_quic(transport, bytes).await?
                }
                _ => Box::pin(ends.over_bare_websocket(bytes)).await?,
            };
            Ok(serde_json::json!({"bytesPerSecond": rate}))
        }
        ["rate", over, bytes] => over_link(over, bytes.parse()?).await,
        ["full", over] => {
            let (edge, cloud) = Ends::new()?.link(over).await?;
            Ok(serde_json::json!({"kibPerStream": full(&edge, &cloud).await?}))
        }
        _ => Err(USAGE.into()),
    }
}

#[allow(clippy::print_stdout, reason = "this is what was asked for")]
fn print(measured: &serde_json::Value) {
    println!("{measured}");
}

async fn over_link(transport: &str, bytes: usize) -> Outcome<serde_json::Value> {
    let (edge, mut cloud) = Ends::new()?.link(transport).await?;
    let (to, from) = pair(&edge, &cloud).await?;
    let (rate, late) = beside(&edge, &mut cloud, rate(to, from, bytes)).await?;
    Ok(serde_json::json!({"bytesPerSecond": rate, "heartbeatLateMs": late}))
}

/// From the edge to the cloud, as logs go.
async fn rate(
    mut to: impl AsyncWrite + Unpin,
    mut from: impl AsyncRead + Unpin,
    bytes: usize,
) -> Outcome<f64> {
    let begun = Instant::now();
    let write = async {
        let chunk = vec![b'x'; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(CHUNK);
            to.write_all(&chunk[..part]).await?;
            left -= part;
        }
        to.flush().await?;
        to.shutdown().await
    };
    let read = async {
        let mut chunk = vec![0; CHUNK];
        let mut count = 0;
        loop {
            match from.read(&mut chunk).await? {
                0 => return Ok(count),
                more => count += more,
            }
        }
    };
    let ((), count): ((), usize) = tokio::try_join!(write, read)?;
    if count != bytes {
        return Err(format!("{count} of {bytes} bytes came").into());
    }
    #[allow(clippy::cast_precision_loss, reason = "of no account here")]
    let rate = bytes as f64 / begun.elapsed().as_secs_f64();
    Ok(rate)
}

/// `transfer`, and how late the latest heartbeat came that went the same way beside it, in ms.
async fn beside<T>(
    edge: &End,
    cloud: &mut End,
    transfer: impl Future<Output = Outcome<T>>,
) -> Outcome<(T, f64)> {
    let mut late: f64 = 0.0;
    let beats = async {
        let mut ticks = time::interval(BEAT);
        loop {
            ticks.tick().await;
            let sent = Instant::now();
            edge.frames.push(Lane::Control, Bytes::from_static(b"beat"));
            if cloud.received.recv().await.is_none() {
                return;
            }
            late = late.max(sent.elapsed().as_secs_f64() * 1000.0);
        }
    };
    let transferred = tokio::select! {
        transferred = transfer => transferred?,
        () = beats => return Err("the link broke".into()),
    };
    Ok((transferred, late))
}

/// What a stream that is full, and that nobody reads, takes at both ends together.
async fn full(edge: &End, cloud: &End) -> Outcome<f64> {
    let before = private_kib()?;
    let mut held = Vec::new();
    // QUIC gives places back by the eighth.
    let count = MAX - MAX / 4;
    for _ in 0..count {
        let (mut to, from) = pair(edge, cloud).await?;
        let fill = async { while to.write_all(&[b'x'; 4096]).await.is_ok() {} };
        drop(time::timeout(Duration::from_millis(20), fill).await);
        held.push((to, from));
    }
    time::sleep(REST).await;
    Ok((private_kib()? - before) / f64::from(count))
}

fn private_kib() -> Outcome<f64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let values = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(values.sum())
}

async fn pair(edge: &End, cloud: &End) -> Outcome<(Stream, Stream)> {
    let mut ours = cloud.streams.open().await?;
    ours.write_all(b"?").await?;
    let mut theirs = edge.streams.accept().await.ok_or("the link broke")?;
    theirs.read_exact(&mut [0]).await?;
    Ok((theirs, ours))
}

impl Ends {
    fn new() -> Outcome<Self> {
        let ca = CertificateAuthority::generate()?;
        let (chain, key) = ca.issue_server(&["127.0.0.1".to_owned()])?;
        let server = tls::server_config(chain, key, std::slice::from_ref(ca.certificate()), Duration::ZERO)?;
        let (key, csr) = tls::node_csr(NODE)?;
        let chain = vec![CertificateDer::from(ca.sign_node_csr(&csr, NODE, YEAR)?)];
        let client = tls::client_config(&[ca.certificate().clone()], chain, tls::pkcs8(key), Arc::default())?;
        Ok(Self { server, client: Arc::new(client), name: ServerName::try_from("127.0.0.1")? })
    }

    async fn over_tls(&self, bytes: usize) -> Outcome<f64> {
        let (edge, cloud) = self.raw().await?;
        rate(edge, cloud, bytes).await
    }

    /// The edge's end and the cloud's.
    async fn raw(&self) -> Outcome<(client::TlsStream<TcpStream>, server::TlsStream<TcpStream>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cloud = async {
            let (tcp, _) = listener.accept().await?;
            TlsAcceptor::from(Arc::new(self.server.clone())).accept(tcp).await
        };
        let edge = async {
            let tcp = TcpStream::connect(address).await?;
            TlsConnector::from(Arc::clone(&self.client)).connect(self.name.clone(), tcp).await
        };
        Ok(tokio::try_join!(edge, cloud)?)
    }

    /// The library as it comes, with nothing of ours.
    async fn over_bare_quic(&self, transport: TransportConfig, bytes: usize) -> Outcome<f64> {
        let (mut server, mut client) = (self.server.clone(), (*self.client).clone());
        server.alpn_protocols = vec![b"bare".to_vec()];
        client.alpn_protocols.clone_from(&server.alpn_protocols);
        let server = Arc::new(QuicServerConfig::try_from(server)?);
        let client = Arc::new(QuicClientConfig::try_from(client)?);
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let transport = Arc::new(transport);
        let mut config = quinn::ServerConfig::with_crypto(server);
        config.transport_config(Arc::clone(&transport));
        let port = quinn::Endpoint::server(config, any)?;
        let dialer = quinn::Endpoint::client(any)?;
        let mut config = quinn::ClientConfig::new(client);
        config.transport_config(transport);
        let cloud = async { Outcome::Ok(port.accept().await.ok_or("the port is closed")?.await?) };
        let edge =
            async { Outcome::Ok(dialer.connect_with(config, port.local_addr()?, "127.0.0.1")?.await?) };
        let (edge, cloud) = tokio::try_join!(edge, cloud)?;
        let mut to = edge.open_uni().await?;
        to.write_all(b"?").await?;
        let mut from = cloud.accept_uni().await?;
        from.read_exact(&mut [0]).await?;
        rate(to, from, bytes).await
    }

    /// As [`Self::over_bare_quic`].
    async fn over_bare_websocket(&self, bytes: usize) -> Outcome<f64> {
        let (edge, cloud) = self.raw().await?;
        let cloud = tokio_tungstenite::accept_async(cloud);
        let edge = tokio_tungstenite::client_async("wss://127.0.0.1/", edge);
        let ((mut edge, _), mut cloud) = tokio::try_join!(edge, cloud)?;
        let begun = Instant::now();
        let write = async {
            let mut left = bytes;
            while left > 0 {
                let part = left.min(CHUNK);
                edge.send(Message::binary(vec![b'x'; part])).await?;
                left -= part;
            }
            Outcome::Ok(())
        };
        let read = async {
            let mut count = 0;
            while count < bytes {
                count += cloud.next().await.ok_or("the bytes have no end")??.len();
            }
            Ok(())
        };
        tokio::try_join!(write, read)?;
        #[allow(clippy::cast_precision_loss, reason = "of no account here")]
        Ok(bytes as f64 / begun.elapsed().as_secs_f64())
    }

    /// The edge's end and the cloud's, which have greeted each other.
    async fn link(&self, transport: &str) -> Outcome<(End, End)> {
        let (mut edge, mut cloud) =
            if transport == "quic" { self.quic().await? } else { Box::pin(self.websocket()).await? };
        cloud.frames.push(Lane::Control, Bytes::from_static(b"hello"));
        for end in [&mut edge, &mut cloud] {
            end.received.recv().await.ok_or("the link broke")?;
        }
        Ok((edge, cloud))
    }

    async fn quic(&self) -> Outcome<(End, End)> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = quic::listen(socket, quic::server_config(self.server.clone())?, b"secret")?;
        let peer: SocketAddr = port.local_addr()?;
        let cloud = async {
            let connection = port.accept().await.ok_or("the port is closed")?.await?;
            Ok(End::of(quic::accept(connection).await?))
        };
        let edge = async {
            let link = quic::connect(peer, &peer.to_string(), &self.name, &self.client).await?;
            Ok(End::greeting(link))
        };
        tokio::try_join!(edge, cloud)
    }

    async fn websocket(&self) -> Outcome<(End, End)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cloud = async {
            let (tcp, peer) = listener.accept().await?;
            prepare(&tcp)?;
            let stream = TlsAcceptor::from(Arc::new(self.server.clone())).accept(Watched::new(tcp)).await?;
            let progress = stream.get_ref().0.progress();
            let upgraded = tokio_tungstenite::accept_async(stream).await?;
            Ok(End::of(websocket::server(upgraded.into_inner(), peer, progress).await))
        };
        let edge = async {
            let text = address.to_string();
            Ok(End::greeting(websocket::connect(&text, self.name.clone(), Arc::clone(&self.client)).await?))
        };
        tokio::try_join!(edge, cloud)
    }
}

impl End {
    /// The edge's: over QUIC the cloud's end is there with the first byte.
    fn greeting(link: Link) -> Self {
        let end = Self::of(link);
        end.frames.push(Lane::Control, Bytes::from_static(b"hello"));
        end
    }

    fn of(link: Link) -> Self {
        let Link { sender, mut receiver, streams, .. } = link;
        let (frames, queue) = queue();
        let (received, receiving) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = sender.run(queue, Duration::from_secs(30)).await {
                eprintln!("the link broke: {error}");
            }
        });
        tasks.spawn(async move {
            while let Ok(Some(frame)) = receiver.receive().await {
                if received.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Self { frames, streams, received: receiving, _tasks: tasks }
    }
}
