//! An edge node behind a line in user space, and something at it that the cloud changes: what is asked of any line is whether
//! a change arrives, and when.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Cloud, Edge, is_running};
use crate::{Cluster, Wire, random::Random, setup::PAUSE, wait};

const SOON: Duration = Duration::from_secs(90);
/// Between two looks at both ends' digests.
const LOOK: Duration = Duration::from_millis(10);
/// Of a change, in words of eight bytes.
const WORDS: u64 = 20;

pub struct Wired {
    pub edge: Edge,
    pub wire: Wire,
    random: Mutex<Random>,
    /// What the node held when it was last looked at.
    digest: Mutex<String>,
}

/// What the edge says of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub connected: bool,
    pub synced: bool,
    pub ready: bool,
    pub transport: String,
    pub sessions: u64,
}

impl Wired {
    /// For a node that has joined one of `clouds` over `wire`. A pod of it refers to the ConfigMap that [`Wired::change`] changes.
    pub async fn start(
        cluster: &Cluster,
        clouds: &[&Cloud],
        edge: Edge,
        wire: Wire,
        seed: u64,
    ) -> Result<Self> {
        let wired = Self {
            edge,
            wire,
            random: Mutex::new(Random::from_seed(seed)),
            digest: Mutex::new(String::new()),
        };
        wired.change(cluster).await?;
        let name = wired.config();
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": wired.edge.name(),
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": PAUSE, "envFrom": [{ "configMapRef": { "name": name } }],
                }],
            },
        });
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        wait::until(&format!("pod {name} running"), SOON, async || is_running(&pods.get(&name).await?))
            .await?;
        wired.until_changed_with(clouds, SOON).await?;
        Ok(wired)
    }

    /// Of the ConfigMap, and of the pod that refers to it.
    pub fn config(&self) -> String {
        format!("config-{}", self.edge.name())
    }

    /// Changes the ConfigMap.
    pub async fn change(&self, cluster: &Cluster) -> Result<()> {
        self.change_to(cluster, WORDS).await
    }

    /// Changes the ConfigMap to so many words, that hardly any compression makes smaller than half.
    pub async fn change_to(&self, cluster: &Cluster, words: u64) -> Result<()> {
        let text = self.random.lock().unwrap_or_else(PoisonError::into_inner).words(words);
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": self.config() }, "data": { "text": text },
        });
        let configs: Api<ConfigMap> = Api::default_namespaced(cluster.client());
        let apply = PatchParams::apply("bench").force();
        configs.patch(&self.config(), &apply, &Patch::Apply(config)).await?;
        Ok(())
    }

    /// Waits until the cloud wants something else here than when this was last called, and the node has stored it, in a
    /// session that is in sync. Returns when that was seen.
    pub async fn until_changed(&self, cloud: &Cloud, limit: Duration) -> Result<Instant> {
        self.until_changed_with(&[cloud], limit).await
    }

    /// As [`until_changed`](Self::until_changed), whichever of these the session is with.
    pub async fn until_changed_with(&self, clouds: &[&Cloud], limit: Duration) -> Result<Instant> {
        let before = self.digest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut seen = String::from("nothing");
        let looking = async {
            loop {
                match self.same(clouds).await {
                    Ok(digest) if digest != before => return (digest, Instant::now()),
                    Ok(_) => "the change has not come to cloudcore".clone_into(&mut seen),
                    Err(error) => seen = format!("{error:#}"),
                }
                sleep(LOOK).await;
            }
        };
        let looked = timeout(limit, looking).await;
        let name = self.edge.name();
        let (digest, at) = looked.with_context(|| {
            format!("a change at {name} not within {limit:?}: {seen}; {}", self.wire.story())
        })?;
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = digest;
        Ok(at)
    }

    /// Waits until both ends hold the same.
    pub async fn until_same(&self, cloud: &Cloud, limit: Duration) -> Result<()> {
        let what = format!("{} holding what the cloud wants there", self.edge.name());
        let digest = wait::until(&what, limit, async || self.same(&[cloud]).await).await?;
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = digest;
        Ok(())
    }

    /// The digest of both ends, if they hold the same, and the link is in sync.
    async fn same(&self, clouds: &[&Cloud]) -> Result<String> {
        let link = self.link().await?;
        ensure!(link.connected && link.synced, "{link:?}");
        let of = |page: &str| -> Result<String> {
            let page: Value = serde_json::from_str(page)?;
            Ok(page[self.edge.name()].as_str().context("no digest of the node")?.to_owned())
        };
        let here = of(&self.edge.admin("/digestz").await?.body).context("edgecore")?;
        let mut others = Vec::new();
        for cloud in clouds {
            match of(&cloud.admin("/digestz").await?.body) {
                Ok(there) if here == there => return Ok(here),
                Ok(there) => others.push(there),
                Err(error) => others.push(format!("{error:#}")),
            }
        }
        bail!("{here} at the edge, {} in the cloud", others.join(", "))
    }

    pub async fn link(&self) -> Result<Link> {
        let page: Value = serde_json::from_str(&self.edge.admin("/nodez").await?.body)?;
        let is = |key: &str| page[key] == true;
        Ok(Link {
            connected: is("connected"),
            synced: is("synced"),
            ready: is("nodeReady"),
            transport: page["transport"].as_str().unwrap_or_default().to_owned(),
            sessions: page["sessions"].as_u64().context("/nodez counts sessions")?,
        })
    }

    /// The pod that refers to the ConfigMap, as the API has it.
    pub async fn holder(&self, cluster: &Cluster) -> Result<Pod> {
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        Ok(pods.get(&self.config()).await?)
    }

    /// Its uid.
    pub async fn holder_uid(&self, cluster: &Cluster) -> Result<String> {
        self.holder(cluster).await?.uid().context("a pod has a uid")
    }
}
