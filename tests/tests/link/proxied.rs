//! A site whose only way out is an HTTP proxy that wants a password: one that is spoken to within TLS, and then one that is not.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Run, Site,
    process::{Daemon, command},
    product::{Edge, Scene, pod, ready},
    setup::BUSYBOX,
    wait,
};
use runtime::tls::{self, CertificateAuthority};
use serde_json::{Value, json};

use crate::{SPACE, is_over};

const NODE: &str = "edge-proxied";
const SOON: Duration = Duration::from_mins(1);
const USER: &str = "joe";
const PASSWORD: &str = "s3cret";

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    let host = site.host_address();
    let (plain, _tinyproxy) = tinyproxy(bench, host)?;
    let stunnel = Stunnel::new(bench, host, plain)?;
    let running = stunnel.start(&bench.run)?;
    site.allow_only_tcp(&[plain, stunnel.port])?;
    wait::until("the proxies up", SOON, async || {
        TcpStream::connect((host, plain)).and_then(|_| TcpStream::connect((host, stunnel.port)))
    })
    .await?;

    let ca_file = bench.run.dir().join("proxy-ca.pem");
    let (right, wrong) = (stunnel.ca.certificate(), CertificateAuthority::generate()?);
    let trust = |ca: &[u8]| tls::write_durably(&ca_file, 0o644, tls::pem("CERTIFICATE", ca).as_bytes());
    let join = async |user: &str, scheme: &str, port: u16| {
        let proxy = format!("--proxy={scheme}://{user}@{host}:{port}");
        let file = format!("--proxy-ca-file={}", ca_file.display());
        let options = [&proxy, &file, "--set=modules.edgeHub.heartbeat=2"];
        Edge::try_join(&bench.assets, &scene.cloud, site, NODE, &options).await
    };
    let with_password = format!("{USER}:{PASSWORD}");
    // What keadm says of a proxy that it does not trust, and of one that does not trust it.
    trust(wrong.certificate())?;
    refused(
        join(&with_password, "https", stunnel.port).await,
        "has a certificate of a CA that is not trusted here",
    )?;
    trust(right)?;
    refused(
        join(&format!("{USER}:wrong"), "https", stunnel.port).await,
        "check user and password in its URL",
    )?;
    refused(join(&with_password, "http", stunnel.port).await, "the URL begins with https://")?;

    join(&with_password, "https", stunnel.port).await?;
    let edge = Edge::joined(&bench.assets, site, NODE)?;
    wait::until("the link over the WebSocket", SOON, async || is_over(&edge, "websocket").await).await?;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    scene.run(SPACE, &pod("behind-a-proxy", NODE, &spec)).await?;
    ready(&scene.node(NODE).await?)?;

    // A CA that is not the proxy's any more: the node says so, and takes the right one from the file as it is then.
    trust(wrong.certificate())?;
    drop(running);
    let running = stunnel.start(&bench.run)?;
    wait::until("the proxy not trusted", SOON, async || {
        let state: Value = serde_json::from_str(&edge.admin("/nodez").await?.body)?;
        let error = state["lastError"].as_str().unwrap_or_default();
        ensure!(
            state["connected"] == false && error.contains("modules.edgeHub.websocket.proxyCaFile"),
            "{state}"
        );
        Ok(())
    })
    .await?;
    let pid = edge.pid()?;
    trust(right)?;
    wait::until("the link back", SOON, async || is_over(&edge, "websocket").await).await?;
    ensure!(edge.pid()? == pid, "edgecore has started anew");

    // The same machine, through the proxy without TLS.
    drop(running);
    join(&with_password, "http", plain).await?;
    wait::until("the link in the clear", SOON, async || is_over(&edge, "websocket").await).await?;
    let log = fs::read_to_string(edge.log())?;
    ensure!(!log.contains(PASSWORD), "the proxy's password is in edgecore's log");
    Ok(())
}

/// keadm's preflight has said what is wrong.
fn refused(joined: Result<String>, told: &str) -> Result<()> {
    let error = format!("{:#}", joined.err().context("it has joined")?);
    ensure!(error.contains(told), "{told:?} is not in: {error}");
    Ok(())
}

fn free_port(address: Ipv4Addr) -> Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

/// A proxy on the host, and its port.
fn tinyproxy(bench: &Bench, address: Ipv4Addr) -> Result<(u16, Daemon)> {
    let port = free_port(address)?;
    let config = bench.run.dir().join("tinyproxy.conf");
    let text = format!(
        "Listen {address}\nPort {port}\nTimeout 600\nMaxClients 20\nLogLevel Connect\nBasicAuth {USER} {PASSWORD}\n"
    );
    fs::write(&config, text)?;
    let mut tinyproxy = command("tinyproxy", ["-d", "-c"]);
    tinyproxy.arg(&config);
    Ok((port, Daemon::start(&bench.run, "tinyproxy", tinyproxy)?))
}

/// What puts TLS before that proxy, as at sites that have one.
struct Stunnel {
    ca: CertificateAuthority,
    port: u16,
    config: PathBuf,
}

impl Stunnel {
    fn new(bench: &Bench, address: Ipv4Addr, proxy: u16) -> Result<Self> {
        let ca = CertificateAuthority::generate()?;
        let (chain, key) = ca.issue_server(&[address.to_string()])?;
        let file = |name: &str| bench.run.dir().join(name);
        let write = |path: &Path, label: &str, der: &[u8]| {
            tls::write_durably(path, 0o600, tls::pem(label, der).as_bytes())
        };
        let (certificate, key_file) = (file("proxy.pem"), file("proxy.key"));
        write(&certificate, "CERTIFICATE", chain.first().context("no certificate")?)?;
        write(&key_file, "PRIVATE KEY", key.secret_der())?;
        let (config, port) = (file("stunnel.conf"), free_port(address)?);
        let text = format!(
            "foreground = yes\npid =\nsyslog = no\n[proxy]\naccept = {address}:{port}\nconnect = {address}:{proxy}\n\
             cert = {}\nkey = {}\n",
            certificate.display(),
            key_file.display()
        );
        fs::write(&config, text)?;
        Ok(Self { ca, port, config })
    }

    fn start(&self, run: &Arc<Run>) -> Result<Daemon> {
        Daemon::start(run, "stunnel", command("stunnel4", [&self.config]))
    }
}
