//! cloudcore beside a real control plane, with real sessions of edges whose store is a map: each scenario over each transport.

use anyhow::Result;
use harness::{Bench, bench};

use edge::{TRANSPORT, Transport};

mod cloud;
mod confinement;
mod edge;
mod eviction;
mod fence;
mod holder;
mod outage;
mod path;
mod renewal;
mod restart;
mod rotation;
mod told;

async fn over(transport: Transport, scenario: impl AsyncFnOnce(&Bench) -> Result<()>) -> Result<()> {
    TRANSPORT.scope(transport, bench::run_without_product(scenario)).await
}

macro_rules! scenarios {
    ($($name:ident: $scenario:path,)*) => {
        mod quic {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> Result<()> {
                over(Transport::Quic, $scenario).await
            })*
        }
        mod websocket {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> Result<()> {
                over(Transport::WebSocket, $scenario).await
            })*
        }
    };
}

scenarios! {
    a_node_joins_gets_its_pods_and_reports: path::whole_path,
    a_node_sees_and_writes_nothing_but_its_own: confinement::confinement,
    a_nodes_name_belongs_to_one_machine: holder::holder,
    a_certificate_is_renewed_also_when_it_has_expired: renewal::renewal,
    a_ca_takes_the_place_of_another: rotation::rotation,
    pods_of_a_node_that_is_cut_off_are_not_evicted: eviction::eviction,
    an_api_server_out_of_reach_is_waited_for: outage::outage,
    what_was_told_is_kept_and_not_written_twice: told::told,
    an_older_session_writes_nothing_over_a_newer_one: fence::fence,
    a_replica_that_lags_takes_nothing_away: outage::lag,
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_when_cloudcore_stops_gets_in_at_the_next_one() -> Result<()> {
    over(Transport::Quic, restart::restart).await
}
