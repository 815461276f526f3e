use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, Error, ServerConnection,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
};
use sha2::{Digest, Sha256};

use super::*;
use crate::tls::{self, install_provider, is_issued_by, node_csr, roots, validity};

const NODE: &str = "edge-1";

/// What an edge has on its disk.
struct Edge {
    trusted: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Edge {
    fn joined(authorities: &Authorities) -> Self {
        let (key, csr) = node_csr(NODE).unwrap();
        let mut edge = Self { trusted: vec![authorities.trusted().remove(0)], chain: Vec::new(), key };
        edge.signed(authorities, &csr);
        edge
    }

    fn signed(&mut self, authorities: &Authorities, csr: &[u8]) {
        let certificate = authorities.issuer().sign_node_csr(csr, NODE, Duration::from_hours(1)).unwrap();
        self.chain = vec![CertificateDer::from(certificate)];
    }

    fn renew(&mut self, authorities: &Authorities) {
        self.signed(authorities, &tls::node_csr_for(NODE, &self.key).unwrap());
    }

    fn config(&self) -> ClientConfig {
        let key = tls::pkcs8(self.key.clone());
        tls::client_config(&self.trusted, self.chain.clone(), key, Arc::default()).unwrap()
    }
}

/// A handshake between the two: what the client says of it, and what the server does.
fn shake(authorities: &Authorities, client: ClientConfig) -> (Result<(), Error>, Result<(), Error>) {
    let (chain, key) = authorities.issue_server(&["cloud".to_owned()]).unwrap();
    let server = tls::server_config(chain, key, &authorities.trusted(), Duration::ZERO).unwrap();
    let mut server = Connection::Server(ServerConnection::new(Arc::new(server)).unwrap());
    let name = ServerName::try_from("cloud").unwrap();
    let mut client = Connection::Client(ClientConnection::new(Arc::new(client), name).unwrap());
    let mut results = (Ok(()), Ok(()));
    for _ in 0..4 {
        results.1 = results.1.and_then(|()| carry(&mut client, &mut server));
        results.0 = results.0.and_then(|()| carry(&mut server, &mut client));
    }
    if results.0.is_ok() && results.1.is_ok() {
        assert!(!client.is_handshaking() && !server.is_handshaking());
    }
    results
}

/// What `from` has to say; the error is that of `to`.
fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut bytes = &bytes[..];
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn gets_in(authorities: &Authorities, edge: &Edge) -> bool {
    matches!(shake(authorities, edge.config()), (Ok(()), Ok(())))
}

/// Of each cloudcore that reads this Secret.
fn ticket_secret(secret: &Data) -> [u8; 32] {
    let [one, two] = [(); 2].map(|()| Authorities::from_secret(secret).unwrap().ticket_secret());
    assert_eq!(one, two);
    one
}

/// Through the Secret, as each cloudcore reads it.
fn kept(authorities: &Authorities) -> Authorities {
    Authorities::from_secret(&authorities.to_secret()).unwrap()
}

#[test]
fn every_edge_gets_in_until_the_ca_that_it_is_from_is_dropped() {
    install_provider();
    let steady = Authorities::generate().unwrap();
    let mut follower = Edge::joined(&steady);
    let absent = Edge::joined(&steady);

    let prepared = kept(&steady.prepared().unwrap());
    assert!(gets_in(&prepared, &follower) && gets_in(&prepared, &absent));
    follower.trusted = prepared.trusted();
    assert!(gets_in(&prepared, &follower) && gets_in(&prepared, &Edge::joined(&prepared)));
    // Another cloudcore may be a step ahead of this one.
    let next = Authorities::from_secret(&prepared.to_secret()).unwrap().issuing().unwrap();
    let mut ahead = Edge { trusted: next.trusted(), chain: Vec::new(), key: follower.key.clone() };
    ahead.renew(&next);
    assert!(gets_in(&prepared, &ahead));

    let issuing = kept(&prepared.issuing().unwrap());
    let newcomer = Edge::joined(&issuing);
    for edge in [&follower, &absent, &ahead, &newcomer] {
        assert!(gets_in(&issuing, edge));
    }
    follower.trusted = issuing.trusted();
    follower.renew(&issuing);
    assert!(gets_in(&issuing, &follower));
    // What it trusts comes before its certificate, or after it.
    let mut halfway = Edge { trusted: absent.trusted.clone(), ..Edge::joined(&issuing) };
    assert!(gets_in(&issuing, &halfway));
    halfway = Edge { trusted: issuing.trusted(), ..absent };
    assert!(gets_in(&issuing, &halfway));

    let dropped = kept(&issuing.dropped().unwrap());
    assert!(gets_in(&dropped, &follower) && gets_in(&dropped, &newcomer));
    // Who trusts the new CA is told that its certificate is not from there; who does not trust it sees that first.
    let unknown = || Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
    let alert = || Err(Error::AlertReceived(AlertDescription::UnknownCA));
    assert_eq!(shake(&dropped, halfway.config()), (alert(), unknown()));
    halfway.trusted.remove(0);
    assert_eq!(shake(&dropped, halfway.config()), (unknown(), alert()));
    // And all of it once more.
    let again = kept(&dropped.prepared().unwrap().issuing().unwrap());
    assert!(gets_in(&again, &follower));
}

#[test]
fn a_rotation_that_is_prepared_is_forgotten() {
    install_provider();
    let steady = Authorities::generate().unwrap();
    let (before, reset_key) = (steady.to_secret(), steady.reset_key());
    let (absent, mut follower) = (Edge::joined(&steady), Edge::joined(&steady));
    let prepared = steady.prepared().unwrap();
    follower.trusted = prepared.trusted();
    let lagging = kept(&prepared);
    let aborted = kept(&prepared.aborted().unwrap());
    assert_eq!((aborted.phase(), aborted.reset_key()), (Phase::Steady, reset_key));
    let mut after = aborted.to_secret();
    after.remove(RESET_KEY);
    assert_eq!(after, before);
    for authorities in [&aborted, &lagging] {
        assert!(gets_in(authorities, &follower) && gets_in(authorities, &absent));
    }
    let again = aborted.prepared().unwrap();
    assert_ne!(again.ids()[1], lagging.ids()[1]);
    assert!(gets_in(&again, &follower));
    let error = again.aborted().unwrap().aborted().unwrap_err().to_string();
    assert_eq!(error, "the rotation is Steady, not Prepared");
}

#[test]
fn every_edge_gets_in_on_the_way_back() {
    install_provider();
    let prepared = Authorities::generate().unwrap().prepared().unwrap();
    let absent = Edge::joined(&prepared);
    let mut late = Edge { trusted: prepared.trusted(), ..Edge::joined(&prepared) };
    let issuing = prepared.issuing().unwrap();
    let lagging = kept(&issuing);
    // It has heard of the new CA alone.
    let newcomer = Edge::joined(&issuing);
    let mut follower = Edge { trusted: issuing.trusted(), ..Edge::joined(&issuing) };
    let (new, old) = (issuing.ids()[0], issuing.ids()[1]);
    let keys = issuing.to_secret();

    let returning = kept(&issuing.aborted().unwrap());
    assert_eq!((returning.phase(), returning.ids()), (Phase::Returning, &[old, new][..]));
    let secret = returning.to_secret();
    assert_eq!((&secret[KEY], &secret[CERTIFICATE]), (&keys[PREVIOUS_KEY], &keys[PREVIOUS_CERTIFICATE]));
    assert!(!secret.values().any(|value| *value == keys[KEY]), "the key of the CA that is given up is kept");
    for edge in [&absent, &late, &newcomer, &follower, &Edge::joined(&returning)] {
        assert!(gets_in(&returning, edge));
    }
    late.trusted = returning.trusted();
    follower.trusted = returning.trusted();
    follower.renew(&returning);
    // Another cloudcore may be a step behind this one, or of an earlier version.
    let mut earlier = secret.clone();
    earlier.remove(ABORTED);
    let earlier = Authorities::from_secret(&earlier).unwrap();
    for authorities in [&returning, &lagging, &earlier] {
        for edge in [&absent, &late, &newcomer, &follower] {
            assert!(gets_in(authorities, edge));
        }
    }
    assert_eq!(
        kept(&returning).aborted().unwrap_err().to_string(),
        "the rotation is Returning, not Prepared"
    );

    let steady = kept(&returning.dropped().unwrap());
    let left: Vec<_> = steady.to_secret().into_keys().collect();
    assert_eq!(left, vec![CERTIFICATE.to_owned(), KEY.to_owned(), RESET_KEY.to_owned()]);
    assert!(gets_in(&steady, &follower) && gets_in(&steady, &late) && gets_in(&steady, &absent));
    assert!(!gets_in(&steady, &newcomer));
}

#[test]
fn there_is_no_way_back_without_the_key() {
    let issuing = Authorities::generate().unwrap().prepared().unwrap().issuing().unwrap();
    let secret = issuing.to_secret();
    let (other, _) = node_csr(NODE).unwrap();
    let stale = issuing.aborted().unwrap().to_secret()[ABORTED].clone();
    for change in [None, Some(other), Some(b"garbage".to_vec())] {
        let mut secret = secret.clone();
        secret.remove(PREVIOUS_KEY);
        secret.extend(change.map(|key| (PREVIOUS_KEY.to_owned(), key)));
        // As an earlier version leaves it behind.
        secret.insert(ABORTED.to_owned(), stale.clone());
        let issuing = Authorities::from_secret(&secret).unwrap();
        assert_eq!(issuing.phase(), Phase::Issuing);
        assert!(matches!(issuing.aborted(), Err(AuthoritiesError::KeyGone)));
    }
}

/// Those that were made first are all of one name, and sign no other CA by their own word.
#[test]
fn a_ca_of_an_earlier_version_is_rotated_too() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
    install_provider();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Skerry");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).unwrap();
    let secret = [(CERTIFICATE, certificate.der().to_vec()), (KEY, key.serialize_der())];
    let secret = secret.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let steady = Authorities::from_secret(&secret).unwrap();
    let absent = Edge::joined(&steady);
    let prepared = steady.prepared().unwrap();
    assert!(gets_in(&prepared, &absent));
    let issuing = prepared.issuing().unwrap();
    let newcomer = Edge::joined(&issuing);
    assert!(gets_in(&issuing, &absent) && gets_in(&issuing, &newcomer));
    let returning = kept(&issuing).aborted().unwrap();
    assert!(gets_in(&returning, &absent) && gets_in(&returning, &newcomer));
    let dropped = issuing.dropped().unwrap();
    assert!(!gets_in(&dropped, &absent));
}

