//! A container's life: probes, hooks, the grace period, restarts, images that are not there.

use anyhow::{Result, bail, ensure};
use harness::{
    Bench, Site, SiteOptions, bench,
    pki::Authority,
    setup::{AGNHOST, BUSYBOX},
    wait,
};
use proto::message::ReportKind;
use serde_json::{Value, json};

use crate::node::{
    Node, SOON, address, condition, container, exec, id, is_ready, open, pod_of, shell, sleeper, waits_for,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_probed_hooked_restarted_and_ended_as_the_kubelet_does() -> Result<()> {
    bench::run_without_product(async |bench| lifecycle(bench).await).await
}

async fn lifecycle(bench: &Bench) -> Result<()> {
    let site = bench.site(&SiteOptions::default()).await?;
    let node = Node::start(&site, open(site.dir())?)?;
    // Those that take their time begin first.
    start_unstartable(&node).await?;
    liveness(&node).await?;
    startup_and_readiness(&site, &node).await?;
    hooks_and_grace(&site, &node).await?;
    other_probes(&site, &node).await?;
    ephemeral(&site, &node).await?;
    unsupported(&site, &node).await?;
    ends(&site, &node).await?;
    check_unstartable(&site, &node).await?;
    node.end().await?.close().await?;
    Ok(())
}

fn has_exited(status: &Value, code: i32) -> bool {
    container(status, "main")["lastState"]["terminated"]["exitCode"] == code
}

/// Runs until it is told to end, and then ends well.
const OBEDIENT: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

async fn liveness(node: &Node) -> Result<()> {
    let ready = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1});
    let dies = |probe: Value| json!({"livenessProbe": probe, "readinessProbe": ready});
    let exec = json!({"exec": {"command": ["/bin/sh", "-c", "echo no file; exit 7"]},
        "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 2});
    node.put("Pod", "live-exec", 1, pod_of(shell(OBEDIENT), dies(exec))).await?;
    let http = json!({"httpGet": {"path": "/no", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1});
    let server = shell(&format!("mkdir /www; httpd -p 8080 -h /www; {OBEDIENT}"));
    let mut pod = pod_of(server, dies(http));
    pod["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    node.put("Pod", "live-http", 1, pod).await?;
    let tcp = json!({"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1});
    node.put("Pod", "live-tcp", 1, pod_of(shell(OBEDIENT), dies(tcp))).await?;
    let slow = json!({"exec": {"command": ["/bin/sleep", "60"]}, "periodSeconds": 1, "failureThreshold": 1});
    node.put("Pod", "live-slow", 1, pod_of(shell(OBEDIENT), dies(slow))).await?;

    for (name, message) in [
        ("live-exec", "Liveness probe failed: no file"),
        ("live-http", "Liveness probe failed: HTTP probe failed with statuscode: 404"),
        ("live-tcp", "Liveness probe failed: "),
        ("live-slow", "Liveness probe failed: "),
    ] {
        let event = node.event(name, "Unhealthy", message).await?;
        ensure!(event["type"] == "Warning", "{event}");
        ensure!(event["involvedObject"]["fieldPath"] == "spec.containers{main}", "{event}");
        node.event(name, "Killing", "Container main failed liveness probe, will be restarted").await?;
        let status = node.until(name, "restarted", |status| has_exited(status, 0)).await?;
        ensure!(container(&status, "main")["restartCount"].as_i64() >= Some(1), "{status}");
        node.delete("Pod", name).await?;
    }
    Ok(())
}

async fn startup_and_readiness(site: &Site, node: &Node) -> Result<()> {
    let more = json!({
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60},
        // Would kill the container at once, if it did not wait for the startup probe.
        "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1},
    });
    let script = "mkdir /www; while [ ! -e /go ]; do sleep 0.1; done; httpd -f -p 8080 -h /www";
    node.put("Pod", "slow", 1, pod_of(shell(script), more)).await?;
    let status = node
        .until("slow", "running, not started", |status| {
            container(status, "main")["state"]["running"].is_object()
        })
        .await?;
    ensure!(container(&status, "main")["started"] == false, "{status}");
    ensure!(status["phase"] == "Running", "{status}");
    let ready = condition(&status, "Ready");
    ensure!(ready["status"] == "False" && ready["reason"] == "ContainersNotReady", "{status}");
    ensure!(ready["message"] == "containers with unready status: [main]", "{status}");
    for (name, value) in
        [("PodReadyToStartContainers", "True"), ("Initialized", "True"), ("ContainersReady", "False")]
    {
        ensure!(condition(&status, name)["status"] == value, "{name} is not {value}: {status}");
    }
    let id = id(&status, "main")?;

    exec(site, &id, "touch /go").await?;
    let started = |status: &Value| container(status, "main")["started"] == true;
    let status = node.until("slow", "started, not ready", started).await?;
    ensure!(container(&status, "main")["ready"] == false, "{status}");
    node.event("slow", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404").await?;
    exec(site, &id, "touch /www/ready").await?;
    let status = node.until("slow", "ready", is_ready).await?;
    ensure!(condition(&status, "ContainersReady")["status"] == "True", "{status}");
    exec(site, &id, "rm /www/ready").await?;
    node.until("slow", "not ready again", |status| !is_ready(status)).await?;
    exec(site, &id, "touch /www/ready").await?;
    let status = node.until("slow", "ready again", is_ready).await?;
    ensure!(container(&status, "main")["restartCount"] == 0, "{status}");
    ensure!(container(&status, "main")["containerID"] == format!("containerd://{id}"), "{status}");
    node.delete("Pod", "slow").await
}

async fn hooks_and_grace(site: &Site, node: &Node) -> Result<()> {
    let told = site.dir().join("told");
    std::fs::create_dir_all(&told)?;
    let volume = json!([{"name": "told", "hostPath": {"path": told}}]);
    let mounts = json!([{"name": "told", "mountPath": "/told"}]);
    let say = |file: &str, word: &str| json!({"exec": {"command": ["/bin/sh", "-c", format!("sleep 1; echo {word} >> /told/{file}")]}});

    // The hook comes first, then the signal; the whole grace period is there for both.
    let script = "trap 'sleep 1; echo signal >> /told/order; exit 0' TERM; while :; do sleep 0.1; done";
    let mut pod = pod_of(
        shell(script),
        json!({"volumeMounts": mounts, "lifecycle": {
            "preStop": say("order", "preStop"), "postStart": say("order", "postStart"),
        }}),
    );
    pod["spec"]["volumes"] = volume.clone();
    pod["spec"]["terminationGracePeriodSeconds"] = json!(60);
    node.put("Pod", "hooked", 1, pod.clone()).await?;
    node.until("hooked", "ready", is_ready).await?;
    node.stop_pod("hooked", 2, pod, 60).await?;
    let order = std::fs::read_to_string(told.join("order"))?;
    ensure!(order == "postStart\npreStop\nsignal\n", "{order:?}");
    let status = node.status("hooked")?;
    ensure!(container(&status, "main")["state"]["terminated"]["exitCode"] == 0, "{status}");
    ensure!(status["phase"] == "Succeeded", "{status}");
    node.event("hooked", "Killing", "Stopping container main").await?;

    // Who does not listen is killed at the end of it, hook or not.
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["/bin/sleep", "60"]}}}});
    let pod = pod_of(shell(deaf), hook);
    node.put("Pod", "deaf", 1, pod.clone()).await?;
    node.until("deaf", "ready", is_ready).await?;
    let began = std::time::SystemTime::now();
    node.stop_pod("deaf", 2, pod, 3).await?;
    let took = began.elapsed()?.as_secs();
    ensure!((3..30).contains(&took), "killed after {took} s");
    let status = node.status("deaf")?;
    ensure!(container(&status, "main")["state"]["terminated"]["exitCode"] == 137, "{status}");
    ensure!(status["phase"] == "Failed", "{status}");
    node.event("deaf", "FailedPreStopHook", "PreStopHook failed").await?;

    // A container whose hook fails has not started.
    let hook =
        json!({"lifecycle": {"postStart": {"exec": {"command": ["/bin/sh", "-c", "echo secret; exit 1"]}}}});
    node.put("Pod", "unhooked", 1, pod_of(shell(OBEDIENT), hook)).await?;
    node.event("unhooked", "FailedPostStartHook", "PostStartHook failed").await?;
    let status = node.until("unhooked", "refused", |status| waits_for(status, "PostStartHookError")).await?;
    ensure!(status["phase"] != "Running" || !is_ready(&status), "{status}");
    node.until("unhooked", "tried again", |status| {
        container(status, "main")["restartCount"].as_i64() >= Some(1)
    })
    .await?;
    for name in ["hooked", "deaf", "unhooked"] {
        node.delete("Pod", name).await?;
    }
    Ok(())
}

