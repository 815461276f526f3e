//! Everything that can be said on the link, as prost messages (wire format: protocol buffers, proto3).
//!
//! A frame holds one [`Body`]. Unknown fields are skipped, so a newer peer may add some; an unknown body is an error
//! of the codec. Field numbers are never reused.
//!
//! The course of a session: the edge sends [`Hello`], the cloud answers [`Welcome`] or [`Goodbye`]. As soon as the
//! cloud's caches are complete, and as new as what the edge has been told of, it compares digests: equal, it sends
//! [`Synced`]; else [`InventoryRequest`], the edge answers with [`Inventory`] frames, and the cloud sends the difference
//! in [`Batch`]es and then [`Synced`]. From there on batches follow changes. Each batch is acked once it is durable at
//! the edge. Reports flow the other way.

/// Oldest and newest protocol version that this code speaks.
pub const PROTOCOL: (u32, u32) = (1, 1);

#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub body: Option<Body>,
}

/// Field 15 and up are left to streams (logs, exec, port-forward).
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Welcome(Welcome),
    #[prost(message, tag = "3")]
    Goodbye(Goodbye),
    #[prost(message, tag = "4")]
    InventoryRequest(InventoryRequest),
    #[prost(message, tag = "5")]
    Inventory(Inventory),
    #[prost(message, tag = "6")]
    Batch(Batch),
    #[prost(message, tag = "7")]
    Synced(Synced),
    #[prost(message, tag = "8")]
    Ack(Ack),
    #[prost(message, tag = "9")]
    Reports(Reports),
    #[prost(message, tag = "10")]
    ReportAcks(ReportAcks),
    #[prost(message, tag = "11")]
    Ping(Ping),
    #[prost(message, tag = "12")]
    Pong(Pong),
    #[prost(message, tag = "13")]
    Request(Request),
    #[prost(message, tag = "14")]
    Response(Response),
}

impl From<Body> for Frame {
    fn from(body: Body) -> Self {
        Self { body: Some(body) }
    }
}

/// First frame of the edge.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// Versions that the edge speaks, see [`PROTOCOL`].
    #[prost(uint32, tag = "1")]
    pub protocol_min: u32,
    #[prost(uint32, tag = "2")]
    pub protocol_max: u32,
    /// For people: `edgecore v0.1.0`.
    #[prost(string, tag = "3")]
    pub software: String,
    /// Must be the node of the client certificate.
    #[prost(string, tag = "4")]
    pub node: String,
    /// The digest of the desired objects in the store, see [`crate::Digest`].
    #[prost(uint64, tag = "5")]
    pub digest_count: u64,
    #[prost(fixed64, tag = "6")]
    pub digest_high: u64,
    #[prost(fixed64, tag = "7")]
    pub digest_low: u64,
    /// How often the edge pings, in milliseconds. Either side gives the link up after two of these in silence.
    #[prost(uint32, tag = "8")]
    pub heartbeat_ms: u32,
    /// By kind, the newest version that the edge has been told of in an earlier session. A cloud whose caches are older
    /// concludes nothing from them.
    #[prost(message, repeated, tag = "9")]
    pub seen: Vec<Position>,
    /// The newest dictionary that the edge has; it has those before, too. Whoever names none has the first.
    #[prost(uint32, tag = "10")]
    pub dictionary: u32,
    /// What this edge's own configuration says of the cloud's half of the link.
    #[prost(message, optional, tag = "11")]
    pub own: Option<DownSettings>,
    /// What the last good document of the cluster said of it, which counts as long as the present one is not good.
    #[prost(message, optional, tag = "12")]
    pub kept: Option<DownSettings>,
}

/// What a document of link settings says of what the cloud sends; what it leaves out is missing.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DownSettings {
    /// Objects whole, and no patches.
    #[prost(bool, optional, tag = "1")]
    pub full: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub compression: Option<bool>,
    /// Bytes a second; 0 for no cap.
    #[prost(uint64, optional, tag = "3")]
    pub bandwidth: Option<u64>,
    /// Of each class, how long changes of its objects wait for others, in milliseconds; 0 for not at all.
    #[prost(uint64, optional, tag = "4")]
    pub critical_ms: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub standard_ms: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub batch_ms: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Position {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(uint64, tag = "2")]
    pub resource_version: u64,
}

/// Not sent alone: what an edge keeps for [`Hello::seen`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Positions {
    #[prost(message, repeated, tag = "1")]
    pub positions: Vec<Position>,
}

