//! HTTP as a neighbour at the site would ask it.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::Site;

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
        let netns = File::open(format!("/run/netns/{}", self.address.netns))?;
        let path = path.to_owned();
        let (answer, result) = oneshot::channel();
        // A thread of its own, because it changes its network namespace for good.
        std::thread::Builder::new().name(format!("{}-http", self.name)).spawn(move || {
            let response = setns(&netns, CloneFlags::CLONE_NEWNET)
                .context("failed to enter the site's network namespace")
                .and_then(|()| get(address, &path));
            // Fails when the caller has given up meanwhile; then nobody needs the answer.
            drop(answer.send(response));
        })?;
        result.await.context("the thread that asked has died")?
    }
}

/// HTTP/1.0: the answer ends with the connection, and is never chunked.
fn get(address: SocketAddr, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT)
        .with_context(|| format!("no connection to {address}"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes).with_context(|| format!("no answer from {address}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    Ok(Response { status: status.context("the answer has no status")?, body: body.to_owned() })
}
