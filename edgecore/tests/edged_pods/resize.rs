//! The resources of a container are changed while it runs.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use harness::{Bench, Site, SiteOptions, bench};
use serde_json::{Value, json};

use crate::node::{Node, condition, container, id, is_ready, open, pod_of, sleeper};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_change_in_place() -> Result<()> {
    bench::run_without_product(async |bench| resize(bench).await).await
}

async fn resize(bench: &Bench) -> Result<()> {
    let site = bench.site(&SiteOptions::default()).await?;
    let node = Node::start(&site, open(site.dir())?)?;
    let node = in_place(&site, node).await?;
    anew(&node).await?;
    cannot(&node).await?;
    node.end().await?.close().await?;
    Ok(())
}

fn sized(resources: &Value) -> Value {
    pod_of(sleeper("true"), json!({"resources": resources}))
}

async fn in_place(site: &Site, node: Node) -> Result<Node> {
    let cpu = |request: &str, limit: &str| {
        sized(&json!({"requests": {"cpu": request}, "limits": {"cpu": limit, "memory": "32Mi"}}))
    };
    node.put("Pod", "grows", 1, cpu("100m", "200m")).await?;
    let status = node.until("grows", "ready", is_ready).await?;
    let id = id(&status, "main")?;
    let main = container(&status, "main");
    ensure!(main["resources"]["limits"] == json!({"cpu": "200m", "memory": "32Mi"}), "{status}");
    ensure!(main["allocatedResources"]["cpu"] == "100m", "{status}");
    check_quota(&id, "20000")?;
    node.put("Pod", "grows", 2, cpu("300m", "400m")).await?;
    let has = |limit: &'static str| {
        let id = id.clone();
        move |status: &Value| {
            let main = container(status, "main");
            main["resources"]["limits"]["cpu"] == limit && main["containerID"] == format!("containerd://{id}")
        }
    };
    let status = node.until("grows", "more of the CPU", has("400m")).await?;
    ensure!(container(&status, "main")["allocatedResources"]["cpu"] == "300m", "{status}");
    check_quota(&id, "40000")?;
    // Known again by the next edgecore, which finds the container with its first numbers in its annotations.
    let node = Node::start(site, node.end().await?)?;
    node.put("Pod", "grows", 3, cpu("50m", "100m")).await?;
    let status = node.until("grows", "less of the CPU", has("100m")).await?;
    check_quota(&id, "10000")?;
    ensure!(container(&status, "main")["restartCount"] == 0, "{status}");
    node.delete("Pod", "grows").await?;
    Ok(node)
}

/// Of the container and of its pod, which has no other.
fn check_quota(id: &str, expected: &str) -> Result<()> {
    let pod = std::path::Path::new("/sys/fs/cgroup/cpu/kubepods/burstable/podgrows-uid");
    for group in [pod.to_owned(), pod.join(id)] {
        let file = group.join("cpu.cfs_quota_us");
        let quota = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        ensure!(quota.trim() == expected, "{} has {quota}, not {expected}", file.display());
    }
    Ok(())
}

async fn anew(node: &Node) -> Result<()> {
    let memory = |limit: &str| {
        let mut pod = sized(&json!({"limits": {"cpu": "100m", "memory": limit}}));
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        pod["spec"]["containers"][0]["resizePolicy"] = policy;
        pod
    };
    node.put("Pod", "anew", 1, memory("32Mi")).await?;
    node.until("anew", "ready", is_ready).await?;
    node.put("Pod", "anew", 2, memory("48Mi")).await?;
    let status = node
        .until("anew", "started anew", |status| {
            container(status, "main")["restartCount"] == 1 && is_ready(status)
        })
        .await?;
    ensure!(container(&status, "main")["resources"]["limits"]["memory"] == "48Mi", "{status}");
    node.event("anew", "Killing", "Container main resize requires restart").await?;
    node.delete("Pod", "anew").await
}

async fn cannot(node: &Node) -> Result<()> {
    let full = |memory: &str, cpu: &str| {
        let script = "x=$(head -c 20000000 /dev/zero | tr '\\000' x)";
        let resources = json!({"requests": {"cpu": cpu}, "limits": {"memory": memory}});
        pod_of(sleeper_with(script), json!({"resources": resources}))
    };
    node.put("Pod", "full", 1, full("128Mi", "10m")).await?;
    let status = node.until("full", "ready", is_ready).await?;
    let before = id(&status, "main")?;
    node.put("Pod", "full", 2, full("128Mi", "1000")).await?;
    let status = node
        .until("full", "infeasible", |status| condition(status, "PodResizePending")["reason"] == "Infeasible")
        .await?;
    let message = condition(&status, "PodResizePending")["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("Node didn't have enough capacity: cpu, requested: 1000000, "), "{message}");
    ensure!(container(&status, "main")["resources"]["requests"]["cpu"] == "10m", "{status}");
    node.put("Pod", "full", 3, full("8Mi", "10m")).await?;
    let status = node
        .until("full", "in use", |status| condition(status, "PodResizeInProgress")["reason"] == "Error")
        .await?;
    ensure!(condition(&status, "PodResizePending").is_null(), "{status}");
    node.put("Pod", "full", 4, full("128Mi", "10m")).await?;
    let status =
        node.until("full", "as it was", |status| condition(status, "PodResizeInProgress").is_null()).await?;
    ensure!(id(&status, "main")? == before && is_ready(&status), "{status}");
    node.delete("Pod", "full").await
}

/// The shell stays, with what it has in its memory, and is ready once it has it.
fn sleeper_with(script: &str) -> Value {
    let mut shell = crate::node::shell(&format!("{script}; touch /tmp/has-it; while :; do sleep 1; done"));
    shell["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/has-it"]}, "periodSeconds": 1});
    shell
}
