//! What a replica asks of the API server, and what comes of it: the claim of a session, and the fence that keeps older states
//! from being written over newer ones; what `cloudcore::edgecontroller::{claim, lease, upstream}` do.
//!
//! A request arrives a while after it was sent, be it that its session has ended since, and the answer comes a while after that.

use std::collections::BTreeMap;

use proto::{
    Report,
    message::{ReportAck, ReportKind},
};

use super::{
    api::{Answer, POD, Place},
    cloud::{End, Hub},
    faults::{Fault, Invariant},
    link::Connection,
    world::{Event, Failure, MILLISECOND, Outcome, SECOND, Stop, World},
};

/// Who asks does not wait any longer.
const DEADLINE: u64 = 20 * SECOND;
const RENEWAL: u64 = 10 * SECOND;
/// An edge that does not answer for so long is elsewhere.
const ANSWER: u64 = 10 * SECOND;

/// Of one session.
#[derive(Default)]
pub(crate) struct Claim {
    /// Its number, while it stands.
    number: Option<u64>,
    /// It is written, and the edge is called: its number, the Lease's version, how far the cache was.
    written: Option<(u64, u64, u64)>,
    /// Another's was found, and the edge is called before it is claimed anew.
    lost: bool,
    calls: u64,
    failures: u32,
    /// The Lease's version.
    version: u64,
    verified: u64,
    /// What the session has written beyond that.
    own: BTreeMap<Place, u64>,
}

impl Claim {
    pub(crate) fn stands(&self) -> bool {
        self.number.is_some()
    }

    fn covers(&self, place: &Place, version: u64) -> bool {
        version <= self.verified || self.own.get(place) == Some(&version)
    }

    fn found(&mut self, seen: u64) {
        let verified = seen.max(self.verified);
        self.verified = verified;
        self.own.retain(|_, version| *version > verified);
    }
}

/// What is asked, with what is to be done with the answer.
#[derive(Clone)]
pub(crate) enum Ask {
    Claim {
        number: u64,
    },
    Renew {
        version: u64,
        seen: u64,
    },
    /// After a renewal that was refused.
    Look,
    /// Before a state is written over `version`.
    Confirm {
        task: u64,
        version: u64,
        seen: u64,
    },
    Read {
        task: u64,
        place: Place,
    },
    Write {
        task: u64,
        report: Report,
        over: Option<u64>,
    },
}

pub(crate) struct Request {
    connection: usize,
    ask: Ask,
    answer: Option<Answer>,
    /// Nobody waits for the answer.
    given_up: bool,
}

pub(crate) fn place(node: usize, report: &Report) -> Place {
    (node, report.kind, report.key.clone())
}

impl World {
    fn ask(&mut self, connection: usize, ask: Ask) {
        self.asked += 1;
        let request = self.asked;
        // One that came to nothing may be made good for by a second before it arrives.
        let delay = if !self.quiet && self.rng.percent(8) {
            self.rng.between(1, 40) * SECOND
        } else {
            self.rng.around(5 * MILLISECOND)
        };
        self.requests.insert(request, Request { connection, ask, answer: None, given_up: false });
        self.after(delay, Event::Arrives { request });
        self.after(DEADLINE, Event::GivesUp { connection, request });
    }

    /// The API server has the request.
    pub(crate) fn arrives(&mut self, request: u64) -> Outcome {
        let Some(Request { connection, ask, given_up, .. }) = self.requests.get(&request) else {
            return Ok(());
        };
        let (connection, ask, given_up) = (*connection, ask.clone(), *given_up);
        let Connection { node, replica, .. } = self.connections[connection];
        let is_wanted = !given_up && self.replicas[replica].has_session(connection);
        // With its connection, or before it was sent.
        if !is_wanted && self.rng.percent(50) {
            self.requests.remove(&request);
            return Ok(());
        }
        let mut answer = None;
        if self.api.out_until > self.now {
            if self.rng.percent(50) {
                self.at(self.api.out_until + MILLISECOND, Event::Arrives { request });
                return Ok(());
            }
            answer = Some(Answer::Again);
        } else if self.rng.percent(5) {
            answer = Some(Answer::Again);
        }
        let answer = match answer {
            Some(answer) => answer,
            None => self.do_as_asked(connection, node, &ask)?,
        };
        // It is done, and nobody hears of it.
        let answer = if self.rng.percent(3) { Answer::Again } else { answer };
        if !is_wanted {
            self.requests.remove(&request);
            return Ok(());
        }
        if let Some(asked) = self.requests.get_mut(&request) {
            asked.answer = Some(answer);
            let delay = self.rng.around(5 * MILLISECOND);
            self.after(delay, Event::Answered { connection, request });
        }
        Ok(())
    }

