//! What a container finds around it: network, rights, volumes, limits, names, and what it leaves in the logs.

use std::{
    collections::BTreeSet, fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use edgecore::edged::{
    cri::Runtime,
    image_gc::{ImageGc, ImageGcLimits},
};
use harness::{
    Bench, Site, SiteOptions, bench,
    setup::{AGNHOST, AGNHOST_NEXT, BUSYBOX, PAUSE},
    wait,
};
use serde_json::json;

use crate::node::{
    Node, SOON, address, container, exec, id, is_ready, merge, open, pod_of, read_log, sleeper,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_find_what_their_pods_ask_for() -> Result<()> {
    bench::run_without_product(async |bench| surroundings(bench).await).await
}

async fn surroundings(bench: &Bench) -> Result<()> {
    let site = bench.site(&SiteOptions::default()).await?;
    let node = Node::start(&site, open(site.dir())?)?;
    start_noise(&node).await?;
    network(&site, &node).await?;
    names(&site, &node).await?;
    rights(&site, &node).await?;
    volumes(&site, &node).await?;
    limits(&node).await?;
    let mode = fs::metadata(site.dir().join("pods"))?.permissions().mode();
    ensure!(mode & 0o777 == 0o750, "the pods' directory has mode {mode:o}");
    check_noise(&site, &node).await?;
    images(&site, &node).await?;
    node.end().await?.close().await?;
    Ok(())
}

async fn network(site: &Site, node: &Node) -> Result<()> {
    let serve = |port: u16| json!({"name": "main", "image": AGNHOST, "args": ["netexec", format!("--http-port={port}"), "--udp-port=-1"]});
    let port = json!({"ports": [{"containerPort": 8080, "hostPort": 18081}]});
    node.put("Pod", "host-port", 1, pod_of(serve(8080), port)).await?;
    let mut pod = pod_of(serve(18082), json!({}));
    merge(&mut pod["spec"], json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}));
    node.put("Pod", "host-network", 1, pod).await?;

    let status = node.until("host-port", "ready", is_ready).await?;
    ensure!(status["podIP"] != status["hostIP"], "{status}");
    let host = |port| SocketAddr::new(site.address().into(), port);
    for at in [address(&status, 8080)?, host(18081)] {
        let answer = wait::until("the port", SOON, async || site.http_get(at, "/hostname").await).await?;
        ensure!(answer.body == "host-port", "{at}: {answer:?}");
    }
    let status = node.until("host-network", "ready", is_ready).await?;
    ensure!(status["podIP"] == json!(site.address().to_string()), "{status}");
    let name = site.output("hostname", [""; 0]).await?;
    let answer =
        wait::until("the host's port", SOON, async || site.http_get(host(18082), "/hostname").await).await?;
    ensure!(answer.body == name.trim(), "{answer:?}");

    // A host port is given back with its pod.
    node.delete("Pod", "host-port").await?;
    node.delete("Pod", "host-network").await?;
    wait::until("the host port is free", SOON, async || match site.http_get(host(18081), "/").await {
        Ok(answer) => bail!("{answer:?}"),
        Err(_) => Ok(()),
    })
    .await
}

async fn names(site: &Site, node: &Node) -> Result<()> {
    let env = json!({"env": [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "UID_", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "TIER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['tier']"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
        {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "x", "optional": true}}},
    ], "envFrom": [{"prefix": "P_", "configMapRef": {"name": "named"}}],
       "resources": {"requests": {"cpu": "150m"}}});
    let mut pod = pod_of(sleeper("true"), env);
    merge(
        &mut pod,
        json!({"metadata": {"labels": {"tier": "edge"}}, "spec": {
            "hostname": "box", "subdomain": "rack",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["printer", "printer.site"]}],
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["site.test"], "options": [{"name": "ndots", "value": "3"}]},
        }}),
    );
    node.put("ConfigMap", "named", 1, json!({"data": {"key": "value"}})).await?;
    node.put("Pod", "named", 1, pod).await?;
    let status = node.until("named", "ready", is_ready).await?;
    let ip = status["podIP"].as_str().context("no address")?;
    let main = id(&status, "main")?;
    let env = exec(site, &main, "cat /proc/1/environ | tr '\\0' '\\n'").await?;
    let lines: BTreeSet<&str> = env.lines().collect();
    for expected in [
        "NODE=edge-1".to_owned(),
        format!("HOST_IP={}", site.address()),
        format!("POD_IP={ip}"),
        "UID_=named-uid".to_owned(),
        "TIER=edge".to_owned(),
        "CPU=150".to_owned(),
        "P_key=value".to_owned(),
        "HOSTNAME=box".to_owned(),
    ] {
        ensure!(lines.contains(expected.as_str()), "{expected} is not in {env}");
    }
    ensure!(!env.contains("MAYBE"), "{env}");
    let hosts = exec(site, &main, "cat /etc/hosts").await?;
    for expected in [
        format!("{ip}\tbox.rack.default.svc.cluster.local\tbox\n"),
        "192.0.2.7\tprinter\tprinter.site\n".to_owned(),
    ] {
        ensure!(hosts.contains(&expected), "{expected:?} is not in {hosts}");
    }
    let dns = exec(site, &main, "cat /etc/resolv.conf").await?;
    ensure!(dns == "search site.test\nnameserver 192.0.2.53\noptions ndots:3\n", "{dns:?}");
    ensure!(exec(site, &main, "hostname").await? == "box\n");
    node.delete("Pod", "named").await
}

