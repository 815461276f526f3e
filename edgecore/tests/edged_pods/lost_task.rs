//! A container that containerd's CRI takes for one that does not run while its process is there: what a start leaves
//! whose caller was killed at the wrong moment.

use anyhow::{Result, bail, ensure};
use edgecore::edged::{cri::Runtime, labels};
use harness::{Bench, Site, SiteOptions, bench, setup::BUSYBOX, wait};
use proto::cri::v1;
use tokio::process::Command;

use crate::node::{Node, SOON, id, is_ready, open, pod_of, sleeper};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_the_runtime_lost_sight_of_is_ended_and_made_anew() -> Result<()> {
    bench::run_without_product(async |bench| lost_task(bench).await).await
}

async fn lost_task(bench: &Bench) -> Result<()> {
    let site = bench.site(&SiteOptions::default()).await?;
    let runtime = Runtime::new(&site.runtime_endpoint())?;
    let wanted = lose(&site, &runtime, "wanted").await?;
    let orphan = lose(&site, &runtime, "orphan").await?;
    let refused = site.runtime().await?;
    let request = v1::RemoveContainerRequest { container_id: wanted.clone() };
    let refused =
        refused.clone().remove_container(request).await.map_err(|status| status.message().to_owned());
    ensure!(
        refused.as_ref().is_err_and(|message| message.contains("cannot delete running task")),
        "{refused:?}"
    );

    let store = open(site.dir())?;
    let node = Node::start(&site, store)?;
    node.put("Pod", "wanted", 1, pod_of(sleeper("true"), serde_json::json!({}))).await?;
    let status = node.until("wanted", "ready", is_ready).await?;
    ensure!(id(&status, "main")? != wanted, "{status}");
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    wait::until("what was lost to be gone", SOON, async || {
        let mut left = site.containers().await?;
        left.retain(|container| {
            container.id == orphan || container.id == wanted || container.pod == "orphan"
        });
        let tasks = ctr(&site, &["task", "ls", "--quiet"]).await?;
        if !left.is_empty() || tasks.contains(&wanted) || tasks.contains(&orphan) {
            bail!("{left:?} {tasks}")
        }
        Ok(())
    })
    .await?;
    node.end().await?.close().await?;
    Ok(())
}

/// A pod's container, made over CRI and started behind its back.
async fn lose(site: &Site, runtime: &Runtime, pod: &str) -> Result<String> {
    let uid = format!("{pod}-uid");
    let config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.to_owned(),
            uid: uid.clone(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        labels: labels::sandbox_labels(pod, "default", &uid, None),
        linux: Some(v1::LinuxPodSandboxConfig::default()),
        ..Default::default()
    };
    let sandbox = runtime.run_sandbox(config.clone(), String::new()).await?;
    let container = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
        command: vec!["sleep".to_owned(), "1000000".to_owned()],
        labels: labels::container_labels("main", "default", &uid, "main"),
        linux: Some(v1::LinuxContainerConfig::default()),
        ..Default::default()
    };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox,
        config: Some(container),
        sandbox_config: Some(config),
    };
    let id = runtime.create_container(request).await?;
    ctr(site, &["task", "start", "--detach", "--null-io", &id]).await?;
    Ok(id)
}

async fn ctr(site: &Site, arguments: &[&str]) -> Result<String> {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address")
        .arg(site.dir().join("containerd.sock"))
        .args(["--namespace", "k8s.io"])
        .args(arguments);
    let output = ctr.output().await?;
    ensure!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
