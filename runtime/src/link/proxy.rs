//! The way out through an HTTP proxy (`CONNECT`, RFC 9110 section 9.3.6), for sites that have no other.

use std::{fmt, io, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

/// Of a proxy whose URL names none.
const PORT: u16 = 80;

/// Where a proxy is, and what it is told of us.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `HOST:PORT`.
    address: String,
    /// Basic (RFC 7617).
    credentials: Option<HeaderValue>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("it is no URL, as in http://192.0.2.1:3128")]
    Url,
    #[error("its scheme is not http: the proxy is spoken to in the clear, what goes through it is not")]
    Scheme,
    #[error("it has a path; a proxy has none")]
    Path,
    #[error("its user or password is not percent-encoded UTF-8")]
    Credentials,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    /// `http://[USER:PASSWORD@]HOST[:PORT]`
    fn from_str(url: &str) -> Result<Self, ProxyError> {
        let uri: Uri = url.parse().map_err(|_| ProxyError::Url)?;
        if uri.scheme_str() != Some("http") {
            return Err(if uri.scheme().is_some() { ProxyError::Scheme } else { ProxyError::Url });
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(ProxyError::Path);
        }
        let authority = uri.authority().ok_or(ProxyError::Url)?;
        let credentials = match authority.as_str().rsplit_once('@') {
            None => None,
            Some((credentials, _)) => {
                let plain = percent_decode(credentials).ok_or(ProxyError::Credentials)?;
                let basic = format!("Basic {}", BASE64_STANDARD.encode(plain));
                let mut basic = HeaderValue::from_str(&basic).map_err(|_| ProxyError::Credentials)?;
                basic.set_sensitive(true);
                Some(basic)
            }
        };
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(PORT));
        Ok(Self { address, credentials })
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Proxy {
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Has the proxy at the other end of `tcp` connect to `target` (`HOST:PORT`); the connection is one to `target` then.
    pub async fn tunnel(&self, tcp: TcpStream, target: &str) -> io::Result<TcpStream> {
        let failed = |what: String| io::Error::other(format!("proxy {}: {what}", self.address));
        let broken = |error: hyper::Error| failed(crate::chain(&error).to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(broken)?;
        let mut exchange = JoinSet::new();
        exchange.spawn(connection.with_upgrades());
        let mut request = Request::connect(target).header(header::HOST, target);
        if let Some(credentials) = &self.credentials {
            request = request.header(header::PROXY_AUTHORIZATION, credentials);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(failed(format!("it answers {status} to CONNECT {target}")));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
        let parts = upgraded
            .downcast::<TokioIo<TcpStream>>()
            .map_err(|_| failed("the connection is not the one that was opened".to_owned()))?;
        // Whoever is behind it has not been spoken to.
        if !parts.read_buf.is_empty() {
            return Err(failed("it sends what nobody asked for".to_owned()));
        }
        Ok(parts.io.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn urls_are_read_and_passwords_are_not_shown() {
        let proxy: Proxy = "http://joe:s%40crEt@proxy.example:3128".parse().unwrap();
        assert_eq!(proxy.address(), "proxy.example:3128");
        assert_eq!(
            proxy.credentials.as_ref().unwrap(),
            &format!("Basic {}", BASE64_STANDARD.encode("joe:s@crEt"))
        );
        assert!(!format!("{proxy:?}").contains("joe"));
        assert_eq!("http://[2001:db8::1]/".parse::<Proxy>().unwrap().address(), "[2001:db8::1]:80");
        for (url, error) in [
            ("proxy:3128", ProxyError::Url),
            ("", ProxyError::Url),
            ("https://proxy:3128", ProxyError::Scheme),
            ("http://proxy:3128/path", ProxyError::Path),
            ("http://joe:%zz@proxy", ProxyError::Credentials),
        ] {
            assert_eq!(url.parse::<Proxy>().unwrap_err(), error, "{url}");
        }
    }

    /// The request, answered with `answer`; then an echo.
    async fn proxy(answer: &'static str) -> (Proxy, JoinSet<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://joe:secret@{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(tcp.read_u8().await.unwrap());
            }
            tcp.write_all(answer.as_bytes()).await.unwrap();
            let mut word = [0; 4];
            if tcp.read_exact(&mut word).await.is_ok() {
                tcp.write_all(&word).await.unwrap();
            }
            String::from_utf8(request).unwrap()
        });
        (url.parse().unwrap(), serving)
    }

    #[tokio::test]
    async fn what_the_proxy_connects_is_a_plain_connection() {
        let (proxy, mut serving) = proxy("HTTP/1.1 200 Connection established\r\n\r\n").await;
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let mut tunnel = proxy.tunnel(tcp, "cloud.example:10000").await.unwrap();
        tunnel.write_all(b"ping").await.unwrap();
        let mut word = [0; 4];
        tunnel.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
        let request = serving.join_next().await.unwrap().unwrap();
        assert!(request.starts_with("CONNECT cloud.example:10000 HTTP/1.1\r\n"), "{request}");
        assert!(request.to_lowercase().contains("proxy-authorization: basic am9lonnly3jlda=="), "{request}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_or_talks_is_told() {
        for (answer, told) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", "it answers 407"),
            ("HTTP/1.1 200 OK\r\n\r\nhello", "it sends what nobody asked for"),
            ("SSH-2.0-x\r\n\r\n", "proxy 127.0.0.1:"),
        ] {
            let (proxy, _serving) = proxy(answer).await;
            let tcp = TcpStream::connect(proxy.address()).await.unwrap();
            let error = proxy.tunnel(tcp, "cloud.example:10000").await.unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
