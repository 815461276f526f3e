//! Service account tokens: asked of the cloud, kept in the store so that a pod can start again with no cloud in
//! reach, renewed at four fifths of their life. One that has expired is still handed out while there is no newer one:
//! an in-cluster client that finds its file goes on, and what it says is refused or not where it is checked.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use proto::message::{Answer, Question, TokenQuestion};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::pod::{DesiredPod, PodUid};
use crate::{
    edgehub::Ask,
    metamanager::{Store, StoreError},
};

/// How long a pod waits for the cloud's answer before it tries again later.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// When a renewal brought nothing.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("no token yet: {0}")]
    Cloud(String),
    #[error("the cloud's answer does not parse")]
    Answer(#[source] serde_json::Error),
    #[error("the store failed")]
    Store(#[source] StoreError),
}

/// A token and when to ask for the next one. No `Debug`: it is a credential.
pub struct Token {
    pub text: String,
    pub refresh: Timestamp,
}

/// As kept in the store.
#[derive(Serialize, Deserialize)]
struct Kept {
    token: String,
    obtained: Timestamp,
    expires: Timestamp,
}

/// `TokenRequest.status`.
#[derive(Deserialize)]
struct TokenStatus {
    token: String,
    #[serde(rename = "expirationTimestamp")]
    expiration: Timestamp,
}

#[derive(Clone)]
pub struct Tokens {
    store: Store,
    cloud: mpsc::Sender<Ask>,
}

impl Tokens {
    pub fn new(store: Store, cloud: mpsc::Sender<Ask>) -> Self {
        Self { store, cloud }
    }

    /// The token that is kept, or a new one when there is none or it is time.
    pub async fn get(&self, pod: &DesiredPod, audience: &str, seconds: u64) -> Result<Token, TokenError> {
        let key = format!("token/{}/{audience}", pod.uid);
        let kept = self.store.local(&key).map_err(TokenError::Store)?;
        let kept: Option<Kept> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let now = Timestamp::now();
        if let Some(kept) = kept.as_ref().filter(|kept| now < kept.refresh()) {
            return Ok(Token { text: kept.token.clone(), refresh: kept.refresh() });
        }
        match (self.ask(pod, audience, seconds).await, kept) {
            (Ok(fresh), _) => {
                let value = serde_json::to_vec(&fresh).map_err(TokenError::Answer)?;
                self.store.put_local(&key, Bytes::from(value)).await.map_err(TokenError::Store)?;
                let refresh = fresh.refresh();
                Ok(Token { text: fresh.token, refresh })
            }
            (Err(error), Some(old)) => {
                tracing::debug!(pod = %pod.key, error = %runtime::chain(&error), "token not renewed; the old one stays");
                Ok(Token { text: old.token, refresh: now + RETRY })
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn ask(&self, pod: &DesiredPod, audience: &str, seconds: u64) -> Result<Kept, TokenError> {
        let question = TokenQuestion {
            namespace: pod.namespace().to_owned(),
            service_account: pod.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            pod_name: pod.name().to_owned(),
            pod_uid: pod.uid.to_string(),
            audiences: if audience.is_empty() { Vec::new() } else { vec![audience.to_owned()] },
            expiration_seconds: seconds,
        };
        let (answer, wait) = oneshot::channel();
        let ask = Ask { question: Question::ServiceAccountToken(question), answer };
        self.cloud.try_send(ask).map_err(|error| {
            TokenError::Cloud(match error {
                mpsc::error::TrySendError::Full(_) => "too many questions to the cloud are open".to_owned(),
                mpsc::error::TrySendError::Closed(_) => "there is no link to the cloud".to_owned(),
            })
        })?;
        let answer = time::timeout(ANSWER_DEADLINE, wait)
            .await
            .map_err(|_| TokenError::Cloud(format!("no answer within {} s", ANSWER_DEADLINE.as_secs())))?
            .map_err(|_| TokenError::Cloud("the question was dropped".to_owned()))?
            .map_err(TokenError::Cloud)?;
        let bytes = match answer {
            Answer::ServiceAccountToken(bytes) => bytes,
            Answer::Refused(why) => return Err(TokenError::Cloud(why)),
            Answer::Certificate(_) | Answer::Authorities(_) => {
                return Err(TokenError::Cloud("an answer to another question".to_owned()));
            }
        };
        let status: TokenStatus = serde_json::from_slice(&bytes).map_err(TokenError::Answer)?;
        Ok(Kept { token: status.token, obtained: Timestamp::now(), expires: status.expiration })
    }

    /// Forgets the tokens of a pod that is gone.
    pub async fn forget(&self, uid: &PodUid) -> Result<(), StoreError> {
        for (key, _) in self.store.list_local(&format!("token/{uid}/"))? {
            self.store.delete_local(&key).await?;
        }
        Ok(())
    }
}

impl Kept {
    fn refresh(&self) -> Timestamp {
        let life = Duration::try_from(self.expires.duration_since(self.obtained)).unwrap_or_default();
        self.obtained.checked_add(life * 4 / 5).unwrap_or(self.expires)
    }
}
