//! The kubelet's API for what takes a stream: `/containerLogs`, `/exec`, `/attach`, `/portForward`, as `kubectl logs`, `exec`,
//! `attach`, `port-forward` and `cp` need them. Each stream of the link carries one HTTP/1.1 connection, whose client is
//! cloudcore, which has authorised the request.
//!
//! Logs are read here, from the runtime's files; for the rest the runtime has a server of its own (CRI `Exec`, `Attach`,
//! `PortForward`), and bytes are passed on. Nothing of it outlives the link's session.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::{ResourceKey, cri::v1};
use runtime::{link::streams::Stream, passage::Passage};
use tokio::{io, sync::mpsc, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    edged::{
        cri::{CriError, Runtime},
        pod::DesiredPod,
    },
    metamanager::Store,
};
use containers::Containers;
use server::ServerStream;

mod containers;
mod logs;
mod query;
mod server;

/// Streams that have come and that nobody serves yet.
pub const WAITING: usize = 8;
/// For the request, which cloudcore has in hand when it opens the stream.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a request's head: a command may be long.
const HEAD: usize = 64 << 10;
/// Parts of a log that wait for the line.
const AHEAD: usize = 1;
/// The runtime's streaming server is on this machine.
const CONNECT: Duration = Duration::from_secs(5);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What is answered in place of what was asked for.
#[derive(Debug)]
struct Refusal(StatusCode, String);

/// See the module.
pub struct EdgeStream {
    streams: mpsc::Receiver<Stream>,
    server: Server,
}

#[derive(Clone)]
struct Server {
    store: Store,
    containers: Containers,
    runtime: Runtime,
}

impl EdgeStream {
    pub fn new(store: Store, runtime: Runtime, streams: mpsc::Receiver<Stream>) -> Self {
        let containers = Containers::new(runtime.clone());
        Self { streams, server: Server { store, containers, runtime } }
    }

