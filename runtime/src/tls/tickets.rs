//! Tickets with which a client goes on with an earlier TLS session (RFC 8446, 4.6.1): no certificate is sent or verified then.
//! Any cloudcore of the cluster takes them, also one that has started since, because their keys are derived from a secret that all
//! of them have; and they are worth nothing once the cluster's CAs are others, because the secret is another one then.
//!
//! A ticket is the number of its epoch (4 bytes, big-endian), a nonce (12), and what TLS wants to find again, sealed.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
    rand::{SecureRandom, SystemRandom},
};
use rustls::server::ProducesTickets;

/// Each epoch has a key of its own. A ticket is good in its epoch and in the next one: for half a day to a day.
const EPOCH: Duration = Duration::from_hours(12);
const HEAD: usize = 4;

pub(super) struct Tickets {
    secret: Prk,
    now: fn() -> Duration,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new(secret: &[u8]) -> Self {
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { secret: Salt::new(HKDF_SHA256, b"skerry TLS tickets").extract(secret), now }
    }

    fn epoch(&self) -> u32 {
        u32::try_from((self.now)().as_secs() / EPOCH.as_secs()).unwrap_or(u32::MAX)
    }

    fn key(&self, epoch: [u8; HEAD]) -> Option<LessSafeKey> {
        let info = [&epoch[..]];
        let key = UnboundKey::from(self.secret.expand(&info, &CHACHA20_POLY1305).ok()?);
        Some(LessSafeKey::new(key))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(EPOCH.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.epoch().to_be_bytes();
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let key = self.key(epoch)?;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(epoch), &mut sealed)
            .ok()?;
        Some([&epoch[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (epoch, rest) = ticket.split_first_chunk::<HEAD>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (now, of) = (self.epoch(), u32::from_be_bytes(*epoch));
        // The clock of another cloudcore may be a little ahead.
        if of.abs_diff(now) > 1 {
            return None;
        }
        let mut plain = sealed.to_vec();
        let key = self.key(*epoch)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(*epoch), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secret: &[u8], now: fn() -> Duration) -> Tickets {
        Tickets { now, ..Tickets::new(secret) }
    }

    #[test]
    fn a_ticket_is_good_for_whoever_has_the_secret_for_a_while() {
        let ticket = at(b"s", || EPOCH * 10).encrypt(b"session").unwrap();
        for (now, good) in [
            ((|| EPOCH * 9) as fn() -> Duration, true),
            (|| EPOCH * 10, true),
            (|| EPOCH * 11 + Duration::from_hours(11), true),
            (|| EPOCH * 12, false),
            (|| EPOCH * 8, false),
        ] {
            let found = at(b"s", now).decrypt(&ticket);
            assert_eq!(found.as_deref(), good.then_some(&b"session"[..]), "{:?}", now());
            assert_eq!(at(b"another", now).decrypt(&ticket), None);
        }
        assert_eq!(Tickets::new(b"s").lifetime(), 43_200);
    }

    #[test]
    fn what_is_no_ticket_is_none() {
        let tickets = Tickets::new(b"s");
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_ne!(ticket, tickets.encrypt(b"session").unwrap());
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..length]), None);
        }
        for at in 0..ticket.len() {
            let mut flipped = ticket.clone();
            flipped[at] ^= 1;
            assert_eq!(tickets.decrypt(&flipped), None, "byte {at}");
        }
    }
}
