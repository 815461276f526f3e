//! Drives one [`EdgeSession`] over one [`Link`]: the only place where the protocol meets sockets, the store and the clock.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use proto::{
    Lane, ResourceKey, Seen,
    codec::{self, DecodeError, EncodeError},
    limits::WINDOW_QUESTIONS,
    message::{Answer, GoodbyeReason},
    session::{Dead, EdgeEvent, EdgeSession, Violation, edge::Desired},
};
use runtime::{
    backoff::Backoff,
    link::{
        Link, LinkError, Progress,
        queue::{Frames, queue},
        quic,
        streams::Stream,
    },
    tls::Clock,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Ask, HubConfig, HubError, HubState, HubStore, Traffic,
    doubt::{Doubt, Next},
    keepalive::Keepalive,
    looks,
    network::{Network, way_to},
    settings::Settings,
    throttle::Throttle,
};
use crate::metamanager::{DesiredChange, StoreError};

mod reports;

pub(super) use reports::throttle;

/// Questions under way: one a pod that starts.
const MAX_QUESTIONS: usize = WINDOW_QUESTIONS;
/// Delays between attempts to store what the disk does not take. The session goes on: to end it would only have the cloud
/// send all of it again over a line that may be metered.
const STORE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Between pings that were asked for from outside.
const KNOCKS: Duration = Duration::from_secs(1);
/// Where the newest time that the cloud has told is kept.
const LATEST_TIME: &str = "clock";
/// In seconds.
const DAY: u64 = 86_400;
/// Time for a goodbye before the link is dropped.
const FAREWELL: Duration = Duration::from_secs(1);
/// What the greetings may say of a round trip at most: a cloudcore to which all come back at once is late with its own.
const GREETING: Duration = Duration::from_secs(1);
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Dead(#[from] Dead),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("cloud sent a frame that cannot be decoded")]
    Decode(#[from] DecodeError),
    #[error("frame cannot be encoded")]
    Encode(#[from] EncodeError),
    #[error("cloud closed the link")]
    Closed,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("store failed")]
    Store(#[from] StoreError),
}

pub(super) struct Driver<'a, S> {
    pub(super) config: &'a HubConfig,
    pub(super) clock: &'a Clock,
    pub(super) store: &'a S,
    pub(super) settings: &'a mut Settings,
    pub(super) throttle: &'a mut Throttle,
    pub(super) traffic: &'a Traffic,
    pub(super) asks: &'a mut mpsc::Receiver<Ask>,
    pub(super) streams: Option<&'a mpsc::Sender<Stream>>,
    pub(super) state: &'a watch::Sender<HubState>,
    /// Whether the line still carries what is sent is in doubt: then another link is looked for.
    pub(super) doubt: &'a watch::Sender<bool>,
    /// Told when there is one.
    pub(super) rival_is_up: &'a Notify,
    pub(super) network: &'a Network,
    pub(super) keepalive: &'a mut Keepalive,
}

/// What goes on during a session beside the protocol's own state.
struct Work {
    /// Changes handed out by the session and not yet given to the store.
    queued: VecDeque<(u64, Vec<Desired>)>,
    /// To be kept with all of it.
    seen: Seen,
    commit: Option<Commit>,
    /// Acked reports that the store could not forget yet. None of them comes twice, so the outbox bounds them.
    undone: Vec<u64>,
    questions: HashMap<u64, oneshot::Sender<Result<Answer, String>>>,
    /// The newest that was looked at: of the statuses, and of the other reports.
    reported: [u64; 2],
    /// Those that were sent in this session, or need not be, and that the store holds still, with [`Subject::key`](super::throttle::Subject::key):
    /// as many as may be under way, and those of `undone`.
    sent: HashMap<u64, u64>,
    /// There are more to look at, with or without room for them.
    unseen: bool,
    /// The last node status that was sent, and why it says that the node is not Ready.
    node_report: Option<(u64, Option<String>)>,
    outbox_changed: bool,
    /// What the settings come from may have changed.
    resettle: bool,
    /// Objects that were committed and name a class that there is not, and what is wrong with it.
    misnamed: Vec<(String, String)>,
    /// Synced came; true once what it covers is stored.
    synced_after: Option<u64>,
    received: u64,
    progress: Progress,
    doubt: Doubt,
    begun: Instant,
    /// When something was sent last.
    sent_at: Instant,
    /// When the peer was asked last because the line was idle.
    asked_at: Instant,
    /// What was sent last came after a silence of so long, when the peer had asked so often where we are. It is not confirmed yet.
    after_silence: Option<(Duration, Option<u64>)>,
}

impl Work {
    /// When something was on the line last.
    fn idle_since(&self) -> Instant {
        self.sent_at.max(self.progress.last())
    }
}

/// The store at work.
struct Commit {
    /// The last batch of the group.
    seq: u64,
    changes: Vec<DesiredChange>,
    storing: BoxFuture<'static, Result<(), StoreError>>,
    backoff: Backoff,
}

impl Commit {
    fn start(store: &impl HubStore, seq: u64, changes: Vec<DesiredChange>) -> Self {
        let storing = store_after(Duration::ZERO, store, &changes);
        Self { seq, changes, storing, backoff: Backoff::new(STORE_RETRY.0, STORE_RETRY.1) }
    }

    fn retry(&mut self, store: &impl HubStore) {
        self.storing = store_after(self.backoff.next_delay(), store, &self.changes);
    }
}

fn store_after(
    delay: Duration,
    store: &impl HubStore,
    changes: &[DesiredChange],
) -> BoxFuture<'static, Result<(), StoreError>> {
    let (store, changes) = (store.clone(), changes.to_vec());
    async move {
        time::sleep(delay).await;
        store.apply(changes).await
    }
    .boxed()
}

