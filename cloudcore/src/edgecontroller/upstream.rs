//! Writes what nodes report into the Kubernetes API: once the API server took it, or refused it for good, the report is
//! acked; anything else is tried again for as long as the session lives.
//!
//! A node may write about itself and its own pods only ([`authz`]): the cache says whose a pod is, and where the cache
//! would refuse, the API server has the last word, since another replica may know more.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use kube::Client;
use proto::{
    Report, ResourceKey,
    message::{Answer, Question, ReportAck, ReportKind, Request, Response, TokenQuestion},
};
use runtime::backoff::Backoff;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time};
use tracing::{debug, info, warn};

use super::{
    api::{self, Failure, Patch},
    claim::{Claim, Claims, NoRandomness},
    index::Index,
    objects::{Cached, DEVICE, Facts, KINDS, PodFacts, RULE},
    print, tokens,
};
use crate::{
    cloudhub::authz::{self, Denied},
    cloudstream::Endpoint,
    metrics::{Metrics, ReportLabels, ReportOutcome},
};

mod device;
mod node;

/// Requests under way at once for all nodes together: what one API server takes from one client without its priority and
/// fairness queues filling up, and what cloudcore holds of its answers. Nobody holds a slot while waiting to try again.
const SLOTS: usize = 32;
/// The same for the nodes' own statuses: a fleet that comes back is Ready before all of its pods have been told of again.
const NODE_SLOTS: usize = 32;

/// A namespaced object's uid and reason are short; more of a refusal than this is not sent to the edge.
const MAX_REASON: usize = 300;
/// Conditions of a node: far above what anybody reports, and each is looked for among those that are there.
const MAX_CONDITIONS: usize = 100;
/// How often an event is offered that a quota or a policy keeps out.
const EVENT_ATTEMPTS: u32 = 5;

/// The writer, shared by all sessions.
pub struct Upstream {
    client: Client,
    index: Arc<Index>,
    slots: Semaphore,
    node_slots: Semaphore,
    metrics: Metrics,
    kubelet: Endpoint,
    claims: Arc<Claims>,
}

/// What became of one attempt that is not to be repeated.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    /// The API server has it so already.
    Unchanged,
    Refused(String),
}

impl From<Denied> for Verdict {
    fn from(denied: Denied) -> Self {
        Self::Refused(denied.to_string())
    }
}

/// What became of a report.
#[derive(Debug)]
pub struct Delivery {
    pub ack: ReportAck,
    /// The [`mod@print`] of the status that the API server has now.
    pub status: Option<u64>,
}

/// A report, checked as far as it can be without asking anyone.
enum Parsed {
    NodeStatus { key: ResourceKey, report: Box<Value>, print: u64 },
    PodStatus { key: ResourceKey, uid: String, status: Value, print: u64 },
    PodTerminated { key: ResourceKey, uid: String },
    DeviceStatus { key: ResourceKey, uid: String, status: Value, print: u64 },
    Event { key: ResourceKey, event: Value },
}

/// A node that reports: its name and the hash of the key that it has proven to hold.
#[derive(Debug, Clone)]
pub struct Reporter {
    pub node: Arc<str>,
    pub key_hash: Arc<str>,
}

/// Of a pod, a device or a rule.
#[derive(Deserialize)]
struct StatusReport {
    uid: String,
    #[serde(default)]
    status: Value,
}

impl Upstream {
    /// `kubelet` is written into the status of each node.
    pub fn new(
        client: Client,
        index: Arc<Index>,
        metrics: Metrics,
        kubelet: Endpoint,
    ) -> Result<Self, NoRandomness> {
        let claims = Arc::new(Claims::new()?);
        let (slots, node_slots) = (Semaphore::new(SLOTS), Semaphore::new(NODE_SLOTS));
        Ok(Self { client, index, slots, node_slots, metrics, kubelet, claims })
    }

    /// For a session that begins.
    pub fn claim(&self) -> Arc<Claim> {
        Arc::new(Claim::new(Arc::clone(&self.claims)))
    }

