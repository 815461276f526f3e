//! Streams over QUIC are its own. Its windows are all of one size, that of the largest, and a sender would fill that: what it may
//! send is told here, beside them, in messages of twelve bytes on one more unidirectional stream, the first after the lanes:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | the stream's number |
//! | 4 | so many more bytes may come on it |
//!
//! All numbers are big-endian. Either side may send [`FIRST`] bytes of a stream before the first of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::StreamId;
use tokio::sync::Notify;

use super::{
    LinkError,
    window::{FIRST, SPARE, Window},
};

/// Of a message.
const LENGTH: usize = 12;

/// The credits of one connection's streams.
#[derive(Debug)]
pub(super) struct Credits {
    state: Mutex<State>,
    /// There is something to tell.
    owing: Notify,
}

#[derive(Debug)]
struct State {
    /// Those that are held at this end.
    streams: HashMap<u64, Half>,
    /// To be told to the peer.
    owed: BTreeMap<u64, u32>,
    /// What windows may grow by.
    spare: u32,
}

#[derive(Debug)]
struct Half {
    window: Window,
    credit: u32,
    writer: Option<Waker>,
}

impl Credits {
    pub(super) fn new() -> Arc<Self> {
        let state = State { streams: HashMap::new(), owed: BTreeMap::new(), spare: SPARE };
        Arc::new(Self { state: Mutex::new(state), owing: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole whatever panicked beside it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream, as long as it is held at this end.
    pub(super) fn of(self: &Arc<Self>, id: StreamId) -> Credit {
        let id = quinn::VarInt::from(id).into_inner();
        let half = Half { window: Window::new(Instant::now()), credit: FIRST, writer: None };
        self.lock().streams.insert(id, half);
        Credit { id, all: Arc::clone(self) }
    }

    /// Messages to the peer. Safe to cancel.
    pub(super) async fn owed(&self) -> Bytes {
        loop {
            let owed = std::mem::take(&mut self.lock().owed);
            if !owed.is_empty() {
                let mut messages = BytesMut::with_capacity(LENGTH * owed.len());
                for (id, more) in owed {
                    messages.put_u64(id);
                    messages.put_u32(more);
                }
                return messages.freeze();
            }
            self.owing.notified().await;
        }
    }

    /// Messages from the peer; what is begun stays in `unread`.
    pub(super) fn receive(&self, unread: &mut BytesMut) -> Result<(), LinkError> {
        while unread.len() >= LENGTH {
            let (id, more) = (unread.get_u64(), unread.get_u32());
            let mut state = self.lock();
            // It may be late for one that has ended.
            let Some(half) = state.streams.get_mut(&id) else { continue };
            half.credit = half.credit.checked_add(more).ok_or(LinkError::Piece)?;
            if let Some(writer) = half.writer.take() {
                writer.wake();
            }
        }
        Ok(())
    }
}

/// One end of a stream.
#[derive(Debug)]
pub(super) struct Credit {
    id: u64,
    all: Arc<Credits>,
}

impl Credit {
    /// What may be sent. Without any it wakes once there is.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut state = self.all.lock();
        match state.streams.get_mut(&self.id) {
            Some(half) if half.credit > 0 => Poll::Ready(usize::try_from(half.credit).unwrap_or(usize::MAX)),
            Some(half) => {
                half.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    /// So many bytes were sent, no more than might be.
    pub(super) fn spend(&self, bytes: usize) {
        if let Some(half) = self.all.lock().streams.get_mut(&self.id) {
            half.credit = half.credit.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    /// So many bytes were read.
    pub(super) fn read(&self, bytes: usize, round_trip: impl FnOnce() -> Duration) {
        let mut state = self.all.lock();
        let State { streams, owed, spare } = &mut *state;
        let Some(half) = streams.get_mut(&self.id) else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(more) = half.window.read(bytes, Instant::now(), spare) {
            *owed.entry(self.id).or_default() += more;
            half.window.note_trip(round_trip());
            drop(state);
            self.all.owing.notify_one();
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.owed.remove(&self.id);
        if let Some(half) = state.streams.remove(&self.id) {
            state.spare += half.window.grown();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn message(id: u64, more: u32) -> Vec<u8> {
        [&id.to_be_bytes()[..], &more.to_be_bytes()].concat()
    }

    fn may_send(credit: &Credit) -> Option<usize> {
        match credit.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(most) => Some(most),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_message_counts_once_all_of_it_is_there_and_only_for_a_stream_that_there_is() {
        let credits = Credits::new();
        let stream = credits.of(quinn::VarInt::from_u32(5).into());
        stream.spend(FIRST as usize);
        assert_eq!(may_send(&stream), None);
        let bytes = [message(9, 7), message(5, 1000)].concat();
        let (mut unread, last) = (BytesMut::new(), bytes.len() - 1);
        for (at, byte) in bytes.iter().enumerate() {
            unread.put_u8(*byte);
            credits.receive(&mut unread).unwrap();
            assert_eq!(may_send(&stream), (at == last).then_some(1000));
        }
        let mut unread = BytesMut::from(&message(5, u32::MAX)[..]);
        assert!(credits.receive(&mut unread).is_err());
    }

    #[test]
    fn what_was_read_is_owed_once_and_nothing_of_a_stream_that_is_gone() {
        let credits = Credits::new();
        let [first, second] = [1_u32, 5].map(|id| credits.of(quinn::VarInt::from_u32(id).into()));
        let day = || Duration::from_hours(24);
        first.read(100, day);
        assert_eq!(credits.owed().now_or_never(), None);
        for stream in [&first, &second] {
            stream.read(FIRST as usize - 200, day);
        }
        drop(second);
        assert_eq!(credits.owed().now_or_never().as_deref(), Some(&message(1, FIRST - 100)[..]));
        assert_eq!(credits.owed().now_or_never(), None);
        // What one had grown by is there for others.
        first.read(100, day);
        assert!(credits.lock().spare < SPARE);
        drop(first);
        assert_eq!(credits.lock().spare, SPARE);
    }
}
