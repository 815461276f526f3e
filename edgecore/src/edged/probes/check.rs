//! One look at a container: a command in it, a TCP connection, an HTTP or HTTPS request, gRPC's health service.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use super::{grpc, http::HttpRequest};
use crate::edged::cri::Runtime;

/// Of what a command says, this much goes into an event.
const MAX_OUTPUT: usize = 1024;

/// Why a check did not pass.
pub(in crate::edged) enum Miss {
    /// The container did not do what it should.
    Failed(String),
    /// The runtime could not say: no fault of the container's.
    Unknown(String),
}

pub(in crate::edged) enum Check {
    Exec { runtime: Box<Runtime>, id: String, command: Vec<String> },
    Tcp { host: String, port: u16 },
    Http { host: String, port: u16, request: HttpRequest, any_status: bool },
    Grpc { host: String, port: u16, service: String },
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
        if let Some(grpc) = &probe.grpc {
            let service = grpc.service.clone().unwrap_or_default();
            return Some(Self::Grpc {
                host: address?.to_owned(),
                port: u16::try_from(grpc.port).ok()?,
                service,
            });
        }
        Self::http(probe.http_get.as_ref()?, spec, address, false)
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
        // As with kubelet: an answer is enough.
        Self::http(hook.http_get.as_ref()?, spec, address, true)
    }

    fn http(get: &HTTPGetAction, spec: &Container, address: Option<&str>, any_status: bool) -> Option<Self> {
        let host = get.host.as_deref().filter(|host| !host.is_empty()).or(address)?.to_owned();
        Some(Self::Http { host, port: port(&get.port, spec)?, request: HttpRequest::of(get), any_status })
    }

    pub(in crate::edged) async fn run(&self, limit: Duration) -> Result<(), Miss> {
        let asked = match self {
            Self::Exec { runtime, id, command } => {
                let answer = runtime.exec(id, command.clone(), limit).await.map_err(|error| {
                    if error.is_timeout() {
                        Miss::Failed(error.to_string())
                    } else {
                        Miss::Unknown(error.to_string())
                    }
                })?;
                if answer.exit_code == 0 {
                    return Ok(());
                }
                let mut output = String::from_utf8_lossy(&answer.stdout).into_owned();
                output.push_str(&String::from_utf8_lossy(&answer.stderr));
                Err(output.chars().take(MAX_OUTPUT).collect())
            }
            Self::Tcp { host, port } => {
                TcpStream::connect((host.as_str(), *port)).await.map(drop).map_err(|error| error.to_string())
            }
            Self::Http { host, port, request, any_status } => {
                request.get(host, *port).await.and_then(|status| {
                    let good = *any_status || (200..400).contains(&status);
                    if good { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {status}")) }
                })
            }
            Self::Grpc { host, port, service } => grpc::check(host, *port, service).await,
        };
        asked.map_err(Miss::Failed)
    }
}

/// By number, or by its name in the container. `None` when no port has the name.
pub(in crate::edged) fn port(port: &IntOrString, spec: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = spec.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok()
}
