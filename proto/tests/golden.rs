//! The bytes of the protocol, which other versions have in the field: `golden/1` holds each message of protocol 1 as a frame, a
//! line each, `name hex`. What is there never changes; a newer version adds lines or a file.
//!
//! `golden/other` holds what peers of other versions send.

#![expect(clippy::unwrap_used, reason = "it is all test, helpers too")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proto::{
    Object, ResourceKey, Seen,
    codec::{self, DecodeError},
    dictionary,
    message::{
        Ack, Action, Answer, Authorities, AuthoritiesHeld, Batch, Body, Change, Delete, DownSettings,
        Goodbye, GoodbyeReason, Hello, Inventory, InventoryEntry, InventoryRequest, Patch, Ping, Pong,
        Position, Put, Question, Report, ReportAck, ReportAcks, ReportKind, Reports, Request, Response,
        Synced, TokenQuestion, Welcome,
    },
    session::{CloudEvent, CloudSession, EdgeEvent, EdgeSession, Freshness, View},
};

const BEAT: Duration = Duration::from_secs(70);

fn frames(text: &str) -> BTreeMap<&str, Bytes> {
    let hex = |digits: &str| {
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<u8>>()
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, digits)| (name, Bytes::from(hex(digits))))
        .collect()
}

fn of_version_1() -> BTreeMap<&'static str, Bytes> {
    frames(include_str!("golden/1"))
}

fn of_others() -> BTreeMap<&'static str, Bytes> {
    frames(include_str!("golden/other"))
}

