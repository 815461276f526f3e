//! The connection below the link.
//!
//! What a dead line swallows is sent again ever more seldom: a line that comes back may be up for a quarter of a minute
//! before the connection attempt that waits on it tries again. So another attempt begins beside one that got no answer, at
//! a steady pace, and the first to be answered wins. Only this first step is doubled: a cloudcore that answers, but slowly,
//! is not asked twice.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use runtime::link::{self, Line, proxy::Proxy};
use tokio::{
    net::{TcpStream, lookup_host},
    time,
};

/// Between attempts. A dead line carries none of it, and a living one answers the first.
const EVERY: Duration = Duration::from_secs(2);
/// How long one attempt may take: longer than any line's round trip, and short enough that only four are under way.
const PATIENCE: Duration = Duration::from_secs(8);

/// The addresses of `HOST:PORT`, at least one.
pub(super) async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Connects to `HOST:PORT`, through a proxy if there is one; that looks the name up, then. Has no deadline of its own.
pub(super) async fn line(address: &str, proxy: Option<&Proxy>) -> io::Result<Line> {
    match proxy {
        None => Line::over(tcp(address).await?),
        Some(proxy) => {
            let tcp = tcp(proxy.address()).await.map_err(|error| proxy.unreachable(error))?;
            Ok(proxy.tunnel(tcp, address).await?)
        }
    }
}

async fn tcp(address: &str) -> io::Result<TcpStream> {
    // Once for all attempts: a resolver that hangs cannot be cancelled.
    let addresses = resolve(address).await?;
    first(addresses, |all| async move { link::connect(&all).await }).await
}

/// The first answer that one of the attempts comes to. Each begins with another address than the one before it.
pub(super) async fn first<T, E, F>(
    mut addresses: Vec<SocketAddr>,
    attempt: impl Fn(Vec<SocketAddr>) -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut attempts = FuturesUnordered::new();
    let mut pace = time::interval(EVERY);
    loop {
        // Both arms only note progress that is kept outside of them.
        tokio::select! {
            _ = pace.tick() => {
                attempts.push(time::timeout(PATIENCE, attempt(addresses.clone())));
                addresses.rotate_left(1);
            }
            // An error is an answer too (refused, no route): whoever called tries again later.
            Some(Ok(answer)) = attempts.next() => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn an_address_that_swallows_everything_does_not_hold_up_another() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(any).unwrap();
        // Once its queue is full, the kernel drops what knocks there.
        let silent = socket.listen(1).unwrap();
        let address = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = time::timeout(EVERY, TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
        }
        let good = TcpListener::bind(any).await.unwrap();
        let addresses = vec![address, good.local_addr().unwrap()];
        let connecting = first(addresses, |all| async move { TcpStream::connect(&all[..]).await });
        let stream = time::timeout(PATIENCE, connecting).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_refusal_is_told_at_once() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = line(&address.to_string(), None).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let proxy = format!("https://{address}");
        let error =
            line("cloud.example:10000", Some(&proxy.parse().unwrap())).await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("proxy {proxy} cannot be reached: ")), "{error}");
    }
}
