//! keadm, as an operator runs it, beside a real control plane and a real site: one control plane for the whole way from
//! `init` to `reset`, since each step needs the one before.

use anyhow::Result;
use harness::{Bench, bench};

mod cloud;
mod edge;
mod refusals;
mod selectors;
mod stage;

use stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn from_init_to_reset() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let stage = Stage::start(bench).await?;
        cloud::init(&stage).await?;
        refusals::ports_and_tokens(&stage).await?;
        edge::join(&stage).await?;
        refusals::names(&stage).await?;
        selectors::both_dialects(&stage).await?;
        edge::reset_and_join_again(&stage).await?;
        edge::revoke(&stage).await?;
        cloud::reset(&stage).await
    })
    .await
}
