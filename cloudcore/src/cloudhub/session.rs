//! Drives one node's session: frames between the link and [`CloudSession`], changes of the node's view, reports to the
//! API server and their acks, the node's Lease while it is alive.
//!
//! Everything that the session started ends with it: its tasks are in one set, which is dropped with the driver.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use crds::componentconfig::sync::LinkSettings;
use kube::Client;
use proto::{
    Lane,
    codec::{self, DecodeError, EncodeError},
    limits::{MAX_TEXT, WINDOW_REPORTS},
    message::{
        Action, Answer, Batch, Body, GoodbyeReason, Question, Report, ReportAck, ReportKind, Request,
        Response,
    },
    session::{CloudEvent, CloudSession, Dead, Patches, Violation},
};
use runtime::link::{
    Link, LinkError, Progress,
    queue::{Frames, queue},
    streams::Streams,
};
use tokio::{
    sync::Semaphore,
    task::{self, JoinSet},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace, warn};

use super::{
    authorities::{self, Holding},
    enrollment::Enrollment,
    frames,
    guests::Guest,
    holder::{self, NotYours},
    pace::Pace,
    registry::{Registration, Registry},
    settings::Settings,
    told::{StatusesTold, Told},
    traffic::Traffic,
};
use crate::{
    config::HubConfig,
    edgecontroller::{
        claim::Claim,
        index::{Index, NodeSubscription},
        lanes::Lanes,
        lease::{Keeper, LeaseConfig},
        upstream::{Delivery, Reporter, Upstream},
    },
    metrics::{EndLabels, Metrics, TransportLabels},
};

/// What cloudcore calls itself on the link.
const SOFTWARE: &str = concat!("cloudcore v", env!("CARGO_PKG_VERSION"));

/// Reports of one node that the API server is asked to take at once. Those that wait to be tried again are not among them.
const REPORTS_AT_ONCE: usize = 4;

/// Questions of one node under way at once. How many may wait, the session knows.
const QUESTIONS_AT_ONCE: usize = 4;

/// Of a frame, as it is sent: to make one of this length takes half a millisecond, and it is the last of its turn.
const LONG: usize = 8 << 10;

/// Who took longer than this lets others go first.
const TURN: Duration = Duration::from_millis(1);

