//! Readings that a Device has pushed elsewhere.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use harness::wait;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Collected, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    app::App,
    framed,
    node::{Node, SOON},
};

/// A collector at this address, perhaps within TLS, and what it is sent.
pub(crate) async fn collector(
    at: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> Result<(JoinSet<()>, mpsc::Receiver<String>)> {
    let (say, heard) = mpsc::channel(100);
    let listener = TcpListener::bind(at).await?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match &tls {
                None => collect(stream, &say).await,
                Some(tls) => {
                    // One that does not believe it is not told anything, either.
                    if let Ok(stream) = tls.accept(stream).await {
                        collect(stream, &say).await;
                    }
                }
            }
        }
    });
    Ok((task, heard))
}

async fn collect(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, say: &mpsc::Sender<String>) {
    let service = service_fn(|request: Request<Incoming>| async {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
        drop(say.send(format!("{path} {}", String::from_utf8_lossy(&body))).await);
        Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
    });
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_takes_waits_over_a_restart() -> Result<()> {
    framed(async |run| {
        let at = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let node = Node::start(run)?;
        let model = json!({"properties": [{"name": "level", "type": "INT"}]});
        let device = json!({"deviceModelRef": {"name": "tank"}, "protocol": {"protocolName": "sonar"},
            "properties": [{"name": "level", "reportCycle": 10, "pushMethod": {"http": {
                "hostName": "http://127.0.0.1", "port": at.port(), "requestPath": "/in", "timeout": 2}}}]});
        node.put("DeviceModel", "tank", &model).await?;
        node.put("Device", "tank", &device).await?;
        let mut mapper = App::start("mapper", node.mqtt_port(), &["$hw/events/device/#"]).await?;
        for level in ["1", "2", "3"] {
            let update = json!({"event_id": level, "twin": {"level": {"actual": {"value": level}}}});
            wait::until("the device is known", SOON, async || {
                let answer = mapper.ask("$hw/events/device/default/tank/twin/update", &update).await?;
                ensure!(answer.get("code").is_none(), "{answer}");
                Ok::<_, anyhow::Error>(())
            })
            .await?;
            node.until_reported("tank", "level", level).await?;
        }
        node.end().await?;
        let (_serving, mut heard) = collector(at, None).await?;
        let node = Node::start(run)?;
        let mut sent = Vec::new();
        while !sent.last().is_some_and(|last: &String| last.starts_with("/in level=3&time=20")) {
            sent.push(timeout(SOON, heard.recv()).await?.context("the collector has ended")?);
        }
        // The second has made way if the third came within the same cycle of 10 ms.
        let is_next =
            |(at, sent): (usize, &String)| sent.starts_with(&format!("/in level={}&time=20", at + 1));
        ensure!(sent.len() == 2 || sent.iter().enumerate().all(is_next), "{sent:?}");
        ensure!(sent[0].starts_with("/in level=1&"), "{sent:?}");
        node.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_too_soon_after_another_goes_later() -> Result<()> {
    framed(async |run| {
        let at = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (_serving, mut heard) = collector(at, None).await?;
        let node = Node::start(run)?;
        let model = json!({"properties": [{"name": "level", "type": "INT"}]});
        let device = json!({"deviceModelRef": {"name": "tank"}, "protocol": {"protocolName": "sonar"},
            "properties": [{"name": "level", "reportCycle": 2000, "pushMethod": {"http": {
                "hostName": "127.0.0.1", "port": at.port(), "requestPath": "/in"}}}]});
        node.put("DeviceModel", "tank", &model).await?;
        node.put("Device", "tank", &device).await?;
        let mut mapper = App::start("mapper", node.mqtt_port(), &["$hw/events/device/#"]).await?;
        let topic = "$hw/events/device/default/tank/twin/update";
        let update =
            |level: &str| json!({"event_id": level, "twin": {"level": {"actual": {"value": level}}}});
        wait::until("the device is known", SOON, async || {
            let answer = mapper.ask(topic, &update("1")).await?;
            ensure!(answer.get("code").is_none(), "{answer}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let sent = timeout(SOON, heard.recv()).await?.context("the collector has ended")?;
        ensure!(sent.starts_with("/in level=1&"), "{sent}");
        // Of several within one cycle the last one goes, and nothing else has to happen for it.
        for level in ["2", "3", "4"] {
            mapper.ask(topic, &update(level)).await?;
        }
        let sent = timeout(SOON, heard.recv()).await?.context("the collector has ended")?;
        ensure!(sent.starts_with("/in level=4&"), "{sent}");
        node.end().await
    })
    .await
}
