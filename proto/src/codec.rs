//! Frames as bytes: one byte that says how the rest is encoded, then a [`Frame`] as protocol buffers.
//!
//! | first byte | rest |
//! |---|---|
//! | 0 | the message |
//! | 1 | the message as one zstd frame; no longer sent |
//! | 2 | the message as one zstd frame with the [`dictionary`] that its header names, without the magic number that begins it |
//!
//! A number is never used again. What is on [`Lane::Control`] is plain: the greetings, in which versions are
//! told, must be understood whatever the versions are. The transport keeps message boundaries, so there is no
//! length here.

use std::{
    io::{BufRead, Read},
    num::NonZero,
    ops::RangeInclusive,
};

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use zstd::{
    bulk::{Compressor, Decompressor},
    dict::EncoderDictionary,
    stream::read::Decoder,
};

use crate::{
    Lane, dictionary,
    limits::{MAX_FIELDS, MAX_FRAME},
    message::{Body, Frame},
};

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
const DICTIONARY: u8 = 2;

/// The fields of [`Body`].
const KINDS: RangeInclusive<u32> = 1..=14;

/// [`Body::Request`] and its field: the only list that is further down.
const TOKEN_QUESTION: (u32, u32) = (13, 2);

/// What every zstd frame begins with.
const MAGIC: &[u8] = &zstd::zstd_safe::MAGICNUMBER.to_le_bytes();

/// The header of a zstd frame, with the magic number, is no longer.
const MAX_HEADER: usize = 18;

/// The shortest frame that gains is a deletion: 60 bytes are 52. Below this it is not worth the 13 µs.
const WORTH_COMPRESSING: usize = 48;

/// The longest message that an [`Encoder`] compresses with what it keeps.
const KEPT_CONTEXT: usize = 16 << 10;

/// [`MAX_FRAME`] as a power of two: no frame has to reach further back.
const WINDOW_LOG: u32 = MAX_FRAME.ilog2();

/// Level 3 is zstd's default. Here the dictionary does the work.
const PATCH_LEVEL: i32 = 3;

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
    #[error(
        "frame is compressed with dictionary {0}; this version has {first} to {newest}",
        first = dictionary::FIRST, newest = dictionary::NEWEST
    )]
    Dictionary(u32),
    #[error("failed to decode a frame")]
    Malformed(#[from] prost::DecodeError),
    #[error("frame with no message")]
    Nothing,
    #[error("message of kind {0}, which this version does not know: upgrade it, or the peer that sends it")]
    Unknown(u32),
    #[error("frame of more than {MAX_FIELDS} fields")]
    TooMany,
    #[error("patch of {patch} bytes does not yield the {length} bytes with the hash that it announces")]
    Patch { patch: usize, length: usize },
}

/// Encodes one message as it is. Who decodes it need not know.
pub fn encode_plain(body: Body) -> Result<Bytes, EncodeError> {
    Ok(plain(body)?.freeze())
}

fn plain(body: Body) -> Result<BytesMut, EncodeError> {
    let frame = Frame::from(body);
    let length = frame.encoded_len();
    if length >= MAX_FRAME {
        return Err(EncodeError::TooLong { length });
    }
    let mut plain = BytesMut::with_capacity(1 + length);
    plain.put_u8(PLAIN);
    frame.encode(&mut plain).map_err(|_| EncodeError::TooLong { length })?;
    Ok(plain)
}

/// Encodes one message, compressed where that makes it shorter, for any peer.
pub fn encode(body: Body) -> Result<Bytes, EncodeError> {
    encode_with(body, dictionary::FIRST)
}

/// As [`encode`], for a peer that has said that it has the dictionary, see [`dictionary::common`].
pub fn encode_with(body: Body, dictionary: u32) -> Result<Bytes, EncodeError> {
    pack(body, dictionary, |encoder, plain| Compressor::with_prepared_dictionary(encoder)?.compress(plain))
}

