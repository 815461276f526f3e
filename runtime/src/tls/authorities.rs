//! The CAs of a cluster, and how one takes the place of another without shutting a node out.
//!
//! | phase | who issues | who is trusted | the Secret has, beside `cadata` and `cakeydata` of who issues |
//! |---|---|---|---|
//! | steady | the CA | the CA | |
//! | prepared | the CA | both | `nextcadata`, `nextcakeydata`, `crosscadata` |
//! | issuing | the next CA | both | `previouscadata`, `crosscadata` |
//! | steady | the next CA | the next CA | |
//!
//! `crosscadata` is the next CA's certificate as signed by the one before it. While the next CA issues, cloudcore has it in its
//! chain, so that a site which was away all the while and knows the one before alone takes it for cloudcore. From the first
//! rotation on, `resetkeydata` is the key of QUIC's stateless resets; before, it is derived from the CA's key.

use std::collections::BTreeMap;

use ring::hmac;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateAuthority, CsrError, authority_id};
use crate::link::quic;

/// What the Secret holds, by name.
type Data = BTreeMap<String, Vec<u8>>;

const CERTIFICATE: &str = "cadata";
const KEY: &str = "cakeydata";
const NEXT_CERTIFICATE: &str = "nextcadata";
const NEXT_KEY: &str = "nextcakeydata";
const PREVIOUS_CERTIFICATE: &str = "previouscadata";
const CROSS_CERTIFICATE: &str = "crosscadata";
const RESET_KEY: &str = "resetkeydata";

/// Every name that [`Authorities::to_secret`] may use: those that it leaves out are to go.
pub const SECRET_KEYS: [&str; 7] =
    [CERTIFICATE, KEY, NEXT_CERTIFICATE, NEXT_KEY, PREVIOUS_CERTIFICATE, CROSS_CERTIFICATE, RESET_KEY];

#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("it has both {NEXT_CERTIFICATE} and {PREVIOUS_CERTIFICATE}, as in no phase of a rotation")]
    Phase,
    #[error("{name} is not usable")]
    Unusable {
        name: &'static str,
        #[source]
        source: super::TlsError,
    },
    #[error("{certificate} and {key} are no CA")]
    Ca {
        certificate: &'static str,
        key: &'static str,
        #[source]
        source: CsrError,
    },
    #[error("{RESET_KEY} has {0} bytes instead of 32")]
    ResetKey(usize),
    #[error("the rotation is {is:?}, not {wanted:?}")]
    OutOfTurn { is: Phase, wanted: Phase },
    #[error("failed to make a CA")]
    Make(#[source] CsrError),
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Steady,
    /// There is a next CA, for everyone to trust. It issues nothing.
    Prepared,
    /// The next CA issues. The one before is trusted.
    Issuing,
}

