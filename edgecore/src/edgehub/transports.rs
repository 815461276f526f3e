//! Which transport carries the link. QUIC has the line for itself at first; then the WebSocket is tried beside it, and what
//! is up first is taken. Where UDP does not get through, the next links begin with the WebSocket, and QUIC is tried again
//! from time to time, beside a session that does without.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use runtime::{
    backoff::Backoff,
    chain,
    link::{Heard, Link, LinkError, proxy::Proxy, quic, websocket},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{self, Instant};
use tracing::debug;

use super::{HubConfig, HubError, dialer};

/// How long QUIC is tried alone. With what the WebSocket then takes, a line that drops UDP is up within three seconds.
const HEAD_START: Duration = Duration::from_millis(1500);
/// The same, beside a session in doubt: seconds have passed already, and it may be for UDP that it is.
const SHORT_HEAD_START: Duration = Duration::from_millis(300);
/// How long QUIC may still take when the WebSocket has failed.
const LAST_CHANCE: Duration = Duration::from_secs(3);
/// How long QUIC may take when the link is up already.
const PROBE: Duration = Duration::from_secs(10);
/// Between addresses of a server that has several (RFC 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Addresses of a server that are tried at once.
const ADDRESSES: usize = 4;

/// Where cloudcore is, and whose certificate it has to show.
pub(super) struct Server {
    pub(super) address: String,
    pub(super) name: ServerName<'static>,
}

impl Server {
    /// `key` is that of the configuration.
    pub(super) fn parse(key: &'static str, address: &str) -> Result<Self, HubError> {
        let host = address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        let name = host.and_then(|host| ServerName::try_from(host).ok());
        let name = name.ok_or_else(|| HubError::Server { key, server: address.to_owned() })?;
        Ok(Self { address: address.to_owned(), name })
    }
}

/// Why a link is dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// There is none.
    Usual,
    /// There was one, or is one still, over which nothing comes any more.
    InDoubt,
}

pub(super) struct Transports {
    quic: Option<Server>,
    websocket: Option<Server>,
    proxy: Option<Proxy>,
    dialer: quic::Dialer,
    /// UDP did not get through when TCP did.
    quic_is_blocked: bool,
    probes: Backoff,
    /// When QUIC is tried again beside a session that does without.
    probe: Option<Instant>,
}

impl Transports {
    /// To one cloudcore: its `HOST:PORT` for TCP and, if the link may use QUIC, for UDP.
    pub(super) fn new(
        config: &HubConfig,
        (tcp, udp): (&str, Option<&str>),
        proxy: Option<Proxy>,
    ) -> Result<Self, HubError> {
        let quic = udp.map(|server| Server::parse("quic.server", server)).transpose()?;
        let websocket = config.websocket.then(|| Server::parse("websocket.server", tcp)).transpose()?;
        let (shortest, longest) = config.quic_probes;
        let (dialer, probes) = (quic::Dialer::default(), Backoff::new(shortest, longest));
        Ok(Self { quic, websocket, proxy, dialer, quic_is_blocked: false, probes, probe: None })
    }

    pub(super) fn dial_with(&mut self, dialer: quic::Dialer) {
        self.dialer = dialer;
    }

    /// A link, up as far as can be said before the first frame. Has no deadline of its own.
    pub(super) async fn connect(
        &mut self,
        tls: &Arc<ClientConfig>,
        manner: Manner,
        heard: Heard,
    ) -> Result<Link, LinkError> {
        let heard = &heard;
        let (quic, websocket) = match (&self.quic, &self.websocket) {
            (Some(quic), None) => return over_quic(&self.dialer, quic, tls, heard).await,
            (Some(quic), Some(websocket)) if !self.quic_is_blocked => (quic, websocket),
            (_, Some(websocket)) => {
                let link = over_websocket(websocket, self.proxy.as_ref(), tls, heard).await;
                // Perhaps it is TCP that does not get through now.
                self.quic_is_blocked &= link.is_ok();
                return link;
            }
            // The configuration's check has seen to it that there is one.
            (None, None) => return Err(LinkError::NoTransport),
        };
        let head_start = match manner {
            Manner::Usual => HEAD_START,
            Manner::InDoubt => SHORT_HEAD_START,
        };
        let mut over_quic = over_quic(&self.dialer, quic, tls, heard);
        let early = time::timeout(head_start, &mut over_quic).await;
        let mut over_websocket = over_websocket(websocket, self.proxy.as_ref(), tls, heard);
        let link = match early {
            Ok(Ok(link)) => Ok(link),
            // UDP gets through, and over TCP it is the same cloudcore.
            Ok(Err(busy @ LinkError::Busy { .. })) => Err(busy),
            Ok(Err(error)) => {
                debug!(error = %chain(&error), "no link over QUIC");
                over_websocket.await
            }
            // What has begun goes on when the other arm wins.
            Err(_) => tokio::select! {
                link = &mut over_quic => match link {
                    Ok(link) => Ok(link),
                    Err(error) => {
                        debug!(error = %chain(&error), "no link over QUIC");
                        over_websocket.await
                    }
                },
                link = &mut over_websocket => match link {
                    Ok(link) => Ok(link),
                    Err(error) => match time::timeout(LAST_CHANCE, over_quic).await {
                        Ok(Ok(link)) => Ok(link),
                        _ => Err(error),
                    },
                },
            },
        }?;
        self.quic_is_blocked = link.transport == "websocket";
        if !self.quic_is_blocked {
            self.probes.reset();
        }
        Ok(link)
    }