    fn do_as_asked(&mut self, connection: usize, node: usize, ask: &Ask) -> Result<Answer, Failure> {
        let answer = match ask {
            Ask::Claim { number } => self.api.claim(node, *number),
            Ask::Renew { version, .. } => {
                let over = (!self.has(Fault::RenewsWithoutPrecondition)).then_some(*version);
                self.api.renew(node, over)
            }
            Ask::Look | Ask::Confirm { .. } => self.api.lease(node),
            Ask::Read { place, .. } => Answer::Version(self.api.version(place)),
            Ask::Write { report, over, .. } => {
                let written = self.api.write(node, report, *over);
                written.map_err(|(invariant, detail)| {
                    Failure::new(invariant, format!("c{connection} {detail}"))
                })?
            }
        };
        if !matches!(ask, Ask::Read { .. } | Ask::Confirm { .. }) {
            self.say(|| format!("api: {} of c{connection}: {answer:?}", ask.name()));
        }
        Ok(answer)
    }

    /// The one who asks waits no longer; the request is on its way all the same.
    pub(crate) fn gives_up(&mut self, connection: usize, request: u64) -> Outcome {
        let Some(Request { ask, answer: None, given_up, .. }) = self.requests.get_mut(&request) else {
            return Ok(());
        };
        *given_up = true;
        let ask = ask.clone();
        self.cloud_step(connection, |world, hub| {
            world.hear(hub, ask, Answer::Again);
            Ok(())
        })
    }

    pub(crate) fn answered(&mut self, connection: usize, request: u64) -> Outcome {
        let Some(Request { ask, answer: Some(answer), .. }) = self.requests.remove(&request) else {
            return Ok(());
        };
        self.cloud_step(connection, |world, hub| {
            world.hear(hub, ask, answer);
            Ok(())
        })
    }

    /// A session has an answer.
    fn hear(&mut self, hub: &mut Hub, ask: Ask, answer: Answer) {
        match (ask, answer) {
            (Ask::Claim { number }, Answer::Version(version)) => {
                hub.claim.failures = 0;
                hub.claim.written = Some((number, version, self.newest_seen(hub)));
                if self.has(Fault::ClaimsWithoutCall) {
                    self.edge_present(hub);
                } else {
                    self.call(hub);
                }
            }
            (Ask::Claim { .. }, _) => {
                let delay = self.lease_backoff(hub);
                self.after(delay, Event::ClaimAgain { connection: hub.connection });
            }
            (Ask::Renew { seen, .. }, Answer::Version(version)) => {
                hub.claim.failures = 0;
                hub.claim.version = version;
                hub.claim.found(seen);
                self.renew_later(hub);
            }
            (Ask::Renew { .. }, Answer::Conflict) => self.ask(hub.connection, Ask::Look),
            (Ask::Look, Answer::Lease { version, claim }) if claim == hub.claim.number => {
                hub.claim.version = version;
                self.renew(hub);
            }
            (Ask::Renew { .. }, Answer::Missing) | (Ask::Look, Answer::Lease { .. } | Answer::Missing) => {
                hub.claim.number = None;
                hub.claim.lost = true;
                self.call(hub);
            }
            (Ask::Renew { .. } | Ask::Look, _) => {
                let delay = self.lease_backoff(hub);
                self.after(delay, Event::Renew { connection: hub.connection });
            }
            (Ask::Confirm { task, version, seen }, Answer::Lease { claim, .. })
                if claim.is_some() && claim == hub.claim.number =>
            {
                if self.has(Fault::ReadsAfterLook) && hub.tasks.get(&task).is_some_and(|task| task.anew) {
                    let Some(place) = hub.tasks.get(&task).map(|task| place(hub.node, &task.report)) else {
                        return;
                    };
                    self.ask(hub.connection, Ask::Read { task, place });
                    return;
                }
                hub.claim.found(seen);
                self.write_state(hub, task, Some(version));
            }
            (Ask::Confirm { task, .. }, _) | (Ask::Read { task, .. }, Answer::Again) => self.again(hub, task),
            (Ask::Read { task, .. }, Answer::Version(version)) if self.has(Fault::ReadsAfterLook) => {
                self.write_state(hub, task, Some(version));
            }
            (Ask::Read { task, .. }, Answer::Version(version)) => self.confirm(hub, task, version),
            (Ask::Write { task, report, .. }, answer) => self.settle(hub, task, &report, &answer),
            (ask @ Ask::Read { .. }, answer) => unreachable!("{}: {answer:?}", ask.name()),
        }
    }

