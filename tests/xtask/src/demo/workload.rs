//! Steps 4 and 8: what runs at the site, and how it is changed.
//!
//! `web` is a Deployment with a ConfigMap and a Secret, and is changed while the line is down. `steady` is one that is
//! left alone. `leaver` is a pod that asked to be evicted from unreachable nodes, so that the demo could fail: it shows
//! that this cluster does evict.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use harness::{Site, site::Container, wait};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};

use super::{Demo, NODE, story::Story};

pub(crate) const LEAVER: &str = "leaver";
const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(90);
const MANIFEST: &str = include_str!("workload.yaml");
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Names and UIDs of the pods that are to last.
pub(crate) struct Workload {
    uids: BTreeMap<String, String>,
}

/// Step 4: applied, scheduled, running, answering.
pub(crate) async fn deploy(demo: &Demo, story: &mut Story) -> Result<Workload> {
    demo.cluster.apply(MANIFEST).await?;
    story.checked("kubectl apply: Deployments web and steady, a ConfigMap, a Secret, pod leaver")?;
    let running = wait::until("pods running", SOON, async || {
        let pods = pods(demo).await?;
        ensure!(pods.len() == 3, "{} of 3 pods", pods.len());
        for pod in &pods {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("no phase");
            ensure!(phase == "Running", "{} is {phase}", pod.name_any());
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            ensure!(node == Some(NODE), "{} is on {node:?}", pod.name_any());
        }
        Ok(pods)
    });
    let line = |pods: &Vec<Pod>| format!("{} pods scheduled to {NODE} and Running", pods.len());
    let pods = story.step("the pods starting", line, running).await?;
    let lasting = pods.iter().filter(|pod| pod.name_any() != LEAVER);
    let uids = lasting.map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect();
    let workload = Workload { uids };
    workload.answers(demo).await?;
    let uid = workload.uid_of("web")?;
    let greeting = shell(&demo.site, uid, "cat /etc/greeting/text").await?;
    ensure!(greeting == "hello", "the ConfigMap's volume holds {greeting:?}");
    let secret = shell(&demo.site, uid, "echo -n $PASSWORD").await?;
    ensure!(secret == "s3cret", "the Secret's variable holds {secret:?}");
    story.checked("both answer HTTP at the site, with the ConfigMap's and the Secret's values")?;
    workload.has_token(demo).await?;
    let greeting = demo.cluster.kubectl(&["exec", "deploy/web", "--", "cat", "/etc/greeting/text"]).await?;
    ensure!(greeting == "hello", "kubectl exec prints {greeting:?}");
    let log = demo.cluster.kubectl(&["logs", "deploy/web"]).await?;
    ensure!(log.contains("HTTP server"), "kubectl logs prints {log:?}");
    story.checked("kubectl exec and kubectl logs reach into the site")?;
    Ok(workload)
}

