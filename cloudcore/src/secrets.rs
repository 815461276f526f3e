//! The CA and the token signing keys: two Secrets in the namespace `kubeedge`, made at the first start.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use kube::Client;
use proto::ResourceKey;
use runtime::{
    backoff::Backoff,
    tls::{CertificateAuthority, CsrError},
    token::{SigningKeys, TokenError},
};
use serde_json::{Value, json};
use tokio::time;
use tracing::{info, warn};

use crate::edgecontroller::{
    api::{self, Failure},
    index::Index,
};

pub const NAMESPACE: &str = "kubeedge";
const CA_SECRET: &str = "casecret";
const TOKEN_SECRET: &str = "tokensecret";
const CA_CERTIFICATE: &str = "cadata";
const CA_KEY: &str = "cakeydata";

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("API server refused access to Secret {NAMESPACE}/{name}")]
    Access {
        name: &'static str,
        #[source]
        source: Failure,
    },
    #[error(
        "Secret {NAMESPACE}/{name} has no {key}; restore it from a backup, or delete it to have every node join anew"
    )]
    Missing { name: &'static str, key: &'static str },
    #[error("Secret {NAMESPACE}/{CA_SECRET} holds no usable CA")]
    Ca(#[source] CsrError),
    #[error("Secret {NAMESPACE}/{TOKEN_SECRET} holds no usable signing keys")]
    Keys(#[source] TokenError),
}

type Data = BTreeMap<String, Vec<u8>>;

/// The key of the Secret with the token signing keys.
fn token_key() -> ResourceKey {
    ResourceKey::new("Secret", NAMESPACE, TOKEN_SECRET).expect("constant names make a key")
}

/// Reads the CA and the signing keys, and makes what is missing. Waits for as long as the API server cannot be reached, or
/// does not let us.
pub async fn establish(client: &Client) -> Result<CertificateAuthority, SecretError> {
    let data = get_or_create(client, CA_SECRET, || {
        let ca = CertificateAuthority::generate().map_err(SecretError::Ca)?;
        info!("made a new CA");
        Ok(Data::from([
            (CA_CERTIFICATE.to_owned(), ca.certificate().to_vec()),
            (CA_KEY.to_owned(), ca.key_der().to_vec()),
        ]))
    })
    .await?;
    let part = |key| data.get(key).cloned().ok_or(SecretError::Missing { name: CA_SECRET, key });
    let ca = CertificateAuthority::from_der(part(CA_CERTIFICATE)?, part(CA_KEY)?).map_err(SecretError::Ca)?;
    let keys = get_or_create(client, TOKEN_SECRET, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        info!("made a new token signing key");
        Ok(SigningKeys::generate(now).map_err(SecretError::Keys)?.to_secret())
    })
    .await?;
    SigningKeys::from_secret(&keys).map_err(SecretError::Keys)?;
    Ok(ca)
}

async fn get_or_create(
    client: &Client,
    name: &'static str,
    make: impl Fn() -> Result<Data, SecretError>,
) -> Result<Data, SecretError> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        match attempt(client, name, &make).await {
            Ok(Some(data)) => return Ok(data),
            // Somebody else was faster, or the namespace is there now.
            Ok(None) => {}
            Err(SecretError::Access { source, .. }) if source.is_retryable() => {
                let delay = backoff.next_delay();
                // Once a few minutes: enough for who looks, not enough to fill a disk.
                if backoff.attempts() % 16 == 1 {
                    warn!(error = %runtime::chain(&source), "waiting for the API server");
                }
                time::sleep(delay).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn attempt(
    client: &Client,
    name: &'static str,
    make: &impl Fn() -> Result<Data, SecretError>,
) -> Result<Option<Data>, SecretError> {
    let access = |source| SecretError::Access { name, source };
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    match api::get(client, &format!("{path}/{name}")).await {
        Ok(secret) => return Ok(Some(decode(&secret))),
        Err(Failure::Refused { code: 404, .. }) => {}
        Err(failure) => return Err(access(failure)),
    }
    let data = make()?;
    let encoded: BTreeMap<_, _> =
        data.iter().map(|(key, value)| (key, BASE64_STANDARD.encode(value))).collect();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "type": "Opaque",
        "data": encoded,
    });
    match api::create(client, &path, &secret).await {
        Ok(_) => Ok(Some(data)),
        Err(Failure::Refused { code: 409, .. }) => Ok(None),
        Err(Failure::Refused { code: 404, .. }) => {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
            match api::create(client, "/api/v1/namespaces", &namespace).await {
                Ok(_) | Err(Failure::Refused { code: 409, .. }) => Ok(None),
                Err(failure) => Err(access(failure)),
            }
        }
        Err(failure) => Err(access(failure)),
    }
}

/// `data` of a Secret; values that are not base64 count as missing.
fn decode(secret: &Value) -> Data {
    let data = secret["data"].as_object();
    data.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), BASE64_STANDARD.decode(value.as_str()?).ok()?)))
        .collect()
}

/// The signing keys in the cached Secret, if it is there and usable.
pub fn signing_keys(index: &Index) -> Option<SigningKeys> {
    let secret = index.get(&token_key())?;
    let secret: Value = serde_json::from_slice(&secret.bytes).ok()?;
    SigningKeys::from_secret(&decode(&secret)).ok()
}