/// HTTPS with a certificate that nobody knows, and gRPC's health service.
async fn other_probes(site: &Site, node: &Node) -> Result<()> {
    let tls = site.dir().join("tls");
    std::fs::create_dir_all(&tls)?;
    let certificate = Authority::create(&tls)?.server("probed", &["probed"], &[])?;
    let file = |path: &std::path::Path| format!("/tls/{}", path.file_name().unwrap_or_default().display());
    let args = json!([
        "netexec",
        "--http-port=8443",
        "--udp-port=-1",
        format!("--tls-cert-file={}", file(&certificate.cert)),
        format!("--tls-private-key-file={}", file(&certificate.key))
    ]);
    let get = json!({"path": "/hostname", "port": 8443, "scheme": "HTTPS"});
    let server = json!({"name": "main", "image": AGNHOST, "args": args,
        "readinessProbe": {"httpGet": get, "periodSeconds": 1},
        "lifecycle": {"postStart": {"sleep": {"seconds": 1}}},
        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}]});
    let mut pod = pod_of(server, json!({}));
    merge_spec(&mut pod, json!({"volumes": [{"name": "tls", "hostPath": {"path": tls}}]}));
    node.put("Pod", "https", 1, pod).await?;
    let server = json!({"name": "main", "image": AGNHOST,
        "args": ["grpc-health-checking", "--port=5000", "--http-port=8080", "--service=eyes"],
        "readinessProbe": {"grpc": {"port": 5000, "service": "eyes"}, "periodSeconds": 1, "failureThreshold": 1}});
    node.put("Pod", "grpc", 1, pod_of(server, json!({}))).await?;

    node.until("https", "ready", is_ready).await?;
    let status = node.until("grpc", "ready", is_ready).await?;
    site.http_get(address(&status, 8080)?, "/make-not-serving").await?;
    node.until("grpc", "not ready", |status| !is_ready(status)).await?;
    let message = "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")";
    node.event("grpc", "Unhealthy", message).await?;
    for name in ["https", "grpc"] {
        node.delete("Pod", name).await?;
    }
    Ok(())
}