async fn rights(site: &Site, node: &Node) -> Result<()> {
    let own = json!({
        "securityContext": {
            "runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "map", "mountPath": "/map"}],
    });
    let mut pod = pod_of(sleeper("true"), own);
    merge(
        &mut pod["spec"],
        json!({
            "securityContext": {"fsGroup": 3000, "supplementalGroups": [4000],
                "sysctls": [{"name": "net.core.somaxconn", "value": "321"}]},
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "map", "configMap": {"name": "named", "defaultMode": 0o400}}],
        }),
    );
    node.put("Pod", "confined", 1, pod).await?;
    let privileged = json!({"securityContext": {"privileged": true}});
    node.put("Pod", "privileged", 1, pod_of(sleeper("true"), privileged)).await?;
    let localhost = |name: &str| json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": name}}});
    fs::create_dir_all(site.dir().join("seccomp"))?;
    // Whoever makes a directory is refused.
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
    ]});
    fs::write(site.dir().join("seccomp/no-mkdir.json"), serde_json::to_vec(&profile)?)?;
    node.put("Pod", "profiled", 1, pod_of(sleeper("true"), localhost("no-mkdir.json"))).await?;
    node.put("Pod", "escaping", 1, pod_of(sleeper("true"), localhost("../etc/passwd"))).await?;

    let status = node.until("confined", "ready", is_ready).await?;
    let main = id(&status, "main")?;
    ensure!(exec(site, &main, "id -u; id -g; id -G").await? == "1000\n2000\n2000 3000 4000\n");
    let proc = exec(site, &main, "cat /proc/1/status").await?;
    for expected in
        ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000400", "CapEff:\t0000000000000000"]
    {
        ensure!(proc.contains(expected), "{expected:?} is not in {proc}");
    }
    ensure!(exec(site, &main, "touch /x").await.is_err(), "the root file system can be written");
    exec(site, &main, "touch /scratch/x").await?;
    let stat = exec(site, &main, "stat -c %a:%u:%g /scratch /scratch/x /map/key -L").await?;
    ensure!(stat == "2777:0:3000\n644:1000:3000\n440:0:3000\n", "{stat:?}");
    ensure!(exec(site, &main, "cat /map/key").await? == "value");
    ensure!(exec(site, &main, "cat /proc/sys/net/core/somaxconn").await? == "321\n");

    let status = node.until("privileged", "ready", is_ready).await?;
    let main = id(&status, "main")?;
    exec(site, &main, "mount -t tmpfs none /mnt || { mkdir /mnt && mount -t tmpfs none /mnt; }").await?;
    let status = node.until("profiled", "ready", is_ready).await?;
    let main = id(&status, "main")?;
    exec(site, &main, "touch /x").await?;
    ensure!(exec(site, &main, "mkdir /y").await.is_err(), "the profile does not hold");
    let status = node.until("escaping", "waiting", |status| {
        container(status, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    ensure!(status.await?["phase"] == "Pending");
    for name in ["confined", "privileged", "profiled", "escaping"] {
        node.delete("Pod", name).await?;
    }
    Ok(())
}

async fn volumes(site: &Site, node: &Node) -> Result<()> {
    node.put("ConfigMap", "files", 1, json!({"data": {"a": "one", "b": "two"}})).await?;
    node.put("Secret", "hidden", 1, json!({"data": {"password": "aHVudGVyMg=="}})).await?;
    let host = site.dir().join("host");
    fs::create_dir_all(&host)?;
    fs::write(host.join("file"), "of the host")?;
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let sub = |name: &str, path: &str, sub: &str| json!({"name": name, "mountPath": path, "subPath": sub});
    let mounts = json!([
        mount("all", "/all"), mount("some", "/some"), mount("hidden", "/hidden"), mount("down", "/down"),
        mount("mixed", "/mixed"), mount("ram", "/ram"), mount("host", "/host"), mount("gone", "/gone"),
        sub("all", "/single", "a"), sub("disk", "/deep", "x/y"),
        {"name": "disk", "mountPath": "/mine", "subPathExpr": "of-$(NAME)"},
        {"name": "host", "mountPath": "/host-ro", "readOnly": true},
    ]);
    let env = json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    let resources = json!({"limits": {"memory": "32Mi"}});
    let more = json!({"volumeMounts": mounts, "env": env, "resources": resources});
    let mut pod = pod_of(sleeper("true"), more);
    let labels = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
    merge(
        &mut pod,
        json!({"metadata": {"labels": {"tier": "edge"}}, "spec": {"volumes": [
            {"name": "all", "configMap": {"name": "files"}},
            {"name": "some", "configMap": {"name": "files", "items": [{"key": "b", "path": "dir/b", "mode": 0o600}]}},
            {"name": "hidden", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
            {"name": "down", "downwardAPI": {"items": [labels,
                {"path": "memory", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}}]}},
            {"name": "mixed", "projected": {"sources": [
                {"configMap": {"name": "files", "items": [{"key": "a", "path": "a"}]}},
                {"secret": {"name": "hidden"}}, {"downwardAPI": {"items": [labels]}},
            ]}},
            {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "disk", "emptyDir": {}},
            {"name": "host", "hostPath": {"path": host, "type": "Directory"}},
            {"name": "gone", "configMap": {"name": "absent", "optional": true}},
        ]}}),
    );
    node.put("Pod", "volumes", 1, pod.clone()).await?;
    let status = node.until("volumes", "ready", is_ready).await?;
    let main = id(&status, "main")?;
    let script = "cat /all/a /all/b /some/dir/b /hidden/password /down/labels /down/memory /mixed/a \
        /mixed/password /mixed/labels /single /host/file | tr '\\n' ' '; ls /gone | wc -l; \
        stat -Lc %a /all/a /some/dir/b /hidden/password | tr '\\n' ' '";
    let seen = exec(site, &main, script).await?;
    let expected = "onetwotwohunter2tier=\"edge\"32onehunter2tier=\"edge\"oneof the host0\n644 600 400 ";
    ensure!(seen == expected, "{seen:?}");
    let mounts = exec(site, &main, "cat /proc/mounts").await?;
    let of =
        |path: &str| mounts.lines().find(|line| line.split(' ').nth(1) == Some(path)).unwrap_or_default();
    ensure!(of("/ram").starts_with("tmpfs ") && of("/ram").contains("size=1024k"), "{mounts}");
    // What is secret never reaches the disk by way of a volume.
    for path in ["/hidden", "/mixed", "/down"] {
        ensure!(of(path).starts_with("tmpfs ") && of(path).contains(" ro"), "{path} in {mounts}");
    }
    ensure!(!of("/all").starts_with("tmpfs "), "{mounts}");
    exec(site, &main, "echo 1 > /deep/f; echo 2 > /mine/f; echo 3 > /host/new").await?;
    ensure!(exec(site, &main, "touch /host-ro/x").await.is_err(), "readOnly can be written");
    ensure!(exec(site, &main, "touch /all/x").await.is_err(), "a configMap can be written");
    ensure!(exec(site, &main, "head -c 2000000 /dev/zero > /ram/big").await.is_err(), "no limit of the size");
    let disk = site.dir().join("pods/volumes-uid/volumes/disk");
    ensure!(fs::read_to_string(disk.join("x/y/f"))? == "1\n");
    ensure!(fs::read_to_string(disk.join("of-volumes/f"))? == "2\n");
    ensure!(fs::read_to_string(host.join("new"))? == "3\n");

    // All files of an update at once, in the container that runs; a subPath stays as it was.
    node.put("ConfigMap", "files", 2, json!({"data": {"a": "ONE", "c": "three"}})).await?;
    wait::until("the update", SOON, async || {
        let seen = exec(site, &main, "cat /all/a /all/c; ls /all | tr '\\n' ' '; cat /single").await?;
        if seen == "ONEthreea c one" { Ok(()) } else { bail!("{seen:?}") }
    })
    .await?;
    merge(&mut pod, json!({"metadata": {"labels": {"tier": "core"}}}));
    node.put("ConfigMap", "files", 3, json!({"data": {"a": "ONE", "b": "two", "c": "three"}})).await?;
    node.put("Pod", "volumes", 2, pod).await?;
    wait::until("the new label", SOON, async || {
        let seen = exec(site, &main, "cat /down/labels /mixed/labels").await?;
        if seen == "tier=\"core\"tier=\"core\"" { Ok(()) } else { bail!("{seen:?}") }
    })
    .await?;
    node.put("ConfigMap", "files", 4, json!({"data": {"a": "ONE"}})).await?;
    // A key that a volume names is missing now: what runs keeps what it has.
    ensure!(exec(site, &main, "cat /some/dir/b").await? == "two");
    node.event("volumes", "FailedMount", "has no key \"b\"").await?;

    node.delete("Pod", "volumes").await?;
    let pods = site.dir().join("pods/volumes-uid");
    wait::until("all unmounted", SOON, async || {
        ensure!(!pods.exists(), "{} is there", pods.display());
        Ok(())
    })
    .await?;
    ensure!(host.join("file").exists(), "the host's own files went with the pod");
    Ok(())
}

async fn limits(node: &Node) -> Result<()> {
    let resources = json!({"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}});
    node.put("Pod", "limited", 1, pod_of(sleeper("true"), resources)).await?;
    let same = json!({"resources": {"limits": {"cpu": "100m", "memory": "16Mi"}}});
    node.put("Pod", "guaranteed", 1, pod_of(sleeper("true"), same)).await?;
    node.put("Pod", "best-effort", 1, pod_of(sleeper("true"), json!({}))).await?;
    let eater = sleeper("head -c 100000000 /dev/zero | tail | wc");
    let little = json!({"resources": {"limits": {"memory": "8Mi"}}});
    let mut pod = pod_of(eater, little);
    pod["spec"]["restartPolicy"] = json!("Never");
    // containerd looks for it only once the container has started.
    pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", "sleep 1; exec tail /dev/zero"]);
    node.put("Pod", "eater", 1, pod).await?;

    for (name, class, under, quota, shares, memory) in [
        ("limited", "Burstable", "burstable/", "50000", "256", "67108864"),
        ("guaranteed", "Guaranteed", "", "10000", "102", "16777216"),
        ("best-effort", "BestEffort", "besteffort/", "-1", "2", ""),
    ] {
        let status = node.until(name, "ready", is_ready).await?;
        ensure!(status["qosClass"] == class, "{status}");
        let id = id(&status, "main")?;
        let read = |controller: &str, file: &str| {
            let group = format!("/sys/fs/cgroup/{controller}/kubepods/{under}pod{name}-uid/{id}/{file}");
            fs::read_to_string(&group).context(group)
        };
        // cgroup v1 here; in v2 the runtime makes other files of the same numbers.
        if Path::new("/sys/fs/cgroup/memory").is_dir() {
            ensure!(read("cpu", "cpu.cfs_quota_us")?.trim() == quota, "{name}");
            ensure!(read("cpu", "cpu.shares")?.trim() == shares, "{name}");
            let limit = read("memory", "memory.limit_in_bytes")?;
            ensure!(memory.is_empty() || limit.trim() == memory, "{name}: {limit}");
            // The pod's own group has the same: it has one container.
            let of_pod = |controller: &str, file: &str| {
                let group = format!("/sys/fs/cgroup/{controller}/kubepods/{under}pod{name}-uid/{file}");
                fs::read_to_string(&group).context(group)
            };
            ensure!(of_pod("cpu", "cpu.cfs_quota_us")?.trim() == quota, "the pod {name}");
            ensure!(of_pod("cpu", "cpu.shares")?.trim() == shares, "the pod {name}");
            // Other tests' pods may be of the class, too.
            let class = |name: &str| -> Result<u64> {
                let group = format!("/sys/fs/cgroup/cpu/kubepods/{name}/cpu.shares");
                Ok(fs::read_to_string(&group).context(group)?.trim().parse()?)
            };
            ensure!(
                class("besteffort").map_or(true, |shares| shares == 2),
                "all of best effort gets more than the least"
            );
            ensure!(
                class("burstable").map_or(true, |shares| name != "limited" || shares >= 256),
                "burstable gets too little"
            );
        }
        node.delete("Pod", name).await?;
    }
    let status = node.until("eater", "failed", |status| status["phase"] == "Failed").await?;
    let end = &container(&status, "main")["state"]["terminated"];
    ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{status}");
    node.delete("Pod", "eater").await
}

/// A log that outgrows its bound: measured every half minute, so it begins first.
async fn start_noise(node: &Node) -> Result<()> {
    let script = "yes 0123456789 | head -n 250000; echo end of the noise; \
        while :; do echo tick; sleep 1; done";
    node.put("Pod", "noise", 1, pod_of(sleeper(script), json!({}))).await?;
    let job = json!({"name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"],
        "terminationMessagePolicy": "FallbackToLogsOnError"});
    let mut pod = pod_of(job, json!({}));
    pod["spec"]["restartPolicy"] = json!("Never");
    node.put("Pod", "talker", 1, pod).await
}

async fn check_noise(site: &Site, node: &Node) -> Result<()> {
    let status = node.until("talker", "failed", |status| status["phase"] == "Failed").await?;
    let end = &container(&status, "main")["state"]["terminated"];
    ensure!(end["exitCode"] == 3 && end["reason"] == "Error", "{status}");
    let message = end["message"].as_str().unwrap_or_default();
    ensure!(message.contains("out") && message.contains("err"), "{status}");
    let log = read_log(site, "talker", "main", 0)?;
    ensure!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    let link = format!("talker_default_main-{}.log", id(&status, "main")?);
    let link = site.dir().join("logs/containers").join(link);
    ensure!(fs::read_to_string(&link)? == log, "{} leads elsewhere", link.display());

    let directory = site.dir().join("logs/pods/default_noise_noise-uid/main");
    wait::until("the log's rotation", 2 * SOON, async || {
        let names: Vec<_> = fs::read_dir(&directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let aside = names.iter().any(|name| name.starts_with("0.log."));
        // The runtime writes on into a new file.
        let fresh = fs::read_to_string(directory.join("0.log")).unwrap_or_default();
        ensure!(aside && fresh.contains("tick") && !fresh.contains("0123456789"), "{names:?}");
        Ok(())
    })
    .await?;
    for name in ["noise", "talker"] {
        node.delete("Pod", name).await?;
    }
    wait::until("no log is left", SOON, async || {
        let left = fs::read_dir(site.dir().join("logs/pods"))?.count()
            + fs::read_dir(site.dir().join("logs/containers"))?.count();
        ensure!(left == 0, "{left} entries");
        Ok(())
    })
    .await
}

async fn images(site: &Site, node: &Node) -> Result<()> {
    // One image runs, one is only named by a pod that cannot start, one is not wanted by anybody.
    node.put("Pod", "user", 1, pod_of(sleeper("true"), json!({}))).await?;
    let mut pod = pod_of(json!({"name": "main", "image": AGNHOST}), json!({}));
    pod["spec"]["hostUsers"] = json!(false);
    node.put("Pod", "waiter", 1, pod).await?;
    node.until("user", "ready", is_ready).await?;
    let names = async || -> Result<Vec<String>> {
        let listed = site.ctr(&["images", "list", "-q"]).await?;
        let mut names: Vec<String> =
            listed.lines().filter(|name| name.starts_with("skerry.test")).map(str::to_owned).collect();
        names.sort();
        Ok(names)
    };
    ensure!(names().await? == [AGNHOST, AGNHOST_NEXT, BUSYBOX, PAUSE].map(str::to_owned));
    let limits = |high, low| ImageGcLimits { high, low, min_age: Duration::ZERO };
    let collect = async |limits| {
        let runtime = Runtime::new(&site.runtime_endpoint())?;
        ImageGc::new(runtime, node.store.clone(), String::new(), limits).collect().await
    };
    ensure!(collect(limits(101, 100)).await?.is_empty(), "a disk with room was cleared");
    ensure!(collect(limits(0, 0)).await?.len() == 1);
    ensure!(names().await? == [AGNHOST, BUSYBOX, PAUSE].map(str::to_owned));
    Ok(())
}
