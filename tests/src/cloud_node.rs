//! A node of the cloud: upstream's kubelet on a site's containerd.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

use crate::{
    Assets, Cluster, Site,
    cluster::FIRST_SERVICE_IP,
    process::{Daemon, tail},
    product::ready,
    wait,
};

const START_DEADLINE: Duration = Duration::from_mins(1);

/// Its kubelet; the site that it runs on stays the caller's.
pub struct CloudNode {
    _kubelet: Daemon,
}

impl CloudNode {
    /// Starts a kubelet and waits until its node is Ready. The API server must be `reachable_from_sites` and have the
    /// host's end of the site's line among its `addresses`.
    pub async fn start(assets: &Assets, cluster: &Cluster, site: &Site, name: &str) -> Result<Self> {
        let host = site.host_address();
        let user = format!("system:node:{name}");
        let kubeconfig = cluster.kubeconfig_at(host, &user, &["system:nodes"])?;
        // What kube-proxy would do for the one Service that pods of the host's network ask for.
        site.rules(&format!(
            "table ip skerry_service {{\n\
             chain out {{ type nat hook output priority -100; \
             ip daddr {FIRST_SERVICE_IP} tcp dport 443 dnat to {host}:{}; }}\n}}\n",
            cluster.port()
        ))?;
        let root = site.dir().join("kubelet");
        fs::create_dir_all(&root)?;
        let config = root.join("config.yaml");
        let text = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": site.runtime_endpoint(),
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": false,
            // The host's cgroups are shared with all that runs there: no tree of its own, nothing reserved.
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "address": "127.0.0.1",
            "healthzPort": 0,
            "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true } },
            "authorization": { "mode": "Webhook" },
            "imageGCHighThresholdPercent": 100,
            "evictionHard": { "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%" },
        });
        fs::write(&config, serde_json::to_vec_pretty(&text)?)?;
        let options = [
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--root-dir={}", root.display()),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", site.address()),
        ];
        let mut kubelet = site.spawn(&assets.kubelet, options, "kubelet")?;
        let nodes: Api<Node> = Api::all(cluster.client());
        wait::until("kubelet's node Ready", START_DEADLINE, async || {
            kubelet.check_alive()?;
            ready(&nodes.get(name).await?)
        })
        .await
        .with_context(|| format!("the end of its log:\n{}", tail(kubelet.log())))?;
        Ok(Self { _kubelet: kubelet })
    }
}
