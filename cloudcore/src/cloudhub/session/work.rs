//! The tasks of a session: what is done at the API server for its node, and what comes of it.

use std::sync::Arc;

use proto::message::{Report, ReportAck, ReportKind, Response};
use tokio::task::JoinError;
use tracing::debug;

use super::{Driver, End};
use crate::{
    cloudhub::{authorities, told::Told},
    edgecontroller::{lease::Keeper, upstream::Delivery},
};

/// Questions of one node under way at once. How many may wait, the session knows.
const QUESTIONS_AT_ONCE: usize = 4;

/// One thing to do for the node at the API server.
pub(super) enum Work {
    Report(Report),
    /// The status is not what the edge last reported: write it again.
    Heal,
}

/// What a task of the session came to.
pub(super) enum Done {
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

impl Driver<'_> {
    pub(super) fn keep_lease(&mut self) {
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

    /// The Node says what the edge has of the CAs, as far as it has told.
    pub(super) fn note_authorities(&mut self) {
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

    pub(super) fn start_work(&mut self) {
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

    pub(super) fn finish(&mut self, done: Result<Done, JoinError>) -> Result<(), End> {
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
    pub(super) fn heal(&mut self) {
        if !self.context.index.is_complete() {
            return;
        }
        // If nothing is heard of the node here, it may be another cloudcore that it is connected to now.
        let is_here = self.progress.last().elapsed() < self.context.lease.renew_every;
        for lane in self.told.astray(&self.context.index, &self.claim, is_here) {
            self.lanes.push(&lane, Work::Heal);
        }
    }
}
