//! Every manifest of `examples/` runs as it stands.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    Bench, ClusterOptions, SiteOptions, bench,
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
        let site = bench.site(&SiteOptions::default()).await?;
        let cloud = Cloud::init(&bench.run, &bench.assets, &cluster, &[site.host_address()]).await?;
        Edge::join(&bench.assets, &cloud, &site, "edge-1", &[]).await?;
        // The names of images that a site would pull.
        site.ctr(&["images", "tag", BUSYBOX, "docker.io/library/busybox:1.36"]).await?;
        cluster.kubectl(&["label", "nodes", "edge-1", "edge-location=warehouse-a"]).await?;
        for example in fs::read_dir(source_dir().join("examples"))? {
            cluster.apply(&fs::read_to_string(example?.path())?).await?;
        }
        cluster
            .kubectl(&["wait", "--for=condition=Available", "deployments", "--all", "--timeout=60s"])
            .await?;

        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        let pods = pods.list(&ListParams::default().labels("app=greeting")).await?;
        let address = SocketAddr::from((site.pod_ip(&pods.items[0].uid().unwrap_or_default()).await?, 8080));
        let page = async |path: &str| anyhow::Ok(site.http_get(address, path).await?.body);
        ensure!(page("/pages/").await?.contains("warehouse A"), "{}", page("/pages/").await?);
        let note = page("/notes/start").await?;
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
            let page = page("/pages/").await?;
            ensure!(page.contains("Good night."), "{page}");
            Ok(())
        })
        .await
    })
    .await
}
