//! Streams over the WebSocket, which has none of its own: messages beside those of the lanes, with credit.
//!
//! | first byte | then | content |
//! |---|---|---|
//! | 3 | stream | bytes; with bit 7 nothing follows them. The first makes the stream known to the edge |
//! | 4 | stream | four bytes: so many more may come |
//! | 5 | stream | nothing: whoever held the stream has gone, both ways |
//!
//! A stream is four bytes, a number that cloudcore counts up; all numbers are big-endian. Either side may send
//! [`FIRST`](super::window::FIRST) bytes before the first credit. What comes for a stream that has ended is of no account.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{io::ReadBuf, sync::Notify};

use super::{
    LinkError,
    streams::MAX,
    window::{FIRST, SPARE, Window},
};

const DATA: u8 = 3;
const CREDIT: u8 = 4;
const RESET: u8 = 5;
/// With [`DATA`].
const END: u8 = 0x80;
/// Of a message, before its bytes.
const HEAD: usize = 5;
/// Bytes of a stream that wait to be sent and may not be, for want of credit.
const HELD: usize = 4 << 10;
/// Its writer is woken for so much room, or when nothing waits any more: for each piece it would be too often.
const WORTH: usize = 16 << 10;
/// The same where there is credit: while some of it is sent, there is room for more.
const OUTGOING: usize = 96 << 10;
/// Bytes of a message. With what the WebSocket puts around it that is two whole records of TLS.
pub(super) const LARGEST_PIECE: usize = (32 << 10) - HEAD - 8;

/// The streams of one WebSocket.
#[derive(Debug)]
pub(super) struct Mux {
    /// Whether the peer may open streams.
    accepts: bool,
    state: Mutex<State>,
    /// There is something to send.
    outgoing: Notify,
    /// There is a stream to accept.
    accepting: Notify,
}

#[derive(Debug)]
struct State {
    streams: HashMap<u32, Half>,
    /// Opened by the peer and not yet accepted; they are in `streams`, which bounds them.
    accepted: VecDeque<u32>,
    /// The newest that there was.
    newest: u32,
    /// Those that have bytes to send and may, in their turn.
    ready: VecDeque<u32>,
    /// Short messages that go before bytes: at most one credit a stream that was read, and a reset a stream that went.
    notices: VecDeque<Bytes>,
    /// What windows may grow by.
    spare: u32,
    /// The link is down.
    closed: bool,
}

/// This end of a stream.
#[derive(Debug)]
struct Half {
    incoming: VecDeque<Bytes>,
    /// What the peer may still send.
    allowed: u32,
    window: Window,
    /// When the peer was told of more, and how much it could send without knowing of that.
    told: Option<(Instant, u32)>,
    ended: bool,
    reader: Option<Waker>,
    outgoing: Outgoing,
    credit: u32,
    sending: Sending,
    writer: Option<Waker>,
    reset: bool,
    /// It is in `ready`.
    queued: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    /// Nothing is written after what is in `outgoing`.
    Finished,
    /// Finished, and nobody holds it any more: it goes with its last byte.
    Orphaned,
    /// The peer has been told that it is finished.
    Ended,
}

/// What waits to be sent, as the contents of messages, each with room for its head before it.
#[derive(Debug, Default)]
struct Outgoing {
    messages: VecDeque<BytesMut>,
    length: usize,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn push(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        if let Some(last) = self.messages.back_mut() {
            let fits = (HEAD + LARGEST_PIECE - last.len()).min(bytes.len());
            last.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
        }
        for content in bytes.chunks(LARGEST_PIECE) {
            let mut message = BytesMut::with_capacity(HEAD + content.len());
            message.put_bytes(0, HEAD);
            message.extend_from_slice(content);
            self.messages.push_back(message);
        }
    }

    /// The next message, with at most so many bytes, and how many it has.
    fn next(&mut self, most: usize) -> (BytesMut, usize) {
        let Some(first) = self.messages.front_mut() else { return (BytesMut::zeroed(HEAD), 0) };
        let length = first.len() - HEAD;
        if length <= most {
            self.length -= length;
            return (self.messages.pop_front().unwrap_or_default(), length);
        }
        let message = BytesMut::from(&first[..HEAD + most]);
        // What was sent is room for the next head.
        first.advance(most);
        self.length -= most;
        (message, most)
    }
}

