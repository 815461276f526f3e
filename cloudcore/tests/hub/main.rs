//! cloudcore beside a real control plane, with real sessions of edges whose store is a map.

use anyhow::Result;
use harness::bench;

mod cloud;
mod confinement;
mod edge;
mod eviction;
mod holder;
mod outage;
mod path;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_gets_its_pods_and_reports() -> Result<()> {
    bench::run_without_product(path::whole_path).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_and_writes_nothing_but_its_own() -> Result<()> {
    bench::run_without_product(confinement::confinement).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_name_belongs_to_one_machine() -> Result<()> {
    bench::run_without_product(holder::holder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_node_that_is_cut_off_are_not_evicted() -> Result<()> {
    bench::run_without_product(eviction::eviction).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_out_of_reach_is_waited_for() -> Result<()> {
    bench::run_without_product(outage::outage).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_takes_nothing_away() -> Result<()> {
    bench::run_without_product(outage::lag).await
}
