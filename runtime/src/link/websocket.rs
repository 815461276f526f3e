//! WebSocket (RFC 6455) over TLS. A binary message holds a piece of a frame: one byte that says which lane it is on and
//! whether it is the last piece, then at most 4 KiB of the frame. Pieces of different lanes alternate; those of one follow each
//! other.
//!
//! | bits | content |
//! |---|---|
//! | 7 | it is the last piece of its frame |
//! | 0 to 6 | the lane: 0 control, 1 status, 2 objects. More are `link::mux`'s |

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{
    FutureExt, SinkExt, StreamExt, TryFutureExt,
    future::BoxFuture,
    stream::{SplitSink, SplitStream},
};
use proto::{Lane, limits::MAX_FRAME};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::Role, protocol::WebSocketConfig},
};

use super::{
    FrameReceiver, FrameSender, Knocks, Line, Link, LinkError, Progress,
    framing::{LAST, Pieces},
    mux::{LARGEST_PIECE, Mux},
    patiently,
    queue::FrameQueue,
    streams::Streams,
};

/// The path of the upgrade request.
pub const PATH: &str = "/link";

/// Read at once of what TLS holds already, and kept by each connection. tungstenite's own default of 128 KiB is what caps the
/// number of nodes on one cloudcore.
const BUFFER: usize = 1 << 10;

/// A piece of a frame: what an urgent frame may have to wait for, half a second on a line of 64 kbit/s.
const PIECE: usize = 4 << 10;
/// On a line that takes so much so soon, more of a stream is sent at once: nothing has to wait long for it there.
const SWIFT: Duration = Duration::from_millis(2);

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        // Frames are flushed one by one: nothing is gained by holding bytes back.
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_FRAME)
        .max_message_size(Some(1 + MAX_FRAME))
        .max_frame_size(Some(1 + MAX_FRAME))
}

/// Wraps a stream on which the upgrade has been answered with 101. `progress` is that of the connection below it.
pub async fn server<S>(io: S, peer: SocketAddr, progress: Progress) -> Link
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    split(
        WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await,
        Mux::new(false),
        peer,
        progress,
    )
}

/// Connects to `address` (`host:port`), proves who both sides are, and upgrades.
pub async fn connect(
    address: &str,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Link, LinkError> {
    let connect_error = |source| LinkError::Connect { address: address.to_owned(), source };
    let tcp = TcpStream::connect(address).await.map_err(connect_error)?;
    over(Line::over(tcp).map_err(connect_error)?, address, server_name, tls).await
}

/// As [`connect`], over a connection that was made already.
pub async fn over(
    line: Line,
    address: &str,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Link, LinkError> {
    let (peer, progress) = (line.peer(), line.progress());
    let stream = TlsConnector::from(tls).connect(server_name, line).await.map_err(|source| {
        let told = LinkError::not_trusted(address, &source);
        told.unwrap_or_else(|| LinkError::Tls { address: address.to_owned(), source })
    })?;
    let request = format!("wss://{address}{PATH}")
        .into_client_request()
        .map_err(|source| LinkError::Upgrade { address: address.to_owned(), source })?;
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config())).await {
        Ok((socket, _)) => Ok(split(socket, Mux::new(true), peer, progress)),
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            let reason = String::from_utf8_lossy(body).chars().take(200).collect();
            Err(LinkError::Refused {
                address: address.to_owned(),
                status: response.status().as_u16(),
                reason,
            })
        }
        // What cloudcore says of our certificate comes after our end of the handshake.
        Err(source) => {
            let told = match &source {
                Error::Io(error) => LinkError::not_trusted(address, error),
                _ => None,
            };
            Err(told.unwrap_or_else(|| LinkError::Upgrade { address: address.to_owned(), source }))
        }
    }
}

fn split<S>(socket: WebSocketStream<S>, mux: Arc<Mux>, peer: SocketAddr, progress: Progress) -> Link
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = socket.split();
    Link {
        streams: Streams::over_websocket(Arc::clone(&mux)),
        sender: Box::new(Sender { sink, mux: Arc::clone(&mux) }),
        receiver: Box::new(Receiver { stream, pieces: Pieces::default(), mux }),
        progress,
        peer,
        knocks: Knocks::default(),
        transport: "websocket",
        confirms: false,
    }
}

