//! An HTTP/1.1 request passed on to another server, with its answer and with what it is upgraded to: bytes, whatever they mean
//! (SPDY, WebSocket). For requests without a body.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{self, AsyncRead, AsyncWrite},
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
    /// both have ended, or one has failed.
    pub async fn carry(self) {
        let Self { tasks: _tasks, upgrade } = self;
        let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(Upgrade { asked, answered }) = upgrade else { return };
        let ended = async {
            let (asked, answered) = tokio::try_join!(asked, answered).map_err(io::Error::other)?;
            io::copy_bidirectional(&mut TokioIo::new(asked), &mut TokioIo::new(answered)).await
        };
        if let Err(error) = ended.await {
            debug!(%error, "a stream ended early");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is whole whatever panicked beside it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