fn messages() -> Vec<(&'static str, Body)> {
    let text = str::to_owned;
    let change = |key: &str, action| Change { key: key.to_owned(), action: Some(action) };
    let pod = "Pod/default/web-0";
    let object = Bytes::from_static(br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-0"}}"#);
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        software: text("edgecore v0.1.0"),
        node: text("edge-1"),
        digest_count: 2,
        digest_high: 3,
        digest_low: 4,
        heartbeat_ms: 70_000,
        seen: vec![Position { kind: text("Pod"), resource_version: 48_211_937 }],
        dictionary: 1,
        own: None,
        kept: None,
    };
    let down = DownSettings {
        full: Some(true),
        compression: Some(false),
        bandwidth: Some(8000),
        ..DownSettings::default()
    };
    let settled = Hello { own: Some(down), kept: Some(DownSettings::default()), ..hello.clone() };
    let classes = DownSettings {
        critical_ms: Some(0),
        standard_ms: Some(3_600_000),
        batch_ms: Some(31_622_400_000),
        ..DownSettings::default()
    };
    let classed = Hello { own: Some(classes), ..hello.clone() };
    let changes = vec![
        change(pod, Action::Put(Put { resource_version: 7, object })),
        change(
            pod,
            Action::Patch(Patch {
                resource_version: 8,
                base: 9,
                hash: 10,
                length: 11,
                patch: Bytes::from_static(b"zstd"),
            }),
        ),
        change(pod, Action::Delete(Delete { resource_version: 12 })),
    ];
    let report = |id, kind: ReportKind| Report {
        id,
        kind: kind.into(),
        key: text(pod),
        payload: Bytes::from_static(br#"{"uid":"u"}"#),
    };
    let reports =
        [ReportKind::NodeStatus, ReportKind::PodStatus, ReportKind::PodTerminated, ReportKind::Event];
    let token = TokenQuestion {
        namespace: text("default"),
        service_account: text("robot"),
        pod_name: text("web-0"),
        pod_uid: text("u"),
        audiences: vec![text("vault"), text("bank")],
        expiration_seconds: 3600,
    };
    let acks = vec![
        ReportAck { id: 1, refused: String::new() },
        ReportAck { id: 2, refused: text("the pod does not exist") },
    ];
    let welcome = Welcome {
        protocol: 1,
        software: text("cloudcore v0.1.0"),
        unix_ms: 1_790_000_000_000,
        dictionary: 1,
        sync_config: None,
    };
    let elsewhere = Welcome { sync_config: Some(text("fleet/sync")), ..welcome.clone() };
    let held = AuthoritiesHeld { trusted: vec![14, 15], issuer: 14 };
    let authorities =
        Authorities { certificates: vec![Bytes::from_static(b"DER")], renew_within_seconds: 60 };
    vec![
        ("hello", Body::Hello(hello)),
        ("hello-with-settings", Body::Hello(settled)),
        ("hello-with-classes", Body::Hello(classed)),
        ("welcome", Body::Welcome(welcome)),
        ("welcome-with-sync-config", Body::Welcome(elsewhere)),
        (
            "request-authorities",
            Body::Request(Request { id: 16, question: Some(Question::Authorities(held)) }),
        ),
        (
            "response-authorities",
            Body::Response(Response { id: 16, answer: Some(Answer::Authorities(authorities)) }),
        ),
        (
            "goodbye",
            Body::Goodbye(Goodbye { reason: GoodbyeReason::Superseded.into(), detail: text("newer") }),
        ),
        ("inventory-request", Body::InventoryRequest(InventoryRequest { forget: true })),
        (
            "inventory",
            Body::Inventory(Inventory {
                entries: vec![InventoryEntry { key: text(pod), hash: 5 }],
                last: true,
            }),
        ),
        ("batch", Body::Batch(Batch { seq: 6, changes })),
        ("synced", Body::Synced(Synced {})),
        ("ack", Body::Ack(Ack { seq: 13 })),
        (
            "reports",
            Body::Reports(Reports {
                reports: (1..).zip(reports).map(|(id, kind)| report(id, kind)).collect(),
            }),
        ),
        ("report-acks", Body::ReportAcks(ReportAcks { acks })),
        ("ping", Body::Ping(Ping::default())),
        ("pong", Body::Pong(Pong::default())),
        ("ping-numbered", Body::Ping(Ping { number: 300 })),
        ("pong-numbered", Body::Pong(Pong { number: 300 })),
        (
            "question-token",
            Body::Request(Request { id: 14, question: Some(Question::ServiceAccountToken(token)) }),
        ),
        (
            "question-certificate",
            Body::Request(Request {
                id: 15,
                question: Some(Question::Certificate(Bytes::from_static(b"csr"))),
            }),
        ),
        ("answer-refused", Body::Response(Response { id: 14, answer: Some(Answer::Refused(text("no"))) })),
        (
            "answer-token",
            Body::Response(Response {
                id: 14,
                answer: Some(Answer::ServiceAccountToken(Bytes::from_static(b"{}"))),
            }),
        ),
        (
            "answer-certificate",
            Body::Response(Response {
                id: 15,
                answer: Some(Answer::Certificate(Bytes::from_static(b"der"))),
            }),
        ),
    ]
}

/// Plain, as whatever is shorter is written by the next zstd otherwise.
fn plain(body: &Body) -> Bytes {
    use prost::Message as _;
    [vec![0], proto::Frame::from(body.clone()).encode_to_vec()].concat().into()
}

#[test]
fn the_bytes_of_version_1_are_as_they_were() {
    let (golden, messages) = (of_version_1(), messages());
    for (name, body) in &messages {
        let written = plain(body);
        assert_eq!(golden.get(name), Some(&written), "{name} {written:02x?}");
        assert_eq!(codec::decode(written).unwrap(), *body, "{name}");
        assert_eq!(codec::decode(codec::encode(body.clone()).unwrap()).unwrap(), *body, "{name}");
    }
    // As they were sent, compressed.
    for name in ["batch", "reports"] {
        let packed = golden[format!("{name}-with-dictionary-1").as_str()].clone();
        assert_eq!(packed[0], 2);
        assert_eq!(codec::decode(packed).unwrap(), codec::decode(golden[name].clone()).unwrap());
    }
}

/// Nothing is anybody's here.
struct Nothing;

impl View for Nothing {
    fn freshness(&self, _: &Seen) -> Freshness {
        Freshness::Current
    }
    fn get(&self, _: &ResourceKey) -> Option<Object> {
        None
    }
    fn objects(&self) -> Vec<Object> {
        Vec::new()
    }
    fn knows(&self, _: &ResourceKey) -> bool {
        true
    }
    fn newest_change(&self, _: &str) -> u64 {
        0
    }
}

fn cloud() -> CloudSession {
    CloudSession::new("edge-1".to_owned(), "cloudcore v0.1.0".to_owned(), 1, Instant::now())
}

/// What the cloud answers to a hello, and whether the session goes on.
fn greet(hello: Bytes) -> (Body, bool) {
    let mut cloud = cloud();
    let goes_on = cloud.handle_frame(codec::decode(hello).unwrap(), Instant::now()).is_ok();
    (cloud.poll_frame(&Nothing).unwrap(), goes_on)
}

#[test]
fn edges_of_other_versions_are_welcome_or_told_what_to_do() {
    let others = of_others();
    for (name, dictionary) in [
        ("hello-without-dictionary", dictionary::FIRST),
        ("hello-with-dictionary-9", dictionary::NEWEST),
        ("hello-of-tomorrow", dictionary::NEWEST),
    ] {
        let (Body::Welcome(welcome), true) = greet(others[name].clone()) else {
            panic!("{name}: no welcome")
        };
        assert_eq!((welcome.protocol, welcome.dictionary), (1, dictionary), "{name}");
    }
    for (name, told) in [
        (
            "hello-of-protocol-2",
            "the edge (edgecore v9.0.0) speaks protocol 2 to 3, the cloud (cloudcore v0.1.0) 1 to 1: upgrade cloudcore",
        ),
        (
            "hello-of-protocol-0",
            "the edge (edgecore v0.0.1) speaks protocol 0 to 0, the cloud (cloudcore v0.1.0) 1 to 1: upgrade edgecore",
        ),
    ] {
        let (Body::Goodbye(goodbye), false) = greet(others[name].clone()) else {
            panic!("{name}: no goodbye")
        };
        assert_eq!((goodbye.reason(), goodbye.detail.as_str()), (GoodbyeReason::Protocol, told));
    }
}

#[test]
fn clouds_of_other_versions_are_understood_or_left() {
    let (others, now) = (of_others(), Instant::now());
    let greeted = |name: &str| {
        let mut edge = EdgeSession::new("edge-1", "edgecore v0.1.0", Default::default(), BEAT, now);
        let welcome = codec::decode(others[name].clone()).unwrap();
        edge.handle_frame(welcome, &|_| None, now).map(|()| edge).map_err(|error| error.to_string())
    };
    for name in ["welcome-without-dictionary", "welcome-of-tomorrow"] {
        assert_eq!(greeted(name).map(|edge| edge.dictionary()), Ok(dictionary::FIRST), "{name}");
    }
    let told = |name: &str| greeted(name).err().unwrap();
    assert!(
        told("welcome-of-protocol-2")
            .ends_with("(cloudcore v9.0.0) chose protocol 2; this edge speaks 1 to 1")
    );
    assert!(told("welcome-with-dictionary-9").ends_with("chose dictionary 9; this edge has none after 1"));
}

#[test]
fn what_is_unknown_is_refused_and_the_session_goes_on_where_it_can() {
    let (others, now) = (of_others(), Instant::now());
    let mut cloud = cloud();
    cloud.handle_frame(codec::decode(of_version_1()["hello"].clone()).unwrap(), now).unwrap();
    // A question and a report of kinds to come: whoever drives the session refuses them.
    for name in ["question-of-tomorrow", "report-of-tomorrow"] {
        cloud.handle_frame(codec::decode(others[name].clone()).unwrap(), now).unwrap();
    }
    let mut unknown = 0;
    while let Some(event) = cloud.poll_event() {
        unknown += match event {
            CloudEvent::Question(request) => u32::from(request.question.is_none()),
            CloudEvent::Report(report) => u32::from(report.kind() == ReportKind::Unspecified),
            _ => 0,
        };
    }
    assert_eq!(unknown, 2);
    // An answer of a kind to come is as good as none.
    let mut edge = EdgeSession::new("edge-1", "edgecore v0.1.0", Default::default(), BEAT, now);
    for frame in [&of_version_1()["welcome"], &others["answer-of-tomorrow"]] {
        edge.handle_frame(codec::decode(frame.clone()).unwrap(), &|_| None, now).unwrap();
    }
    let refused = std::iter::from_fn(|| edge.poll_event())
        .any(|event| matches!(event, EdgeEvent::Answered { id: 14, answer: Answer::Refused(_) }));
    assert!(refused);
    // A whole message of a kind to come has no answer in this version.
    assert!(matches!(codec::decode(others["message-of-tomorrow"].clone()), Err(DecodeError::Unknown(40))));
}
