//! Every manifest of `examples/` runs as it stands, here on the current containerd; most other tests have Debian's.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    Bench, ClusterOptions, Containerd, Site, SiteOptions, bench,
    product::{Cloud, Edge},
    setup::{BUSYBOX, source_dir},
    wait,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};

const SOON: Duration = Duration::from_mins(1);

#[tokio::test]
async fn the_examples_run_on_an_edge_node() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let cluster = bench.cluster(&ClusterOptions::default()).await?;
        let mut site =
            bench.site(&SiteOptions { containerd: Containerd::Current, ..SiteOptions::default() }).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[site.host_address()]).await?;
        Edge::join(&bench.assets, &cloud, &site, "edge-1", &[]).await?;
        // The names of images that a site would pull.
        site.ctr(&["images", "tag", BUSYBOX, "docker.io/library/busybox:1.36"]).await?;
        cluster.kubectl(&["label", "nodes", "edge-1", "edge-location=warehouse-a"]).await?;
        let examples = source_dir().join("examples").display().to_string();
        cluster.kubectl(&["apply", "-f", &examples]).await?;
        cluster
            .kubectl(&["wait", "--for=condition=Available", "deployments", "--all", "--timeout=60s"])
            .await?;

        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        let pods = pods.list(&ListParams::default().labels("app=greeting")).await?;
        // Debian's containerd does not tell it.
        let user = pods.items[0]
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref()?.first()?.user.as_ref()?.linux.as_ref());
        ensure!(user.is_some_and(|user| (user.uid, user.gid) == (1000, 3000)), "{user:?}");
        let address = SocketAddr::from((site.pod_ip(&pods.items[0].uid().unwrap_or_default()).await?, 8080));
        let text = page(&site, address, "/pages/").await?;
        ensure!(text.contains("warehouse A"), "{text}");
        let note = page(&site, address, "/notes/start").await?;
        ensure!(note.contains("the night shift on edge-1"), "{note}");

        cluster
            .kubectl(&[
                "patch",
                "configmap",
                "greeting",
                "--patch",
                r#"{"data":{"index.html":"Good night."}}"#,
            ])
            .await?;
        wait::until("the changed page", SOON, async || {
            let text = page(&site, address, "/pages/").await?;
            ensure!(text.contains("Good night."), "{text}");
            Ok(())
        })
        .await?;

        // containerd's upgrade or crash: the pod goes on, and edgecore finds its way back to the runtime.
        site.kill9_containerd()?;
        site.start_containerd().await?;
        ensure!(
            page(&site, address, "/pages/").await?.contains("Good night."),
            "the pod ended with containerd"
        );
        cluster.kubectl(&["delete", "-f", &examples, "--timeout=60s"]).await?;
        wait::until("an empty site", SOON, async || {
            let left = site.containers().await?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    })
    .await
}

async fn page(site: &Site, address: SocketAddr, path: &str) -> Result<String> {
    Ok(site.http_get(address, path).await?.body)
}
