//! The life of an edge node by keadm: join, join again, reset, reset again, join anew.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    Bench, ClusterOptions, Site, SiteOptions, bench,
    product::{Cloud, Edge, ready},
    run::processes_below,
    setup::AGNHOST,
    wait,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};

const SOON: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_node_joins_and_is_reset_and_joins_again() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let cluster = bench.cluster(&ClusterOptions::default()).await?;
        let site = bench.site(&SiteOptions::default()).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[site.host_address()]).await?;
        let root = site.dir().join("edge");
        let before = mounts(&site).await?;

        let said = Edge::try_join(&bench.assets, &cloud, &site, "edge-1", &["--dry-run"]).await?;
        ensure!(said.contains("kind: EdgeCore") && !root.exists(), "a dry run made {}:\n{said}", root.display());

        let edge = Edge::join(&bench.assets, &cloud, &site, "edge-1", &[]).await?;
        let nodes: Api<Node> = Api::all(cluster.client());
        ready(&nodes.get("edge-1").await?)?;
        let pid = edge.pid()?;
        Edge::try_join(&bench.assets, &cloud, &site, "edge-1", &[]).await?;
        ensure!(edge.pid()? == pid, "a second join restarted edgecore");

        // With what a reset has to undo: a token's mount, a memory volume, a port.
        cluster
            .apply(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: guest}}, spec: {{nodeName: edge-1, \
                 terminationGracePeriodSeconds: 1, containers: [{{name: guest, image: '{AGNHOST}', args: [pause], \
                 ports: [{{containerPort: 80, hostPort: 8089}}], \
                 volumeMounts: [{{name: memory, mountPath: /memory}}]}}], \
                 volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}]}}}}"
            ))
            .await?;
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        let running = wait::until("the guest running", SOON, async || {
            let pod = pods.get("guest").await?;
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            ensure!(phase == Some("Running"), "{phase:?}");
            Ok(pod.uid().unwrap_or_default())
        });
        let uid = running.await?;
        ensure!(site.containers().await?.iter().any(|container| container.pod_uid == uid));

        let options = ["reset".to_owned(), format!("--root-dir={}", root.display()), "--force".to_owned()];
        let reset = async || site.output(cloud.keadm_program(), &options).await;
        let said = reset().await?;
        ensure!(!root.exists(), "{} is left:\n{said}\n{:?}", root.display(), list(&root)?);
        ensure!(site.containers().await?.is_empty(), "containers are left:\n{said}");
        let after = mounts(&site).await?;
        ensure!(before == after, "mounts before:\n{before}\nand after:\n{after}");
        for name in ["pods", "containers"] {
            ensure!(list(&site.dir().join("log").join(name))?.is_empty(), "logs are left in {name}");
        }
        let left = processes_below(&root)?;
        ensure!(left.is_empty(), "processes are left: {left:?}");
        reset().await?;

        Edge::join(&bench.assets, &cloud, &site, "edge-1", &[]).await?;
        wait::until("the guest back", SOON, async || {
            let found = site.containers().await?;
            ensure!(found.iter().any(|container| container.pod_uid == uid && container.running), "{found:?}");
            Ok(())
        })
        .await
    })
    .await
}

/// What is mounted where, in the site's mount namespace.
/// But for the sites of other runs, which come and go.
async fn mounts(site: &Site) -> Result<String> {
    let all = site.output("findmnt", ["--list", "--noheadings", "--output=TARGET,FSTYPE"]).await?;
    let own = all.lines().filter(|mount| !mount.starts_with("/run/netns/skerry-"));
    Ok(own.collect::<Vec<_>>().join("\n"))
}

fn list(dir: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    Ok(fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}
