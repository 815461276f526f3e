//! Brokers and collectors that are spoken to within TLS.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use crds::broker::BrokerAddress;
use edgecore::{access::ExternalBroker, eventbus::BrokerTls};
use harness::{
    Run,
    process::{Daemon, command},
    wait,
};
use runtime::tls::{self, CertificateAuthority, ServerIdentity, Trust};
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::{
    app::{App, is_let_in},
    framed, mqtt,
    node::{Node, SOON},
    push::collector,
};

fn write(run: &Run, name: &str, label: &str, der: &[u8]) -> Result<PathBuf> {
    let path = run.dir().join(name);
    fs::write(&path, tls::pem(label, der))?;
    Ok(path)
}

fn certificate(run: &Run, name: &str, der: &[u8]) -> Result<PathBuf> {
    write(run, name, "CERTIFICATE", der)
}

/// Certificate and key for 127.0.0.1.
fn server(run: &Run, ca: &CertificateAuthority) -> Result<(PathBuf, PathBuf)> {
    let (chain, key) = ca.issue_server(&["127.0.0.1".to_owned()])?;
    let key = write(run, "server.key", "PRIVATE KEY", key.secret_der())?;
    Ok((certificate(run, "server.crt", &chain[0])?, key))
}

/// Certificate and key to show.
fn client(run: &Run, ca: &CertificateAuthority) -> Result<(PathBuf, PathBuf)> {
    let (key, request) = tls::node_csr("edge-1")?;
    let signed = ca.sign_node_csr(&request, "edge-1", Duration::from_hours(1))?;
    Ok((certificate(run, "client.crt", &signed)?, write(run, "client.key", "PRIVATE KEY", &key)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_wait_for_a_collector_until_it_is_believed() -> Result<()> {
    framed(async |run| {
        let ca = CertificateAuthority::generate()?;
        let (chain, key) = ca.issue_server(&["127.0.0.1".to_owned()])?;
        let key: PrivateKeyDer<'static> = key;
        let server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (_serving, mut heard) = collector(at, Some(TlsAcceptor::from(Arc::new(server)))).await?;
        // First it is another's CA that is believed.
        let ca_file = certificate(run, "ca.crt", CertificateAuthority::generate()?.certificate())?;
        let trust = Trust { ca_file: Some(ca_file), ..Trust::default() };
        let node = Node::start_believing(run, trust)?;
        let model = json!({"properties": [{"name": "level", "type": "INT"}]});
        let device = json!({"deviceModelRef": {"name": "tank"}, "protocol": {"protocolName": "sonar"},
            "properties": [{"name": "level", "reportCycle": 10, "pushMethod": {"http": {
                "hostName": "https://127.0.0.1", "port": at.port(), "requestPath": "/in", "timeout": 2}}}]});
        node.put("DeviceModel", "tank", &model).await?;
        node.put("Device", "tank", &device).await?;
        let mut mapper = App::start("mapper", node.mqtt_port(), &["$hw/events/device/#"]).await?;
        let update = json!({"event_id": "7", "twin": {"level": {"actual": {"value": "7"}}}});
        wait::until("the device is known", SOON, async || {
            let answer = mapper.ask("$hw/events/device/default/tank/twin/update", &update).await?;
            ensure!(answer.get("code").is_none(), "{answer}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        node.until_reported("tank", "level", "7").await?;
        ensure!(heard.try_recv().is_err(), "a collector whose certificate is another CA's was told");
        certificate(run, "ca.crt", ca.certificate())?;
        let sent = timeout(SOON, heard.recv()).await?.context("the collector has ended")?;
        ensure!(sent.starts_with("/in level=7&time=20"), "{sent}");
        node.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_may_ask_for_a_certificate() -> Result<()> {
    framed(async |run| {
        let ca = CertificateAuthority::generate()?;
        let ca_file = certificate(run, "ca.crt", ca.certificate())?;
        let (certificate, key) = server(run, &ca)?;
        // The app is let in without.
        let port = || anyhow::Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
        let (open, closed) = (port()?, port()?);
        let config = run.dir().join("mosquitto.conf");
        fs::write(
            &config,
            format!(
                "user root\nallow_anonymous true\nlistener {open} 127.0.0.1\nlistener {closed} 127.0.0.1\ncafile {}\n\
                 certfile {}\nkeyfile {}\nrequire_certificate true\n",
                ca_file.display(),
                certificate.display(),
                key.display()
            ),
        )?;
        let config = config.display().to_string();
        let _mosquitto = Daemon::start(run, "mosquitto", command("/usr/sbin/mosquitto", ["-c", &config]))?;
        let external = ExternalBroker {
            address: BrokerAddress { host: "127.0.0.1".to_owned(), port: closed, secure: true },
            login: None,
            trust: Trust { ca_file: Some(ca_file), identity: Some(client(run, &ca)?), ..Trust::default() },
        };
        let node = Node::start_with_broker(run, external)?;
        let mut app = App::start("app", open, &["$hw/events/#"]).await?;
        let thermostat = App::start("thermostat", open, &["home/set"]).await?;
        // A device of it, and the topics of devices there.
        mqtt::is_read_and_set(thermostat, &node).await?;
        let topic = "$hw/events/device/default/t/twin";
        // edgecore is there, too.
        app.until(&format!("{topic}/update/document"), |document| document["twin"].is_object()).await?;
        let twins = app.ask(&format!("{topic}/get"), &json!({"event_id": "1"})).await?;
        ensure!(twins["twin"]["temperature"]["actual"]["value"] == "19.5", "{twins}");
        node.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_own_certificate_may_be_replaced() -> Result<()> {
    framed(async |run| {
        let (ca, of_clients) = (CertificateAuthority::generate()?, CertificateAuthority::generate()?);
        let ca_file = certificate(run, "ca.crt", ca.certificate())?;
        let (certificate_file, key) = server(run, &ca)?;
        let identity = ServerIdentity {
            certificate: certificate_file.clone(),
            key,
            client_ca_file: Some(certificate(run, "clients.crt", of_clients.certificate())?),
            clock: Arc::default(),
        };
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let port = listen.port();
        let node = Node::start_with_tls(run, BrokerTls { listen, identity })?;
        let mut hears = App::start("hears", node.mqtt_port(), &["hall/#"]).await?;

        let known = Trust {
            ca_file: Some(ca_file.clone()),
            identity: Some(client(run, &of_clients)?),
            ..Trust::default()
        };
        let app = App::start_within_tls("app", &known, port, &["yard/#"]).await?;
        app.say("hall/door", "\"open\"").await?;
        hears.until("hall/door", |door| door == "open").await?;
        let stranger = Trust { identity: None, ..known.clone() };
        ensure!(!is_let_in(&stranger, port).await?, "somebody without a certificate is let in");
        ensure!(is_let_in(&known, port).await?, "somebody with a certificate is kept out");

        fs::write(&certificate_file, "no certificate")?;
        ensure!(!is_let_in(&known, port).await?, "with which certificate?");
        let renewed = CertificateAuthority::generate()?;
        server(run, &renewed)?;
        ensure!(!is_let_in(&known, port).await?, "a certificate of another CA is believed");
        certificate(run, "ca.crt", renewed.certificate())?;
        ensure!(is_let_in(&known, port).await?, "the renewed certificate is not shown");
        // Whoever was there stays.
        app.say("hall/door", "\"shut\"").await?;
        hears.until("hall/door", |door| door == "shut").await?;
        node.end().await
    })
    .await
}
