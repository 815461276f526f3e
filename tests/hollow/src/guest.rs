//! One more node beside the fleet, that comes and goes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use edgecore::{
    edgehub::{HubState, HubStore as _},
    metamanager::DesiredChange,
};
use proto::Object;
use runtime::link::quic::Dialer;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    changes::Changes,
    fleet::{Errors, FleetConfig, Transport, hub_config, socket},
    node::{Node, View},
    store::NodeStore,
};

const LOOK: Duration = Duration::from_millis(10);
/// For the goodbye.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) struct Guest {
    store: NodeStore,
    state: watch::Receiver<HubState>,
    stop: CancellationToken,
    task: JoinSet<Result<()>>,
}

impl Guest {
    /// Starts the node, with a store that holds this.
    pub(crate) async fn start(
        config: &FleetConfig,
        name: &str,
        changes: &Arc<Changes>,
        held: Vec<Object>,
    ) -> Result<Self> {
        config.identities.prepare(&[name.to_owned()])?;
        let dialer = if config.transport == Transport::Websocket { Dialer::default() } else { socket()? };
        let store = NodeStore::new(Arc::clone(changes));
        store.apply(held.into_iter().map(DesiredChange::Put).collect()).await?;
        let hub = hub_config(config, name.to_owned());
        let errors = Arc::<Errors>::default();
        let (node, view) = Node::new(hub, config.prefix.as_str().into(), &dialer, store, errors)?;
        let View { store, state, .. } = view;
        let (stop, mut task) = (CancellationToken::new(), JoinSet::new());
        task.spawn(node.run(stop.clone()));
        Ok(Self { store, state, stop, task })
    }

    /// Waits until the API server has taken its status.
    pub(crate) async fn ready(&self, limit: Duration) -> Result<()> {
        let mut state = self.state.clone();
        let ready = async { state.wait_for(|now| now.node_ready).await.is_ok() };
        ensure!(time::timeout(limit, ready).await?, "the node has ended");
        Ok(())
    }

    /// Waits until it is in sync, and so much was changed in its store since its start. Returns when that was.
    pub(crate) async fn synced(&self, deltas: u64, limit: Duration) -> Result<Instant> {
        let deltas_now = || {
            let mut sum = std::collections::BTreeMap::new();
            self.store.add_deltas(&mut sum);
            sum.values().sum::<u64>()
        };
        let synced = async {
            while !(self.state.borrow().synced && deltas_now() >= deltas) {
                time::sleep(LOOK).await;
            }
        };
        let waited = time::timeout(limit, synced).await;
        waited.with_context(|| format!("{} of {deltas} objects after {limit:?}", deltas_now()))?;
        Ok(Instant::now())
    }

    pub(crate) fn objects(&self) -> Result<Vec<Object>> {
        Ok(self.store.objects()?)
    }

    /// Says goodbye.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.task.join_next().await.is_some() {} };
        // What is left is dropped.
        drop(time::timeout(GRACE, ended).await);
    }
}
