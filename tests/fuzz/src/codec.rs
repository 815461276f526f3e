//! Frames, patches, and the names in them.

use bytes::Bytes;
use proto::{
    Digest, ResourceKey, Seen, codec,
    limits::{MAX_FIELDS, MAX_FRAME, MAX_KEY, MAX_KINDS},
    message::Body,
    resource::content_hash,
};

use crate::input::Input;

/// Of protocol 1 and of others, as they are kept.
const GOLDEN: [&str; 2] =
    [include_str!("../../../proto/tests/golden/1"), include_str!("../../../proto/tests/golden/other")];

pub(crate) fn frames() -> Vec<Vec<u8>> {
    let lines = GOLDEN.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
    let hex = |digits: &str| {
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    };
    lines.filter_map(|line| line.split_once(' ')).map(|(_, digits)| hex(digits)).collect()
}

/// Any bytes as a frame.
pub(crate) fn frame(bytes: &[u8]) {
    if let Ok(body) = codec::decode(Bytes::copy_from_slice(bytes)) {
        check(&body);
    }
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    frames().into_iter().filter(|frame| frame[0] == 0).map(|frame| frame[1..].to_vec()).collect()
}

/// Any bytes as the message in a frame: more of them get further.
pub(crate) fn message(bytes: &[u8]) {
    frame(&[&[0], bytes].concat());
}

fn check(body: &Body) {
    assert!(parts(body) <= MAX_FIELDS, "a frame of {} parts", parts(body));
    let again = codec::encode(body.clone()).unwrap();
    assert!(again.len() <= MAX_FRAME);
    assert_eq!(codec::decode(again).unwrap(), *body);
}

/// How much it is in memory, beside its bytes.
fn parts(body: &Body) -> usize {
    match body {
        Body::Hello(hello) => hello.seen.len(),
        Body::Inventory(inventory) => inventory.entries.len(),
        Body::Batch(batch) => batch.changes.len(),
        Body::Reports(reports) => reports.reports.len(),
        Body::ReportAcks(acks) => acks.acks.len(),
        Body::Request(request) => match &request.question {
            Some(proto::message::Question::ServiceAccountToken(question)) => question.audiences.len(),
            _ => 0,
        },
        _ => 0,
    }
}

pub(crate) fn patches() -> Vec<Vec<u8>> {
    let (base, target) =
        (br#"{"image":"nginx:1.25","replicas":1}"#, br#"{"image":"nginx:1.26","replicas":1}"#);
    let patch = codec::make_patch(base, target).unwrap();
    let with = |second: &[u8]| [&[u8::try_from(base.len()).unwrap()], &base[..], second].concat();
    vec![with(&patch), with(target)]
}

/// A base, and any bytes: as a patch of it, and as what it is to become.
pub(crate) fn patch(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (base, second) = (input.string(), input.rest());
    for length in [0, second.len(), 4096, MAX_FRAME, usize::MAX] {
        // The hash is right for nothing.
        assert!(codec::apply_patch(base, second, length, !content_hash(second)).is_err());
    }
    let patch = codec::make_patch(base, second).unwrap();
    let target = codec::apply_patch(base, &patch, second.len(), content_hash(second)).unwrap();
    assert_eq!(target, second);
    assert!(codec::apply_patch(base, &patch, second.len() + 1, content_hash(second)).is_err());
}

pub(crate) fn name_seeds() -> Vec<Vec<u8>> {
    let mut seen = Seen::default();
    seen.raise("Pod", 48_211_937);
    seen.raise("Device.devices.kubeedge.io", 1);
    vec![b"Pod/default/web-0".to_vec(), b"Node//edge-1".to_vec(), seen.to_bytes().to_vec()]
}

/// The name of an object, and how new an edge says to be.
pub(crate) fn names(bytes: &[u8]) {
    if let Ok(key) = String::from_utf8_lossy(bytes).parse::<ResourceKey>() {
        assert!(key.as_str().len() <= MAX_KEY && !key.kind().is_empty() && !key.name().is_empty());
        assert_eq!(ResourceKey::new(key.kind(), key.namespace(), key.name()).as_ref(), Ok(&key));
        let mut digest = Digest::default();
        digest.add(&key, 1);
        digest.remove(&key, 1);
        assert_eq!(digest, Digest::default());
    }
    if let Some(seen) = Seen::from_bytes(Bytes::copy_from_slice(bytes)) {
        assert!(seen.iter().count() <= MAX_KINDS);
        assert_eq!(Seen::from_bytes(seen.to_bytes()), Some(seen));
    }
}