/// For the last frames before the link is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// What sessions share.
pub struct SessionContext {
    pub client: Client,
    pub index: Arc<Index>,
    pub upstream: Arc<Upstream>,
    /// For those who write on their Node what the edge has of the CAs.
    pub notes: Semaphore,
    /// For those who write a Lease.
    pub leases: Arc<Semaphore>,
    pub registry: Arc<Registry>,
    pub patches: Arc<Patches>,
    pub metrics: Metrics,
    pub hub: HubConfig,
    pub lease: LeaseConfig,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
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
    fn farewell(&self) -> Option<(GoodbyeReason, String)> {
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

    fn label(&self) -> &'static str {
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

/// One thing to do for the node at the API server.
enum Work {
    Report(Report),
    /// The status is not what the edge last reported: write it again.
    Heal,
}

/// What a task of the session came to.
enum Done {
    Work {
        lane: String,
        ack: Option<ReportAck>,
        kind: ReportKind,
        told: Option<Told>,
    },
    Answer(Response),
    Noted,
    /// The edge does not answer when it is called.
    Unanswered,
}

struct Driver<'a> {
    context: Arc<SessionContext>,
    enrollment: &'a Enrollment,
    peer: Reporter,
    /// Until the hello: one node's links are not to take the room of the others.
    place: Option<Guest>,
    /// From the hello on: an edge may open more links than it goes on to use.
    registration: Option<Registration>,
    session: CloudSession,
    /// Batches under way, with the moment when the oldest change in each was heard of.
    heard: VecDeque<(u64, std::time::Instant)>,
    view: NodeSubscription,
    tasks: JoinSet<Done>,
    /// One task, apart: it goes on to the goodbye, when the others have been ended.
    writer: JoinSet<Result<(), LinkError>>,
    attempts: Arc<Semaphore>,
    claim: Arc<Claim>,
    frames: Frames,
    settings: Settings,
    /// As [`Self::settings`] had it last.
    in_use: LinkSettings,
    progress: Progress,
    traffic: Arc<Traffic>,
    streams: Streams,
    lanes: Lanes<Work>,
    told: StatusesTold,
    questions: VecDeque<Request>,
    answering: usize,
    holding: Option<Holding>,
    noting: bool,
}

/// Runs a session on a link whose other end has proven to be `node`, until it ends.
#[tracing::instrument(name = "session", skip_all, fields(node = %node.node, session = tracing::field::Empty))]
pub(super) async fn run(
    context: Arc<SessionContext>,
    enrollment: &Enrollment,
    link: Link,
    node: Reporter,
    place: Guest,
    stop: CancellationToken,
) {
    let metrics = context.metrics.clone();
    let (peer, transport) = (link.peer, link.transport);
    let sessions = metrics.sessions.get_or_create_owned(&TransportLabels { transport });
    sessions.inc();
    debug!(%peer, transport, "link opened");
    let end = drive(context, enrollment, link, node, place, stop).await;
    sessions.dec();
    metrics.session_ends.get_or_create(&EndLabels { reason: end.label() }).inc();
    match &end {
        End::Violation(_) | End::Decode(_) | End::Task | End::Encode(_) => {
            warn!(reason = %runtime::chain(&end), %peer, transport, "session ended");
        }
        _ => info!(reason = %runtime::chain(&end), %peer, transport, "session ended"),
    }
}

async fn drive(
    context: Arc<SessionContext>,
    enrollment: &Enrollment,
    link: Link,
    node: Reporter,
    place: Guest,
    stop: CancellationToken,
) -> End {
    let traffic = Traffic::of(&link, &context.metrics);
    let Link { sender, mut receiver, progress, confirms, streams, .. } = link;
    let (frames, queue) = queue();
    streams.share_rate(&frames);
    let mut writer = JoinSet::new();
    writer.spawn(sender.run(queue, context.hub.write_timeout));
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
    let now = Instant::now().into_std();
    let session = CloudSession::new(node.node.to_string(), SOFTWARE.to_owned(), unix_ms, now)
        .with_sync_config(context.index.unusual_sync_config())
        .sharing(Arc::clone(&context.patches));
    let mut driver = Driver {
        session: if confirms { session.without_pongs() } else { session },
        heard: VecDeque::new(),
        view: context.index.subscribe(&node.node),
        enrollment,
        peer: node,
        place: Some(place),
        registration: None,
        tasks: JoinSet::new(),
        writer,
        attempts: Arc::new(Semaphore::new(REPORTS_AT_ONCE)),
        claim: context.upstream.claim(),
        frames,
        settings: Settings::default(),
        in_use: LinkSettings::default(),
        progress,
        traffic,
        streams: streams.clone(),
        lanes: Lanes::new(WINDOW_REPORTS),
        told: StatusesTold::default(),
        questions: VecDeque::new(),
        answering: 0,
        holding: None,
        noting: false,
        context,
    };
    let mut heal = time::interval(driver.context.lease.renew_every);
    heal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = Pace::new(Instant::now());
    // When a frame was received that is being looked at.
    let mut received = None;
    let end = loop {
        let began = received.take().unwrap_or_else(Instant::now);
        let more = match driver.pump() {
            Ok(more) => more,
            Err(end) => break end,
        };
        // Other sessions wait for this thread.
        let now = Instant::now();
        match pace.took(began, now) {
            Some(rest) => time::sleep(rest).await,
            None if more || now - began > TURN => task::yield_now().await,
            None => {}
        }
        if more {
            continue;
        }
        let deadline = Instant::from_std(driver.session.deadline());
        let stepped = tokio::select! {
            // Safe to cancel, says its contract. What lies in the socket is read before the deadline counts: it came in time,
            // however long we were busy.
            frame = time::timeout_at(deadline, receiver.receive()) => match frame {
                Ok(Ok(Some(frame))) => {
                    received = Some(Instant::now());
                    driver.receive(frame)
                }
                Ok(Ok(None)) => Err(End::Closed),
                Ok(Err(error)) => Err(End::Link(error)),
                Err(_) => {
                    driver.session.handle_progress(driver.progress.last().into_std());
                    if let Some(confirmed) = driver.progress.confirmed() {
                        driver.session.handle_confirmed(confirmed);
                    }
                    driver.session.handle_deadline(Instant::now().into_std()).map_err(End::Dead)
                }
            },
            // What was marked stays in the set.
            () = driver.view.dirty().marked() => Ok(()),
            // Ended tasks stay in their sets.
            Some(done) = driver.tasks.join_next() => driver.finish(done),
            Some(ended) = driver.writer.join_next() => Err(match ended {
                Ok(Ok(())) => End::Closed,
                Ok(Err(error)) => End::Link(error),
                // It panicked.
                Err(_) => End::Task,
            }),
            // Only a hint that there is room again.
            () = driver.frames.taken(), if !Lane::ALL.iter().all(|lane| driver.frames.has_room(*lane)) => Ok(()),
            // Only a hint: what is to be done is asked of the claim.
            () = driver.claim.woken() => {
                if driver.claim.wants_call() {
                    driver.session.call();
                }
                Ok(())
            }
            _ = heal.tick() => {
                driver.session.handle_progress(driver.progress.last().into_std());
                driver.heal();
                driver.note_authorities();
                Ok(())
            }
            () = crowded_out(driver.place.as_ref()) => Err(End::CrowdedOut),
            () = superseded(driver.registration.as_ref()) => Err(End::Superseded),
            () = stop.cancelled() => Err(End::Stopping),
        };
        if let Err(end) = stepped {
            break end;
        }
    };
    Box::pin(driver.say_goodbye(&end)).await;
    streams.close();
    end
}

async fn crowded_out(place: Option<&Guest>) {
    match place {
        Some(place) => place.told_to_leave().await,
        None => std::future::pending().await,
    }
}

async fn superseded(registration: Option<&Registration>) {
    match registration {
        Some(registration) => registration.superseded().cancelled().await,
        None => std::future::pending().await,
    }
}

impl Driver<'_> {
    /// Does what can be done without waiting; true if more can be.
    fn pump(&mut self) -> Result<bool, End> {
        if self.view.dirty().has_overflowed() {
            return Err(End::Behind);
        }
        self.session.set_time(Instant::now().into_std());
        let mut settings = false;
        while let Some((key, at)) = self.view.dirty().pop_with_since() {
            if key.kind() == "Node" {
                self.check_holder()?;
            }
            settings |= matches!(key.kind(), "Node" | "ConfigMap");
            self.session.mark_changed(key, at);
        }
        if settings {
            self.settle();
        }
        while let Some(event) = self.session.poll_event() {
            self.handle(event)?;
        }
        self.tell_authorities();
        self.start_work();
        let mut has_more = false;
        for lane in Lane::ALL {
            while self.frames.has_room(lane)
                && let Some(body) = self.session.poll_lane(lane, &self.view)
            {
                let mut told = None;
                if let Body::Batch(batch) = &body {
                    self.context.metrics.batches.inc();
                    self.context.metrics.changes.inc_by(batch.changes.len() as u64);
                    trace_batch(batch);
                    told = self.session.heard().map(|heard| (batch.seq, heard));
                }
                let frame = if self.in_use.plain {
                    codec::encode_plain(body)
                } else {
                    frames::encode(body, self.session.dictionary())
                };
                let frame = frame.map_err(End::Encode)?;
                let length = frame.len();
                self.traffic.sent(lane, length);
                self.frames.push(lane, frame);
                if let Some((seq, heard)) = told {
                    self.context.metrics.delays.sent.observe(heard.elapsed().as_secs_f64());
                    self.heard.push_back((seq, heard));
                }
                if let Some(confirmed) = self.progress.confirmed() {
                    self.session.handle_sent(Instant::now().into_std(), confirmed);
                }
                if length > LONG {
                    has_more = true;
                    break;
                }
            }
        }
        self.traffic.holds(self.session.held());
        // Building a frame may have led to an event.
        while let Some(event) = self.session.poll_event() {
            self.handle(event)?;
        }
        self.let_go();
        self.start_work();
        Ok(has_more)
    }

