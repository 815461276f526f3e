//! One hollow node: edgecore's link, with [`NodeStore`] in the place of the disk and of edged.

use std::sync::Arc;

use anyhow::Result;
use edgecore::edgehub::{EdgeHub, HubConfig, HubState, Traffic};
use proto::ResourceKey;
use runtime::link::quic::Dialer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{fleet::Errors, reports, store::NodeStore};

pub(crate) struct Node {
    key: ResourceKey,
    prefix: Arc<str>,
    hub: EdgeHub<NodeStore>,
    store: NodeStore,
    state: watch::Receiver<HubState>,
    errors: Arc<Errors>,
}

/// What can be seen of a node while it runs.
pub(crate) struct View {
    pub(crate) store: NodeStore,
    pub(crate) state: watch::Receiver<HubState>,
    pub(crate) traffic: Arc<Traffic>,
}

impl Node {
    pub(crate) fn new(
        config: HubConfig,
        prefix: Arc<str>,
        dialer: &Dialer,
        store: NodeStore,
        errors: Arc<Errors>,
    ) -> Result<(Self, View)> {
        let key = ResourceKey::new("Node", "", &config.node)?;
        // Nothing here asks the cloud anything.
        let (_, asks) = mpsc::channel(1);
        let (hub, state) = EdgeHub::new(config, store.clone(), asks)?;
        let hub = hub.dialing_with(dialer);
        let view = View { store: store.clone(), state: state.clone(), traffic: Arc::clone(hub.traffic()) };
        Ok((Self { key, prefix, hub, store, state, errors }, view))
    }

    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<()> {
        let Self { key, prefix, hub, store, mut state, errors } = self;
        let mut hub = std::pin::pin!(hub.run(stop));
        let mut sessions = 0;
        loop {
            tokio::select! {
                ended = &mut hub => return Ok(ended?),
                // Only marks that there is something to see.
                Ok(()) = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    if !now.connected && !now.last_error.is_empty() {
                        errors.note(now.last_error);
                    }
                    if now.sessions != sessions {
                        sessions = now.sessions;
                        store.report_node(&key, reports::node(key.name(), &prefix))?;
                        store.report_pods_again()?;
                    }
                }
            }
        }
    }
}
