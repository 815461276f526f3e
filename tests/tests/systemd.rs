//! Edge nodes of machines with systemd, by `keadm join` and `keadm reset`: the unit, and the pods' control groups of either
//! version by either driver. The driver is for edgecore to find out. The machines are virtual ones.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Cluster, ClusterOptions, bench,
    process::{resume, suspend},
    product::Cloud,
    setup::{AGNHOST, BUSYBOX, DebianAssets, PAUSE, ensure_debian},
    vm::{Debian, DebianOptions, HOST, data_image},
    wait,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

/// A machine in software emulation takes its time, three of them on a busy host more so.
const SOON: Duration = Duration::from_mins(3);

/// What a machine has.
struct Kind {
    name: &'static str,
    /// Version 1 of control groups.
    legacy: bool,
    /// Whether the runtime has systemd make them.
    systemd: bool,
    /// The current containerd, which tells its driver as CRI has it; else Debian's, which does not.
    current: bool,
}

const KINDS: [Kind; 3] = [
    Kind { name: "unified-systemd", legacy: false, systemd: true, current: true },
    Kind { name: "unified-cgroupfs", legacy: false, systemd: false, current: false },
    Kind { name: "legacy-systemd", legacy: true, systemd: true, current: false },
];

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_systemd_are_edge_nodes() -> Result<()> {
    let assets = ensure_debian().await?;
    bench::run(async |bench: &Bench| {
        let cluster = bench.cluster(&ClusterOptions::default()).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[HOST]).await?;
        let disk = bench.run.dir().join("programs");
        programs(bench, &disk).await?;
        let scene = Scene { bench, assets, cluster, cloud, disk };
        let [a, b, c] = &KINDS;
        let (mut a, mut b, mut c) = tokio::try_join!(
            Box::pin(Edge::join(&scene, a)),
            Box::pin(Edge::join(&scene, b)),
            Box::pin(Edge::join(&scene, c)),
        )?;
        tokio::try_join!(Box::pin(a.lives(&scene)), Box::pin(b.lives(&scene)), Box::pin(c.lives(&scene)),)?;
        let cloudcore = scene.cloud.pid()?;
        suspend(cloudcore)?;
        let booted = tokio::try_join!(a.boots_alone(), b.boots_alone(), c.boots_alone());
        resume(cloudcore)?;
        booted?;
        tokio::try_join!(a.ends(&scene), b.ends(&scene), c.ends(&scene))?;
        Ok(())
    })
    .await
}

struct Scene<'a> {
    bench: &'a Bench,
    assets: DebianAssets,
    cluster: Cluster,
    cloud: Cloud,
    disk: std::path::PathBuf,
}

/// The disk that brings what Debian does not: the product, the current containerd, images.
async fn programs(bench: &Bench, image: &std::path::Path) -> Result<()> {
    let content = tempfile::tempdir_in(bench.run.dir())?;
    for (name, from) in [("skerry", bench.assets.product()?), ("containerd", &*bench.assets.containerd)] {
        let dir = content.path().join(name);
        fs::create_dir(&dir)?;
        let wanted = ["edgecore", "keadm", "containerd", "containerd-shim-runc-v2"];
        for program in wanted.iter().filter(|program| from.join(program).is_file()) {
            fs::copy(from.join(program), dir.join(program))?;
        }
    }
    for archive in &bench.assets.images {
        fs::copy(archive, content.path().join("images.tar"))?;
    }
    data_image(image, content.path(), 8).await
}

struct Edge {
    kind: &'static Kind,
    machine: Debian,
    guests: Vec<Guest>,
}

/// A pod that goes on to the end, and its control group.
struct Guest {
    uid: String,
    class: &'static Class,
}

/// What a pod asks for, and what the kernel is to have of it.
struct Class {
    name: &'static str,
    resources: &'static str,
    /// cpu.max, cpu.weight, memory.max, memory.oom.group.
    container: &'static str,
    /// cpu.max, cpu.weight.
    pod: &'static str,
    /// Under version 1: cpu.cfs_quota_us, cpu.shares, memory.limit_in_bytes.
    legacy_container: &'static str,
    /// There systemd has made shares of the weight: cpu.cfs_quota_us, cpu.shares.
    legacy_pod: &'static str,
}

