//! Eviction protection: a pod on an edge node outlives any outage of the line.
//!
//! The control plane evicts what runs on a node that it cannot reach once the pod's tolerations of the taints not-ready
//! and unreachable run out, 300 s by default. Those of a bound pod may still be changed in length, so every pod bound to an
//! edge node gets them without an end, unless the pod or its Node is annotated [`EVICT_ANNOTATION`]` = "true"`. How long they
//! were is kept in [`RECORD_ANNOTATION`], and an opt-out that comes later brings that back.
//!
//! Level-triggered: the index says which pods are not as they should be now, whatever led to it.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use kube::Client;
use proto::ResourceKey;
use runtime::backoff::Backoff;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    api::{self, Failure, Patch},
    index::Index,
};

/// On a Pod or a Node: evict as Kubernetes does by default.
pub const EVICT_ANNOTATION: &str = "skerry.io/evict-when-unreachable";

/// On a pod that was protected: the seconds for which it tolerated the taints before, `not-ready=300,unreachable=300`. A
/// taint that it tolerated without end by itself is not named.
pub const RECORD_ANNOTATION: &str = "skerry.io/toleration-seconds";

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Patches under way at once: enough to protect thousands of pods in a minute, few enough to leave the API server alone.
const CONCURRENCY: usize = 8;

/// Before a pod that could not be patched is looked at again.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_mins(5);

/// A toleration, as far as it matters here; the rest of it is kept.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    operator: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    effect: String,
    #[serde(rename = "tolerationSeconds", skip_serializing_if = "Option::is_none")]
    seconds: Option<i64>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

impl Toleration {
    fn unlimited(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            operator: "Exists".to_owned(),
            value: String::new(),
            effect: "NoExecute".to_owned(),
            seconds: None,
            rest: serde_json::Map::new(),
        }
    }

    /// Whether it tolerates the taint `key` with effect NoExecute, which has no value.
    fn matches(&self, key: &str) -> bool {
        let effect = self.effect.is_empty() || self.effect == "NoExecute";
        let exists = self.operator == "Exists";
        let equal = matches!(self.operator.as_str(), "" | "Equal") && self.value.is_empty();
        effect && ((self.key == key && (exists || equal)) || (self.key.is_empty() && exists))
    }
}

/// What a pod's tolerations say of its eviction from a node that cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// It would be evicted.
    Exposed,
    /// It would have been, before it was protected.
    Guarded,
    /// It would not be, as its owner wanted it.
    Never,
}

impl Eviction {
    pub fn of(tolerations: &[Toleration], is_recorded: bool) -> Self {
        match (limits(tolerations).next(), is_recorded) {
            (Some(_), _) => Self::Exposed,
            (None, true) => Self::Guarded,
            (None, false) => Self::Never,
        }
    }
}

/// What is to be done about a pod's eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    Protect,
    GiveBack,
}

/// The taints that are not tolerated for ever, and for how many seconds they are. The first toleration that matches a
/// taint decides.
fn limits(tolerations: &[Toleration]) -> impl Iterator<Item = (&'static str, i64)> {
    TAINTS.into_iter().filter_map(|taint| {
        let first = tolerations.iter().find(|toleration| toleration.matches(taint));
        Some((taint, first.map_or(Some(0), |first| first.seconds)?))
    })
}

/// The tolerations that protect the pod: those that name the taints lose their end, and what is missing goes to the front.
/// One for every taint is left as it is: it is about other taints too.
fn protected(tolerations: &[Toleration]) -> Vec<Toleration> {
    let mut wanted = tolerations.to_vec();
    for toleration in &mut wanted {
        if TAINTS.iter().any(|taint| toleration.key == *taint && toleration.matches(taint)) {
            toleration.seconds = None;
        }
    }
    let missing: Vec<_> = limits(&wanted).map(|(taint, _)| Toleration::unlimited(taint)).collect();
    wanted.splice(0..0, missing);
    wanted
}

/// The tolerations as they were, but for those that were added: a bound pod's may not be taken away, and are cut to what
/// was tolerated before.
fn given_back(tolerations: &[Toleration], record: &str) -> Vec<Toleration> {
    let mut wanted = tolerations.to_vec();
    for (taint, seconds) in parse_record(record) {
        let first = wanted.iter_mut().find(|toleration| toleration.matches(taint));
        if let Some(first) = first.filter(|first| first.key == taint) {
            first.seconds = Some(seconds);
        }
    }
    wanted
}