    /// Devices that are to be another node's may be so once this one is known to have dropped them.
    fn let_go(&self) {
        for key in self.context.index.leaving(&self.peer.node) {
            if self.session.lacks(&key) {
                self.context.index.let_go(&self.peer.node, &key);
            }
        }
    }

    fn receive(&mut self, frame: Bytes) -> Result<(), End> {
        let bytes = frame.len();
        let mut body = codec::decode(frame).map_err(End::Decode)?;
        self.traffic.received(body.lane(), bytes);
        match &mut body {
            Body::Hello(hello) => {
                let limit = u32::try_from(self.context.hub.keepalive.as_millis()).unwrap_or(u32::MAX);
                hello.heartbeat_ms = hello.heartbeat_ms.min(limit);
                self.settings = Settings::told_by(hello);
                self.settle();
            }
            Body::Ack(ack) => trace!(seq = ack.seq, "batch acked"),
            _ => {}
        }
        let (now, acked) = (Instant::now().into_std(), if let Body::Ack(ack) = &body { ack.seq } else { 0 });
        self.session.handle_frame(body, now).map_err(End::Violation)?;
        while let Some((_, heard)) = self.heard.pop_front_if(|(seq, _)| *seq <= acked) {
            self.context.metrics.delays.acked.observe(now.saturating_duration_since(heard).as_secs_f64());
        }
        Ok(())
    }

