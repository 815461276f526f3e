//! What happens at a site whose line is down is told once it is up, each thing once, with the time at which it happened, though
//! either end is killed while it is kept and while it is delivered; and how things are by then is told first.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use edgecore::metamanager::{Options, Store};
use harness::{
    Bench, ClusterOptions, LineCut, Site, bench,
    process::{Daemon, kill9},
    product::{Edge, Scene, pod},
    setup::AGNHOST,
    wait,
};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Event, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Api, ResourceExt, api::ListParams};
use proto::{ResourceKey, message::ReportKind};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

const SOON: Duration = Duration::from_secs(90);
const DELIVERED: Duration = Duration::from_mins(5);
/// Each with a pod that fails in it, and a kill of edgecore after it.
const ROUNDS: usize = 3;
/// Beside those that edged makes: so many that each end can be killed in the midst of their delivery.
const MORE: usize = 3000;
const TRANSPORTS: [(&str, &[&str]); 2] =
    [("quic", &[HEARTBEAT]), ("websocket", &[HEARTBEAT, "modules.edgeHub.quic.enable=false"])];
const HEARTBEAT: &str = "modules.edgeHub.heartbeat=2";

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_in_an_outage_is_told_once_and_with_its_time() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, mut sites) = Scene::start(bench, &ClusterOptions::default(), TRANSPORTS.len()).await?;
        // One after the other: cloudcore is killed in each.
        for (site, (transport, settings)) in sites.iter_mut().zip(TRANSPORTS) {
            let node = format!("edge-{transport}");
            let edge = Edge::join(&bench.assets, &scene.cloud, site, &node, settings).await?;
            scene.namespace(&node).await?;
            let mut outage = Outage { scene: &scene, site, edge, space: node, kept: BTreeMap::new() };
            Box::pin(outage.run(transport)).await.context(transport)?;
        }
        Ok(())
    })
    .await
}

struct Outage<'a> {
    scene: &'a Scene,
    site: &'a mut Site,
    edge: Edge,
    /// The namespace, and the node.
    space: String,
    /// Events that edgecore had kept when it was killed, by name.
    kept: BTreeMap<String, Event>,
}

/// What waits in a store.
#[derive(Default)]
struct Pending {
    events: Vec<Event>,
    /// By kind and object.
    statuses: BTreeMap<(i32, String), u32>,
}

