//! Everything that happens, in virtual time and from one seed: the queue of events, what goes wrong, and the
//! checks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    api::{Api, KINDS, is_refused, serial},
    cache::Cache,
    claim::Request,
    cloud::Replica,
    disk::{Disk, Op},
    edge::Edge,
    faults::{Fault, Invariant},
    link::{Connection, Side},
    rng::Rng,
};

pub(crate) const MILLISECOND: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000 * MILLISECOND;

/// Lines of the trace that a failure shows.
const TRACE: usize = 120;

/// Longest that a healthy pair needs beside the heartbeat to notice, dial, and be let in (a superseded edge
/// waits 30 s).
const RECONNECT: u64 = 90 * SECOND;
/// Longest until all that waits has been tried again: reports, commits, bookmarks.
const SETTLE: u64 = 180 * SECOND;
/// An end that waits for its peer's last word, beside two heartbeats.
const LATE: u64 = 12 * SECOND;

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) invariant: Invariant,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(invariant: Invariant, detail: String) -> Self {
        Self { invariant, detail }
    }
}

pub(crate) type Outcome = Result<(), Failure>;

/// Why a driver does not go on: its session is over, or a promise is broken.
pub(crate) enum Stop<End> {
    End(End),
    Broken(Failure),
}

impl<End> From<Failure> for Stop<End> {
    fn from(failure: Failure) -> Self {
        Self::Broken(failure)
    }
}

/// `side` is the one that complains.
pub(crate) fn violation<End>(connection: usize, side: Side, error: &impl ToString) -> Stop<End> {
    Failure::new(Invariant::NoViolation, format!("c{connection} {side:?}: {}", error.to_string())).into()
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) fault: Option<Fault>,
    /// Keep a readable trace.
    pub(crate) traced: bool,
    /// All of it, not only its end.
    pub(crate) whole: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    User,
    Chaos,
    Check,
    Quiet,
    MustBeUp,
    End,
    Dial {
        node: usize,
        attempt: u64,
    },
    Open {
        connection: usize,
    },
    Frame {
        connection: usize,
        from: Side,
        queue: usize,
    },
    /// This side's socket says that the connection is over.
    Lost {
        connection: usize,
        side: Side,
    },
    Deadline {
        connection: usize,
        side: Side,
    },
    Disk {
        node: usize,
        life: u64,
    },
    StoreAgain {
        node: usize,
        connection: usize,
    },
    Activity {
        node: usize,
    },
    EdgeStart {
        node: usize,
    },
    ReplicaStart {
        replica: usize,
    },
    List {
        replica: usize,
        life: u64,
        kind: usize,
    },
    Watch {
        replica: usize,
        life: u64,
        kind: usize,
    },
    Bookmark {
        replica: usize,
        life: u64,
    },
    Superseded {
        connection: usize,
    },
    /// A request reaches the API server; its answer, who has asked.
    Arrives {
        request: u64,
    },
    Answered {
        connection: usize,
        request: u64,
    },
    GivesUp {
        connection: usize,
        request: u64,
    },
    ClaimAgain {
        connection: usize,
    },
    Renew {
        connection: usize,
    },
    /// The edge had until now to answer a call.
    Unanswered {
        connection: usize,
        call: u64,
    },
    TryAgain {
        connection: usize,
        task: u64,
    },
}

/// What was said on a connection, for the checks.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By number: what each key is to be afterwards, as the hash of its content.
    pub(crate) batches: BTreeMap<u64, Vec<(proto::ResourceKey, Option<u64>)>>,
    pub(crate) stored: BTreeSet<u64>,
    /// The last batch before `Synced`.
    pub(crate) synced_after: Option<u64>,
    /// By side: it has said goodbye.
    pub(crate) ended: [bool; 2],
}

impl Profile {
    fn new(rng: &mut Rng) -> Self {
        let mut weights = [0; Trouble::ALL.len()];
        for weight in &mut weights {
            *weight = rng.pick(&[0, 0, 1, 4]);
        }
        // Without it little of the rest matters.
        weights[Trouble::Cut as usize] += 1;
        let rough_for = rng.between(60, 400) * SECOND;
        Self {
            weights,
            rough_for,
            chaos_until: rough_for - rng.pick(&[0, 0, 20, 50]) * SECOND,
            chaos_every: rng.pick(&[1, 4, 15, 40]) * SECOND,
            user_every: rng.pick(&[100, 1_000, 5_000, 15_000]) * MILLISECOND,
            activity_every: rng.pick(&[300, 2_000, 10_000]) * MILLISECOND,
            broken_for: rng.pick(&[1, 10, 40]) * SECOND,
        }
    }

