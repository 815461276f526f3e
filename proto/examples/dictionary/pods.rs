//! Pods as the API server completes them and cloudcore cuts them.

use crate::{
    json::{array, map, object, text, texts, when},
    random::Random,
};

/// What a pod is made by; it decides names and labels.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
    Nobody,
}

pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) json: String,
}

pub(crate) fn pod(random: &mut Random) -> Pod {
    let app = random.name();
    let owner = match random.below(20) {
        0..=10 => Owner::Deployment,
        11..=12 => Owner::StatefulSet,
        13..=15 => Owner::DaemonSet,
        16..=17 => Owner::Job,
        _ => Owner::Nobody,
    };
    let hash = random.suffix(10);
    let set = match owner {
        Owner::Deployment => format!("{app}-{hash}"),
        Owner::Job => format!("{app}-{}", random.between(29_000_000, 31_000_000)),
        _ => app.clone(),
    };
    let name = match owner {
        Owner::StatefulSet => format!("{app}-{}", random.below(3)),
        Owner::Nobody => app.clone(),
        _ => format!("{set}-{}", random.suffix(5)),
    };
    let namespace = random.namespace();
    let json = object([
        ("apiVersion", text("v1")),
        ("kind", text("Pod")),
        ("metadata", metadata(random, owner, &app, &set, &hash, &name, &namespace)),
        ("spec", spec(random, owner, &app, &name)),
    ]);
    Pod { name, namespace, json }
}