impl Outage<'_> {
    async fn run(&mut self, transport: &str) -> Result<()> {
        let mut uids = Vec::new();
        for round in 0..ROUNDS {
            let pod = self.scene.run(&self.space, &till(round, &self.space)).await?;
            uids.push(pod.uid().context("a pod has a uid")?);
        }
        wait::until(&format!("a link over {transport}"), SOON, async || {
            let page: Value = serde_json::from_str(&self.edge.admin("/nodez").await?.body)?;
            ensure!(page["transport"] == transport && page["synced"] == true, "{page}");
            let pending = self.edge.metric("edgecore_outbox_reports").await?;
            ensure!(pending == 0, "{pending} reports are not told yet");
            Ok(())
        })
        .await?;
        // Its supervisor waits longer from kill to kill.
        self.edge.kill9()?;
        self.site.cut(LineCut::Silent)?;
        let cut = Timestamp::now();

        for (round, uid) in uids.iter().enumerate() {
            let mut edgecore = self.edge.start(self.site)?;
            self.edge.works_alone().await?;
            self.fail(round, uid, cut).await.with_context(|| format!("round {round}"))?;
            edgecore.check_alive()?;
            edgecore.kill9()?;
            self.note_kept().await?;
        }
        let killed = Timestamp::now();
        self.keep_more(&uids).await?;
        let counted = self.kept.len();
        ensure!(counted > MORE + 2 * ROUNDS, "{counted} events are kept");

        let edgecore = self.edge.start(self.site)?;
        self.edge.works_alone().await?;
        let restored = Timestamp::now();
        self.site.restore()?;
        let _edgecore = self.deliver(edgecore, &uids).await?;
        self.check((cut, killed, restored)).await
    }

    /// A probe fails, and the container ends; both are kept by the store when this returns.
    async fn fail(&self, round: usize, uid: &str, cut: Timestamp) -> Result<()> {
        self.until_kept(uid, "Unhealthy", cut, async || {
            self.site.shell(uid, "touch /tmp/broken").await.map(drop)
        })
        .await?;
        let before = self.attempts(uid).await?;
        wait::until("the container started again", SOON, async || {
            if self.attempts(uid).await? == before {
                // It answers nothing any more.
                drop(self.site.get(uid, "/exit?code=1").await);
            }
            ensure!(self.attempts(uid).await? > before, "till-{round} has not");
            Ok(())
        })
        .await?;
        self.until_kept(uid, "Started", cut, async || Ok(())).await
    }

    /// Does something until the store has an event about the pod with this reason.
    async fn until_kept(
        &self,
        uid: &str,
        reason: &str,
        since: Timestamp,
        again: impl AsyncFn() -> Result<()>,
    ) -> Result<()> {
        wait::until(&format!("an event {reason} kept"), SOON, async || {
            again().await?;
            let pending = look(self.edge.store()).await?;
            let is_it = |event: &&Event| {
                event.involved_object.uid.as_deref() == Some(uid)
                    && event.reason.as_deref() == Some(reason)
                    && time(event.first_timestamp.as_ref()) >= Some(since.as_second())
            };
            ensure!(pending.events.iter().any(|event| is_it(&event)), "{} others", pending.events.len());
            Ok(())
        })
        .await
    }

    async fn attempts(&self, uid: &str) -> Result<u32> {
        let all = self.site.containers().await?;
        let of_pod = all.iter().filter(|one| one.pod_uid == uid && !one.sandbox);
        of_pod.map(|one| one.attempt).max().context("the pod has no container")
    }

    /// With no edgecore: what was promised to those who reported, and one status of each object.
    async fn note_kept(&mut self) -> Result<()> {
        let pending = look(self.edge.store()).await?;
        for (about, count) in pending.statuses {
            ensure!(count == 1, "{count} statuses of {about:?} are kept");
        }
        let names = pending.events.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
        for name in self.kept.keys() {
            ensure!(names.contains(name), "{name} was kept and is not any more");
        }
        self.kept.extend(names.into_iter().zip(pending.events));
        Ok(())
    }

    /// By the same door, with no edgecore.
    async fn keep_more(&mut self, uids: &[String]) -> Result<()> {
        let store = Store::open(&self.edge.store(), Options::default())?;
        let mut events = Vec::with_capacity(MORE);
        for number in 0..MORE {
            let round = number % ROUNDS;
            let event = self.event(round, &uids[round], number)?;
            self.kept.insert(event.name_any(), event.clone());
            events.push((ResourceKey::new("Pod", &self.space, &format!("till-{round}"))?, event));
        }
        let reports = events.iter().map(async |(key, event)| {
            let payload = serde_json::to_vec(event)?;
            store.report(ReportKind::Event, key, payload.into()).await?;
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(reports).await?;
        ensure!(store.dropped_reports() == 0, "events were dropped");
        Ok(store.close().await?)
    }

    fn event(&self, round: usize, uid: &str, number: usize) -> Result<Event> {
        let pod = format!("till-{round}");
        let now = Timestamp::from_second(Timestamp::now().as_second())?;
        Ok(serde_json::from_value(json!({
            "metadata": { "name": format!("{pod}.{number:x}"), "namespace": self.space },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": self.space, "name": pod, "uid": uid,
            },
            "type": "Warning", "reason": "Jammed", "message": format!("the drawer is jammed ({number})"),
            "count": 1, "firstTimestamp": now, "lastTimestamp": now,
            "source": { "component": "edged", "host": self.space },
            "reportingComponent": "edged", "reportingInstance": self.space,
        }))?)
    }

    /// The line is up. How the pods are is told before all that has happened; then cloudcore is killed, edgecore, and
    /// cloudcore once more, each in the midst of it.
    async fn deliver(&self, edgecore: Daemon, uids: &[String]) -> Result<Daemon> {
        let pods = self.scene.pods(&self.space);
        let told = wait::until("the restarts in the API", SOON, async || {
            for round in 0..uids.len() {
                let status = pods.get(&format!("till-{round}")).await?.status.unwrap_or_default();
                let restarts = status
                    .container_statuses
                    .unwrap_or_default()
                    .iter()
                    .map(|one| one.restart_count)
                    .sum::<i32>();
                ensure!(restarts > 0, "till-{round} has {restarts} restarts");
            }
            self.told().await
        })
        .await?;
        eprintln!("outbox: {told} of {MORE} events were told when all statuses were");
        ensure!(told < MORE / 2, "{told} events were told before the statuses");
        let mut edgecore = Some(edgecore);
        let left = async || Ok::<_, anyhow::Error>(self.edge.metric("edgecore_outbox_reports").await?);
        for (quarters, kills_edge) in [(3, false), (2, true), (1, false)] {
            let some = wait::until(&format!("{quarters} quarters left"), DELIVERED, async || {
                let left = left().await?;
                ensure!(left < quarters * MORE as u64 / 4, "{left} reports");
                Ok(left)
            })
            .await?;
            ensure!(some > 0, "all is told already");
            if kills_edge {
                edgecore.take().context("it runs")?.kill9()?;
                edgecore = Some(self.edge.start(self.site)?);
            } else {
                kill9(self.scene.cloud.pid()?)?;
            }
        }
        wait::until("an empty outbox", DELIVERED, async || {
            let left = left().await?;
            ensure!(left == 0, "{left} reports");
            Ok(())
        })
        .await?;
        edgecore.context("it runs")
    }

    async fn events(&self) -> Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.scene.cluster.client(), &self.space);
        let mut all = events.list(&ListParams::default()).await?.items;
        all.retain(|event| event.reporting_component.as_deref() == Some("edged"));
        Ok(all)
    }

    /// How many of those of [`keep_more`](Self::keep_more).
    async fn told(&self) -> Result<usize> {
        let all = self.events().await?;
        Ok(all.iter().filter(|event| event.reason.as_deref() == Some("Jammed")).count())
    }

    async fn check(&self, (cut, killed, restored): (Timestamp, Timestamp, Timestamp)) -> Result<()> {
        let all = self.events().await?;
        let told: BTreeMap<String, &Event> = all.iter().map(|event| (event.name_any(), event)).collect();
        for (name, kept) in &self.kept {
            let told = told.get(name).with_context(|| format!("{name} was lost: {kept:?}"))?;
            let first = time(kept.first_timestamp.as_ref()).context("an event has a time")?;
            ensure!(same(told) == same(kept), "{name} was {kept:?} and is {told:?}");
            ensure!(first >= cut.as_second(), "{name} has happened before the line was cut: {kept:?}");
            ensure!(first <= restored.as_second(), "{name} has the time of its delivery: {kept:?}");
            let created =
                time(told.metadata.creation_timestamp.as_ref()).context("the API dates what it has")?;
            ensure!(created >= restored.as_second(), "{name} was delivered while the line was cut");
        }
        for (name, event) in &told {
            let at = time(event.first_timestamp.as_ref()).context("an event has a time")?;
            let in_outage = at > cut.as_second() && at < killed.as_second();
            ensure!(!in_outage || self.kept.contains_key(name), "{name} was never kept: {event:?}");
            ensure!(event.count == Some(1), "{name} is counted {:?} times", event.count);
        }
        eprintln!("outbox: {} events kept, each told once", self.kept.len());
        ensure!(self.edge.metric("edgecore_outbox_dropped").await? == 0, "events were dropped");
        Ok(())
    }
}

