//! What both ends know of frames before the first is sent: most of an object is what all objects have.
//!
//! The dictionary is made by `examples/dictionary` from objects that are made up there. It is part of the
//! protocol: its bytes never change. A better one gets the next number, and is used with a peer that has said
//! that it has it. That the example still makes these bytes is not tested: it takes ten seconds without
//! optimisation, and the next zstd may train otherwise.
//!
//! Its size: half of it makes a pod a tenth longer and a node status two fifths; twice of it makes nothing but a
//! node status shorter by more than a few per cent. With 400 bytes more zstd takes tables of twice the size.
//!
//! Its level: from 3 to 6 frames lose up to a seventh, above 6 hardly anything. A pod of 5 KB then takes 45 µs
//! instead of 21, its status 23 instead of 14. 12 µs of each are the context that every call makes: to keep one
//! would cost each thread 140 KiB and more.

use std::sync::LazyLock;

use zstd::dict::{DecoderDictionary, EncoderDictionary};

/// In the header of each frame that was compressed with it.
pub(crate) const ID: u32 = 1;

static BYTES: &[u8] = include_bytes!("dictionary/1.zdict");

const LEVEL: i32 = 6;

/// 160 KiB, from the first frame on that is compressed.
pub(crate) static ENCODER: LazyLock<EncoderDictionary<'static>> =
    LazyLock::new(|| EncoderDictionary::copy(BYTES, LEVEL));

/// 42 KiB.
pub(crate) static DECODER: LazyLock<DecoderDictionary<'static>> =
    LazyLock::new(|| DecoderDictionary::copy(BYTES));

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that differs in nothing but its id.
    pub(crate) fn other(id: u32) -> EncoderDictionary<'static> {
        let mut bytes = BYTES.to_vec();
        bytes[4..8].copy_from_slice(&id.to_le_bytes());
        EncoderDictionary::copy(&bytes, LEVEL)
    }

    #[test]
    fn the_dictionary_is_the_one_of_its_number() {
        let id = |bytes| zstd::zstd_safe::get_dict_id_from_dict(bytes).map(std::num::NonZero::get);
        assert_eq!(id(BYTES), Some(ID));
        let hash = crate::resource::content_hash(BYTES);
        assert_eq!(hash, 0x6a4d_5a72_1712_e25e, "a dictionary in use never changes");
    }
}
