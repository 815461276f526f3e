//! Why a session ended, and what of that is told to whom.

use proto::{
    codec::{DecodeError, EncodeError},
    limits::MAX_TEXT,
    message::GoodbyeReason,
    session::{Dead, Violation},
};
use runtime::link::LinkError;

use crate::cloudhub::holder::NotYours;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the edge closed the link")]
    Closed,
    #[error("the edge said goodbye ({reason:?}): {detail}")]
    Goodbye { reason: GoodbyeReason, detail: String },
    #[error("link broke")]
    Link(#[source] LinkError),
    #[error("edge sent something that is no frame")]
    Decode(#[source] DecodeError),
    #[error("frame cannot be sent")]
    Encode(#[source] EncodeError),
    #[error(transparent)]
    Violation(Violation),
    #[error(transparent)]
    Dead(Dead),
    #[error("there is no room any more for a link on which no hello has come")]
    CrowdedOut,
    #[error("a newer connection of the node took over")]
    Superseded,
    #[error("cloudcore is stopping")]
    Stopping,
    #[error("the node fell too far behind")]
    Behind,
    #[error(transparent)]
    ShutOut(NotYours),
    #[error("the edge does not answer; another session of it may have begun elsewhere")]
    Elsewhere,
    #[error("a task of the session failed")]
    Task,
}

impl End {
    /// What the edge is told, where there is something to tell.
    pub(super) fn farewell(&self) -> Option<(GoodbyeReason, String)> {
        let reason = match self {
            Self::Superseded => GoodbyeReason::Superseded,
            Self::ShutOut(_) => GoodbyeReason::Forbidden,
            Self::Stopping
            | Self::CrowdedOut
            | Self::Behind
            | Self::Elsewhere
            | Self::Task
            | Self::Encode(_) => GoodbyeReason::ShuttingDown,
            Self::Decode(_) | Self::Violation(_) => GoodbyeReason::Violation,
            Self::Closed | Self::Goodbye { .. } | Self::Link(_) | Self::Dead(_) => {
                return None;
            }
        };
        Some((reason, runtime::chain(self).to_string().chars().take(MAX_TEXT).collect()))
    }

    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Goodbye { .. } => "goodbye",
            Self::Link(LinkError::Stuck(_)) => "write timeout",
            Self::Link(_) => "broken",
            Self::Decode(_) | Self::Violation(_) => "violation",
            Self::Encode(_) | Self::Task => "internal",
            Self::Dead(_) => "silent",
            Self::CrowdedOut => "crowded out",
            Self::Superseded => "superseded",
            Self::Stopping => "stopping",
            Self::Behind => "behind",
            Self::Elsewhere => "elsewhere",
            Self::ShutOut(_) => "shut out",
        }
    }
}