    fn newest_seen(&self, hub: &Hub) -> u64 {
        self.replicas[self.connections[hub.connection].replica].newest(POD)
    }

    fn lease_backoff(&mut self, hub: &mut Hub) -> u64 {
        let backoff = ((200 * MILLISECOND) << hub.claim.failures.min(8)).min(RENEWAL / 2);
        hub.claim.failures += 1;
        backoff / 2 + self.rng.below(backoff / 2)
    }

    /// Begins with a claim.
    pub(crate) fn claim(&mut self, hub: &Hub) {
        // Another one each time: what was given up may arrive later.
        self.claims += 1;
        self.ask(hub.connection, Ask::Claim { number: self.claims });
    }

    pub(crate) fn claim_again(&mut self, connection: usize) -> Outcome {
        self.cloud_step(connection, |world, hub| {
            world.claim(hub);
            Ok(())
        })
    }

    fn call(&mut self, hub: &mut Hub) {
        hub.session.call();
        hub.claim.calls += 1;
        let (connection, call) = (hub.connection, hub.claim.calls);
        self.after(ANSWER, Event::Unanswered { connection, call });
    }

    pub(crate) fn unanswered(&mut self, connection: usize, call: u64) -> Outcome {
        self.cloud_step(connection, |_, hub| {
            if hub.claim.lost && hub.claim.calls == call { Err(Stop::End(End::Elsewhere)) } else { Ok(()) }
        })
    }

    /// The edge has answered.
    pub(crate) fn edge_present(&mut self, hub: &mut Hub) {
        if let Some((number, version, seen)) = hub.claim.written.take() {
            hub.claim.number = Some(number);
            hub.claim.version = version;
            hub.claim.found(seen);
            self.renew_later(hub);
        } else if std::mem::take(&mut hub.claim.lost) {
            self.claim(hub);
        }
    }

    fn renew_later(&mut self, hub: &Hub) {
        let delay = RENEWAL * 9 / 10 + self.rng.below(RENEWAL / 10);
        self.after(delay, Event::Renew { connection: hub.connection });
    }

    fn renew(&mut self, hub: &Hub) {
        if hub.claim.number.is_some() {
            let ask = Ask::Renew { version: hub.claim.version, seen: self.newest_seen(hub) };
            self.ask(hub.connection, ask);
        }
    }

    pub(crate) fn renewal(&mut self, connection: usize) -> Outcome {
        self.cloud_step(connection, |world, hub| {
            world.renew(hub);
            Ok(())
        })
    }

