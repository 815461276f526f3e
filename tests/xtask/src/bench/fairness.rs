//! One node comes back that has to be told of 10,000 objects, again and again; the others' changes meanwhile, beside those while
//! nobody comes.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Assets, progress::during};

use super::{
    figure::{Figure, Goal},
    hollow::{RENEWAL, Transport, limit, stage, stage::Stage, transports},
};

/// The others' changes a second: what this machine's API server takes without a queue.
const RATE: u32 = 300;
/// For the node's objects to be made and changed, and for its returns.
const SOON: Duration = Duration::from_mins(4);

pub(super) async fn take(
    assets: &Assets,
    nodes: usize,
    objects: usize,
    only: Option<Transport>,
) -> Result<Vec<Figure>> {
    let program = during("building hollow as it would ship, which takes minutes", stage::build()).await?;
    let mut figures = Vec::new();
    for transport in transports(only) {
        let stage = Stage::start(assets, &program, transport, nodes, RENEWAL).await?;
        let measured = one(&stage, transport, nodes, objects).await;
        figures.extend(stage.end(measured)?);
    }
    Ok(figures)
}

async fn one(stage: &Stage, transport: &str, nodes: usize, objects: usize) -> Result<Vec<Figure>> {
    let options = ["--pods=1".to_owned(), format!("--changes={RATE}"), format!("--returning={objects}")];
    let fleet = stage.fleet(&options.each_ref().map(String::as_str))?;
    fleet.until_told("one more node comes and goes", limit(nodes)).await?;
    let coming = fleet.until_told("it has come for the last time", SOON);
    during("a node comes and goes", coming).await?;
    fleet.end()?;
    let summary = fleet.now()?;
    let fairness = &summary["fairness"];
    let number = |of: &str, field: &str| fairness[of][field].as_f64().unwrap_or_default();
    ensure!(
        number("with", "arrived") > 0.0 && number("without", "arrived") > 0.0,
        "no change arrived: {summary}"
    );
    let name = |what: &str| format!("{nodes} nodes, {transport}: {what}");
    let longest = fairness["longest"].as_f64().unwrap_or_default();
    let returns = &fairness["returns"];
    let note = format!("the longest of {returns} returns, from its dial until all {objects} are stored");
    let mut figures =
        vec![Figure::whole(&name("one node comes back: until it is in sync"), "ms", longest).note(&note)];
    for (of, when) in [("without", "alone"), ("with", "while one comes back")] {
        for (what, field) in [("p99", "woken_p99"), ("longest", "woken_longest")] {
            let figure = name(&format!("a thread that does nothing, {when}: woken late by, {what}"));
            let note = "the machine's noise: what a program waits for a core that it asks for";
            figures.push(Figure::whole(&figure, "ms", number(of, field)).note(note));
        }
    }
    for (what, field) in [
        ("API's answer to commit", ""),
        ("a bare watch's event to commit", "after_"),
        ("API's answer to a bare watch's event", "event_"),
    ] {
        for quantile in ["p50", "p99"] {
            let field = format!("{field}{quantile}");
            for (of, when) in [("without", "alone"), ("with", "while one comes back")] {
                let figure = name(&format!("the others, {when}: {what}, {quantile}"));
                let note = format!("of {} changes, {RATE} a second", number(of, "arrived"));
                figures.push(Figure::whole(&figure, "ms", number(of, &field)).note(&note));
            }
            if quantile == "p99" && !field.starts_with("event") {
                let times = number("with", &field) / number("without", &field);
                let figure =
                    Figure::whole(&name(&format!("the others: {what}: p99 rises to")), "times", times);
                figures.push(figure.goal(Goal::AtMost(2.0)));
            }
        }
    }
    Ok(figures)
}