    /// Where the API server is to find the kubelet's API of the nodes that are connected here, once it is served.
    pub fn kubelet(&self) -> Option<SocketAddr> {
        self.kubelet.get().copied()
    }

    /// Delivers a node's report; returns once it is settled.
    ///
    /// `attempts` bounds what the node has under way at the API server; it is not held while a report waits to be tried
    /// again, so that one which is not taken holds up no other object's.
    pub async fn deliver(
        &self,
        reporter: &Reporter,
        report: &Report,
        claim: &Claim,
        attempts: &Semaphore,
    ) -> Delivery {
        let node = &*reporter.node;
        let kind = kind_name(report.kind());
        let (verdict, status) = self.settle(reporter, report, kind, claim, attempts).await;
        let (outcome, refused) = match verdict {
            Verdict::Taken => (ReportOutcome::Taken, String::new()),
            Verdict::Unchanged => (ReportOutcome::Unchanged, String::new()),
            Verdict::Refused(reason) => {
                info!(node, kind, key = report.key, reason, "report refused");
                (ReportOutcome::Refused, reason.chars().take(MAX_REASON).collect())
            }
        };
        self.metrics.reports.get_or_create(&ReportLabels { kind, outcome }).inc();
        let status = status.filter(|_| refused.is_empty());
        Delivery { ack: ReportAck { id: report.id, refused }, status }
    }