/// What is trusted beside the one that issues.
enum Beside {
    Nobody,
    Next { ca: Box<CertificateAuthority>, cross: CertificateDer<'static> },
    Previous { certificate: CertificateDer<'static>, cross: CertificateDer<'static> },
}

/// The cluster's CAs.
pub struct Authorities {
    issuer: CertificateAuthority,
    beside: Beside,
    reset_key: Option<[u8; 32]>,
    ids: Vec<u64>,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl Authorities {
    /// One new CA.
    pub fn generate() -> Result<Self, AuthoritiesError> {
        let issuer = CertificateAuthority::generate().map_err(AuthoritiesError::Make)?;
        Ok(Self::new(issuer, Beside::Nobody, None))
    }

    fn new(issuer: CertificateAuthority, beside: Beside, reset_key: Option<[u8; 32]>) -> Self {
        let mut authorities = Self { issuer, beside, reset_key, ids: Vec::new() };
        authorities.ids = authorities.trusted().iter().map(authority_id).collect();
        authorities
    }

    /// `data` of the Secret.
    pub fn from_secret(data: &Data) -> Result<Self, AuthoritiesError> {
        let issuer = ca(data, CERTIFICATE, KEY)?;
        let cross = || certificate(data, CROSS_CERTIFICATE);
        let beside = match (data.contains_key(NEXT_CERTIFICATE), data.contains_key(PREVIOUS_CERTIFICATE)) {
            (false, false) => Beside::Nobody,
            (true, false) => {
                Beside::Next { ca: Box::new(ca(data, NEXT_CERTIFICATE, NEXT_KEY)?), cross: cross()? }
            }
            (false, true) => {
                Beside::Previous { certificate: certificate(data, PREVIOUS_CERTIFICATE)?, cross: cross()? }
            }
            (true, true) => return Err(AuthoritiesError::Phase),
        };
        let reset_key = data.get(RESET_KEY).map(|key| {
            <[u8; 32]>::try_from(key.as_slice()).map_err(|_| AuthoritiesError::ResetKey(key.len()))
        });
        Ok(Self::new(issuer, beside, reset_key.transpose()?))
    }

    pub fn to_secret(&self) -> Data {
        let mut data = Data::new();
        let mut put = |name: &str, bytes: &[u8]| drop(data.insert(name.to_owned(), bytes.to_vec()));
        put(CERTIFICATE, self.issuer.certificate());
        put(KEY, self.issuer.key_der());
        match &self.beside {
            Beside::Nobody => {}
            Beside::Next { ca, cross } => {
                put(NEXT_CERTIFICATE, ca.certificate());
                put(NEXT_KEY, ca.key_der());
                put(CROSS_CERTIFICATE, cross);
            }
            Beside::Previous { certificate, cross } => {
                put(PREVIOUS_CERTIFICATE, certificate);
                put(CROSS_CERTIFICATE, cross);
            }
        }
        if let Some(key) = &self.reset_key {
            put(RESET_KEY, key);
        }
        data
    }

    /// Begins a rotation: a new CA is trusted beside the one that issues.
    pub fn prepared(self) -> Result<Self, AuthoritiesError> {
        self.is_in(Phase::Steady)?;
        let (ca, cross) = self.issuer.successor().map_err(AuthoritiesError::Make)?;
        // From now on as it is: edges know it from the process before, whose CA another takes the place of.
        let reset_key = self.reset_key();
        Ok(Self::new(self.issuer, Beside::Next { ca: Box::new(ca), cross }, Some(reset_key)))
    }

    /// Has the new CA issue. The key of the one before it goes.
    pub fn issuing(self) -> Result<Self, AuthoritiesError> {
        self.is_in(Phase::Prepared)?;
        let Self { issuer, beside, reset_key, ids: _ } = self;
        match beside {
            Beside::Next { ca, cross } => {
                let certificate = issuer.certificate().clone();
                Ok(Self::new(*ca, Beside::Previous { certificate, cross }, reset_key))
            }
            beside @ (Beside::Nobody | Beside::Previous { .. }) => Ok(Self::new(issuer, beside, reset_key)),
        }
    }

    /// Ends the rotation: the CA before is trusted no more.
    pub fn dropped(self) -> Result<Self, AuthoritiesError> {
        self.is_in(Phase::Issuing)?;
        Ok(Self::new(self.issuer, Beside::Nobody, self.reset_key))
    }

    fn is_in(&self, wanted: Phase) -> Result<(), AuthoritiesError> {
        let is = self.phase();
        if is == wanted { Ok(()) } else { Err(AuthoritiesError::OutOfTurn { is, wanted }) }
    }

    pub fn phase(&self) -> Phase {
        match self.beside {
            Beside::Nobody => Phase::Steady,
            Beside::Next { .. } => Phase::Prepared,
            Beside::Previous { .. } => Phase::Issuing,
        }
    }

    /// The one that issues.
    pub fn issuer(&self) -> &CertificateAuthority {
        &self.issuer
    }

    /// All that are trusted: the one that issues first.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let beside = match &self.beside {
            Beside::Nobody => None,
            Beside::Next { ca, .. } => Some(ca.certificate()),
            Beside::Previous { certificate, .. } => Some(certificate),
        };
        [self.issuer.certificate()].into_iter().chain(beside).cloned().collect()
    }

    /// [`authority_id`] of each of [`trusted`](Self::trusted).
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// As [`CertificateAuthority::issue_server`], with a chain that leads to each CA that may be all that a client trusts.
    pub fn issue_server(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CsrError> {
        let (mut chain, key) = self.issuer.issue_server(names)?;
        if let Beside::Previous { certificate, cross } = &self.beside {
            chain.extend([cross.clone(), certificate.clone()]);
        }
        Ok((chain, key))
    }

    /// See [`tls::resumable`](super::resumable): the same at each cloudcore, and another one whenever the CAs are.
    pub fn ticket_secret(&self) -> [u8; 32] {
        let mut of = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, self.issuer.key_der()));
        of.update(b"skerry TLS tickets");
        self.ids.iter().for_each(|id| of.update(&id.to_be_bytes()));
        *of.sign().as_ref().first_chunk().expect("an HMAC-SHA256 has 32 bytes")
    }

    /// See [`quic::listen`].
    pub fn reset_key(&self) -> [u8; 32] {
        self.reset_key.unwrap_or_else(|| quic::reset_key(self.issuer.key_der()))
    }
}

fn part<'a>(data: &'a Data, name: &'static str) -> Result<&'a Vec<u8>, AuthoritiesError> {
    data.get(name).ok_or(AuthoritiesError::Missing(name))
}

fn ca(
    data: &Data,
    certificate: &'static str,
    key: &'static str,
) -> Result<CertificateAuthority, AuthoritiesError> {
    let (certificate_der, key_der) = (part(data, certificate)?.clone(), part(data, key)?.clone());
    CertificateAuthority::from_der(certificate_der, key_der).map_err(|source| AuthoritiesError::Ca {
        certificate,
        key,
        source,
    })
}

fn certificate(data: &Data, name: &'static str) -> Result<CertificateDer<'static>, AuthoritiesError> {
    let certificate = CertificateDer::from(part(data, name)?.clone());
    let checked = super::check_authority(&certificate);
    checked.map_err(|source| AuthoritiesError::Unusable { name, source })?;
    Ok(certificate)
}

#[cfg(test)]
mod tests;
