//! Makes the dictionary of `proto::dictionary`: `cargo run --release -p proto --example dictionary`.
//!
//! The samples are frames as cloud and edge make them, of objects that are made up here from a fixed seed: no
//! cluster is asked, and each run writes the same bytes (as long as zstd's trainer stays as it is). A dictionary
//! that is in use is never trained again: a better one gets the next number.

mod json;
mod objects;
mod pods;
mod random;
mod reports;

use std::{error::Error, fs, path::Path};

use bytes::Bytes;
use prost::Message as _;
use proto::{
    codec,
    message::{
        Action, Batch, Body, Change, Delete, Frame, Inventory, InventoryEntry, Patch, Put, Report, ReportAck,
        ReportAcks, ReportKind, Reports,
    },
};

use objects::Sample;
use random::Random;

const NUMBER: u32 = 1;
/// Another seed makes a dictionary that is better or worse by one per cent.
const SEED: u64 = 1;
const FRAMES: usize = 12_000;
/// See `proto::dictionary`.
const SIZE: usize = 15_872;

fn main() -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(SEED);
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(|_| Frame::from(body(&mut random)).encode_to_vec()).collect();
    let mut dictionary = zstd::dict::from_samples(&frames, SIZE)?;
    // After the magic number stands the id. zstd has taken four bytes at random; a small one costs each frame one.
    dictionary[4..8].copy_from_slice(&NUMBER.to_le_bytes());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/dictionary/{NUMBER}.zdict"));
    fs::write(path, dictionary)?;
    Ok(())
}

/// One frame, each kind about as often as the line carries it.
fn body(random: &mut Random) -> Body {
    match random.below(100) {
        0..=54 => batch(random, false),
        55..=66 => batch(random, true),
        67..=69 => inventory(random),
        70..=71 => acks(random),
        _ => reports(random),
    }
}

fn batch(random: &mut Random, patches: bool) -> Body {
    let count = if random.percent(85) { 1 } else { random.between(2, 5) };
    let changes = (0..count).map(|_| if patches { update(random) } else { delivery(random) }).collect();
    Body::Batch(Batch { seq: random.between(1, 500), changes })
}

fn delivery(random: &mut Random) -> Change {
    let Sample { key, json } = object(random);
    let put = Put { resource_version: random.between(1000, 90_000_000), object: json.into() };
    Change { key, action: Some(Action::Put(put)) }
}

fn object(random: &mut Random) -> Sample {
    match random.below(100) {
        0..=54 => {
            let pod = pods::pod(random);
            Sample { key: format!("Pod/{}/{}", pod.namespace, pod.name), json: pod.json }
        }
        55..=74 => objects::config_map(random),
        75..=82 => objects::secret(random),
        83..=86 => objects::node(random),
        87..=90 => objects::claim(random),
        91..=93 => objects::volume(random),
        94 => objects::runtime_class(random),
        95..=97 => objects::device(random),
        _ => objects::device_model(random),
    }
}

/// A change of one field, or the end of the object.
fn update(random: &mut Random) -> Change {
    let Sample { key, json } = object(random);
    if random.percent(15) {
        return Change {
            key,
            action: Some(Action::Delete(Delete { resource_version: random.between(1000, 90_000_000) })),
        };
    }
    let time = random.time();
    let target = match random.below(3) {
        0 => json.replacen(r#""generation":1"#, r#""generation":2"#, 1),
        1 => json.replacen(r#""labels":{"#, r#""deletionTimestamp":"#, 1).replacen(
            r#""deletionTimestamp":"#,
            &format!(r#""deletionTimestamp":"{time}","deletionGracePeriodSeconds":30,"labels":{{"#),
            1,
        ),
        _ => json.replacen(":1", ":2", 1),
    };
    let patch = codec::make_patch(json.as_bytes(), target.as_bytes()).unwrap_or_default();
    let [base, hash] =
        [random.below(u64::MAX), random.below(u64::MAX)].map(|hash| hash.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let length = u32::try_from(target.len()).unwrap_or_default();
    let patch = Patch { resource_version: random.between(1000, 90_000_000), base, hash, length, patch };
    Change { key, action: Some(Action::Patch(patch)) }
}

fn inventory(random: &mut Random) -> Body {
    let entries = (0..random.between(1, 30))
        .map(|_| InventoryEntry {
            key: object(random).key,
            hash: random.below(u64::MAX).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        })
        .collect();
    Body::Inventory(Inventory { entries, last: true })
}

fn acks(random: &mut Random) -> Body {
    let first = random.between(1, 100_000);
    let acks = (first..=first + random.below(5)).map(|id| ReportAck { id, refused: String::new() }).collect();
    Body::ReportAcks(ReportAcks { acks })
}

fn reports(random: &mut Random) -> Body {
    let first = random.between(1, 100_000);
    let count = if random.percent(75) { 1 } else { random.between(2, 5) };
    let reports = (first..first + count)
        .map(|id| {
            let (kind, sample) = match random.below(100) {
                0..=49 => (ReportKind::PodStatus, reports::pod_status(random)),
                50..=84 => (ReportKind::Event, reports::event(random)),
                85..=92 => (ReportKind::PodTerminated, reports::pod_terminated(random)),
                _ => (ReportKind::NodeStatus, reports::node_status(random)),
            };
            let payload = Bytes::from(sample.json);
            Report { id, kind: kind.into(), key: sample.key, payload }
        })
        .collect();
    Body::Reports(Reports { reports })
}
