//! postStart and preStop: a command in the container, a request to it, or a wait.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use tokio::time;

use super::PodWorker;
use crate::edged::probes::check::Check;

pub(super) struct Hook {
    check: Option<Check>,
    sleep: Duration,
}

impl PodWorker {
    pub(super) fn hook(&self, handler: &LifecycleHandler, spec: &Container, id: &str) -> Hook {
        let address = self.address();
        let sleep = handler.sleep.as_ref().and_then(|sleep| u64::try_from(sleep.seconds).ok()).unwrap_or(0);
        Hook {
            check: Check::of_hook(handler, spec, address.as_deref(), &self.runtime, id),
            sleep: Duration::from_secs(sleep),
        }
    }
}

impl Hook {
    pub(super) async fn run(self, limit: Duration) -> Result<(), String> {
        let work = async {
            time::sleep(self.sleep).await;
            match self.check {
                Some(check) => check.run(limit).await,
                None => Ok(()),
            }
        };
        time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(format!("not done within {} s", limit.as_secs())))
    }
}
