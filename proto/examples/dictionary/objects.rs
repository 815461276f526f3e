//! What pods name, and the other objects that cloudcore sends.

use crate::{
    json::{map, object, text, texts, when},
    random::Random,
};

pub(crate) struct Sample {
    pub(crate) key: String,
    pub(crate) json: String,
}

pub(crate) fn config_map(random: &mut Random) -> Sample {
    let app = random.name();
    if random.percent(20) {
        let certificate = certificate(random);
        let data = vec![("ca.crt".to_owned(), certificate)];
        let note = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
                    such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                    distributions of Kubernetes clusters.";
        let annotations = vec![("kubernetes.io/description".to_owned(), note.to_owned())];
        return sample(
            random,
            "v1",
            "ConfigMap",
            "kube-root-ca.crt",
            vec![],
            annotations,
            [("data", map(data))],
        );
    }
    let mut data = Vec::new();
    for _ in 0..random.between(1, 2) {
        let (name, content) = file(random, &app);
        data.push((name, content));
    }
    let name = format!("{app}-{}", random.pick(&["config", "settings", "conf", "env"]));
    let labels = labels(random, &app);
    sample(random, "v1", "ConfigMap", &name, labels, vec![], [("data", map(data))])
}

/// The name and content of a file of configuration.
fn file(random: &mut Random, app: &str) -> (String, String) {
    let port = random.between(80, 9999);
    let mut lines = Vec::new();
    let count = random.between(4, 24);
    let value = |random: &mut Random| match random.below(6) {
        0 => random.below(10_000).to_string(),
        1 => random.pick(&["true", "false", "info", "warn", "debug"]).to_owned(),
        2 => format!("{}:{}", random.ip(), random.between(80, 9999)),
        3 => format!("{}{}", random.between(1, 60), random.pick(&["s", "m", "ms"])),
        4 => format!("/var/lib/{}/{}", random.word(), random.word()),
        _ => random.name(),
    };
    match random.below(6) {
        0 => {
            for _ in 0..count {
                lines.push(format!("{}.{}={}", random.word(), random.word(), value(random)));
            }
            ("application.properties".to_owned(), lines.join("\n") + "\n")
        }
        1 => {
            for _ in 0..count / 3 {
                lines.push(format!("{}:", random.word()));
                for _ in 0..3 {
                    lines.push(format!("  {}: {}", random.word(), value(random)));
                }
            }
            (random.pick(&["config.yaml", "config.yml", "values.yaml"]).to_owned(), lines.join("\n") + "\n")
        }
        2 => {
            for _ in 0..count {
                lines.push(format!("  \"{}\": \"{}\"", random.word(), value(random)));
            }
            ("config.json".to_owned(), format!("{{\n{}\n}}\n", lines.join(",\n")))
        }
        3 => ("nginx.conf".to_owned(), nginx(random, port)),
        4 => {
            for _ in 0..count / 4 {
                lines.push(format!("[{}]", random.word()));
                for _ in 0..3 {
                    lines.push(format!("    {} = {}", random.word(), value(random)));
                }
                lines.push(String::new());
            }
            (format!("{app}.{}", random.pick(&["conf", "ini", "toml"])), lines.join("\n"))
        }
        _ => {
            let name = format!("{}_{}", random.word(), random.word()).to_uppercase();
            (name, value(random))
        }
    }
}

fn nginx(random: &mut Random, port: u64) -> String {
    let (upstream, level) = (random.name(), random.pick(&["warn", "notice", "error"]));
    format!(
        "user nginx;\nworker_processes auto;\nerror_log /var/log/nginx/error.log {level};\npid /var/run/nginx.pid;\n\n\
         events {{\n  worker_connections 1024;\n}}\n\nhttp {{\n  include /etc/nginx/mime.types;\n  \
         default_type application/octet-stream;\n  sendfile on;\n  keepalive_timeout 65;\n\n  server {{\n    \
         listen {port};\n    server_name _;\n\n    location / {{\n      root /usr/share/nginx/html;\n      \
         index index.html;\n    }}\n\n    location /{upstream}/ {{\n      proxy_pass http://{upstream}:{port};\n      \
         proxy_set_header Host $host;\n      proxy_set_header X-Real-IP $remote_addr;\n      \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n    }}\n  }}\n}}\n"
    )
}

