//! What the dictionary is good for: bytes of whole frames. The objects are not those that it was trained on: other
//! templates, names and fields, written by hand after what users and vendors publish.
//!
//! `cargo test -p proto --test dictionary -- --nocapture` shows the figures, of other levels too.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "it is all test, helpers too")]

use bytes::Bytes;
use prost::Message as _;
use proto::{
    codec,
    message::{Ack, Action, Batch, Body, Change, Frame, Patch, Put, Report, ReportKind, Reports},
    resource::content_hash,
};
use zstd::{bulk::Compressor, dict::EncoderDictionary};

const POD: &str = "Pod/observability/edge-prometheus-7c9d8f6b54-x2v8q";

/// A file's lines are one line on the link.
fn object(lines: &str) -> String {
    lines.replace('\n', "")
}

fn pod() -> String {
    object(include_str!("dictionary/pod.json"))
}

fn small_pod() -> String {
    object(include_str!("dictionary/small_pod.json"))
}

fn put(key: &str, object: String) -> Change {
    let put = Put { resource_version: 48_211_937, object: object.into() };
    Change { key: key.to_owned(), action: Some(Action::Put(put)) }
}

fn batch(changes: Vec<Change>) -> Body {
    Body::Batch(Batch { seq: 17, changes })
}

fn report(kind: ReportKind, key: &str, payload: &str) -> Body {
    let payload = Bytes::from(object(payload));
    Body::Reports(Reports {
        reports: vec![Report { id: 4711, kind: kind.into(), key: key.to_owned(), payload }],
    })
}

/// The frame's length as it is sent, after printing what it would be otherwise.
fn length(what: &str, body: &Body) -> usize {
    let plain = Frame::from(body.clone()).encode_to_vec();
    let dictionary = include_bytes!("../src/dictionary/1.zdict");
    let levels = [1, 3, 6, 9].map(|level| {
        let without = zstd::bulk::compress(&plain, level).unwrap().len() + 1;
        let dictionary = EncoderDictionary::copy(dictionary, level);
        // One byte says the encoding, four of magic number are not sent.
        let with =
            Compressor::with_prepared_dictionary(&dictionary).unwrap().compress(&plain).unwrap().len() - 3;
        format!("{without:5} {with:5}")
    });
    let sent = codec::encode(body.clone()).unwrap();
    println!("{what:22} {:6} | {} | {:5}", plain.len() + 1, levels.join(" | "), sent.len());
    assert_eq!(codec::decode(sent.clone()).unwrap(), *body);
    sent.len()
}

#[test]
fn frames_are_short() {
    println!("frame                   plain | level 1     | level 3     | level 6     | level 9     |  sent");
    println!("                              | none   dict | none   dict | none   dict | none   dict |");
    let is_short = |what: &str, body: Body, most: usize| {
        let length = length(what, &body);
        assert!(length <= most, "{what} takes {length} bytes, more than {most}");
    };
    let config_map = object(include_str!("dictionary/config_map.json"));
    is_short("pod, 5.3 KB", batch(vec![put(POD, pod())]), pod().len() / 5);
    is_short("pod, 2 KB", batch(vec![put("Pod/ran/telecom-edge-app-6b5fd7c9d8-kk7wz", small_pod())]), 300);
    is_short("ConfigMap, 1 KB", batch(vec![put("ConfigMap/logging/fluent-bit-config", config_map)]), 520);
    let twenty = (0..20).map(|n| {
        let (key, pod) = if n % 2 == 0 { (POD, pod()) } else { ("Pod/ran/app-kk7wz", small_pod()) };
        // Names and uids differ.
        let other = |text: &str| {
            let mut text = text.to_owned();
            for (old, seed) in [
                ("x2v8q", 3),
                ("9zq4t", 5),
                ("kk7wz", 7),
                ("w7dm2", 11),
                ("3f0c6a52-9d1b", 13),
                ("91d2b0f7-36c8", 17),
            ] {
                let hash = content_hash(format!("{n} {seed}").as_bytes());
                let new = format!("{hash:016x}");
                text = text.replace(old, &format!("{}-{}", &new[..8], &new[8..12])[..old.len()]);
            }
            text
        };
        put(&other(key), other(&pod))
    });
    is_short("20 pods", batch(twenty.collect()), 3300);
    is_short(
        "pod status",
        report(ReportKind::PodStatus, POD, include_str!("dictionary/pod_status.json")),
        400,
    );
    is_short("event", report(ReportKind::Event, POD, include_str!("dictionary/event.json")), 270);
    let node_status = include_str!("dictionary/node_status.json");
    is_short("node status", report(ReportKind::NodeStatus, "Node//cell-tower-1234", node_status), 700);
}

#[test]
fn a_change_of_one_field_is_shorter_still() {
    let (old, new) = (pod(), pod().replace("prometheus:v2.36.0", "prometheus:v2.37.1"));
    let patch = codec::make_patch(old.as_bytes(), new.as_bytes()).unwrap();
    println!("the patch alone: {} bytes", patch.len());
    let patch = Patch {
        resource_version: 48_211_938,
        base: content_hash(old.as_bytes()),
        hash: content_hash(new.as_bytes()),
        length: u32::try_from(new.len()).unwrap(),
        patch,
    };
    let changes = vec![Change { key: POD.to_owned(), action: Some(Action::Patch(patch)) }];
    let ack = codec::encode(Body::Ack(Ack { seq: 17 })).unwrap().len();
    let both = length("one field", &batch(changes)) + ack;
    assert!(both <= 140, "{both} bytes");
}