/// First frame of the cloud, if the edge may come in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    #[prost(string, tag = "2")]
    pub software: String,
    /// The cloud's clock in milliseconds since 1970: a floor for an edge without a battery-backed clock.
    #[prost(uint64, tag = "3")]
    pub unix_ms: u64,
    /// The newest dictionary that both have: either side compresses with it from now on. Whoever names none means the first.
    #[prost(uint32, tag = "4")]
    pub dictionary: u32,
    /// `NAMESPACE/NAME` of the ConfigMap with the link settings of nodes that name none; empty: there is none. Missing:
    /// `default/sync-config`.
    #[prost(string, optional, tag = "5")]
    pub sync_config: Option<String>,
}

/// Last frame of either side.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Goodbye {
    #[prost(enumeration = "GoodbyeReason", tag = "1")]
    pub reason: i32,
    /// For people: what to do about it.
    #[prost(string, tag = "2")]
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum GoodbyeReason {
    Unspecified = 0,
    /// The peer is stopping; come back soon.
    ShuttingDown = 1,
    /// A newer connection of the same node has taken over.
    Superseded = 2,
    /// No common protocol version.
    Protocol = 3,
    /// The certificate is not that of the node, or the node may not connect.
    Forbidden = 4,
    /// The peer broke the protocol.
    Violation = 5,
    /// The edge could not store a batch (disk full, read-only).
    Storage = 6,
}

/// The cloud asks for the edge's inventory: the digests differ.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InventoryRequest {
    /// The API server itself has gone back, as after a restored backup: what the edge has been told of before does not count.
    #[prost(bool, tag = "1")]
    pub forget: bool,
}

/// What the edge holds, in chunks; the last one says so.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inventory {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<InventoryEntry>,
    #[prost(bool, tag = "2")]
    pub last: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InventoryEntry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(fixed64, tag = "2")]
    pub hash: u64,
}

/// Changes that the edge commits in one transaction.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Batch {
    /// 1, 2, 3 … within a session.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<Change>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(oneof = "Action", tags = "2, 3, 4")]
    pub action: Option<Action>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Action {
    #[prost(message, tag = "2")]
    Put(Put),
    #[prost(message, tag = "3")]
    Patch(Patch),
    #[prost(message, tag = "4")]
    Delete(Delete),
}

/// The whole object.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Put {
    #[prost(uint64, tag = "1")]
    pub resource_version: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub object: bytes::Bytes,
}

/// The object as a zstd frame whose dictionary is the version that the edge holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Patch {
    #[prost(uint64, tag = "1")]
    pub resource_version: u64,
    /// Hash of the version to patch.
    #[prost(fixed64, tag = "2")]
    pub base: u64,
    /// Hash of the result: the edge checks it before it stores.
    #[prost(fixed64, tag = "3")]
    pub hash: u64,
    /// Length of the result in bytes.
    #[prost(uint32, tag = "4")]
    pub length: u32,
    #[prost(bytes = "bytes", tag = "5")]
    pub patch: bytes::Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Delete {
    /// When the object was seen to be gone: the cloud had looked at every change of its kind up to this version.
    #[prost(uint64, tag = "1")]
    pub resource_version: u64,
}

/// The edge now holds all that the cloud wants it to hold, as of the batches before this frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Synced {}

/// Every batch up to and including `seq` is durable at the edge.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ack {
    #[prost(uint64, tag = "1")]
    pub seq: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Reports {
    #[prost(message, repeated, tag = "1")]
    pub reports: Vec<Report>,
}

/// Something that happened, or is so, at the edge.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Report {
    /// The outbox's number: grows for ever, survives restarts.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(enumeration = "ReportKind", tag = "2")]
    pub kind: i32,
    /// The object that the report is about.
    #[prost(string, tag = "3")]
    pub key: String,
    /// JSON, as the kind says.
    #[prost(bytes = "bytes", tag = "4")]
    pub payload: bytes::Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ReportKind {
    Unspecified = 0,
    /// Payload: a `v1.Node` with labels, annotations, spec.taints and status as the edge wants them registered.
    NodeStatus = 1,
    /// Payload: `{"uid": "…", "status": v1.PodStatus}`.
    PodStatus = 2,
    /// All containers of a pod with a deletionTimestamp have ended: the cloud deletes the object. Payload: `{"uid": "…"}`.
    PodTerminated = 3,
    /// Payload: a `v1.Event` with the times of the edge.
    Event = 4,
    /// Payload: `{"uid": "…", "status": DeviceStatus}` of `devices.kubeedge.io/v1beta1`, or the same of a DeviceRule.
    DeviceStatus = 5,
}

impl ReportKind {
    /// Says how something is, and not that something happened.
    pub fn is_status(self) -> bool {
        matches!(self, Self::NodeStatus | Self::PodStatus | Self::DeviceStatus)
    }

