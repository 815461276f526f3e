//! What a pod leaves behind, and what is kept of one that has come to its end.

use std::{fs, io, path::Path};

use bytes::Bytes;

use super::{End, PodWorker, WorkError};
use crate::edged::{
    cgroup::{self, CGROUPS},
    pod::DesiredPod,
    pod_state::Terminal,
};

impl PodWorker {
    /// The end of a pod outlives the runtime's memory of its containers: a job that is done is not done again.
    pub(super) async fn keep_terminal(&self, terminal: &Terminal) -> Result<(), WorkError> {
        let value = serde_json::to_vec(terminal)?;
        self.shared.store.put_local(&self.terminal_key(), Bytes::from(value)).await?;
        Ok(())
    }

    /// Nothing of the pod runs, or will: all goes but its containers' records, for their logs and ends.
    pub(super) async fn end(&mut self, terminal: Terminal) -> Result<(), WorkError> {
        self.probes.clear();
        let uid = self.current.pod.uid.clone();
        if self.end == End::Open {
            let pod_ips = self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default();
            let terminal = Terminal { pod_ips, ..terminal };
            self.keep_terminal(&terminal).await?;
            self.end = End::Kept;
            self.memory.terminal = Some(terminal);
        }
        if self.end == End::Kept {
            self.mounted = None;
            self.shared.volumes.release(&uid)?;
            self.shared.tokens.forget(&uid).await?;
            cgroup::remove(Path::new(CGROUPS), &uid).await;
            self.end = End::Released;
        }
        Ok(())
    }

    pub(super) fn recall(&mut self) -> Result<(), WorkError> {
        if let Some(value) = self.shared.store.local(&self.terminal_key())? {
            let terminal: Terminal = serde_json::from_slice(&value)?;
            // Of no sandbox that is there.
            self.addresses = Some((String::new(), terminal.pod_ips.clone()));
            self.memory.terminal = Some(terminal);
            self.end = End::Kept;
        }
        Ok(())
    }

    fn terminal_key(&self) -> String {
        format!("terminal/{}", self.current.pod.uid)
    }

    pub(super) async fn remove_container(&mut self, pod: &DesiredPod, id: &str) -> Result<(), WorkError> {
        self.runtime.remove_container(id).await?;
        if let Some(container) = self.observed.containers.iter().find(|container| container.id == id) {
            let (name, attempt) = (&container.name, container.attempt);
            self.shared.logs.remove_container(pod, name, attempt, id)?;
            gone(fs::remove_file(self.termination_file(pod, name, attempt)))?;
        }
        Ok(())
    }

    pub(super) async fn clean_up(&mut self) -> Result<(), WorkError> {
        self.probes.clear();
        let pod = self.current.pod.clone();
        self.shared.volumes.remove(&pod.uid)?;
        self.shared.logs.remove_pod(&pod)?;
        self.shared.tokens.forget(&pod.uid).await?;
        if self.end != End::Open {
            self.shared.store.delete_local(&self.terminal_key()).await?;
        }
        cgroup::remove(Path::new(CGROUPS), &pod.uid).await;
        tracing::info!(pod = %pod.key, uid = %pod.uid, "pod removed");
        Ok(())
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