    /// With the print of the status that was reported.
    async fn settle(
        &self,
        reporter: &Reporter,
        report: &Report,
        kind: &'static str,
        claim: &Claim,
        attempts: &Semaphore,
    ) -> (Verdict, Option<u64>) {
        let (node, key) = (&*reporter.node, &report.key);
        // A node has one status, which is not to wait for those of its pods, neither for all nodes' nor for its own.
        let is_node = report.kind() == ReportKind::NodeStatus;
        let (slots, attempts) =
            if is_node { (&self.node_slots, None) } else { (&self.slots, Some(attempts)) };
        let mut anew = false;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let attempt = {
                // The semaphores are never closed; without a permit the bound is all that is lost.
                let _own = match attempts {
                    Some(attempts) => attempts.acquire().await.ok(),
                    None => None,
                };
                let _slot = slots.acquire().await;
                // On the heap: thousands wait for their slot.
                Box::pin(self.attempt(reporter, report, claim, anew)).await
            };
            match attempt {
                Ok(settled) => return settled,
                // A quota or a policy, not a right that is late: the status says what the event would.
                Err(failure)
                    if report.kind() == ReportKind::Event
                        && failure.code() == Some(403)
                        && backoff.attempts() >= EVENT_ATTEMPTS =>
                {
                    return (Verdict::Refused(runtime::chain(&failure).to_string()), None);
                }
                // Somebody else wrote: what is there now is not in the cache yet.
                Err(failure) if failure.is_conflict() && !anew => {
                    self.metrics.report_retries.inc();
                    anew = true;
                }
                Err(failure) if failure.is_retryable() || failure.is_conflict() => {
                    self.metrics.report_retries.inc();
                    let delay = backoff.next_delay();
                    if backoff.attempts() == 3 {
                        warn!(node, kind, key, error = %runtime::chain(&failure), "report cannot be delivered yet; trying on");
                    } else {
                        debug!(node, kind, key, error = %runtime::chain(&failure), ?delay, "report is tried again");
                    }
                    time::sleep(delay).await;
                }
                Err(failure) => return (Verdict::Refused(runtime::chain(&failure).to_string()), None),
            }
        }
    }

    /// `anew`: what the cache has of the object is not its newest version.
    async fn attempt(
        &self,
        reporter: &Reporter,
        report: &Report,
        claim: &Claim,
        anew: bool,
    ) -> Result<(Verdict, Option<u64>), Failure> {
        let node = &*reporter.node;
        let parsed = match parse(node, report, self.kubelet()) {
            Ok(parsed) => parsed,
            Err(reason) => return Ok((Verdict::Refused(reason), None)),
        };
        let verdict = match &parsed {
            Parsed::NodeStatus { key, report, print } => {
                if !anew && self.has_node_status(reporter, key, report, *print) {
                    Verdict::Unchanged
                } else {
                    let written = self.node_status(reporter, key, report, claim).await?;
                    written.map_or_else(Verdict::from, |()| Verdict::Taken)
                }
            }
            Parsed::PodStatus { key, uid, status, print } => {
                self.pod_status(node, key, (uid, status, *print), claim, anew).await?
            }
            Parsed::PodTerminated { key, uid } => self.pod_terminated(node, key, uid).await?,
            Parsed::DeviceStatus { key, uid, status, print } => {
                self.device_status(node, key, (uid, status, *print), claim, anew).await?
            }
            Parsed::Event { key, event } => self.event(node, key, event).await?,
        };
        Ok((verdict, parsed.print()))
    }

    async fn pod_status(
        &self,
        node: &str,
        key: &ResourceKey,
        (uid, status, print): (&str, &Value, u64),
        claim: &Claim,
        anew: bool,
    ) -> Result<Verdict, Failure> {
        let phase = status["phase"].as_str().unwrap_or_default();
        let check = |pod: &PodFacts| authz::may_report_phase(node, pod, uid, phase);
        let version = match self.check_pod(key, check, anew).await? {
            Ok(version) => claim.newest(key, version),
            Err(denied) => return Ok(denied.into()),
        };
        // In the cache is what this session has written last, if it has written anything.
        if !anew
            && let Some((Some(held), cached)) = self.index.status(key)
            && held == print
            && cached >= version
        {
            return Ok(Verdict::Unchanged);
        }
        claim.confirm(&self.client, &self.index, node, key, version).await?;
        let patch = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            // With the uid a pod of the same name that was created since is not touched.
            "metadata": {"name": key.name(), "namespace": key.namespace(), "uid": uid,
                "resourceVersion": version.to_string()},
            "status": status,
        });
        match api::patch(&self.client, &format!("{}/status", pod_path(key)), Patch::Apply, &patch).await {
            Ok(answer) => {
                claim.wrote(key, answer.resource_version()?);
                Ok(Verdict::Taken)
            }
            Err(Failure::Refused { code: 404, .. }) => Ok(Denied::Gone.into()),
            Err(failure) => Err(failure),
        }
    }

    async fn pod_terminated(&self, node: &str, key: &ResourceKey, uid: &str) -> Result<Verdict, Failure> {
        match self.check_pod(key, |pod| authz::may_terminate(node, pod, uid), false).await? {
            Ok(_) => {}
            // Which is what the report asks for.
            Err(Denied::Gone) => return Ok(Verdict::Taken),
            Err(denied) => return Ok(denied.into()),
        }
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        });
        match api::delete(&self.client, &pod_path(key), &options).await {
            Ok(_) | Err(Failure::Refused { code: 404, .. }) => Ok(Verdict::Taken),
            Err(failure) if failure.is_conflict() => Ok(Verdict::Taken),
            Err(failure) => Err(failure),
        }
    }

    /// `key` is the object that the event is about.
    async fn event(&self, node: &str, key: &ResourceKey, event: &Value) -> Result<Verdict, Failure> {
        let involved = &event["involvedObject"];
        let text = |field: &str| involved[field].as_str().unwrap_or_default();
        // An event has the kind without its group.
        let kind = key.kind().split('.').next().unwrap_or_default();
        let is_the_key =
            (text("kind"), text("namespace"), text("name")) == (kind, key.namespace(), key.name());
        match key.kind() {
            "Node" if is_the_key && key.name() == node => {}
            "Pod" if is_the_key => {
                let uid = text("uid");
                let check = |pod: &PodFacts| authz::may_report(node, pod, uid);
                if let Err(denied) = self.check_pod(key, check, false).await? {
                    return Ok(denied.into());
                }
            }
            DEVICE | RULE if is_the_key => {
                if let Err(denied) = self.check_device(node, key, text("uid"), false).await? {
                    return Ok(denied.into());
                }
            }
            _ => return Ok(Denied::ForeignEvent.into()),
        }
        // Those of nodes, which have no namespace, are kept where the kubelet's are.
        let namespace = if key.namespace().is_empty() { "default" } else { key.namespace() };
        let mut event = event.clone();
        event["apiVersion"] = "v1".into();
        event["kind"] = "Event".into();
        event["metadata"] = json!({"name": event["metadata"]["name"], "namespace": namespace});
        event["source"]["host"] = node.into();
        event["reportingInstance"] = node.into();
        let path = format!("/api/v1/namespaces/{namespace}/events");
        match api::create(&self.client, &path, &event).await {
            // The name is the event's own: it was delivered before, and the ack was lost.
            Ok(_) | Err(Failure::Refused { code: 409, .. }) => Ok(Verdict::Taken),
            Err(failure) => Err(failure),
        }
    }

    /// Checks a pod against the cache, and, if that says no or is not to be asked, against the API server: which version it was.
    async fn check_pod(
        &self,
        key: &ResourceKey,
        check: impl Fn(&PodFacts) -> Result<(), Denied>,
        anew: bool,
    ) -> Result<Result<u64, Denied>, Failure> {
        if !anew
            && let Some((pod, version)) = self.index.pod(key)
            && check(&pod).is_ok()
        {
            return Ok(Ok(version));
        }
        let object = match api::get(&self.client, &pod_path(key)).await {
            Ok(object) => object,
            Err(Failure::Refused { code: 404, .. }) => return Ok(Err(Denied::Gone)),
            Err(failure) => return Err(failure),
        };
        let pod =
            KINDS.iter().find(|kind| kind.key == "Pod").and_then(|kind| kind.take(&object.to_string()).ok());
        match pod {
            Some(Cached { object, facts: Facts::Pod(pod), .. }) => {
                Ok(check(&pod).map(|()| object.version.resource_version))
            }
            _ => Ok(Err(Denied::OtherNode)),
        }
    }

    /// Answers a question of `node`.
    pub async fn answer(&self, node: &str, request: Request) -> Response {
        let answer = match request.question {
            Some(Question::ServiceAccountToken(question)) => self.token(node, &question).await,
            // The session answers those for certificates and CAs itself.
            Some(Question::Certificate(_) | Question::Authorities(_)) | None => {
                Answer::Refused("this cloudcore does not know the question".to_owned())
            }
        };
        Response { id: request.id, answer: Some(answer) }
    }

    async fn token(&self, node: &str, question: &TokenQuestion) -> Answer {
        let refused = |reason: String| Answer::Refused(reason.chars().take(MAX_REASON).collect());
        let names = [&question.namespace, &question.pod_name, &question.service_account];
        if !names.into_iter().all(|name| authz::is_name(name)) {
            return refused("the question holds a name that no object can have".to_owned());
        }
        let Ok(key) = ResourceKey::new("Pod", &question.namespace, &question.pod_name) else {
            return refused("the question holds a name that is too long".to_owned());
        };
        let _slot = self.slots.acquire().await;
        match self.check_pod(&key, |pod| authz::may_have_token(node, pod, question), false).await {
            Ok(Ok(_)) => {}
            Ok(Err(denied)) => {
                info!(node, pod = %key, reason = %denied, "service account token refused");
                return refused(denied.to_string());
            }
            Err(failure) => return refused(runtime::chain(&failure).to_string()),
        }
        match tokens::request(&self.client, question).await {
            Ok(status) => Answer::ServiceAccountToken(Bytes::from(status)),
            Err(failure) => {
                warn!(node, pod = %key, error = %runtime::chain(&failure), "failed to get a service account token");
                refused(runtime::chain(&failure).to_string())
            }
        }
    }
}

