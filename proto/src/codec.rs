//! Frames as bytes: one byte that says how the rest is encoded, then a [`Frame`] as protocol buffers.
//!
//! | first byte | rest |
//! |---|---|
//! | 0 | the message |
//! | 1 | the message as one zstd frame |
//!
//! The transport keeps message boundaries, so there is no length here.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{
    limits::MAX_FRAME,
    message::{Body, Frame},
};

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// Below this, zstd's own header eats what it saves.
const WORTH_COMPRESSING: usize = 192;

/// Level 3 is zstd's default; at the sizes here it costs tens of microseconds.
const LEVEL: i32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("frame of {length} bytes is longer than {MAX_FRAME}")]
    TooLong { length: usize },
    #[error("failed to compress a frame")]
    Compress(#[source] std::io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("empty frame")]
    Empty,
    #[error("frame of {length} bytes is longer than {MAX_FRAME}")]
    TooLong { length: usize },
    #[error("unknown frame encoding {0}")]
    Encoding(u8),
    #[error("failed to decompress a frame")]
    Decompress(#[source] std::io::Error),
    #[error("failed to decode a frame")]
    Malformed(#[from] prost::DecodeError),
    #[error("frame with no message that this version knows")]
    Unknown,
    #[error("patch of {patch} bytes does not yield the {length} bytes with the hash that it announces")]
    Patch { patch: usize, length: usize },
}

/// Encodes one message, compressed where that makes it shorter.
pub fn encode(body: Body) -> Result<Bytes, EncodeError> {
    let frame = Frame::from(body);
    let length = frame.encoded_len();
    if length >= MAX_FRAME {
        return Err(EncodeError::TooLong { length });
    }
    let mut plain = BytesMut::with_capacity(1 + length);
    plain.put_u8(PLAIN);
    frame.encode(&mut plain).map_err(|_| EncodeError::TooLong { length })?;
    if length < WORTH_COMPRESSING {
        return Ok(plain.freeze());
    }
    let packed = zstd::bulk::compress(&plain[1..], LEVEL).map_err(EncodeError::Compress)?;
    if packed.len() >= length {
        return Ok(plain.freeze());
    }
    plain.clear();
    plain.put_u8(ZSTD);
    plain.extend_from_slice(&packed);
    Ok(plain.freeze())
}

/// Decodes what [`encode`] made, and refuses everything else.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the message's byte fields share the buffer, which is given up to them"
)]
pub fn decode(bytes: Bytes) -> Result<Body, DecodeError> {
    if bytes.len() > MAX_FRAME {
        return Err(DecodeError::TooLong { length: bytes.len() });
    }
    let frame = match bytes.first() {
        None => return Err(DecodeError::Empty),
        Some(&PLAIN) => Frame::decode(bytes.slice(1..))?,
        // The capacity is an upper bound that zstd checks before it allocates the announced size.
        Some(&ZSTD) => {
            let plain = bounded_decompress(&bytes[1..])?;
            Frame::decode(Bytes::from(plain))?
        }
        Some(&other) => return Err(DecodeError::Encoding(other)),
    };
    frame.body.ok_or(DecodeError::Unknown)
}

fn bounded_decompress(packed: &[u8]) -> Result<Vec<u8>, DecodeError> {
    use std::io::Read;
    let mut plain = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(DecodeError::Decompress)?;
    // A frame of a few bytes may claim gigabytes: read up to the bound, growing as bytes really come.
    let mut limited = decoder.take(MAX_FRAME as u64 + 1);
    limited.read_to_end(&mut plain).map_err(DecodeError::Decompress)?;
    if plain.len() > MAX_FRAME {
        return Err(DecodeError::TooLong { length: plain.len() });
    }
    Ok(plain)
}