fn metadata(
    random: &mut Random,
    owner: Owner,
    app: &str,
    set: &str,
    hash: &str,
    name: &str,
    namespace: &str,
) -> String {
    let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut labels = Vec::new();
    if random.percent(55) {
        labels.push(entry("app", app));
    } else {
        labels.push(entry("app.kubernetes.io/name", app));
        labels.push(entry("app.kubernetes.io/instance", app));
        if random.percent(50) {
            labels.push(entry("app.kubernetes.io/managed-by", "Helm"));
            labels.push(entry("app.kubernetes.io/component", random.word()));
            labels.push(entry(
                "app.kubernetes.io/version",
                &format!("{}.{}", random.below(9), random.below(30)),
            ));
            labels.push(entry("helm.sh/chart", &format!("{app}-{}.{}.0", random.below(9), random.below(30))));
        }
    }
    if random.percent(20) {
        labels.push(entry("tier", random.pick(&["frontend", "backend", "edge"])));
    }
    let mut annotations = Vec::new();
    match owner {
        Owner::Deployment => labels.push(entry("pod-template-hash", hash)),
        Owner::StatefulSet => {
            labels.push(entry("apps.kubernetes.io/pod-index", "0"));
            labels.push(entry("controller-revision-hash", &format!("{app}-{hash}")));
            labels.push(entry("statefulset.kubernetes.io/pod-name", name));
        }
        Owner::DaemonSet => {
            labels.push(entry("controller-revision-hash", hash));
            labels.push(entry("pod-template-generation", &random.between(1, 9).to_string()));
        }
        Owner::Job => {
            let uid = random.uid();
            labels.push(entry("batch.kubernetes.io/controller-uid", &uid));
            labels.push(entry("batch.kubernetes.io/job-name", set));
            labels.push(entry("controller-uid", &uid));
            labels.push(entry("job-name", set));
        }
        Owner::Nobody => {}
    }
    if owner != Owner::DaemonSet {
        annotations.push(entry("skerry.io/toleration-seconds", "not-ready=300,unreachable=300"));
    }
    if random.percent(15) {
        annotations.push(entry("kubectl.kubernetes.io/restartedAt", &random.time()));
    }
    if random.percent(15) {
        annotations.push(entry("prometheus.io/scrape", "true"));
        annotations.push(entry("prometheus.io/port", &random.between(8000, 9999).to_string()));
        annotations.push(entry("prometheus.io/path", "/metrics"));
    }
    if random.percent(15) {
        annotations.push(entry("checksum/config", &random.hex(64)));
    }
    let (api, kind) = match owner {
        Owner::Deployment => ("apps/v1", "ReplicaSet"),
        Owner::StatefulSet => ("apps/v1", "StatefulSet"),
        Owner::DaemonSet => ("apps/v1", "DaemonSet"),
        Owner::Job => ("batch/v1", "Job"),
        Owner::Nobody => ("", ""),
    };
    let reference = object([
        ("apiVersion", text(api)),
        ("kind", text(kind)),
        ("name", text(set)),
        ("uid", text(&random.uid())),
        ("controller", "true".to_owned()),
        ("blockOwnerDeletion", "true".to_owned()),
    ]);
    let deleting = random.percent(6);
    object([
        ("name", text(name)),
        ("generateName", when(owner != Owner::Nobody, text(&format!("{set}-")))),
        ("namespace", text(namespace)),
        ("uid", text(&random.uid())),
        ("generation", random.between(1, 2).to_string()),
        ("creationTimestamp", text(&random.time())),
        ("deletionTimestamp", when(deleting, text(&random.time()))),
        ("deletionGracePeriodSeconds", when(deleting, "30")),
        ("labels", map(labels)),
        ("annotations", map(annotations)),
        ("ownerReferences", when(owner != Owner::Nobody, format!("[{reference}]"))),
        ("finalizers", when(owner == Owner::Job, r#"["batch.kubernetes.io/job-tracking"]"#)),
    ])
}

fn spec(random: &mut Random, owner: Owner, app: &str, name: &str) -> String {
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    for _ in 0..random.below(4) {
        let (volume, mount) = volume(random, app);
        volumes.push(volume);
        mounts.push(mount);
    }
    let has_token = random.percent(85);
    if has_token {
        let access = format!("kube-api-access-{}", random.suffix(5));
        volumes.push(object([("name", text(&access)), ("projected", API_ACCESS.to_owned())]));
        mounts.push(object([
            ("name", text(&access)),
            ("readOnly", "true".to_owned()),
            ("mountPath", text("/var/run/secrets/kubernetes.io/serviceaccount")),
        ]));
    }
    let inits: Vec<String> =
        (0..random.below(5).saturating_sub(3)).map(|_| container(random, app, &mounts, true)).collect();
    let mut containers = vec![container(random, app, &mounts, false)];
    if random.percent(25) {
        let sidecar = random.sidecar();
        containers.push(container(random, sidecar, &mounts, false));
    }
    let account = if random.percent(65) { "default".to_owned() } else { app.to_owned() };
    let host_network = owner == Owner::DaemonSet && random.percent(40) || random.percent(4);
    let critical = random.percent(8);
    let restart = match owner {
        Owner::Job => random.pick(&["Never", "OnFailure"]),
        _ => "Always",
    };
    object([
        ("volumes", array(&volumes)),
        ("initContainers", array(&inits)),
        ("containers", array(&containers)),
        ("restartPolicy", text(restart)),
        ("terminationGracePeriodSeconds", random.pick(&["30", "30", "30", "10", "60", "0"]).to_owned()),
        ("dnsPolicy", text(if host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" })),
        ("nodeSelector", node_selector(random)),
        ("serviceAccountName", text(&account)),
        ("serviceAccount", text(&account)),
        ("automountServiceAccountToken", when(!has_token, "false")),
        ("nodeName", text(&random.node())),
        ("hostNetwork", when(host_network, "true")),
        ("hostPID", when(owner == Owner::DaemonSet && random.percent(15), "true")),
        ("securityContext", pod_security(random)),
        ("imagePullSecrets", when(random.percent(20), format!(r#"[{{"name":"{}"}}]"#, random.pull_secret()))),
        ("hostname", when(owner == Owner::StatefulSet, text(name))),
        ("subdomain", when(owner == Owner::StatefulSet, text(app))),
        ("affinity", affinity(random, owner)),
        ("schedulerName", text("default-scheduler")),
        ("tolerations", tolerations(random, owner, host_network)),
        ("priorityClassName", when(critical, text("system-node-critical"))),
        ("priority", if critical { "2000001000".to_owned() } else { "0".to_owned() }),
        ("runtimeClassName", when(random.percent(3), text(random.pick(&["kata", "gvisor", "nvidia"])))),
        ("enableServiceLinks", random.pick(&["true", "true", "true", "false"]).to_owned()),
        ("preemptionPolicy", text("PreemptLowerPriority")),
        ("topologySpreadConstraints", when(random.percent(4), spread(app))),
    ])
}

const API_ACCESS: &str = r#"{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}],"defaultMode":420}"#;

impl Random {
    fn sidecar(&mut self) -> &'static str {
        self.pick(&["sidecar", "exporter", "metrics", "reloader", "tunnel", "shipper"])
    }

    fn pull_secret(&mut self) -> &'static str {
        self.pick(&["regcred", "registry-credentials", "pull-secret", "image-pull"])
    }
}

/// The volume and its mount.
fn volume(random: &mut Random, app: &str) -> (String, String) {
    let word = random.word();
    let name = match random.below(3) {
        0 => {
            random.pick(&["config", "data", "tmp", "cache", "certs", "secrets", "logs", "socket"]).to_owned()
        }
        1 => format!("{word}-data"),
        _ => format!("{word}-config"),
    };
    let mut read_only = random.percent(40);
    let (kind, value) = match random.below(12) {
        0..=2 => {
            let target = format!("{app}-{}", random.pick(&["config", "settings", "conf", "env"]));
            let item = format!(r#"[{{"key":"{word}.yaml","path":"{word}.yaml"}}]"#);
            let items = when(random.percent(25), item);
            let optional = when(random.percent(10), "true");
            let mode = ("defaultMode", "420".to_owned());
            ("configMap", object([("name", text(&target)), ("items", items), mode, ("optional", optional)]))
        }
        3..=4 => {
            let target = format!("{app}-{}", random.pick(&["tls", "secret", "credentials", "cert"]));
            let mode = random.pick(&["420", "420", "420", "256", "384"]).to_owned();
            ("secret", object([("secretName", text(&target)), ("defaultMode", mode)]))
        }
        5..=6 => {
            let (memory, limit) = (random.percent(20), random.percent(40));
            let limit = when(limit, text(random.pick(&["64Mi", "128Mi", "1Gi", "500Mi"])));
            ("emptyDir", object([("medium", when(memory, text("Memory"))), ("sizeLimit", limit)]))
        }
        7..=8 => {
            let path = random.pick(&[
                "/dev/ttyUSB0",
                "/dev/video0",
                "/var/lib",
                "/etc/localtime",
                "/var/run",
                "/run/dbus",
                "/opt/data",
                "/sys",
                "/proc",
            ]);
            let kind =
                random.pick(&["", "", "Directory", "DirectoryOrCreate", "File", "CharDevice", "Socket"]);
            ("hostPath", object([("path", text(path)), ("type", text(kind))]))
        }
        9 if random.percent(30) => {
            let server = text(&random.ip());
            ("nfs", object([("server", server), ("path", text(&format!("/export/{word}")))]))
        }
        9 | 10 => ("persistentVolumeClaim", object([("claimName", text(&format!("{word}-{app}")))])),
        _ => {
            read_only = true;
            let source = random.pick(&[
                r#"{"items":[{"path":"labels","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.labels"}}],"defaultMode":420}"#,
                r#"{"items":[{"path":"annotations","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.annotations"}}],"defaultMode":420}"#,
            ]);
            ("downwardAPI", source.to_owned())
        }
    };
    let path = match random.below(4) {
        0 => format!("/etc/{app}"),
        1 => format!("/var/lib/{app}"),
        2 => random.pick(&["/data", "/config", "/tmp", "/etc/config", "/var/log", "/certs"]).to_owned(),
        _ => format!("/{word}"),
    };
    let sub_path = when(random.percent(15), text(&format!("{word}.conf")));
    let mount = object([
        ("name", text(&name)),
        ("readOnly", when(read_only, "true")),
        ("mountPath", text(&path)),
        ("subPath", sub_path),
    ]);
    (object([("name", text(&name)), (kind, value)]), mount)
}

fn container(random: &mut Random, app: &str, mounts: &[String], init: bool) -> String {
    let port = random.between(80, 9999).to_string();
    let ports = match random.below(if init { 1 } else { 4 }) {
        0 => Vec::new(),
        1 => vec![object([("containerPort", port.clone()), ("protocol", text("TCP"))])],
        _ => {
            let host = random.percent(10);
            let name = random.pick(&["http", "http", "metrics", "grpc", "https", "mqtt", "web"]);
            let protocol = random.pick(&["TCP", "TCP", "TCP", "UDP"]);
            vec![object([
                ("name", text(name)),
                ("hostPort", when(host, port.clone())),
                ("containerPort", port.clone()),
                ("protocol", text(protocol)),
            ])]
        }
    };
    let command = match random.below(5) {
        0 => texts(&["/bin/sh", "-c", &format!("exec /usr/local/bin/{app} --config /etc/{app}/config.yaml")]),
        1 => texts(&["sh", "-c", &format!("until nc -z {} {port}; do sleep 2; done", random.word())]),
        2 => texts(&[format!("/{app}")]),
        _ => String::new(),
    };
    let args: Vec<String> = (0..random.below(5).saturating_sub(1))
        .map(|_| match random.below(3) {
            0 => format!("--{}={}", random.word(), random.word()),
            1 => format!("--{}-{}=:{port}", random.word(), random.pick(&["address", "port", "listen"])),
            _ => random.pick(&["--log-level=info", "--v=2", "--verbose", "--metrics-addr=:8080"]).to_owned(),
        })
        .collect();
    let env: Vec<String> = (0..random.below(6)).map(|_| env(random, app)).collect();
    let env_from = match random.below(8) {
        0 => format!(r#"[{{"configMapRef":{{"name":"{app}-env"}}}}]"#),
        1 => format!(r#"[{{"secretRef":{{"name":"{app}-secret"}}}}]"#),
        _ => String::new(),
    };
    let image = random.image();
    let policy = if image.ends_with(":latest") { "Always" } else { "IfNotPresent" };
    let probed = !init && random.percent(60);
    object([
        ("name", text(&if init { format!("init-{}", random.word()) } else { app.to_owned() })),
        ("image", text(&image)),
        ("command", command),
        ("args", texts(&args)),
        ("ports", array(&ports)),
        ("envFrom", env_from),
        ("env", array(&env)),
        ("resources", resources(random)),
        ("volumeMounts", array(mounts)),
        ("livenessProbe", when(probed && random.percent(80), probe(random, &port))),
        ("readinessProbe", when(probed && random.percent(80), probe(random, &port))),
        ("startupProbe", when(probed && random.percent(10), probe(random, &port))),
        (
            "lifecycle",
            when(random.percent(4), r#"{"preStop":{"exec":{"command":["/bin/sh","-c","sleep 5"]}}}"#),
        ),
        ("terminationMessagePath", text("/dev/termination-log")),
        ("terminationMessagePolicy", text(random.pick(&["File", "File", "File", "FallbackToLogsOnError"]))),
        ("imagePullPolicy", text(policy)),
        ("securityContext", security(random)),
    ])
}

fn env(random: &mut Random, app: &str) -> String {
    let name = format!(
        "{}_{}",
        random.word(),
        random.pick(&["HOST", "PORT", "URL", "LEVEL", "TOKEN", "NAME", "INTERVAL"])
    )
    .to_uppercase();
    let from = |source: &str, value: String| object([(source, value)]);
    let reference =
        |kind: &str, key: &str| object([("name", text(&format!("{app}-{kind}"))), ("key", text(key))]);
    let field = |path: &str| object([("apiVersion", text("v1")), ("fieldPath", text(path))]);
    let (name, value, source) = match random.below(10) {
        0 => ("POD_NAME".to_owned(), String::new(), from("fieldRef", field("metadata.name"))),
        1 => ("POD_NAMESPACE".to_owned(), String::new(), from("fieldRef", field("metadata.namespace"))),
        2 => ("NODE_NAME".to_owned(), String::new(), from("fieldRef", field("spec.nodeName"))),
        3 => ("POD_IP".to_owned(), String::new(), from("fieldRef", field("status.podIP"))),
        4 => (name, String::new(), from("configMapKeyRef", reference("config", random.word()))),
        5 => (
            name,
            String::new(),
            from("secretKeyRef", reference("secret", random.pick(&["password", "token"]))),
        ),
        6 => (
            name,
            format!(
                "http://{}.{}.svc.cluster.local:{}",
                random.name(),
                random.namespace(),
                random.below(9999)
            ),
            String::new(),
        ),
        7 => (
            "TZ".to_owned(),
            random.pick(&["UTC", "Europe/Berlin", "Asia/Shanghai"]).to_owned(),
            String::new(),
        ),
        8 => (name, random.pick(&["true", "false", "info", "debug", "30s", "10"]).to_owned(), String::new()),
        _ => (name, random.name(), String::new()),
    };
    object([("name", text(&name)), ("value", when(!value.is_empty(), text(&value))), ("valueFrom", source)])
}

fn resources(random: &mut Random) -> String {
    let cpu = |random: &mut Random| random.pick(&["10m", "50m", "100m", "200m", "250m", "500m", "1", "2"]);
    let memory =
        |random: &mut Random| random.pick(&["16Mi", "32Mi", "64Mi", "128Mi", "256Mi", "512Mi", "1Gi", "2Gi"]);
    let amounts = |random: &mut Random| {
        let cpu = when(random.percent(80), text(cpu(random)));
        object([("cpu", cpu), ("memory", text(memory(random)))])
    };
    let (limits, requests) = (random.percent(60), random.percent(60));
    let [limits, requests] = [limits, requests].map(|holds| when(holds, amounts(random)));
    object([("limits", limits), ("requests", requests)])
}

fn probe(random: &mut Random, port: &str) -> String {
    let (kind, action) = match random.below(6) {
        0..=2 => {
            let path =
                random.pick(&["/healthz", "/health", "/ready", "/readyz", "/livez", "/", "/-/healthy"]);
            let port = if random.percent(40) { text("http") } else { port.to_owned() };
            ("httpGet", object([("path", text(path)), ("port", port), ("scheme", text("HTTP"))]))
        }
        3 => ("tcpSocket", object([("port", port.to_owned())])),
        4 => {
            let command =
                ["sh", "-c", random.pick(&["test -e /tmp/healthy", "redis-cli ping", "pg_isready"])];
            ("exec", object([("command", texts(&command))]))
        }
        _ => ("grpc", object([("port", port.to_owned()), ("service", text(""))])),
    };
    let delay = random.pick(&["", "5", "10", "15", "30"]);
    object([
        (kind, action),
        ("initialDelaySeconds", delay.to_owned()),
        ("timeoutSeconds", random.pick(&["1", "1", "1", "5"]).to_owned()),
        ("periodSeconds", random.pick(&["10", "10", "5", "30"]).to_owned()),
        ("successThreshold", "1".to_owned()),
        ("failureThreshold", random.pick(&["3", "3", "3", "5", "30"]).to_owned()),
    ])
}

fn security(random: &mut Random) -> String {
    let user = random.pick(&["1000", "1001", "65532", "65534"]).to_owned();
    match random.below(8) {
        0 => r#"{"privileged":true}"#.to_owned(),
        1 => r#"{"capabilities":{"drop":["ALL"]},"readOnlyRootFilesystem":true,"allowPrivilegeEscalation":false}"#
            .to_owned(),
        2 => object([
            ("capabilities", r#"{"drop":["ALL"]}"#.to_owned()),
            ("runAsUser", user),
            ("runAsNonRoot", "true".to_owned()),
            ("readOnlyRootFilesystem", "true".to_owned()),
            ("allowPrivilegeEscalation", "false".to_owned()),
            ("seccompProfile", r#"{"type":"RuntimeDefault"}"#.to_owned()),
        ]),
        3 => format!(
            r#"{{"capabilities":{{"add":["{}"]}}}}"#,
            random.pick(&["NET_ADMIN", "NET_RAW", "SYS_TIME", "NET_BIND_SERVICE", "SYS_PTRACE"])
        ),
        _ => String::new(),
    }
}

fn pod_security(random: &mut Random) -> String {
    let user = random.pick(&["1000", "1001", "65532", "65534", "472", "999"]).to_owned();
    match random.below(4) {
        0 => object([
            ("runAsUser", user.clone()),
            ("runAsGroup", when(random.percent(50), user.clone())),
            ("runAsNonRoot", "true".to_owned()),
            ("fsGroup", user),
            ("seccompProfile", when(random.percent(50), r#"{"type":"RuntimeDefault"}"#)),
        ]),
        _ => "{}".to_owned(),
    }
}

fn node_selector(random: &mut Random) -> String {
    let mut entries = Vec::new();
    if random.percent(15) {
        entries.push(("kubernetes.io/os".to_owned(), "linux".to_owned()));
    }
    if random.percent(15) {
        entries.push(("kubernetes.io/arch".to_owned(), random.pick(&["arm64", "amd64"]).to_owned()));
    }
    if random.percent(15) {
        entries.push((random.pick(&["site", "location", "zone"]).to_owned(), random.name()));
    }
    map(entries)
}

fn affinity(random: &mut Random, owner: Owner) -> String {
    let terms = if owner == Owner::DaemonSet {
        let node = random.node();
        format!(r#"[{{"matchFields":[{{"key":"metadata.name","operator":"In","values":["{node}"]}}]}}]"#)
    } else if random.percent(60) {
        r#"[{"matchExpressions":[{"key":"node-role.kubernetes.io/edge","operator":"Exists"}]}]"#.to_owned()
    } else if random.percent(20) {
        let values = texts(&[random.node()]);
        format!(
            r#"[{{"matchExpressions":[{{"key":"kubernetes.io/hostname","operator":"In","values":{values}}}]}}]"#
        )
    } else {
        return String::new();
    };
    format!(
        r#"{{"nodeAffinity":{{"requiredDuringSchedulingIgnoredDuringExecution":{{"nodeSelectorTerms":{terms}}}}}}}"#
    )
}

fn spread(app: &str) -> String {
    format!(
        r#"[{{"maxSkew":1,"topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"ScheduleAnyway","labelSelector":{{"matchLabels":{{"app":"{app}"}}}}}}]"#
    )
}

fn tolerations(random: &mut Random, owner: Owner, host_network: bool) -> String {
    let toleration = |key: &str, effect: &str| {
        object([("key", text(key)), ("operator", text("Exists")), ("effect", text(effect))])
    };
    let mut all = Vec::new();
    if random.percent(35) {
        let key = random.pick(&["node-role.kubernetes.io/edge", "edge", "dedicated"]);
        all.push(toleration(key, random.pick(&["NoSchedule", "NoExecute"])));
    }
    all.push(toleration("node.kubernetes.io/not-ready", "NoExecute"));
    all.push(toleration("node.kubernetes.io/unreachable", "NoExecute"));
    if owner == Owner::DaemonSet {
        for pressure in ["disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"] {
            all.push(toleration(&format!("node.kubernetes.io/{pressure}"), "NoSchedule"));
        }
        if host_network {
            all.push(toleration("node.kubernetes.io/network-unavailable", "NoSchedule"));
        }
    }
    array(&all)
}
