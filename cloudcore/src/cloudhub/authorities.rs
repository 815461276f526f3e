//! What an edge has of the cluster's CAs, and what it should have.
//!
//! An edge asks once a session, and again whenever it has stored something else; the question stays open until the CAs are
//! others than those that it named. So each question says what is on that edge's disk, and cloudcore writes it on the Node while
//! a CA is rotated: it tells an operator when the old one may go, and then who has let it go.

use kube::Client;
use proto::{
    limits::MAX_AUTHORITIES,
    message::{Answer, Authorities as Told, AuthoritiesHeld, Response},
};
use runtime::tls::{Authorities, authorities::Phase};
use serde_json::json;

use crate::edgecontroller::{
    api::{self, Failure, Patch},
    objects::AUTHORITIES_ANNOTATION,
};

/// Nodes that renew in a second, when all are to: each costs a signature and a write of its Node.
const RENEWALS: usize = 20;

/// What an edge has said, and has not been answered.
#[derive(Debug)]
pub(super) struct Holding {
    question: Option<u64>,
    held: AuthoritiesHeld,
}

impl Holding {
    /// A question takes the place of the one before it, which is answered by that.
    pub(super) fn take(before: &mut Option<Self>, question: u64, held: AuthoritiesHeld) -> Option<Response> {
        let refused = |id, why: &str| Some(Response { id, answer: Some(Answer::Refused(why.to_owned())) });
        if held.trusted.len() > MAX_AUTHORITIES {
            return refused(question, "no node trusts so many CAs");
        }
        let earlier = before.replace(Self { question: Some(question), held })?.question?;
        refused(earlier, "asked again")
    }

    /// The answer, once there is one. So many `nodes` may be told at once.
    pub(super) fn answer(
        &mut self,
        authorities: &Authorities,
        nodes: impl FnOnce() -> usize,
    ) -> Option<Response> {
        if self.held.trusted == authorities.ids() {
            return None;
        }
        let id = self.question.take()?;
        let told = Told {
            certificates: authorities.trusted().iter().map(|ca| ca.to_vec().into()).collect(),
            renew_within_seconds: u32::try_from(nodes() / RENEWALS).unwrap_or(u32::MAX).saturating_add(1),
        };
        Some(Response { id, answer: Some(Answer::Authorities(told)) })
    }

    /// What the Node should say that says `noted`, while that matters: during a rotation, and once after it. An edge that is to
    /// hold something else says soon what it holds then.
    pub(super) fn annotation(&self, authorities: &Authorities, noted: Option<&str>) -> Option<String> {
        let is_over = authorities.phase() == Phase::Steady && noted.is_none();
        if is_over || self.held.trusted != authorities.ids() {
            return None;
        }
        let text = |id: &u64| format!("{id:016x}");
        let trusted: Vec<String> = self.held.trusted.iter().map(text).collect();
        let held = json!({"trusted": trusted, "issuer": text(&self.held.issuer)}).to_string();
        Some(held).filter(|held| noted != Some(held))
    }
}

/// Writes it on the Node.
pub(super) async fn note(client: &Client, node: &str, text: &str) -> Result<(), Failure> {
    let patch = json!({"metadata": {"annotations": {AUTHORITIES_ANNOTATION: text}}});
    api::patch(client, &format!("/api/v1/nodes/{node}"), Patch::Merge, &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(trusted: &[u64], issuer: u64) -> AuthoritiesHeld {
        AuthoritiesHeld { trusted: trusted.to_vec(), issuer }
    }

    #[test]
    fn a_question_is_open_until_there_is_something_else_to_hold() {
        let steady = Authorities::generate().unwrap();
        let [old] = steady.ids()[..] else { panic!("one") };
        let mut holding = None;
        assert_eq!(Holding::take(&mut holding, 1, held(&[old], old)), None);
        assert_eq!(holding.as_mut().unwrap().answer(&steady, || 1), None);
        assert_eq!(holding.as_ref().unwrap().annotation(&steady, None), None);
        let prepared = steady.prepared().unwrap();
        let answer = holding.as_mut().unwrap().answer(&prepared, || 10_000).unwrap();
        let Some(Answer::Authorities(told)) = answer.answer else { panic!("refused") };
        assert_eq!((answer.id, told.certificates.len(), told.renew_within_seconds), (1, 2, 501));
        assert_eq!(holding.as_mut().unwrap().answer(&prepared, || 1), None, "it was answered");
        assert_eq!(holding.as_ref().unwrap().annotation(&prepared, None), None, "it has not stored that yet");

        // It has stored that, and then the order changes: another one issues.
        assert_eq!(Holding::take(&mut holding, 2, held(prepared.ids(), old)), None);
        assert_eq!(holding.as_mut().unwrap().answer(&prepared, || 1), None);
        let new = prepared.ids()[1];
        let text = holding.as_ref().unwrap().annotation(&prepared, None).unwrap();
        assert_eq!(text, format!(r#"{{"issuer":"{old:016x}","trusted":["{old:016x}","{new:016x}"]}}"#));
        assert_eq!(holding.as_ref().unwrap().annotation(&prepared, Some(&text)), None, "it is there");
        let issuing = prepared.issuing().unwrap();
        let again = Holding::take(&mut holding, 3, held(&[old], old)).unwrap();
        assert_eq!(again, Response { id: 2, answer: Some(Answer::Refused("asked again".to_owned())) });
        assert_eq!(holding.as_mut().unwrap().answer(&issuing, || 1).unwrap().id, 3);

        // It is taken back, and dropped.
        let returning = issuing.aborted().unwrap();
        assert_eq!(Holding::take(&mut holding, 4, held(&[new, old], old)), None);
        assert_eq!(holding.as_mut().unwrap().answer(&returning, || 1).unwrap().id, 4);
        assert_eq!(Holding::take(&mut holding, 5, held(returning.ids(), old)), None);
        let steady = returning.dropped().unwrap();
        assert_eq!(holding.as_ref().unwrap().annotation(&steady, Some(&text)), None);
        assert_eq!(holding.as_mut().unwrap().answer(&steady, || 1).unwrap().id, 5);
        assert_eq!(Holding::take(&mut holding, 6, held(&[old], old)), None);
        let last = holding.as_ref().unwrap().annotation(&steady, Some(&text)).unwrap();
        assert_eq!(last, format!(r#"{{"issuer":"{old:016x}","trusted":["{old:016x}"]}}"#));
        assert_eq!(holding.as_ref().unwrap().annotation(&steady, Some(&last)), None);
    }

    #[test]
    fn an_edge_that_trusts_everyone_is_refused() {
        let mut holding = None;
        let refused = Holding::take(&mut holding, 1, held(&[7; MAX_AUTHORITIES + 1], 7)).unwrap();
        assert!(matches!(refused.answer, Some(Answer::Refused(_))) && holding.is_none());
    }
}
