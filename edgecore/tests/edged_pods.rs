//! edged against a real containerd: pods start, are adopted, follow their objects, and leave nothing behind.

#[path = "edged_pods/lifecycle.rs"]
mod lifecycle;
#[path = "edged_pods/lost_task.rs"]
mod lost_task;
#[path = "edged_pods/node.rs"]
mod node;
#[path = "edged_pods/pressure.rs"]
mod pressure;
#[path = "edged_pods/resize.rs"]
mod resize;
#[path = "edged_pods/surroundings.rs"]
mod surroundings;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use harness::{
    Bench, SiteOptions, bench,
    setup::{AGNHOST, AGNHOST_NEXT, BUSYBOX},
    wait,
};
use node::{Node, SOON, container, is_ready, open, read_log, sleeper};
use proto::message::ReportKind;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_live_and_die_as_their_objects_say() -> Result<()> {
    bench::run_without_product(async |bench| pods(bench).await).await
}

async fn pods(bench: &Bench) -> Result<()> {
    let site = bench.site(&SiteOptions::default()).await?;
    let node = Node::start(&site, open(site.dir())?)?;

    node.put("ConfigMap", "settings", 1, json!({"data": {"color": "red", "motto": "be brief"}})).await?;
    node.put("Secret", "key", 1, json!({"data": {"password": "aHVudGVyMg=="}})).await?;
    let web = web_pod(AGNHOST);
    node.put("Pod", "web", 1, web.clone()).await?;
    let status = node.until("web", "ready", is_ready).await?;
    let id = container(&status, "main")["containerID"].as_str().unwrap_or_default().to_owned();
    ensure!(id.starts_with("containerd://"), "{status}");
    ensure!(status["podIP"].is_string() && status["hostIP"] == json!(site.address().to_string()), "{status}");
    ensure!(status["qosClass"] == "Burstable", "{status}");
    ensure!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0, "{status}");
    let log = wait::until("the log's last line", SOON, async || {
        let log = read_log(&site, "web", "main", 0)?;
        if log.contains("red web") { Ok(log) } else { bail!("{log}") }
    })
    .await?;
    for expected in [
        "color=red",
        "secret=hunter2",
        "name=web",
        "memory=64",
        "data-1=dash",
        "file=be brief",
        "mine=web hosts",
    ] {
        ensure!(log.contains(expected), "{expected:?} is not in {log}");
    }

    let told = node.reports(ReportKind::Event, "web")?;
    let told: Vec<_> =
        told.iter().map(|event| [&event["type"], &event["reason"], &event["message"]]).collect();
    let present = |image: &str| format!("Container image \"{image}\" already present on machine");
    let expected = [present(BUSYBOX), present(AGNHOST)].map(|pulled| {
        [
            ["Normal", "Pulled", &pulled],
            ["Normal", "Created", "Container created"],
            ["Normal", "Started", "Container started"],
        ]
        .map(|event| event.map(Value::from))
    });
    ensure!(told == expected.as_flattened().iter().map(<[_; 3]>::each_ref).collect::<Vec<_>>(), "{told:?}");

    // edgecore goes and comes back: the same container.
    let node = Node::start(&site, node.end().await?)?;
    wait::until("adopted", SOON, async || {
        let status = node.status("web")?;
        if container(&status, "main")["containerID"] == json!(id) { Ok(()) } else { bail!("{status}") }
    })
    .await?;
    ensure!(container(&node.status("web")?, "main")["restartCount"] == 0);

    // A ConfigMap's change reaches the volume.
    node.put("ConfigMap", "settings", 2, json!({"data": {"color": "blue", "motto": "stay"}})).await?;
    let file = site.dir().join("pods/web-uid/volumes/settings/motto");
    wait::until("new content", Duration::from_secs(3), async || {
        let text = std::fs::read_to_string(&file)?;
        if text == "stay" { Ok(()) } else { bail!("{text}") }
    })
    .await?;

    // An image that is changed in place restarts the one container, and nothing else.
    node.put("Pod", "web", 2, web_pod(AGNHOST_NEXT)).await?;
    let status = node
        .until("web", "restarted", |status| {
            container(status, "main")["restartCount"] == 1 && is_ready(status)
        })
        .await?;
    ensure!(container(&status, "main")["lastState"]["terminated"].is_object(), "{status}");

    // A container that dies comes back by itself.
    let mut pod = json!({"spec": {"containers": [sleeper("true")]}});
    pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", "exit 3"]);
    node.put("Pod", "crash", 1, pod).await?;
    let status = node
        .until("crash", "CrashLoopBackOff", |status| {
            container(status, "main")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await?;
    ensure!(container(&status, "main")["restartCount"] == 1, "{status}");
    ensure!(container(&status, "main")["lastState"]["terminated"]["exitCode"] == 3, "{status}");

    // A job ends, once.
    let mut job = json!({"spec": {"restartPolicy": "Never", "containers": [sleeper("true")]}});
    job["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", "echo done > /dev/termination-log"]);
    node.put("Pod", "job", 1, job).await?;
    let status = node.until("job", "succeeded", |status| status["phase"] == "Succeeded").await?;
    ensure!(container(&status, "main")["state"]["terminated"]["message"] == "done\n", "{status}");

    // What cannot be done is said.
    let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": "x"}});
    let claimed = json!({"spec": {"containers": [sleeper("true")], "volumes": [claim]}});
    node.put("Pod", "claim", 1, claimed).await?;
    let status = node
        .until("claim", "unsupported", |status| {
            container(status, "main")["state"]["waiting"]["reason"] == "Unsupported"
        })
        .await?;
    let message = container(&status, "main")["state"]["waiting"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("persistentVolumeClaim"), "{message}");
    ensure!(!node.reports(ReportKind::Event, "claim")?.is_empty(), "no event");
    let mut missing = json!({"spec": {"containers": [sleeper("true")]}});
    missing["spec"]["containers"][0]["image"] = json!("skerry.test/nothing:1");
    missing["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    node.put("Pod", "missing", 1, missing).await?;
    node.until("missing", "ErrImageNeverPull", |status| {
        container(status, "main")["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    })
    .await?;

    // Deleted: ended, said, and then nothing is left.
    let mut dying = web_pod(AGNHOST_NEXT);
    dying["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1});
    node.put("Pod", "web", 3, dying).await?;
    wait::until("terminated", SOON, async || {
        ensure!(!node.reports(ReportKind::PodTerminated, "web")?.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    for name in ["web", "crash", "job", "claim", "missing"] {
        node.delete("Pod", name).await?;
    }
    wait::until("all gone", SOON, async || {
        let left = site.containers().await?;
        if !left.is_empty() {
            bail!("{left:?}")
        }
        for directory in ["pods", "logs/pods", "logs/containers"] {
            let left = std::fs::read_dir(site.dir().join(directory))?.count();
            ensure!(left == 0, "{left} entries in {directory}");
        }
        Ok(())
    })
    .await?;
    node.end().await?.close().await?;
    Ok(())
}

fn web_pod(image: &str) -> Value {
    let env = json!([
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "key", "key": "password"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "data-1", "value": "dash"},
        {"name": "BOTH", "value": "$(COLOR) $(NAME)"},
    ]);
    let script = "echo color=$COLOR secret=$SECRET name=$NAME memory=$MEMORY; env | grep data-1; \
        echo file=$(cat /settings/motto); grep -q web /etc/hosts && echo mine=$(hostname) hosts; echo $0; \
        trap 'exit 0' TERM; while true; do sleep 0.1; done";
    json!({"spec": {
        "initContainers": [{"name": "first", "image": BUSYBOX, "command": ["/bin/sh", "-c", "echo hi > /scratch/x"],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
        "containers": [{
            "name": "main", "image": image, "command": ["/bin/bash", "-c"], "args": [script, "$(BOTH)"], "env": env,
            "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m"}},
            "readinessProbe": {"exec": {"command": ["/bin/cat", "/scratch/x"]}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "settings", "mountPath": "/settings"}, {"name": "scratch", "mountPath": "/scratch"},
            ],
        }],
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}}, {"name": "scratch", "emptyDir": {}},
        ],
    }})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_brings_the_pods_back_with_no_cloud() -> Result<()> {
    bench::run_without_product(async |bench| power_cut(bench).await).await
}

async fn power_cut(bench: &Bench) -> Result<()> {
    let mut site = bench.site(&SiteOptions::default()).await?;
    let node = Node::start(&site, open(site.dir())?)?;
    let token = json!({"name": "token", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}, {"secret": {"name": "key"}},
    ]}});
    node.put("Secret", "key", 1, json!({"data": {"password": "aHVudGVyMg=="}})).await?;
    let mut pod = json!({"spec": {"containers": [sleeper("cat /token/token /token/password; echo")], "volumes": [token]}});
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "token", "mountPath": "/token"}]);
    let kept =
        json!({"token": "t0k3n", "obtained": "2020-01-01T00:00:00Z", "expires": "2020-01-01T01:00:00Z"});
    node.put("Pod", "late", 1, pod.clone()).await?;
    // After the pod, as its worker would: what is kept of a pod that is not there is swept away.
    node.store.put_local("token/late-uid/", Bytes::from(serde_json::to_vec(&kept)?)).await?;
    node.put("Pod", "early", 1, pod).await?;
    node.put(
        "Pod",
        "job",
        1,
        json!({"spec": {"restartPolicy": "Never", "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["/bin/true"]},
        ]}}),
    )
    .await?;
    node.until("job", "succeeded", |status| status["phase"] == "Succeeded").await?;
    // An expired token is better than none; a pod without any waits for the cloud.
    let before = node.until("late", "ready", is_ready).await?;
    let waiting = node
        .until("early", "waiting for its token", |status| {
            container(status, "main")["state"]["waiting"]["message"]
                .as_str()
                .is_some_and(|text| text.contains("token"))
        })
        .await?;
    ensure!(waiting["phase"] == "Pending", "{waiting}");

    let store = node.end().await?;
    site.power_off()?;
    site.power_on().await?;
    let node = Node::start(&site, store)?;
    let after = node
        .until("late", "back", |status| is_ready(status) && container(status, "main")["restartCount"] == 1)
        .await?;
    ensure!(after["startTime"] == before["startTime"], "{before} {after}");
    wait::until("the token in the log", SOON, async || {
        let log = read_log(&site, "late", "main", 1)?;
        if log.contains("t0k3nhunter2") { Ok(()) } else { bail!("{log}") }
    })
    .await?;
    let job = node.until("job", "still succeeded", |status| status["phase"] == "Succeeded").await?;
    ensure!(container(&job, "main")["restartCount"] == 0, "{job}");
    node.end().await?.close().await?;
    Ok(())
}
