//! What the journal and the checkpoints are made of: operations, and records that frame a list of them.

use bytes::{Buf as _, BufMut as _, Bytes};
use proto::{
    Object, ResourceKey, Version,
    codec::{self, EncodeError},
    limits::MAX_FRAME,
    message::{Body, Report, Reports},
};

/// Bytes of [`Header`] on disk.
pub(super) const HEADER: usize = 32;

/// Longest payload of a record. A change that the link can carry fits four times.
pub(super) const MAX_PAYLOAD: usize = 4 * MAX_FRAME;

/// One change of the stored state. All of them are idempotent: the last one of a key wins.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Op {
    PutObject(Object),
    DeleteObject(ResourceKey),
    PutReport(StoredReport),
    /// The cloud took it, or newer state replaced it.
    RemoveReport(u64),
    /// Dropped to stay within the outbox's bound.
    DropReport(u64),
    PutLocal(String, Bytes),
    DeleteLocal(String),
    /// `next_report` is above all ids that may have been given; a journal has it for those of reports that are in no record.
    Counters {
        next_report: u64,
        dropped_reports: u64,
    },
    /// Of checkpoints alone, the last operation: how many came before it.
    End(u64),
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct StoredReport {
    pub(super) id: u64,
    pub(super) kind: i32,
    pub(super) key: String,
    pub(super) payload: Payload,
}

/// A report's payload as it is on the disk.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// As an earlier version kept it.
    Plain(Bytes),
    /// A frame of the link with one report that has nothing but a payload: of an event a fifth is left.
    Packed(Bytes),
}

impl Payload {
    pub(super) fn pack(payload: Bytes) -> Result<Self, EncodeError> {
        let report = Report { payload, ..Report::default() };
        codec::encode(Body::Reports(Reports { reports: vec![report] })).map(Self::Packed)
    }

    pub(super) fn unpack(self) -> Option<Bytes> {
        match self {
            Self::Plain(bytes) => Some(bytes),
            Self::Packed(bytes) => match codec::decode(bytes) {
                Ok(Body::Reports(Reports { mut reports })) => reports.pop().map(|report| report.payload),
                _ => None,
            },
        }
    }

    /// As stored.
    pub(super) fn bytes(&self) -> &Bytes {
        match self {
            Self::Plain(bytes) | Self::Packed(bytes) => bytes,
        }
    }
}

/// An operation, and which bytes of a file it is.
pub(super) struct Placed {
    pub(super) op: Op,
    pub(super) offset: u64,
    pub(super) length: u32,
}

const PUT_OBJECT: u8 = 1;
const DELETE_OBJECT: u8 = 2;
const PUT_REPORT: u8 = 3;
const REMOVE_REPORT: u8 = 4;
const DROP_REPORT: u8 = 5;
const PUT_LOCAL: u8 = 6;
const DELETE_LOCAL: u8 = 7;
const COUNTERS: u8 = 8;
const END: u8 = 9;
const PUT_PACKED: u8 = 10;