    fn trouble(&self, rng: &mut Rng) -> Trouble {
        let mut at = rng.below(self.weights.iter().sum());
        for (trouble, weight) in Trouble::ALL.into_iter().zip(self.weights) {
            if at < weight {
                return trouble;
            }
            at -= weight;
        }
        Trouble::Cut
    }
}

#[derive(Default)]
struct Trace {
    on: bool,
    lines: VecDeque<String>,
    hash: u64,
}

/// What may go wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Cut,
    LineDown,
    EdgeCrash,
    EdgeStopped,
    DiskRefuses,
    DiskPace,
    NewDisk,
    ReplicaEnds,
    ReplicaStopped,
    CacheLags,
    ApiOut,
    Moves,
    SpareLink,
}

impl Trouble {
    const ALL: [Self; 13] = [
        Self::Cut,
        Self::LineDown,
        Self::EdgeCrash,
        Self::EdgeStopped,
        Self::DiskRefuses,
        Self::DiskPace,
        Self::NewDisk,
        Self::ReplicaEnds,
        Self::ReplicaStopped,
        Self::CacheLags,
        Self::ApiOut,
        Self::Moves,
        Self::SpareLink,
    ];
}

/// Milliseconds that a write takes.
const DISK_PACES: [u64; 4] = [2, 20, 300, 3_000];

/// Milliseconds that a watch is late.
const CACHE_LAGS: [u64; 5] = [20, 20, 1_000, 5_000, 30_000];

/// How rough this run is.
struct Profile {
    /// Of each trouble. A run knows some of them only, so that none is always hidden by another.
    weights: [u64; Trouble::ALL.len()],
    rough_for: u64,
    /// What is broken by then may stay so to the end of the rough time, and the last session live on.
    chaos_until: u64,
    chaos_every: u64,
    user_every: u64,
    activity_every: u64,
    /// How long things stay broken.
    broken_for: u64,
}

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    /// Of the intervals of the classes, so that they leave all else as it is.
    pub(crate) settings: Rng,
    pub(crate) now: u64,
    base: Instant,
    queue: BTreeMap<(u64, u64), Event>,
    pushed: u64,
    pub(crate) events: u64,
    profile: Profile,
    pub(crate) heartbeat: u64,
    pub(crate) quiet: bool,
    pub(crate) api: Api,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) ledgers: Vec<Ledger>,
    /// Asked of the API server, and not answered.
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) asked: u64,
    pub(crate) claims: u64,
    trace: Trace,
}

/// What a run came to.
pub(crate) struct Run {
    pub(crate) failure: Option<Failure>,
    pub(crate) virtual_time: Duration,
    pub(crate) events: u64,
    pub(crate) hash: u64,
    pub(crate) trace: Vec<String>,
}

pub(crate) fn run(options: Options) -> Run {
    let mut world = World::new(options);
    let failure = world.go().err();
    if let Some(failure) = &failure {
        world.say(|| format!("BROKEN {:?}: {}", failure.invariant, failure.detail));
    }
    Run {
        failure,
        virtual_time: Duration::from_micros(world.now),
        events: world.events,
        hash: world.trace.hash,
        trace: world.trace.lines.into(),
    }
}

/// What is broken already is so for as long as it was to be.
fn lengthen(broken_until: &mut u64, until: u64) {
    *broken_until = until.max(*broken_until);
}