fn record(tolerations: &[Toleration]) -> String {
    let parts: Vec<_> =
        limits(tolerations).map(|(taint, seconds)| format!("{}={seconds}", short(taint))).collect();
    parts.join(",")
}

fn parse_record(record: &str) -> impl Iterator<Item = (&'static str, i64)> {
    record.split(',').filter_map(|part| {
        let (name, seconds) = part.split_once('=')?;
        let taint = TAINTS.into_iter().find(|taint| short(taint) == name.trim())?;
        Some((taint, seconds.trim().parse().ok()?))
    })
}

fn short(taint: &str) -> &str {
    taint.rsplit_once('/').map_or(taint, |(_, name)| name)
}

/// The merge patch for a pod. It applies to the very pod only, by the uid; and the API server takes no list of tolerations
/// that lacks one which was added meanwhile.
fn patch(pod: &[u8], guard: Guard) -> Result<Value, serde_json::Error> {
    #[derive(Deserialize)]
    struct Pod {
        metadata: Metadata,
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Metadata {
        uid: String,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        tolerations: Vec<Toleration>,
    }
    let Pod { metadata, spec: Spec { tolerations } } = serde_json::from_slice(pod)?;
    let (wanted, kept) = match guard {
        Guard::Protect => (protected(&tolerations), Some(record(&tolerations))),
        Guard::GiveBack => {
            let record = metadata.annotations.get(RECORD_ANNOTATION).map_or("", String::as_str);
            (given_back(&tolerations, record), None)
        }
    };
    Ok(json!({
        "metadata": {"uid": metadata.uid, "annotations": {RECORD_ANNOTATION: kept}},
        "spec": {"tolerations": wanted},
    }))
}

/// Does what the index says is to be done.
pub struct Protection {
    client: Client,
    index: Arc<Index>,
}

impl Protection {
    pub fn new(client: Client, index: Arc<Index>) -> Self {
        Self { client, index }
    }

    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut patches: JoinSet<(ResourceKey, Attempt)> = JoinSet::new();
        let mut resting: JoinSet<ResourceKey> = JoinSet::new();
        let mut refusals: HashMap<ResourceKey, Backoff> = HashMap::new();
        let queue = Arc::clone(self.index.unguarded());
        loop {
            while patches.len() < CONCURRENCY
                && let Some(key) = queue.pop()
            {
                let Some((bytes, guard)) = self.index.unguarded_pod(&key) else {
                    refusals.remove(&key);
                    continue;
                };
                let (client, again) = (self.client.clone(), refusals.contains_key(&key));
                patches.spawn(async move {
                    let attempt = apply(&client, &key, &bytes, guard, again).await;
                    if attempt == Attempt::Away {
                        // The slot is held meanwhile: a server that is away is not asked more often.
                        tokio::time::sleep(RETRY).await;
                    }
                    (key, attempt)
                });
            }
            tokio::select! {
                // A key that is marked while another arm runs stays in the queue.
                () = queue.marked(), if patches.len() < CONCURRENCY => {}
                Some(ended) = patches.join_next() => match ended {
                    Ok((key, Attempt::Done)) => drop(refusals.remove(&key)),
                    Ok((key, Attempt::Away)) => queue.mark(&key),
                    // Aside, with a delay of its own: others must not wait for a pod that is never taken.
                    Ok((key, Attempt::Refused)) => {
                        let backoff = refusals.entry(key.clone());
                        let delay = backoff.or_insert_with(|| Backoff::new(RETRY, LONGEST_RETRY)).next_delay();
                        resting.spawn(async move {
                            tokio::time::sleep(delay).await;
                            key
                        });
                    }
                    Err(error) => warn!(%error, "protection of a pod was cut short"),
                },
                Some(Ok(key)) = resting.join_next() => queue.mark(&key),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    /// The pod needs no other.
    Done,
    /// The API server did not answer.
    Away,
    /// The API server, or a webhook of its, did not take the patch.
    Refused,
}

/// `again`: this pod was refused before, and that was told.
async fn apply(client: &Client, key: &ResourceKey, bytes: &[u8], guard: Guard, again: bool) -> Attempt {
    let patch = match patch(bytes, guard) {
        Ok(patch) => patch,
        Err(error) => {
            warn!(pod = %key, error = %runtime::chain(&error), "cannot protect a pod that does not parse");
            return Attempt::Done;
        }
    };
    let path = format!("/api/v1/namespaces/{}/pods/{}", key.namespace(), key.name());
    match api::patch(client, &path, Patch::Merge, &patch).await {
        Ok(_) => {
            match guard {
                Guard::Protect => info!(pod = %key, "pod protected from eviction"),
                Guard::GiveBack => info!(pod = %key, "pod opted out: evicted again as Kubernetes does"),
            }
            Attempt::Done
        }
        // Gone: nothing to protect. Changed since: the watch brings its new state, and it is looked at again.
        Err(Failure::Refused { code: 404, .. }) => Attempt::Done,
        Err(error) => {
            let away = matches!(error, Failure::Unreachable(_) | Failure::TimedOut);
            let error = runtime::chain(&error).to_string();
            if again {
                debug!(pod = %key, error, "still not protected from eviction; trying again");
            } else {
                warn!(pod = %key, error, "failed to protect a pod from eviction; trying again");
            }
            if away { Attempt::Away } else { Attempt::Refused }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tolerations(value: Value) -> Vec<Toleration> {
        serde_json::from_value(value).unwrap()
    }

    fn pod(annotations: &Value, tolerations: &Value) -> Vec<u8> {
        json!({"metadata": {"uid": "u", "annotations": annotations}, "spec": {"tolerations": tolerations}})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn the_default_tolerations_lose_their_end_and_get_it_back() {
        let before = json!([
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
            {"key": "mine", "operator": "Exists"}]);
        let patched = patch(&pod(&json!({}), &before), Guard::Protect).unwrap();
        let record = json!({RECORD_ANNOTATION: "not-ready=300,unreachable=30"});
        assert_eq!(
            patched,
            json!({"metadata": {"uid": "u", "annotations": record},
                "spec": {"tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "mine", "operator": "Exists"}]}})
        );
        assert_eq!(
            Eviction::of(&tolerations(patched["spec"]["tolerations"].clone()), true),
            Eviction::Guarded
        );
        let back = patch(&pod(&record, &patched["spec"]["tolerations"]), Guard::GiveBack).unwrap();
        assert_eq!(back["spec"]["tolerations"], before);
        assert_eq!(back["metadata"]["annotations"], json!({RECORD_ANNOTATION: null}));
    }

    #[test]
    fn missing_ones_are_added_and_later_cut_to_nothing() {
        let patched = patch(&pod(&json!({}), &json!([])), Guard::Protect).unwrap();
        let record = &patched["metadata"]["annotations"];
        assert_eq!(*record, json!({RECORD_ANNOTATION: "not-ready=0,unreachable=0"}));
        let added = tolerations(patched["spec"]["tolerations"].clone());
        assert_eq!((added.len(), Eviction::of(&added, true)), (2, Eviction::Guarded));
        let back = patch(&pod(record, &patched["spec"]["tolerations"]), Guard::GiveBack).unwrap();
        let seconds: Vec<_> =
            tolerations(back["spec"]["tolerations"].clone()).iter().map(|one| one.seconds).collect();
        assert_eq!(seconds, [Some(0), Some(0)]);
    }

    #[test]
    fn what_is_tolerated_for_ever_by_itself_is_left_alone() {
        assert_eq!(Eviction::of(&tolerations(json!([{"operator": "Exists"}])), false), Eviction::Never);
        let daemon = json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
        let record = record(&tolerations(daemon.clone()));
        assert_eq!(record, "unreachable=5");
        let back = given_back(&protected(&tolerations(daemon.clone())), &record);
        assert_eq!(serde_json::to_value(back).unwrap(), daemon);
    }

    #[test]
    fn a_limited_wildcard_is_kept_and_overruled() {
        let wildcard = json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10});
        let before = tolerations(json!([wildcard]));
        assert_eq!(record(&before), "not-ready=10,unreachable=10");
        let wanted = protected(&before);
        assert_eq!(wanted.len(), 3);
        assert_eq!(serde_json::to_value(&wanted[2]).unwrap(), wildcard);
        assert_eq!(Eviction::of(&wanted, true), Eviction::Guarded);
        assert_eq!(
            Eviction::of(&given_back(&wanted, "garbage,not-ready=x,unreachable=10"), true),
            Eviction::Exposed
        );
    }
}
