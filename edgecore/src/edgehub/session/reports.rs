//! Of what is in the outbox, what goes up when, and what becomes of it then.

use std::{collections::hash_map::Entry, time::Duration};

use proto::{
    limits::WINDOW_REPORTS,
    message::{ReportAck, ReportKind},
    session::EdgeSession,
};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Driver, HubError, HubStore, SessionError, Throttle, Work, looks};
use crate::edgehub::throttle::Verdict;

/// Of the reports in one frame.
const REPORTS_BYTES: usize = 1 << 20;
/// Reports that are looked at before anything else has its turn: after an outage there may be a hundred thousand.
const LOOKS: usize = 16 * WINDOW_REPORTS;
/// In [`Work::reported`].
const STATUSES: usize = 0;
const OTHERS: usize = 1;
/// Where it is kept what has been told of late.
const TOLD: &str = "reports-told";

impl Work {
    /// Has the reports from this one on judged again.
    pub(super) fn look_again(&mut self, from: u64) {
        self.reported = self.reported.map(|reported| reported.min(from.saturating_sub(1)));
    }
}

impl<S: HubStore> Driver<'_, S> {
    /// When reports that are held back are to wake the line: not if it wakes soon by itself.
    pub(super) fn due(&mut self, session: &EdgeSession, deadline: Instant) -> Option<Instant> {
        let now = self.clock.since_1970();
        let (due, patience) = self.throttle.due(&self.settings.in_force(), now)?;
        // Before, nothing could be sent; what changes that wakes the line, too.
        if session.report_room() == 0 {
            return None;
        }
        let at = |time: Duration| Instant::now() + time.saturating_sub(now);
        (deadline < at(due) || deadline > at(patience)).then(|| at(due))
    }

    /// Of what is in the outbox, sends what is to go now.
    pub(super) async fn send_reports(
        &mut self,
        session: &mut EdgeSession,
        work: &mut Work,
    ) -> Result<(), HubError> {
        work.unseen = false;
        let room = session.report_room();
        if room == 0 {
            return Ok(());
        }
        let (settings, now) = (self.settings.in_force(), self.clock.since_1970());
        if let Some(from) = self.throttle.release(&settings, now) {
            work.look_again(from);
        }
        work.outbox_changed = false;
        let store = self.store;
        let (mut going, mut bytes, mut looks) = (Vec::new(), 0, 0);
        let mut wrong = Vec::new();
        // How everything is now is not to wait for all that has happened while the line was down. What has happened to a pod does
        // go before its end: nothing is told of what is gone.
        let mut of = STATUSES;
        'outbox: loop {
            // Those that are held are passed by without a read each.
            let limit = if self.throttle.held_from().is_some() { WINDOW_REPORTS } else { room };
            let after = work.reported[of];
            let some = if of == STATUSES {
                store.pending_statuses(after, limit)
            } else {
                store.pending_reports(after, limit)
            };
            let some = some.map_err(SessionError::from)?;
            let is_last = some.len() < limit;
            for report in some {
                if of == OTHERS && report.kind().is_status() {
                    work.reported[of] = report.id;
                    continue;
                }
                // One that is larger goes alone.
                let is_full = going.len() == room
                    || (!going.is_empty() && bytes + report.payload.len() > REPORTS_BYTES);
                if is_full {
                    work.outbox_changed = true;
                    break 'outbox;
                }
                looks += 1;
                let id = report.id;
                if let Entry::Vacant(unsent) = work.sent.entry(id) {
                    let (subject, fault) =
                        looks::subject(&report, &settings, |key| store.get(key).ok().flatten());
                    wrong.extend(fault.map(|fault| (report.key.clone(), fault)));
                    match self.throttle.judge(&subject, &settings, now) {
                        Verdict::Send => {
                            bytes += report.payload.len();
                            unsent.insert(subject.key);
                            going.push(report);
                        }
                        Verdict::Hold => {}
                        Verdict::Forget => {
                            unsent.insert(subject.key);
                            work.undone.push(id);
                        }
                    }
                }
                work.reported[of] = id;
            }
            if is_last && of == OTHERS {
                self.throttle.all_judged();
                break;
            }
            if is_last {
                of = OTHERS;
                continue;
            }
            if looks >= LOOKS {
                work.unseen = true;
                break;
            }
        }
        if let Some(node) = going.iter().rfind(|report| report.kind() == ReportKind::NodeStatus) {
            work.node_report = Some((node.id, not_ready(&node.payload)));
        }
        session.report(going);
        self.settings.note_holding(self.throttle.held_from().is_some());
        for (pod, fault) in wrong {
            if let Err(error) = self.settings.complain(&pod, &fault, store).await {
                debug!(error = %runtime::chain(&error), "an event was not kept");
            }
        }
        self.forget_reports(work).await
    }

    pub(super) async fn reports_done(
        &mut self,
        work: &mut Work,
        acks: Vec<ReportAck>,
    ) -> Result<(), HubError> {
        for ack in &acks {
            if let Some(key) = work.sent.get(&ack.id) {
                self.throttle.answered(*key, ack.id, !ack.refused.is_empty());
            }
            if !ack.refused.is_empty() {
                warn!(report = ack.id, reason = ack.refused, "the cloud refused a report");
            }
            if let Some((_, not_ready)) = work.node_report.as_ref().filter(|(id, _)| *id == ack.id) {
                let refused = Some(&ack.refused).filter(|reason| !reason.is_empty());
                let reason = refused.or(not_ready.as_ref());
                self.state.send_modify(|state| {
                    state.node_ready = reason.is_none();
                    state.last_error = reason.cloned().unwrap_or_default();
                });
            }
        }
        // The window has room again.
        work.outbox_changed = true;
        work.undone.extend(acks.iter().map(|ack| ack.id));
        self.forget_reports(work).await?;
        // With what the cloud has: what it does not have is sent again after a restart anyway.
        if let Some(told) = self.throttle.take_changes(&self.settings.in_force())
            && let Err(error) = self.store.put_local(TOLD, told).await
        {
            debug!(error = %runtime::chain(&error), "a restart may tell again what was told");
        }
        Ok(())
    }

    /// What cannot be forgotten now is forgotten after the next commit, or sent again in the next session.
    pub(super) async fn forget_reports(&self, work: &mut Work) -> Result<(), HubError> {
        if work.undone.is_empty() {
            return Ok(());
        }
        match self.store.reports_done(work.undone.clone()).await {
            Ok(()) => {
                for id in work.undone.drain(..) {
                    work.sent.remove(&id);
                }
            }
            Err(error) if error.may_heal() => {}
            Err(error) => return Err(SessionError::from(error).into()),
        }
        Ok(())
    }
}

