//! What most end-to-end tests start from: a cluster with healthy nodes, cloudcore beside it, and sites at the far ends of
//! their lines.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

use super::{Cloud, Edge, edge::ready, workload::is_running};
use crate::{Bench, Cluster, ClusterOptions, HeartbeatNodes, Site, SiteOptions, wait};

const SOON: Duration = Duration::from_secs(90);

/// Declared before the sites that live in it: what is at a site ends before the cloud does.
pub struct Scene {
    pub cloud: Cloud,
    _neighbours: HeartbeatNodes,
    pub cluster: Cluster,
}

impl Scene {
    /// A cluster, two healthy nodes in it, cloudcore, and `count` sites that can reach it.
    pub async fn start(bench: &Bench, options: &ClusterOptions, count: usize) -> Result<(Self, Vec<Site>)> {
        let cluster = bench.cluster(options).await?;
        let neighbours = HeartbeatNodes::start(&cluster.client(), 2).await?;
        let mut sites = Vec::with_capacity(count);
        for _ in 0..count {
            sites.push(bench.site(&SiteOptions::default()).await?);
        }
        let addresses: Vec<Ipv4Addr> = sites.iter().map(Site::host_address).collect();
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &addresses).await?;
        Ok((Self { cloud, _neighbours: neighbours, cluster }, sites))
    }

    /// An edge node that notices a dead line within seconds; the default is made for metered lines.
    pub async fn join(&self, bench: &Bench, site: &Site, name: &str) -> Result<Edge> {
        Edge::join(&bench.assets, &self.cloud, site, name, &["modules.edgeHub.heartbeat=2"]).await
    }

    /// A namespace in which pods can be made.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client());
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.cluster.client(), name);
        let account = async || accounts.get("default").await.map(drop);
        wait::until(&format!("the default service account of {name}"), SOON, account).await
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.cluster.client(), namespace)
    }

    pub async fn node(&self, name: &str) -> Result<Node> {
        Ok(Api::<Node>::all(self.cluster.client()).get(name).await?)
    }

    pub async fn until_ready(&self, node: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.cluster.client());
        wait::until(&format!("{node} Ready"), SOON, async || ready(&nodes.get(node).await?)).await
    }

    /// Waits until exactly these pods of a namespace carry the labels, all of them running and ready.
    pub async fn until_running(&self, namespace: &str, labels: &str, count: usize) -> Result<Vec<Pod>> {
        let pods = self.pods(namespace);
        let what = format!("{count} running pods {labels} in {namespace}");
        wait::until(&what, SOON, async || {
            let found = pods.list(&ListParams::default().labels(labels)).await?.items;
            found.iter().try_for_each(is_running)?;
            ensure!(found.len() == count, "{} pods", found.len());
            Ok(found)
        })
        .await
    }

    /// Creates a pod and waits until it runs and is ready.
    pub async fn run(&self, namespace: &str, pod: &Pod) -> Result<Pod> {
        let pods = self.pods(namespace);
        let made = pods.create(&PostParams::default(), pod).await?;
        let name = made.metadata.name.unwrap_or_default();
        wait::until(&format!("{namespace}/{name} running"), SOON, async || {
            let pod = pods.get(&name).await?;
            is_running(&pod).map(|()| pod)
        })
        .await
    }

    /// The events about a pod.
    pub async fn events(&self, namespace: &str, pod: &str) -> Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.cluster.client(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        Ok(events.list(&about).await?.items)
    }
}
