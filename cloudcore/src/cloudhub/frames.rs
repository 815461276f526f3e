//! Making frames: the few threads that run thousands of sessions keep a context of zstd each.

use std::cell::RefCell;

use bytes::Bytes;
use proto::{
    codec::{EncodeError, Encoder},
    message::Body,
};

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::default();
}

/// Compressed where that makes it shorter, with the dictionary of this number.
pub(super) fn encode(body: Body, dictionary: u32) -> Result<Bytes, EncodeError> {
    ENCODER.with_borrow_mut(|encoder| encoder.encode_with(body, dictionary))
}
