//! What is printed, for people or for programs.

use std::io::{self, Write as _};

use anyhow::Result;
use clap::ValueEnum;
use hollow::{Snapshot, changes::Outcome, fairness::Fairness, flood::Flooded};
use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    /// An object a line; the last one is the summary
    Json,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// Seconds until all nodes were Ready for the first time.
    pub(crate) all_ready: Option<f64>,
    #[serde(flatten)]
    pub(crate) worked: Worked,
    #[serde(flatten)]
    pub(crate) last: Snapshot,
}

/// What came of what was asked for beside the nodes.
#[derive(Default, Serialize)]
pub(crate) struct Worked {
    pub(crate) changes: Vec<Rated>,
    pub(crate) floods: Vec<Flooded>,
    pub(crate) fairness: Option<Fairness>,
}

/// Of changes at one rate.
#[derive(Serialize)]
pub(crate) struct Rated {
    /// Asked for in a second.
    pub(crate) rate: f64,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

pub(crate) fn progress(output: Output, now: &Snapshot) -> Result<()> {
    match output {
        Output::Json => say(&serde_json::to_string(now)?),
        Output::Text => say(&format!(
            "{:7.1} s  connected {:5}  synced {:5}  ready {:5} of {}  sessions {}  deltas {}  errors {}",
            now.seconds,
            now.connected,
            now.synced,
            now.ready,
            now.nodes,
            now.sessions,
            now.deltas,
            now.errors.values().sum::<u64>()
        )),
    }
}

pub(crate) fn summary(output: Output, summary: &Summary) -> Result<()> {
    if output == Output::Json {
        return say(&serde_json::to_string(summary)?);
    }
    let Summary { all_ready, worked: Worked { changes, floods, fairness }, last } = summary;
    let mut lines = vec![match all_ready {
        Some(seconds) => format!("all {} nodes Ready after {seconds:.1} s", last.nodes),
        None => format!("not all nodes were Ready at once: at the end {} of {}", last.ready, last.nodes),
    }];
    lines.push(format!("live at the end: {} over QUIC, {} over the WebSocket", last.quic, last.websocket));
    for (transport, bytes) in &last.bytes {
        lines.push(format!("{transport}: {} bytes up, {} down, as frames", bytes.up, bytes.down));
    }
    lines.push(format!("{} deltas, {} pods said to run", last.deltas, last.pods));
    for flood in floods {
        lines.push(format!(
            "{} objects of all nodes changed {} times in {:.1} s: {:.0} deltas a second; until all have one: p50 {:.1} ms, p99 {:.1} ms",
            flood.objects,
            flood.writes,
            flood.seconds,
            flood.rate(),
            flood.p50,
            flood.p99
        ));
    }
    for Rated { rate, outcome: changes } in changes {
        lines.push(format!("{rate} changes a second:"));
        lines.extend(outcome(changes));
    }
    if let Some(Fairness { objects, returns, longest, with, without }) = fairness {
        lines.push(format!(
            "{returns} returns of a node with {objects} objects, of {longest:.0} ms at most; the others meanwhile:"
        ));
        lines.extend(outcome(with));
        lines.push("and with no return:".to_owned());
        lines.extend(outcome(without));
    }
    lines.extend(last.errors.iter().map(|(reason, count)| format!("{count} times: {reason}")));
    lines.iter().try_for_each(|line| say(line))
}

fn outcome(changes: &Outcome) -> [String; 5] {
    let times = |p50, p99, longest| format!("p50 {p50:.1} ms, p99 {p99:.1} ms, longest {longest:.1} ms");
    [
        format!(
            "changes: {} in {:.1} s, of which {} failed and {} arrived",
            changes.asked, changes.seconds, changes.failed, changes.arrived
        ),
        format!("from the API's answer to the commit: {}", times(changes.p50, changes.p99, changes.longest)),
        format!(
            "from the API's answer to the event of a bare watch: {}",
            times(changes.event_p50, changes.event_p99, changes.event_longest)
        ),
        format!(
            "from that event to the commit: {}",
            times(changes.after_p50, changes.after_p99, changes.after_longest)
        ),
        format!(
            "from the request to the commit: p50 {:.1} ms, p99 {:.1} ms",
            changes.whole_p50, changes.whole_p99
        ),
    ]
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}