/// What has been told of late, as an earlier process kept it.
pub(in crate::edgehub) fn throttle(store: &impl HubStore) -> Throttle {
    let kept = store.local(TOLD).ok().flatten();
    kept.map(|kept| Throttle::from_bytes(&kept)).unwrap_or_default()
}

/// Why a Node's status, as it is reported, is not Ready; `None` if it is.
fn not_ready(payload: &[u8]) -> Option<String> {
    let node: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    match ready {
        Some(ready) if ready["status"] == "True" => None,
        Some(ready) => Some(ready["message"].as_str().unwrap_or_default().to_owned()),
        None => Some("its status has no Ready condition".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_was_taken_is_not_yet_a_node_that_is_ready() {
        let of = |conditions: &str| {
            not_ready(format!(r#"{{"status": {{"conditions": [{conditions}]}}}}"#).as_bytes())
        };
        let pressure = r#"{"type": "MemoryPressure", "status": "False"}"#;
        assert_eq!(of(&format!(r#"{pressure}, {{"type": "Ready", "status": "True"}}"#)), None);
        let down = r#"{"type": "Ready", "status": "False", "message": "NetworkReady is false"}"#;
        assert_eq!(of(down).as_deref(), Some("NetworkReady is false"));
        assert!(of(pressure).is_some() && not_ready(b"garbage").is_some());
    }
}