/// The difference from `base` to `target`: `target` compressed with `base` as the dictionary.
pub fn make_patch(base: &[u8], target: &[u8]) -> Result<Bytes, EncodeError> {
    let mut compressor =
        zstd::bulk::Compressor::with_dictionary(LEVEL, base).map_err(EncodeError::Compress)?;
    let patch = compressor.compress(target).map_err(EncodeError::Compress)?;
    Ok(Bytes::from(patch))
}

/// Applies what [`make_patch`] made; `length` and `hash` are those of the result.
pub fn apply_patch(base: &[u8], patch: &[u8], length: usize, hash: u64) -> Result<Bytes, DecodeError> {
    if length > MAX_FRAME {
        return Err(DecodeError::TooLong { length });
    }
    let wrong = || DecodeError::Patch { patch: patch.len(), length };
    let mut decompressor =
        zstd::bulk::Decompressor::with_dictionary(base).map_err(DecodeError::Decompress)?;
    let target = decompressor.decompress(patch, length).map_err(|_| wrong())?;
    if target.len() != length || crate::resource::content_hash(&target) != hash {
        return Err(wrong());
    }
    Ok(Bytes::from(target))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::message::{Ack, Action, Batch, Change, Goodbye, Ping, Put};

    #[test]
    fn a_ping_is_three_bytes() {
        assert_eq!(encode(Body::Ping(Ping {})).unwrap().len(), 3);
    }

    #[test]
    fn the_largest_object_fits_into_a_frame() {
        let key = "x".repeat(crate::limits::MAX_KEY);
        let object = Bytes::from(vec![b'x'; crate::limits::MAX_OBJECT]);
        let put = Put { resource_version: u64::MAX, object };
        let change = Change { key, action: Some(Action::Put(put)) };
        let body = Body::Batch(Batch { seq: u64::MAX, changes: vec![change] });
        assert_eq!(decode(encode(body.clone()).unwrap()).unwrap(), body);
    }

    #[test]
    fn a_bomb_is_refused() {
        let packed = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let mut bytes = vec![ZSTD];
        bytes.extend_from_slice(&packed);
        assert!(matches!(decode(bytes.into()), Err(DecodeError::TooLong { .. })));
    }

    #[test]
    fn a_patch_of_one_field_is_small_and_checked() {
        let base = serde_like(4000, "nginx:1.25");
        let target = serde_like(4000, "nginx:1.26");
        let patch = make_patch(&base, &target).unwrap();
        assert!(patch.len() < 100, "{} bytes", patch.len());
        let hash = crate::resource::content_hash(&target);
        assert_eq!(apply_patch(&base, &patch, target.len(), hash).unwrap(), target);
        assert!(apply_patch(&target, &patch, target.len(), hash ^ 1).is_err());
        assert!(apply_patch(&base, &patch, target.len() - 1, hash).is_err());
    }

    fn serde_like(length: usize, image: &str) -> Vec<u8> {
        let mut text = format!("{{\"image\":\"{image}\"");
        let mut n = 0;
        while text.len() < length {
            n += 1;
            write!(text, ",\"field-{n}\":\"{}\"", n * 7919).unwrap();
        }
        text.push('}');
        text.into_bytes()
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            drop(decode(Bytes::from(bytes)));
        }

        #[test]
        fn any_flip_decodes_or_fails(at in any::<prop::sample::Index>(), with in any::<u8>(), text in ".{0,400}") {
            let mut bytes = encode(Body::Goodbye(Goodbye { reason: 1, detail: text })).unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            drop(decode(Bytes::from(bytes)));
        }

        #[test]
        fn what_is_encoded_is_decoded(seq in any::<u64>(), detail in ".{0,2000}") {
            for body in [Body::Ack(Ack { seq }), Body::Goodbye(Goodbye { reason: 2, detail: detail.clone() })] {
                prop_assert_eq!(decode(encode(body.clone()).unwrap()).unwrap(), body);
            }
        }

        #[test]
        fn any_patch_applies_or_fails(base in proptest::collection::vec(any::<u8>(), 0..300),
                                      patch in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(apply_patch(&base, &patch, 100, 0));
        }
    }
}
