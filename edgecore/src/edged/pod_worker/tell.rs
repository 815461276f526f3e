//! What the worker has to tell: events, gathered and kept together with the next status, so that they cost one sync
//! of the store and a container's start waits for none.

use super::PodWorker;
use crate::edged::events::{Happening, Kind};

/// Between two statuses; what is beyond is only in the log.
const MAX_UNTOLD: usize = 64;

impl PodWorker {
    pub(super) fn normal(&mut self, container: Option<&str>, reason: &'static str, message: &str) {
        self.tell(&Happening { kind: Kind::Normal, reason, message, container });
    }

    pub(super) fn warn(&mut self, container: Option<&str>, reason: &'static str, message: &str) {
        self.tell(&Happening { kind: Kind::Warning, reason, message, container });
    }

    fn tell(&mut self, happening: &Happening<'_>) {
        if let Some(event) = self.shared.events.note(&self.current.pod, happening)
            && self.untold.len() < MAX_UNTOLD
        {
            self.untold.push(event);
        }
    }

    pub(super) async fn keep_events(&mut self) {
        let untold = std::mem::take(&mut self.untold);
        if !untold.is_empty() {
            self.shared.events.keep(&self.current.pod, untold).await;
        }
    }
}
