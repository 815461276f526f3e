//! Rules: what is done at the site when an expression over properties of devices becomes true, with no cloud in reach.
//!
//! A rule is judged when one of its devices has changed, and when its hold time is over. That it begins, or is over, is in the store before
//! anything is done; what was not done yet when edgecore ended is done then. So a rule fires once for each time that its condition becomes
//! true, and what it does may be done twice.

mod action;
mod condition;
mod moment;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use crds::broker::BrokerAddress;
use crds::devices::{
    keys::{DEVICE, RULE},
    rules::{DeviceRuleSpec, DeviceRuleStatus},
};
use jiff::Timestamp;
use proto::{Object, ResourceKey, Version, message::ReportKind};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    action::{Action, Means, Occasion},
    condition::{Condition, Facts},
    moment::{Held, Kept, Moment},
};
use super::{Devices, Follower, device::unix_ms, handle::Known, twin::UnixMs};
use crate::{
    access::Access,
    metamanager::{Store, StoreError},
};

/// While the store takes nothing.
const RETRY: Duration = Duration::from_secs(2);
/// Of a status.
const LONGEST_ERROR: usize = 1024;

/// Keeps the rules of this node.
pub struct Rules {
    means: Means,
    changes: Follower,
    known: BTreeMap<ResourceKey, Rule>,
    /// What is being done: for which rule, at which moment, and in the end what failed.
    doing: JoinSet<(ResourceKey, Moment, Vec<String>)>,
    retry_at: Option<Instant>,
}

struct Rule {
    /// `None`: it is to be taken anew.
    version: Option<Version>,
    uid: Box<str>,
    /// Why it cannot be kept, if so.
    plan: Result<Plan, String>,
    kept: Kept,
    held: Held,
    is_doing: bool,
    /// What failed, or could not be told, last.
    error: Option<String>,
    /// The status that was reported last.
    said: Option<DeviceRuleStatus>,
}

struct Plan {
    devices: BTreeMap<String, ResourceKey>,
    when: Condition,
    until: Option<Condition>,
    hold: Duration,
    then: Arc<[Action]>,
    otherwise: Arc<[Action]>,
}

impl Plan {
    fn new(key: &ResourceKey, spec: &DeviceRuleSpec) -> Result<Self, String> {
        let mut devices = BTreeMap::new();
        for (name, device) in &spec.devices {
            let found = ResourceKey::new(DEVICE, key.namespace(), device);
            let found = found.map_err(|error| format!("spec.devices.{name} {device:?}: {error}"))?;
            devices.insert(name.clone(), found);
        }
        let actions = |list: &str, actions: &[crds::devices::rules::Action]| {
            let parsed = actions.iter().enumerate().map(|(at, action)| {
                Action::parse(action, |name| devices.get(name).cloned())
                    .map_err(|reason| format!("spec.{list}[{at}] {reason}"))
            });
            parsed.collect::<Result<Arc<[Action]>, String>>()
        };
        let (then, otherwise) = (actions("then", &spec.then)?, actions("otherwise", &spec.otherwise)?);
        Ok(Self {
            when: Condition::parse("spec.when", &spec.when)?,
            until: spec.until.as_ref().map(|until| Condition::parse("spec.until", until)).transpose()?,
            hold: Duration::from_secs(spec.hold_seconds.into()),
            then,
            otherwise,
            devices,
        })
    }

    /// Whether the condition is true, and whether it is over, as far as that is known.
    fn judge(&self, devices: &Devices) -> Result<(Option<bool>, Option<bool>), String> {
        let mut facts = BTreeMap::new();
        for (name, key) in &self.devices {
            let of_device = match devices.known().get(key) {
                Some(Known::Driven(device)) => Facts::of(device),
                Some(Known::Undriven(reason)) => return Err(format!("device {}: {reason}", key.name())),
                None => return Err(format!("device {} is none of this node's", key.name())),
            };
            facts.insert(name.clone(), of_device);
        }
        let when = self.when.holds(&facts).map_err(|reason| format!("spec.when: {reason}"))?;
        let over = match &self.until {
            Some(until) => until.holds(&facts).map_err(|reason| format!("spec.until: {reason}"))?,
            None => when.map(|when| !when),
        };
        Ok((when, over))
    }
}

impl Rule {
    fn status(&self) -> DeviceRuleStatus {
        let time = |at: UnixMs| {
            let second = i64::try_from(at / 1000).unwrap_or_default();
            Timestamp::from_second(second).unwrap_or_default().to_string()
        };
        let error = self.plan.as_ref().err().or(self.error.as_ref());
        DeviceRuleStatus {
            active: self.kept.active,
            fired: self.kept.fired,
            last_fired: self.kept.last_fired.map(time),
            error: error.map(|error| error.chars().take(LONGEST_ERROR).collect()),
        }
    }

    fn until(&self) -> Option<Instant> {
        self.held.until(self.plan.as_ref().ok()?.hold)
    }
}

fn kept_key(key: &ResourceKey) -> String {
    format!("rule/{}/{}", key.namespace(), key.name())
}

