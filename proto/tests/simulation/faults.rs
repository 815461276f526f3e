//! What must always hold, and what was wrong in systems like this one.

/// What is checked, at each step or at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Nothing is sent after a goodbye.
    LastWord,
    /// Whoever has no peer any more notices within two heartbeats.
    SilenceIsNoticed,
    /// A node has one session at a replica, and the replica knows it.
    OneSession,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident: $($invariant:ident)+;)*) => {
        /// Planted one at a time. Each has been in a system of this sort.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault {
            $($(#[$doc])* $fault,)*
        }

        impl Fault {
            pub(crate) const ALL: &[Self] = &[$(Self::$fault),*];

            /// What it breaks: one of these, whichever shows first.
            pub(crate) fn breaks(self) -> &'static [Invariant] {
                match self {
                    $(Self::$fault => &[$(Invariant::$invariant),+],)*
                }
            }
        }
    };
}

faults! {
    /// A batch is acked when it is handed to the store.
    AckBeforeStored: AckedIsStored;
    /// The newest batch is stored first, and its ack covers the others.
    CommitOutOfOrder: AckedIsStored;
    /// A crash leaves the digest of a commit and not its objects.
    TornCommit: Converges NoViolation;
    /// An object that was created anew keeps content of the one that was deleted.
    MergedWithOld: AckedIsStored;
    /// What was stored once is taken for a repeat, whatever came between.
    RepeatIgnored: AckedIsStored;
    /// A cache that has listed nothing counts as one that holds nothing.
    EmptyCacheDeletes: DeletedIsUnwanted NeverOlder NeverResurrected;
    /// A session does not wait until all has been listed.
    IncompleteCacheSyncs: SyncedIsWhole;
    /// A replica that has heard of less than its edge goes by what it has.
    LaggingReplicaSyncs: DeletedIsUnwanted NeverOlder NeverResurrected;
    /// It does so if it lags with pods alone.
    LaggingPodsSync: DeletedIsUnwanted NeverOlder NeverResurrected;
    /// How new the cloud is that deletes something is not told.
    DeletionsUntold: NeverResurrected;
    /// An edge forgets over a reconnect what it has been told of.
    SeenNotKept: DeletedIsUnwanted NeverOlder NeverResurrected;
    /// What a new list lacks stays in the cache.
    RelistKeepsGone: Converges;
    /// A resume compares all objects but one.
    ResumeSkipsKey: Converges;
    /// What changes while the inventory is awaited is not sent.
    ResumeMarksLost: Converges;
    /// What was deleted while the edge was away is taken out of its inventory.
    DeleteForgottenOverReconnect: Converges;
    /// What a pod refers to no longer is not looked at.
    UnreferencedNotMarked: Converges;
    /// The digest leaves the versions out.
    DigestOfKeys: Converges NoViolation;
    /// The digest is how many there are.
    DigestOfCount: Converges NoViolation;
    /// The digest is taken while a commit of the last session is under way.
    DigestBeforeBarrier: Converges NeverOlder NoViolation;
    /// A patch is applied to another object.
    PatchOnWrongBase: NoViolation;
    /// The edge counts as in sync before the last batch is stored.
    SyncedBeforeStored: SyncedIsWhole;
    /// A frame that the line does not take is lost.
    SendErrorDropsFrame: NoViolation Reconnects ReportArrives;
    /// Two frames of one lane change places.
    LaneReordered: NoViolation ReportOrder SyncedIsWhole;
    /// What comes over an old connection is taken for the new session's.
    OldConnectionFrames: NoViolation;
    /// Each change of a key waits for its turn, not each key.
    BacklogUncoalesced: Bounded;
    /// What changes while something of the node waits for the end of its interval is not looked at.
    MarksLostWhileHeld: Converges;
    /// The cloud says that all has been sent after it said goodbye.
    SyncedAfterGoodbye: LastWord;
    /// Frames queue up before a slow line.
    UnboundedWriteQueue: Bounded;
    /// The edge waits for a silent cloud for ever.
    EdgeNeverGivesUp: SilenceIsNoticed;
    /// The cloud waits for a silent edge for ever.
    CloudNeverGivesUp: SilenceIsNoticed;
    /// The end of an old session takes the node out of the registry.
    TeardownEndsNewer: OneSession;
    /// A new session does not end the older one.
    TwoSessions: OneSession;
    /// A report is acked before the API server took it.
    AckedBeforeTaken: ReportIsSettled;
    /// A report that the API server did not take is acked.
    AckedOnFailure: ReportIsSettled;
    /// A report is forgotten when it is sent.
    ForgottenWhenSent: ReportIsSettled;
    /// Reports under way are forgotten when the session ends.
    ForgottenWithSession: ReportIsSettled;
    /// An ack of a report is taken for one of all before it.
    AckForgetsOlder: ReportIsSettled;
    /// Reports of one object are written side by side.
    ReportsSideBySide: ReportOrder;
    /// A state is written whatever has been written since.
    ReportsWithoutFence: ReportOrder;
    /// A renewal is taken whoever has claimed the node since.
    RenewsWithoutPrecondition: ReportOrder;
    /// A claim counts before the edge has answered.
    ClaimsWithoutCall: ReportOrder;
    /// An object is read after its session's claim was.
    ReadsAfterLook: ReportOrder;
    /// States of one object wait in the outbox one behind the other.
    StatesUncoalesced: Bounded;
    /// The outbox begins to count anew after a crash.
    NumbersRestart: ReportNumbers;
    /// The names of events begin anew after a crash.
    EventNamesRestart: EventOnce;
}