impl Op {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::PutObject(object) => {
                out.put_u8(PUT_OBJECT);
                put_bytes(out, object.key.as_str().as_bytes());
                out.put_u64_le(object.version.hash);
                out.put_u64_le(object.version.resource_version);
                put_bytes(out, &object.bytes);
            }
            Self::DeleteObject(key) => {
                out.put_u8(DELETE_OBJECT);
                put_bytes(out, key.as_str().as_bytes());
            }
            Self::PutReport(report) => {
                let start = out.len();
                let packed = matches!(report.payload, Payload::Packed(_));
                out.put_u8(if packed { PUT_PACKED } else { PUT_REPORT });
                out.put_u64_le(report.id);
                out.put_i32_le(report.kind);
                put_bytes(out, report.key.as_bytes());
                put_bytes(out, report.payload.bytes());
                if packed {
                    // It is read by itself, too, without the rest of its record.
                    out.put_u32_le(crc32fast::hash(&out[start..]));
                }
            }
            Self::RemoveReport(id) => {
                out.put_u8(REMOVE_REPORT);
                out.put_u64_le(*id);
            }
            Self::DropReport(id) => {
                out.put_u8(DROP_REPORT);
                out.put_u64_le(*id);
            }
            Self::PutLocal(key, value) => {
                out.put_u8(PUT_LOCAL);
                put_bytes(out, key.as_bytes());
                put_bytes(out, value);
            }
            Self::DeleteLocal(key) => {
                out.put_u8(DELETE_LOCAL);
                put_bytes(out, key.as_bytes());
            }
            Self::Counters { next_report, dropped_reports } => {
                out.put_u8(COUNTERS);
                out.put_u64_le(*next_report);
                out.put_u64_le(*dropped_reports);
            }
            Self::End(count) => {
                out.put_u8(END);
                out.put_u64_le(*count);
            }
        }
    }

    /// Takes a record's payload apart. `None` when it is not exactly a list of operations, which under a right
    /// checksum means a newer version of the format.
    pub(super) fn decode_all(payload: Bytes) -> Option<Vec<Self>> {
        Some(Self::decode_placed(payload, 0)?.into_iter().map(|placed| placed.op).collect())
    }

    /// As [`decode_all`](Self::decode_all), for a payload that is at `start` in its file.
    pub(super) fn decode_placed(mut payload: Bytes, start: u64) -> Option<Vec<Placed>> {
        let (mut ops, length) = (Vec::new(), payload.len());
        while payload.has_remaining() {
            let before = payload.len();
            let op = Self::decode(&mut payload)?;
            let offset = start + (length - before) as u64;
            ops.push(Placed { op, offset, length: u32::try_from(before - payload.len()).ok()? });
        }
        Some(ops)
    }

    fn decode(from: &mut Bytes) -> Option<Self> {
        let whole = from.clone();
        Some(match from.try_get_u8().ok()? {
            PUT_OBJECT => {
                let key = get_key(from)?;
                let hash = from.try_get_u64_le().ok()?;
                let resource_version = from.try_get_u64_le().ok()?;
                let bytes = get_bytes(from)?;
                Self::PutObject(Object { key, version: Version { hash, resource_version }, bytes })
            }
            DELETE_OBJECT => Self::DeleteObject(get_key(from)?),
            PUT_REPORT => {
                let id = from.try_get_u64_le().ok()?;
                let kind = from.try_get_i32_le().ok()?;
                let key = get_text(from)?;
                let payload = Payload::Plain(get_bytes(from)?);
                Self::PutReport(StoredReport { id, kind, key, payload })
            }
            PUT_PACKED => {
                let id = from.try_get_u64_le().ok()?;
                let kind = from.try_get_i32_le().ok()?;
                let key = get_text(from)?;
                let payload = Payload::Packed(get_bytes(from)?);
                let crc = crc32fast::hash(&whole[..whole.len() - from.len()]);
                (from.try_get_u32_le().ok()? == crc).then_some(())?;
                Self::PutReport(StoredReport { id, kind, key, payload })
            }
            REMOVE_REPORT => Self::RemoveReport(from.try_get_u64_le().ok()?),
            DROP_REPORT => Self::DropReport(from.try_get_u64_le().ok()?),
            PUT_LOCAL => {
                let key = get_text(from)?;
                Self::PutLocal(key, get_bytes(from)?)
            }
            DELETE_LOCAL => Self::DeleteLocal(get_text(from)?),
            COUNTERS => {
                let next_report = from.try_get_u64_le().ok()?;
                let dropped_reports = from.try_get_u64_le().ok()?;
                Self::Counters { next_report, dropped_reports }
            }
            END => Self::End(from.try_get_u64_le().ok()?),
            _ => return None,
        })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Every length was checked against a limit far below this before it came here.
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn get_bytes(from: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(from.try_get_u32_le().ok()?).ok()?;
    (length <= from.len()).then(|| from.split_to(length))
}

fn get_text(from: &mut Bytes) -> Option<String> {
    String::from_utf8(get_bytes(from)?.into()).ok()
}

fn get_key(from: &mut Bytes) -> Option<ResourceKey> {
    get_text(from)?.parse().ok()
}

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    /// CRC-32 of the rest of the header and of the payload.
    pub(super) crc: u32,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    /// Every record up to this one was on the disk for certain before this one was written. It tells a torn tail,
    /// in which records are missing that nobody was promised, from damage in the middle.
    pub(super) durable: u64,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Self {
        let mut from = &bytes[..];
        Self {
            length: from.get_u32_le(),
            crc: from.get_u32_le(),
            epoch: from.get_u64_le(),
            sequence: from.get_u64_le(),
            durable: from.get_u64_le(),
        }
    }

    /// Whether `header`, of which this was decoded, and `payload` are what was written.
    pub(super) fn fits(&self, header: &[u8; HEADER], payload: &[u8]) -> bool {
        checksum(header, payload) == self.crc
    }
}

/// Appends a whole record to `out`; `fill` appends the payload.
pub(super) fn append(
    out: &mut Vec<u8>,
    epoch: u64,
    sequence: u64,
    durable: u64,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.put_bytes(0, HEADER);
    fill(out);
    let length = u32::try_from(out.len() - start - HEADER).unwrap_or(u32::MAX);
    let mut header = [0; HEADER];
    let mut at = &mut header[..];
    at.put_u32_le(length);
    at.put_u32_le(0);
    at.put_u64_le(epoch);
    at.put_u64_le(sequence);
    at.put_u64_le(durable);
    let crc = checksum(&header, &out[start + HEADER..]);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    out[start..start + HEADER].copy_from_slice(&header);
}

fn checksum(header: &[u8; HEADER], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..4]);
    crc.update(&header[8..]);
    crc.update(payload);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_operation_comes_back() {
        let key: ResourceKey = "Pod/default/web-0".parse().unwrap();
        let ops = [
            Op::PutObject(Object::new(key.clone(), 7, Bytes::from_static(b"{}"))),
            Op::DeleteObject(key),
            Op::PutReport(StoredReport {
                id: 9,
                kind: 4,
                key: "Pod/a/b".into(),
                payload: Payload::Plain(Bytes::from_static(b"x")),
            }),
            Op::PutReport(StoredReport {
                id: 10,
                kind: 4,
                key: "Pod/a/b".into(),
                payload: Payload::pack(Bytes::from_static(b"x")).unwrap(),
            }),
            Op::RemoveReport(1),
            Op::DropReport(2),
            Op::PutLocal("clock".into(), Bytes::new()),
            Op::DeleteLocal("clock".into()),
            Op::Counters { next_report: 3, dropped_reports: 4 },
            Op::End(8),
        ];
        let mut bytes = Vec::new();
        for op in &ops {
            op.encode(&mut bytes);
        }
        assert!(Op::decode_all(bytes.into()).unwrap() == ops);
    }

    #[test]
    fn a_packed_report_shows_damage_by_itself() {
        let payload = Payload::pack(Bytes::from_static(b"{}")).unwrap();
        let mut whole = Vec::new();
        Op::PutReport(StoredReport { id: 10, kind: 4, key: "Pod/a/b".into(), payload }).encode(&mut whole);
        for at in 1..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(Op::decode_all(damaged.into()).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(0u8..12, 0..200)) {
            let ops = Op::decode_all(bytes.clone().into());
            if let Some(ops) = ops {
                let mut again = Vec::new();
                for op in &ops {
                    op.encode(&mut again);
                }
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