    fn handle(&mut self, event: CloudEvent) -> Result<(), End> {
        match event {
            CloudEvent::Connected { software } => {
                let registration = self.context.registry.enter(
                    &self.peer.node,
                    Arc::clone(&self.traffic),
                    self.streams.clone(),
                );
                tracing::Span::current().record("session", registration.id());
                self.registration = Some(registration);
                self.place = None;
                info!(software, "node connected");
                // What changed between the admission and the subscription was marked for nobody.
                self.check_holder()?;
                self.keep_lease();
            }
            CloudEvent::Synced => {
                info!("node in sync");
                // The view is complete by now, which it need not have been before.
                self.settle();
            }
            CloudEvent::Present => self.claim.edge_answered(),
            CloudEvent::Report(report) => {
                let lane = report.key.clone();
                self.lanes.push(&lane, Work::Report(report));
            }
            CloudEvent::Question(Request { id, question: Some(Question::Certificate(csr)) }) => {
                let answer = match self.enrollment.renew(&self.peer, &csr) {
                    Ok(certificate) => {
                        self.context.metrics.renewals.inc();
                        Answer::Certificate(certificate.into())
                    }
                    Err(reason) => {
                        warn!(reason, "certificate not renewed");
                        Answer::Refused(reason.chars().take(MAX_TEXT).collect())
                    }
                };
                self.session.answer(Response { id, answer: Some(answer) });
            }
            CloudEvent::Question(Request { id, question: Some(Question::Authorities(held)) }) => {
                if let Some(response) = Holding::take(&mut self.holding, id, held) {
                    self.session.answer(response);
                }
                self.note_authorities();
            }
            CloudEvent::Question(request) => self.questions.push_back(request),
            CloudEvent::Goodbye { reason, detail } => return Err(End::Goodbye { reason, detail }),
        }
        Ok(())
    }

    /// Uses the link as it is to be used now.
    fn settle(&mut self) {
        let settings = self.settings.look(self.view.sync_config());
        self.session.send_whole(settings.full);
        self.session.hold(settings.intervals);
        self.frames.set_rate(settings.down);
        self.in_use = settings;
    }

    /// The name may have been taken from this machine while it was connected.
    fn check_holder(&self) -> Result<(), End> {
        let Reporter { node, key_hash } = &self.peer;
        let held = self.context.index.node(node);
        holder::may_link(node, held.as_ref(), key_hash).map_err(End::ShutOut)
    }

    fn keep_lease(&mut self) {
        let progress = self.progress.clone();
        let keeper = Keeper {
            client: self.context.client.clone(),
            index: Arc::clone(&self.context.index),
            node: Arc::clone(&self.peer.node),
            claim: Arc::clone(&self.claim),
            turns: Arc::clone(&self.context.leases),
            address: move || progress.address(),
            config: self.context.lease,
        };
        self.tasks.spawn(async move {
            keeper.run().await;
            Done::Unanswered
        });
    }

    /// The edge should hold other CAs than it does.
    fn tell_authorities(&mut self) {
        let Some(holding) = &mut self.holding else { return };
        let nodes = || self.context.registry.len();
        if let Some(response) = holding.answer(&self.enrollment.authorities(), nodes) {
            self.session.answer(response);
        }
    }