/// Does as [`encode_with`], and keeps what zstd makes for each frame anew otherwise: 140 KiB, for half of the time that a
/// small frame takes. For who has thousands of peers, one a thread.
#[derive(Default)]
pub struct Encoder {
    /// With the number of its dictionary.
    context: Option<(u32, Compressor<'static>)>,
}

impl Encoder {
    pub fn encode_with(&mut self, body: Body, dictionary: u32) -> Result<Bytes, EncodeError> {
        pack(body, dictionary, |encoder, plain| {
            // It would grow, and keep what it has.
            if plain.len() > KEPT_CONTEXT {
                return Compressor::with_prepared_dictionary(encoder)?.compress(plain);
            }
            match &mut self.context {
                Some((number, context)) if *number == dictionary => context.compress(plain),
                other => {
                    let context = Compressor::with_prepared_dictionary(encoder)?;
                    other.insert((dictionary, context)).1.compress(plain)
                }
            }
        })
    }
}

fn pack(
    body: Body,
    dictionary: u32,
    compress: impl FnOnce(&'static EncoderDictionary<'static>, &[u8]) -> std::io::Result<Vec<u8>>,
) -> Result<Bytes, EncodeError> {
    let is_control = body.lane() == Lane::Control;
    let mut plain = plain(body)?;
    let length = plain.len() - 1;
    if is_control || length < WORTH_COMPRESSING {
        return Ok(plain.freeze());
    }
    let Some(dictionary) = dictionary::encoder(dictionary) else { return Ok(plain.freeze()) };
    let packed = compress(dictionary, &plain[1..]).map_err(EncodeError::Compress)?;
    let packed = &packed[MAGIC.len()..];
    if packed.len() >= length {
        return Ok(plain.freeze());
    }
    plain.clear();
    plain.put_u8(DICTIONARY);
    plain.extend_from_slice(packed);
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
    let plain = match bytes.first() {
        None => return Err(DecodeError::Empty),
        Some(&PLAIN) => bytes.slice(1..),
        Some(&ZSTD) => {
            let decoder = Decoder::with_buffer(&bytes[1..]).map_err(DecodeError::Decompress)?;
            bounded_decompress(decoder)?
        }
        Some(&DICTIONARY) => {
            let packed = &bytes[1..];
            let header: Vec<u8> = MAGIC.iter().chain(packed).take(MAX_HEADER).copied().collect();
            let id = zstd::zstd_safe::get_dict_id_from_frame(&header).map_or(0, NonZero::get);
            let dictionary = dictionary::decoder(id).ok_or(DecodeError::Dictionary(id))?;
            let decoder = Decoder::with_prepared_dictionary(MAGIC.chain(packed), dictionary)
                .map_err(DecodeError::Decompress)?;
            bounded_decompress(decoder)?
        }
        Some(&other) => return Err(DecodeError::Encoding(other)),
    };
    let unknown = look_through(&plain)?;
    Frame::decode(plain)?.body.ok_or_else(|| unknown.map_or(DecodeError::Nothing, DecodeError::Unknown))
}

/// Counts what would take memory. Returns the kind of a message that this version does not know.
fn look_through(plain: &[u8]) -> Result<Option<u32>, DecodeError> {
    let (mut unknown, mut count) = (None, 0);
    let mut count_more = |more: usize| {
        count += more;
        if count > MAX_FIELDS { Err(DecodeError::TooMany) } else { Ok(()) }
    };
    let mut frame = plain;
    while let Some((tag, message)) = next_field(&mut frame)? {
        count_more(1)?;
        if !KINDS.contains(&tag) {
            unknown = Some(tag);
            continue;
        }
        let mut message = message.unwrap_or_default();
        while let Some((of_message, part)) = next_field(&mut message)? {
            count_more(1)?;
            let mut part = part.filter(|_| (tag, of_message) == TOKEN_QUESTION).unwrap_or_default();
            while next_field(&mut part)?.is_some() {
                count_more(1)?;
            }
        }
    }
    Ok(unknown)
}

type Field<'a> = (u32, Option<&'a [u8]>);

/// Takes one field off: its number, and its bytes where it has a length.
fn next_field<'a>(message: &mut &'a [u8]) -> Result<Option<Field<'a>>, prost::DecodeError> {
    if message.is_empty() {
        return Ok(None);
    }
    let (tag, wire_type) = decode_key(message)?;
    let before = *message;
    skip_field(wire_type, tag, message, DecodeContext::default())?;
    let mut field = &before[..before.len() - message.len()];
    let bytes = match wire_type {
        WireType::LengthDelimited => {
            decode_varint(&mut field)?;
            Some(field)
        }
        _ => None,
    };
    Ok(Some((tag, bytes)))
}

fn bounded_decompress(mut decoder: Decoder<'_, impl BufRead>) -> Result<Bytes, DecodeError> {
    decoder.window_log_max(WINDOW_LOG).map_err(DecodeError::Decompress)?;
    // A frame of a few bytes may claim gigabytes: read up to the bound, growing as bytes really come.
    let mut plain = Vec::new();
    decoder.take(MAX_FRAME as u64 + 1).read_to_end(&mut plain).map_err(DecodeError::Decompress)?;
    if plain.len() > MAX_FRAME {
        return Err(DecodeError::TooLong { length: plain.len() });
    }
    Ok(plain.into())
}