impl<S: HubStore> Driver<'_, S> {
    /// Returns `Ok` only when `stop` was cancelled, or another link is to be used instead.
    pub(super) async fn run(mut self, link: Link, stop: &CancellationToken) -> Result<(), HubError> {
        let Link { sender, mut receiver, progress, confirms, mut knocks, streams, peer, .. } = link;
        // A commit of the session before may still be on its way to the disk, and what the cloud is told must have it.
        if let Err(error) = self.store.apply(Vec::new()).await {
            debug!(error = %runtime::chain(&error), "the store takes nothing; the session begins with what it holds");
        }
        let (frames, queue) = queue();
        streams.share_rate(&frames);
        let mut writer = JoinSet::new();
        writer.spawn(sender.run(queue, self.config.write_deadline));
        let software = concat!("edgecore v", env!("CARGO_PKG_VERSION"));
        let now = Instant::now().into_std();
        let heartbeat = self.config.heartbeat;
        let heartbeat = if confirms { heartbeat.min(quic::HEARTBEAT) } else { heartbeat };
        self.settle().await;
        self.throttle.begin_session();
        let held = (self.store.digest(), self.store.seen().map_err(SessionError::from)?);
        let (own, kept) = self.settings.down();
        let mut session =
            EdgeSession::new(&self.config.node, software, held, heartbeat, now).with_settings(own, kept);
        let mut outbox = self.store.outbox_changes();
        let mut work = Work {
            queued: VecDeque::new(),
            seen: Seen::default(),
            commit: None,
            undone: Vec::new(),
            questions: HashMap::new(),
            reported: [0; 2],
            sent: HashMap::new(),
            unseen: false,
            node_report: None,
            outbox_changed: true,
            resettle: false,
            misnamed: Vec::new(),
            synced_after: None,
            received: 0,
            progress,
            doubt: Doubt::new(heartbeat),
            begun: Instant::now(),
            sent_at: Instant::now(),
            asked_at: Instant::now(),
            after_silence: None,
        };
        let (mut answered, mut left) = (None, false);
        let mut from = way_to(peer);
        let ended = loop {
            if let Err(error) = self.advance(&mut session, &mut work, &frames).await {
                break Err(error);
            }
            let deadline = Instant::from_std(session.deadline());
            let look = work.doubt.deadline().map(Instant::from_std);
            let idle = work.idle_since().max(work.asked_at) + self.keepalive.after();
            let shorter = self.keepalive.after() < heartbeat && session.is_connected();
            let wake = [look, shorter.then_some(idle)].into_iter().flatten().fold(deadline, Instant::min);
            let asking = session.is_connected() && work.questions.len() < MAX_QUESTIONS;
            let due = self.due(&session, deadline);
            let step = tokio::select! {
                // Safe to cancel by contract. What lies in the socket is read before the deadline counts: it came in
                // time, however long we were busy.
                received = time::timeout_at(wake, receiver.receive()) => match received {
                    Ok(Ok(Some(frame))) => {
                        self.traffic.note_received(frame.len());
                        self.handle_frame(&mut session, frame)
                    }
                    Ok(Ok(None)) => Err(SessionError::Closed.into()),
                    Ok(Err(error)) => Err(SessionError::from(error).into()),
                    Err(_) => {
                        session.handle_progress(work.progress.last().into_std());
                        if let Some(confirmed) = work.progress.confirmed() {
                            session.handle_confirmed(confirmed);
                        }
                        left = self.look(&mut session, &mut work, confirms);
                        if shorter && idle <= Instant::now() {
                            work.asked_at = Instant::now();
                            session.ping();
                        }
                        let now = Instant::now().into_std();
                        session.handle_deadline(now).map_err(|error| SessionError::from(error).into())
                    }
                },
                // Polled by reference: the commit goes on when another arm wins.
                stored = committed(work.commit.as_mut()) => {
                    self.handle_stored(&mut session, &mut work, stored).await
                }
                // Whoever knocks is not believed, but asked.
                () = knocks.heard(), if answered.is_none_or(|at: Instant| at.elapsed() > KNOCKS) => {
                    answered = Some(Instant::now());
                    session.ping();
                    Ok(())
                }
                () = self.network.changed(peer, &mut from) => {
                    debug!(?from, "cloudcore is reached from another address");
                    // Nothing is learnt of the silence before.
                    work.sent_at = Instant::now();
                    session.ping();
                    Ok(())
                }
                () = self.rival_is_up.notified() => {
                    if work.doubt.rival_is_up(Instant::now().into_std()) {
                        session.ping();
                    }
                    Ok(())
                }
                // A watch only marks that something changed.
                _ = outbox.changed() => { work.outbox_changed = true; Ok(()) }
                Some(ask) = self.asks.recv(), if asking => {
                    let id = session.ask(ask.question);
                    work.questions.insert(id, ask.answer);
                    Ok(())
                }
                Some(stream) = streams.accept() => {
                    // One that is not taken is dropped, which tells the cloud so.
                    if let Some(serving) = self.streams && serving.try_send(stream).is_err() {
                        warn!("a stream that the cloud opened is refused: others wait to be served");
                    }
                    Ok(())
                }
                // So that whatever else there is to do is done in between.
                () = std::future::ready(()), if work.unseen => { work.outbox_changed = true; Ok(()) }
                // An interval is over.
                () = time::sleep_until(due.unwrap_or(deadline)), if due.is_some() => {
                    work.outbox_changed = true;
                    Ok(())
                }
                // Only a hint that there is room.
                () = frames.taken(), if !Lane::ALL.iter().all(|lane| frames.has_room(*lane)) => Ok(()),
                Some(ended) = writer.join_next() => Err(match ended {
                    Ok(Err(error)) => SessionError::from(error).into(),
                    Ok(Ok(())) => SessionError::Closed.into(),
                    Err(error) => SessionError::Violation(Violation(error.to_string())).into(),
                }),
                () = stop.cancelled() => {
                    session.close(GoodbyeReason::ShuttingDown, String::new());
                    Ok(())
                }
            };
            match step {
                Ok(()) if left || stop.is_cancelled() => break Ok(()),
                Ok(()) => {}
                Err(error) => break Err(error),
            }
        };
        if let Err(HubError::Session(error)) = &ended {
            farewell(&mut session, error);
            // Over TCP that is how it is told that the peer does not know the connection by its new address.
            if let (SessionError::Link(LinkError::Broken(_)), Some((silence, None))) =
                (error, work.after_silence)
            {
                self.keepalive.forgotten(silence);
            }
        }
        for (_, answer) in work.questions.drain() {
            drop(answer.send(Err("the line to the cloud went down".to_owned())));
        }
        // Last words, if the line still carries them.
        let carries = !left && !matches!(ended, Err(HubError::Session(SessionError::Dead(_))));
        if carries && let Some(Ok(frame)) = session.poll_lane(Lane::Control).map(codec::encode) {
            frames.push(Lane::Control, frame);
        }
        drop(frames);
        if carries && time::timeout(FAREWELL, writer.join_next()).await.is_err() {
            debug!("the line did not carry the goodbye");
        }
        streams.close();
        ended
    }

    /// Looks whether what was sent fares well; true when the session is to move to the other link.
    fn look(&mut self, session: &mut EdgeSession, work: &mut Work, asks: bool) -> bool {
        let now = Instant::now().into_std();
        if work.doubt.deadline().is_none_or(|look| look > now) {
            return false;
        }
        if let Some(took) = work.progress.round_trip() {
            work.doubt.note_round_trip(took);
        }
        let heard = work.progress.last().into_std();
        let next = work.doubt.look(now, heard, work.progress.delivery());
        if work.doubt.deadline().is_none()
            && let Some((silence, moves)) = work.after_silence.take()
        {
            if work.progress.moves() == moves {
                self.keepalive.held();
            } else {
                self.keepalive.forgotten(silence);
                debug!(?silence, after = ?self.keepalive.after(), "the line had been forgotten on the way");
            }
        }
        self.doubt
            .send_if_modified(|doubt| std::mem::replace(doubt, work.doubt.is_on()) != work.doubt.is_on());
        // Over TCP the kernel sends again by itself, and nothing else before that.
        if next == Next::Ask && asks {
            session.ping();
        }
        next == Next::Leave
    }

    fn handle_frame(&mut self, session: &mut EdgeSession, frame: Bytes) -> Result<(), HubError> {
        let body = codec::decode(frame).map_err(SessionError::from)?;
        let store = self.store;
        let held = |key: &ResourceKey| {
            store.get(key).unwrap_or_else(|error| {
                // The patch is then refused, and the next session sends the whole object.
                warn!(%key, error = %runtime::chain(&error), "failed to read the base of a patch");
                None
            })
        };
        session
            .handle_frame(body, &held, Instant::now().into_std())
            .map_err(|error| SessionError::from(error).into())
    }

    /// Does all that can be done now: events, commits, reports, frames.
    async fn advance(
        &mut self,
        session: &mut EdgeSession,
        work: &mut Work,
        frames: &Frames,
    ) -> Result<(), HubError> {
        while let Some(event) = session.poll_event() {
            self.handle_event(session, work, event).await?;
        }
        self.start_commit(work);
        if work
            .synced_after
            .is_some_and(|seq| work.commit.is_none() && work.queued.is_empty() && seq <= work.received)
        {
            work.synced_after = None;
            info!(objects = self.store.digest().count, "synced with the cloud");
            self.state.send_modify(|state| state.synced = true);
        }
        for (object, fault) in std::mem::take(&mut work.misnamed) {
            if let Err(error) = self.settings.complain(&object, &fault, self.store).await {
                debug!(error = %runtime::chain(&error), "an event was not kept");
            }
        }
        if std::mem::take(&mut work.resettle) {
            self.settle().await;
            work.outbox_changed = true;
        }
        let settings = self.settings.in_force();
        frames.set_rate(settings.up);
        let now = self.clock.since_1970();
        let is_due = self.throttle.due(&settings, now).is_some_and(|(due, _)| due <= now);
        if work.outbox_changed || is_due {
            self.send_reports(session, work).await?;
        }
        for lane in Lane::ALL {
            while frames.has_room(lane)
                && let Some(body) = session.poll_lane(lane)
            {
                let frame = if settings.plain {
                    codec::encode_plain(body)
                } else {
                    codec::encode_with(body, session.dictionary())
                };
                let frame = frame.map_err(SessionError::from)?;
                self.traffic.note_sent(frame.len());
                frames.push(lane, frame);
                let silence = work.idle_since().elapsed();
                work.sent_at = Instant::now();
                let (now, confirmed) = (work.sent_at.into_std(), work.progress.confirmed());
                if let Some(confirmed) = confirmed {
                    session.handle_sent(now, confirmed);
                }
                // Before, the handshake has a deadline of its own.
                if session.is_connected() {
                    work.doubt.sent(now, confirmed);
                    if self.keepalive.tells(silence) {
                        work.after_silence = Some((silence, work.progress.moves()));
                    }
                }
            }
        }
        Ok(())
    }

    async fn handle_event(
        &mut self,
        session: &mut EdgeSession,
        work: &mut Work,
        event: EdgeEvent,
    ) -> Result<(), HubError> {
        match event {
            EdgeEvent::Connected { software, unix_ms, sync_config } => {
                info!(software, "connected to the cloud");
                work.doubt.note_round_trip(work.begun.elapsed().min(GREETING));
                self.note_time(unix_ms / 1000).await;
                if let Err(error) = self.settings.told(sync_config, self.store).await {
                    debug!(error = %runtime::chain(&error), "link settings were not kept");
                }
                self.state.send_modify(|state| {
                    state.connected = true;
                    state.sessions += 1;
                    state.last_error.clear();
                });
                work.outbox_changed = true;
            }
            EdgeEvent::InventoryWanted => {
                let inventory = self.store.inventory().map_err(SessionError::from)?;
                session.inventory(&inventory);
            }
            EdgeEvent::Apply { seq, changes, seen } => {
                work.received = seq;
                work.queued.push_back((seq, changes));
                work.seen = seen;
            }
            EdgeEvent::Synced => work.synced_after = Some(work.received),
            EdgeEvent::ReportsDone(acks) => self.reports_done(work, acks).await?,
            EdgeEvent::Answered { id, answer } => {
                if let Some(asker) = work.questions.remove(&id) {
                    let answer = match answer {
                        Answer::Refused(reason) => Err(reason),
                        answered @ (Answer::ServiceAccountToken(_)
                        | Answer::Certificate(_)
                        | Answer::Authorities(_)) => Ok(answered),
                    };
                    // Whoever asked may have stopped waiting.
                    drop(asker.send(answer));
                }
            }
            EdgeEvent::Goodbye { reason, detail } => return Err(HubError::Goodbye { reason, detail }),
        }
        Ok(())
    }

    /// What the cloud says of the time outlives a boot of a machine without a battery; once a day is enough for that.
    async fn note_time(&self, seconds: u64) {
        self.clock.raise(seconds);
        if seconds < latest_time(self.store).saturating_add(DAY) {
            return;
        }
        if let Err(error) = self.store.put_local(LATEST_TIME, seconds.to_string().into()).await {
            debug!(error = %runtime::chain(&error), "the time was not kept");
        }
    }

    /// One transaction for all that waits: a burst shares one sync.
    fn start_commit(&self, work: &mut Work) {
        if work.commit.is_some() {
            return;
        }
        let Some(last) = work.queued.back().map(|(seq, _)| *seq) else { return };
        let changes = work
            .queued
            .drain(..)
            .flat_map(|(_, changes)| changes)
            .map(|change| match change {
                Desired::Put(object) => DesiredChange::Put(object),
                Desired::Delete(key) => DesiredChange::Delete(key),
            })
            .chain([DesiredChange::Seen(work.seen.clone())])
            .collect();
        work.commit = Some(Commit::start(self.store, last, changes));
    }

    /// What is stored is acked. What the disk did not take is tried again, and nothing after it meanwhile.
    async fn handle_stored(
        &self,
        session: &mut EdgeSession,
        work: &mut Work,
        stored: Result<(), StoreError>,
    ) -> Result<(), HubError> {
        match (stored, &mut work.commit) {
            (Ok(()), commit) => {
                if let Some(commit) = commit.take() {
                    session.committed(commit.seq);
                    self.note_committed(work, &commit.changes);
                }
                self.forget_reports(work).await
            }
            (Err(error), Some(commit)) if error.may_heal() => {
                commit.retry(self.store);
                Ok(())
            }
            (Err(error), _) => Err(SessionError::from(error).into()),
        }
    }

    /// The settings may have other sources now, and a pod may be waited for that was not.
    fn note_committed(&self, work: &mut Work, changes: &[DesiredChange]) {
        for change in changes {
            let (key, ends) = match change {
                DesiredChange::Put(object) => (&object.key, looks::is_ending(object)),
                DesiredChange::Delete(key) => (key, key.kind() == "Pod"),
                DesiredChange::Seen(_) => continue,
            };
            work.resettle |= matches!(key.kind(), "Node" | "ConfigMap");
            if let DesiredChange::Put(object) = change
                && let Some(fault) = looks::wrong_class(object)
            {
                work.misnamed.push((key.to_string(), fault));
            }
            if ends && let Some(from) = self.throttle.held_from() {
                work.look_again(from);
                work.outbox_changed = true;
            }
        }
    }

    /// Looks at what the settings come from.
    async fn settle(&mut self) {
        // What could not be kept counts all the same.
        if let Err(error) = self.settings.look(self.store).await {
            debug!(error = %runtime::chain(&error), "link settings were not kept");
        }
    }
}

/// The newest time that the cloud has told, in seconds since 1970.
pub(super) fn latest_time(store: &impl HubStore) -> u64 {
    let kept = store.local(LATEST_TIME).ok().flatten();
    kept.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0)
}

/// The group under way, to its end.
async fn committed(commit: Option<&mut Commit>) -> Result<(), StoreError> {
    match commit {
        Some(commit) => (&mut commit.storing).await,
        None => std::future::pending().await,
    }
}

/// Tells the cloud why we leave, where that helps its operator.
fn farewell(session: &mut EdgeSession, error: &SessionError) {
    let reason = match error {
        SessionError::Violation(_) | SessionError::Decode(_) => GoodbyeReason::Violation,
        SessionError::Store(_) => GoodbyeReason::Storage,
        _ => return,
    };
    session.close(reason, runtime::chain(error).to_string());
}