/// As `kubectl debug` puts it beside a container that runs.
async fn ephemeral(site: &Site, node: &Node) -> Result<()> {
    let mut pod = pod_of(shell("marker=1; trap 'exit 0' TERM; while :; do sleep 0.1; done"), json!({}));
    node.put("Pod", "debugged", 1, pod.clone()).await?;
    let before = node.until("debugged", "ready", is_ready).await?;
    merge_spec(
        &mut pod,
        json!({"ephemeralContainers": [
            {"name": "look", "image": BUSYBOX, "targetContainerName": "main", "command": ["/bin/sleep", "100000"]},
            {"name": "once", "image": BUSYBOX, "command": ["/bin/sh", "-c", "exit 6"]},
        ]}),
    );
    node.put("Pod", "debugged", 2, pod).await?;
    let status = node
        .until("debugged", "looked at", |status| {
            let of = &status["ephemeralContainerStatuses"];
            of[0]["state"]["running"].is_object() && of[1]["state"]["terminated"]["exitCode"] == 6
        })
        .await?;
    ensure!(id(&status, "main")? == id(&before, "main")? && is_ready(&status), "{status}");
    let look = status["ephemeralContainerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let look = look.trim_start_matches("containerd://");
    let first = exec(site, look, "cat /proc/1/cmdline").await?;
    ensure!(first.contains("marker=1"), "{first:?}");
    node.delete("Pod", "debugged").await
}

/// What cannot be done is said, with the field's name, and nothing of the pod is started.
async fn unsupported(site: &Site, node: &Node) -> Result<()> {
    let cases = [
        ("spec.hostUsers", json!({"hostUsers": false})),
        ("spec.setHostnameAsFQDN", json!({"setHostnameAsFQDN": true})),
        (
            "spec.volumes[0].iscsi",
            json!({"volumes": [{"name": "v", "iscsi": {"iqn": "x", "lun": 0, "targetPortal": "y"}}]}),
        ),
        (
            "spec.volumes[0].persistentVolumeClaim",
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]}),
        ),
        (
            "spec.securityContext.seLinuxOptions",
            json!({"securityContext": {"seLinuxOptions": {"level": "s0"}}}),
        ),
    ];
    for (index, (_, more)) in cases.iter().enumerate() {
        let mut pod = pod_of(sleeper("true"), json!({}));
        merge_spec(&mut pod, more.clone());
        node.put("Pod", &format!("odd-{index}"), 1, pod).await?;
    }
    for (index, (field, _)) in cases.iter().enumerate() {
        let name = format!("odd-{index}");
        let status = node.until(&name, "refused", |status| waits_for(status, "Unsupported")).await?;
        let message = &container(&status, "main")["state"]["waiting"]["message"];
        ensure!(message.as_str().is_some_and(|text| text.contains(field)), "{field}: {status}");
        ensure!(status["phase"] == "Pending", "{status}");
        node.event(&name, "Unsupported", field).await?;
        let started = site.containers().await?.iter().any(|container| container.pod == name);
        ensure!(!started, "something of {name} runs");
        node.delete("Pod", &name).await?;
    }
    Ok(())
}