impl Workload {
    /// Each lasting pod answers at the site. The cloud is not asked.
    pub(crate) async fn answers(&self, demo: &Demo) -> Result<()> {
        for (name, uid) in &self.uids {
            wait::until(&format!("{name} answering at the site"), SOON, async || {
                let answer = get(&demo.site, uid, "/echo?msg=hello").await?;
                ensure!(answer == "hello", "{answer:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// The ids of the lasting pods' running containers, by pod and container.
    pub(crate) async fn container_ids(&self, demo: &Demo) -> Result<BTreeMap<String, String>> {
        let running = demo.site.containers().await?;
        let ours = running.iter().filter(|container| container.running && !container.sandbox);
        let ours = ours.filter(|container| self.uids.values().any(|uid| *uid == container.pod_uid));
        let ids = ours.map(|container: &Container| {
            (format!("{}/{}", container.pod, container.name), container.id.clone())
        });
        Ok(ids.collect())
    }

    pub(crate) async fn has_token(&self, demo: &Demo) -> Result<()> {
        for (name, uid) in &self.uids {
            let token = shell(&demo.site, uid, &format!("cat {TOKEN}")).await?;
            ensure!(token.split('.').count() == 3, "{name} has no service account token");
        }
        Ok(())
    }

    /// In the API, the lasting pods are the same ones, and nobody deletes them.
    pub(crate) async fn unchanged_in_cloud(&self, demo: &Demo) -> Result<()> {
        let api: Api<Pod> = Api::default_namespaced(demo.cluster.client());
        for (name, uid) in &self.uids {
            let pod = api.get(name).await?;
            ensure!(pod.uid().as_ref() == Some(uid), "{name} is another pod now");
            ensure!(pod.metadata.deletion_timestamp.is_none(), "{name} is being deleted");
        }
        Ok(())
    }

    /// Step 8.
    pub(crate) async fn change(&self, demo: &Demo, story: &mut Story) -> Result<()> {
        let patch = r#"{"data":{"text":"hello again"}}"#;
        demo.cluster.kubectl(&["patch", "configmap", "greeting", "--type=merge", "--patch", patch]).await?;
        let image = format!("web={}", harness::setup::AGNHOST_NEXT);
        demo.cluster.kubectl(&["set", "image", "deployment/web", &image]).await?;
        story.checked(
            "in the cloud, with the line still cut: a new text in the ConfigMap, a new image for web",
        )
    }

    /// The new `web` runs at the site with the new ConfigMap, and the old one is gone.
    pub(crate) async fn changed_at_site(&self, demo: &Demo) -> Result<()> {
        let pods = pods(demo).await?;
        let old = self.uid_of("web")?;
        let mut web = pods.iter().filter(|pod| pod.name_any().starts_with("web-"));
        let (Some(pod), None) = (web.next(), web.next()) else { bail!("not exactly one web pod in the API") };
        let uid = pod.uid().context("a pod has a UID")?;
        ensure!(uid != old, "web is still the old pod");
        let containers = demo.site.containers().await?;
        let running = |uid: &str| {
            containers
                .iter()
                .find(|container| container.pod_uid == uid && !container.sandbox && container.running)
        };
        ensure!(running(old).is_none(), "the old web still runs at the site");
        running(&uid).context("the new web does not run yet")?;
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
        let image = statuses.and_then(|all| all.first()).map_or("nothing", |status| status.image.as_str());
        ensure!(image.contains(harness::setup::AGNHOST_NEXT), "the new web runs {image}");
        let greeting = shell(&demo.site, &uid, "cat /etc/greeting/text").await?;
        ensure!(greeting == "hello again", "the ConfigMap's volume holds {greeting:?}");
        Ok(())
    }

    /// The container of the pod that nobody changed.
    pub(crate) async fn steady_container(&self, demo: &Demo) -> Result<String> {
        self.unchanged_in_cloud_one(demo, "steady").await?;
        let ids = self.container_ids(demo).await?;
        let id = ids.into_iter().find(|(name, _)| name.starts_with("steady-"));
        Ok(id.context("steady has no container")?.1)
    }

    /// The API has, for every pod of the node, the container ids that the site has, and no pod that the site has not.
    pub(crate) async fn status_matches(&self, demo: &Demo) -> Result<()> {
        let mut cloud = BTreeMap::new();
        for pod in pods(demo).await? {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
            for status in statuses.unwrap_or_default() {
                let id = status.container_id.unwrap_or_default();
                let id = id.trim_start_matches("containerd://").to_owned();
                cloud.insert(id, format!("{}/{}", pod.name_any(), status.name));
            }
        }
        let mut site = BTreeMap::new();
        for container in demo.site.containers().await? {
            if !container.sandbox && container.running {
                site.insert(container.id, format!("{}/{}", container.pod, container.name));
            }
        }
        ensure!(cloud == site, "the API has {cloud:?}, the site {site:?}");
        Ok(())
    }

    async fn unchanged_in_cloud_one(&self, demo: &Demo, app: &str) -> Result<()> {
        let uid = self.uid_of(app)?;
        let found = pods(demo).await?.iter().any(|pod| pod.uid().as_deref() == Some(uid));
        ensure!(found, "{app}'s pod is not in the API any more");
        Ok(())
    }

    fn uid_of(&self, app: &str) -> Result<&str> {
        let found = self.uids.iter().find(|(name, _)| name.starts_with(&format!("{app}-")));
        found.map(|(_, uid)| uid.as_str()).with_context(|| format!("{app} has no pod"))
    }
}

async fn pods(demo: &Demo) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::default_namespaced(demo.cluster.client());
    Ok(api.list(&ListParams::default()).await?.items)
}

/// What a shell in the pod's container prints, asked over HTTP from the site.
async fn shell(site: &Site, pod_uid: &str, command: &str) -> Result<String> {
    let command = command.replace(' ', "%20").replace('$', "%24");
    let answer = get(site, pod_uid, &format!("/shell?cmd={command}")).await?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("agnhost answers in JSON")?;
    if let Some(error) = answer.get("error").and_then(serde_json::Value::as_str) {
        bail!("{command} failed in the pod: {error}");
    }
    Ok(answer.get("output").and_then(serde_json::Value::as_str).unwrap_or_default().trim().to_owned())
}

async fn get(site: &Site, pod_uid: &str, path: &str) -> Result<String> {
    let address = SocketAddr::from((site.pod_ip(pod_uid).await?, PORT));
    let response = site.http_get(address, path).await?;
    ensure!(response.status == 200, "{path} answered {}: {}", response.status, response.body);
    Ok(response.body)
}