    /// State is replaced by newer state of the same key; what is not state is appended.
    pub fn is_state(self) -> bool {
        matches!(self, Self::NodeStatus | Self::PodStatus | Self::PodTerminated | Self::DeviceStatus)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportAcks {
    #[prost(message, repeated, tag = "1")]
    pub acks: Vec<ReportAck>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportAck {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Empty when the API server took it; else why it was refused for good.
    #[prost(string, tag = "2")]
    pub refused: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ping {
    /// What the pong is to say, where it matters which ping it answers.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Pong {
    /// The greatest number of the pings that this answers.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

/// A question of the edge that only the cloud can answer. Not kept over a reconnect: whoever asked asks again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Question", tags = "2, 3, 4")]
    pub question: Option<Question>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Question {
    #[prost(message, tag = "2")]
    ServiceAccountToken(TokenQuestion),
    /// A new certificate for the key that this session was opened with: a PKCS#10 request, DER.
    #[prost(bytes = "bytes", tag = "3")]
    Certificate(bytes::Bytes),
    /// Which CAs the edge should hold. Answered once that is not what it holds, so perhaps never; whoever asks again takes
    /// the earlier question back, which is refused then.
    #[prost(message, tag = "4")]
    Authorities(AuthoritiesHeld),
}

/// What an edge has on its disk, each CA by the first eight bytes of its certificate's SHA-256 (big-endian).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AuthoritiesHeld {
    /// Whose cloudcore it takes for one. The first issues, as far as the edge has been told.
    #[prost(fixed64, repeated, tag = "1")]
    pub trusted: Vec<u64>,
    /// The one of them that the edge's own certificate is from; 0 if it is none of them.
    #[prost(fixed64, tag = "2")]
    pub issuer: u64,
}

/// A token for a pod's service account (TokenRequest, `authentication.k8s.io/v1`), bound to the pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenQuestion {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub service_account: String,
    #[prost(string, tag = "3")]
    pub pod_name: String,
    #[prost(string, tag = "4")]
    pub pod_uid: String,
    /// Empty: the API server's own audience.
    #[prost(string, repeated, tag = "5")]
    pub audiences: Vec<String>,
    #[prost(uint64, tag = "6")]
    pub expiration_seconds: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5")]
    pub answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// Why the question was refused.
    #[prost(string, tag = "2")]
    Refused(String),
    /// JSON of the `TokenRequest.status`: `token`, `expirationTimestamp`.
    #[prost(bytes = "bytes", tag = "3")]
    ServiceAccountToken(bytes::Bytes),
    /// X.509, DER.
    #[prost(bytes = "bytes", tag = "4")]
    Certificate(bytes::Bytes),
    #[prost(message, tag = "5")]
    Authorities(Authorities),
}

/// The cluster's CAs, to be kept in the place of those that the edge had.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Authorities {
    /// X.509, DER. The first one issues.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub certificates: Vec<bytes::Bytes>,
    /// An edge whose certificate is from another one renews it at some time within so many seconds: a fleet does not at once.
    #[prost(uint32, tag = "2")]
    pub renew_within_seconds: u32,
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_bytes_of_what_is_said_about_authorities_stay() {
        let held = AuthoritiesHeld { trusted: vec![1, 2], issuer: 2 };
        let request =
            Frame::from(Body::Request(Request { id: 7, question: Some(Question::Authorities(held)) }));
        let bytes =
            b"\x6a\x1f\x08\x07\x22\x1b\x0a\x10\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x11\x02\0\0\0\0\0\0\0";
        assert_eq!(request.encode_to_vec(), bytes);
        assert_eq!(Frame::decode(&bytes[..]).unwrap(), request);
        let certificates = vec![bytes::Bytes::from_static(b"new"), bytes::Bytes::from_static(b"old")];
        let told = Answer::Authorities(Authorities { certificates, renew_within_seconds: 300 });
        let response = Frame::from(Body::Response(Response { id: 7, answer: Some(told) }));
        let bytes = b"\x72\x11\x08\x07\x2a\x0d\x0a\x03new\x0a\x03old\x10\xac\x02";
        assert_eq!(response.encode_to_vec(), bytes);
        assert_eq!(Frame::decode(&bytes[..]).unwrap(), response);
    }

    /// As it was before there were authorities to ask for.
    #[derive(Clone, PartialEq, prost::Message)]
    struct OlderRequest {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(bytes = "bytes", optional, tag = "3")]
        certificate: Option<bytes::Bytes>,
    }

    #[test]
    fn an_older_cloud_reads_a_question_that_it_does_not_know() {
        let question = Some(Question::Authorities(AuthoritiesHeld { trusted: vec![1], issuer: 1 }));
        let bytes = Request { id: 7, question }.encode_to_vec();
        let read = OlderRequest::decode(&bytes[..]).unwrap();
        assert_eq!(read, OlderRequest { id: 7, certificate: None });
    }
}
