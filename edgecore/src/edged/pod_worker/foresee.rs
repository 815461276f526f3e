//! What the runtime lists once it has done what the worker asked for: known from its answers about the one sandbox or
//! container, so that its lists, which cost it more the more pods there are, are not asked for again within a pass.

use proto::cri::v1;

use super::{PodWorker, WorkError};

impl PodWorker {
    pub(super) async fn foresee_sandbox(&mut self, id: &str) -> Result<(), WorkError> {
        let Some(mut listed) = self.foreseen.take() else { return Ok(()) };
        let Some(status) = self.runtime.sandbox_status(id).await? else { return Ok(()) };
        self.note_addresses(&status);
        listed.sandboxes.push(v1::PodSandbox {
            id: status.id,
            metadata: status.metadata,
            state: status.state,
            created_at: status.created_at,
            labels: status.labels,
            annotations: status.annotations,
            runtime_handler: status.runtime_handler,
        });
        listed.sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
        self.foreseen = Some(listed);
        Ok(())
    }

    pub(super) async fn foresee_container(&mut self, id: &str, sandbox: &str) -> Result<(), WorkError> {
        let Some(mut listed) = self.foreseen.take() else { return Ok(()) };
        let Some(status) = self.runtime.container_status(id).await? else { return Ok(()) };
        listed.containers.push(v1::Container {
            id: status.id.clone(),
            pod_sandbox_id: sandbox.to_owned(),
            metadata: status.metadata.clone(),
            image: status.image.clone(),
            image_ref: status.image_ref.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            annotations: status.annotations.clone(),
            image_id: status.image_id.clone(),
        });
        listed.containers.sort_by(|a, b| a.id.cmp(&b.id));
        self.note_status(id, status);
        self.foreseen = Some(listed);
        Ok(())
    }
}
