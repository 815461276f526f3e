//! An edgecore as far as pods go, at a site, with no cloud: edged runs in this process on threads that have entered
//! the site's namespaces.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use crds::componentconfig::edgecore::EvictionHard;
use edgecore::{
    doors::Doors,
    edged::{Edged, EdgedConfig, EdgedError, node_status::NodeStatusConfig},
    edgehub::HubState,
    metamanager::{DesiredChange, Options, Store},
};
use harness::{Site, setup::BUSYBOX, wait};
use proto::{Object, ResourceKey, cri::v1, message::ReportKind};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) const SOON: Duration = Duration::from_mins(1);

/// See the module.
pub(crate) struct Node {
    pub(crate) store: Store,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), EdgedError>>>,
    /// `None` once dropped.
    threads: Option<Runtime>,
    // What a test does not look at must still not be closed.
    _hub: watch::Sender<HubState>,
}

impl Node {
    pub(crate) fn start(site: &Site, store: Store) -> Result<Self> {
        Self::start_with(site, store, EvictionHard::default())
    }

    pub(crate) fn start_with(site: &Site, store: Store, least: EvictionHard) -> Result<Self> {
        let dir = site.dir();
        let config = EdgedConfig {
            node: "edge-1".to_owned(),
            node_status: NodeStatusConfig {
                node: "edge-1".to_owned(),
                node_ip: Some(site.address().into()),
                cloud: String::new(),
                labels: BTreeMap::default(),
                schedulable: true,
                max_pods: 110,
                memory_capacity: None,
                cpu_millis: None,
                every: Duration::from_secs(10),
                pods_dir: dir.join("pods"),
                least,
            },
            runtime_endpoint: site.runtime_endpoint(),
            cgroup_driver: None,
            sandbox_image: String::new(),
            pods_dir: dir.join("pods"),
            pod_logs_dir: dir.join("logs/pods"),
            container_logs_dir: dir.join("logs/containers"),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
        };
        let (asks, _) = mpsc::channel(1);
        let (hub, state) = watch::channel(HubState::default());
        let namespaces = site.namespaces()?;
        let threads = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || namespaces.enter().expect("the site has power"))
            .build()?;
        let edged = {
            let _entered = threads.enter();
            Edged::new(config, store.clone(), asks, state, Doors::default())?
        };
        let stop = CancellationToken::new();
        let task = threads.spawn(edged.run(stop.clone()));
        Ok(Self { store, stop, task: Some(task), threads: Some(threads), _hub: hub })
    }

    /// The pods go on.
    pub(crate) async fn end(mut self) -> Result<Store> {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.await??;
        }
        Ok(self.store.clone())
    }

    pub(crate) async fn put(&self, kind: &str, name: &str, version: u64, mut object: Value) -> Result<()> {
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!("default");
        if kind == "Pod" {
            object["metadata"]["uid"] = json!(format!("{name}-uid"));
        }
        let key = ResourceKey::new(kind, "default", name)?;
        let object = Object::new(key, version, serde_json::to_vec(&object)?.into());
        self.store.apply(vec![DesiredChange::Put(object)]).await?;
        Ok(())
    }

    /// As the API server does when someone deletes the pod: the object stays until its end was reported.
    pub(crate) async fn stop_pod(&self, name: &str, version: u64, mut pod: Value, grace: u32) -> Result<()> {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put("Pod", name, version, pod).await?;
        wait::until(&format!("{name}: terminated"), SOON, async || {
            if self.reports(ReportKind::PodTerminated, name)?.is_empty() {
                bail!("not yet")
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let key = ResourceKey::new(kind, "default", name)?;
        self.store.apply(vec![DesiredChange::Delete(key)]).await?;
        Ok(())
    }

    pub(crate) fn reports(&self, kind: ReportKind, name: &str) -> Result<Vec<Value>> {
        self.reports_of(kind, &format!("Pod/default/{name}"))
    }

    fn reports_of(&self, kind: ReportKind, key: &str) -> Result<Vec<Value>> {
        let reports = self.store.pending_reports(0, 10_000)?;
        let wanted = reports.iter().filter(|report| report.kind == kind as i32 && report.key == key);
        wanted.map(|report| Ok(serde_json::from_slice(&report.payload)?)).collect()
    }

    pub(crate) fn status(&self, name: &str) -> Result<Value> {
        let mut reports = self.reports(ReportKind::PodStatus, name)?;
        Ok(reports.pop().context("no status yet")?["status"].take())
    }

    /// The node's own status, as last reported.
    pub(crate) fn node_status(&self) -> Result<Value> {
        let mut reports = self.reports_of(ReportKind::NodeStatus, "Node//edge-1")?;
        Ok(reports.pop().context("no status yet")?["status"].take())
    }

    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until(&format!("{name}: {what}"), SOON, async || {
            let status = self.status(name)?;
            if holds(&status) { Ok(status) } else { bail!("{status}") }
        })
        .await
    }

    /// Waits for an event with that reason, and with that text in its message.
    pub(crate) async fn event(&self, name: &str, reason: &str, text: &str) -> Result<Value> {
        wait::until(&format!("{name}: event {reason}"), SOON, async || {
            let events = self.reports(ReportKind::Event, name)?;
            let found = events.iter().find(|event| {
                event["reason"] == reason
                    && event["message"].as_str().is_some_and(|message| message.contains(text))
            });
            found.cloned().with_context(|| {
                let told = events.iter().map(|event| format!("{}: {}", event["reason"], event["message"]));
                format!("there are {:?}", told.collect::<Vec<_>>())
            })
        })
        .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

pub(crate) fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["conditions"].as_array().into_iter().flatten();
    all.into_iter().find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}

pub(crate) fn is_ready(status: &Value) -> bool {
    status["phase"] == "Running" && condition(status, "Ready")["status"] == "True"
}

pub(crate) fn container<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["containerStatuses"].as_array().into_iter().flatten();
    all.into_iter().find(|container| container["name"] == name).unwrap_or(&Value::Null)
}

/// What the container `main` waits for.
pub(crate) fn waits_for(status: &Value, reason: &str) -> bool {
    container(status, "main")["state"]["waiting"]["reason"] == reason
}

/// The id of a container as the runtime knows it.
pub(crate) fn id(status: &Value, name: &str) -> Result<String> {
    let id = container(status, name)["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://"));
    id.map(str::to_owned).with_context(|| format!("no id of {name} in {status}"))
}

