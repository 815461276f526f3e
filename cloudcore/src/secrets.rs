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
    tls::{Authorities, authorities::AuthoritiesError},
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

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("API server refused access to Secret {NAMESPACE}/{name}")]
    Access {
        name: &'static str,
        #[source]
        source: Failure,
    },
    #[error(
        "Secret {NAMESPACE}/{CA_SECRET} holds no usable CAs; restore it from a backup, or delete it to have every node join anew"
    )]
    Authorities(#[source] AuthoritiesError),
    #[error(
        "Secret {NAMESPACE}/{CA_SECRET} is gone; restore it from a backup, or every node has to join anew"
    )]
    Gone,
    #[error("Secret {NAMESPACE}/{TOKEN_SECRET} holds no usable signing keys")]
    Keys(#[source] TokenError),
}

type Data = BTreeMap<String, Vec<u8>>;

/// The key of the Secret with the token signing keys.
fn token_key() -> ResourceKey {
    ResourceKey::new("Secret", NAMESPACE, TOKEN_SECRET).expect("constant names make a key")
}

/// The key of the Secret with the CAs.
pub fn authorities_key() -> ResourceKey {
    ResourceKey::new("Secret", NAMESPACE, CA_SECRET).expect("constant names make a key")
}

/// Reads the CAs and the signing keys, and makes what is missing. Waits for as long as the API server cannot be reached, or
/// does not let us.
pub async fn establish(client: &Client) -> Result<Authorities, SecretError> {
    let data = get_or_create(client, CA_SECRET, || {
        let authorities = Authorities::generate().map_err(SecretError::Authorities)?;
        info!("made a new CA");
        Ok(authorities.to_secret())
    })
    .await?;
    let authorities = Authorities::from_secret(&data).map_err(SecretError::Authorities)?;
    let keys = get_or_create(client, TOKEN_SECRET, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        info!("made a new token signing key");
        Ok(SigningKeys::generate(now).map_err(SecretError::Keys)?.to_secret())
    })
    .await?;
    SigningKeys::from_secret(&keys).map_err(SecretError::Keys)?;
    Ok(authorities)
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

/// The CAs in the cached Secret.
pub fn authorities(index: &Index) -> Result<Authorities, SecretError> {
    let data = cached(index, &authorities_key()).ok_or(SecretError::Gone)?;
    Authorities::from_secret(&data).map_err(SecretError::Authorities)
}

/// The signing keys in the cached Secret, if it is there and usable.
pub fn signing_keys(index: &Index) -> Option<SigningKeys> {
    SigningKeys::from_secret(&cached(index, &token_key())?).ok()
}

fn cached(index: &Index, key: &ResourceKey) -> Option<Data> {
    let secret = index.get(key)?;
    let secret: Value = serde_json::from_slice(&secret.bytes).ok()?;
    Some(decode(&secret))
}
