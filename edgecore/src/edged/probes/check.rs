//! One look at a container: a command in it, a TCP connection, an HTTP request.

use std::time::Duration;

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use crate::edged::cri::Runtime;

pub(in crate::edged) enum Check {
    Exec { runtime: Box<Runtime>, id: String, command: Vec<String> },
    Tcp { host: String, port: u16 },
    Http { host: String, port: u16, request: HttpRequest },
}

pub(in crate::edged) struct HttpRequest {
    path: String,
    headers: Vec<(String, String)>,
}

impl Check {
    /// `None` for a probe that has nothing to look at, or no address yet.
    pub(in crate::edged) fn of(
        probe: &Probe,
        spec: &Container,
        address: Option<&str>,
        runtime: &Runtime,
        id: &str,
    ) -> Option<Self> {
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return Some(Self::Exec { runtime: Box::new(runtime.clone()), id: id.to_owned(), command });
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().filter(|host| !host.is_empty()).or(address)?.to_owned();
            return Some(Self::Tcp { host, port: port(&tcp.port, spec)? });
        }
        Self::http(probe.http_get.as_ref()?, spec, address)
    }

    /// What a lifecycle hook does is what a probe does. A sleep is no check.
    pub(in crate::edged) fn of_hook(
        hook: &LifecycleHandler,
        spec: &Container,
        address: Option<&str>,
        runtime: &Runtime,
        id: &str,
    ) -> Option<Self> {
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            return Some(Self::Exec { runtime: Box::new(runtime.clone()), id: id.to_owned(), command });
        }
        Self::http(hook.http_get.as_ref()?, spec, address)
    }

    fn http(get: &HTTPGetAction, spec: &Container, address: Option<&str>) -> Option<Self> {
        let host = get.host.as_deref().filter(|host| !host.is_empty()).or(address)?.to_owned();
        Some(Self::Http { host, port: port(&get.port, spec)?, request: http_request(get) })
    }

    pub(in crate::edged) async fn run(&self, limit: Duration) -> Result<(), String> {
        match self {
            Self::Exec { runtime, id, command } => {
                let answer =
                    runtime.exec(id, command.clone(), limit).await.map_err(|error| error.to_string())?;
                match answer.exit_code {
                    0 => Ok(()),
                    code => Err(format!("command ended with {code}")),
                }
            }
            Self::Tcp { host, port } => {
                TcpStream::connect((host.as_str(), *port)).await.map_err(|error| error.to_string())?;
                Ok(())
            }
            Self::Http { host, port, request } => get(host, *port, request).await,
        }
    }
}

fn http_request(get: &HTTPGetAction) -> HttpRequest {
    let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let headers = get.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
    HttpRequest { path, headers: headers.collect() }
}

fn port(port: &IntOrString, spec: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = spec.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok()
}

async fn get(host: &str, port: u16, request: &HttpRequest) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect((host, port)).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let own_host = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut message =
        Request::get(&request.path).header("User-Agent", "kube-probe/1.37").header("Accept", "*/*");
    if !own_host {
        message = message.header("Host", format!("{host}:{port}"));
    }
    for (name, value) in &request.headers {
        message = message.header(name, value);
    }
    let message = message.body(Empty::<Bytes>::new()).map_err(|error| text(&error))?;
    let answer = tokio::select! {
        // Only the head matters: the connection is dropped with its body unread.
        answer = sender.send_request(message) => answer.map_err(|error| text(&error))?,
        ended = connection => return Err(ended.err().map_or("connection closed".to_owned(), |error| text(&error))),
    };
    let status = answer.status().as_u16();
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}
