use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

#[test]
fn the_host_of_an_endpoint_has_no_port_and_no_brackets() {
    assert_eq!(host_of("192.0.2.1:10000"), "192.0.2.1");
    assert_eq!(host_of("[2001:db8::1]:10000"), "2001:db8::1");
    assert_eq!(host_of("cloud.example:10000"), "cloud.example");
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_told_from_one_where_something_else_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let other = async {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut hello = [0; 16];
        io.read_exact(&mut hello).await.unwrap();
        io.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await.unwrap();
        io.shutdown().await.unwrap();
    };
    let (found, ()) = tokio::join!(hub(&server, None, [0; 32]), other);
    assert!(matches!(found, Err(HubError::Other(at)) if at == server));
    drop(listener);
    let found = hub(&server, None, [0; 32]).await;
    assert!(matches!(found, Err(HubError::Refused(at)) if at == server));
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_named() {
    let found = hub("no-such-host.invalid:10000", None, [0; 32]).await;
    assert!(matches!(found, Err(HubError::Name(name)) if name == "no-such-host.invalid"));
}

#[tokio::test]
async fn another_ca_and_another_name_are_told_apart() {
    use runtime::tls::{CertificateAuthority, install_provider, server_config};
    use sha2::{Digest, Sha256};

    install_provider();
    let ca = CertificateAuthority::generate().unwrap();
    let hash: [u8; 32] = Sha256::digest(ca.certificate()).into();
    let (chain, key) = ca.issue_server(&["localhost".to_owned()]).unwrap();
    let config = Arc::new(server_config(chain, key, &[ca.certificate().clone()], Duration::ZERO).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let ask = async |name: &str, hash| {
        let serve = async {
            let (io, _) = listener.accept().await.unwrap();
            if let Ok(mut tls) = tokio_rustls::TlsAcceptor::from(Arc::clone(&config)).accept(io).await {
                let mut request = [0; 4096];
                assert!(tls.read(&mut request).await.unwrap() > 0);
                tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").await.unwrap();
                tls.shutdown().await.unwrap();
            }
        };
        let name = format!("{name}:{}", server.port());
        tokio::join!(hub(&name, None, hash), serve).0
    };
    ask("localhost", hash).await.unwrap();
    assert!(matches!(ask("localhost", [7; 32]).await, Err(HubError::OtherCa(_))));
    assert!(matches!(ask("127.0.0.1", hash).await, Err(HubError::OtherName(name)) if name == "127.0.0.1"));
}

#[tokio::test]
async fn a_proxy_that_is_wrong_is_told_and_not_cloudcore() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = format!("http://joe:s3cret@{address}").parse().unwrap();
    let refuse = async {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(io.read(&mut request).await.unwrap() > 0);
        io.write_all(b"HTTP/1.0 401 Unauthorized\r\n\r\n").await.unwrap();
        io
    };
    let (found, _io) = tokio::join!(hub("cloud.example:10000", Some(&proxy), [0; 32]), refuse);
    let error = found.unwrap_err();
    let told = format!("proxy http://{address} answers 401 Unauthorized to CONNECT cloud.example:10000");
    assert_eq!(runtime::chain(&error).to_string(), told);
    assert!(error.fix().starts_with("check user and password in its URL"), "{}", error.fix());
    drop(listener);
    let error = hub("cloud.example:10000", Some(&proxy), [0; 32]).await.unwrap_err();
    let told = runtime::chain(&error).to_string();
    assert!(told.starts_with(&format!("proxy http://{address} cannot be reached: ")), "{told}");
    assert!(error.fix().starts_with("check its host and port"), "{}", error.fix());
}
