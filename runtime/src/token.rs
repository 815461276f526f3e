//! Join tokens: the CA's hash, so that the first contact is already authenticated, and a credential that expires.
//!
//! `<hex SHA-256 of the CA certificate's DER>.<JWT header>.<JWT claims>.<signature>`, as in KubeEdge. The credential is a
//! JWT (RFC 7519) with HS256. There are several signing keys, told apart by `kid`: the newest signs, and an older one goes
//! on verifying until the tokens that it signed have expired, so rotating breaks no token that was handed out.

use std::{collections::BTreeMap, fmt, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest token that is looked at.
const MAX_TOKEN: usize = 4096;
const KEY_BYTES: usize = 32;
/// Signing keys kept: older ones than this verify nothing any more.
const MAX_KEYS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "token is not of the form <CA hash>.<header>.<claims>.<signature>; copy the whole output of `keadm gettoken`"
    )]
    Malformed,
    #[error("token expired {ago} s ago; get a new one with `keadm gettoken`")]
    Expired { ago: u64 },
    #[error(
        "token was not issued by this cluster; get one with `keadm gettoken` against the cluster to join"
    )]
    Foreign,
    #[error("secret holds no token signing key")]
    NoKey,
    #[error("no randomness from the system")]
    Randomness,
}

/// A join token, taken apart. Its text is a credential: there is no `Debug` or `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA certificate's DER.
    pub ca_hash: [u8; 32],
    /// The JWT, sent as `Authorization: Bearer`.
    pub bearer: String,
    /// When it expires, in seconds since 1970, as it says itself.
    pub expires: u64,
    /// The only node that it is for, if it is for one.
    pub node: Option<String>,
}

/// What a valid token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// A token for one node lets that node alone join, also in place of a machine that had joined under its name.
    pub node: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    exp: u64,
    jti: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl Token {
    /// Takes a token apart without checking its signature, which only the cloud can.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (hash, bearer) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let ca_hash = unhex(hash).ok_or(TokenError::Malformed)?;
        let (_, claims, _) = split(bearer)?;
        Ok(Self { ca_hash, bearer: bearer.to_owned(), expires: claims.exp, node: claims.node })
    }
}

/// The keys that sign join tokens, as kept in the Secret `tokensecret`.
pub struct SigningKeys {
    /// By name; names sort by age.
    keys: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.keys()).finish()
    }
}

impl SigningKeys {
    /// One new key.
    pub fn generate(now: u64) -> Result<Self, TokenError> {
        let mut keys = Self { keys: BTreeMap::new() };
        keys.rotate(now)?;
        Ok(keys)
    }

    /// `data` of the Secret.
    pub fn from_secret(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, TokenError> {
        let keys: BTreeMap<_, _> = data
            .iter()
            .filter(|(name, key)| name.starts_with("key-") && key.len() == KEY_BYTES)
            .map(|(name, key)| (name.clone(), key.clone()))
            .collect();
        if keys.is_empty() { Err(TokenError::NoKey) } else { Ok(Self { keys }) }
    }

    pub fn to_secret(&self) -> BTreeMap<String, Vec<u8>> {
        self.keys.clone()
    }

    /// Adds a key that signs from now on (`now` in seconds since 1970); the older ones go on verifying.
    pub fn rotate(&mut self, now: u64) -> Result<(), TokenError> {
        let random = SystemRandom::new();
        let mut key = vec![0; KEY_BYTES];
        let mut salt = [0; 4];
        random.fill(&mut key).and_then(|()| random.fill(&mut salt)).map_err(|_| TokenError::Randomness)?;
        self.keys.insert(format!("key-{now:012}-{}", hex(&salt)), key);
        while self.keys.len() > MAX_KEYS {
            self.keys.pop_first();
        }
        Ok(())
    }

    /// A new token for the cluster with this CA, for any node that is new to it.
    pub fn sign(&self, ca_der: &[u8], ttl: Duration, now: u64) -> Result<String, TokenError> {
        self.sign_for(None, ca_der, ttl, now)
    }

    /// A new token, for one node if it is named.
    pub fn sign_for(
        &self,
        node: Option<&str>,
        ca_der: &[u8],
        ttl: Duration,
        now: u64,
    ) -> Result<String, TokenError> {
        let (kid, key) = self.keys.last_key_value().ok_or(TokenError::NoKey)?;
        let mut jti = [0; 16];
        SystemRandom::new().fill(&mut jti).map_err(|_| TokenError::Randomness)?;
        let header = Header { alg: "HS256".to_owned(), typ: "JWT".to_owned(), kid: kid.clone() };
        let exp = now.saturating_add(ttl.as_secs());
        let claims = Claims { exp, jti: hex(&jti), node: node.map(str::to_owned) };
        let part = |json: Result<Vec<u8>, serde_json::Error>| {
            json.map(|json| BASE64.encode(json)).map_err(|_| TokenError::Malformed)
        };
        let signed = format!("{}.{}", part(serde_json::to_vec(&header))?, part(serde_json::to_vec(&claims))?);
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
        Ok(format!("{}.{signed}.{}", hex(&Sha256::digest(ca_der)), BASE64.encode(signature)))
    }

    /// Checks the credential part of a token.
    pub fn verify(&self, bearer: &str, now: u64) -> Result<Grant, TokenError> {
        if bearer.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (header, claims, signature) = split(bearer)?;
        let signed = bearer.rsplit_once('.').map_or("", |(signed, _)| signed);
        let key = self.keys.get(&header.kid).filter(|_| header.alg == "HS256").ok_or(TokenError::Foreign)?;
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Foreign)?;
        if claims.exp <= now {
            return Err(TokenError::Expired { ago: now - claims.exp });
        }
        Ok(Grant { node: claims.node })
    }
}