fn pod_path(key: &ResourceKey) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", key.namespace(), key.name())
}

fn kind_name(kind: ReportKind) -> &'static str {
    match kind {
        ReportKind::Unspecified => "unknown",
        ReportKind::NodeStatus => "node status",
        ReportKind::PodStatus => "pod status",
        ReportKind::PodTerminated => "pod terminated",
        ReportKind::Event => "event",
        ReportKind::DeviceStatus => "device status",
    }
}

impl Parsed {
    fn print(&self) -> Option<u64> {
        match self {
            Self::NodeStatus { print, .. }
            | Self::PodStatus { print, .. }
            | Self::DeviceStatus { print, .. } => Some(*print),
            Self::PodTerminated { .. } | Self::Event { .. } => None,
        }
    }
}

/// The error is the reason for which the report is refused for good. `kubelet` answers for the node.
fn parse(node: &str, report: &Report, kubelet: Option<SocketAddr>) -> Result<Parsed, String> {
    let key: ResourceKey = report.key.parse().map_err(|error| format!("report has no valid key: {error}"))?;
    let names = [key.namespace(), key.name()];
    if !names.iter().all(|name| name.is_empty() || authz::is_name(name)) {
        return Err("report is about an object that cannot exist".to_owned());
    }
    let malformed = |error: serde_json::Error| format!("report is malformed: {error}");
    let expect = |kind: &str| {
        if key.kind() == kind {
            Ok(())
        } else {
            Err(format!("report about a {} has the wrong kind", key.kind()))
        }
    };
    match report.kind() {
        ReportKind::NodeStatus => {
            expect("Node")?;
            let mut value: Value = serde_json::from_slice(&report.payload).map_err(malformed)?;
            let named = value["metadata"]["name"].as_str();
            let conditions = value["status"]["conditions"].as_array().map_or(0, Vec::len);
            if conditions > MAX_CONDITIONS {
                return Err(format!("report has {conditions} conditions, more than {MAX_CONDITIONS}"));
            }
            if key.name() != node || named.is_some_and(|name| name != node) {
                return Err(Denied::ForeignNode.to_string());
            }
            drop_nulls(&mut value);
            let Some(fields) = value.as_object_mut() else { return Err("report is no Node".to_owned()) };
            let status = fields.entry("status").or_insert_with(|| json!({}));
            if !status.is_object() {
                return Err("report has a status that is none".to_owned());
            }
            if let Some(kubelet) = kubelet {
                node::lead_to(kubelet, status);
            }
            let print = print::of_node(&status.to_string()).map_err(malformed)?;
            Ok(Parsed::NodeStatus { key, report: Box::new(value), print })
        }
        ReportKind::PodStatus => {
            expect("Pod")?;
            let StatusReport { uid, mut status } =
                serde_json::from_slice(&report.payload).map_err(malformed)?;
            drop_nulls(&mut status);
            let Some(fields) = status.as_object_mut() else { return Err("report has no status".to_owned()) };
            // Set by the API server when the pod was created, and unchangeable since.
            fields.remove("qosClass");
            let print = print::of_reported_pod(&status.to_string()).map_err(malformed)?;
            Ok(Parsed::PodStatus { key, uid, status, print })
        }
        ReportKind::PodTerminated => {
            expect("Pod")?;
            let StatusReport { uid, .. } = serde_json::from_slice(&report.payload).map_err(malformed)?;
            Ok(Parsed::PodTerminated { key, uid })
        }
        ReportKind::DeviceStatus => {
            if key.kind() != RULE {
                expect(DEVICE)?;
            }
            let StatusReport { uid, mut status } =
                serde_json::from_slice(&report.payload).map_err(malformed)?;
            drop_nulls(&mut status);
            if !status.is_object() {
                return Err("report has no status".to_owned());
            }
            let print = print::of_device(&status.to_string()).map_err(malformed)?;
            Ok(Parsed::DeviceStatus { key, uid, status, print })
        }
        ReportKind::Event => {
            let mut event: Value = serde_json::from_slice(&report.payload).map_err(malformed)?;
            drop_nulls(&mut event);
            let source_is_usable = event.get("source").is_none_or(Value::is_object);
            let is_named = event["metadata"]["name"].as_str().is_some_and(authz::is_name);
            if !is_named || !source_is_usable {
                return Err("report is no event".to_owned());
            }
            Ok(Parsed::Event { key, event })
        }
        ReportKind::Unspecified => Err("this cloudcore does not know the kind of the report".to_owned()),
    }
}