#[test]
fn a_token_counts_as_long_as_the_ca_that_it_names_is_trusted() {
    install_provider();
    let pinned = |authorities: &Authorities, ca: &CertificateDer<'_>| {
        let (config, found) = tls::pinned_client_config(Sha256::digest(ca).into()).unwrap();
        let shaken = shake(authorities, config);
        assert_eq!(shaken.0.is_ok(), found.get().is_some());
        shaken.0
    };
    let prepared = Authorities::generate().unwrap().prepared().unwrap();
    let old = prepared.issuer().certificate().clone();
    assert_eq!(pinned(&prepared, &old), Ok(()));
    let issuing = prepared.issuing().unwrap();
    let new = issuing.issuer().certificate().clone();
    for authorities in [&issuing, &kept(&issuing).aborted().unwrap()] {
        assert_eq!((pinned(authorities, &old), pinned(authorities, &new)), (Ok(()), Ok(())));
    }
    let dropped = issuing.dropped().unwrap();
    assert_eq!(pinned(&dropped, &new), Ok(()));
    let refused = pinned(&dropped, &old).unwrap_err().to_string();
    assert!(refused.contains("rotated since the token was made"), "{refused}");
}

/// It knows the time of its last session, and that was before the rotation.
#[test]
fn a_site_without_a_clock_verifies_a_cloudcore_of_the_next_ca() {
    install_provider();
    let steady = Authorities::generate().unwrap();
    let old = steady.trusted();
    let (begins, _) = validity(&old[0]).unwrap();
    let issuing = steady.prepared().unwrap().issuing().unwrap();
    assert_eq!(validity(issuing.issuer().certificate()).unwrap().0, begins);
    let (chain, _) = issuing.issue_server(&["cloud".to_owned()]).unwrap();
    let then = UnixTime::since_unix_epoch(Duration::from_secs(begins.try_into().unwrap()));
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots(&old).unwrap())).build().unwrap();
    let name = ServerName::try_from("cloud").unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], then).unwrap();
}

