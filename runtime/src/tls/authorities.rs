//! The CAs of a cluster, and how one takes the place of another without shutting a node out.
//!
//! | phase | who issues | who is trusted | the Secret has, beside `cadata` and `cakeydata` of who issues |
//! |---|---|---|---|
//! | steady | the CA | the CA | |
//! | prepared | the CA | both | `nextcadata`, `nextcakeydata`, `crosscadata` |
//! | issuing | the next CA | both | `previouscadata`, `previouscakeydata`, `crosscadata` |
//! | steady | the next CA | the next CA | |
//!
//! A rotation that is prepared is taken back by forgetting the next CA, which nobody has a certificate of. One whose next CA has
//! issued goes back the way that it came:
//!
//! | phase | who issues | who is trusted | the Secret has, beside `cadata` and `cakeydata` of who issues |
//! |---|---|---|---|
//! | issuing | the next CA | both | as above |
//! | returning | the CA before | both | `previouscadata` (the next CA), `crosscadata`, `abortedcaid` (its id) |
//! | steady | the CA before | the CA before | |
//!
//! `crosscadata` is the next CA's certificate as signed by the one before it. While the next CA issues, cloudcore has it in its
//! chain, so that a site which was away all the while and knows the one before alone takes it for cloudcore. On the way back it is
//! the other way round: a site may have joined since, and know the next CA alone. From the first
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
const PREVIOUS_KEY: &str = "previouscakeydata";
const ABORTED: &str = "abortedcaid";
const CROSS_CERTIFICATE: &str = "crosscadata";
const RESET_KEY: &str = "resetkeydata";

/// Every name that [`Authorities::to_secret`] may use: those that it leaves out are to go.
pub const SECRET_KEYS: [&str; 9] = [
    CERTIFICATE,
    KEY,
    NEXT_CERTIFICATE,
    NEXT_KEY,
    PREVIOUS_CERTIFICATE,
    PREVIOUS_KEY,
    ABORTED,
    CROSS_CERTIFICATE,
    RESET_KEY,
];

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
    #[error(
        "it has no {PREVIOUS_KEY} that is the key of {PREVIOUS_CERTIFICATE}, so that CA cannot issue again"
    )]
    KeyGone,
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
    /// The rotation is taken back: the CA before issues again. The one that was to be the next is trusted.
    Returning,
}

/// What is trusted beside the one that issues.
enum Beside {
    Nobody,
    Next {
        ca: Box<CertificateAuthority>,
        cross: CertificateDer<'static>,
    },
    Previous {
        certificate: CertificateDer<'static>,
        /// For it to issue again. An earlier version did not keep it.
        key: Option<Vec<u8>>,
        cross: CertificateDer<'static>,
    },
    Aborted {
        certificate: CertificateDer<'static>,
        cross: CertificateDer<'static>,
    },
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
                let (certificate, cross) = (certificate(data, PREVIOUS_CERTIFICATE)?, cross()?);
                // What an earlier version has left there from another rotation is not of this CA.
                if data.get(ABORTED).is_some_and(|id| *id == aborted_id(&certificate)) {
                    Beside::Aborted { certificate, cross }
                } else {
                    Beside::Previous { certificate, key: data.get(PREVIOUS_KEY).cloned(), cross }
                }
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
            Beside::Previous { certificate, key, cross } => {
                put(PREVIOUS_CERTIFICATE, certificate);
                if let Some(key) = key {
                    put(PREVIOUS_KEY, key);
                }
                put(CROSS_CERTIFICATE, cross);
            }
            Beside::Aborted { certificate, cross } => {
                put(PREVIOUS_CERTIFICATE, certificate);
                put(ABORTED, &aborted_id(certificate));
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
        let Beside::Nobody = self.beside else { return Err(self.out_of_turn(Phase::Steady)) };
        let (ca, cross) = self.issuer.successor().map_err(AuthoritiesError::Make)?;
        // From now on as it is: edges know it from the process before, whose CA another takes the place of.
        let reset_key = self.reset_key();
        Ok(Self::new(self.issuer, Beside::Next { ca: Box::new(ca), cross }, Some(reset_key)))
    }

    /// Has the new CA issue. The key of the one before it is kept, as long as that is trusted, for the way back.
    pub fn issuing(self) -> Result<Self, AuthoritiesError> {
        let out_of_turn = self.out_of_turn(Phase::Prepared);
        let Self { issuer, beside, reset_key, ids: _ } = self;
        let Beside::Next { ca, cross } = beside else { return Err(out_of_turn) };
        let (certificate, key) = (issuer.certificate().clone(), Some(issuer.key_der().to_vec()));
        Ok(Self::new(*ca, Beside::Previous { certificate, key, cross }, reset_key))
    }

    /// Ends the rotation, or the way back: the CA that issues no more is trusted no more.
    pub fn dropped(self) -> Result<Self, AuthoritiesError> {
        match self.beside {
            Beside::Previous { .. } | Beside::Aborted { .. } => {
                Ok(Self::new(self.issuer, Beside::Nobody, self.reset_key))
            }
            Beside::Nobody | Beside::Next { .. } => Err(self.out_of_turn(Phase::Issuing)),
        }
    }

    /// Takes the rotation back: at once if the next CA has issued nothing, else to the phase in which all go back.
    ///
    /// # Errors
    /// There is no rotation, it is on its way back already, or the key of the CA before is not there.
    pub fn aborted(self) -> Result<Self, AuthoritiesError> {
        let out_of_turn = self.out_of_turn(Phase::Prepared);
        let Self { issuer: next, beside, reset_key, ids: _ } = self;
        match beside {
            Beside::Next { .. } => Ok(Self::new(next, Beside::Nobody, reset_key)),
            Beside::Previous { certificate, key, cross: _ } => {
                let key = key.ok_or(AuthoritiesError::KeyGone)?;
                let before = CertificateAuthority::from_der(certificate.to_vec(), key)
                    .map_err(|_| AuthoritiesError::KeyGone)?;
                let cross = next.cross(&before).map_err(AuthoritiesError::Make)?;
                let certificate = next.certificate().clone();
                Ok(Self::new(before, Beside::Aborted { certificate, cross }, reset_key))
            }
            Beside::Nobody | Beside::Aborted { .. } => Err(out_of_turn),
        }
    }

    fn out_of_turn(&self, wanted: Phase) -> AuthoritiesError {
        AuthoritiesError::OutOfTurn { is: self.phase(), wanted }
    }

    pub fn phase(&self) -> Phase {
        match self.beside {
            Beside::Nobody => Phase::Steady,
            Beside::Next { .. } => Phase::Prepared,
            Beside::Previous { .. } => Phase::Issuing,
            Beside::Aborted { .. } => Phase::Returning,
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
            Beside::Previous { certificate, .. } | Beside::Aborted { certificate, .. } => Some(certificate),
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
        if let Beside::Previous { certificate, cross, .. } | Beside::Aborted { certificate, cross } =
            &self.beside
        {
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

fn aborted_id(ca: &CertificateDer<'_>) -> Vec<u8> {
    format!("{:016x}", authority_id(ca)).into_bytes()
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
