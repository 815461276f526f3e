//! What cloudcore counts.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Seconds: fine where changes are usually, up to where an edge is behind a far or thin line.
const DELAYS: [f64; 22] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// Cheap to clone; all clones count into the same metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub sessions: Family<TransportLabels, Gauge>,
    pub session_ends: Family<EndLabels, Counter>,
    pub handshakes: Family<HandshakeLabels, Counter>,
    pub enrollments: Family<EnrollmentLabels, Counter>,
    pub renewals: Counter,
    pub batches: Counter,
    pub changes: Counter,
    pub delays: Delays,
    pub reports: Family<ReportLabels, Counter>,
    pub report_retries: Counter,
    pub bytes: Family<BytesLabels, Counter>,
    pub held: Family<ClassLabels, Gauge>,
    pub streams: Family<StreamLabels, Counter>,
}

/// Of batches, since the API server's event of the oldest change in each has come: what cloudcore adds, and with
/// the line and the edge's disk.
#[derive(Debug, Clone)]
pub struct Delays {
    /// Until the link has it.
    pub sent: Histogram,
    /// Until the edge has said that it is stored.
    pub acked: Histogram,
}

impl Default for Delays {
    fn default() -> Self {
        Self { sent: Histogram::new(DELAYS), acked: Histogram::new(DELAYS) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransportLabels {
    pub transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandshakeLabels {
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EnrollmentLabels {
    pub code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReportLabels {
    pub kind: &'static str,
    pub outcome: ReportOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReportOutcome {
    Taken,
    /// The API server had the same already.
    Unchanged,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BytesLabels {
    pub direction: &'static str,
    pub lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassLabels {
    pub class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabels {
    pub kind: &'static str,
    pub code: u16,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("cloudcore");
        registry.register("sessions", "Edge nodes connected now, by transport", self.sessions.clone());
        registry.register("session_ends", "Sessions ended, by reason", self.session_ends.clone());
        registry.register("handshakes", "TLS handshakes, by outcome", self.handshakes.clone());
        registry.register("enrollments", "Enrollment requests, by HTTP status", self.enrollments.clone());
        registry.register("renewals", "Certificates renewed over the link", self.renewals.clone());
        registry.register("batches", "Batches sent to edge nodes", self.batches.clone());
        registry.register("changes", "Changes sent to edge nodes", self.changes.clone());
        registry.register_with_unit(
            "batch_sent",
            "From the API server's event to the batch with it handed to the link",
            Unit::Seconds,
            self.delays.sent.clone(),
        );
        registry.register_with_unit(
            "batch_acked",
            "From the API server's event to the edge's ack of the batch with it",
            Unit::Seconds,
            self.delays.acked.clone(),
        );
        registry.register("reports", "Reports of edge nodes, by kind and outcome", self.reports.clone());
        let retries = self.report_retries.clone();
        registry.register("report_retries", "Reports that had to be tried again", retries);
        let streams = self.streams.clone();
        registry.register("streams", "Requests of the API server to nodes, by kind and HTTP status", streams);
        registry.register("link_bytes", "Frame bytes by direction and lane, before TLS", self.bytes.clone());
        let held = self.held.clone();
        registry.register("held_objects", "Changed objects that wait for their class's interval", held);
    }
}