/// A report of a node as far as it can be taken apart, for the fuzz targets.
#[cfg(feature = "fuzz")]
pub fn take_apart(reporter: &Reporter, report: &Report) -> Result<(), String> {
    match parse(&reporter.node, report, None)? {
        Parsed::NodeStatus { report, .. } => node::take_apart(reporter, &report),
        Parsed::PodStatus { key, .. }
        | Parsed::PodTerminated { key, .. }
        | Parsed::DeviceStatus { key, .. }
        | Parsed::Event { key, .. } => {
            assert!(authz::is_name(key.name()), "{key}");
        }
    }
    Ok(())
}

/// A `null` in an applied object would claim the field.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kind: ReportKind, key: &str, payload: &Value) -> Report {
        Report { id: 1, kind: kind.into(), key: key.to_owned(), payload: payload.to_string().into() }
    }

    #[test]
    fn a_report_is_about_what_it_says() {
        let status =
            json!({"uid": "u", "status": {"phase": "Running", "qosClass": "Burstable", "reason": null}});
        let parsed = parse("n", &report(ReportKind::PodStatus, "Pod/a/web", &status), None);
        let Ok(Parsed::PodStatus { uid, status, .. }) = parsed else { panic!("not taken") };
        assert_eq!((uid.as_str(), status), ("u", json!({"phase": "Running"})));

        let event = json!({"metadata": {"name": "x.1"}, "source": {}});
        assert!(parse("n", &report(ReportKind::Event, "Pod/a/x", &event), None).is_ok());
        let node = json!({"metadata": {"name": "n"}, "status": {}});
        assert!(parse("n", &report(ReportKind::NodeStatus, "Node//n", &node), None).is_ok());
        for (kind, key, payload) in [
            (ReportKind::NodeStatus, "Node//other", json!({"status": {}})),
            (ReportKind::NodeStatus, "Node//n", json!({"metadata": {"name": "other"}})),
            (
                ReportKind::NodeStatus,
                "Node//n",
                json!({"status": {"conditions": vec![json!({}); MAX_CONDITIONS + 1]}}),
            ),
            (ReportKind::NodeStatus, "Pod/a/n", node),
            (ReportKind::PodStatus, "Pod/a/..", json!({"uid": "u", "status": {}})),
            (ReportKind::PodStatus, "Pod/a/x?y", json!({"uid": "u", "status": {}})),
            (ReportKind::PodStatus, "Pod/a/x", json!({"uid": "u"})),
            (ReportKind::PodStatus, "Pod/a/x", json!({"status": {}})),
            (ReportKind::PodTerminated, "Node//n", json!({"uid": "u"})),
            (ReportKind::DeviceStatus, "Pod/a/x", json!({"uid": "u", "status": {}})),
            (ReportKind::DeviceStatus, "Device.devices.kubeedge.io/a/x", json!({"uid": "u", "status": 7})),
            (ReportKind::DeviceStatus, "Device.devices.kubeedge.io/a/x", json!({"status": {}})),
            (ReportKind::Event, "Pod/a/x", json!([])),
            (ReportKind::Event, "Pod/a/x", json!({"metadata": {"name": "../x"}})),
            (ReportKind::Event, "Pod/a/x", json!({"metadata": {"name": "x.1"}, "source": "y"})),
            (ReportKind::Unspecified, "Pod/a/x", json!({})),
        ] {
            assert!(
                parse("n", &report(kind, key, &payload), None).is_err(),
                "{kind:?} {key} {payload} was taken"
            );
        }
    }
}
