//! Drives one node's session: frames between the link and [`CloudSession`], changes of the node's view, reports to the
//! API server and their acks, the node's Lease while it is alive.
//!
//! Everything that the session started ends with it: its tasks are in one set, which is dropped with the driver.

mod end;
mod work;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use crds::componentconfig::sync::LinkSettings;
use kube::Client;
use proto::{
    Lane, codec,
    limits::{MAX_TEXT, WINDOW_REPORTS},
    message::{Action, Answer, Batch, Body, Question, Request, Response},
    session::{CloudEvent, CloudSession, Patches},
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

use self::{
    end::End,
    work::{Done, Work},
};
use super::{
    authorities::Holding,
    enrollment::Enrollment,
    frames,
    guests::Guest,
    holder,
    pace::Pace,
    registry::{Registration, Registry},
    settings::Settings,
    told::StatusesTold,
    traffic::Traffic,
};
use crate::{
    config::HubConfig,
    edgecontroller::{
        claim::Claim,
        index::{Index, NodeSubscription},
        lanes::Lanes,
        lease::LeaseConfig,
        upstream::{Reporter, Upstream},
    },
    metrics::{EndLabels, Metrics, TransportLabels},
};

/// What cloudcore calls itself on the link.
const SOFTWARE: &str = concat!("cloudcore v", env!("CARGO_PKG_VERSION"));

/// Reports of one node that the API server is asked to take at once. Those that wait to be tried again are not among them.
const REPORTS_AT_ONCE: usize = 4;

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

    /// The edge should hold other CAs than it does.
    fn tell_authorities(&mut self) {
        let Some(holding) = &mut self.holding else { return };
        let nodes = || self.context.registry.len();
        if let Some(response) = holding.answer(&self.enrollment.authorities(), nodes) {
            self.session.answer(response);
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