async fn ends(site: &Site, node: &Node) -> Result<()> {
    // Fails once, then succeeds; the file outlives the container.
    let script = "[ -e /kept/x ] && exit 0; touch /kept/x; exit 4";
    let mut pod = pod_of(shell(script), json!({"volumeMounts": [{"name": "kept", "mountPath": "/kept"}]}));
    merge_spec(
        &mut pod,
        json!({"restartPolicy": "OnFailure", "volumes": [{"name": "kept", "emptyDir": {}}]}),
    );
    node.put("Pod", "second", 1, pod).await?;
    let mut pod = pod_of(sleeper("true"), json!({}));
    merge_spec(&mut pod, json!({"activeDeadlineSeconds": 2}));
    node.put("Pod", "late", 1, pod).await?;
    let fill = "mkdir /small/x; head -c 3000000 /dev/zero > /small/x/y";
    let mounts = json!({"volumeMounts": [{"name": "small", "mountPath": "/small"}]});
    let mut pod = pod_of(sleeper(fill), mounts);
    merge_spec(&mut pod, json!({"volumes": [{"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}]}));
    node.put("Pod", "greedy", 1, pod).await?;
    let storage = |limit: &str| json!({"resources": {"limits": {"ephemeral-storage": limit}}});
    node.put("Pod", "wasteful", 1, pod_of(sleeper("head -c 9000000 /dev/zero > /big"), storage("2Mi")))
        .await?;
    let mut pod = pod_of(shell("exit 0"), json!({}));
    merge_spec(
        &mut pod,
        json!({"restartPolicy": "Never", "initContainers": [
            {"name": "side", "image": BUSYBOX, "restartPolicy": "Always", "command": ["/bin/sh", "-c", OBEDIENT]},
        ]}),
    );
    node.put("Pod", "with-sidecar", 1, pod).await?;
    let mut pod = pod_of(shell("exit 0"), json!({}));
    merge_spec(
        &mut pod,
        json!({"restartPolicy": "Never", "initContainers": [
            {"name": "first", "image": BUSYBOX, "command": ["/bin/sh", "-c", "exit 5"]},
        ]}),
    );
    node.put("Pod", "bad-init", 1, pod).await?;

    let status = node.until("second", "succeeded", |status| status["phase"] == "Succeeded").await?;
    let main = container(&status, "main");
    ensure!(main["restartCount"] == 1 && main["state"]["terminated"]["reason"] == "Completed", "{status}");
    ensure!(has_exited(&status, 4), "{status}");
    // Where it was is known; what it used is free again, and how it ended is not forgotten.
    ensure!(status["podIP"].as_str().is_some_and(|ip| status["podIPs"][0]["ip"] == ip), "{status}");
    let directory = site.dir().join("pods/second-uid");
    wait::until("the volumes of a pod that has ended gone", SOON, async || {
        ensure!(!directory.join("volumes").exists() && directory.join("containers").exists(), "not yet");
        Ok(())
    })
    .await?;
    for name in ["Ready", "ContainersReady"] {
        let condition = condition(&status, name);
        ensure!(condition["status"] == "False" && condition["reason"] == "PodCompleted", "{status}");
    }
    let status = node.until("late", "failed", |status| status["phase"] == "Failed").await?;
    ensure!(status["reason"] == "DeadlineExceeded", "{status}");
    let status = node.until("greedy", "evicted", |status| status["phase"] == "Failed").await?;
    ensure!(status["reason"] == "Evicted", "{status}");
    let message = "Usage of EmptyDir volume \"small\" exceeds the limit \"1Mi\". ";
    ensure!(status["message"] == message, "{status}");
    node.event("greedy", "Evicted", message).await?;
    let status = node.until("wasteful", "evicted", |status| status["phase"] == "Failed").await?;
    let message = "Container main exceeded its local ephemeral storage limit \"2Mi\". ";
    ensure!(status["reason"] == "Evicted" && status["message"] == message, "{status}");
    let status = node.until("with-sidecar", "succeeded", |status| status["phase"] == "Succeeded").await?;
    ensure!(status["initContainerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
    let status = node.until("bad-init", "failed", |status| status["phase"] == "Failed").await?;
    ensure!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 5, "{status}");
    ensure!(waits_for(&status, "PodInitializing"), "{status}");
    ensure!(condition(&status, "Initialized")["reason"] == "ContainersNotInitialized", "{status}");
    for name in ["second", "late", "greedy", "wasteful", "with-sidecar", "bad-init"] {
        node.delete("Pod", name).await?;
    }
    Ok(())
}

fn merge_spec(pod: &mut Value, more: Value) {
    crate::node::merge(&mut pod["spec"], more);
}

/// Pods that never start, and whose words take a while.
async fn start_unstartable(node: &Node) -> Result<()> {
    // Nobody listens there.
    let image = json!({"image": "127.0.0.1:1/nothing/here:1"});
    node.put("Pod", "no-image", 1, pod_of(sleeper("true"), image)).await?;
    let image = json!({"image": "Not/A Name"});
    node.put("Pod", "bad-image", 1, pod_of(sleeper("true"), image)).await?;
    let env =
        json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "x"}}}]});
    node.put("Pod", "no-config", 1, pod_of(sleeper("true"), env)).await?;
    let command = json!({"command": ["/no/such/program"]});
    node.put("Pod", "no-program", 1, pod_of(sleeper("true"), command)).await?;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let mut pod = pod_of(sleeper("true"), mounts);
    pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "absent"}}]);
    node.put("Pod", "no-secret", 1, pod).await
}