    /// One attempt to have a report taken; it holds one of the session's turns until [`World::again`] or its end.
    pub(crate) fn attempt(&mut self, hub: &mut Hub, task: u64) {
        let Some(attempt) = hub.tasks.get(&task) else { return };
        let place = place(hub.node, &attempt.report);
        if attempt.report.kind() == ReportKind::Event || self.has(Fault::ReportsWithoutFence) {
            return self.write_state(hub, task, None);
        }
        if attempt.anew {
            if self.has(Fault::ReadsAfterLook) {
                return self.look_first(hub, task);
            }
            return self.ask(hub.connection, Ask::Read { task, place });
        }
        let cached = self.api.version_at(&place, self.newest_seen(hub));
        let own = hub.claim.own.get(&place).copied().unwrap_or_default();
        self.confirm(hub, task, cached.max(own));
    }

    fn look_first(&mut self, hub: &Hub, task: u64) {
        self.ask(hub.connection, Ask::Confirm { task, version: 0, seen: 0 });
    }

    fn confirm(&mut self, hub: &mut Hub, task: u64, version: u64) {
        let Some(attempt) = hub.tasks.get(&task) else { return };
        if hub.claim.covers(&place(hub.node, &attempt.report), version) {
            return self.write_state(hub, task, Some(version));
        }
        if !hub.claim.stands() {
            return self.again(hub, task);
        }
        let seen = version.max(self.newest_seen(hub));
        self.ask(hub.connection, Ask::Confirm { task, version, seen });
    }

    fn write_state(&mut self, hub: &Hub, task: u64, over: Option<u64>) {
        if let Some(attempt) = hub.tasks.get(&task) {
            let report = attempt.report.clone();
            self.ask(hub.connection, Ask::Write { task, report, over });
        }
    }

    /// The turn is over, and the report is tried again.
    fn again(&mut self, hub: &mut Hub, task: u64) {
        hub.attempts -= 1;
        let Some(attempt) = hub.tasks.get_mut(&task) else { return };
        let backoff = ((200 * MILLISECOND) << attempt.failures.min(10)).min(30 * SECOND);
        attempt.failures += 1;
        let delay = backoff / 2 + self.rng.below(backoff / 2);
        self.after(delay, Event::TryAgain { connection: hub.connection, task });
    }

    fn settle(&mut self, hub: &mut Hub, task: u64, report: &Report, answer: &Answer) {
        let refused = match answer {
            Answer::Again | Answer::Conflict if self.has(Fault::AckedOnFailure) => false,
            Answer::Version(version) => {
                let place = place(hub.node, report);
                if *version > hub.claim.verified {
                    hub.claim.own.insert(place, *version);
                }
                false
            }
            Answer::Done => false,
            Answer::Refused => true,
            Answer::Conflict => {
                let Some(attempt) = hub.tasks.get_mut(&task) else { return };
                if attempt.anew {
                    self.again(hub, task);
                } else {
                    attempt.anew = true;
                    self.attempt(hub, task);
                }
                return;
            }
            _ => {
                self.again(hub, task);
                return;
            }
        };
        hub.attempts -= 1;
        let Some(done) = hub.tasks.remove(&task) else { return };
        hub.lanes.running.remove(&done.report.key);
        if !done.acked {
            let refused = if refused { "refused" } else { "" };
            hub.session.finish_reports(vec![ReportAck { id: done.report.id, refused: refused.to_owned() }]);
        }
    }
}

pub(crate) fn check_own(hub: &Hub) -> Outcome {
    // A node's pods and itself.
    if hub.claim.own.len() > 9 {
        let detail = format!("c{}: {} versions are kept", hub.connection, hub.claim.own.len());
        return Err(Failure::new(Invariant::Bounded, detail));
    }
    Ok(())
}

impl Ask {
    fn name(&self) -> String {
        match self {
            Self::Claim { number } => format!("claim {number}"),
            Self::Renew { version, .. } => format!("renewal of @{version}"),
            Self::Look | Self::Confirm { .. } => "look at the lease".to_owned(),
            Self::Read { place, .. } => format!("read of {}", place.2),
            Self::Write { report, over, .. } => {
                format!("write of {} {} over {over:?}", report.key, super::api::serial(report))
            }
        }
    }
}
