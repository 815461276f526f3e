//! How far a rotation is, and which nodes it waits for.

use std::fmt;

use anyhow::{Context, Result};
use crds::{AUTHORITIES_ANNOTATION, EDGE_LABEL, KEY_ANNOTATION};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt, api::ListParams};
use runtime::tls::{self, Authorities, authorities::Phase};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{cli::RotateStep, kubernetes::Cluster};

/// Nodes a page of a list.
const PAGE: u32 = 500;
/// Nodes that a message names.
const NAMED: usize = 10;

/// An edge node, as far as a rotation is concerned.
pub(super) struct EdgeNode {
    name: String,
    ready: bool,
    held: Held,
}

/// What cloudcore has written of it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Held {
    trusted: Vec<String>,
    issuer: String,
}

/// Every node that a machine has joined as: an operator may have taken its label away.
pub(super) async fn nodes(cluster: &Cluster) -> Result<Vec<EdgeNode>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut nodes = Vec::new();
    loop {
        let page = api.list(&params).await.context("failed to list the nodes")?;
        let is_edge = |node: &Node| {
            node.labels().contains_key(EDGE_LABEL) || node.annotations().contains_key(KEY_ANNOTATION)
        };
        for node in page.items.into_iter().filter(is_edge) {
            let held = node.annotations().get(AUTHORITIES_ANNOTATION);
            let held = held.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            let name = node.name_any();
            nodes.push(EdgeNode { name, ready: is_ready(&node), held });
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(nodes),
        }
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) phase: &'static str,
    issuer: Authority,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Authority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Authority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aborted: Option<Authority>,
    nodes: Counts,
    /// Those that have not followed, and with what.
    pub(super) waiting: Vec<Waiting>,
    /// Those that have a certificate of a CA that issues nothing yet: the Secret is an older one than they have seen.
    #[serde(skip)]
    ahead: Vec<Waiting>,
    pub(super) next_step: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Authority {
    id: String,
    not_before: String,
    not_after: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    total: usize,
    /// With trust in the new CA on their disk; on the way back, in the one before.
    trusting: usize,
    /// With a certificate from it, too.
    renewed: usize,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Waiting {
    name: String,
    ready: bool,
    trusts: bool,
    renewed: bool,
    #[serde(skip)]
    why: &'static str,
}

impl Report {
    pub(super) fn of(authorities: &Authorities, nodes: &[EdgeNode]) -> Result<Self> {
        let trusted = authorities.trusted();
        let described = trusted.iter().map(Authority::of).collect::<Result<Vec<_>>>()?;
        let mut described = described.into_iter();
        let issuer = described.next().context("there is a CA that issues")?;
        let beside = described.next();
        let phase = authorities.phase();
        // The one that all are to follow.
        let wanted = match phase {
            Phase::Prepared => beside.as_ref().map_or(&issuer.id, |next| &next.id),
            Phase::Steady | Phase::Issuing | Phase::Returning => &issuer.id,
        };
        let mut counts = Counts { total: nodes.len(), trusting: 0, renewed: 0 };
        let (mut waiting, mut ahead) = (Vec::new(), Vec::new());
        for EdgeNode { name, ready, held } in nodes {
            let (mut trusts, renewed) = (held.trusted.contains(wanted), held.issuer == *wanted);
            counts.trusting += usize::from(trusts);
            counts.renewed += usize::from(renewed);
            let waits = match phase {
                // Those that have seen a rotation have told.
                Phase::Steady => {
                    trusts = trusts && held.trusted.len() == 1;
                    let has_followed = trusts && renewed;
                    !held.trusted.is_empty() && !has_followed
                }
                Phase::Prepared => !trusts,
                Phase::Issuing | Phase::Returning => !(trusts && renewed),
            };
            let node = |why| Waiting { name: name.clone(), ready: *ready, trusts, renewed, why };
            if waits {
                waiting.push(node(why(phase, trusts, renewed)));
            }
            if phase == Phase::Prepared && renewed {
                ahead.push(node("has a certificate from the new CA"));
            }
        }
        let (mut next, mut previous, mut aborted) = (None, None, None);
        let (phase, next_step) = match phase {
            Phase::Steady => ("steady", "prepare"),
            Phase::Prepared => {
                next = beside;
                ("prepared", "issue")
            }
            Phase::Issuing => {
                previous = beside;
                ("issuing", "drop")
            }
            Phase::Returning => {
                aborted = beside;
                ("returning", "drop")
            }
        };
        Ok(Self { phase, issuer, next, previous, aborted, nodes: counts, waiting, ahead, next_step })
    }

    /// Whom the step would shut out, or whom it is taken too early for.
    pub(super) fn behind(&self, step: RotateStep) -> Vec<Waiting> {
        match step {
            RotateStep::Prepare => Vec::new(),
            // Those that are away know the new CA by the one before. One that is here and does not follow is too old to.
            RotateStep::Issue => self.waiting.iter().filter(|node| node.ready).cloned().collect(),
            RotateStep::Drop => self.waiting.clone(),
            // Forgetting a CA shuts out who is from there. Otherwise there is a way back for everyone.
            RotateStep::Abort => self.ahead.clone(),
        }
    }

    /// Nobody is waited for who is here.
    pub(super) fn following(&self) -> bool {
        self.waiting.iter().all(|node| !node.ready)
    }
}

impl Authority {
    fn of(ca: &CertificateDer<'static>) -> Result<Self> {
        let (begins, ends) = tls::validity(ca)?;
        let time = |seconds| jiff::Timestamp::from_second(seconds).map(|time| time.to_string());
        let id = format!("{:016x}", tls::authority_id(ca));
        Ok(Self { id, not_before: time(begins)?, not_after: time(ends)? })
    }
}

/// Why a node is waited for.
fn why(phase: Phase, trusts: bool, renewed: bool) -> &'static str {
    match (phase, trusts) {
        (Phase::Steady, _) if renewed => "trusts a CA that is gone",
        (Phase::Steady, _) => "has a certificate of a CA that is gone",
        (Phase::Returning, true) => "has no certificate from the CA that issues again",
        (Phase::Returning, false) => "does not trust the CA that issues again",
        (_, true) => "has no certificate from the new CA",
        (_, false) => "does not trust the new CA",
    }
}

