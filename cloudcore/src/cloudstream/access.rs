//! Who may ask: what RBAC says of the node's subresource `proxy`, as with a kubelet in its mode Webhook (SubjectAccessReview).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use kube::Client;
use runtime::tls::Subject;
use serde_json::json;
use tokio::time::Instant;

use super::Refusal;
use crate::edgecontroller::api;

/// How long an answer holds; the kubelet's own (`authorization.webhook.cache*TTL`).
const ALLOWED: Duration = Duration::from_mins(5);
const DENIED: Duration = Duration::from_secs(30);
/// Answers that are kept.
const KEPT: usize = 10_000;

/// For what is about each of them: a SubjectAccessReview without a name.
pub(super) const ALL_NODES: &str = "";

/// User, verb and node.
type Question = (String, &'static str, String);

pub(super) struct Access {
    client: Client,
    known: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Access {
    pub(super) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    pub(super) async fn check(&self, user: &Subject, verb: &'static str, node: &str) -> Result<(), Refusal> {
        let question = (user.name.clone(), verb, node.to_owned());
        let known = self.lock().get(&question).filter(|(_, until)| *until > Instant::now()).copied();
        let allowed = if let Some((allowed, _)) = known {
            allowed
        } else {
            let allowed = self.ask(user, verb, node).await?;
            let until = Instant::now() + if allowed { ALLOWED } else { DENIED };
            let mut known = self.lock();
            if known.len() >= KEPT {
                known.clear();
            }
            known.insert(question, (allowed, until));
            allowed
        };
        if allowed {
            return Ok(());
        }
        let whose = if node == ALL_NODES { "all nodes".to_owned() } else { format!("node {node}") };
        let reason = format!("user {:?} may not {verb} nodes/proxy of {whose}", user.name);
        Err(Refusal(StatusCode::FORBIDDEN, reason))
    }

    async fn ask(&self, user: &Subject, verb: &str, node: &str) -> Result<bool, Refusal> {
        let mut groups = user.groups.clone();
        groups.push("system:authenticated".to_owned());
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "groups": groups,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": "proxy", "name": node,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = api::create(&self.client, path, &review).await.and_then(|answer| answer.json());
        match answer {
            Ok(answer) => Ok(answer["status"]["allowed"] == true),
            Err(error) => {
                let reason = format!("cannot ask the API server for access: {}", runtime::chain(&error));
                Err(Refusal(StatusCode::BAD_GATEWAY, reason))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Question, (bool, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
