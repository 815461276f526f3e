//! The CA of the cluster's clients, as the API server publishes it for servers like this one.

use kube::Client;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::edgecontroller::api;

const PATH: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
const KEY: &str = "client-ca-file";

/// # Errors
/// Says what is wrong, and what to do.
pub(super) async fn read(client: &Client) -> Result<Vec<CertificateDer<'static>>, String> {
    let object = api::get(client, PATH).await.map_err(|error| {
        let reason = runtime::chain(&error);
        format!("the ConfigMap kube-system/extension-apiserver-authentication cannot be read ({reason}); run keadm init again, which gives cloudcore the right to")
    })?;
    let text = object["data"][KEY].as_str().unwrap_or_default();
    parse(text.as_bytes()).map_err(|reason| {
        format!("{KEY} of the ConfigMap kube-system/extension-apiserver-authentication {reason}; the API server needs --client-ca-file and --kubelet-client-certificate")
    })
}

fn parse(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("holds no certificate".to_owned()),
        Err(error) => Err(format!("is no PEM: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_said() {
        assert_eq!(parse(b"").unwrap_err(), "holds no certificate");
        assert!(parse(b"-----BEGIN CERTIFICATE-----\n?").unwrap_err().starts_with("is no PEM"));
    }
}