fn split(bearer: &str) -> Result<(Header, Claims, Vec<u8>), TokenError> {
    let mut parts = bearer.split('.').map(|part| BASE64.decode(part).map_err(|_| TokenError::Malformed));
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed);
    };
    let header = serde_json::from_slice(&header?).map_err(|_| TokenError::Malformed)?;
    let claims = serde_json::from_slice(&claims?).map_err(|_| TokenError::Malformed)?;
    Ok((header, claims, signature?))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(bytes.chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn rotation_breaks_no_issued_token() {
        let mut keys = SigningKeys::generate(1000).unwrap();
        let old = Token::parse(&keys.sign(b"ca", DAY, 1000).unwrap()).unwrap();
        keys.rotate(2000).unwrap();
        let keys = SigningKeys::from_secret(&keys.to_secret()).unwrap();
        let new = Token::parse(&keys.sign(b"ca", DAY, 2000).unwrap()).unwrap();
        assert_eq!(old.ca_hash, <[u8; 32]>::from(Sha256::digest(b"ca")));
        let any = Grant { node: None };
        assert_eq!(keys.verify(&old.bearer, 3000), Ok(any.clone()));
        assert_eq!(keys.verify(&new.bearer, 3000), Ok(any));
        assert_eq!(keys.verify(&old.bearer, 1000 + 86_405), Err(TokenError::Expired { ago: 5 }));
        assert_eq!(old.expires, 1000 + 86_400);
    }

    #[test]
    fn a_token_may_be_for_one_node() {
        let keys = SigningKeys::generate(1).unwrap();
        let token = Token::parse(&keys.sign_for(Some("pump-7"), b"ca", DAY, 1).unwrap()).unwrap();
        assert_eq!(token.node.as_deref(), Some("pump-7"));
        assert_eq!(keys.verify(&token.bearer, 2), Ok(Grant { node: Some("pump-7".to_owned()) }));
    }

    #[test]
    fn foreign_forged_and_mangled_tokens_are_refused() {
        let keys = SigningKeys::generate(1).unwrap();
        let other = SigningKeys::generate(1).unwrap();
        let token = Token::parse(&keys.sign(b"ca", DAY, 1).unwrap()).unwrap();
        assert_eq!(other.verify(&token.bearer, 2), Err(TokenError::Foreign));
        let (signed, _) = token.bearer.rsplit_once('.').unwrap();
        let forged = format!("{signed}.{}", BASE64.encode([0; 32]));
        assert_eq!(keys.verify(&forged, 2), Err(TokenError::Foreign));
        let header = BASE64.encode(r#"{"alg":"none","typ":"JWT","kid":"x"}"#);
        let claims = BASE64.encode(r#"{"exp":99999999999,"jti":"x"}"#);
        assert_eq!(keys.verify(&format!("{header}.{claims}."), 2), Err(TokenError::Foreign));
        for text in ["", "a.b", "a.b.c.d", &"x".repeat(10_000)] {
            assert!(Token::parse(text).is_err());
            assert!(keys.verify(text, 2).is_err());
        }
    }
}
