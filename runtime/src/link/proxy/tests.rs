use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rustls::{ClientConfig, RootCertStore};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::tls::{self, CertificateAuthority};

const TARGET: &str = "cloud.example:10000";
const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[test]
fn urls_are_read_and_passwords_are_not_shown() {
    let proxy: Proxy = "http://joe:s%40crEt@proxy.example:3128".parse().unwrap();
    assert_eq!(proxy.address(), "proxy.example:3128");
    assert_eq!(proxy.name, None);
    assert_eq!(
        proxy.credentials.as_ref().unwrap(),
        &format!("Basic {}", BASE64_STANDARD.encode("joe:s@crEt"))
    );
    assert_eq!(format!("{proxy:?}"), r#"Proxy { url: "http://proxy.example:3128", .. }"#);
    assert_eq!("http://[2001:db8::1]/".parse::<Proxy>().unwrap().address(), "[2001:db8::1]:80");
    let proxy: Proxy = "https://joe:secret@proxy.example".parse().unwrap();
    assert_eq!(proxy.address(), "proxy.example:443");
    assert_eq!(proxy.name, Some(ServerName::try_from("proxy.example").unwrap()));
    let proxy: Proxy = "https://[2001:db8::1]:3129".parse().unwrap();
    assert_eq!(proxy.name, Some(ServerName::IpAddress("2001:db8::1".parse::<IpAddr>().unwrap().into())));
    for (url, error) in [
        ("proxy:3128", ProxyError::Url),
        ("", ProxyError::Url),
        ("https://-_-.:1", ProxyError::Url),
        ("socks5://proxy:3128", ProxyError::Scheme),
        ("https://proxy:3128/path", ProxyError::Path),
        ("http://joe:%zz@proxy", ProxyError::Credentials),
    ] {
        assert_eq!(url.parse::<Proxy>().unwrap_err(), error, "{url}");
    }
    assert!(Proxy::configured("", "/ca.pem").unwrap().is_none());
}

/// What a proxy at this end answers to one request; then it echoes a word.
async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(io.read_u8().await.unwrap());
    }
    // Whoever it is may have hung up after the first of it.
    drop(io.write_all(answer).await);
    drop(io.flush().await);
    let mut word = [0; 4];
    if io.read_exact(&mut word).await.is_ok() {
        io.write_all(&word).await.unwrap();
        io.flush().await.unwrap();
    }
    String::from_utf8(request).unwrap()
}

/// A proxy in the clear, for one connection.
async fn plain(answer: &'static [u8]) -> (Proxy, JoinSet<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://joe:secret@{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move { serve(listener.accept().await.unwrap().0, answer).await });
    (url.parse().unwrap(), serving)
}

/// A proxy within TLS, for one connection, whose certificate is for `name` and valid from now on.
struct Secured {
    proxy: Proxy,
    serving: JoinSet<Option<String>>,
    dir: tempfile::TempDir,
}

async fn secured(ip: IpAddr, name: &str) -> Secured {
    tls::install_provider();
    let ca = CertificateAuthority::generate().unwrap();
    let (chain, key) = ca.issue_server(&[name.to_owned()]).unwrap();
    let server = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let url = format!("https://joe:secret@{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let io = TlsAcceptor::from(Arc::new(server)).accept(tcp).await.ok()?;
        Some(serve(io, ESTABLISHED.as_bytes()).await)
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    fs::write(&file, tls::pem("CERTIFICATE", ca.certificate())).unwrap();
    let proxy = Proxy::configured(&url, file.to_str().unwrap()).unwrap().unwrap();
    Secured { proxy, serving, dir }
}

async fn tunnel(proxy: &Proxy) -> Result<Line, TunnelError> {
    let tcp = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.tunnel(tcp, TARGET).await
}

/// Whether the other end echoes.
async fn say_and_hear(line: &mut Line) {
    line.write_all(b"ping").await.unwrap();
    line.flush().await.unwrap();
    let mut word = [0; 4];
    line.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"ping");
}