const GUARANTEED: Class = Class {
    name: "guaranteed",
    // Until it runs; then it is to have 500m.
    resources: "{limits: {cpu: 800m, memory: 64Mi}}",
    container: "50000 100000 20 67108864 1",
    pod: "50000 100000 20",
    legacy_container: "50000 512 67108864",
    legacy_pod: "50000 204",
};
const BURSTABLE: Class = Class {
    name: "burstable",
    resources: "{requests: {cpu: 250m, memory: 32Mi}, limits: {memory: 128Mi}}",
    container: "max 100000 10 134217728 1",
    pod: "max 100000 10",
    legacy_container: "-1 256 134217728",
    legacy_pod: "-1 102",
};
const BEST_EFFORT: Class = Class {
    name: "besteffort",
    resources: "{}",
    container: "max 100000 1 max 1",
    pod: "max 100000 1",
    legacy_container: "-1 2 9223372036854771712",
    legacy_pod: "-1 10",
};
static CLASSES: [Class; 3] = [GUARANTEED, BURSTABLE, BEST_EFFORT];

impl Edge {
    /// A machine is set up, and becomes an edge node.
    async fn join(scene: &Scene<'_>, kind: &'static Kind) -> Result<Self> {
        let options = DebianOptions {
            name: kind.name.to_owned(),
            kernel_arguments: format!("systemd.unified_cgroup_hierarchy={}", u8::from(!kind.legacy)),
            disk: scene.disk.clone(),
        };
        let machine = Debian::boot(&scene.bench.run, &scene.assets, &options).await?;
        machine.sh(&containerd(kind)).await?;
        let (server, token) = (scene.cloud.endpoint_at(HOST), scene.cloud.token().await?);
        let keadm = format!("{}/skerry/keadm", Debian::DISK);
        let said = machine
            .sh(&format!(
                "{keadm} join --cloudcore-ipport={server} --token={token} --timeout=240s \
                 --set=commonConfig.monitorServer.bindAddress=127.0.0.1:10350"
            ))
            .await?;
        ensure!(said.contains("edgecore as edgecore.service"), "{said}");
        let nodes: Api<Node> = Api::all(scene.cluster.client());
        harness::product::ready(&nodes.get(kind.name).await?)?;
        Ok(Self { kind, machine, guests: Vec::new() })
    }

    async fn lives(&mut self, scene: &Scene<'_>) -> Result<()> {
        self.pods_run(scene).await.context(self.kind.name)?;
        self.numbers_are_the_kernels().await.context(self.kind.name)?;
        self.unit_is_kept().await.context(self.kind.name)
    }

