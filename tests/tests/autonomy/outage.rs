//! The line drops every packet for longer than the eviction time, and the cloud goes on changing things.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, LineCut, Site,
    product::{Life, Scene, evictable, is_running, pod, ready},
    wait,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

const NODE: &str = "edge-silent";
const SPACE: &str = "outage";
const SOON: Duration = Duration::from_secs(90);
/// The goal is 10 s, on a machine that does nothing else.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long the protected pods are watched once the unprotected one was evicted: twice the eviction time.
const BEYOND: Duration = Duration::from_secs(10);
const DEPLOYMENT: &str = include_str!("deployment.yaml");

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &mut Site) -> Result<()> {
    scene.join(bench, site, NODE).await?;
    scene.namespace(SPACE).await?;
    let before = Box::pin(deploy(scene, site)).await?;

    site.cut(LineCut::Silent)?;
    evicted_but_for_protection(scene, site, &before).await?;
    let new_twin = change(scene).await?;
    // Nothing of it has reached the site.
    for life in before.all() {
        life.check(site).await?;
    }

    site.restore()?;
    let restored = Instant::now();
    scene.until_ready(NODE).await?;
    let took = restored.elapsed();
    eprintln!("{NODE} is Ready {:.1} s after its line came back", took.as_secs_f32());
    ensure!(took < READY_WITHIN, "{NODE} took {took:?} to become Ready");
    caught_up(scene, site, &before, &new_twin).await
}

/// The pods before the line is cut.
struct Before {
    steady: Life,
    deleted: Life,
    forced: Life,
    twin: Life,
    leaver: Life,
}

impl Before {
    fn all(&self) -> [&Life; 5] {
        [&self.steady, &self.deleted, &self.forced, &self.twin, &self.leaver]
    }
}

async fn deploy(scene: &Scene, site: &Site) -> Result<Before> {
    scene
        .cluster
        .kubectl(&["--namespace", SPACE, "create", "configmap", "text", "--from-literal=is=old"])
        .await?;
    scene.cluster.apply(DEPLOYMENT).await?;
    let pods = scene.pods(SPACE);
    let plain = |name: &str| pod(name, NODE, &json!({}));
    for new in [plain("deleted"), plain("forced"), plain("twin"), evictable(plain("leaver"))] {
        pods.create(&PostParams::default(), &new).await?;
    }
    scene.until_running(SPACE, "app", 5).await?;
    let life = async |app: &str| -> Result<Life> {
        let found = pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items;
        Life::of(site, &found.first().and_then(ResourceExt::uid).context("it is there")?).await
    };
    Ok(Before {
        steady: life("steady").await?,
        deleted: life("deleted").await?,
        forced: life("forced").await?,
        twin: life("twin").await?,
        leaver: life("leaver").await?,
    })
}

/// The pod that opted out is evicted; the others are neither deleted nor restarted.
async fn evicted_but_for_protection(scene: &Scene, site: &Site, before: &Before) -> Result<()> {
    let pods = scene.pods(SPACE);
    wait::until("the pod that opted out evicted", SOON, async || {
        ready(&scene.node(NODE).await?).err().context("the node is still Ready")?;
        if let Some(pod) = pods.get_opt("leaver").await? {
            ensure!(pod.metadata.deletion_timestamp.is_some(), "leaver is still wanted");
        }
        Ok(())
    })
    .await?;
    wait::holds("the others live on", BEYOND, async || {
        let all = pods.list(&ListParams::default()).await?.items;
        for pod in all.iter().filter(|pod| pod.name_any() != "leaver") {
            ensure!(pod.metadata.deletion_timestamp.is_none(), "{} is being deleted", pod.name_any());
        }
        for life in before.all() {
            life.check(site).await?;
        }
        Ok(())
    })
    .await
}

/// What the cloud does while the site cannot hear of it. Returns the uid of the namesake.
async fn change(scene: &Scene) -> Result<String> {
    let pods = scene.pods(SPACE);
    pods.delete("deleted", &DeleteParams::default()).await?;
    let now = DeleteParams::default().grace_period(0);
    pods.delete("forced", &now).await?;
    pods.delete("twin", &now).await?;
    let twin = pods.create(&PostParams::default(), &pod("twin", NODE, &json!({}))).await?;
    let kubectl = async |args: &[&str]| {
        let all: Vec<&str> = ["--namespace", SPACE].into_iter().chain(args.iter().copied()).collect();
        scene.cluster.kubectl(&all).await
    };
    kubectl(&["scale", "deployment", "steady", "--replicas=3"]).await?;
    kubectl(&["patch", "configmap", "text", "--type=merge", "--patch", r#"{"data":{"is":"new"}}"#]).await?;
    twin.uid().context("the namesake has a uid")
}

async fn caught_up(scene: &Scene, site: &Site, before: &Before, new_twin: &str) -> Result<()> {
    let steady = scene.until_running(SPACE, "app=steady", 3).await?;
    let old = steady.iter().find(|pod| pod.uid().as_deref() == Some(before.steady.uid.as_str()));
    before.steady.check_status(old.context("the pod from before the outage is not there any more")?)?;
    before.steady.check(site).await?;

    wait::until("what the cloud deleted gone", SOON, async || {
        for gone in ["deleted", "forced", "leaver"] {
            ensure!(scene.pods(SPACE).get_opt(gone).await?.is_none(), "{gone} is still in the API");
        }
        for gone in [&before.deleted, &before.forced, &before.leaver, &before.twin] {
            site.has_nothing_of(&gone.uid).await?;
        }
        Ok(())
    })
    .await?;
    wait::until("the namesake running", SOON, async || {
        let twin = scene.pods(SPACE).get("twin").await?;
        ensure!(twin.uid().as_deref() == Some(new_twin), "the API has another twin");
        is_running(&twin)?;
        ensure!(site.get(new_twin, "/echo?msg=twin").await? == "twin");
        Ok(())
    })
    .await?;
    for pod in &steady {
        let uid = pod.uid().context("a pod has a uid")?;
        wait::until("the ConfigMap's new text in every volume", SOON, async || {
            let text = site.shell(&uid, "cat /etc/text/is").await?;
            ensure!(text == "new", "{}: {text:?}", pod.name_any());
            Ok(())
        })
        .await?;
    }
    before.steady.check(site).await
}
