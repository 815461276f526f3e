//! Frames between a session and the transport that writes them: a short queue a lane, so that the transport always finds the
//! most urgent one, and a session decides late what it sends.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use proto::Lane;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use super::bucket::Bucket;

/// Frames of one lane that wait beside the one that is being written. A session has few urgent ones at a time, and may
/// always add one more.
const ROOM: usize = 2;

/// Written at once on a line with a cap, see [`Frames::set_rate`].
pub(super) const PIECE: usize = 4 << 10;

/// Both ends of a queue.
pub fn queue() -> (Frames, FrameQueue) {
    let shared = Arc::new(Shared::default());
    (Frames(Arc::clone(&shared)), FrameQueue(shared))
}

/// The session's end. Dropping it closes the queue.
#[derive(Debug)]
pub struct Frames(Arc<Shared>);

/// What has no queue here, and counts against the rate as well.
#[derive(Clone, Debug)]
pub(super) struct Cap(Arc<Shared>);

impl Cap {
    /// When something can go; `None`: now.
    pub(super) fn wait(&self) -> Option<Instant> {
        self.0.lock().bucket.wait(Instant::now().into_std()).map(Instant::from_std)
    }

    /// So many bytes have gone.
    pub(super) fn charge(&self, bytes: usize) {
        self.0.lock().bucket.charge(bytes, Instant::now().into_std());
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.lock().bucket.is_open()
    }
}

/// The transport's end.
#[derive(Debug)]
pub struct FrameQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A lane each: it may be a task each that waits.
    filled: [Notify; Lane::ALL.len()],
    any_filled: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    lanes: [VecDeque<Bytes>; Lane::ALL.len()],
    closed: bool,
    bucket: Bucket,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queues are whole whatever panicked beside them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever waits looks again.
    fn wake(&self) {
        self.filled.iter().for_each(Notify::notify_one);
        self.any_filled.notify_one();
    }
}

impl Frames {
    pub fn has_room(&self, lane: Lane) -> bool {
        self.0.lock().lanes[lane as usize].len() < ROOM
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self, lane: Lane) -> bool {
        self.0.lock().lanes[lane as usize].is_empty()
    }

    /// Adds a frame, room or not.
    pub fn push(&self, lane: Lane, frame: Bytes) {
        self.0.lock().lanes[lane as usize].push_back(frame);
        self.0.filled[lane as usize].notify_one();
        self.0.any_filled.notify_one();
    }

    /// From now on no more than so many bytes a second go out, with what the transport adds to them; what is on its way
    /// included. [`Lane::Control`] is counted, and never waits.
    pub fn set_rate(&self, rate: Option<u64>) {
        if self.0.lock().bucket.set_rate(rate, Instant::now().into_std()) {
            self.0.wake();
        }
    }

    /// For what goes out beside the frames.
    pub(super) fn cap(&self) -> Cap {
        Cap(Arc::clone(&self.0))
    }

    /// Resolves once the transport has taken a frame since the last time.
    pub async fn taken(&self) {
        self.0.taken.notified().await;
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake();
    }
}

impl FrameQueue {
    /// The next frame of a lane, if there is one.
    pub fn try_next(&self, lane: Lane) -> Option<Bytes> {
        let frame = self.0.lock().lanes[lane as usize].pop_front()?;
        self.0.taken.notify_one();
        Some(frame)
    }

    /// The next frame of a lane; `None` once the queue is closed and the lane empty. One task a lane may wait.
    pub async fn next(&self, lane: Lane) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.try_next(lane) {
                return Some(frame);
            }
            if self.0.lock().closed {
                return None;
            }
            // A frame that was pushed since is remembered there.
            self.0.filled[lane as usize].notified().await;
        }
    }

    /// Whether so many bytes may go on a lane now, and then they are counted; else when it is worth asking again.
    pub fn admit(&self, lane: Lane, bytes: usize) -> Result<(), Instant> {
        let now = Instant::now().into_std();
        let bucket = &mut self.0.lock().bucket;
        match bucket.wait(now) {
            Some(until) if lane != Lane::Control => Err(Instant::from_std(until)),
            _ => {
                bucket.charge(bytes, now);
                Ok(())
            }
        }
    }

    /// Whether all may go at once, so that nothing has to be written piece by piece.
    pub fn is_open(&self) -> bool {
        self.0.lock().bucket.is_open()
    }

    /// Waits until so many bytes may go on a lane, for the task that waits with [`next`](Self::next) for its frames.
    pub async fn admitted(&self, lane: Lane, bytes: usize) {
        while let Err(until) = self.admit(lane, bytes) {
            // What is told here of a frame is seen in the queue as well.
            drop(time::timeout_at(until, self.0.filled[lane as usize].notified()).await);
        }
    }

    /// Waits until then, or until there is something new to look at. For one task that writes all.
    pub async fn filled_before(&self, until: Instant) {
        drop(time::timeout_at(until, self.0.any_filled.notified()).await);
    }

    /// Waits until there is a frame on some lane; false once the queue is closed and empty. For one task that writes all.
    pub async fn filled(&self) -> bool {
        loop {
            {
                let state = self.0.lock();
                if state.lanes.iter().any(|lane| !lane.is_empty()) {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            self.0.any_filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn lanes_fill_and_empty_by_themselves() {
        let (frames, queue) = queue();
        let frame = Bytes::from_static(b"x");
        assert!(queue.filled().now_or_never().is_none() && queue.next(Lane::Status).now_or_never().is_none());
        for _ in 0..ROOM {
            assert!(frames.has_room(Lane::Objects));
            frames.push(Lane::Objects, frame.clone());
        }
        assert!(!frames.has_room(Lane::Objects) && frames.has_room(Lane::Control));
        assert!(frames.taken().now_or_never().is_none());
        assert_eq!(queue.filled().now_or_never(), Some(true));
        assert!(queue.next(Lane::Control).now_or_never().is_none());
        assert_eq!(queue.next(Lane::Objects).now_or_never(), Some(Some(frame.clone())));
        assert!(frames.taken().now_or_never().is_some() && frames.has_room(Lane::Objects));
        frames.push(Lane::Control, frame.clone());
        drop(frames);
        // What was queued before the end is still handed out.
        assert_eq!(queue.next(Lane::Control).await, Some(frame.clone()));
        assert_eq!(queue.next(Lane::Control).await, None);
        assert!(queue.filled().await);
        assert_eq!(queue.next(Lane::Objects).await, Some(frame));
        assert!(!queue.filled().await);
        assert_eq!(queue.next(Lane::Objects).await, None);
    }
}