impl Half {
    fn new() -> Self {
        Self {
            incoming: VecDeque::new(),
            allowed: FIRST,
            window: Window::new(Instant::now()),
            told: None,
            ended: false,
            reader: None,
            outgoing: Outgoing::default(),
            credit: FIRST,
            sending: Sending::Open,
            writer: None,
            reset: false,
            queued: false,
        }
    }

    fn may_send(&self) -> bool {
        let last = matches!(self.sending, Sending::Finished | Sending::Orphaned);
        !self.reset && if self.outgoing.is_empty() { last } else { self.credit > 0 }
    }

    /// How much more may wait.
    fn room(&self) -> usize {
        let credit = usize::try_from(self.credit).unwrap_or(usize::MAX);
        HELD.saturating_add(credit).min(OUTGOING).saturating_sub(self.outgoing.length)
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl State {
    /// To be called with whatever may have made the stream able to send.
    fn queue(&mut self, id: u32) -> bool {
        let Some(half) = self.streams.get_mut(&id).filter(|half| half.may_send() && !half.queued) else {
            return false;
        };
        half.queued = true;
        self.ready.push_back(id);
        true
    }

    /// The peer is told, unless it has gone itself, or nothing more comes from it and all that we had to say was said.
    fn forget(&mut self, id: u32) {
        let Some(half) = self.streams.remove(&id) else { return };
        self.spare += half.window.grown();
        let said = half.reset || half.ended && half.sending != Sending::Open;
        if !said {
            self.notices.push_back(message(RESET, id, b""));
        }
    }
}

fn message(kind: u8, id: u32, content: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(HEAD + content.len());
    message.put_u8(kind);
    message.put_u32(id);
    message.extend_from_slice(content);
    message.freeze()
}

impl Mux {
    /// Of the end that accepts streams, or of the one that opens them.
    pub(super) fn new(accepts: bool) -> Arc<Self> {
        let state = State {
            streams: HashMap::new(),
            accepted: VecDeque::new(),
            newest: 0,
            ready: VecDeque::new(),
            notices: VecDeque::new(),
            spare: SPARE,
            closed: false,
        };
        Arc::new(Self {
            accepts,
            state: Mutex::new(state),
            outgoing: Notify::new(),
            accepting: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole whatever panicked beside it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(self: &Arc<Self>) -> io::Result<MuxStream> {
        let mut state = self.lock();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.streams.len() >= usize::from(MAX) {
            return Err(io::Error::other(format!("{MAX} streams are open on this link")));
        }
        state.newest += 1;
        let id = state.newest;
        state.streams.insert(id, Half::new());
        Ok(MuxStream { id, mux: Arc::clone(self) })
    }

    pub(super) async fn accept(self: &Arc<Self>) -> Option<MuxStream> {
        loop {
            {
                let mut state = self.lock();
                if let Some(id) = state.accepted.pop_front() {
                    return Some(MuxStream { id, mux: Arc::clone(self) });
                }
                if state.closed {
                    return None;
                }
            }
            self.accepting.notified().await;
        }
    }

    /// A message that is on no lane.
    pub(super) fn receive(&self, head: u8, mut rest: Bytes) -> Result<(), LinkError> {
        let id = rest.try_get_u32().map_err(|_| LinkError::Piece)?;
        let mut state = self.lock();
        let state = &mut *state;
        match head {
            DATA => self.data(state, id, rest, false),
            head if head == DATA | END => self.data(state, id, rest, true),
            CREDIT => {
                let more = rest.try_get_u32().map_err(|_| LinkError::Piece)?;
                if let Some(half) = state.streams.get_mut(&id) {
                    half.credit = half.credit.checked_add(more).ok_or(LinkError::Piece)?;
                    half.wake();
                }
                if state.queue(id) {
                    self.outgoing.notify_one();
                }
                Ok(())
            }
            RESET => {
                if let Some(half) = state.streams.get_mut(&id) {
                    half.reset = true;
                    half.outgoing = Outgoing::default();
                    half.wake();
                    if half.sending == Sending::Orphaned {
                        state.forget(id);
                    }
                }
                Ok(())
            }
            _ => Err(LinkError::Piece),
        }
    }

    fn data(&self, state: &mut State, id: u32, bytes: Bytes, last: bool) -> Result<(), LinkError> {
        if id > state.newest {
            if !self.accepts {
                return Err(LinkError::Piece);
            }
            state.newest = id;
            if state.streams.len() >= usize::from(MAX) {
                state.notices.push_back(message(RESET, id, b""));
                self.outgoing.notify_one();
                return Ok(());
            }
            state.streams.insert(id, Half::new());
            state.accepted.push_back(id);
            self.accepting.notify_one();
        }
        let Some(half) = state.streams.get_mut(&id) else { return Ok(()) };
        let length = u32::try_from(bytes.len()).map_err(|_| LinkError::Piece)?;
        half.allowed = half.allowed.checked_sub(length).ok_or(LinkError::Piece)?;
        if let Some((told, without)) = &mut half.told {
            if let Some(left) = without.checked_sub(length) {
                *without = left;
            } else {
                half.window.note_trip(told.elapsed());
                half.told = None;
            }
        }
        if !bytes.is_empty() && half.sending != Sending::Orphaned {
            half.incoming.push_back(bytes);
        }
        half.ended |= last;
        if let Some(reader) = half.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// The next message that says how streams are, if there is one.
    pub(super) fn notice(&self) -> Option<Bytes> {
        self.lock().notices.pop_front()
    }

    /// The next message with bytes of a stream, of at most so many, if there is one.
    pub(super) fn piece(&self, most: usize) -> Option<Bytes> {
        let mut state = self.lock();
        let state = &mut *state;
        while let Some(id) = state.ready.pop_front() {
            let Some(half) = state.streams.get_mut(&id) else { continue };
            half.queued = false;
            if !half.may_send() {
                continue;
            }
            let credit = usize::try_from(half.credit).unwrap_or(usize::MAX);
            let (mut message, length) = half.outgoing.next(most.min(credit));
            half.credit -= u32::try_from(length).unwrap_or(u32::MAX);
            let is_empty = half.outgoing.is_empty();
            if (half.room() >= WORTH || is_empty)
                && let Some(writer) = half.writer.take()
            {
                writer.wake();
            }
            let last = is_empty && matches!(half.sending, Sending::Finished | Sending::Orphaned);
            message[0] = if last { DATA | END } else { DATA };
            message[1..HEAD].copy_from_slice(&id.to_be_bytes());
            if !last {
                state.queue(id);
            } else if half.sending == Sending::Orphaned {
                state.forget(id);
            } else {
                half.sending = Sending::Ended;
            }
            return Some(message.freeze());
        }
        None
    }

    /// Resolves when there may be something to send that was not there before.
    pub(super) async fn filled(&self) {
        self.outgoing.notified().await;
    }

    /// The link is down: whoever waits for a stream is told.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.notices = VecDeque::new();
        for half in state.streams.values_mut() {
            half.reset = true;
            half.wake();
        }
        drop(state);
        self.accepting.notify_one();
    }
}

/// One end of a stream.
#[derive(Debug)]
pub(super) struct MuxStream {
    id: u32,
    mux: Arc<Mux>,
}

impl MuxStream {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.mux.lock();
        let state = &mut *guard;
        let Some(half) = state.streams.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let Some(first) = half.incoming.front_mut() else {
            if half.ended {
                return Poll::Ready(Ok(()));
            }
            if half.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            half.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let bytes = first.split_to(first.len().min(buf.remaining()));
        if first.is_empty() {
            half.incoming.pop_front();
        }
        let read = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if !half.ended && !half.reset {
            let now = Instant::now();
            if let Some(more) = half.window.read(read, now, &mut state.spare) {
                half.told.get_or_insert((now, half.allowed));
                half.allowed += more;
                state.notices.push_back(message(CREDIT, self.id, &more.to_be_bytes()));
                self.mux.outgoing.notify_one();
            }
        }
        drop(guard);
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.mux.lock();
        let Some(half) =
            state.streams.get_mut(&self.id).filter(|half| !half.reset && half.sending == Sending::Open)
        else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let room = half.room();
        if room == 0 {
            half.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = buf.len().min(room);
        half.outgoing.push(&buf[..taken]);
        if state.queue(self.id) {
            self.mux.outgoing.notify_one();
        }
        Poll::Ready(Ok(taken))
    }

    /// Nothing more is written.
    pub(super) fn finish(&mut self) {
        let mut state = self.mux.lock();
        if let Some(half) = state.streams.get_mut(&self.id).filter(|half| half.sending == Sending::Open) {
            half.sending = Sending::Finished;
        }
        if state.queue(self.id) {
            self.mux.outgoing.notify_one();
        }
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let mut state = self.mux.lock();
        let Some(half) = state.streams.get_mut(&self.id) else { return };
        if half.sending == Sending::Finished && !half.reset {
            half.sending = Sending::Orphaned;
            half.incoming = VecDeque::new();
        } else {
            state.forget(self.id);
            self.mux.outgoing.notify_one();
        }
    }
}
