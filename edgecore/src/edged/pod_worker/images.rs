//! The image of a container: at hand, or pulled first, or done without.

use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use proto::cri::v1;
use tokio::time::Instant;

use super::{PodWorker, start::StartError};
use crate::edged::{
    images::{self, ImageError, PullPolicy},
    pod::DesiredPod,
};

impl PodWorker {
    pub(super) async fn image(
        &mut self,
        pod: &DesiredPod,
        spec: &Container,
        sandbox_config: &v1::PodSandboxConfig,
    ) -> Result<images::Ready, StartError> {
        let policy = PullPolicy::of(spec);
        let found = images::find(&self.runtime, spec).await?;
        let name = spec.image.as_deref().unwrap_or_default();
        match (policy, found) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(ready)) => {
                let message = format!("Container image \"{name}\" already present on machine");
                self.normal(Some(&spec.name), "Pulled", &message);
                Ok(ready)
            }
            (PullPolicy::Never, None) => Err(StartError::Waiting {
                reason: "ErrImageNeverPull".to_owned(),
                message: format!("Container image {name:?} is not present with pull policy of Never"),
            }),
            (PullPolicy::Always | PullPolicy::IfNotPresent, found) => {
                self.normal(Some(&spec.name), "Pulling", &format!("Pulling image \"{name}\""));
                let began = Instant::now();
                // A pull may take hours: the cloud should know what the pod waits for.
                if let Err(error) = self.report(true).await {
                    tracing::warn!(error = %runtime::chain(&error), "status not reported before the pull");
                }
                let runtime = self.runtime.clone();
                let sources = self.shared.sources.clone();
                let pull = images::pull(&runtime, pod, spec, &sources, sandbox_config.clone());
                let result = tokio::select! {
                    // A pod that is no longer wanted, or is another by now, does not wait: the runtime gives the pull up.
                    result = pull => result,
                    () = self.superseded(&spec.name) => return Err(StartError::Superseded),
                };
                match (result, found) {
                    (Ok(()), _) => {
                        let took = Duration::from_millis(
                            u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                        );
                        let message = format!("Successfully pulled image \"{name}\" in {took:?}");
                        self.normal(Some(&spec.name), "Pulled", &message);
                        images::find(&self.runtime, spec).await?.ok_or_else(|| StartError::Waiting {
                            reason: "ErrImagePull".to_owned(),
                            message: format!("image {name:?} was pulled and is not there"),
                        })
                    }
                    // With policy Always: this pod has run with this image, so it was allowed to; a registry that is
                    // out of reach must not keep a site from starting again.
                    (Err(ImageError::Waiting(error)), Some(ready)) if self.ran_before(spec) => {
                        let message = format!(
                            "Image \"{name}\" not pulled, the one on the machine is used: {}",
                            error.message
                        );
                        self.warn(Some(&spec.name), "Failed", &message);
                        Ok(ready)
                    }
                    (Err(error), _) => Err(error.into()),
                }
            }
        }
    }

    fn ran_before(&self, spec: &Container) -> bool {
        let hash = crate::edged::pod::container_hash(spec);
        self.observed.latest(&spec.name).is_some_and(|latest| latest.hash.as_ref() == Some(&hash))
    }

    /// Ends when what is being done for a container is no longer what is wanted.
    pub(super) async fn superseded(&mut self, container: &str) {
        let image = |pod: &DesiredPod| pod.container(container).and_then(|(_, spec)| spec.image.clone());
        loop {
            if self.input.changed().await.is_err() {
                return std::future::pending().await;
            }
            let input = self.input.borrow();
            if input.intent != self.current.intent || image(&input.pod) != image(&self.current.pod) {
                return;
            }
        }
    }
}
