//! What both ends know of frames before the first is sent: most of an object is what all objects have.
//!
//! The dictionary is made by `examples/dictionary` from objects that are made up there. It is part of the
//! protocol: its bytes never change. A better one gets the next number and a place in `ALL`, where those before it stay: the
//! edge names its newest in the hello, the cloud the newest that both have in the welcome, and whoever names none has the first.
//! That the example still makes these bytes is not tested: it takes ten seconds without
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

/// What every peer has, and what counts until the greetings are exchanged.
pub const FIRST: u32 = 1;

/// The newest that this version has; it has those before, too.
pub const NEWEST: u32 = 1;

const LEVEL: i32 = 6;

pub(crate) struct Dictionary {
    bytes: &'static [u8],
    /// 160 KiB, from the first frame on that is compressed.
    encoder: LazyLock<EncoderDictionary<'static>>,
    /// 42 KiB.
    decoder: LazyLock<DecoderDictionary<'static>>,
}

/// By number, from [`FIRST`] on. The number is in the header of each frame, too.
static ALL: [Dictionary; NEWEST as usize] = [Dictionary {
    bytes: include_bytes!("dictionary/1.zdict"),
    encoder: LazyLock::new(|| EncoderDictionary::copy(ALL[0].bytes, LEVEL)),
    decoder: LazyLock::new(|| DecoderDictionary::copy(ALL[0].bytes)),
}];

/// The newest that this version and a peer have which has named `newest`.
pub fn common(newest: u32) -> u32 {
    newest.clamp(FIRST, NEWEST)
}

fn numbered(number: u32) -> Option<&'static Dictionary> {
    ALL.get(usize::try_from(number.checked_sub(FIRST)?).ok()?)
}

pub(crate) fn encoder(number: u32) -> Option<&'static EncoderDictionary<'static>> {
    numbered(number).map(|dictionary| &*dictionary.encoder)
}

pub(crate) fn decoder(number: u32) -> Option<&'static DecoderDictionary<'static>> {
    numbered(number).map(|dictionary| &*dictionary.decoder)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that differs from the first in nothing but its number.
    pub(crate) fn other(number: u32) -> EncoderDictionary<'static> {
        let mut bytes = ALL[0].bytes.to_vec();
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        EncoderDictionary::copy(&bytes, LEVEL)
    }

    #[test]
    fn a_dictionary_is_the_one_of_its_number() {
        let id = |bytes| zstd::zstd_safe::get_dict_id_from_dict(bytes).map(std::num::NonZero::get);
        for (number, dictionary) in (FIRST..).zip(&ALL) {
            assert_eq!(id(dictionary.bytes), Some(number));
        }
        let hash = crate::resource::content_hash(ALL[0].bytes);
        assert_eq!(hash, 0x6a4d_5a72_1712_e25e, "a dictionary in use never changes");
    }

    #[test]
    fn the_newest_is_used_that_both_have() {
        assert_eq!(
            [0, FIRST, NEWEST, NEWEST + 1, u32::MAX].map(common),
            [FIRST, FIRST, NEWEST, NEWEST, NEWEST]
        );
        assert!(encoder(NEWEST).is_some() && decoder(FIRST).is_some());
        assert!([0, NEWEST + 1, u32::MAX].into_iter().all(|number| decoder(number).is_none()));
    }
}
