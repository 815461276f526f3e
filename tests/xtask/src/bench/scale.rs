//! As many hollow nodes as one cloudcore is for, with several pods each: whether all stay Ready, what they cost, and how they
//! come back.
//!
//! Each node's Lease is renewed every ten seconds by default. The API server of a machine of two cores is the limit of that well
//! before cloudcore is: the seconds between renewals are an argument, and part of each figure's name where they are others.

use std::time::Duration;

use anyhow::Result;
use harness::{Assets, progress::during};

use super::{
    figure::Figure,
    hollow::{RENEWAL, Transport, Turn, stage, stage::Stage, transports},
};

/// On each node.
const PODS: usize = 5;

/// How many nodes, and how they are kept.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Scale {
    /// For scale: how many nodes; several numbers with commas between them
    #[arg(long = "scale-nodes", value_name = "NODES", default_value = "10000", value_delimiter = ',')]
    nodes: Vec<usize>,
    /// For scale: seconds for which the nodes are watched at rest
    #[arg(long = "scale-rest", value_name = "SECONDS", default_value_t = 600)]
    rest: u64,
    /// For scale: seconds between two renewals of a node's Lease
    #[arg(long = "scale-renewal", value_name = "SECONDS", default_value_t = RENEWAL.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    renewal: u64,
}

pub(super) async fn take(assets: &Assets, scale: &Scale, only: Option<Transport>) -> Result<Vec<Figure>> {
    let program = during("building hollow as it would ship, which takes minutes", stage::build()).await?;
    let mut figures = Vec::new();
    let (rest, renewal) = (Duration::from_secs(scale.rest), Duration::from_secs(scale.renewal));
    for &nodes in &scale.nodes {
        for transport in transports(only) {
            let stage = Stage::start(assets, &program, transport, nodes, renewal).await?;
            let mut turn = Turn { stage: &stage, transport, nodes, pods: PODS, rest, figures: Vec::new() };
            let measured = turn.at_rest_and_killed().await;
            let taken = std::mem::take(&mut turn.figures);
            stage.end(measured)?;
            figures.extend(taken.into_iter().map(|figure| named(figure, renewal)));
        }
    }
    Ok(figures)
}

fn named(mut figure: Figure, renewal: Duration) -> Figure {
    if renewal != RENEWAL {
        figure.name = format!("{} (a Lease every {} s)", figure.name, renewal.as_secs());
    }
    figure
}