/// The first byte of a message.
fn head(lane: Lane, last: bool) -> u8 {
    lane as u8 | if last { LAST } else { 0 }
}

/// A message with a whole frame in it, for those who speak the protocol by hand. Of any length.
pub fn whole(lane: Lane, frame: &[u8]) -> Message {
    piece(lane, frame, true)
}

fn piece(lane: Lane, bytes: &[u8], last: bool) -> Message {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(head(lane, last));
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

struct Sender<S> {
    sink: SplitSink<WebSocketStream<S>, Message>,
    mux: Arc<Mux>,
}

/// Frames that were begun, by lane.
#[derive(Default)]
struct Begun([Option<Bytes>; Lane::ALL.len()]);

impl Begun {
    /// The most urgent lane that has something to send.
    fn urgent(&mut self, queue: &FrameQueue) -> Option<Lane> {
        for lane in Lane::ALL {
            let rest = &mut self.0[lane as usize];
            if rest.is_none() {
                *rest = queue.try_next(lane);
            }
        }
        Lane::ALL.into_iter().find(|lane| self.0[*lane as usize].is_some())
    }

    /// Of the next piece on a lane.
    fn length(&self, lane: Lane) -> usize {
        self.0[lane as usize].as_ref().map_or(0, Bytes::len).min(PIECE)
    }

    fn next(&mut self, lane: Lane) -> Message {
        let rest = &mut self.0[lane as usize];
        let frame = rest.get_or_insert_default();
        let bytes = frame.split_to(frame.len().min(PIECE));
        let last = frame.is_empty();
        if last {
            *rest = None;
        }
        piece(lane, &bytes, last)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> FrameSender for Sender<S> {
    fn run(
        mut self: Box<Self>,
        queue: FrameQueue,
        patience: Duration,
    ) -> BoxFuture<'static, Result<(), LinkError>> {
        async move {
            let mut begun = Begun::default();
            let mut most = PIECE;
            loop {
                let urgent = begun.urgent(&queue);
                // A stream that waits for its credit waits for no object.
                let early = urgent.is_none_or(|lane| lane == Lane::Objects);
                let notice = early.then(|| self.mux.notice()).flatten();
                let of_stream = notice.is_none() && urgent.is_none();
                let message = if let Some(notice) = notice {
                    Message::Binary(notice)
                } else if let Some(lane) = urgent {
                    if let Err(until) = queue.admit(lane, begun.length(lane)) {
                        // Meanwhile something more urgent may come.
                        queue.filled_before(until).await;
                        continue;
                    }
                    begun.next(lane)
                } else if let Some(piece) = self.mux.piece(most) {
                    Message::Binary(piece)
                } else {
                    let open = tokio::select! {
                        open = queue.filled() => open,
                        () = self.mux.filled() => true,
                    };
                    if open {
                        continue;
                    }
                    return patiently(patience, 0, self.sink.close().map_err(LinkError::broken)).await;
                };
                let (bytes, begun) = (message.len(), Instant::now());
                patiently(patience, bytes, self.sink.send(message).map_err(LinkError::broken)).await?;
                if of_stream {
                    let swift = begun.elapsed() < SWIFT;
                    most = if swift { (most * 2).min(LARGEST_PIECE) } else { (most / 2).max(PIECE) };
                }
            }
        }
        .boxed()
    }
}

impl<S> Drop for Sender<S> {
    fn drop(&mut self) {
        self.mux.close();
    }
}

/// It is on no lane.
fn is_of_stream(piece: &[u8]) -> bool {
    piece.first().is_some_and(|head| usize::from(head & !LAST) >= Lane::ALL.len())
}

struct Receiver<S> {
    stream: SplitStream<WebSocketStream<S>>,
    pieces: Pieces,
    mux: Arc<Mux>,
}

impl<S> Drop for Receiver<S> {
    fn drop(&mut self) {
        self.mux.close();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> FrameReceiver for Receiver<S> {
    fn receive(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        async {
            loop {
                match self.stream.next().await {
                    None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => return Ok(None),
                    Some(Ok(Message::Binary(mut piece))) if is_of_stream(&piece) => {
                        let head = piece.get_u8();
                        self.mux.receive(head, piece)?;
                    }
                    Some(Ok(Message::Binary(piece))) => {
                        if let Some(frame) = self.pieces.take(piece)? {
                            return Ok(Some(frame));
                        }
                    }
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
