//! Every bound of the link, in one place, with its reason.

/// Longest frame either side accepts, before and after decompression: one object of etcd's limit (1.5 MiB) doubles
/// at worst when its JSON is escaped inside another, and 4 MiB leaves room for the rest of the message.
pub const MAX_FRAME: usize = 4 << 20;

/// An object's bytes: what a frame has room for beside all else that it says of one.
pub const MAX_OBJECT: usize = MAX_FRAME - (16 << 10);

/// A batch is closed once its changes reach this size, so that a heartbeat never waits behind much more.
pub const BATCH_BYTES: usize = 128 << 10;

/// Changes in one batch: an edge commits a batch in one transaction, and holds it in memory meanwhile.
pub const BATCH_CHANGES: usize = 256;

/// Batches sent and not yet acked. More would only hide a slow disk at the edge from the cloud.
pub const WINDOW_BATCHES: usize = 4;

/// Entries in one inventory frame (about 100 bytes each).
pub const INVENTORY_CHUNK: usize = 2_000;

/// Entries in a whole inventory: far above any real site (500 pods with 20 objects each), and what a cloud
/// replica is willing to hold for one node that it does not know yet.
pub const INVENTORY_ENTRIES: usize = 200_000;

/// Kinds of objects that an edge is told of: far above what the cloud watches.
pub const MAX_KINDS: usize = 64;

/// Reports sent and not yet acked.
pub const WINDOW_REPORTS: usize = 64;

/// Questions asked and not yet answered: an edge asks for a token a pod and volume.
pub const WINDOW_QUESTIONS: usize = 256;

/// Fields of a frame, those of its message's parts not counted: a whole chunk of an inventory, with room to spare. An empty part
/// is two bytes on the line, and a hundred in memory: by its length alone a frame would be let grow fifty times.
pub const MAX_FIELDS: usize = INVENTORY_CHUNK + 64;

/// Bytes of the objects that one batch puts, after its patches were applied.
pub const BATCH_OBJECTS: usize = 2 * MAX_FRAME;

/// A report's payload: a pod status with 100 containers is about 100 KiB.
pub const MAX_REPORT: usize = 512 << 10;

/// A resource key's text: kind (63) and group (253), namespace (63) and name (253), with separators.
pub const MAX_KEY: usize = 700;

/// Any other string of the protocol: versions, reasons.
pub const MAX_TEXT: usize = 1 << 10;

/// CAs that an edge trusts at a time: one, and two while it is rotated. Twice as many, for a step that nobody has thought of.
pub const MAX_AUTHORITIES: usize = 4;

/// A CA's certificate: those of cloudcore have 400 bytes.
pub const MAX_CERTIFICATE: usize = 4 << 10;