    /// The Node says what the edge has of the CAs, as far as it has told.
    fn note_authorities(&mut self) {
        let Some(holding) = self.holding.as_ref().filter(|_| !self.noting) else { return };
        let node = Arc::clone(&self.peer.node);
        // A Node that is not there has it when it is.
        let Some(facts) = self.context.index.node(&node) else { return };
        let authorities = self.enrollment.authorities();
        let Some(text) = holding.annotation(&authorities, facts.authorities.as_deref()) else { return };
        self.noting = true;
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let _turn = context.notes.acquire().await;
            if let Err(error) = authorities::note(&context.client, &node, &text).await {
                debug!(error = %runtime::chain(&error), "failed to note the node's CAs; trying again");
            }
            Done::Noted
        });
    }

    fn start_work(&mut self) {
        // Before the caches are complete each report would have to be asked for, and written though it is there already.
        while self.claim.stands()
            && self.context.index.is_complete()
            && let Some((lane, work)) = self.lanes.start()
        {
            let (report, ack) = match work {
                Work::Report(report) => (Some(report), true),
                Work::Heal => (self.told.report(&lane), false),
            };
            let Some(report) = report else {
                self.lanes.done(&lane);
                continue;
            };
            let (upstream, peer) = (Arc::clone(&self.context.upstream), self.peer.clone());
            let (attempts, claim) = (Arc::clone(&self.attempts), Arc::clone(&self.claim));
            let kind = report.kind();
            self.tasks.spawn(async move {
                let Delivery { ack: done, status } =
                    upstream.deliver(&peer, &report, &claim, &attempts).await;
                let told = status.and_then(|print| Told::new(report, print));
                Done::Work { lane, ack: ack.then_some(done), kind, told }
            });
        }
        while self.answering < QUESTIONS_AT_ONCE
            && let Some(request) = self.questions.pop_front()
        {
            self.answering += 1;
            let (upstream, node) = (Arc::clone(&self.context.upstream), Arc::clone(&self.peer.node));
            self.tasks.spawn(async move { Done::Answer(upstream.answer(&node, request).await) });
        }
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) -> Result<(), End> {
        match done {
            Ok(Done::Work { lane, ack, kind, told }) => {
                self.lanes.done(&lane);
                if let Some(ack) = ack {
                    self.session.finish_reports(vec![ack]);
                }
                if kind.is_status() {
                    self.told.note(lane, told);
                }
                Ok(())
            }
            Ok(Done::Answer(response)) => {
                self.answering -= 1;
                self.session.answer(response);
                Ok(())
            }
            // Once the cache has it, or with the next look.
            Ok(Done::Noted) => {
                self.noting = false;
                Ok(())
            }
            Ok(Done::Unanswered) => Err(End::Elsewhere),
            // It panicked; the node starts over with a new session.
            Err(_) => Err(End::Task),
        }
    }

    /// Writes what is not as the edge has said any more: while the node was away, the control plane has called it Unknown and its
    /// pods not ready; and whoever deleted the Node has it back as long as it is connected.
    fn heal(&mut self) {
        if !self.context.index.is_complete() {
            return;
        }
        // If nothing is heard of the node here, it may be another cloudcore that it is connected to now.
        let is_here = self.progress.last().elapsed() < self.context.lease.renew_every;
        for lane in self.told.astray(&self.context.index, &self.claim, is_here) {
            self.lanes.push(&lane, Work::Heal);
        }
    }

    /// Says why, if there is anything to say, and lets the writer finish.
    async fn say_goodbye(self, end: &End) {
        let Self { mut session, view, tasks, mut writer, frames, .. } = self;
        // A report that is tried again must not come after those of the next session.
        drop(tasks);
        let Some((reason, detail)) = end.farewell() else { return };
        let end = Instant::now() + FAREWELL;
        // What the session has queued itself (forbidden, no common version) says more.
        let mut last = session.poll_frame(&view).filter(|body| matches!(body, Body::Goodbye(_)));
        if last.is_none() {
            session.close(reason, detail);
            last = session.poll_frame(&view);
        }
        if let Some(Ok(frame)) = last.map(codec::encode) {
            frames.push(Lane::Control, frame);
        }
        drop(frames);
        // What it came to does not matter any more.
        drop(time::timeout_at(end, writer.join_next()).await);
    }
}

/// What was sent and acked can be followed change by change: the crash tests hold edges to it.
fn trace_batch(batch: &Batch) {
    for change in &batch.changes {
        let (seq, key) = (batch.seq, &change.key);
        match &change.action {
            Some(Action::Put(put)) => trace!(seq, %key, version = put.resource_version, "put sent"),
            Some(Action::Patch(patch)) => trace!(seq, %key, version = patch.resource_version, "patch sent"),
            Some(Action::Delete(_)) | None => trace!(seq, %key, "delete sent"),
        }
    }
}
