//! Where a frame ends, in what either transport carries: what a peer sends, byte by byte, before any of it is understood.
//! It opens no socket, and holds no more than a frame of the lane and what was read beside it.

use bytes::{Buf, Bytes, BytesMut};
use proto::Lane;

use super::LinkError;

/// In the first byte of a piece.
pub(super) const LAST: u8 = 0x80;

/// The frames on one stream of QUIC, each with its length before it.
#[derive(Debug, Default)]
pub struct Lengths {
    /// The beginning of a frame, or more than one.
    unread: BytesMut,
}

impl Lengths {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// It is longer than the lane's may be.
    pub fn next_frame(&mut self, lane: Lane) -> Result<Option<Bytes>, LinkError> {
        let Some(head) = self.unread.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > lane.max_frame() {
            return Err(LinkError::TooLong(length));
        }
        if self.unread.len() - head.len() < length {
            return Ok(None);
        }
        self.unread.advance(4);
        let frame = self.unread.split_to(length).freeze();
        if self.unread.is_empty() {
            // It would keep the room of the largest frame for good.
            self.unread = BytesMut::new();
        }
        Ok(Some(frame))
    }

    /// Whether nothing of a frame has come.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }
}

/// The frames in the messages of a WebSocket, see [`super::websocket`].
#[derive(Debug, Default)]
pub struct Pieces {
    /// Frames of which not all pieces have come.
    begun: [BytesMut; Lane::ALL.len()],
}

impl Pieces {
    /// The frame that this piece completes.
    ///
    /// # Errors
    /// The piece is on no lane, or the frame longer than the lane's may be.
    pub fn take(&mut self, mut piece: Bytes) -> Result<Option<Bytes>, LinkError> {
        let head = piece.try_get_u8().map_err(|_| LinkError::Piece)?;
        let lane = Lane::ALL.get(usize::from(head & !LAST)).ok_or(LinkError::Piece)?;
        let begun = &mut self.begun[*lane as usize];
        let (length, last) = (begun.len() + piece.len(), head & LAST != 0);
        if length > lane.max_frame() {
            return Err(LinkError::TooLong(length));
        }
        if last && begun.is_empty() {
            return Ok(Some(piece));
        }
        begun.extend_from_slice(&piece);
        Ok(last.then(|| std::mem::take(begun).freeze()))
    }
}
