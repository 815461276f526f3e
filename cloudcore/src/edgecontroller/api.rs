//! Requests to the API server, as JSON, with a deadline, and with what became of them told apart in one place.

use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time;

use super::objects::resource_version;

/// The field manager of all that is written on behalf of edge nodes.
pub const FIELD_MANAGER: &str = "skerry-edge";

/// No request but a watch takes longer; a write of one object is done in milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why a request had no effect.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The API server answered, and answers the same if asked again.
    #[error("refused by the API server ({code} {reason}): {message}")]
    Refused { code: u16, reason: String, message: String },
    /// The API server answered that it cannot now, or that it does not know us (yet).
    #[error("API server is not able or willing now ({code} {reason}): {message}")]
    Later { code: u16, reason: String, message: String },
    #[error("API server did not answer")]
    Unreachable(#[source] Box<kube::Error>),
    #[error("API server did not answer within {DEADLINE:?}")]
    TimedOut,
    #[error("request cannot be built")]
    Build(#[source] http::Error),
    #[error("request cannot be encoded")]
    Encode(#[source] serde_json::Error),
    #[error("API server's answer is not JSON")]
    Decode(#[source] serde_json::Error),
    /// Not sent: see [`super::claim`].
    #[error("a newer session of the node may have written since")]
    Unclaimed,
}

impl Failure {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Later { .. } | Self::Unreachable(_) | Self::TimedOut | Self::Unclaimed)
    }

    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } | Self::Later { code, .. } => Some(*code),
            Self::Unreachable(_)
            | Self::TimedOut
            | Self::Build(_)
            | Self::Encode(_)
            | Self::Decode(_)
            | Self::Unclaimed => None,
        }
    }

    /// The object changed since it was read; with a test of the uid, that it is another one.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, reason, .. } if reason != "AlreadyExists")
    }

    fn from_kube(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let (code, reason, message) = (status.code, status.reason, status.message);
                // 401 and 403: rights are given by an operator, who may be late. A namespace that is being deleted is
                // also 403, and final.
                let denied = matches!(code, 401 | 403) && !message.contains("because it is being terminated");
                // Without a code it is no API server that answers, but something before it.
                if denied || matches!(code, 0 | 408 | 425 | 429) || code >= 500 {
                    Self::Later { code, reason, message }
                } else {
                    Self::Refused { code, reason, message }
                }
            }
            error => Self::Unreachable(Box::new(error)),
        }
    }
}

/// How a patch is meant.
#[derive(Debug, Clone, Copy)]
pub enum Patch {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Server-side apply: takes over the fields that it names, and drops those that it named before.
    Apply,
}

impl Patch {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            // JSON is YAML.
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// What the API server answered. Most callers do not look at it: it is the whole object, and takes a while to parse.
#[derive(Debug)]
pub struct Answer(String);

impl Answer {
    pub fn json(&self) -> Result<Value, Failure> {
        self.part()
    }

    /// The object's version, as a number.
    pub fn resource_version(&self) -> Result<u64, Failure> {
        #[derive(Deserialize)]
        struct Versioned {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            resource_version: String,
        }
        Ok(resource_version(&self.part::<Versioned>()?.metadata.resource_version))
    }

    /// Of which `T` is what is to be looked at.
    pub fn part<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.0).map_err(Failure::Decode)
    }
}

pub async fn get(client: &Client, path: &str) -> Result<Value, Failure> {
    read(client, path).await?.json()
}

pub async fn read(client: &Client, path: &str) -> Result<Answer, Failure> {
    send(client, Method::GET, path, "application/json", Vec::new()).await
}

pub async fn create(client: &Client, path: &str, object: &Value) -> Result<Answer, Failure> {
    let path = format!("{path}?fieldManager={FIELD_MANAGER}");
    send(client, Method::POST, &path, "application/json", encode(object)?).await
}

/// Writes the whole object.
pub async fn replace(client: &Client, path: &str, object: &Value) -> Result<Answer, Failure> {
    let path = format!("{path}?fieldManager={FIELD_MANAGER}");
    send(client, Method::PUT, &path, "application/json", encode(object)?).await
}

pub async fn delete(client: &Client, path: &str, options: &Value) -> Result<Answer, Failure> {
    send(client, Method::DELETE, path, "application/json", encode(options)?).await
}

pub async fn patch(client: &Client, path: &str, kind: Patch, patch: &Value) -> Result<Answer, Failure> {
    let force = if matches!(kind, Patch::Apply) { "&force=true" } else { "" };
    let path = format!("{path}?fieldManager={FIELD_MANAGER}{force}");
    send(client, Method::PATCH, &path, kind.content_type(), encode(patch)?).await
}

fn encode(value: &Value) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(Failure::Encode)
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: Vec<u8>,
) -> Result<Answer, Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body)
        .map_err(Failure::Build)?;
    // Not `request`: it logs the body when it does not parse, and that may be a Secret's.
    match time::timeout(DEADLINE, client.request_text(request)).await {
        Ok(Ok(text)) => Ok(Answer(text)),
        Ok(Err(error)) => Err(Failure::from_kube(error)),
        Err(_) => Err(Failure::TimedOut),
    }
}