#[test]
fn one_step_follows_the_other_and_the_old_key_goes() {
    let steady = Authorities::generate().unwrap();
    let (reset_key, old) = (steady.reset_key(), steady.to_secret());
    assert_eq!(steady.phase(), Phase::Steady);
    let prepared = kept(&steady.prepared().unwrap());
    assert_eq!((prepared.phase(), prepared.trusted().len()), (Phase::Prepared, 2));
    // Whoever knows nothing of rotations goes on as before.
    let secret = prepared.to_secret();
    assert!(old.iter().all(|(name, value)| secret[name] == *value));
    let issuing = kept(&prepared.issuing().unwrap());
    assert_eq!(issuing.phase(), Phase::Issuing);
    assert_eq!(issuing.ids().iter().rev().copied().collect::<Vec<_>>(), {
        let prepared = Authorities::from_secret(&secret).unwrap();
        prepared.ids().to_vec()
    });
    let issuing_secret = issuing.to_secret();
    let dropped = kept(&issuing.dropped().unwrap());
    let left: Vec<_> = dropped.to_secret().into_keys().collect();
    assert_eq!(
        (dropped.phase(), left),
        (Phase::Steady, vec![CERTIFICATE.to_owned(), KEY.to_owned(), RESET_KEY.to_owned()])
    );
    assert!(!dropped.to_secret().values().any(|value| *value == old[KEY]));
    assert_eq!(dropped.reset_key(), reset_key);
    let secrets: BTreeSet<_> =
        [&old, &secret, &issuing_secret, &dropped.to_secret()].map(ticket_secret).into();
    assert_eq!(secrets.len(), 4, "a ticket outlives its CAs");
    let again = dropped.prepared().unwrap();
    assert_eq!(again.reset_key(), reset_key);
    let error = again.dropped().unwrap_err();
    assert_eq!(error.to_string(), "the rotation is Prepared, not Issuing");
}