/// What must not change on the way.
fn same(event: &Event) -> Value {
    json!([
        event.reason,
        event.message,
        event.type_,
        event.count,
        event.first_timestamp,
        event.last_timestamp,
        event.involved_object,
        event.source,
        event.reporting_instance,
    ])
}

fn time(time: Option<&Time>) -> Option<i64> {
    time.map(|time| time.0.as_second())
}

/// It answers HTTP, and is not ready while it has a file.
fn till(round: usize, node: &str) -> k8s_openapi::api::core::v1::Pod {
    let probe = json!({
        "exec": { "command": ["sh", "-c", "test ! -e /tmp/broken"] },
        "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20,
    });
    pod(
        &format!("till-{round}"),
        node,
        &json!({ "containers": [{
            "name": "main", "image": AGNHOST, "imagePullPolicy": "IfNotPresent",
            "args": ["netexec", "--http-port=8080", "--udp-port=-1"], "readinessProbe": probe,
        }] }),
    )
}

/// Opens a copy, whoever has the store meanwhile: what was promised is in it.
async fn look(store: PathBuf) -> Result<Pending> {
    spawn_blocking(move || read(&store)).await?
}

fn read(store: &Path) -> Result<Pending> {
    let copy = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    for entry in fs::read_dir(store).with_context(|| format!("no store in {}", store.display()))? {
        let path = entry?.path();
        if path.is_file() {
            // A checkpoint may take its place meanwhile; then another look is needed.
            fs::copy(&path, copy.path().join(path.file_name().context("a listed file has a name")?))?;
        }
    }
    let store = Store::open(copy.path(), Options::default())?;
    let mut pending = Pending::default();
    for report in store.pending_reports(0, usize::MAX)? {
        match report.kind() {
            ReportKind::Event => pending.events.push(serde_json::from_slice(&report.payload)?),
            _ => *pending.statuses.entry((report.kind, report.key)).or_default() += 1,
        }
    }
    Ok(pending)
}
