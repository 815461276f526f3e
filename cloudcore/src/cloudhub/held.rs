//! Changes that wait for the end of their class's interval, counted: for the metric of all links, and for the page of one.

use std::sync::atomic::{AtomicI64, Ordering};

use crds::componentconfig::sync::ClassName;
use prometheus_client::metrics::gauge::Gauge;
use proto::session::CLASSES;
use serde_json::{Value, json};

use crate::metrics::{ClassLabels, Metrics};

/// Of one session; with it, what it holds is gone.
#[derive(Debug)]
pub(super) struct Held {
    own: [AtomicI64; CLASSES],
    of_all: [Gauge; CLASSES],
}

impl Held {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let gauge =
            |class: ClassName| metrics.held.get_or_create_owned(&ClassLabels { class: class.as_str() });
        Self { own: Default::default(), of_all: ClassName::ALL.map(gauge) }
    }

    pub(super) fn set(&self, held: [usize; CLASSES]) {
        for ((own, of_all), held) in self.own.iter().zip(&self.of_all).zip(held) {
            let now = i64::try_from(held).unwrap_or(i64::MAX);
            let before = own.swap(now, Ordering::Relaxed);
            if before != now {
                of_all.inc_by(now - before);
            }
        }
    }

    pub(super) fn page(&self) -> Value {
        let held = ClassName::ALL.iter().zip(&self.own);
        held.map(|(class, held)| (class.as_str().to_owned(), json!(held.load(Ordering::Relaxed)))).collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set([0; CLASSES]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_held_is_gone_with_it() {
        let metrics = Metrics::default();
        let sessions = [Held::new(&metrics), Held::new(&metrics)];
        sessions[0].set([0, 2, 3]);
        sessions[1].set([1, 0, 3]);
        sessions[0].set([0, 1, 3]);
        assert_eq!(sessions[0].page(), json!({ "critical": 0, "standard": 1, "batch": 3 }));
        let batch = metrics.held.get_or_create_owned(&ClassLabels { class: "batch" });
        assert_eq!(batch.get(), 6);
        drop(sessions);
        assert_eq!(batch.get(), 0);
    }
}
