//! WebSocket (RFC 6455) over TLS: one frame is one binary message.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    future::BoxFuture,
    stream::{SplitSink, SplitStream},
};
use proto::limits::MAX_FRAME;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::Role, protocol::WebSocketConfig},
};

use super::{FrameReceiver, FrameSender, Link, LinkError, Progress, Watched};

/// The path of the upgrade request.
pub const PATH: &str = "/link";

/// Read and write buffers of a connection. tungstenite's own default of 128 KiB each is what caps the number of nodes on
/// one cloudcore.
const BUFFER: usize = 4 << 10;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        // Frames are flushed one by one: nothing is gained by holding bytes back.
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_FRAME)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME))
}

/// Wraps a stream on which the upgrade has been answered with 101. `progress` is that of the connection below it.
pub async fn server<S>(io: S, peer: SocketAddr, progress: Progress) -> Link
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    split(WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await, peer, progress)
}

/// Connects to `address` (`host:port`), proves who both sides are, and upgrades.
pub async fn connect(
    address: &str,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Link, LinkError> {
    let connect_error = |source| LinkError::Connect { address: address.to_owned(), source };
    let tcp = TcpStream::connect(address).await.map_err(connect_error)?;
    over(tcp, address, server_name, tls).await
}

/// As [`connect`], over a connection that was made already.
pub async fn over(
    tcp: TcpStream,
    address: &str,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Link, LinkError> {
    let connect_error = |source| LinkError::Connect { address: address.to_owned(), source };
    tcp.set_nodelay(true).map_err(connect_error)?;
    let peer = tcp.peer_addr().map_err(connect_error)?;
    let tcp = Watched::new(tcp);
    let progress = tcp.progress();
    let stream = TlsConnector::from(tls)
        .connect(server_name, tcp)
        .await
        .map_err(|source| LinkError::Tls { address: address.to_owned(), source })?;
    let request = format!("wss://{address}{PATH}")
        .into_client_request()
        .map_err(|source| LinkError::Upgrade { address: address.to_owned(), source })?;
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config())).await {
        Ok((socket, _)) => Ok(split(socket, peer, progress)),
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            let reason = String::from_utf8_lossy(body).chars().take(200).collect();
            Err(LinkError::Refused {
                address: address.to_owned(),
                status: response.status().as_u16(),
                reason,
            })
        }
        Err(source) => Err(LinkError::Upgrade { address: address.to_owned(), source }),
    }
}

fn split<S>(socket: WebSocketStream<S>, peer: SocketAddr, progress: Progress) -> Link
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = socket.split();
    Link {
        sender: Box::new(Sender(sink)),
        receiver: Box::new(Receiver(stream)),
        progress,
        peer,
        transport: "websocket",
    }
}

struct Sender<S>(SplitSink<WebSocketStream<S>, Message>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send> FrameSender for Sender<S> {
    fn send(&mut self, frame: Bytes) -> BoxFuture<'_, Result<(), LinkError>> {
        self.0.send(Message::Binary(frame)).map(|sent| sent.map_err(LinkError::broken)).boxed()
    }

    fn close(&mut self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.0.close().map(|closed| closed.map_err(LinkError::broken)).boxed()
    }
}

struct Receiver<S>(SplitStream<WebSocketStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send> FrameReceiver for Receiver<S> {
    fn receive(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        async {
            loop {
                match self.0.next().await {
                    None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => return Ok(None),
                    Some(Ok(Message::Binary(frame))) => return Ok(Some(frame)),
                    // Answered by the library; the session has its own.
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Text(_) | Message::Frame(_))) => return Err(LinkError::NotBinary),
                    Some(Err(error)) => return Err(LinkError::broken(error)),
                }
            }
        }
        .boxed()
    }
}
