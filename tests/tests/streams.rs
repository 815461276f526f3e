//! What takes a stream, with kubectl and an API server that knows of nothing special, over both transports: logs, exec,
//! attach, port-forward, cp; who may; and what becomes of it when the line changes, is cut, or is full.

mod streams {
    pub(crate) mod access;
    pub(crate) mod line;
    pub(crate) mod tools;
}

use anyhow::{Context, Result};
use harness::{Bench, ClusterOptions, bench, product::Scene};

#[tokio::test]
async fn kubectl_reaches_into_a_site() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, mut sites) = Scene::start(bench, &ClusterOptions::default(), 2).await?;
        scene.namespace(SPACE).await?;
        let [first, second] = &mut sites[..] else { unreachable!("two were asked for") };
        let quic =
            async { Box::pin(streams::tools::run(bench, &scene, first, "quic")).await.context("quic") };
        let websocket = async {
            Box::pin(streams::tools::run(bench, &scene, second, "websocket")).await.context("websocket")
        };
        let (edge, other) = tokio::try_join!(quic, websocket)?;
        streams::access::run(&scene, &edge).await.context("access")?;
        streams::line::run(bench, &scene, (first, &edge), (second, &other)).await.context("line")
    })
    .await
}

pub(crate) const SPACE: &str = "streams";