/// The difference from `base` to `target`: `target` compressed with `base` as the dictionary.
pub fn make_patch(base: &[u8], target: &[u8]) -> Result<Bytes, EncodeError> {
    let mut compressor = Compressor::with_dictionary(PATCH_LEVEL, base).map_err(EncodeError::Compress)?;
    let patch = compressor.compress(target).map_err(EncodeError::Compress)?;
    Ok(Bytes::from(patch))
}

/// Makes the same patches as [`make_patch`], and keeps what zstd makes for each anew otherwise, for a third of the time that
/// a small object takes.
#[derive(Default)]
pub struct Differ {
    context: Option<Compressor<'static>>,
}

impl Differ {
    pub fn make_patch(&mut self, base: &[u8], target: &[u8]) -> Result<Bytes, EncodeError> {
        // It would grow, and keep what it has.
        if base.len() + target.len() > KEPT_CONTEXT {
            return make_patch(base, target);
        }
        let context = match self.context.take() {
            Some(mut context) => context.set_dictionary(PATCH_LEVEL, base).map(|()| context),
            None => Compressor::with_dictionary(PATCH_LEVEL, base),
        };
        let context = self.context.insert(context.map_err(EncodeError::Compress)?);
        context.compress(target).map(Bytes::from).map_err(EncodeError::Compress)
    }
}

impl std::fmt::Debug for Differ {
    // The context holds the bytes of an object, which may be a Secret's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Differ").finish_non_exhaustive()
    }
}

