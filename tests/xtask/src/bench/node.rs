//! What an edge says of itself on its admin socket.

use anyhow::{Context, Result, ensure};
use harness::product::Edge;

use super::reading;

/// What the store counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreCounts {
    pub(crate) syncs: u64,
    pub(crate) written: u64,
}

impl StoreCounts {
    pub(crate) async fn of(edge: &Edge) -> Result<Self> {
        let page = edge.admin("/metrics").await?;
        ensure!(page.status == 200, "/metrics answered {}", page.status);
        let count = |name: &str| {
            reading::number(&page.body, &format!("{name} ")).context("edgecore's metrics lack a counter")
        };
        Ok(Self {
            syncs: count("edgecore_store_syncs_total")?,
            written: count("edgecore_store_written_bytes_total")?,
        })
    }
}

/// Whether the API server has taken this node's status in the session that there is now.
pub(crate) async fn is_ready(edge: &Edge) -> Result<()> {
    let page = edge.admin("/nodez").await?;
    let state: serde_json::Value = serde_json::from_str(&page.body).context("/nodez is malformed")?;
    ensure!(state["nodeReady"] == true, "/nodez says {state}");
    Ok(())
}
