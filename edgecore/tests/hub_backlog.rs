//! What has gathered in an outage: how things are goes up before all that has happened, and nothing of it twice.

mod hub {
    pub(crate) mod cloud;
    pub(crate) mod reports;
}

use anyhow::{Context as _, Result, ensure};
use edgecore::{
    edgehub::EdgeHub,
    metamanager::{Options, Store},
};
use futures_util::future::try_join_all;
use hub::{
    cloud::{Cloud, LONG, edge},
    reports::{next, take},
};
use proto::{
    ResourceKey,
    message::{Report, ReportKind},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

const EVENTS: usize = 1000;

#[tokio::test]
async fn statuses_go_before_a_backlog_of_events() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (cloud, identity, address) = Cloud::start(dir.path()).await?;
    let store = Store::open(&dir.path().join("store"), Options::default())?;
    let (_asks, asked) = mpsc::channel(1);
    let (hub, _state) = EdgeHub::new(edge(identity, address, dir.path()), store.clone(), asked)?;
    let stop = CancellationToken::new();
    let (ended, told) = tokio::join!(hub.run(stop.clone()), async {
        let told = Box::pin(tell(&cloud, &store)).await;
        stop.cancel();
        told
    });
    ended?;
    told
}

async fn tell(cloud: &Cloud, store: &Store) -> Result<()> {
    let report = async |kind: ReportKind, pod: usize, text: String| -> Result<u64> {
        let key: ResourceKey = format!("Pod/default/web-{pod}").parse()?;
        Ok(store.report(kind, &key, text.into()).await?)
    };
    let gathered = try_join_all((0..EVENTS).map(|n| report(ReportKind::Event, n % 7, format!("event {n}"))));
    let mut wanted = gathered.await?;
    let ended = report(ReportKind::PodTerminated, 3, "{}".to_owned()).await?;
    wanted.push(ended);
    let statuses = [
        report(ReportKind::PodStatus, 1, "{}".to_owned()).await?,
        report(ReportKind::PodStatus, 2, "{}".to_owned()).await?,
    ];
    wanted.extend(statuses);

    let mut socket = cloud.welcome().await?;
    let mut told: Vec<Report> = Vec::new();
    let mut late = None;
    while told.len() < wanted.len() {
        let reports = next(&mut socket).await?;
        if told.is_empty() {
            let first: Vec<u64> = reports.iter().map(|report| report.id).take(2).collect();
            ensure!(first == statuses, "{first:?} goes first, not {statuses:?}");
        }
        told.extend(reports.iter().cloned());
        if late.is_none() && told.len() > EVENTS / 2 {
            late = Some((report(ReportKind::PodStatus, 4, "{}".to_owned()).await?, told.len()));
            wanted.extend(late.map(|(id, _)| id));
        }
        take(&mut socket, &reports).await?;
    }
    let place = |id: u64| told.iter().position(|report| report.id == id).context("it was told");
    // Beside what was under way, and what was being gathered.
    let (late, by) = late.context("half of them were told")?;
    ensure!(place(late)? < by + 150, "a status that is new waited for {} reports", place(late)? - by);
    let of_pod =
        told.iter().filter(|report| report.key == "Pod/default/web-3" && report.kind() == ReportKind::Event);
    for event in of_pod {
        ensure!(place(event.id)? < place(ended)?, "an event of a pod was told after its end");
    }
    let mut ids: Vec<u64> = told.iter().map(|report| report.id).collect();
    let events = told.iter().filter(|report| report.kind() == ReportKind::Event);
    ensure!(events.map(|report| report.id).is_sorted(), "events were told out of order");
    ids.sort_unstable();
    wanted.sort_unstable();
    ensure!(ids == wanted, "{} reports were told, not {}", ids.len(), wanted.len());
    timeout(LONG, async {
        let mut left = store.pending();
        while left > 0 {
            tokio::task::yield_now().await;
            left = store.pending();
        }
    })
    .await
    .context("acked reports are pending")
}