fn is_asked(request: &str) {
    assert!(request.starts_with(&format!("CONNECT {TARGET} HTTP/1.1\r\n")), "{request}");
    assert!(request.to_lowercase().contains("proxy-authorization: basic am9lonnly3jlda=="), "{request}");
}

#[tokio::test]
async fn what_the_proxy_connects_is_a_plain_connection() {
    let (proxy, mut serving) = plain(ESTABLISHED.as_bytes()).await;
    let mut line = tunnel(&proxy).await.unwrap();
    say_and_hear(&mut line).await;
    is_asked(&serving.join_next().await.unwrap().unwrap());
}

#[tokio::test]
async fn a_proxy_within_tls_is_told_the_same_over_either_ip() {
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let mut at = secured(ip, &ip.to_string()).await;
        let mut line = tunnel(&at.proxy).await.unwrap();
        say_and_hear(&mut line).await;
        is_asked(&at.serving.join_next().await.unwrap().unwrap().unwrap());
        // It is the proxy's TCP that confirms, and the bytes of its TLS that are noted.
        let delivery = line.progress().delivery().unwrap();
        assert!(delivery.confirmed > 100, "{delivery:?}");
        assert!(line.progress().last() > line.progress().begun);
    }
}

/// More than all buffers on the way hold.
const MUCH: usize = 8 << 20;

#[tokio::test]
async fn our_tls_within_the_proxys_carries_much_both_ways() {
    tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let ca = CertificateAuthority::generate().unwrap();
    let config = |names: &str| {
        let (chain, key) = ca.issue_server(&[names.to_owned()]).unwrap();
        let builder = rustls::ServerConfig::builder().with_no_client_auth();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    };
    // Both ends of a TLS connection within another.
    let (outer, inner) = (config("127.0.0.1"), config("cloud.example"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let file = dir.path().join("ca.pem");
    fs::write(&file, tls::pem("CERTIFICATE", ca.certificate())).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let mut proxy: Proxy = url.parse().unwrap();
    proxy.trust.ca_file = Some(file);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut io = outer.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(io.read_u8().await.unwrap());
        }
        io.write_all(ESTABLISHED.as_bytes()).await.unwrap();
        io.flush().await.unwrap();
        let (mut read, mut write) = tokio::io::split(inner.accept(io).await.unwrap());
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let line = tunnel(&proxy).await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("cloud.example").unwrap();
    let cloud = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, line).await.unwrap();
    let (mut read, mut write) = tokio::io::split(cloud);
    let sent: Vec<u8> = (0..MUCH).map(|number| u8::try_from(((number * 7919) >> 3) % 256).unwrap()).collect();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = tokio::join!(send, read.read_to_end(&mut received));
    read.unwrap();
    assert!(received == sent, "{} bytes of {MUCH}", received.len());
}