impl World {
    fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let nodes = rng.pick(&[1, 2, 2, 3]);
        let replicas = rng.pick(&[1, 2, 3, 3]);
        let profile = Profile::new(&mut rng);
        let mut api = Api::new(nodes);
        api.large = profile.user_every >= 5 * SECOND && rng.percent(25);
        api.toggles = rng.percent(20);
        let heartbeat = rng.pick(&[5, 15, 30, 70]) * SECOND;
        let mut world = Self {
            options,
            rng,
            settings: Rng::new(!options.seed),
            now: 0,
            base: Instant::now(),
            queue: BTreeMap::new(),
            pushed: 0,
            events: 0,
            profile,
            heartbeat,
            quiet: false,
            api,
            replicas: (0..replicas).map(|_| Replica::new(nodes, options.fault)).collect(),
            edges: (0..nodes).map(|_| Edge::default()).collect(),
            connections: Vec::new(),
            ledgers: Vec::new(),
            requests: BTreeMap::new(),
            asked: 0,
            claims: 0,
            trace: Trace { on: options.traced, ..Trace::default() },
        };
        for _ in 0..world.rng.below(12) {
            world.api.user(&mut world.rng);
        }
        for replica in 0..replicas {
            for kind in 0..KINDS.len() {
                world.replicas[replica].lag[kind] = world.rng.pick(&CACHE_LAGS) * MILLISECOND;
            }
            world.at(0, Event::ReplicaStart { replica });
        }
        for node in 0..nodes {
            let pace = world.rng.pick(&DISK_PACES) * MILLISECOND;
            world.edges[node].disk = Disk::new(pace);
            world.at(0, Event::EdgeStart { node });
            world.after(SECOND, Event::Activity { node });
        }
        world.after(SECOND, Event::User);
        world.after(5 * SECOND, Event::Check);
        world.after(world.profile.chaos_every, Event::Chaos);
        world.after(world.profile.rough_for, Event::Quiet);
        world
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.options.fault == Some(fault)
    }

    pub(crate) fn instant(&self, at: u64) -> Instant {
        self.base + Duration::from_micros(at)
    }

    /// The offset of an instant that a session has named, rounded up so that it is reached.
    pub(crate) fn offset(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.base).as_nanos().div_ceil(1_000);
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    pub(crate) fn at(&mut self, due: u64, event: Event) {
        self.pushed += 1;
        self.queue.insert((due.max(self.now), self.pushed), event);
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if !self.trace.on {
            return;
        }
        let (seconds, rest) = (self.now / SECOND, self.now % SECOND);
        let line = format!("{seconds:4}.{rest:06} {}", line());
        // FNV-1a.
        for byte in line.bytes() {
            self.trace.hash = (self.trace.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace.lines.len() == TRACE && !self.options.whole {
            self.trace.lines.pop_front();
        }
        self.trace.lines.push_back(line);
    }

    fn go(&mut self) -> Outcome {
        while let Some(((due, _), event)) = self.queue.pop_first() {
            self.now = due;
            self.events += 1;
            if let Event::End = event {
                return self.check_end();
            }
            if let Some(until) = self.paused(event) {
                // What lies in the socket is read before a deadline counts.
                self.at(until + u64::from(matches!(event, Event::Deadline { .. })), event);
                continue;
            }
            self.step(event)?;
        }
        Ok(())
    }

    /// Until when whoever would act on the event is stopped.
    fn paused(&self, event: Event) -> Option<u64> {
        let (edge, replica) = match event {
            Event::Frame { connection, from, .. } => self.whose(connection, from.peer()),
            Event::Lost { connection, side } | Event::Deadline { connection, side } => {
                self.whose(connection, side)
            }
            Event::Superseded { connection }
            | Event::Answered { connection, .. }
            | Event::GivesUp { connection, .. }
            | Event::ClaimAgain { connection }
            | Event::Renew { connection }
            | Event::Unanswered { connection, .. }
            | Event::TryAgain { connection, .. } => self.whose(connection, Side::Cloud),
            Event::Dial { node, .. }
            | Event::Disk { node, .. }
            | Event::StoreAgain { node, .. }
            | Event::Activity { node } => (Some(node), None),
            Event::List { replica, .. } | Event::Watch { replica, .. } | Event::Bookmark { replica, .. } => {
                (None, Some(replica))
            }
            _ => (None, None),
        };
        let edge = edge.map(|node| self.edges[node].paused_until);
        let until = edge.or(replica.map(|replica| self.replicas[replica].paused_until))?;
        (until > self.now).then_some(until)
    }

    fn whose(&self, connection: usize, side: Side) -> (Option<usize>, Option<usize>) {
        let connection = &self.connections[connection];
        match side {
            Side::Edge => (Some(connection.node), None),
            Side::Cloud => (None, Some(connection.replica)),
        }
    }

    fn step(&mut self, event: Event) -> Outcome {
        match event {
            Event::User => self.user(),
            Event::Chaos => self.chaos()?,
            Event::Check => {
                self.check()?;
                self.after(5 * SECOND, Event::Check);
            }
            Event::Quiet => self.calm_down(),
            Event::MustBeUp => self.check_up()?,
            Event::End => {}
            Event::Dial { node, attempt } => self.dial(node, attempt),
            Event::Open { connection } => self.open(connection)?,
            Event::Frame { connection, from, queue } => self.frame(connection, from, queue)?,
            Event::Lost { connection, side: Side::Edge } => self.edge_lost(connection)?,
            Event::Lost { connection, side: Side::Cloud } => self.cloud_lost(connection)?,
            Event::Deadline { connection, side: Side::Edge } => self.edge_deadline(connection)?,
            Event::Deadline { connection, side: Side::Cloud } => self.cloud_deadline(connection)?,
            Event::Disk { node, life } => self.disk(node, life)?,
            Event::StoreAgain { node, connection } => self.store_again(node, connection)?,
            Event::Activity { node } => {
                self.activity(node)?;
                if !self.quiet {
                    let delay = self.rng.around(self.profile.activity_every);
                    self.after(delay, event);
                }
            }
            Event::EdgeStart { node } => self.edge_start(node),
            Event::ReplicaStart { replica } => self.replica_start(replica),
            Event::List { replica, life, kind } => self.list(replica, life, kind)?,
            Event::Watch { replica, life, kind } => self.watch(replica, life, kind)?,
            Event::Bookmark { replica, life } => self.bookmark(replica, life)?,
            Event::Superseded { connection } => self.superseded(connection)?,
            Event::Arrives { request } => self.arrives(request)?,
            Event::Answered { connection, request } => self.answered(connection, request)?,
            Event::GivesUp { connection, request } => self.gives_up(connection, request)?,
            Event::ClaimAgain { connection } => self.claim_again(connection)?,
            Event::Renew { connection } => self.renewal(connection)?,
            Event::Unanswered { connection, call } => self.unanswered(connection, call)?,
            Event::TryAgain { connection, task } => self.try_again(connection, task)?,
        }
        Ok(())
    }

    fn user(&mut self) {
        if self.quiet {
            return;
        }
        let burst = if self.rng.percent(5) { 10 } else { 1 };
        for _ in 0..burst {
            let elsewhere = self.rng.percent(20);
            let said = if elsewhere { self.api.touch(&mut self.rng) } else { self.api.user(&mut self.rng) };
            self.say(|| format!("user: {said}"));
        }
        for replica in 0..self.replicas.len() {
            self.wake_watches(replica);
        }
        let delay = self.rng.around(self.profile.user_every);
        self.after(delay, Event::User);
    }

    /// A frame has come to the other end, if the line is up.
    fn frame(&mut self, connection: usize, from: Side, queue: usize) -> Outcome {
        let link = &mut self.connections[connection];
        let down_until = self.edges[link.node].line_down_until;
        if link.cut_at.is_some() {
            return Ok(());
        }
        let due = link.next_due(from, queue).unwrap_or(self.now);
        let later = if down_until > self.now {
            Some(down_until + self.rng.below(500 * MILLISECOND))
        } else if !link.may_pass(from, queue) {
            Some(self.now + 10 * MILLISECOND)
        } else {
            (due > self.now).then_some(due)
        };
        if let Some(later) = later {
            link.postpone(from, queue, later);
            self.at(later, Event::Frame { connection, from, queue });
            return Ok(());
        }
        let Some(frame) = link.receive(from, queue, self.now) else { return Ok(()) };
        match from {
            Side::Edge => self.cloud_frame(connection, frame)?,
            Side::Cloud => self.edge_frame(connection, frame)?,
        }
        // The sender has room again.
        match from {
            Side::Edge => self.edge_step(connection, |_, _| Ok(()))?,
            Side::Cloud => self.cloud_step(connection, |_, _| Ok(()))?,
        }
        if self.connections[connection].has_ended(from) {
            self.after(MILLISECOND, Event::Lost { connection, side: from.peer() });
        }
        Ok(())
    }

    /// One side's socket is gone. The other side hears of it, or does not.
    pub(crate) fn abandon(&mut self, connection: usize, side: Side, orderly: bool) {
        let now = self.now;
        let link = &mut self.connections[connection];
        link.dead_since.get_or_insert(now);
        if orderly {
            link.close(side);
            let latency = link.latency();
            if link.has_ended(side) {
                self.after(latency, Event::Lost { connection, side: side.peer() });
            }
        } else {
            link.cut_at.get_or_insert(now);
            if self.rng.percent(60) {
                let latency = self.connections[connection].latency();
                self.after(latency, Event::Lost { connection, side: side.peer() });
            }
        }
    }

    fn cut(&mut self, connection: usize) {
        let now = self.now;
        let link = &mut self.connections[connection];
        if link.cut_at.is_some() {
            return;
        }
        link.cut_at = Some(now);
        link.dead_since.get_or_insert(now);
        self.say(|| format!("chaos: c{connection} is cut"));
        // Both hear of it, one of them, or nobody.
        for side in [Side::Edge, Side::Cloud] {
            if self.rng.percent(50) {
                let delay = self.rng.below(SECOND);
                self.after(delay, Event::Lost { connection, side });
            }
        }
    }

    fn chaos(&mut self) -> Outcome {
        if self.now > self.profile.chaos_until {
            return Ok(());
        }
        let node = self.rng.index(self.edges.len());
        let replica = self.rng.index(self.replicas.len());
        let until = (self.now + self.rng.around(self.profile.broken_for)).min(self.profile.rough_for);
        match self.profile.trouble(&mut self.rng) {
            Trouble::Cut => {
                if let Some(connection) = self.edges[node].connection() {
                    self.cut(connection);
                }
            }
            Trouble::LineDown => {
                self.say(|| format!("chaos: the line of n{node} is down until {}", until / SECOND));
                lengthen(&mut self.edges[node].line_down_until, until);
            }
            Trouble::EdgeCrash => self.edge_crash(node, until)?,
            Trouble::EdgeStopped => {
                self.say(|| format!("chaos: n{node} is stopped until {}", until / SECOND));
                lengthen(&mut self.edges[node].paused_until, until);
            }
            Trouble::DiskRefuses => {
                self.say(|| format!("chaos: the disk of n{node} refuses until {}", until / SECOND));
                lengthen(&mut self.edges[node].disk.refuses_until, until);
            }
            Trouble::DiskPace => {
                self.edges[node].disk.pace = self.rng.pick(&DISK_PACES) * MILLISECOND;
            }
            Trouble::NewDisk => {
                self.say(|| format!("chaos: n{node} gets a new disk"));
                self.edge_crash(node, until)?;
                let pace = self.edges[node].disk.pace;
                self.edges[node].disk = Disk::new(pace);
            }
            Trouble::ReplicaEnds => self.replica_end(replica, until)?,
            Trouble::ReplicaStopped => {
                self.say(|| format!("chaos: r{replica} is stopped until {}", until / SECOND));
                lengthen(&mut self.replicas[replica].paused_until, until);
            }
            Trouble::CacheLags => {
                let kind = self.rng.index(KINDS.len());
                let name = KINDS[kind];
                self.say(|| format!("chaos: r{replica}'s watch of {name} is stuck until {}", until / SECOND));
                lengthen(&mut self.replicas[replica].stuck_until[kind], until);
                if self.rng.percent(60) {
                    // By then the API server has forgotten where it was.
                    let life = self.replicas[replica].life;
                    self.at(until, Event::List { replica, life, kind });
                }
            }
            Trouble::ApiOut => {
                self.say(|| format!("chaos: the API server takes nothing until {}", until / SECOND));
                lengthen(&mut self.api.out_until, until);
            }
            Trouble::Moves => self.move_on(node)?,
            Trouble::SpareLink => {
                // One that comes up and is not taken.
                let link = Connection::new(node, replica, self.api.large, &mut self.rng);
                let connection = self.add_connection(link);
                self.open_cloud(connection);
                let dies = self.now + self.rng.below(20 * SECOND);
                self.connections[connection].dead_since = Some(self.now);
                self.at(dies, Event::Lost { connection, side: Side::Cloud });
            }
        }
        let delay = self.rng.around(self.profile.chaos_every);
        self.after(delay, Event::Chaos);
        Ok(())
    }

    pub(crate) fn add_connection(&mut self, link: Connection) -> usize {
        self.connections.push(link);
        self.ledgers.push(Ledger::default());
        self.connections.len() - 1
    }

    /// From here on all is well: nothing that was broken is broken for longer.
    fn calm_down(&mut self) {
        self.say(|| "quiet from here on".to_owned());
        self.quiet = true;
        for edge in &mut self.edges {
            edge.disk.pace = edge.disk.pace.min(300 * MILLISECOND);
        }
        for replica in 0..self.replicas.len() {
            self.replicas[replica].hurry();
            self.wake_watches(replica);
        }
        let silence = 2 * self.heartbeat + LATE;
        self.after(silence + RECONNECT, Event::MustBeUp);
        self.after(2 * silence + RECONNECT + SETTLE, Event::End);
    }

    fn check(&mut self) -> Outcome {
        for replica in 0..self.replicas.len() {
            self.check_replica(replica)?;
        }
        for node in 0..self.edges.len() {
            if let Some((connection, since)) = self.edges[node].listens() {
                self.check_silence(connection, Side::Edge, self.edges[node].paused_until.max(since))?;
            }
        }
        Ok(())
    }

    /// Before `not_before` the side did not look.
    pub(crate) fn check_silence(&self, connection: usize, side: Side, not_before: u64) -> Outcome {
        let link = &self.connections[connection];
        let Some(dead_since) = link.dead_since else { return Ok(()) };
        let heard = link.last_byte(side.peer(), self.now).max(dead_since).max(not_before);
        if self.now > heard + 2 * self.heartbeat + LATE {
            let detail = format!("c{connection}: {side:?} holds on to it since {}", dead_since / SECOND);
            return Err(Failure::new(Invariant::SilenceIsNoticed, detail));
        }
        Ok(())
    }

    fn check_up(&mut self) -> Outcome {
        for (node, edge) in self.edges.iter().enumerate() {
            if !edge.is_synced() {
                return Err(Failure::new(Invariant::Reconnects, format!("n{node} has no session in sync")));
            }
        }
        Ok(())
    }

    fn check_end(&mut self) -> Outcome {
        self.check()?;
        self.check_up()?;
        for (node, edge) in self.edges.iter().enumerate() {
            let wanted = self.api.view(node);
            for key in wanted.keys().chain(edge.disk.objects.keys()) {
                let bytes = |object: &proto::Object| object.bytes.clone();
                let (is, should) = (edge.disk.objects.get(key).map(bytes), wanted.get(key).map(bytes));
                if is != should {
                    let detail = format!("n{node} {key}: held {}, wanted {}", is.is_some(), should.is_some());
                    return Err(Failure::new(Invariant::Converges, detail));
                }
            }
            self.check_digest(node)?;
            self.check_reports(node)?;
        }
        Ok(())
    }

    fn check_reports(&self, node: usize) -> Outcome {
        let disk = &self.edges[node].disk;
        let lost = |detail: String| Err(Failure::new(Invariant::ReportArrives, format!("n{node} {detail}")));
        // What was acked while the disk took nothing may lie there until the next commit.
        let waits = |report: &&proto::Report| !self.api.settled.contains(&serial(report));
        if let Some(report) = disk.outbox.values().find(waits) {
            return lost(format!("report {} about {} still waits", report.id, report.key));
        }
        if let Some(serial) = disk.events.iter().find(|serial| !self.api.settled.contains(serial)) {
            return lost(format!("event {serial} never came"));
        }
        for ((kind, key), serial) in &disk.states {
            let known = self.api.states.get(&(node, *kind, key.clone()));
            if known != Some(serial) && !is_refused(*serial) {
                return lost(format!("{key}: {serial} is newest, {known:?} is written"));
            }
        }
        Ok(())
    }

    /// Something for the disk of a node to do.
    pub(crate) fn write(&mut self, node: usize, op: Op) {
        self.edges[node].disk.waiting.push_back(op);
        if self.edges[node].disk.waiting.len() == 1 {
            self.start_write(node);
        }
    }

    /// One write for all that waits.
    pub(crate) fn start_write(&mut self, node: usize) {
        let edge = &mut self.edges[node];
        edge.disk.group = edge.disk.waiting.len();
        if edge.disk.group > 0 {
            let (pace, life) = (edge.disk.pace, edge.life);
            let delay = self.rng.around(pace);
            self.after(delay, Event::Disk { node, life });
        }
    }

    pub(crate) fn new_cache(&self) -> Cache {
        Cache::new(self.edges.len(), self.options.fault)
    }
}
