//! The node's certificate is renewed over the link, well before it ends, or when another CA issues than the one that it is from,
//! for the key that the node has. The next connection is made with the new one; the one that is open goes on.

use std::{convert::Infallible, sync::Arc, time::Duration};

use proto::message::{Answer, Question};
use runtime::{
    backoff::Backoff,
    chain,
    tls::{self, Clock, CsrError, TlsError},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Ask, HubState, IdentityPaths, identity, trust::Trust};

/// How often the certificate's age is looked at, at least: clocks are set, and files are put in place by hand.
const LOOK: Duration = Duration::from_hours(1);
/// Between attempts that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_hours(1));
/// Within what time a certificate of another CA than the one that issues is renewed, if the cloud has not said: it has before this
/// process began.
const UNTOLD: Duration = Duration::from_mins(10);
const ANSWER_DEADLINE: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("failed to use this node's identity")]
    Identity(#[from] TlsError),
    #[error("failed to make a certificate signing request")]
    Csr(#[from] CsrError),
    #[error("the cloud gave no certificate: {0}")]
    Cloud(String),
    #[error("the cloud gave a certificate of {holder:?}, or for another key")]
    WrongCertificate { holder: Option<String> },
    #[error("the cloud gave a certificate of the same CA as before")]
    SameAuthority,
}

/// Keeps this node's certificate valid, and the CAs that it trusts those of the cluster.
pub struct Renewal {
    pub node: String,
    pub identity: IdentityPaths,
    pub asks: mpsc::Sender<Ask>,
    pub hub: watch::Receiver<HubState>,
    pub clock: Arc<Clock>,
}

impl Renewal {
    /// Runs until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let (renewed, changes) = watch::channel(());
        let (within, told) = watch::channel(None);
        let (hub, asks) = (self.hub.clone(), &self.asks);
        let trust = Trust { identity: &self.identity, asks, hub, renewed: changes, within };
        tokio::select! {
            never = trust.run() => match never {},
            never = self.renew_in_time(told, renewed) => match never {},
            // A certificate that is not written yet is asked for again.
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn renew_in_time(
        &self,
        mut told: watch::Receiver<Option<Duration>>,
        renewed: watch::Sender<()>,
    ) -> Infallible {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut hub = self.hub.clone();
        // When a certificate of another CA than the one that issues is renewed.
        let mut ahead: Option<Instant> = None;
        loop {
            let within = *told.borrow_and_update();
            ahead = self.spread().map(|share| {
                ahead.unwrap_or_else(|| Instant::now() + within.unwrap_or(UNTOLD).mul_f64(share))
            });
            let ahead_in = ahead.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()));
            // Before the node has enrolled there is nothing to renew.
            let wait = self.due_in().unwrap_or(LOOK).min(LOOK).min(ahead_in);
            let turn = async {
                time::sleep(wait).await;
                let is_ahead = ahead.is_some_and(|at| at <= Instant::now());
                if !is_ahead && self.due_in() != Some(Duration::ZERO) {
                    return;
                }
                // An error means that the process is ending.
                drop(hub.wait_for(|hub| hub.connected).await);
                match self.renew(is_ahead).await {
                    Ok(()) => {
                        backoff.reset();
                        renewed.send_replace(());
                    }
                    Err(error) => {
                        warn!(error = %chain(&error), "certificate not renewed; trying again");
                        time::sleep(backoff.next_delay()).await;
                    }
                }
            };
            tokio::select! {
                () = turn => {}
                // Another CA may issue now. A certificate that is not written yet is asked for again.
                Ok(()) = told.changed() => ahead = None,
            }
        }
    }

    /// A share of the time within which a fleet renews, by the node's key; `None` if its certificate is from the CA that issues,
    /// or there is none.
    fn spread(&self) -> Option<f64> {
        let authorities = tls::read_certificates(&self.identity.ca).ok()?;
        let certificate = tls::read_certificates(&self.identity.certificate).ok()?.into_iter().next()?;
        if identity::issuer(&authorities, &certificate).ok()? == Some(0) {
            return None;
        }
        let hash = tls::key_hash(&certificate).ok()?;
        let share = hash.get(..4).and_then(|head| u16::from_str_radix(head, 16).ok())?;
        Some(f64::from(share) / f64::from(u16::MAX))
    }

    /// How long the certificate need not be renewed; `None` if there is none.
    fn due_in(&self) -> Option<Duration> {
        let certificate = tls::read_certificates(&self.identity.certificate).ok()?.into_iter().next()?;
        let (begins, ends) = tls::validity(&certificate).ok()?;
        let (begins, ends) = (u64::try_from(begins).ok()?, u64::try_from(ends).ok()?);
        // After three fifths to two thirds, which one goes by the key: a fleet that joined at once does not renew at once.
        let spread = tls::key_hash(&certificate).map_or(0, |hash| u64::from(hash.as_bytes()[0]) % 16);
        let at = begins + ends.saturating_sub(begins) * (144 + spread) / 240;
        Some(Duration::from_secs(at.saturating_sub(self.clock.now())))
    }

    /// `is_ahead`: only because another CA issues.
    async fn renew(&self, is_ahead: bool) -> Result<(), RenewalError> {
        let key = tls::read_key(&self.identity.key)?;
        let csr = tls::node_csr_for(&self.node, key.secret_der())?;
        let old = tls::read_certificates(&self.identity.certificate)?;
        let certificate = CertificateDer::from(self.ask(csr).await?);
        let same_key = match old.first() {
            Some(old) => tls::key_hash(old)? == tls::key_hash(&certificate)?,
            None => false,
        };
        let holder = tls::node_of(&certificate);
        if holder.as_deref() != Some(self.node.as_str()) || !same_key {
            return Err(RenewalError::WrongCertificate { holder });
        }
        if is_ahead && let Some(old) = old.first() {
            let authorities = tls::read_certificates(&self.identity.ca)?;
            let issuer = identity::issuer(&authorities, &certificate)?;
            if issuer.is_some() && issuer == identity::issuer(&authorities, old)? {
                return Err(RenewalError::SameAuthority);
            }
        }
        let pem = tls::pem("CERTIFICATE", &certificate);
        tls::write_durably(&self.identity.certificate, 0o644, pem.as_bytes())?;
        let (_, ends) = tls::validity(&certificate)?;
        let until = jiff::Timestamp::from_second(ends).map(|until| until.to_string()).unwrap_or_default();
        info!(until, "certificate renewed");
        Ok(())
    }

    async fn ask(&self, csr: Vec<u8>) -> Result<Vec<u8>, RenewalError> {
        let (answer, wait) = oneshot::channel();
        let ask = Ask { question: Question::Certificate(csr.into()), answer };
        let cloud = |why: &str| RenewalError::Cloud(why.to_owned());
        self.asks.try_send(ask).map_err(|_| cloud("too many questions are open"))?;
        let answer = time::timeout(ANSWER_DEADLINE, wait).await.map_err(|_| cloud("no answer in time"))?;
        match answer.map_err(|_| cloud("the question was dropped"))?.map_err(RenewalError::Cloud)? {
            Answer::Certificate(certificate) => Ok(certificate.to_vec()),
            Answer::Refused(why) => Err(RenewalError::Cloud(why)),
            Answer::ServiceAccountToken(_) | Answer::Authorities(_) => {
                Err(cloud("an answer to another question"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use runtime::tls::CertificateAuthority;

    use super::*;

    const NODE: &str = "edge-1";

    /// A node whose certificate is valid for so long.
    fn node(dir: &Path, ca: &CertificateAuthority, validity: Duration) -> IdentityPaths {
        let (key, csr) = tls::node_csr(NODE).unwrap();
        let certificate = ca.sign_node_csr(&csr, NODE, validity).unwrap();
        let [ca, certificate_file, key_file] = ["ca.crt", "node.crt", "node.key"].map(|name| dir.join(name));
        tls::write_durably(&certificate_file, 0o644, tls::pem("CERTIFICATE", &certificate).as_bytes())
            .unwrap();
        tls::write_durably(&key_file, 0o600, tls::pem("PRIVATE KEY", &key).as_bytes()).unwrap();
        IdentityPaths { ca, certificate: certificate_file, key: key_file }
    }

    fn read(identity: &IdentityPaths) -> CertificateDer<'static> {
        tls::read_certificates(&identity.certificate).unwrap().remove(0)
    }

    struct Cloud {
        renewal: Renewal,
        asked: mpsc::Receiver<Ask>,
        state: watch::Sender<HubState>,
    }

    fn cloud(identity: &IdentityPaths) -> Cloud {
        let (asks, asked) = mpsc::channel(1);
        let (state, hub) = watch::channel(HubState::default());
        let (node, clock) = (NODE.to_owned(), Arc::default());
        Cloud { renewal: Renewal { node, identity: identity.clone(), asks, hub, clock }, asked, state }
    }

    #[tokio::test]
    async fn a_certificate_that_has_expired_is_renewed_once_there_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::generate().unwrap();
        let identity = node(dir.path(), &ca, Duration::ZERO);
        let old = read(&identity);
        let Cloud { renewal, mut asked, state } = cloud(&identity);
        let stop = CancellationToken::new();
        let answering = async {
            // With no line nothing is asked.
            assert!(time::timeout(Duration::from_millis(50), asked.recv()).await.is_err());
            state.send_modify(|state| state.connected = true);
            let Ask { question, answer } = asked.recv().await.unwrap();
            let Question::Certificate(csr) = question else { panic!("another question") };
            let certificate = ca.sign_node_csr(&csr, NODE, Duration::from_hours(24)).unwrap();
            answer.send(Ok(Answer::Certificate(certificate.into()))).unwrap();
            while read(&identity) == old {
                time::sleep(Duration::from_millis(1)).await;
            }
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(renewal.run(stop.clone()), answering);
        ended.unwrap();
        assert_eq!(tls::key_hash(&read(&identity)).unwrap(), tls::key_hash(&old).unwrap());
    }

    #[tokio::test]
    async fn a_certificate_of_somebody_else_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::generate().unwrap();
        let identity = node(dir.path(), &ca, Duration::ZERO);
        let old = read(&identity);
        for (name, own_key) in [("edge-2", true), (NODE, false)] {
            let Cloud { renewal, mut asked, state: _state } = cloud(&identity);
            let key = if own_key {
                tls::read_key(&identity.key).unwrap().secret_der().to_vec()
            } else {
                tls::node_csr(NODE).unwrap().0
            };
            let answering = async {
                let csr = tls::node_csr_for(name, &key).unwrap();
                let certificate = ca.sign_node_csr(&csr, name, Duration::from_hours(24)).unwrap();
                let Ask { answer, .. } = asked.recv().await.unwrap();
                answer.send(Ok(Answer::Certificate(certificate.into()))).unwrap();
            };
            let (renewed, ()) = tokio::join!(renewal.renew(false), answering);
            assert!(matches!(renewed, Err(RenewalError::WrongCertificate { .. })), "{renewed:?}");
            assert_eq!(read(&identity), old);
        }
    }

    #[test]
    fn it_is_due_after_three_fifths_to_two_thirds() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::generate().unwrap();
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let identity = node(dir.path(), &ca, days(300));
        let Cloud { renewal, .. } = cloud(&identity);
        let due = renewal.due_in().unwrap();
        assert!(due > days(179) && due < days(201), "{due:?}");
        // The machine's own clock is slow, and somebody knows it.
        renewal.clock.raise(renewal.clock.now() + 250 * 86_400);
        assert_eq!(renewal.due_in(), Some(Duration::ZERO));
        std::fs::remove_file(&identity.certificate).unwrap();
        assert_eq!(renewal.due_in(), None);
    }
}