fn certificate(random: &mut Random) -> String {
    let body: Vec<String> = (0..17).map(|_| random.base64(64)).collect();
    format!("-----BEGIN CERTIFICATE-----\nMII{}\n-----END CERTIFICATE-----\n", body.join("\n"))
}

pub(crate) fn secret(random: &mut Random) -> Sample {
    let app = random.name();
    let (kind, suffix, data) = match random.below(4) {
        0 => {
            let data = [("tls.crt", 1500), ("tls.key", 400)]
                .map(|(name, length)| (name.to_owned(), format!("LS0tLS1CRUdJTi{}", random.base64(length))));
            ("kubernetes.io/tls", "tls", data.to_vec())
        }
        1 => {
            let data = format!("eyJhdXRocyI6eyJ{}", random.base64(160));
            ("kubernetes.io/dockerconfigjson", "pull", vec![(".dockerconfigjson".to_owned(), data)])
        }
        _ => {
            let mut data = Vec::new();
            for _ in 0..random.between(1, 4) {
                let name =
                    random.pick(&["username", "password", "token", "api-key", "ca.crt", "DB_PASSWORD"]);
                let length = random.between(8, 44);
                data.push((name.to_owned(), random.base64(usize::try_from(length).unwrap_or(8)) + "=="));
            }
            ("Opaque", random.pick(&["secret", "credentials"]), data)
        }
    };
    let labels = labels(random, &app);
    let name = format!("{app}-{suffix}");
    sample(random, "v1", "Secret", &name, labels, vec![], [("data", map(data)), ("type", text(kind))])
}

