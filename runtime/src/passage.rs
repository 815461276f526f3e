//! An HTTP/1.1 request passed on to another server, with its answer and with what it is upgraded to: bytes, whatever they mean
//! (SPDY, WebSocket). For requests without a body.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{self, AsyncRead, AsyncWrite, AsyncWriteExt as _},
    task::JoinSet,
};
use tracing::debug;

/// Of an answer's head.
const HEAD: usize = 64 << 10;

/// What the requests of one connection have led to; dropping it ends all of it.
#[derive(Default)]
pub struct Passage {
    tasks: Mutex<JoinSet<()>>,
    upgrade: Mutex<Option<Upgrade>>,
}

/// Both ends of what a request has become.
struct Upgrade {
    asked: OnUpgrade,
    answered: OnUpgrade,
}

impl Passage {
    /// Does a part of a request's work beside its answer.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Passes the request on over `io`, as one for `uri`; [`carry`](Self::carry) does the rest.
    ///
    /// # Errors
    /// The server at the other end sent no answer.
    pub async fn lead<T>(
        &self,
        io: T,
        uri: Uri,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, hyper::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(io)).await?;
        self.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(error = %crate::chain(&error), "a request passed on ended early");
            }
        });
        let asked = hyper::upgrade::on(&mut request);
        let (mut head, _) = request.into_parts();
        head.uri = uri;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::TRANSFER_ENCODING);
        let mut answer = sender.send_request(Request::from_parts(head, Empty::<Bytes>::new())).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let answered = hyper::upgrade::on(&mut answer);
            *lock(&self.upgrade) = Some(Upgrade { asked, answered });
        }
        Ok(answer)
    }

    /// To be called when the server's connection, on which the requests came, has been served: carries bytes both ways until
    /// both have ended. What either side has sent before it closed comes to the other.
    pub async fn carry(self) {
        let Self { tasks: _tasks, upgrade } = self;
        let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(Upgrade { asked, answered }) = upgrade else { return };
        let (asked, answered) = match tokio::try_join!(asked, answered) {
            Ok((asked, answered)) => (TokioIo::new(asked), TokioIo::new(answered)),
            Err(error) => return debug!(error = %crate::chain(&error), "a stream ended early"),
        };
        let (mut from_client, to_client) = io::split(asked);
        let (mut from_server, to_server) = io::split(answered);
        let up = async {
            one_way(&mut from_client, to_server).await;
            // A server that takes no more may have closed with its last output still on its way to a slow client. To close
            // on what such a client sends would reset its connection, and the output with it (RFC 9112, 9.6).
            io::copy(&mut from_client, &mut io::sink()).await
        };
        let ((), drained) = tokio::join!(one_way(&mut from_server, to_client), up);
        if let Err(error) = drained {
            debug!(%error, "a client ended early");
        }
    }
}

/// Until `from` has ended or `to` takes nothing more.
async fn one_way(from: &mut (impl AsyncRead + Unpin), mut to: impl AsyncWrite + Unpin) {
    let copied = io::copy(from, &mut to).await;
    // After an error as well: what was read before it is complete.
    let closed = to.shutdown().await;
    if let Err(error) = copied.and(closed) {
        debug!(%error, "a stream ended early");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is whole whatever panicked beside it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use hyper::{server, service::service_fn};
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream, duplex},
        time,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\r\n";
    const SWITCH: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\r\n";
    const OUTPUT: usize = 1_000_001;

    /// A client and a server between which one upgraded request has been passed on.
    async fn upgraded(tasks: &mut JoinSet<()>) -> (DuplexStream, DuplexStream) {
        let (mut client, asked) = duplex(1 << 10);
        let (mut server, answered) = duplex(OUTPUT);
        tasks.spawn(async move {
            let passage = Passage::default();
            let answered = Mutex::new(Some(answered));
            let service = service_fn(|request: Request<Incoming>| {
                let (passage, answered) = (&passage, lock(&answered).take());
                async move {
                    let answered = answered.expect("one request");
                    let answer = passage.lead(answered, Uri::from_static("/"), request).await;
                    Ok::<_, Infallible>(answer.expect("an answer"))
                }
            });
            let connection =
                server::conn::http1::Builder::new().serve_connection(TokioIo::new(asked), service);
            connection.with_upgrades().await.expect("served");
            passage.carry().await;
        });
        client.write_all(ASK).await.expect("asked");
        read_head(&mut server).await;
        server.write_all(SWITCH).await.expect("answered");
        read_head(&mut client).await;
        (client, server)
    }

    async fn read_head(io: &mut DuplexStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.expect("a head"));
        }
    }

    #[tokio::test]
    async fn what_a_server_sent_before_it_closed_arrives_whatever_its_client_sends() {
        let mut tasks = JoinSet::new();
        let all = async {
            let (mut client, mut server) = upgraded(&mut tasks).await;
            server.write_all(&vec![b'o'; OUTPUT]).await.expect("written");
            drop(server);
            let mut came = 0;
            let mut buffer = [0; 512];
            while came < OUTPUT {
                client.write_all(b"ping").await.expect("taken, though nobody wants it");
                came += match client.read(&mut buffer).await.expect("no error") {
                    0 => panic!("{came} bytes came"),
                    read => read,
                };
            }
            assert_eq!(client.read(&mut buffer).await.expect("an end"), 0);
            client.write_all(b"ping").await.expect("taken, until the client closes");
            drop(client);
            tasks.join_next().await.expect("one").expect("ended without a panic");
        };
        time::timeout(DEADLINE, all).await.expect("in time");
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_its_server_however_much_that_sends() {
        let mut tasks = JoinSet::new();
        let all = async {
            let (client, mut server) = upgraded(&mut tasks).await;
            drop(client);
            while server.write_all(&[b'o'; 512]).await.is_ok() {}
            tasks.join_next().await.expect("one").expect("ended without a panic");
        };
        time::timeout(DEADLINE, all).await.expect("in time");
    }
}