pub(crate) fn address(status: &Value, port: u16) -> Result<SocketAddr> {
    let ip = status["podIP"].as_str().with_context(|| format!("no address in {status}"))?;
    Ok(SocketAddr::new(ip.parse()?, port))
}

/// Runs a command in a container; what it printed.
pub(crate) async fn exec(site: &Site, id: &str, script: &str) -> Result<String> {
    let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 30 };
    let answer = site.runtime().await?.exec_sync(request).await?.into_inner();
    let (out, errors) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
    if answer.exit_code != 0 {
        bail!("{script} ended with {}: {out}{errors}", answer.exit_code);
    }
    Ok(out.into_owned())
}

pub(crate) fn open(dir: &Path) -> Result<Store> {
    Ok(Store::open(&dir.join("store"), Options::default())?)
}

pub(crate) fn read_log(site: &Site, pod: &str, container: &str, attempt: u32) -> Result<String> {
    let path = site.dir().join(format!("logs/pods/default_{pod}_{pod}-uid/{container}/{attempt}.log"));
    std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
}

/// A container that does something and then sleeps.
pub(crate) fn sleeper(script: &str) -> Value {
    shell(&format!("{script}; exec sleep 1000000"))
}

pub(crate) fn shell(script: &str) -> Value {
    json!({"name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", script]})
}

/// A pod of one container, with more put over it.
pub(crate) fn pod_of(mut container: Value, more: Value) -> Value {
    merge(&mut container, more);
    json!({"spec": {"containers": [container], "terminationGracePeriodSeconds": 1}})
}

pub(crate) fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
