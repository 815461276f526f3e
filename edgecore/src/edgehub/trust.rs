//! The CAs by which this node knows cloudcore. The cloud is told which those are, in each session and after each change of this
//! node's identity; when they should be others, it answers with these. They are on disk before the cloud hears of it, and the
//! next connection is made with them; the one that is open goes on.

use std::{convert::Infallible, time::Duration};

use proto::{
    limits::{MAX_AUTHORITIES, MAX_CERTIFICATE},
    message::{Answer, Authorities, AuthoritiesHeld, Question},
};
use runtime::{
    backoff::Backoff,
    chain,
    tls::{self, TlsError},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::{info, warn};

use super::{Ask, HubState, IdentityPaths, identity};

/// Between attempts that failed here.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));

#[derive(Debug, thiserror::Error)]
enum TrustError {
    #[error("the cloud named {0} CAs, and one to {MAX_AUTHORITIES} can be")]
    Count(usize),
    #[error("the cloud sent a CA of {0} bytes, which is more than {MAX_CERTIFICATE}")]
    TooLong(usize),
    #[error("the cloud sent a CA that cannot be used")]
    Unusable(#[source] TlsError),
    #[error("failed to use this node's identity")]
    Identity(#[from] TlsError),
    #[error("this node has no certificate")]
    NoCertificate,
    #[error("too many questions are open")]
    Busy,
}

pub(super) struct Trust<'a> {
    pub(super) identity: &'a IdentityPaths,
    pub(super) asks: &'a mpsc::Sender<Ask>,
    pub(super) hub: watch::Receiver<HubState>,
    /// Another certificate is on the disk.
    pub(super) renewed: watch::Receiver<()>,
    /// Within what time a certificate of another CA than the one that issues should be renewed.
    pub(super) within: watch::Sender<Option<Duration>>,
}

impl Trust<'_> {
    /// Never ends.
    pub(super) async fn run(mut self) -> Infallible {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            // It errs when the process is ending.
            let Ok(session) = self.hub.wait_for(|hub| hub.connected).await.map(|hub| hub.sessions) else {
                return std::future::pending().await;
            };
            self.renewed.mark_unchanged();
            let told = match self.ask() {
                Ok(answer) => tokio::select! {
                    answer = answer => Ok(answer),
                    // The question that is open is taken back by the next one.
                    changed = self.renewed.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return std::future::pending().await,
                    },
                },
                Err(error) => Err(error),
            };
            let kept = match told {
                Ok(Ok(Ok(Answer::Authorities(told)))) => self.keep(&told),
                // A cloud that does not know the question, or the line went down: the next session may be with another one.
                Ok(_) => {
                    drop(self.hub.wait_for(|hub| hub.connected && hub.sessions != session).await);
                    continue;
                }
                Err(error) => Err(error),
            };
            match kept {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    warn!(error = %chain(&error), "the CAs that this node trusts stay as they are; trying again");
                    time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    fn ask(&self) -> Result<oneshot::Receiver<Result<Answer, String>>, TrustError> {
        let authorities = tls::read_certificates(&self.identity.ca)?;
        let chain = tls::read_certificates(&self.identity.certificate)?;
        let certificate = chain.first().ok_or(TrustError::NoCertificate)?;
        let trusted: Vec<u64> = authorities.iter().map(tls::authority_id).collect();
        let issuer = identity::issuer(&authorities, certificate)?.map_or(0, |number| trusted[number]);
        let (answer, wait) = oneshot::channel();
        let question = Question::Authorities(AuthoritiesHeld { trusted, issuer });
        self.asks.try_send(Ask { question, answer }).map_err(|_| TrustError::Busy)?;
        Ok(wait)
    }

    fn keep(&self, told: &Authorities) -> Result<(), TrustError> {
        let count = told.certificates.len();
        if count == 0 || count > MAX_AUTHORITIES {
            return Err(TrustError::Count(count));
        }
        let mut authorities = Vec::with_capacity(count);
        for certificate in &told.certificates {
            if certificate.len() > MAX_CERTIFICATE {
                return Err(TrustError::TooLong(certificate.len()));
            }
            let ca = CertificateDer::from(certificate.to_vec());
            tls::check_authority(&ca).map_err(TrustError::Unusable)?;
            authorities.push(ca);
        }
        identity::save_authorities(self.identity, &authorities)?;
        info!(count, "this node trusts other CAs from now on");
        self.within.send_replace(Some(Duration::from_secs(told.renew_within_seconds.into())));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
