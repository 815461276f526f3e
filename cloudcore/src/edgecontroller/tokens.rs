//! Service account tokens for pods on the edge, bound to the pod (TokenRequest), never logged.

use kube::Client;
use proto::message::TokenQuestion;
use serde_json::{Value, json};

use super::api::{self, Failure};

/// The API server's own bounds are wider; a token on a site that may be cut off is worth keeping for a day.
const LIFETIME: (u64, u64) = (600, 48 * 3600);

/// Asks for a token; the caller has checked that the node may have it. The answer is `TokenRequest.status` as JSON.
pub async fn request(client: &Client, question: &TokenQuestion) -> Result<Vec<u8>, Failure> {
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{}/token",
        question.namespace, question.service_account
    );
    let mut answer = api::create(client, &path, &token_request(question)).await?.json()?;
    serde_json::to_vec(&answer["status"].take()).map_err(Failure::Encode)
}

fn token_request(question: &TokenQuestion) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": question.audiences,
            "expirationSeconds": question.expiration_seconds.clamp(LIFETIME.0, LIFETIME.1),
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": question.pod_name, "uid": question.pod_uid,
            },
        },
    })
}
