//! What must always hold, what was wrong in systems like this one, and what is known to be wrong in this one.

/// What is checked, at each step or at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// A batch whose ack leaves the edge is in its store, as the cloud sent it.
    AckedIsStored,
    /// What is deleted at an edge was not wanted there at some moment since.
    DeletedIsUnwanted,
    /// No version is replaced by an older one.
    NeverOlder,
    /// What was deleted does not come back in the same version.
    NeverResurrected,
    /// "Synced" is said by a replica that has listed everything, and heard when everything is stored.
    SyncedIsWhole,
    /// After quiet an edge holds its view.
    Converges,
    /// After quiet there is a session, and it is synced.
    Reconnects,
    /// A report leaves the outbox when the API server has taken it or refused it for good.
    ReportIsSettled,
    /// After quiet no report waits, and the API server has the newest state of each object.
    ReportArrives,
    /// No older state is written over a newer one.
    ReportOrder,
    /// A name stands for one event.
    EventOnce,
    /// A number of the outbox is given once.
    ReportNumbers,
    /// Nothing grows beyond its bound.
    Bounded,
    /// Honest peers do not break the protocol.
    NoViolation,
    /// Whoever has no peer any more notices within two heartbeats.
    SilenceIsNoticed,
    /// A node has one session at a replica, and the replica knows it.
    OneSession,
}

/// Planted one at a time. Each has been in a system of this sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    AckBeforeStored,
    CommitOutOfOrder,
    TornCommit,
    MergedWithOld,
    RepeatIgnored,
    EmptyCacheDeletes,
    IncompleteCacheSyncs,
    LaggingReplicaDeletes,
    LaggingReplicaOverwrites,
    LaggingPodsDelete,
    WithheldForgotten,
    RelistKeepsGone,
    ResumeSkipsKey,
    ResumeMarksLost,
    DeleteForgottenOverReconnect,
    UnreferencedNotMarked,
    DigestOfKeys,
    DigestOfCount,
    DigestBeforeBarrier,
    PatchOnWrongBase,
    SyncedBeforeStored,
    SendErrorDropsFrame,
    LaneReordered,
    OldConnectionFrames,
    BacklogUncoalesced,
    UnboundedWriteQueue,
    EdgeNeverGivesUp,
    CloudNeverGivesUp,
    TeardownEndsNewer,
    TwoSessions,
    AckedBeforeTaken,
    AckedOnFailure,
    ForgottenWhenSent,
    ForgottenWithSession,
    AckForgetsOlder,
    ReportsSideBySide,
    RetriesOutliveSession,
    StatesUncoalesced,
    NumbersRestart,
    EventNamesRestart,
}

impl Fault {
    pub(crate) const ALL: [Self; 40] = [
        Self::AckBeforeStored,
        Self::CommitOutOfOrder,
        Self::TornCommit,
        Self::MergedWithOld,
        Self::RepeatIgnored,
        Self::EmptyCacheDeletes,
        Self::IncompleteCacheSyncs,
        Self::LaggingReplicaDeletes,
        Self::LaggingReplicaOverwrites,
        Self::LaggingPodsDelete,
        Self::WithheldForgotten,
        Self::RelistKeepsGone,
        Self::ResumeSkipsKey,
        Self::ResumeMarksLost,
        Self::DeleteForgottenOverReconnect,
        Self::UnreferencedNotMarked,
        Self::DigestOfKeys,
        Self::DigestOfCount,
        Self::DigestBeforeBarrier,
        Self::PatchOnWrongBase,
        Self::SyncedBeforeStored,
        Self::SendErrorDropsFrame,
        Self::LaneReordered,
        Self::OldConnectionFrames,
        Self::BacklogUncoalesced,
        Self::UnboundedWriteQueue,
        Self::EdgeNeverGivesUp,
        Self::CloudNeverGivesUp,
        Self::TeardownEndsNewer,
        Self::TwoSessions,
        Self::AckedBeforeTaken,
        Self::AckedOnFailure,
        Self::ForgottenWhenSent,
        Self::ForgottenWithSession,
        Self::AckForgetsOlder,
        Self::ReportsSideBySide,
        Self::RetriesOutliveSession,
        Self::StatesUncoalesced,
        Self::NumbersRestart,
        Self::EventNamesRestart,
    ];
}

/// What the product does not do yet. The simulation goes round each, but for the test that shows that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gap {
    /// Equal digests tell the cloud no versions: where a content came back, a replica that lags sends one in between.
    ContentReturns,
    /// An edge remembers no deletion: a replica that lags sends the object once more.
    Resurrection,
    /// A session that lives on at one replica writes a state that is older than what the next session wrote at another.
    OverlappingReports,
}

impl Gap {
    pub(crate) const ALL: [Self; 3] = [Self::ContentReturns, Self::Resurrection, Self::OverlappingReports];
}
