//! What cloudcore counts.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

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
    pub reports: Family<ReportLabels, Counter>,
    pub report_retries: Counter,
    pub bytes: Family<BytesLabels, Counter>,
    pub streams: Family<StreamLabels, Counter>,
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
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BytesLabels {
    pub direction: &'static str,
    pub lane: &'static str,
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
        registry.register("reports", "Reports of edge nodes, by kind and outcome", self.reports.clone());
        let retries = self.report_retries.clone();
        registry.register("report_retries", "Reports that had to be tried again", retries);
        let streams = self.streams.clone();
        registry.register("streams", "Requests of the API server to nodes, by kind and HTTP status", streams);
        registry.register("link_bytes", "Frame bytes by direction and lane, before TLS", self.bytes.clone());
    }
}