/// Applies what [`make_patch`] made; `length` and `hash` are those of the result.
pub fn apply_patch(base: &[u8], patch: &[u8], length: usize, hash: u64) -> Result<Bytes, DecodeError> {
    if length > MAX_FRAME {
        return Err(DecodeError::TooLong { length });
    }
    let wrong = || DecodeError::Patch { patch: patch.len(), length };
    let mut decompressor = Decompressor::with_dictionary(base).map_err(DecodeError::Decompress)?;
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
    use crate::message::{Ack, Action, Batch, Change, Delete, Goodbye, Ping, Put, Report, Reports};

    #[test]
    fn a_ping_is_three_bytes() {
        assert_eq!(encode(Body::Ping(Ping::default())).unwrap().len(), 3);
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
    fn an_encoder_that_is_kept_makes_the_same_frames() {
        let mut encoder = Encoder::default();
        for length in [10, 100, 5000, 40_000, 100, 1, 16_000, 300] {
            let body = report("status ".repeat(length / 7 + 1) + &length.to_string());
            let frame = encoder.encode_with(body.clone(), dictionary::FIRST).unwrap();
            assert_eq!(frame, encode_with(body.clone(), dictionary::FIRST).unwrap());
            assert_eq!(decode(frame).unwrap(), body);
        }
    }

    #[test]
    fn a_differ_makes_the_same_patches() {
        let mut differ = Differ::default();
        let object = |number: usize, length: usize| format!("{number} {}", "data ".repeat(length / 5));
        for (number, length) in [10, 700, 5000, 40_000, 700, 1, 16_000, 300].into_iter().enumerate() {
            let (base, target) = (object(number, length), object(number + 1, length + number));
            let patch = differ.make_patch(base.as_bytes(), target.as_bytes()).unwrap();
            assert_eq!(patch, make_patch(base.as_bytes(), target.as_bytes()).unwrap());
            let hash = crate::resource::content_hash(target.as_bytes());
            assert_eq!(apply_patch(base.as_bytes(), &patch, target.len(), hash).unwrap(), target);
        }
    }

    fn packed_with(dictionary: &zstd::dict::EncoderDictionary<'_>, plain: &[u8]) -> Bytes {
        let mut compressor = Compressor::with_prepared_dictionary(dictionary).unwrap();
        let packed = compressor.compress(plain).unwrap();
        [&[DICTIONARY], &packed[MAGIC.len()..]].concat().into()
    }

    fn report(payload: String) -> Body {
        let key = "Pod/default/web-0".to_owned();
        Body::Reports(Reports { reports: vec![Report { id: 7, kind: 2, key, payload: payload.into() }] })
    }

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![0; 64 << 20];
        let without = [vec![ZSTD], zstd::bulk::compress(&zeros, 3).unwrap()].concat().into();
        for bytes in [without, packed_with(dictionary::encoder(1).unwrap(), &zeros)] {
            assert!(matches!(decode(bytes), Err(DecodeError::TooLong { .. })));
        }
    }

    /// Two bytes each on the line, a hundred in memory.
    #[test]
    fn a_frame_of_empty_parts_is_refused() {
        let length_delimited = |tag: u8, content: &[u8]| {
            let mut field = vec![tag << 3 | 2];
            prost::encoding::encode_varint(content.len() as u64, &mut field);
            [&field[..], content].concat()
        };
        // Positions, entries, changes, reports, acks; and audiences, one level further down.
        for (kind, list) in [(1, 9), (5, 1), (6, 2), (9, 1), (10, 1), (13, 5)] {
            let parts = |count| {
                let list = [list << 3 | 2, 0].repeat(count);
                let message = if kind == 13 { length_delimited(2, &list) } else { list };
                let frame = length_delimited(kind, &message);
                packed_with(dictionary::encoder(1).unwrap(), &frame)
            };
            let bomb = parts(2_000_000);
            assert!(bomb.len() < 1_000, "{} bytes", bomb.len());
            assert!(matches!(decode(bomb), Err(DecodeError::TooMany)), "kind {kind}");
            assert!(decode(parts(crate::limits::INVENTORY_CHUNK)).is_ok(), "kind {kind}");
        }
        // A frame that has its message many times over.
        let again = length_delimited(11, &[]).repeat(2_000_000);
        assert!(matches!(
            decode(packed_with(dictionary::encoder(1).unwrap(), &again)),
            Err(DecodeError::TooMany)
        ));
    }

    #[test]
    fn who_sends_a_message_of_tomorrow_is_told_its_kind() {
        let error = decode(vec![PLAIN, 0x82, 6, 1, 0].into()).unwrap_err().to_string();
        assert!(error.starts_with("message of kind 96, which this version does not know"), "{error}");
        assert!(matches!(decode(vec![PLAIN].into()), Err(DecodeError::Nothing)));
    }

    #[test]
    fn a_length_that_is_a_lie_is_refused() {
        // One segment, an id of one byte, a length of four; then one raw block that is empty.
        let mut bytes = vec![DICTIONARY, 0xa1, 1];
        bytes.extend_from_slice(&(3_u32 << 30).to_le_bytes());
        bytes.extend_from_slice(&[1, 0, 0]);
        assert!(matches!(decode(bytes.into()), Err(DecodeError::Decompress(_))));
    }

    #[test]
    fn another_dictionary_is_refused() {
        let plain = Frame::from(report("x".repeat(100))).encode_to_vec();
        assert!(decode(packed_with(&dictionary::tests::other(1), &plain)).is_ok());
        let error = decode(packed_with(&dictionary::tests::other(7), &plain)).unwrap_err();
        assert_eq!(error.to_string(), "frame is compressed with dictionary 7; this version has 1 to 1");
        let none = zstd::bulk::compress(&plain, 3).unwrap();
        let none = [&[DICTIONARY], &none[MAGIC.len()..]].concat();
        assert!(matches!(decode(none.into()), Err(DecodeError::Dictionary(0))));
    }

    #[test]
    fn every_encoding_has_its_use() {
        let long = "x".repeat(500);
        assert_eq!(encode(report(long.clone())).unwrap()[0], DICTIONARY);
        assert_eq!(encode_plain(report(long.clone())).unwrap()[0], PLAIN);
        // The peer may be of any version.
        assert_eq!(encode(Body::Goodbye(Goodbye { reason: 3, detail: long })).unwrap()[0], PLAIN);
        let action = Some(Action::Delete(Delete { resource_version: 7 }));
        let changes = vec![Change { key: "ConfigMap/default/web-config-7b9f".to_owned(), action }];
        let delete = encode(Body::Batch(Batch { seq: 9, changes })).unwrap();
        assert!(delete.len() < 48, "{} bytes", delete.len());
        // As an earlier version sent it.
        let earlier = zstd::bulk::compress(&Frame::from(report(String::new())).encode_to_vec(), 3).unwrap();
        assert_eq!(decode([vec![ZSTD], earlier].concat().into()).unwrap(), report(String::new()));
        assert!(matches!(decode(vec![3, 0].into()), Err(DecodeError::Encoding(3))));
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
        fn any_bytes_decode_or_fail(mut bytes in proptest::collection::vec(any::<u8>(), 4..512)) {
            drop(decode(Bytes::from(bytes.clone())));
            // What gets as far as the dictionary.
            bytes[..3].copy_from_slice(&[DICTIONARY, 0x21, 1]);
            drop(decode(Bytes::from(bytes)));
        }

        #[test]
        fn any_flip_decodes_or_fails(at in any::<prop::sample::Index>(), with in any::<u8>(), text in ".{0,400}") {
            for body in [Body::Goodbye(Goodbye { reason: 1, detail: text.clone() }), report(text.clone() + &text)] {
                let mut bytes = encode(body).unwrap().to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= with;
                drop(decode(Bytes::from(bytes)));
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(seq in any::<u64>(), detail in ".{0,2000}") {
            let goodbye = Body::Goodbye(Goodbye { reason: 2, detail: detail.clone() });
            for body in [Body::Ack(Ack { seq }), goodbye, report(detail)] {
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
