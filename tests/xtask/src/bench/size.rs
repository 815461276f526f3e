//! How large the programs are.

use std::fs;

use anyhow::{Context, Result};
use harness::Assets;

use super::figure::{Figure, Goal};

pub(super) fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for program in ["edgecore", "cloudcore", "keadm"] {
        let path = assets.product()?.join(program);
        let bytes = fs::metadata(&path).with_context(|| format!("no {}", path.display()))?.len();
        let figure = Figure::whole(&format!("{program}, stripped"), "MB", bytes as f64 / 1e6);
        figures.push(if program == "edgecore" { figure.goal(Goal::AtMost(20.0)) } else { figure });
    }
    Ok(figures)
}