#[test]
fn a_certificate_names_its_ca() {
    let prepared = Authorities::generate().unwrap().prepared().unwrap();
    let edge = Edge::joined(&prepared);
    let [old, new] = &prepared.trusted()[..] else { panic!("two") };
    assert!(is_issued_by(&edge.chain[0], old).unwrap() && !is_issued_by(&edge.chain[0], new).unwrap());
    assert!(is_issued_by(old, old).unwrap() && !is_issued_by(new, old).unwrap());
    assert!(matches!(tls::check_authority(&edge.chain[0]), Err(tls::TlsError::NoAuthority)));
    assert!(
        tls::check_authority(new).is_ok() && tls::check_authority(&CertificateDer::from(vec![7])).is_err()
    );
}

#[test]
fn a_secret_that_is_no_good_says_what_is() {
    let secret = Authorities::generate().unwrap().prepared().unwrap().to_secret();
    let error = |change: &dyn Fn(&mut Data)| {
        let mut secret = secret.clone();
        change(&mut secret);
        Authorities::from_secret(&secret).unwrap_err().to_string()
    };
    for name in [CERTIFICATE, KEY, NEXT_KEY, CROSS_CERTIFICATE] {
        let lacks = error(&|secret| drop(secret.remove(name)));
        assert_eq!(lacks, format!("it has no {name}"));
    }
    let swapped = error(&|secret| drop(secret.insert(KEY.to_owned(), secret[NEXT_KEY].clone())));
    assert_eq!(swapped, "cadata and cakeydata are no CA");
    let both = error(&|secret| drop(secret.insert(PREVIOUS_CERTIFICATE.to_owned(), Vec::new())));
    assert!(both.contains("as in no phase"), "{both}");
    let garbage = error(&|secret| drop(secret.insert(CROSS_CERTIFICATE.to_owned(), b"garbage".to_vec())));
    assert_eq!(garbage, "crosscadata is not usable");
    let short = error(&|secret| drop(secret.insert(RESET_KEY.to_owned(), vec![0; 5])));
    assert_eq!(short, "resetkeydata has 5 bytes instead of 32");
}
