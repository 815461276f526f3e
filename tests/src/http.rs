//! HTTP as a neighbour would ask it: one `GET`, its answer whole.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::{sync::oneshot, task::spawn_blocking};

use crate::Site;

const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);
/// A test page is small; more than this is not read.
const LONGEST: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Site {
    /// `GET` of a path, done inside the site's network namespace.
    pub async fn http_get(&self, address: SocketAddr, path: &str) -> Result<Response> {
        let netns = File::open(self.netns_file())?;
        let path = path.to_owned();
        let (answer, result) = oneshot::channel();
        // A thread of its own, because it changes its network namespace for good.
        std::thread::Builder::new().name(format!("{}-http", self.name())).spawn(move || {
            let response = setns(&netns, CloneFlags::CLONE_NEWNET)
                .context("failed to enter the site's network namespace")
                .and_then(|()| tcp(address, &path));
            // Fails when the caller has given up meanwhile; then nobody needs the answer.
            drop(answer.send(response));
        })?;
        result.await.context("the thread that asked has died")?
    }
}

/// `GET` of a path from the host.
pub async fn get_tcp(address: SocketAddr, path: &str) -> Result<Response> {
    let path = path.to_owned();
    spawn_blocking(move || tcp(address, &path)).await?
}

/// `PUT` of a text to a path from the host.
pub async fn put_tcp(address: SocketAddr, path: &str, body: &str) -> Result<Response> {
    let head =
        format!("PUT {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    spawn_blocking(move || {
        exchange(connect(address)?, &head).with_context(|| format!("no answer from {address}"))
    })
    .await?
}

/// `GET` of a path of a unix socket.
pub async fn get_unix(socket: &Path, path: &str) -> Result<Response> {
    let (socket, path) = (socket.to_owned(), path.to_owned());
    spawn_blocking(move || {
        let from = socket.display().to_string();
        let stream = UnixStream::connect(&socket).with_context(|| format!("no connection to {from}"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        get(stream, "localhost", &path).with_context(|| format!("no answer from {from}"))
    })
    .await?
}

fn tcp(address: SocketAddr, path: &str) -> Result<Response> {
    get(connect(address)?, &address.to_string(), path).with_context(|| format!("no answer from {address}"))
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT)
        .with_context(|| format!("no connection to {address}"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

fn get(stream: impl Read + Write, host: &str, path: &str) -> Result<Response> {
    exchange(stream, &format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"))
}

/// HTTP/1.0: the answer ends with the connection, and is never chunked.
fn exchange(mut stream: impl Read + Write, request: &str) -> Result<Response> {
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    Ok(Response { status: status.context("the answer has no status")?, body: body.to_owned() })
}
