//! edgecore's metrics: what the store and the link count anyway, read when they are asked for.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::sync::watch;

use crate::{edgehub::HubState, metamanager::Store};

pub(crate) fn register(registry: &mut Registry, store: Store, hub: watch::Receiver<HubState>) {
    registry.register_collector(Box::new(Reader { store, hub }));
}

struct Reader {
    store: Store,
    hub: watch::Receiver<HubState>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut counter = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        counter("edgecore_store_syncs", "Times that the store made its journal durable", self.store.syncs())?;
        counter("edgecore_store_written_bytes", "Bytes that the store wrote", self.store.bytes_written())?;
        counter(
            "edgecore_outbox_dropped",
            "Reports dropped because the outbox was full",
            self.store.dropped_reports(),
        )?;
        let hub = self.hub.borrow().clone();
        counter("edgecore_sessions", "Sessions with the cloud since the start", hub.sessions)?;
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let failing = self.store.failure().is_some();
        gauge("edgecore_store_failing", "1 while the store takes no changes", failing.into())?;
        let pending = i64::try_from(self.store.pending()).unwrap_or(i64::MAX);
        gauge("edgecore_outbox_reports", "Reports that wait for the cloud", pending)?;
        gauge("edgecore_connected", "1 while the cloud has let this node in", hub.connected.into())?;
        let objects = i64::try_from(self.store.digest().count).unwrap_or(i64::MAX);
        gauge("edgecore_desired_objects", "Objects that the cloud wants here", objects)
    }
}
