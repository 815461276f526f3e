//! What can go wrong with the store, told apart by who has to do something about it.

use std::{io, path::PathBuf, sync::Arc};

use proto::codec::EncodeError;

use super::index::IndexError;

/// Why the store cannot be opened. Damaged files are no reason: they are healed, see [`super::Opened`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store in {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("failed to use the store's directory {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why a request failed. A write that failed may be repeated; until it succeeds nothing of it is promised.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A full or read-only disk, as a rule. The next write starts with a new file.
    #[error("failed to write the journal")]
    Journal {
        #[source]
        source: Arc<io::Error>,
    },
    /// After a failed write nothing is taken until a checkpoint and a new journal are on the disk.
    #[error("failed to write a checkpoint")]
    Checkpoint {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("failed to read the store")]
    Index {
        #[source]
        source: IndexError,
    },
    #[error("failed to pack a report")]
    Pack {
        #[source]
        source: Arc<EncodeError>,
    },
    #[error("{what} of {length} bytes is longer than {limit}")]
    TooLarge { what: &'static str, length: usize, limit: usize },
    #[error("the local key {key:?} is empty, too long or holds a control character")]
    LocalKey { key: String },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The disk is to blame: the same request may succeed later, with nothing else changed.
    pub fn may_heal(&self) -> bool {
        matches!(self, Self::Journal { .. } | Self::Checkpoint { .. })
    }

    pub(super) fn journal(source: io::Error) -> Self {
        Self::Journal { source: Arc::new(source) }
    }

    pub(super) fn checkpoint(source: io::Error) -> Self {
        Self::Checkpoint { source: Arc::new(source) }
    }
}

impl From<IndexError> for StoreError {
    fn from(source: IndexError) -> Self {
        Self::Index { source }
    }
}
