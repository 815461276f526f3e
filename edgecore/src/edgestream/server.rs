//! A connection to the runtime's streaming server, which is on this machine.
//!
//! When a command ends, such a server closes at once, with up to megabytes of output in its socket that a slow line has not
//! taken yet. Bytes that come for a closed socket end it: the kernel answers with a reset and forgets what was to be sent
//! (RFC 1122, 4.2.2.13), and a client pings every few seconds. So nothing is written to a server that has closed. Its FIN
//! comes behind the output; but the kernel tells of both ends of a connection that is its own.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use procfs::{
    ProcResult,
    net::{TcpNetEntry, TcpState},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tracing::debug;

pub(super) struct ServerStream {
    tcp: TcpStream,
    /// Nothing was there to be read at the last look: neither output nor its end.
    drained: bool,
}

impl ServerStream {
    pub(super) async fn connect(authority: &str) -> io::Result<Self> {
        Ok(Self { tcp: TcpStream::connect(authority).await?, drained: false })
    }

    /// Whether the other end's socket belongs to no process any more. One that is not found is not known to.
    fn is_closed(&self) -> io::Result<bool> {
        let ends = (canonical(self.tcp.peer_addr()?), canonical(self.tcp.local_addr()?));
        let find = |table: ProcResult<Vec<TcpNetEntry>>| {
            let is_far =
                |end: &TcpNetEntry| (canonical(end.local_address), canonical(end.remote_address)) == ends;
            table.map(|table| table.into_iter().find(is_far)).map_err(io::Error::other)
        };
        let far = match find(procfs::net::tcp())? {
            Some(far) => Some(far),
            // Who listens on all addresses has connections over IPv4 here, too.
            None => find(procfs::net::tcp6())?,
        };
        let closing = |state| matches!(state, TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing);
        // Half-closed is still somebody's.
        Ok(far.is_some_and(|far| closing(far.state) && far.inode == 0))
    }
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        self.drained = read.is_pending();
        read
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.drained {
            match self.is_closed() {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Err(error) => {
                    debug!(%error, "whether the runtime's streaming server has closed is not known");
                }
            }
        }
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const OUTPUT: usize = 1_000_001;

    /// The server listens on the one, and is connected to at the other.
    async fn pair(on: &str, at: &str) -> (ServerStream, TcpStream) {
        let listener = TcpListener::bind((on, 0)).await.expect("a port");
        let at = format!("{at}:{}", listener.local_addr().expect("bound").port());
        let (client, accepted) = tokio::join!(ServerStream::connect(&at), listener.accept());
        (client.expect("connected"), accepted.expect("accepted").0)
    }

    #[tokio::test]
    async fn the_output_of_a_server_that_has_closed_outlives_what_its_client_sends() {
        for (on, at) in [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "127.0.0.1")] {
            let (mut client, mut server) = pair(on, at).await;
            server.write_all(&vec![b'o'; OUTPUT]).await.expect("it fits into the sockets");
            drop(server);
            let refused = client.write_all(b"ping").await.expect_err("it has closed");
            assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
            let mut output = Vec::new();
            client.read_to_end(&mut output).await.expect("all of it");
            assert_eq!(output.len(), OUTPUT);
        }
    }

    #[tokio::test]
    async fn a_server_that_reads_on_gets_what_its_client_sends() {
        let (mut client, mut server) = pair("127.0.0.1", "127.0.0.1").await;
        // It has something to be read, and then has no more to say.
        server.write_all(b"o").await.expect("written");
        client.write_all(b"1").await.expect("written");
        server.shutdown().await.expect("half-closed");
        client.write_all(b"2").await.expect("written");
        client.shutdown().await.expect("half-closed");
        let mut input = String::new();
        server.read_to_string(&mut input).await.expect("all of it");
        assert_eq!(input, "12");
    }
}
