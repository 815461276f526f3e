//! Reports whose class has an interval: what has been said waits for its end, whatever the line does meanwhile, and wakes the line
//! by itself then.

mod hub {
    pub(crate) mod cloud;
    pub(crate) mod reports;
}

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use crds::componentconfig::sync::SyncStrategy;
use edgecore::{
    edgehub::{EdgeHub, HubConfig, HubState},
    metamanager::{Options, Store},
};
use futures_util::SinkExt as _;
use hub::{
    cloud::{Cloud, LONG, NODE, Socket, edge, frame},
    reports::{next, take},
};
use proto::{
    ResourceKey,
    message::{Action, Batch, Body, Change, Put, Report, ReportKind, Synced},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const POD: &str = "Pod/default/web";
/// Longer than a few reports take, acks and disk included.
const INTERVAL: Duration = Duration::from_secs(4);
/// Nothing here waits for a heartbeat.
const BEAT: Duration = Duration::from_mins(5);

#[tokio::test]
async fn what_has_been_said_waits_for_the_end_of_the_interval() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (cloud, identity, address) = Cloud::start(dir.path()).await?;
    let store = Store::open(&dir.path().join("store"), Options::default())?;
    let sync: SyncStrategy = serde_saphyr::from_str(&format!(
        "bandwidth: {{down: 5000}}\npriorityClasses: [{{name: critical, syncInterval: {}s}}]",
        INTERVAL.as_secs()
    ))?;
    let config = HubConfig { heartbeat: BEAT, sync, ..edge(identity, address, dir.path()) };
    let (_asks, asked) = mpsc::channel(1);
    let (hub, state) = EdgeHub::new(config, store.clone(), asked)?;
    let stop = CancellationToken::new();
    let (ended, told) = tokio::join!(hub.run(stop.clone()), async {
        let told = Box::pin(tell(&cloud, &store, state)).await;
        stop.cancel();
        told
    });
    ended?;
    told
}

async fn tell(cloud: &Cloud, store: &Store, mut state: watch::Receiver<HubState>) -> Result<()> {
    let mut socket = cloud.welcome().await?;
    put(&mut socket, br#"{"metadata":{"name":"web"}}"#).await?;
    socket.send(frame(Body::Synced(Synced {}))?).await?;
    timeout(LONG, state.wait_for(|state| state.synced)).await??;

    let begun = Instant::now();
    for ready in ["False", "True"] {
        let id = status(store, ready, 0).await?;
        let reports = next(&mut socket).await?;
        ensure!(ids(&reports) == [id], "not {id} at once: {reports:?}");
        take(&mut socket, &reports).await?;
    }
    let held = status(store, "False", 1).await?;
    // What does not wait goes meanwhile, and takes nothing else along.
    let other = event(store).await?;
    let reports = next(&mut socket).await?;
    ensure!(ids(&reports) == [other], "not {other} alone: {reports:?}");
    ensure!(begun.elapsed() < INTERVAL, "it took too long to tell anything: {:?}", begun.elapsed());
    take(&mut socket, &reports).await?;
    // A new session holds back what the one before did.
    drop(socket);
    let (mut socket, hello) = cloud.accept().await?;
    ensure!(hello.own.is_some_and(|own| own.bandwidth == Some(5000)) && hello.kept.is_none(), "{hello:?}");
    let welcome = proto::message::Welcome { protocol: hello.protocol_max, ..Default::default() };
    socket.send(frame(Body::Welcome(welcome))?).await?;
    let reports = next(&mut socket).await?;
    ensure!(ids(&reports) == [held], "not {held}: {reports:?}");
    let waited = begun.elapsed();
    // The interval began a little later than the first report was made.
    ensure!(waited >= INTERVAL, "it was held for {waited:?} only");
    take(&mut socket, &reports).await?;

    // Back to what was told last: nothing is left to tell.
    let newer = status(store, "True", 1).await?;
    let reports = next(&mut socket).await?;
    ensure!(ids(&reports) == [newer], "not {newer}, which is new in this interval: {reports:?}");
    take(&mut socket, &reports).await?;
    until_empty(store).await?;
    status(store, "False", 1).await?;
    status(store, "True", 1).await?;
    let other = event(store).await?;
    let reports = next(&mut socket).await?;
    ensure!(ids(&reports) == [other], "{reports:?} beside {other}");
    take(&mut socket, &reports).await?;
    until_empty(store).await?;

    // Whoever deletes the pod waits for its end.
    let held = status(store, "False", 2).await?;
    put(&mut socket, br#"{"metadata":{"name":"web","deletionTimestamp":"2026-01-01T00:00:00Z"}}"#).await?;
    let reports = next(&mut socket).await?;
    ensure!(ids(&reports) == [held], "not {held}: {reports:?}");
    ensure!(
        begun.elapsed() < waited + INTERVAL,
        "it waited for the end of the interval: {:?}",
        begun.elapsed()
    );
    Ok(())
}

/// The pod, in the first batch of a session.
async fn put(socket: &mut Socket, pod: &'static [u8]) -> Result<()> {
    let action = Some(Action::Put(Put { resource_version: 1, object: Bytes::from_static(pod) }));
    let changes = vec![Change { key: POD.to_owned(), action }];
    Ok(socket.send(frame(Body::Batch(Batch { seq: 1, changes }))?).await?)
}

/// Until all of the outbox has been taken, or need not be told.
async fn until_empty(store: &Store) -> Result<()> {
    let mut changes = store.outbox_changes();
    let empty = async {
        while !store.pending_reports(0, 9)?.is_empty() {
            // That something was forgotten is no change that anybody is told of.
            drop(timeout(Duration::from_millis(10), changes.changed()).await);
        }
        anyhow::Ok(())
    };
    timeout(LONG, empty).await.context("the outbox does not become empty")?
}

async fn status(store: &Store, ready: &str, restarts: u32) -> Result<u64> {
    let status = json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": ready }],
        "containerStatuses": [{ "name": "main", "restartCount": restarts }],
    });
    report(store, ReportKind::PodStatus, POD.parse()?, &json!({ "uid": "u", "status": status })).await
}

/// Of the node: nothing holds it back.
async fn event(store: &Store) -> Result<u64> {
    report(store, ReportKind::Event, ResourceKey::new("Node", "", NODE)?, &json!({ "reason": "Test" })).await
}

async fn report(
    store: &Store,
    kind: ReportKind,
    key: ResourceKey,
    payload: &serde_json::Value,
) -> Result<u64> {
    Ok(store.report(kind, &key, payload.to_string().into()).await?)
}

fn ids(reports: &[Report]) -> Vec<u64> {
    reports.iter().map(|report| report.id).collect()
}
