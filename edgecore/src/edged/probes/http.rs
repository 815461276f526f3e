//! HTTP and HTTPS as the kubelet asks for it: of the answer only the status is read, and a certificate is not checked, since
//! a pod's own is seldom one that a node could check.

use std::{pin::pin, sync::Arc};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

pub(in crate::edged) struct HttpRequest {
    path: String,
    headers: Vec<(String, String)>,
    secure: bool,
}

impl HttpRequest {
    pub(super) fn of(get: &HTTPGetAction) -> Self {
        let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let headers =
            get.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
        Self { path, headers: headers.collect(), secure: get.scheme.as_deref() == Some("HTTPS") }
    }

    /// The status of the answer.
    pub(super) async fn get(&self, host: &str, port: u16) -> Result<u16, String> {
        let stream = TcpStream::connect((host, port)).await.map_err(text)?;
        if !self.secure {
            return self.ask(stream, host, port).await;
        }
        let name = ServerName::try_from(host.to_owned()).map_err(text)?;
        let connector = TlsConnector::from(Arc::new(client_config()?));
        self.ask(connector.connect(name, stream).await.map_err(text)?, host, port).await
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        host: &str,
        port: u16,
    ) -> Result<u16, String> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let mut answer = pin!(sender.send_request(self.message(host, port)?));
        let answer = tokio::select! {
            // Only the head matters: the connection is dropped with its body unread.
            answer = &mut answer => answer,
            // A server that closes after a short answer ends the connection together with it.
            ended = connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        };
        Ok(answer.map_err(text)?.status().as_u16())
    }

    fn message(&self, host: &str, port: u16) -> Result<Request<Empty<Bytes>>, String> {
        let has = |wanted: &str| self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let own = [
            ("Host", if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }),
            ("User-Agent", "kube-probe/1.37".to_owned()),
            ("Accept", "*/*".to_owned()),
        ];
        let own = own.into_iter().filter(|(name, _)| !has(name));
        let mut message = Request::get(&self.path);
        for (name, value) in own {
            message = message.header(name, value);
        }
        // A header with an empty value takes the default one away, as with kubelet.
        for (name, value) in self.headers.iter().filter(|(_, value)| !value.is_empty()) {
            message = message.header(name, value);
        }
        message.body(Empty::new()).map_err(text)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn client_config() -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(text)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
