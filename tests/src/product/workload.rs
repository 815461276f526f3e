//! Pods for tests, and what of a pod must last while nobody changes it.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{Site, setup::AGNHOST};

/// Where the pods of [`pod`] answer HTTP.
const PORT: u16 = 8080;

/// A pod of one container that answers HTTP ([`Site::get`], [`Site::shell`]), bound to a node by its hostname. Fields of
/// `spec` are added, or replace what is there.
pub fn pod(name: &str, node: &str, spec: &Value) -> Pod {
    let mut all = json!({
        "terminationGracePeriodSeconds": 2,
        "nodeSelector": { "kubernetes.io/hostname": node },
        "containers": [{
            "name": "main",
            "image": AGNHOST,
            "imagePullPolicy": "IfNotPresent",
            "args": ["netexec", format!("--http-port={PORT}"), "--udp-port=-1"],
        }],
    });
    if let (Some(all), Some(spec)) = (all.as_object_mut(), spec.as_object()) {
        all.extend(spec.clone());
    }
    let pod = json!({ "metadata": { "name": name, "labels": { "app": name } }, "spec": all });
    serde_json::from_value(pod).expect("tests write pods that are pods")
}

/// The same pod, opted out of the protection from eviction.
pub fn evictable(mut pod: Pod) -> Pod {
    pod.annotations_mut().insert("skerry.io/evict-when-unreachable".to_owned(), "true".to_owned());
    pod
}

/// An error that says what is missing to a pod that runs, with each container ready.
pub fn is_running(pod: &Pod) -> Result<()> {
    let name = pod.name_any();
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    for container in &containers {
        ensure!(container.ready, "{name}: {} is {:?}", container.name, container.state);
    }
    let phase = status.phase.unwrap_or_default();
    ensure!(phase == "Running" && !containers.is_empty(), "{name} is {phase:?}: {:?}", status.message);
    ensure!(pod.metadata.deletion_timestamp.is_none(), "{name} is being deleted");
    Ok(())
}

/// A pod's running containers at its site: while nobody changes the pod, it stays equal to itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Life {
    pub uid: String,
    /// By name: the container's id, and how often it was restarted.
    pub containers: BTreeMap<String, (String, u32)>,
}

impl Life {
    pub async fn of(site: &Site, pod_uid: &str) -> Result<Self> {
        let all = site.containers().await?;
        let running = all.into_iter().filter(|one| one.pod_uid == pod_uid && one.running && !one.sandbox);
        let containers: BTreeMap<String, (String, u32)> =
            running.map(|one| (one.name, (one.id, one.attempt))).collect();
        ensure!(!containers.is_empty(), "pod {pod_uid} has no running container at {}", site.name());
        Ok(Self { uid: pod_uid.to_owned(), containers })
    }

    /// An error unless the site still has the very same containers.
    pub async fn check(&self, site: &Site) -> Result<()> {
        let now = Self::of(site, &self.uid).await?;
        ensure!(now == *self, "containers were {:?} and are {:?}", self.containers, now.containers);
        Ok(())
    }

    /// An error unless the API shows the same pod with the same containers.
    pub fn check_status(&self, pod: &Pod) -> Result<()> {
        ensure!(pod.uid().as_ref() == Some(&self.uid), "{} is another pod now", pod.name_any());
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
        let mut shown = BTreeMap::new();
        for status in statuses.unwrap_or_default() {
            let id = status.container_id.unwrap_or_default();
            let id = id.trim_start_matches("containerd://").to_owned();
            shown.insert(status.name, (id, u32::try_from(status.restart_count)?));
        }
        ensure!(shown == self.containers, "the API shows {shown:?}, the site had {:?}", self.containers);
        Ok(())
    }
}

impl Site {
    /// What a pod of the site answers, asked from the site.
    pub async fn get(&self, pod_uid: &str, path: &str) -> Result<String> {
        let address = SocketAddr::from((self.pod_ip(pod_uid).await?, PORT));
        let response = self.http_get(address, path).await?;
        ensure!(response.status == 200, "{path} answered {}: {}", response.status, response.body);
        Ok(response.body)
    }

    /// What a shell in a pod's container prints.
    pub async fn shell(&self, pod_uid: &str, command: &str) -> Result<String> {
        let command = command.replace(' ', "%20").replace('$', "%24");
        let answer = self.get(pod_uid, &format!("/shell?cmd={command}")).await?;
        let answer: Value = serde_json::from_str(&answer).context("agnhost answers in JSON")?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            bail!("{command} failed in the pod: {error}");
        }
        Ok(answer.get("output").and_then(Value::as_str).unwrap_or_default().trim().to_owned())
    }

    /// An error while the site has a container or a sandbox of the pod, running or not.
    pub async fn has_nothing_of(&self, pod_uid: &str) -> Result<()> {
        let left = self.containers().await?;
        let left: Vec<&str> =
            left.iter().filter(|one| one.pod_uid == pod_uid).map(|one| one.id.as_str()).collect();
        ensure!(left.is_empty(), "the site still has {left:?} of pod {pod_uid}");
        Ok(())
    }
}
