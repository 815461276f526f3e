//! One hollow node: edgecore's link and the care for its certificate, with [`NodeStore`] in the place of the disk and of edged.

use std::sync::Arc;

use anyhow::Result;
use edgecore::edgehub::{EdgeHub, HubConfig, HubState, Renewal, Traffic};
use proto::ResourceKey;
use runtime::link::quic::Dialer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{fleet::Errors, reports, store::NodeStore};

/// Which CAs it holds, and for another certificate: nothing else here asks the cloud anything.
const QUESTIONS: usize = 2;

pub(crate) struct Node {
    key: ResourceKey,
    prefix: Arc<str>,
    hub: EdgeHub<NodeStore>,
    renewal: Renewal,
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
        let (asks, asked) = mpsc::channel(QUESTIONS);
        let (node, identity) = (config.node.clone(), config.identity.clone());
        let (hub, state) = EdgeHub::new(config, store.clone(), asked)?;
        let hub = hub.dialing_with(dialer);
        let clock = Arc::clone(hub.clock());
        let renewal = Renewal { node, identity, asks, hub: state.clone(), clock };
        let view = View { store: store.clone(), state: state.clone(), traffic: Arc::clone(hub.traffic()) };
        Ok((Self { key, prefix, hub, renewal, store, state, errors }, view))
    }

    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<()> {
        let Self { key, prefix, hub, renewal, store, mut state, errors } = self;
        let mut renewal = std::pin::pin!(renewal.run(stop.clone()));
        let mut hub = std::pin::pin!(hub.run(stop));
        let (mut sessions, mut renews) = (0, true);
        loop {
            tokio::select! {
                ended = &mut hub => return Ok(ended?),
                // The hub is about to end, too.
                Ok(()) = &mut renewal, if renews => renews = false,
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
