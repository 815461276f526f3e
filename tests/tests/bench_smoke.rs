//! The bench itself: what it starts works, what it cuts is cut, and nothing of it is left behind.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    Bench, ClusterOptions, HeartbeatNodes, Impairment, LineCut, Site, SiteOptions, bench,
    run::processes_below,
    setup::{AGNHOST, BUSYBOX},
    site::Asking,
    wait,
};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt, api::ListParams};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_control_plane_has_healthy_neighbours() -> Result<()> {
    bench::run_without_product(async |bench: &Bench| {
        let mut cluster = bench.cluster(&ClusterOptions::default()).await?;
        let _neighbours = HeartbeatNodes::start(&cluster.client(), 2).await?;
        let nodes: Api<Node> = Api::all(cluster.client());
        wait::until("two Ready nodes without the lifecycle controller's taints", SOON, async || {
            let nodes = nodes.list(&ListParams::default()).await?;
            for node in &nodes {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
                let taints = taints.map_or(0, Vec::len);
                ensure!(taints == 1, "{} has {taints} taints", node.name_any());
            }
            ensure!(nodes.items.len() == 2, "{} nodes", nodes.items.len());
            Ok(())
        })
        .await?;
        let table = cluster.kubectl(&["get", "nodes"]).await?;
        ensure!(table.contains("cloud-1") && table.contains("Ready"), "{table}");
        cluster.check_alive()
    })
    .await
}

#[tokio::test]
async fn a_site_runs_containers_behind_a_line_that_can_be_cut() -> Result<()> {
    let mut left: Option<PathBuf> = None;
    bench::run_without_product(async |bench: &Bench| {
        let mut site = bench.site(&SiteOptions::default()).await?;
        left = Some(site.dir().to_owned());

        let web = site.run_bare_pod(
            "web",
            AGNHOST,
            &["netexec", "--http-port=8080", "--udp-port=-1"],
            Some((8081, 8080)),
            Asking::Least,
        );
        let web = web.await?;
        let addresses = [(site.pod_ip("web-uid").await?, 8080).into(), (site.address(), 8081).into()];
        answers(&site, &addresses).await?;
        let running = async |site: &Site| -> Result<Vec<String>> {
            let containers = site.containers().await?;
            Ok(containers
                .into_iter()
                .filter(|container| container.running)
                .map(|container| container.id)
                .collect())
        };
        let mut both = vec![web.sandbox.clone(), web.container.clone()];
        both.sort();
        ensure!(running(&site).await? == both);

        for how in [LineCut::Unplugged, LineCut::Silent] {
            reaches_host(&site).await?;
            site.cut(how)?;
            // At the site, nothing has happened.
            answers(&site, &addresses).await?;
            if reaches_host(&site).await.is_ok() {
                bail!("the line carries packets although it is cut ({how:?})");
            }
            site.restore()?;
        }
        reaches_host(&site).await?;

        // A second's worth of the thin line, but for what passes at once; by a good one it is there in no time.
        let thin = Impairment { rate: 256, loss: 0 };
        for (impaired, at_least) in [(Some(thin), 0.8), (None, 0.0)] {
            impaired.map_or_else(|| site.relieve(), |impairment| site.impair(impairment))?;
            let took = takes(&site, 32 << 10).await?.as_secs_f64();
            ensure!(took >= at_least && took < at_least + 5.0, "{took} s over a line with {impaired:?}");
        }
        site.impair(Impairment { rate: 100_000, loss: 99 })?;
        ensure!(reaches_host(&site).await.is_err(), "nothing is lost although nearly all is to be");
        site.relieve()?;
        reaches_host(&site).await?;

        site.kill9_containerd()?;
        answers(&site, &addresses).await.context("a container does not need containerd to go on")?;
        site.start_containerd().await?;
        ensure!(running(&site).await? == both, "the containers changed with containerd");

        site.cut(LineCut::Silent)?;
        site.power_off()?;
        ensure!(processes_below(site.dir())?.is_empty(), "something has power of its own");
        site.power_on().await?;
        ensure!(reaches_host(&site).await.is_err(), "a power cut restores no line");
        ensure!(running(&site).await?.is_empty(), "something survived a power cut");
        // The disk is as it was: the images are there.
        site.run_bare_pod("again", BUSYBOX, &["/bin/bash", "-c", "sleep 1000"], None, Asking::AsKubelet)
            .await?;
        Ok(())
    })
    .await?;
    let dir = left.context("the site had a directory")?;
    ensure!(!dir.exists(), "{} is left", dir.display());
    ensure!(processes_below(&dir)?.is_empty(), "processes are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let run = dir.parent().and_then(|run| run.file_name()).context("the site was in a run")?;
    ensure!(!mounts.contains(&*run.to_string_lossy()), "mounts are left");
    Ok(())
}

/// The pod answers by its own address and by its port of the host.
async fn answers(site: &Site, addresses: &[SocketAddr]) -> Result<()> {
    wait::until("netexec answering at the site", SOON, async || {
        for address in addresses {
            let response = site.http_get(*address, "/echo?msg=hello").await?;
            ensure!(response.status == 200 && response.body == "hello", "{address}: {response:?}");
        }
        Ok(())
    })
    .await
}

/// One connection over the line to a listener at the host's end.
async fn reaches_host(site: &Site) -> Result<()> {
    takes(site, 0).await.map(drop)
}

/// How long an answer of so many bytes takes from the host's end of the line to the site.
async fn takes(site: &Site, bytes: usize) -> Result<Duration> {
    let begun = Instant::now();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let address = SocketAddr::from((site.host_address(), listener.local_addr()?.port()));
    let asked = site.http_get(address, "/");
    let answered = async {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await?;
        stream.write_all(&vec![b'x'; bytes]).await?;
        stream.shutdown().await?;
        // Until the asker has closed too, or its unread request would reset the connection.
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        response = asked => response.map(|_| begun.elapsed()),
        Err(error) = answered => Err(error),
    }
}