async fn check_unstartable(site: &Site, node: &Node) -> Result<()> {
    let status =
        node.until("no-image", "backing off", |status| waits_for(status, "ImagePullBackOff")).await?;
    ensure!(status["phase"] == "Pending", "{status}");
    ensure!(container(&status, "main")["image"] == "127.0.0.1:1/nothing/here:1", "{status}");
    node.event("no-image", "Failed", "Failed to pull image \"127.0.0.1:1/nothing/here:1\": ").await?;
    node.event("no-image", "Failed", "Error: ErrImagePull").await?;
    node.event("no-image", "BackOff", "Back-off pulling image \"127.0.0.1:1/nothing/here:1\"").await?;

    node.until("bad-image", "refused", |status| waits_for(status, "InvalidImageName")).await?;
    node.event("bad-image", "InspectFailed", "Failed to apply default image tag").await?;

    let reason = "CreateContainerConfigError";
    let status = node.until("no-config", "waiting", |status| waits_for(status, reason)).await?;
    let message = &container(&status, "main")["state"]["waiting"]["message"];
    ensure!(message == "configmap \"absent\" not found", "{status}");
    node.event("no-config", "Failed", "Error: configmap \"absent\" not found").await?;
    node.put("ConfigMap", "absent", 1, json!({"data": {"x": "y"}})).await?;
    node.until("no-config", "running", is_ready).await?;

    let status = node
        .until("no-program", "refused", |status| {
            has_exited(status, 128)
                || waits_for(status, "RunContainerError")
                || waits_for(status, "CrashLoopBackOff")
        })
        .await?;
    ensure!(!is_ready(&status), "{status}");
    node.event("no-program", "Failed", "Error: ").await?;

    let status = node.until("no-secret", "waiting", |status| waits_for(status, "ContainerCreating")).await?;
    ensure!(status["phase"] == "Pending", "{status}");
    let event = node.event("no-secret", "FailedMount", "secret \"absent\" not found").await?;
    let message = event["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("MountVolume.SetUp failed for volume \"v\" : "), "{message}");
    node.put("Secret", "absent", 1, json!({"data": {}})).await?;
    node.until("no-secret", "running", is_ready).await?;

    // The same thing is told once.
    let events = node.reports(ReportKind::Event, "no-image")?;
    let back_offs = events.iter().filter(|event| event["reason"] == "BackOff").count();
    ensure!(back_offs == 1, "{back_offs} BackOff events");
    for name in ["no-image", "bad-image", "no-config", "no-program", "no-secret"] {
        node.delete("Pod", name).await?;
    }
    wait::until("all gone", SOON, async || {
        let left = std::fs::read_dir(site.dir().join("pods"))?.count();
        if left > 0 {
            bail!("{left} pods are left")
        }
        Ok(())
    })
    .await?;
    Ok(())
}