    /// A link over QUIC, whenever it gets through again, for a session that does without.
    /// `tls` is asked for each time: months may go by meanwhile.
    pub(super) async fn quic_again(&mut self, tls: impl Fn() -> Option<Arc<ClientConfig>>) -> Link {
        let Some(quic) = &self.quic else { return std::future::pending().await };
        loop {
            // Whoever does not wait to the end waits on the next time.
            let probes = &mut self.probes;
            let probe = *self.probe.get_or_insert_with(|| Instant::now() + probes.next_delay());
            time::sleep_until(probe).await;
            self.probe = None;
            let Some(tls) = tls() else { continue };
            match time::timeout(PROBE, over_quic(&self.dialer, quic, &tls, &Heard::default())).await {
                Ok(Ok(link)) => {
                    self.quic_is_blocked = false;
                    self.probes.reset();
                    return link;
                }
                Ok(Err(error)) => debug!(error = %chain(&error), "QUIC does not get through"),
                Err(_) => debug!("QUIC does not get through"),
            }
        }
    }

    /// QUIC came up and carried nothing: small packets get through and large ones do not, or what is in between lost its
    /// memory.
    pub(super) fn quic_failed(&mut self) {
        self.quic_is_blocked = true;
    }
}

/// On the heap: the handshake's buffers are to go with it.
fn over_websocket<'a>(
    server: &'a Server,
    proxy: Option<&'a Proxy>,
    tls: &'a Arc<ClientConfig>,
    heard: &'a Heard,
) -> BoxFuture<'a, Result<Link, LinkError>> {
    let Server { address, name } = server;
    let connect_error = |source| LinkError::Connect { address: address.clone(), source };
    async move {
        let line = dialer::line(address, proxy).await.map_err(connect_error)?;
        heard.note();
        websocket::over(line, address, name.clone(), Arc::clone(tls)).await
    }
    .boxed()
}

/// On the heap, for the same reason.
fn over_quic<'a>(
    dialer: &'a quic::Dialer,
    server: &'a Server,
    tls: &'a ClientConfig,
    heard: &'a Heard,
) -> BoxFuture<'a, Result<Link, LinkError>> {
    let Server { address, name } = server;
    let connect_error = |source| LinkError::Connect { address: address.clone(), source };
    async move {
        let addresses = dialer::resolve(address).await.map_err(connect_error)?;
        dialer::first(addresses, |all| any_over_quic(dialer, all, address, (name, tls), heard)).await
    }
    .boxed()
}

/// The first of some addresses that answers; else what went wrong with the last one.
async fn any_over_quic(
    dialer: &quic::Dialer,
    addresses: Vec<SocketAddr>,
    address: &str,
    (name, tls): (&ServerName<'static>, &ClientConfig),
    heard: &Heard,
) -> Result<Link, LinkError> {
    let mut attempts: FuturesUnordered<_> = (0_u32..)
        .zip(addresses.into_iter().take(ADDRESSES))
        .map(|(number, peer)| async move {
            time::sleep(number * NEXT_ADDRESS).await;
            dialer.connect(peer, address, name, tls, heard).await
        })
        .collect();
    let mut failure = LinkError::NoTransport;
    while let Some(link) = attempts.next().await {
        match link {
            Ok(link) => return Ok(link),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests;
