//! cloudcore in the cluster, as `keadm init` deploys it: on a node that upstream's kubelet runs.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, CloudNode, ClusterOptions, SiteOptions, bench,
    process::{command, output_async},
    product::ready,
    setup::of_program,
};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const IMAGE: &str = "skerry.test/cloudcore:1";
const PORT: u16 = 10000;

#[tokio::test]
async fn keadm_init_deploys_cloudcore_and_an_edge_joins_it() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let cloud = bench.site(&SiteOptions::default()).await?;
        let site = bench.site(&SiteOptions::default()).await?;
        let cluster = bench
            .cluster(&ClusterOptions {
                reachable_from_sites: true,
                addresses: vec![cloud.host_address().into()],
                ..ClusterOptions::default()
            })
            .await?;
        let archive = bench.run.dir().join("cloudcore.tar");
        let bin = bench.assets.product()?;
        of_program(IMAGE, &bin.join("cloudcore"), &archive)?;
        cloud.import(&archive).await?;
        let _node = CloudNode::start(&bench.assets, &cluster, &cloud, "cloud-1").await?;

        let kubeconfig = format!("--kube-config={}", cluster.kubeconfig().display());
        let (endpoint, mut proxy) = forward((cloud.address(), PORT).into(), site.host_address()).await?;
        let advertise = format!("--advertise-address={},{}", cloud.address(), site.host_address());
        let image = format!("--image={IMAGE}");
        let keadm = async |args: &[&str]| -> Result<String> {
            let mut keadm = command(bin.join("keadm"), args);
            bench.run.mark(&mut keadm);
            output_async(keadm).await
        };
        keadm(&["init", &kubeconfig, &advertise, &image, "--timeout=120s"]).await?;
        // A second one finds everything as it is to be.
        keadm(&["init", &kubeconfig, &advertise, &image, "--timeout=120s"]).await?;

        let token = keadm(&["gettoken", &kubeconfig]).await?;
        let join = [
            "join".to_owned(),
            format!("--cloudcore-ipport={endpoint}"),
            format!("--token={}", token.trim()),
            "--edgenode-name=edge-1".to_owned(),
            format!("--remote-runtime-endpoint={}", site.runtime_endpoint()),
            format!("--root-dir={}", site.dir().join("edge").display()),
            format!("--bin-dir={}", bin.display()),
        ];
        tokio::select! {
            joined = site.output(bin.join("keadm"), join) => drop(joined?),
            ended = proxy.join_next() => ended.context("the proxy runs")??,
        }
        let nodes: Api<Node> = Api::all(cluster.client());
        ready(&nodes.get("edge-1").await?)?;
        let pods = cluster.kubectl(&["get", "pods", "-n", "kubeedge", "-o", "wide"]).await?;
        ensure!(pods.contains("cloud-1") && pods.contains("1/1"), "{pods}");

        keadm(&["reset", "--force", &kubeconfig]).await?;
        let left = cluster.kubectl(&["get", "deployments", "-A"]).await?;
        ensure!(!left.contains("cloudcore"), "{left}");
        Ok(())
    })
    .await
}

/// Between two sites there is only the host: connections to a port of its end of one line go to the other site.
async fn forward(to: SocketAddr, at: Ipv4Addr) -> Result<(SocketAddr, JoinSet<()>)> {
    let listener = TcpListener::bind((at, 0)).await?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut far = TcpStream::connect(to).await?;
                copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    Ok((address, tasks))
}
