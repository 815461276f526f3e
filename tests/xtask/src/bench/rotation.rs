//! The cluster's CA is rotated under thousands of hollow nodes: how long until all have followed each step, and at what pace their
//! certificates are renewed. No session is cut over it, and no node becomes NotReady.

use anyhow::{Context, Result, bail, ensure};
use harness::{
    Assets,
    product::{Pace, first_unready, renewals},
    progress::during,
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ListParams, WatchParams},
};
use tokio::time::Instant;

use super::{
    figure::{Figure, Goal},
    hollow::{
        RENEWAL, Transport, limit, stage,
        stage::{Fleet, Stage},
        transports,
    },
};

/// What the API has of the hollow nodes.
const HOLLOW: &str = "skerry.io/hollow";

pub(super) async fn take(assets: &Assets, nodes: usize, only: Option<Transport>) -> Result<Vec<Figure>> {
    let program = during("building hollow as it would ship, which takes minutes", stage::build()).await?;
    let mut figures = Vec::new();
    for transport in transports(only) {
        let stage = Stage::start(assets, &program, transport, nodes, RENEWAL).await?;
        let measured = one(&stage, transport, nodes).await;
        figures.extend(stage.end(measured)?);
    }
    Ok(figures)
}

async fn one(stage: &Stage, transport: &str, nodes: usize) -> Result<Vec<Figure>> {
    let fleet = stage.fleet(&[])?;
    let live = fleet.until("all nodes Ready", limit(nodes), |now| now["ready"] == nodes as u64);
    during("new nodes join", live).await?;
    let api: Api<Node> = Api::all(stage.client());
    let listed = api.list_metadata(&ListParams::default().labels(HOLLOW).limit(1)).await?;
    let from = listed.metadata.resource_version.context("a list has a version")?;
    let sessions = |fleet: &Fleet| anyhow::Ok(fleet.now()?["sessions"].as_f64().unwrap_or_default());
    let before = sessions(&fleet)?;
    let turn = Turn { stage, name: format!("{nodes} nodes, {transport}"), nodes };
    let mut figures = tokio::select! {
        figures = turn.rotate() => figures?,
        unready = first_unready(&api, WatchParams::default().labels(HOLLOW), &from) => bail!("{}", unready?),
    };
    let cut = sessions(&fleet)? - before;
    fleet.end()?;
    figures
        .push(Figure::whole(&turn.name("sessions that were cut"), "sessions", cut).goal(Goal::AtMost(0.0)));
    Ok(figures)
}

struct Turn<'a> {
    stage: &'a Stage,
    name: String,
    nodes: usize,
}

impl Turn<'_> {
    fn name(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    async fn rotate(&self) -> Result<Vec<Figure>> {
        let mut figures = self.step("prepare", "until all trust the next CA, too").await?;
        let (clouds, all) = ([&self.stage.cloud], self.nodes as u64);
        let until = renewals(&clouds).await? + all;
        let (issued, pace) = tokio::join!(
            self.step("issue", "until all have a certificate from it, and have said so"),
            Pace::until(&clouds, until, limit(self.nodes))
        );
        figures.extend(issued?);
        let Pace { took, worst } = pace?;
        figures.push(Figure::whole(&self.name("issue: first to last renewal"), "s", took.as_secs_f64()));
        let note = format!("{:.1} on average", self.nodes as f64 / took.as_secs_f64());
        let name = self.name("issue: renewals in the worst second");
        figures.push(Figure::whole(&name, "/s", worst as f64).note(&note));
        ensure!(renewals(&clouds).await? == until, "a node has renewed twice");
        figures.extend(self.step("drop", "until none trusts the CA before").await?);
        Ok(figures)
    }

    /// keadm waits for all nodes.
    async fn step(&self, step: &str, until: &str) -> Result<Vec<Figure>> {
        let (calls, before, begun) = (self.stage.calls().await?, self.stage.usage()?, Instant::now());
        let patience = format!("--timeout={}s", limit(self.nodes).as_secs());
        let args = ["certs", "rotate-ca", step, &patience, "--output=json"];
        let printed = during(step, self.stage.keadm(&args)).await?;
        let report: serde_json::Value = serde_json::from_str(&printed)?;
        ensure!(report["waiting"].as_array().is_some_and(Vec::is_empty), "not all have followed: {report}");
        let took = begun.elapsed().as_secs_f64();
        let (spent, called) = (self.stage.spent_alone(&before)?, self.stage.calls().await?.since(&calls));
        let note = format!("{:.1} API calls a node, the leases' included", called.all / self.nodes as f64);
        let figure = Figure::whole(&self.name(&format!("{step}: {until}")), "s", took).note(&note);
        Ok(vec![spent.of.iter().fold(figure, |figure, (whose, time)| figure.cpu(whose, *time))])
    }
}
