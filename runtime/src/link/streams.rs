//! Byte streams beside the frames: bulk, such as logs and the terminals of `kubectl exec`. cloudcore opens them, the edge accepts
//! them, and all that the lanes carry goes first. Each has a bound on what is on its way (see `link::window`), so one that nobody
//! reads holds up itself alone.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::FutureExt;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time,
};

use super::{
    congestion,
    credits::{Credit, Credits},
    mux::{Mux, MuxStream},
    queue::{Cap, Frames, PIECE},
    quic,
};

/// Open at once on a link.
pub const MAX: u8 = 64;
/// Behind every lane.
const PRIORITY: i32 = -16;
/// Why a stream ends before its end: whoever held it has gone.
const GONE: VarInt = VarInt::from_u32(1);

/// The streams of one link. Cheap to clone; none outlives the link.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    transport: Transport,
    open: Arc<Open>,
    cap: Arc<OnceLock<Cap>>,
}

/// The streams that are held at this end.
#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    none: Notify,
}

#[derive(Clone, Debug, Default)]
enum Transport {
    /// There are none.
    #[default]
    None,
    Quic(Connection, Arc<Credits>),
    WebSocket(Arc<Mux>),
}

impl Streams {
    pub(super) fn over_quic(connection: Connection, credits: Arc<Credits>) -> Self {
        Self { transport: Transport::Quic(connection, credits), ..Self::default() }
    }

    pub(super) fn over_websocket(mux: Arc<Mux>) -> Self {
        Self { transport: Transport::WebSocket(mux), ..Self::default() }
    }

    /// Has streams wait for what the rate of these frames leaves them, see [`Frames::set_rate`]. It cannot be taken back.
    pub fn share_rate(&self, frames: &Frames) {
        self.cap.get_or_init(|| frames.cap());
    }

    /// A new stream; the edge hears of it with its first byte. Waits while [`MAX`] are open over QUIC, where the edge counts.
    /// Safe to cancel.
    ///
    /// # Errors
    /// The link is down, or [`MAX`] streams are open.
    pub async fn open(&self) -> io::Result<Stream> {
        let io = match &self.transport {
            Transport::None => return Err(io::ErrorKind::Unsupported.into()),
            Transport::Quic(connection, credits) => {
                Io::Quic(OverQuic::new(connection, credits, connection.open_bi().await?))
            }
            Transport::WebSocket(mux) => Io::WebSocket(mux.open()?),
        };
        Ok(self.counted(io))
    }

    /// The next stream that the peer has opened; `None` once the link is down. Safe to cancel.
    pub async fn accept(&self) -> Option<Stream> {
        let io = match &self.transport {
            Transport::None => std::future::pending().await,
            Transport::Quic(connection, credits) => {
                Io::Quic(OverQuic::new(connection, credits, connection.accept_bi().await.ok()?))
            }
            Transport::WebSocket(mux) => Io::WebSocket(mux.accept().await?),
        };
        Some(self.counted(io))
    }

    /// Ends all streams, and the link below them: whoever holds one would keep a link alive that has no session any more.
    pub fn close(&self) {
        match &self.transport {
            Transport::None => {}
            Transport::Quic(connection, _) => congestion::close(connection, quic::CLOSED, b""),
            Transport::WebSocket(mux) => mux.close(),
        }
    }

    /// How many are held at this end.
    pub fn len(&self) -> usize {
        self.open.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves when none is held at this end. For one task; safe to cancel.
    pub async fn idle(&self) {
        while !self.is_empty() {
            self.open.none.notified().await;
        }
    }

    fn counted(&self, io: Io) -> Stream {
        self.open.count.fetch_add(1, Ordering::Relaxed);
        Stream { io, open: Arc::clone(&self.open), cap: Arc::clone(&self.cap), waiting: None }
    }
}

/// Dropping it tells the peer that nobody reads it any more, and resets what was not shut down.
#[derive(Debug)]
pub struct Stream {
    io: Io,
    open: Arc<Open>,
    cap: Arc<OnceLock<Cap>>,
    /// For its turn on a line with a cap.
    waiting: Option<Pin<Box<time::Sleep>>>,
}

#[derive(Debug)]
enum Io {
    Quic(OverQuic),
    WebSocket(MuxStream),
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.open.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.open.none.notify_one();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Quic(stream) => stream.poll_read(cx, buf),
            Io::WebSocket(stream) => stream.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, cap, waiting, .. } = self.get_mut();
        let cap = cap.get().filter(|cap| !cap.is_open());
        while let Some(until) = cap.and_then(Cap::wait) {
            let sleep = waiting.get_or_insert_with(|| Box::pin(time::sleep_until(until)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Others may have been faster.
            *waiting = None;
        }
        *waiting = None;
        let buf = if cap.is_some() { &buf[..buf.len().min(PIECE)] } else { buf };
        let written = match io {
            Io::Quic(stream) => stream.poll_write(cx, buf),
            Io::WebSocket(stream) => stream.poll_write(cx, buf),
        };
        if let (Some(cap), Poll::Ready(Ok(bytes))) = (cap, &written) {
            cap.charge(*bytes);
        }
        written
    }

    /// What was written goes as the line takes it; there is nothing to wait for.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Quic(stream) => {
                stream.finished = true;
                AsyncWrite::poll_shutdown(Pin::new(&mut stream.send), cx)
            }
            Io::WebSocket(stream) => {
                stream.finish();
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// QUIC's own, with credit.
struct OverQuic {
    send: SendStream,
    receive: RecvStream,
    finished: bool,
    credit: Credit,
    connection: Connection,
    /// While there is no credit: the peer wants no more.
    stopped: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl OverQuic {
    fn new(
        connection: &Connection,
        credits: &Arc<Credits>,
        (send, receive): (SendStream, RecvStream),
    ) -> Self {
        // It fails only on a stream that has ended.
        drop(send.set_priority(PRIORITY));
        let credit = credits.of(send.id());
        Self { send, receive, finished: false, credit, connection: connection.clone(), stopped: None }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.credit.read(read, || self.connection.rtt());
        }
        polled
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Poll::Ready(most) = self.credit.poll(cx) else {
            let send = &self.send;
            let stopped = self.stopped.get_or_insert_with(|| Box::pin(send.stopped().map(drop)));
            ready!(stopped.as_mut().poll(cx));
            self.stopped = None;
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written =
            ready!(AsyncWrite::poll_write(Pin::new(&mut self.send), cx, &buf[..buf.len().min(most)]))?;
        self.credit.spend(written);
        Poll::Ready(Ok(written))
    }
}

impl fmt::Debug for OverQuic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverQuic").field("send", &self.send).finish_non_exhaustive()
    }
}

impl Drop for OverQuic {
    fn drop(&mut self) {
        if !self.finished {
            // quinn's own drop would call it complete. It fails only on a stream that has ended.
            drop(self.send.reset(GONE));
        }
    }
}