    async fn pods_run(&mut self, scene: &Scene<'_>) -> Result<()> {
        let node = self.kind.name;
        let greedy = format!("{node}-greedy");
        scene
            .cluster
            .apply(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {greedy}}}, spec: {{nodeName: {node}, \
                 restartPolicy: Never, containers: [{{name: main, image: '{BUSYBOX}', command: [tail, /dev/zero], \
                 resources: {{limits: {{memory: 24Mi}}}}}}]}}}}"
            ))
            .await?;
        for class in &CLASSES {
            let (name, resources) = (class.name, class.resources);
            scene
                .cluster
                .apply(&format!(
                    "{{apiVersion: v1, kind: Pod, metadata: {{name: {node}-{name}}}, spec: {{nodeName: {node}, \
                     terminationGracePeriodSeconds: 1, containers: [{{name: main, image: '{AGNHOST}', args: [pause], \
                     resources: {resources}}}]}}}}"
                ))
                .await?;
        }
        let pods: Api<Pod> = Api::default_namespaced(scene.cluster.client());
        wait::until("the greedy pod killed", SOON, async || {
            let pod = pods.get(&greedy).await?;
            let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
            let ended = status.and_then(|status| status.state.as_ref()?.terminated.as_ref());
            // The reason, OOMKilled, is the runtime's to tell; it misses it when systemd is quicker to tidy up.
            ensure!(ended.is_some_and(|ended| ended.exit_code == 137), "{:?}", pod.status);
            Ok(())
        })
        .await?;
        pods.delete(&greedy, &DeleteParams::default()).await?;
        for class in &CLASSES {
            let name = format!("{node}-{}", class.name);
            let uid = wait::until("a pod running", SOON, async || {
                let pod = pods.get(&name).await?;
                let status = pod.status.clone().unwrap_or_default();
                ensure!(status.phase.as_deref() == Some("Running"), "{name}: {status:?}");
                Ok(pod.uid().unwrap_or_default())
            })
            .await?;
            self.guests.push(Guest { uid, class });
        }
        self.is_resized(&pods).await?;
        wait::until("the greedy pod gone", SOON, async || {
            let pod = pods.get_opt(&greedy).await?;
            ensure!(pod.is_none(), "it is there");
            Ok(())
        })
        .await
    }

    async fn is_resized(&self, pods: &Api<Pod>) -> Result<()> {
        let name = format!("{}-{}", self.kind.name, GUARANTEED.name);
        let before = pods.get(&name).await?;
        let cpu = json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}});
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": cpu}]}});
        pods.patch_subresource("resize", &name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
        let status = |pod: &Pod| {
            pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first().cloned())
        };
        wait::until("a container resized", SOON, async || {
            let now = status(&pods.get(&name).await?).context("no status")?;
            let limits =
                now.resources.as_ref().and_then(|resources| resources.limits.clone()).unwrap_or_default();
            ensure!(limits.get("cpu").is_some_and(|cpu| cpu.0 == "500m"), "{now:?}");
            ensure!(
                Some(now.container_id) == status(&before).map(|before| before.container_id),
                "it is another"
            );
            Ok(())
        })
        .await
    }

    async fn numbers_are_the_kernels(&self) -> Result<()> {
        let (in_container, in_pod) = if self.kind.legacy {
            (
                &["cpu.cfs_quota_us", "cpu.shares", "memory.limit_in_bytes"][..],
                &["cpu.cfs_quota_us", "cpu.shares"][..],
            )
        } else {
            (&["cpu.max", "cpu.weight", "memory.max", "memory.oom.group"][..], &["cpu.max", "cpu.weight"][..])
        };
        for guest in &self.guests {
            let class = guest.class;
            let (container, pod) = if self.kind.legacy {
                (class.legacy_container, class.legacy_pod)
            } else {
                (class.container, class.pod)
            };
            let group = self.group(guest);
            let found = self.read(&group, in_pod).await?;
            ensure!(found == pod, "{group} has {found}, not {pod}");
            let below = self.machine.sh(&format!("cd {}; ls -d */", self.path("cpu", &group))).await?;
            let mut all = Vec::new();
            for name in below.split_whitespace() {
                all.push(self.read(&format!("{group}/{name}"), in_container).await?);
            }
            ensure!(
                all.iter().any(|numbers| numbers == container),
                "below {group} are {all:?}, not {container}"
            );
        }
        if !self.kind.legacy {
            for (class, weight) in [(&BURSTABLE, "10"), (&BEST_EFFORT, "1")] {
                let group = self.class_group(class);
                wait::until("the weight of a class", SOON, async || {
                    let found = self.read(&group, &["cpu.weight"]).await?;
                    ensure!(found == weight, "{group} has {found}, not {weight}");
                    Ok(())
                })
                .await?;
            }
        }
        Ok(())
    }

    /// The pod's group, below the root of a hierarchy.
    fn group(&self, guest: &Guest) -> String {
        let (class, uid) = (self.class_group(guest.class), &guest.uid);
        if !self.kind.systemd {
            return format!("{class}/pod{uid}");
        }
        let name = class.rsplit('/').next().unwrap_or_default().trim_end_matches(".slice");
        format!("{class}/{name}-pod{}.slice", uid.replace('-', "_"))
    }

    fn class_group(&self, class: &Class) -> String {
        match (self.kind.systemd, class.name) {
            (false, "guaranteed") => "kubepods".to_owned(),
            (false, name) => format!("kubepods/{name}"),
            (true, "guaranteed") => "kubepods.slice".to_owned(),
            (true, name) => format!("kubepods.slice/kubepods-{name}.slice"),
        }
    }

    fn path(&self, controller: &str, group: &str) -> String {
        if self.kind.legacy {
            format!("/sys/fs/cgroup/{controller}/{group}")
        } else {
            format!("/sys/fs/cgroup/{group}")
        }
    }

    /// What a group's files say, on a line.
    async fn read(&self, group: &str, files: &[&str]) -> Result<String> {
        let paths: Vec<String> = files
            .iter()
            .map(|file| format!("{}/{file}", self.path(file.split('.').next().unwrap_or_default(), group)))
            .collect();
        let text = self.machine.sh(&format!("cat {}", paths.join(" "))).await?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// systemd starts edgecore again, and pods do not mind.
    async fn unit_is_kept(&self) -> Result<()> {
        let before = self.tasks().await?;
        ensure!(before.len() == 2 * self.guests.len(), "{before:?}");
        let said = self
            .machine
            .sh("systemctl is-enabled edgecore; kill -9 $(systemctl show -P MainPID edgecore)")
            .await?;
        ensure!(said.trim() == "enabled", "{said}");
        self.is_back(async || {
            let restarts = self.machine.sh("systemctl show -P NRestarts edgecore").await?;
            ensure!(restarts.trim() == "1", "it was started again {restarts} times");
            Ok(())
        })
        .await?;
        ensure!(self.tasks().await? == before, "containers changed as edgecore was killed");
        self.machine.sh("systemctl stop edgecore").await?;
        ensure!(self.tasks().await? == before, "containers changed as edgecore was stopped");
        self.machine.sh("systemctl start edgecore").await?;
        self.is_back(async || Ok(())).await?;
        ensure!(self.tasks().await? == before, "containers changed as edgecore was started");
        Ok(())
    }

    async fn is_back(&self, also: impl AsyncFn() -> Result<()>) -> Result<()> {
        wait::until("edgecore running its pods", SOON, async || {
            also().await?;
            let page = self.machine.sh("busybox wget -q -O - http://127.0.0.1:10350/readyz").await?;
            drop(page);
            Ok::<_, anyhow::Error>(())
        })
        .await
    }

    /// The containers and sandboxes that run.
    async fn tasks(&self) -> Result<Vec<String>> {
        let tasks =
            self.machine.sh("ctr -n k8s.io tasks ls | awk '$3 == \"RUNNING\" { print $1 }' | sort").await?;
        Ok(tasks.split_whitespace().map(str::to_owned).collect())
    }

    /// The machine reboots while the cloud is silent; its pods are back, with their control groups.
    async fn boots_alone(&mut self) -> Result<()> {
        let before = self.tasks().await?;
        self.machine.reboot().await.context(self.kind.name)?;
        wait::until("all pods back", SOON, async || {
            let now = self.tasks().await?;
            ensure!(now.len() == before.len(), "{now:?}");
            ensure!(
                now.iter().all(|task| !before.contains(task)),
                "a container outlived the machine: {now:?}"
            );
            Ok(())
        })
        .await
        .context(self.kind.name)?;
        self.numbers_are_the_kernels().await.context(self.kind.name)
    }

    /// A pod is deleted, the node is reset: nothing is left of either.
    async fn ends(&mut self, scene: &Scene<'_>) -> Result<()> {
        self.pod_ends(scene).await.context(self.kind.name)?;
        self.is_reset().await.context(self.kind.name)
    }

    async fn pod_ends(&mut self, scene: &Scene<'_>) -> Result<()> {
        let pods: Api<Pod> = Api::default_namespaced(scene.cluster.client());
        let guest = self.guests.remove(0);
        pods.delete(&format!("{}-{}", self.kind.name, guest.class.name), &DeleteParams::default()).await?;
        wait::until("nothing left of a deleted pod", SOON, async || {
            let left = self.left_of(&guest.uid).await?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .await
    }

    /// Control groups and units that carry a pod's uid, or all pods'.
    async fn left_of(&self, uid: &str) -> Result<String> {
        let unit = uid.replace('-', "_");
        let left = format!(
            "find /sys/fs/cgroup /run/systemd -name '*pod{uid}*' -o -name '*pod{unit}*'; \
             systemctl list-units --all --plain --no-legend '*pod{unit}*'"
        );
        Ok(self.machine.sh(&left).await?.trim().to_owned())
    }

    async fn is_reset(&self) -> Result<()> {
        let said = self.machine.sh(&format!("{}/skerry/keadm reset --force", Debian::DISK)).await?;
        let state = self.machine.sh("systemctl show -P LoadState edgecore").await?;
        ensure!(state.trim() == "not-found", "the unit is {state}:\n{said}");
        let left = self.machine.sh("findmnt -rn -o TARGET | grep -E 'kubelet|containerd' || true").await?;
        ensure!(left.is_empty(), "mounts are left: {left}\n{said}");
        let left = self.left_of("").await?;
        ensure!(left.is_empty(), "control groups are left: {left}\n{said}");
        Ok(())
    }
}

/// As an operator sets it up.
fn containerd(kind: &Kind) -> String {
    let disk = Debian::DISK;
    let unit = if kind.current {
        format!(
            "mkdir -p /etc/systemd/system/containerd.service.d\n\
             printf '[Service]\\nExecStart=\\nExecStart={disk}/containerd/containerd\\n\
             Environment=PATH={disk}/containerd:/usr/sbin:/usr/bin:/sbin:/bin\\n' \
             > /etc/systemd/system/containerd.service.d/current.conf\n\
             systemctl daemon-reload\n"
        )
    } else {
        String::new()
    };
    format!(
        r#"cat > /etc/containerd/config.toml <<'END'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = {systemd}
END
mkdir -p /etc/cni/net.d
cat > /etc/cni/net.d/10-site.conflist <<'END'
{{"cniVersion": "0.4.0", "name": "site", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "10.88.0.0/24"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
END
{unit}systemctl restart containerd
ctr -n k8s.io images import {disk}/images.tar
"#,
        systemd = kind.systemd
    )
}