    /// Serves until `stop` is cancelled. The link bounds how many streams there are.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut serving = JoinSet::new();
        loop {
            tokio::select! {
                Some(stream) = self.streams.recv() => {
                    let server = self.server.clone();
                    serving.spawn(async move { server.serve(stream).await });
                }
                Some(ended) = serving.join_next() => {
                    if let Err(error) = ended {
                        warn!(error = %runtime::chain(&error), "a stream's task failed");
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

impl Server {
    /// One request, and all that follows from it.
    async fn serve(&self, stream: Stream) {
        let passage = Passage::default();
        let service = service_fn(|request: Request<Incoming>| {
            let passage = &passage;
            async move { Ok::<_, Infallible>(self.answer(request, passage).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            // Not `keep_alive(false)`: that would say so in the answer to an upgrade as well. The client closes.
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            debug!(error = %runtime::chain(&error), "a stream ended early");
        }
        passage.carry().await;
    }

    async fn answer(&self, request: Request<Incoming>, passage: &Passage) -> Response<Body> {
        let path = request.uri().path().to_owned();
        // Not the query: a command may hold what nobody else is to know.
        info!(method = %request.method(), path, "asked for by the cloud");
        match self.route(request, &path, passage).await {
            Ok(answer) => answer,
            Err(Refusal(code, reason)) => {
                debug!(path, code = code.as_u16(), reason, "refused");
                text(code, reason)
            }
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        path: &str,
        passage: &Passage,
    ) -> Result<Response<Body>, Refusal> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let streaming = matches!(*request.method(), Method::GET | Method::POST);
        match parts[..] {
            ["containerLogs", namespace, pod, container] if *request.method() == Method::GET => {
                let pod = self.pod(namespace, pod, None)?;
                self.logs(&pod, container, &query, passage).await
            }
            // The longer forms name the pod's UID.
            ["exec", namespace, pod, ref uid @ .., container] if streaming && uid.len() < 2 => {
                let pod = self.pod(namespace, pod, uid.first().copied())?;
                let container_id = self.containers.running(&pod, container).await?;
                let url = self.runtime.exec_url(query::exec(container_id, &query)?).await;
                lead(passage, &url.map_err(|error| runtime_failed(&error))?, request).await
            }
            ["attach", namespace, pod, ref uid @ .., container] if streaming && uid.len() < 2 => {
                let pod = self.pod(namespace, pod, uid.first().copied())?;
                let container_id = self.containers.running(&pod, container).await?;
                let tty = pod.container(container).is_some_and(|(_, spec)| spec.tty == Some(true));
                let url = self.runtime.attach_url(query::attach(container_id, tty, &query)).await;
                lead(passage, &url.map_err(|error| runtime_failed(&error))?, request).await
            }
            ["portForward", namespace, pod, ref uid @ ..] if streaming && uid.len() < 2 => {
                let pod = self.pod(namespace, pod, uid.first().copied())?;
                let pod_sandbox_id = self.containers.sandbox(&pod).await?;
                let port = query::ports(&query)?;
                let url =
                    self.runtime.port_forward_url(v1::PortForwardRequest { pod_sandbox_id, port }).await;
                lead(passage, &url.map_err(|error| runtime_failed(&error))?, request).await
            }
            _ => Err(Refusal(StatusCode::NOT_FOUND, format!("there is no {} {path}\n", request.method()))),
        }
    }

    /// The pod as this node has it.
    fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<DesiredPod, Refusal> {
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("pod {name:?} is not on this node\n"));
        let key = ResourceKey::new("Pod", namespace, name).map_err(|_| missing())?;
        let failed = |reason: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, reason + "\n");
        let object = self.store.get(&key).map_err(|error| failed(runtime::chain(&error).to_string()))?;
        let pod = DesiredPod::parse(&object.ok_or_else(missing)?);
        let pod = pod.map_err(|error| failed(runtime::chain(&error).to_string()))?;
        if uid.is_some_and(|uid| uid != pod.uid.as_str()) {
            return Err(missing());
        }
        Ok(pod)
    }

    async fn logs(
        &self,
        pod: &DesiredPod,
        container: &str,
        query: &str,
        passage: &Passage,
    ) -> Result<Response<Body>, Refusal> {
        let options =
            logs::Options::parse(query).map_err(|reason| Refusal(StatusCode::BAD_REQUEST, reason + "\n"))?;
        let log = self.containers.log(pod, container, options.previous).await?;
        let file = logs::open(&log.path).await.map_err(|error| {
            let reason = format!("failed to open the log of container {container:?}: {error}\n");
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })?;
        let (parts, body) = mpsc::channel(AHEAD);
        let containers = self.containers.clone();
        passage.spawn(async move {
            let running = || containers.is_running(&log.id);
            if let Err(error) = logs::send(file, &log.path, &options, running, &parts).await {
                // Whoever reads has gone, or hears of it.
                drop(parts.send(Err(error)).await);
            }
        });
        let body = futures_util::stream::unfold(body, |mut body: mpsc::Receiver<io::Result<Bytes>>| async {
            let part = body.recv().await?;
            Some((part.map(Frame::data), body))
        });
        let mut answer = Response::new(StreamBody::new(body).boxed_unsync());
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(answer)
    }
}

/// Passes the request on to the runtime's streaming server, which has given `url` for it.
async fn lead(
    passage: &Passage,
    url: &str,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let failed = |reason: String| {
        Refusal(StatusCode::BAD_GATEWAY, format!("the container runtime's streaming server: {reason}\n"))
    };
    let uri: Uri = url.parse().map_err(|error| failed(format!("{url:?} is no URL: {error}")))?;
    let (Some(authority), Some(path)) = (uri.authority(), uri.path_and_query()) else {
        return Err(failed(format!("{url:?} is not of the form http://HOST:PORT/PATH")));
    };
    let tcp = match time::timeout(CONNECT, ServerStream::connect(authority.as_str())).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(failed(format!("{authority}: {error}"))),
        Err(_) => return Err(failed(format!("{authority}: no answer within {CONNECT:?}"))),
    };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| failed(error.to_string()))?;
    request.headers_mut().insert(header::HOST, host);
    match passage.lead(tcp, Uri::from(path.clone()), request).await {
        Ok(answer) => Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync())),
        Err(error) => Err(failed(runtime::chain(&error).to_string())),
    }
}

fn runtime_failed(error: &CriError) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", runtime::chain(error)))
}

fn text(code: StatusCode, reason: String) -> Response<Body> {
    let mut answer = Response::new(Full::from(reason).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = code;
    answer
}