impl Rules {
    /// `broker` is the node's.
    pub(super) fn new(store: Store, devices: Devices, broker: Option<BrokerAddress>, access: Access) -> Self {
        let changes = devices.follow();
        let means = Means { devices, store, broker, access };
        Self { means, changes, known: BTreeMap::new(), doing: JoinSet::new(), retry_at: None }
    }

    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut desired = self.means.store.desired_changes();
        desired.mark_changed();
        loop {
            let holds = self.known.values().filter_map(Rule::until);
            let wake = holds.chain(self.retry_at).min();
            // Nothing is lost when another arm wins: the watch stays changed, and what has ended stays in its set.
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = desired.changed() => {
                    desired.mark_unchanged();
                    self.look().await;
                }
                changed = self.changes.changed() => {
                    let concerns = |rule: &Rule| {
                        rule.plan.as_ref().is_ok_and(|plan| plan.devices.values().any(|key| changed.contains(key)))
                    };
                    let keys: BTreeSet<ResourceKey> =
                        self.known.iter().filter(|(_, rule)| concerns(rule)).map(|(key, _)| key.clone()).collect();
                    self.judge(keys).await;
                }
                Some(done) = self.doing.join_next() => match done {
                    Ok((key, moment, failed)) => self.done(&key, moment, &failed).await,
                    Err(failure) => error!(error = %failure, "what a rule does has died"),
                },
                () = time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    let now = Instant::now();
                    if self.retry_at.take_if(|at| *at <= now).is_some() {
                        self.look().await;
                    }
                    let is_due = |rule: &Rule| rule.until().is_some_and(|until| until <= now);
                    let keys: BTreeSet<ResourceKey> =
                        self.known.iter().filter(|(_, rule)| is_due(rule)).map(|(key, _)| key.clone()).collect();
                    self.judge(keys).await;
                }
            }
        }
        // What is not done by then is done after the next start.
        self.doing.shutdown().await;
        Ok(())
    }

    /// Compares the rules that are kept with those of the store. A store that cannot be read changes nothing.
    async fn look(&mut self) {
        let versions: BTreeMap<ResourceKey, Version> = match self.means.store.inventory() {
            Ok(inventory) => inventory.into_iter().filter(|(key, _)| key.kind() == RULE).collect(),
            Err(failure) => {
                error!(error = %runtime::chain(&failure), "the rules cannot be read");
                return self.try_again();
            }
        };
        let gone: Vec<ResourceKey> =
            self.known.keys().filter(|key| !versions.contains_key(*key)).cloned().collect();
        for key in gone {
            self.known.remove(&key);
            info!(rule = %key, "rule is no longer kept");
            if let Err(failure) = self.means.store.delete_local(&kept_key(&key)).await {
                // A few bytes, and a rule of that name with another uid begins anew.
                warn!(rule = %key, error = %runtime::chain(&failure), "what is known of a rule that is gone stays");
            }
        }
        let mut changed = BTreeSet::new();
        for (key, version) in versions {
            if self.known.get(&key).is_none_or(|rule| rule.version != Some(version)) {
                match self.take(&key, version) {
                    Ok(()) => drop(changed.insert(key)),
                    Err(failure) => {
                        error!(rule = %key, error = %runtime::chain(&failure), "a rule cannot be read");
                        self.try_again();
                    }
                }
            }
        }
        for key in &changed {
            self.go_on(key);
        }
        self.judge(changed).await;
    }

    fn take(&mut self, key: &ResourceKey, version: Version) -> Result<(), StoreError> {
        // Gone in between: the next change says so.
        let Some(object) = self.means.store.get(key)? else { return Ok(()) };
        let (uid, plan) = parsed(&object);
        let before = self.known.remove(key);
        let kept = if let Some(before) = &before {
            Some(before.kept.clone())
        } else {
            let kept = self.means.store.local(&kept_key(key))?;
            kept.and_then(|kept| serde_json::from_slice(&kept).ok())
        };
        let kept: Kept = kept.filter(|kept: &Kept| kept.uid == uid).unwrap_or_default();
        if let Err(reason) = &plan {
            warn!(rule = %key, reason, "rule cannot be kept");
        }
        let rule = Rule {
            version: Some(version),
            kept: Kept { uid: uid.clone(), ..kept },
            uid,
            plan,
            held: Held::default(),
            is_doing: before.as_ref().is_some_and(|before| before.is_doing),
            error: None,
            said: before.and_then(|before| before.said),
        };
        self.known.insert(key.clone(), rule);
        Ok(())
    }

    async fn judge(&mut self, keys: BTreeSet<ResourceKey>) {
        for key in keys {
            let Some(rule) = self.known.get_mut(&key) else { continue };
            let mut moment = None;
            if let Ok(plan) = &rule.plan {
                let (now, before) = ((Instant::now(), unix_ms()), rule.kept.clone());
                match plan.judge(&self.means.devices) {
                    Ok(judged) => {
                        moment = rule.held.step(&mut rule.kept, judged, plan.hold, now);
                        // What failed is over when it works again.
                        if moment.is_some() || rule.error.as_ref().is_some_and(|error| !is_of_action(error)) {
                            rule.error = None;
                        }
                    }
                    Err(reason) => {
                        rule.held = Held::default();
                        rule.error = Some(reason);
                    }
                }
                if let Some(moment) = moment
                    && let Err(failure) = self.begin(&key, moment, now.1).await
                {
                    error!(rule = %key, error = %runtime::chain(&failure), "a rule waits for the store");
                    // Nothing was done: it is judged again.
                    if let Some(rule) = self.known.get_mut(&key) {
                        (rule.kept, rule.version) = (before, None);
                    }
                    self.try_again();
                    continue;
                }
            }
            self.say(&key).await;
        }
    }

    /// Keeps that the rule begins, or is over, and starts to do what is to be done.
    async fn begin(&mut self, key: &ResourceKey, moment: Moment, at: UnixMs) -> Result<(), StoreError> {
        let Some(rule) = self.known.get(key) else { return Ok(()) };
        self.keep(key).await?;
        let occasion = Occasion { rule: key.clone(), uid: rule.uid.clone(), moment, at };
        let (reason, message) = match moment {
            Moment::Begins => ("RuleFired", "the condition has become true"),
            Moment::IsOver => ("RuleOver", "the condition is over"),
        };
        info!(rule = %key, reason, "{message}");
        self.means.tell(&occasion, "Normal", reason, message).await?;
        self.go_on(key);
        Ok(())
    }

    async fn keep(&self, key: &ResourceKey) -> Result<(), StoreError> {
        let Some(rule) = self.known.get(key) else { return Ok(()) };
        let kept = serde_json::to_vec(&rule.kept).unwrap_or_default();
        self.means.store.put_local(&kept_key(key), Bytes::from(kept)).await
    }

    /// Starts what is due, unless something is being done for the rule.
    fn go_on(&mut self, key: &ResourceKey) {
        let Some(rule) = self.known.get_mut(key) else { return };
        let (Some(moment), Ok(plan), false) = (rule.kept.due, &rule.plan, rule.is_doing) else { return };
        rule.is_doing = true;
        let actions = Arc::clone(if moment == Moment::Begins { &plan.then } else { &plan.otherwise });
        let at = rule.kept.last_fired.filter(|_| moment == Moment::Begins).unwrap_or_else(unix_ms);
        let occasion = Occasion { rule: key.clone(), uid: rule.uid.clone(), moment, at };
        let means = self.means.clone();
        self.doing.spawn(async move {
            let failed = means.perform(&actions, &occasion).await;
            for reason in &failed {
                let told = means.tell(&occasion, "Warning", "RuleActionFailed", reason).await;
                if let Err(failure) = told {
                    warn!(rule = %occasion.rule, reason, error = %runtime::chain(&failure), "that an action failed is not told");
                }
            }
            (occasion.rule, moment, failed)
        });
    }

    async fn done(&mut self, key: &ResourceKey, moment: Moment, failed: &[String]) {
        let Some(rule) = self.known.get_mut(key) else { return };
        rule.is_doing = false;
        if rule.kept.due == Some(moment) {
            rule.kept.due = None;
        }
        rule.error = failed.first().map(|reason| of_action(reason));
        if let Err(failure) = self.keep(key).await {
            warn!(rule = %key, error = %runtime::chain(&failure), "what a rule has done is done again after a restart");
        }
        self.go_on(key);
        self.say(key).await;
    }

    /// Reports the status, if it is another one.
    async fn say(&mut self, key: &ResourceKey) {
        let Some(rule) = self.known.get_mut(key) else { return };
        let status = rule.status();
        if rule.uid.is_empty() || rule.said.as_ref() == Some(&status) {
            return;
        }
        let payload = json!({"uid": rule.uid, "status": &status}).to_string();
        match self.means.store.report(ReportKind::DeviceStatus, key, Bytes::from(payload)).await {
            Ok(_) => rule.said = Some(status),
            Err(failure) => {
                warn!(rule = %key, error = %runtime::chain(&failure), "the status of a rule is not kept yet");
                rule.version = None;
                self.try_again();
            }
        }
    }

    fn try_again(&mut self) {
        self.retry_at = Some(Instant::now() + RETRY);
    }
}

/// What failed of what was done stays until something is done again.
fn of_action(reason: &str) -> String {
    format!("failed: {reason}")
}

fn is_of_action(error: &str) -> bool {
    error.starts_with("failed: ")
}

/// The rule's uid, and what it says.
fn parsed(object: &Object) -> (Box<str>, Result<Plan, String>) {
    #[derive(Deserialize)]
    struct Raw {
        metadata: Metadata,
        spec: serde_json::Value,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        uid: Box<str>,
    }
    match serde_json::from_slice::<Raw>(&object.bytes) {
        Ok(Raw { metadata, spec }) => {
            let spec =
                serde_json::from_value::<DeviceRuleSpec>(spec).map_err(|error| format!("spec: {error}"));
            (metadata.uid, spec.and_then(|spec| Plan::new(&object.key, &spec)))
        }
        // Nothing can be reported then.
        Err(error) => (Box::default(), Err(error.to_string())),
    }
}