#[tokio::test]
async fn a_proxy_that_cannot_be_verified_is_told_nothing() {
    let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
    let other = secured(ip, "127.0.0.1").await;
    let other_ca = other.dir.path().join("ca.pem");
    let nothing = other.dir.path().join("nothing.pem");
    fs::write(&nothing, "").unwrap();
    let gone = other.dir.path().join("gone.pem");
    for (file, told, advice) in [
        (Some(&other_ca), "has a certificate of a CA that is not trusted here", "proxyCaFile"),
        (None, "has a certificate of a CA that is not trusted here", "proxyCaFile"),
        (Some(&nothing), "nothing.pem holds no certificate", "proxyCaFile"),
        (Some(&gone), "cannot be verified: failed to read ", "proxyCaFile"),
    ] {
        let mut at = secured(ip, "127.0.0.1").await;
        at.proxy.trust.ca_file = file.cloned();
        let error = io::Error::from(tunnel(&at.proxy).await.err().unwrap()).to_string();
        assert!(error.contains(told) && error.contains(advice), "{file:?}: {error}");
        assert!(error.starts_with(&format!("proxy https://{}", at.proxy.address())), "{error}");
        assert_eq!(at.serving.join_next().await.unwrap().unwrap(), None, "{error}");
    }
    let mut at = secured(ip, "proxy.example").await;
    let error = tunnel(&at.proxy).await.err().unwrap();
    assert!(matches!(error.failure, Failure::OtherName(_)), "{error}");
    assert_eq!(at.serving.join_next().await.unwrap().unwrap(), None);
    let mut at = secured(ip, "127.0.0.1").await;
    // In the year 2255.
    at.proxy = at.proxy.at(Arc::new(Clock::starting_at(9_000_000_000)));
    let error = tunnel(&at.proxy).await.err().unwrap();
    assert!(matches!(error.failure, Failure::Time(_)), "{error}");
    assert_eq!(at.serving.join_next().await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_talks_is_told() {
    for (answer, told) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
            "answers 407 Proxy Authentication Required to CONNECT cloud.example:10000; check user and password",
        ),
        (
            "HTTP/1.0 401 Unauthorized\r\n\r\n",
            "answers 401 Unauthorized to CONNECT cloud.example:10000; check user and password",
        ),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "answers 403 Forbidden to CONNECT cloud.example:10000; have its"),
        (
            "HTTP/1.1 502 Bad Gateway\r\n\r\n",
            "answers 502 Bad Gateway to CONNECT cloud.example:10000; check cl",
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "sends what nobody asked for; check that it is an HTTP proxy"),
        ("SSH-2.0-x\r\n\r\n", "does not answer as an HTTP proxy does: "),
    ] {
        let (proxy, _serving) = plain(answer.as_bytes()).await;
        let error = io::Error::from(tunnel(&proxy).await.err().unwrap()).to_string();
        let told = format!("proxy http://{} {told}", proxy.address());
        assert!(error.starts_with(&told), "{error}");
        assert!(!error.contains("secret") && !error.contains("joe"), "{error}");
    }
    let (mut proxy, _serving) = plain(b"HTTP/1.1 407 Who are you\r\n\r\n").await;
    proxy.credentials = None;
    assert!(tunnel(&proxy).await.err().unwrap().advice().starts_with("put user and password"));
}

#[tokio::test]
async fn a_proxy_that_answers_nothing_or_without_end_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = secured(Ipv4Addr::LOCALHOST.into(), "127.0.0.1").await;
    for scheme in ["http", "https"] {
        let mut proxy: Proxy = format!("{scheme}://{}", listener.local_addr().unwrap()).parse().unwrap();
        proxy.patience = Duration::from_millis(100);
        proxy.trust.clone_from(&at.proxy.trust);
        let error = tunnel(&proxy).await.err().unwrap();
        assert!(error.to_string().ends_with("has not answered within 100ms"), "{error}");
    }
    let endless = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &vec![b'x'; 1 << 20]].concat();
    let (proxy, _serving) = plain(Vec::leak(endless)).await;
    let error = tunnel(&proxy).await.err().unwrap();
    assert!(matches!(error.failure, Failure::Http(_)), "{error}");
}

#[tokio::test]
async fn tls_and_no_tls_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut at = secured(Ipv4Addr::LOCALHOST.into(), "127.0.0.1").await;
    let url = format!("https://{}", listener.local_addr().unwrap());
    let ca = at.dir.path().join("ca.pem");
    let proxy = Proxy::configured(&url, ca.to_str().unwrap()).unwrap().unwrap();
    let answer = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        tcp
    };
    let (error, _tcp) = tokio::join!(tunnel(&proxy), answer);
    let error = error.err().unwrap();
    assert!(error.to_string().ends_with("does not answer with TLS"), "{error}");
    // And the other way round.
    let proxy: Proxy = format!("http://{}", at.proxy.address()).parse().unwrap();
    let error = tunnel(&proxy).await.err().unwrap();
    assert!(error.advice().contains("https://"), "{error}");
    assert_eq!(at.serving.join_next().await.unwrap().unwrap(), None);
}
