//! Streams over the WebSocket, which has none of its own: messages beside those of the lanes, with credit.
//!
//! | first byte | then | content |
//! |---|---|---|
//! | 3 | stream | bytes; with bit 7 nothing follows them. The first makes the stream known to the edge |
//! | 4 | stream | four bytes: so many more may come |
//! | 5 | stream | nothing: whoever held the stream has gone, both ways |
//!
//! A stream is four bytes, a number that cloudcore counts up; all numbers are big-endian. Either side may send
//! [`WINDOW`](super::streams::WINDOW) bytes before the first credit. What comes for a stream that has ended is of no account.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{io::ReadBuf, sync::Notify};

use super::{
    LinkError,
    streams::{MAX, WINDOW},
};

const DATA: u8 = 3;
const CREDIT: u8 = 4;
const RESET: u8 = 5;
/// With [`DATA`].
const END: u8 = 0x80;
/// Bytes of a stream that wait to be sent, beside those on their way.
const OUTGOING: usize = 16 << 10;
/// What was read is told to the peer once it is so much.
const REFUND: u32 = WINDOW / 2;

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

#[derive(Debug, Default)]
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
    /// The link is down.
    closed: bool,
}

/// This end of a stream.
#[derive(Debug)]
struct Half {
    incoming: VecDeque<Bytes>,
    /// What the peer may still send.
    allowed: u32,
    /// Read, and not yet told to the peer.
    read: u32,
    ended: bool,
    reader: Option<Waker>,
    outgoing: BytesMut,
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

impl Half {
    fn new() -> Self {
        Self {
            incoming: VecDeque::new(),
            allowed: WINDOW,
            read: 0,
            ended: false,
            reader: None,
            outgoing: BytesMut::new(),
            credit: WINDOW,
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
        let said = half.reset || half.ended && half.sending != Sending::Open;
        if !said {
            self.notices.push_back(message(RESET, id, b""));
        }
    }
}

fn message(kind: u8, id: u32, content: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + content.len());
    message.put_u8(kind);
    message.put_u32(id);
    message.extend_from_slice(content);
    message.freeze()
}

impl Mux {
    /// Of the end that accepts streams, or of the one that opens them.
    pub(super) fn new(accepts: bool) -> Arc<Self> {
        Arc::new(Self { accepts, state: Mutex::default(), outgoing: Notify::new(), accepting: Notify::new() })
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
                    half.outgoing = BytesMut::new();
                    half.wake();
                    if half.sending == Sending::Orphaned {
                        state.streams.remove(&id);
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
            let most = most.min(usize::try_from(half.credit).unwrap_or(usize::MAX));
            let bytes = half.outgoing.split_to(half.outgoing.len().min(most));
            half.credit -= u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            if let Some(writer) = half.writer.take() {
                writer.wake();
            }
            if !half.outgoing.is_empty() {
                state.queue(id);
                return Some(message(DATA, id, &bytes));
            }
            // It would keep the room of all that went through it.
            half.outgoing = BytesMut::new();
            match half.sending {
                Sending::Open | Sending::Ended => return Some(message(DATA, id, &bytes)),
                Sending::Finished => half.sending = Sending::Ended,
                Sending::Orphaned => state.forget(id),
            }
            return Some(message(DATA | END, id, &bytes));
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
        let mut state = self.mux.lock();
        let state = &mut *state;
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
        buf.put_slice(&bytes);
        half.read += u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if half.read >= REFUND && !half.ended && !half.reset {
            let refund = std::mem::take(&mut half.read);
            half.allowed += refund;
            state.notices.push_back(message(CREDIT, self.id, &refund.to_be_bytes()));
            self.mux.outgoing.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.mux.lock();
        let Some(half) =
            state.streams.get_mut(&self.id).filter(|half| !half.reset && half.sending == Sending::Open)
        else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let room = OUTGOING - half.outgoing.len();
        if room == 0 {
            half.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = buf.len().min(room);
        half.outgoing.extend_from_slice(&buf[..taken]);
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
