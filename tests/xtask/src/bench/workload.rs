//! Pods for an edge, and following them through the API.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use harness::{Cluster, Site, setup::PAUSE, wait};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

const LIMIT: Duration = Duration::from_mins(5);
/// Pods made at a time where the time that it takes is not what is measured.
const AT_ONCE: usize = 8;

/// A pod of one pause container, bound to a node without kube-scheduler. `spec` is put over its spec.
pub(crate) fn pause_pod(name: &str, node: &str, spec: &Value) -> Result<Pod> {
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": PAUSE }],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    Ok(serde_json::from_value(pod)?)
}

/// No service account token: the pod needs nothing of the cloud but itself.
pub(crate) fn plain() -> Value {
    json!({ "automountServiceAccountToken": false })
}

/// When each pod was first seen Running in the API, by its name.
pub(crate) struct Follower {
    running: watch::Receiver<HashMap<String, Instant>>,
    _task: JoinSet<()>,
}

impl Follower {
    pub(crate) async fn start(cluster: &Cluster) -> Result<Self> {
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        let version = pods.list(&kube::api::ListParams::default().limit(1)).await?.metadata.resource_version;
        let mut events = pods
            .watch(&WatchParams::default().timeout(290), &version.unwrap_or_default())
            .await
            .context("failed to watch the pods")?
            .boxed();
        let (sender, running) = watch::channel(HashMap::new());
        let mut task = JoinSet::new();
        task.spawn(async move {
            // When it ends, whoever waits for a pod is told so by the closed channel.
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                    && phase(&pod) == "Running"
                {
                    let now = Instant::now();
                    sender.send_modify(|running| {
                        running.entry(pod.name_any()).or_insert(now);
                    });
                }
            }
        });
        Ok(Self { running, _task: task })
    }

    pub(crate) async fn running(&self, name: &str) -> Result<Instant> {
        let mut running = self.running.clone();
        let waiting = running.wait_for(|running| running.contains_key(name));
        let running = tokio::time::timeout(LIMIT, waiting)
            .await
            .with_context(|| format!("pod {name} is not Running after {LIMIT:?}"))?
            .context("the watch of the pods has ended")?;
        running.get(name).copied().context("it was waited for")
    }
}

pub(crate) async fn create(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    // Right after the start of a node, its first pods may come before the default service account's token controller.
    pods.create(&PostParams::default(), pod)
        .await
        .with_context(|| format!("failed to create {}", pod.name_any()))?;
    Ok(())
}

/// Makes pods and waits until all run.
pub(crate) async fn run_all(cluster: &Cluster, pods: Vec<Pod>) -> Result<()> {
    let follower = Follower::start(cluster).await?;
    let mut left = pods.into_iter();
    loop {
        let batch: Vec<Pod> = left.by_ref().take(AT_ONCE).collect();
        if batch.is_empty() {
            return Ok(());
        }
        for pod in &batch {
            create(cluster, pod).await?;
        }
        for pod in &batch {
            follower.running(&pod.name_any()).await?;
        }
    }
}

/// Deletes every pod of the namespace and waits until the sites have none of them.
pub(crate) async fn delete_all(cluster: &Cluster, site: &Site) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let now = DeleteParams::default().grace_period(0);
    pods.delete_collection(&now, &kube::api::ListParams::default()).await?;
    wait::until("the pods gone from the site", LIMIT, async || {
        let containers = site.containers().await?;
        ensure!(containers.is_empty(), "{} containers and sandboxes are there", containers.len());
        anyhow::Ok(())
    })
    .await
}

/// Writes a ConfigMap, made if it is not there.
pub(crate) async fn put_config(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let configs: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "text": text },
    });
    let apply = PatchParams::apply("bench").force();
    configs
        .patch(name, &apply, &Patch::Apply(config))
        .await
        .with_context(|| format!("failed to write {name}"))?;
    Ok(())
}

/// The UID of a pod.
pub(crate) async fn uid(cluster: &Cluster, name: &str) -> Result<String> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    pods.get(name).await?.uid().with_context(|| format!("pod {name} has no UID"))
}

/// Waits until the runtime has exactly these pods' sandboxes and one container each.
pub(crate) async fn at_site(site: &Site, count: usize) -> Result<HashSet<String>> {
    wait::until("the pods at the site", LIMIT, async || {
        let containers = site.containers().await?;
        let ids: HashSet<String> = containers
            .iter()
            .filter(|container| !container.sandbox && container.running)
            .map(|container| container.id.clone())
            .collect();
        if ids.len() != count {
            bail!("{} containers run", ids.len());
        }
        Ok(ids)
    })
    .await
}

/// Lets what was started come to rest.
pub(crate) async fn settle(time: Duration) {
    harness::progress::during("letting it come to rest", sleep(time)).await;
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}