/// As `node_bytes` of cloudcore writes it: in alphabetical order.
pub(crate) fn node(random: &mut Random) -> Sample {
    let name = random.node();
    let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let arch = random.pick(&["amd64", "arm64", "arm"]);
    let mut labels = vec![
        entry("beta.kubernetes.io/arch", arch),
        entry("beta.kubernetes.io/os", "linux"),
        entry("kubernetes.io/arch", arch),
        entry("kubernetes.io/hostname", &name),
        entry("kubernetes.io/os", "linux"),
        entry("node-role.kubernetes.io/edge", random.pick(&["", "true"])),
    ];
    if random.percent(50) {
        labels.push(entry(random.pick(&["site", "location", "topology.kubernetes.io/zone"]), &random.name()));
    }
    let annotations = vec![
        entry("node.alpha.kubernetes.io/ttl", "0"),
        entry("skerry.io/enrolled-key", &random.hex(64)),
        entry("volumes.kubernetes.io/controller-managed-attach-detach", "true"),
    ];
    let metadata = object([
        ("annotations", map(annotations)),
        ("creationTimestamp", text(&random.time())),
        ("labels", map(labels)),
        ("name", text(&name)),
        ("uid", text(&random.uid())),
    ]);
    let cidr = format!("10.244.{}.0/24", random.below(255));
    let spec = object([
        ("podCIDR", text(&cidr)),
        ("podCIDRs", texts(&[&cidr])),
        (
            "taints",
            when(random.percent(50), r#"[{"effect":"NoSchedule","key":"node-role.kubernetes.io/edge"}]"#),
        ),
    ]);
    let json =
        object([("apiVersion", text("v1")), ("kind", text("Node")), ("metadata", metadata), ("spec", spec)]);
    Sample { key: format!("Node//{name}"), json }
}

pub(crate) fn claim(random: &mut Random) -> Sample {
    let (app, class) = (random.name(), random.pick(&["local-path", "standard", "longhorn", "local-storage"]));
    let spec = object([
        ("accessModes", texts(&["ReadWriteOnce"])),
        ("resources", format!(r#"{{"requests":{{"storage":"{}Gi"}}}}"#, random.between(1, 100))),
        ("volumeName", text(&format!("pvc-{}", random.uid()))),
        ("storageClassName", text(class)),
        ("volumeMode", text("Filesystem")),
    ]);
    let annotations = [
        ("pv.kubernetes.io/bind-completed", "yes"),
        ("pv.kubernetes.io/bound-by-controller", "yes"),
        ("volume.beta.kubernetes.io/storage-provisioner", "rancher.io/local-path"),
        ("volume.kubernetes.io/selected-node", &random.node()),
        ("volume.kubernetes.io/storage-provisioner", "rancher.io/local-path"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (name, labels) = (format!("data-{app}-0"), labels(random, &app));
    sample(random, "v1", "PersistentVolumeClaim", &name, labels, annotations.to_vec(), [("spec", spec)])
}

pub(crate) fn volume(random: &mut Random) -> Sample {
    let (app, node) = (random.name(), random.node());
    let name = format!("pvc-{}", random.uid());
    let reference = object([
        ("kind", text("PersistentVolumeClaim")),
        ("namespace", text(&random.namespace())),
        ("name", text(&format!("data-{app}-0"))),
        ("uid", text(&random.uid())),
        ("apiVersion", text("v1")),
        ("resourceVersion", text(&random.below(90_000_000).to_string())),
    ]);
    let path = format!("/opt/local-path-provisioner/{name}_{app}");
    let host = random.percent(50);
    let affinity = format!(
        r#"{{"required":{{"nodeSelectorTerms":[{{"matchExpressions":[{{"key":"kubernetes.io/hostname","operator":"In","values":["{node}"]}}]}}]}}}}"#
    );
    let spec = object([
        ("capacity", format!(r#"{{"storage":"{}Gi"}}"#, random.between(1, 100))),
        ("hostPath", when(host, object([("path", text(&path)), ("type", text("DirectoryOrCreate"))]))),
        ("local", when(!host, object([("path", text(&path))]))),
        ("accessModes", texts(&["ReadWriteOnce"])),
        ("claimRef", reference),
        ("persistentVolumeReclaimPolicy", text(random.pick(&["Delete", "Retain"]))),
        ("storageClassName", text(random.pick(&["local-path", "standard", "local-storage"]))),
        ("volumeMode", text("Filesystem")),
        ("nodeAffinity", affinity),
    ]);
    let annotations =
        vec![("pv.kubernetes.io/provisioned-by".to_owned(), "rancher.io/local-path".to_owned())];
    cluster_sample(random, "v1", "PersistentVolume", "PersistentVolume", &name, annotations, [("spec", spec)])
}

pub(crate) fn runtime_class(random: &mut Random) -> Sample {
    let name = random.pick(&["kata", "gvisor", "nvidia", "crun", "wasmtime"]);
    let (api, key) = ("node.k8s.io/v1", "RuntimeClass.node.k8s.io");
    cluster_sample(random, api, "RuntimeClass", key, name, vec![], [("handler", text(name))])
}

pub(crate) fn device_model(random: &mut Random) -> Sample {
    let name = format!("{}-model", random.name());
    let protocol = random.pick(&["modbus", "opcua", "bluetooth", "onvif"]);
    let properties: Vec<String> = (0..random.between(1, 5))
        .map(|_| {
            object([
                ("accessMode", text(random.pick(&["ReadOnly", "ReadWrite"]))),
                ("description", text(&format!("{} of the {}", random.word(), random.word()))),
                ("maximum", text(&random.below(1000).to_string())),
                ("minimum", text("0")),
                ("name", text(random.word())),
                ("type", text(random.pick(&["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN"]))),
                ("unit", text(random.pick(&["Celsius", "percent", "bar", "rpm", "V"]))),
            ])
        })
        .collect();
    let spec = object([("properties", crate::json::array(&properties)), ("protocol", text(protocol))]);
    device_sample(random, "DeviceModel", &name, spec)
}

pub(crate) fn device(random: &mut Random) -> Sample {
    let model = format!("{}-model", random.name());
    let name = format!("{}-{}", random.name(), random.between(1, 99));
    let protocol = random.pick(&["modbus", "opcua", "bluetooth", "onvif"]);
    let properties: Vec<String> = (0..random.between(1, 5))
        .map(|_| {
            let visitor = object([
                ("limit", "1".to_owned()),
                ("offset", random.below(100).to_string()),
                (
                    "register",
                    text(random.pick(&["CoilRegister", "HoldingRegister", "DiscreteInputRegister"])),
                ),
                ("scale", "1".to_owned()),
            ]);
            object([
                ("collectCycle", random.pick(&["1000", "500", "10000"]).to_owned()),
                ("desired", object([("value", text(&random.below(100).to_string()))])),
                ("name", text(random.word())),
                ("reportCycle", random.pick(&["1000", "10000"]).to_owned()),
                ("reportToCloud", "true".to_owned()),
                ("visitors", object([("configData", visitor), ("protocolName", text(protocol))])),
            ])
        })
        .collect();
    let connection = object([
        (
            "configData",
            object([("ip", text(&random.ip())), ("port", text("502")), ("slaveID", "1".to_owned())]),
        ),
        ("protocolName", text(protocol)),
    ]);
    let spec = object([
        ("deviceModelRef", object([("name", text(&model))])),
        ("nodeName", text(&random.node())),
        ("properties", crate::json::array(&properties)),
        ("protocol", connection),
    ]);
    device_sample(random, "Device", &name, spec)
}

/// A custom resource's fields come in alphabetical order.
fn device_sample(random: &mut Random, kind: &str, name: &str, spec: String) -> Sample {
    let namespace = random.namespace();
    let metadata = object([
        ("creationTimestamp", text(&random.time())),
        ("generation", random.between(1, 9).to_string()),
        ("name", text(name)),
        ("namespace", text(&namespace)),
        ("uid", text(&random.uid())),
    ]);
    let json = object([
        ("apiVersion", text("devices.kubeedge.io/v1beta1")),
        ("kind", text(kind)),
        ("metadata", metadata),
        ("spec", spec),
    ]);
    Sample { key: format!("{kind}.devices.kubeedge.io/{namespace}/{name}"), json }
}

fn labels(random: &mut Random, app: &str) -> Vec<(String, String)> {
    let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    match random.below(4) {
        0 => vec![entry("app", app)],
        1 => vec![
            entry("app.kubernetes.io/instance", app),
            entry("app.kubernetes.io/managed-by", "Helm"),
            entry("app.kubernetes.io/name", app),
        ],
        _ => vec![],
    }
}

fn sample<const N: usize>(
    random: &mut Random,
    api: &str,
    kind: &str,
    name: &str,
    labels: Vec<(String, String)>,
    mut annotations: Vec<(String, String)>,
    fields: [(&str, String); N],
) -> Sample {
    let namespace = random.namespace();
    if random.percent(20) && kind != "PersistentVolumeClaim" {
        annotations.push(("meta.helm.sh/release-name".to_owned(), random.name()));
        annotations.push(("meta.helm.sh/release-namespace".to_owned(), namespace.clone()));
    } else if random.percent(40) && annotations.is_empty() && kind == "ConfigMap" {
        // `kubectl apply` keeps the whole object once more.
        let applied = format!(
            "{{\"apiVersion\":\"v1\",{}:{},\"kind\":\"{kind}\",\"metadata\":{{\"annotations\":{{}},\"name\":\"{name}\",\
             \"namespace\":\"{namespace}\"}}}}\n",
            text(fields[0].0),
            fields[0].1
        );
        annotations.push(("kubectl.kubernetes.io/last-applied-configuration".to_owned(), applied));
    }
    let metadata = object([
        ("name", text(name)),
        ("namespace", text(&namespace)),
        ("uid", text(&random.uid())),
        ("creationTimestamp", text(&random.time())),
        ("labels", map(labels)),
        ("annotations", map(annotations)),
        ("finalizers", when(kind == "PersistentVolumeClaim", r#"["kubernetes.io/pvc-protection"]"#)),
    ]);
    let head = [("apiVersion", text(api)), ("kind", text(kind)), ("metadata", metadata)];
    Sample { key: format!("{kind}/{namespace}/{name}"), json: object(head.into_iter().chain(fields)) }
}

fn cluster_sample<const N: usize>(
    random: &mut Random,
    api: &str,
    kind: &str,
    key: &str,
    name: &str,
    annotations: Vec<(String, String)>,
    fields: [(&str, String); N],
) -> Sample {
    let metadata = object([
        ("name", text(name)),
        ("uid", text(&random.uid())),
        ("creationTimestamp", text(&random.time())),
        ("annotations", map(annotations)),
        ("finalizers", when(kind == "PersistentVolume", r#"["kubernetes.io/pv-protection"]"#)),
    ]);
    let head = [("apiVersion", text(api)), ("kind", text(kind)), ("metadata", metadata)];
    Sample { key: format!("{key}//{name}"), json: object(head.into_iter().chain(fields)) }
}
