//! A site whose only way out is an HTTP proxy that wants a password.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use anyhow::Result;
use harness::{
    Bench, Site,
    process::{Daemon, command},
    product::{Edge, Scene, pod, ready},
    setup::BUSYBOX,
    wait,
};
use serde_json::json;

use crate::{SPACE, is_over};

const NODE: &str = "edge-proxied";
const SOON: Duration = Duration::from_mins(1);
const USER: &str = "joe";
const PASSWORD: &str = "s3cret";

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    let (proxy, _tinyproxy) = proxy(bench, site.host_address())?;
    site.allow_only_tcp(proxy)?;
    let url = format!("http://{USER}:{PASSWORD}@{}:{proxy}", site.host_address());
    let settings = ["modules.edgeHub.heartbeat=2", &format!("modules.edgeHub.websocket.proxy={url}")];
    let edge = wait::until("the proxy up, and the node joined through it", SOON, async || {
        Edge::join(&bench.assets, &scene.cloud, site, NODE, &settings).await
    })
    .await?;
    wait::until("the link over the WebSocket", SOON, async || is_over(&edge, "websocket").await).await?;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    scene.run(SPACE, &pod("behind-a-proxy", NODE, &spec)).await?;
    ready(&scene.node(NODE).await?)?;
    let log = fs::read_to_string(edge.log())?;
    anyhow::ensure!(!log.contains(PASSWORD), "the proxy's password is in edgecore's log");
    Ok(())
}

/// A proxy on the host, and its port.
fn proxy(bench: &Bench, address: Ipv4Addr) -> Result<(u16, Daemon)> {
    let port = TcpListener::bind((address, 0))?.local_addr()?.port();
    let config = bench.run.dir().join("tinyproxy.conf");
    let text = format!(
        "Listen {address}\nPort {port}\nTimeout 600\nMaxClients 20\nLogLevel Connect\nBasicAuth {USER} {PASSWORD}\n"
    );
    fs::write(&config, text)?;
    let mut tinyproxy = command("tinyproxy", ["-d", "-c"]);
    tinyproxy.arg(&config);
    Ok((port, Daemon::start(&bench.run, "tinyproxy", tinyproxy)?))
}
