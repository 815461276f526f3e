//! postStart and preStop: a command in the container, a request to it, or a wait.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use tokio::time;

use super::PodWorker;
use crate::edged::probes::check::{Check, Miss};

pub(super) struct Hook {
    check: Option<Check>,
    sleep: Option<Duration>,
}

impl PodWorker {
    pub(super) fn hook(&self, handler: &LifecycleHandler, spec: &Container, id: &str) -> Hook {
        let address = self.address();
        let sleep = handler.sleep.as_ref().map(|sleep| u64::try_from(sleep.seconds).unwrap_or(0));
        Hook {
            check: Check::of_hook(handler, spec, address.as_deref(), &self.runtime, id),
            sleep: sleep.map(Duration::from_secs),
        }
    }
}

impl Hook {
    pub(super) async fn run(self, limit: Duration) -> Result<(), String> {
        let work = async {
            time::sleep(self.sleep.unwrap_or_default()).await;
            match self.check {
                Some(check) => {
                    check.run(limit).await.map_err(|(Miss::Failed(message) | Miss::Unknown(message))| message)
                }
                None if self.sleep.is_some() => Ok(()),
                None => Err("the pod has no address to be asked at".to_owned()),
            }
        };
        time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(format!("not done within {} s", limit.as_secs())))
    }
}
