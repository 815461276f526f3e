//! What edgecore reports: statuses and events, their fields in alphabetical order.

use crate::{
    json::{array, map, object, text, texts, when},
    objects::Sample,
    pods::pod,
    random::Random,
};

pub(crate) fn pod_status(random: &mut Random) -> Sample {
    let pod = pod(random);
    let started = random.time();
    let (phase, ready) = match random.below(10) {
        0..=6 => ("Running", true),
        7 => ("Running", false),
        8 => ("Pending", false),
        _ => (random.pick(&["Succeeded", "Failed"]), false),
    };
    let count = random.between(1, 2);
    let names: Vec<String> = (0..count).map(|_| random.name()).collect();
    let containers: Vec<String> =
        names.iter().map(|name| container_status(random, name, phase, ready, &started)).collect();
    let inits = if random.percent(20) {
        let name = random.name();
        array(&[container_status(random, &format!("init-{name}"), "Succeeded", true, &started)])
    } else {
        String::new()
    };
    let (ip, host) = (random.ip(), random.ip());
    let has_ip = phase != "Pending" || random.percent(50);
    let status = object([
        ("conditions", conditions(random, phase, ready, &names, &started)),
        ("containerStatuses", array(&containers)),
        ("hostIP", text(&host)),
        ("hostIPs", format!(r#"[{{"ip":"{host}"}}]"#)),
        ("initContainerStatuses", inits),
        ("observedGeneration", "1".to_owned()),
        ("phase", text(phase)),
        ("podIP", when(has_ip, text(&ip))),
        ("podIPs", when(has_ip, format!(r#"[{{"ip":"{ip}"}}]"#))),
        ("qosClass", text(random.pick(&["BestEffort", "Burstable", "Guaranteed"]))),
        ("startTime", text(&started)),
    ]);
    let json = object([("status", status), ("uid", text(&random.uid()))]);
    Sample { key: format!("Pod/{}/{}", pod.namespace, pod.name), json }
}

fn conditions(random: &mut Random, phase: &str, ready: bool, names: &[String], started: &str) -> String {
    let reason = match phase {
        "Succeeded" => "PodCompleted",
        "Failed" => "PodFailed",
        _ => "ContainersNotReady",
    };
    let unready = format!("containers with unready status: [{}]", names.join(" "));
    let since = if random.percent(50) { random.time() } else { started.to_owned() };
    let has_sandbox = phase == "Running" || random.percent(50);
    let all = [
        ("PodReadyToStartContainers", has_sandbox),
        ("Initialized", true),
        ("Ready", ready),
        ("ContainersReady", ready),
    ];
    let all = all.map(|(kind, holds)| {
        let why = !holds && kind.ends_with("Ready");
        object([
            ("lastTransitionTime", text(if holds { started } else { &since })),
            ("message", when(why && reason == "ContainersNotReady", text(&unready))),
            ("observedGeneration", "1".to_owned()),
            ("reason", when(why, text(reason))),
            ("status", text(if holds { "True" } else { "False" })),
            ("type", text(kind)),
        ])
    });
    array(&all)
}

fn container_status(random: &mut Random, name: &str, phase: &str, ready: bool, started: &str) -> String {
    let id = format!("containerd://{}", random.hex(64));
    let terminated = |random: &mut Random| {
        let (code, reason) = match random.below(5) {
            0..=1 => ("0", "Completed"),
            2 => ("137", "OOMKilled"),
            _ => (random.pick(&["1", "2", "137", "143", "255"]), "Error"),
        };
        let end = object([
            ("containerID", text(&id)),
            ("exitCode", code.to_owned()),
            ("finishedAt", text(&random.time())),
            ("reason", text(reason)),
            ("startedAt", text(started)),
        ]);
        object([("terminated", end)])
    };
    let waiting = |random: &mut Random| {
        let reason = random.pick(&[
            "ContainerCreating",
            "PodInitializing",
            "CrashLoopBackOff",
            "ImagePullBackOff",
            "ErrImagePull",
        ]);
        let message = match reason {
            "CrashLoopBackOff" => {
                let delay = random.pick(&["10", "20", "40", "80", "160", "300"]);
                format!(
                    "back-off {delay}s restarting failed container={name} pod={name}_default({})",
                    random.uid()
                )
            }
            "ImagePullBackOff" => format!("Back-off pulling image \"{}\"", random.image()),
            _ => String::new(),
        };
        let message = when(!message.is_empty(), text(&message));
        object([("waiting", object([("message", message), ("reason", text(reason))]))])
    };
    let state = match phase {
        "Running" if ready || random.percent(30) => {
            object([("running", object([("startedAt", text(started))]))])
        }
        "Pending" | "Running" => waiting(random),
        _ => terminated(random),
    };
    let restarted = random.percent(25);
    let resources = match random.below(3) {
        0 => "{}".to_owned(),
        1 => r#"{"requests":{"cpu":"100m","memory":"128Mi"}}"#.to_owned(),
        _ => {
            let cpu = random.pick(&["10m", "50m", "100m", "200m", "500m", "1"]);
            let memory = random.pick(&["32Mi", "64Mi", "128Mi", "256Mi", "512Mi", "1Gi"]);
            format!(
                r#"{{"limits":{{"memory":"{memory}"}},"requests":{{"cpu":"{cpu}","memory":"{memory}"}}}}"#
            )
        }
    };
    let mut mounts = Vec::new();
    for _ in 0..random.below(3) {
        let name = format!("{}-{}", random.word(), random.pick(&["config", "data"]));
        mounts.push(object([("mountPath", text(&format!("/etc/{name}"))), ("name", text(&name))]));
    }
    mounts.push(object([
        ("mountPath", text("/var/run/secrets/kubernetes.io/serviceaccount")),
        ("name", text(&format!("kube-api-access-{}", random.suffix(5)))),
        ("readOnly", "true".to_owned()),
        ("recursiveReadOnly", text("Disabled")),
    ]));
    let running = state.starts_with(r#"{"running""#);
    object([
        ("allocatedResources", when(random.percent(50), r#"{"cpu":"100m","memory":"128Mi"}"#)),
        ("containerID", when(phase != "Pending", text(&id))),
        ("image", text(&random.image())),
        ("imageID", when(phase != "Pending", text(&format!("sha256:{}", random.hex(64))))),
        ("lastState", when(restarted, terminated(random))),
        ("name", text(name)),
        ("ready", ready.to_string()),
        ("resources", resources),
        ("restartCount", if restarted { random.between(1, 30).to_string() } else { "0".to_owned() }),
        ("started", running.to_string()),
        ("state", state),
        ("volumeMounts", array(&mounts)),
    ])
}

pub(crate) fn pod_terminated(random: &mut Random) -> Sample {
    let pod = pod(random);
    Sample {
        key: format!("Pod/{}/{}", pod.namespace, pod.name),
        json: object([("uid", text(&random.uid()))]),
    }
}

pub(crate) fn event(random: &mut Random) -> Sample {
    let pod = pod(random);
    let (node, time, container, image) = (random.node(), random.time(), random.name(), random.image());
    let milliseconds = format!("{}.{}ms", random.between(100, 9999), random.below(999));
    let (kind, reason, message) = match random.below(12) {
        0 => ("Normal", "Pulling", format!("Pulling image \"{image}\"")),
        1 => (
            "Normal",
            "Pulled",
            format!(
                "Successfully pulled image \"{image}\" in {milliseconds}. Image size: {} bytes.",
                random.below(1 << 28)
            ),
        ),
        2 => ("Normal", "Pulled", format!("Container image \"{image}\" already present on machine")),
        3 => ("Normal", "Created", "Container created".to_owned()),
        4 => ("Normal", "Started", "Container started".to_owned()),
        5 => ("Normal", "Killing", format!("Stopping container {container}")),
        6 => {
            let probe = random.pick(&["Readiness", "Liveness", "Startup"]);
            let code = random.pick(&["500", "503", "404"]);
            (
                "Warning",
                "Unhealthy",
                format!("{probe} probe failed: HTTP probe failed with statuscode: {code}"),
            )
        }
        7 => {
            let (ip, port) = (random.ip(), random.between(80, 9999));
            let probe = random.pick(&["Readiness", "Liveness"]);
            let why = format!("{probe} probe failed: dial tcp {ip}:{port}: connect: connection refused");
            ("Warning", "Unhealthy", why)
        }
        8 => (
            "Warning",
            "BackOff",
            format!("Back-off restarting failed container {container} in pod {}", pod.name),
        ),
        9 => ("Warning", "Failed", format!("Failed to pull image \"{image}\": failed to resolve reference")),
        10 => ("Normal", "BackOff", format!("Back-off pulling image \"{image}\"")),
        _ => {
            ("Warning", "FailedMount", format!("ConfigMap {}/{container}-config is not here", pod.namespace))
        }
    };
    let involved = object([
        ("apiVersion", text("v1")),
        ("fieldPath", text(&format!("spec.containers{{{container}}}"))),
        ("kind", text("Pod")),
        ("name", text(&pod.name)),
        ("namespace", text(&pod.namespace)),
        ("uid", text(&random.uid())),
    ]);
    let json = object([
        ("apiVersion", text("v1")),
        ("kind", text("Event")),
        ("count", "1".to_owned()),
        ("firstTimestamp", text(&time)),
        ("involvedObject", involved),
        ("lastTimestamp", text(&time)),
        ("message", text(&message)),
        (
            "metadata",
            object([
                ("name", text(&format!("{}.18{}", pod.name, random.hex(14)))),
                ("namespace", text(&pod.namespace)),
            ]),
        ),
        ("reason", text(reason)),
        ("reportingComponent", text("edged")),
        ("reportingInstance", text(&node)),
        ("source", object([("component", text("edged")), ("host", text(&node))])),
        ("type", text(kind)),
    ]);
    Sample { key: format!("Pod/{}/{}", pod.namespace, pod.name), json }
}

pub(crate) fn node_status(random: &mut Random) -> Sample {
    let node = random.node();
    let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let arch = random.pick(&["amd64", "arm64", "arm"]);
    let labels = vec![
        entry("kubernetes.io/arch", arch),
        entry("kubernetes.io/hostname", &node),
        entry("kubernetes.io/os", "linux"),
        entry("node-role.kubernetes.io/edge", ""),
    ];
    let metadata = object([("labels", map(labels)), ("name", text(&node))]);
    let amounts = object([
        ("cpu", text(random.pick(&["1", "2", "4", "8", "16"]))),
        ("ephemeral-storage", text(&format!("{}Ki", random.between(1 << 23, 1 << 28)))),
        ("memory", text(&format!("{}Ki", random.between(1 << 19, 1 << 25)))),
        ("pods", text("110")),
    ]);
    let (beat, since) = (random.time(), random.time());
    let pressure = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "memory"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "disk space"),
        ("PIDPressure", "KubeletHasSufficientPID", "process ids"),
    ];
    let mut conditions: Vec<String> = pressure
        .map(|(kind, reason, what)| {
            let message = format!("the node has sufficient {what}");
            condition(&beat, &since, &message, reason, "False", kind)
        })
        .to_vec();
    conditions.push(condition(
        &beat,
        &since,
        "edged is posting ready status",
        "KubeletReady",
        "True",
        "Ready",
    ));
    let images: Vec<String> = (0..random.below(12))
        .map(|_| {
            let image = random.image();
            let name = image.split(':').next().unwrap_or_default();
            let names = [format!("{name}@sha256:{}", random.hex(64)), image.clone()];
            object([("names", texts(&names)), ("sizeBytes", random.between(1 << 20, 1 << 29).to_string())])
        })
        .collect();
    let system = random.pick(&[
        "Ubuntu 24.04.3 LTS",
        "Ubuntu 22.04.5 LTS",
        "Debian GNU/Linux 12 (bookworm)",
        "Debian GNU/Linux 13 (trixie)",
        "Alpine Linux v3.22",
    ]);
    let info = object([
        ("architecture", text(arch)),
        ("bootID", text(&random.uid())),
        (
            "containerRuntimeVersion",
            text(&format!("containerd://{}.{}.{}", random.between(1, 2), random.below(8), random.below(30))),
        ),
        ("kernelVersion", text(&format!("6.{}.0-{}-generic", random.between(1, 18), random.below(100)))),
        ("kubeProxyVersion", text("")),
        ("kubeletVersion", text("v1.37.2-skerry-v0.1.0")),
        ("machineID", text(&random.hex(32))),
        ("operatingSystem", text("linux")),
        ("osImage", text(system)),
        ("systemUUID", text(&random.uid())),
    ]);
    let address = random.ip();
    let addresses = format!(
        r#"[{{"address":"{address}","type":"InternalIP"}},{{"address":"{node}","type":"Hostname"}}]"#
    );
    let status = object([
        ("addresses", addresses),
        ("allocatable", amounts.clone()),
        ("capacity", amounts),
        ("conditions", array(&conditions)),
        ("images", format!("[{}]", images.join(","))),
        ("nodeInfo", info),
    ]);
    let json = object([
        ("apiVersion", text("v1")),
        ("kind", text("Node")),
        ("metadata", metadata),
        ("spec", "{}".to_owned()),
        ("status", status),
    ]);
    Sample { key: format!("Node//{node}"), json }
}

fn condition(beat: &str, since: &str, message: &str, reason: &str, status: &str, kind: &str) -> String {
    object([
        ("lastHeartbeatTime", text(beat)),
        ("lastTransitionTime", text(since)),
        ("message", text(message)),
        ("reason", text(reason)),
        ("status", text(status)),
        ("type", text(kind)),
    ])
}