/// For a sentence.
pub(super) fn list(nodes: &[Waiting]) -> String {
    let named: Vec<String> = nodes.iter().take(NAMED).map(ToString::to_string).collect();
    let more = nodes.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    format!("{}{more}", named.join(", "))
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let away = if self.ready { "" } else { " and is not Ready" };
        write!(f, "{} {}{away}", self.name, self.why)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, issuer, next, previous, aborted, nodes, waiting, ahead: _, next_step } = self;
        let what = match *phase {
            "prepared" => "a new CA is trusted, and issues nothing yet",
            "issuing" => "the new CA issues, and the one before is trusted",
            "returning" => {
                "the rotation is taken back: the CA before issues again, and the other one is trusted"
            }
            _ => "no rotation is under way",
        };
        writeln!(f, "phase     {phase}: {what}")?;
        let mut authority = |name: &str, ca: &Authority| {
            writeln!(f, "{name:<9} {} from {} to {}", ca.id, ca.not_before, ca.not_after)
        };
        authority("issuer", issuer)?;
        next.as_ref().map_or(Ok(()), |ca| authority("next", ca))?;
        previous.as_ref().map_or(Ok(()), |ca| authority("previous", ca))?;
        aborted.as_ref().map_or(Ok(()), |ca| authority("aborted", ca))?;
        let Counts { total, trusting, renewed } = nodes;
        let whom = if *phase == "returning" { "the issuer" } else { "the new CA" };
        if *phase == "steady" {
            writeln!(f, "nodes     {total}")?;
        } else {
            writeln!(f, "nodes     {total}, {trusting} trust {whom}, {renewed} have a certificate from it")?;
        }
        for node in waiting {
            writeln!(f, "waiting   {node}")?;
        }
        writeln!(f, "next      keadm certs rotate-ca {next_step}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: bool, trusted: &[u64], issuer: u64) -> EdgeNode {
        let text = |id: &u64| format!("{id:016x}");
        let held = Held { trusted: trusted.iter().map(text).collect(), issuer: text(&issuer) };
        EdgeNode { name: name.to_owned(), ready, held }
    }

    #[test]
    fn a_rotation_waits_for_those_who_have_not_followed() {
        let steady = Authorities::generate().unwrap();
        let silent = || EdgeNode { name: "silent".to_owned(), ready: true, held: Held::default() };
        let report = Report::of(&steady, &[silent()]).unwrap();
        assert!(report.waiting.is_empty() && report.following() && report.phase == "steady");

        let prepared = steady.prepared().unwrap();
        let [old, new] = prepared.ids()[..] else { panic!("two") };
        let nodes = [node("good", true, &[old, new], old), node("away", false, &[old], old), silent()];
        let report = Report::of(&prepared, &nodes).unwrap();
        assert_eq!((report.nodes.total, report.nodes.trusting, report.nodes.renewed), (3, 1, 0));
        assert!(report.behind(RotateStep::Prepare).is_empty());
        assert_eq!(list(&report.behind(RotateStep::Issue)), "silent does not trust the new CA");
        assert!(!report.following() && Report::of(&prepared, &nodes[..2]).unwrap().following());

        let issuing = prepared.issuing().unwrap();
        let nodes = [
            node("good", true, &[new, old], new),
            node("late", true, &[new, old], old),
            node("away", false, &[old], old),
            // It has renewed, and then its disk was put back.
            node("odd", true, &[old], new),
        ];
        let report = Report::of(&issuing, &nodes).unwrap();
        assert_eq!((report.nodes.trusting, report.nodes.renewed), (2, 2));
        assert_eq!(
            list(&report.behind(RotateStep::Drop)),
            "late has no certificate from the new CA, away does not trust the new CA and is not Ready, \
             odd does not trust the new CA"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["waiting"][0]["name"], "late");
        assert_eq!((&json["phase"], &json["nextStep"]), (&"issuing".into(), &"drop".into()));
        assert_eq!(json["previous"]["id"], format!("{old:016x}"));
        let text = report.to_string();
        assert!(text.contains("nodes     4, 2 trust the new CA, 2 have a certificate from it\n"), "{text}");
        assert!(text.contains("waiting   away does not trust the new CA and is not Ready\n"), "{text}");
        assert!(report.behind(RotateStep::Abort).is_empty());
        let dropped = issuing.dropped().unwrap();
        let report = Report::of(&dropped, &nodes).unwrap();
        assert!(report.previous.is_none() && report.phase == "steady");
        assert_eq!(
            list(&report.waiting),
            "good trusts a CA that is gone, late has a certificate of a CA that is gone, \
             away has a certificate of a CA that is gone and is not Ready, odd trusts a CA that is gone"
        );
        let has_let_go = [node("good", true, &[new], new), silent()];
        assert!(Report::of(&dropped, &has_let_go).unwrap().waiting.is_empty());
    }

    #[test]
    fn a_rotation_that_is_taken_back_waits_for_those_who_went_ahead() {
        let prepared = Authorities::generate().unwrap().prepared().unwrap();
        let [old, new] = prepared.ids()[..] else { panic!("two") };
        let secret = prepared.to_secret();
        let report = Report::of(&prepared, &[node("good", true, &[old, new], old)]).unwrap();
        assert!(report.behind(RotateStep::Abort).is_empty());
        // The Secret was restored from a backup.
        let report = Report::of(&prepared, &[node("ahead", true, &[new, old], new)]).unwrap();
        assert_eq!(list(&report.behind(RotateStep::Abort)), "ahead has a certificate from the new CA");
        let steady = prepared.aborted().unwrap();
        let report = Report::of(&steady, &[node("good", true, &[old, new], old)]).unwrap();
        assert_eq!(list(&report.waiting), "good trusts a CA that is gone");
        assert!(!report.following());

        let issuing = Authorities::from_secret(&secret).unwrap().issuing().unwrap();
        let returning = issuing.aborted().unwrap();
        let nodes = [
            node("back", true, &[old, new], old),
            node("late", true, &[old, new], new),
            node("away", false, &[new], new),
            // It has heard of none of it.
            node("absent", false, &[old], old),
        ];
        let report = Report::of(&returning, &nodes).unwrap();
        assert_eq!(
            list(&report.behind(RotateStep::Drop)),
            "late has no certificate from the CA that issues again, \
             away does not trust the CA that issues again and is not Ready"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["phase"], &json["nextStep"]), (&"returning".into(), &"drop".into()));
        assert_eq!(json["aborted"]["id"], format!("{new:016x}"));
        assert!(json["previous"].is_null() && json["issuer"]["id"] == format!("{old:016x}"));
        let text = report.to_string();
        assert!(text.contains("nodes     4, 3 trust the issuer, 2 have a certificate from it\n"), "{text}");
    }

    #[test]
    fn a_message_names_a_few() {
        let many: Vec<Waiting> = (0..12)
            .map(|number| Waiting {
                name: format!("n{number}"),
                ready: true,
                trusts: false,
                renewed: false,
                why: why(Phase::Issuing, false, false),
            })
            .collect();
        let text = list(&many);
        assert!(text.ends_with("n9 does not trust the new CA, and 2 more"), "{text}");
    }
}
