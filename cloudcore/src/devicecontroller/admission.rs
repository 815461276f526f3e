//! What the API server asks before a Device or a DeviceModel is written: `AdmissionReview` of `admission.k8s.io/v1`.
//!
//! A device's model is read from the API server, and not from the cache, which may be a moment behind: `kubectl apply` of one file
//! writes a model, and right after it the device that needs what is new in it. Where the model cannot be had, nothing is refused.

use std::time::Duration;

use crds::devices::{
    GROUP,
    v1beta1::{DeviceModelSpec, DeviceSpec},
    validation::{self, Fault},
};
use kube::Client;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time;

use crate::edgecontroller::api::{self, Failure};

/// For a model to be read. The API server waits for 3 s.
const READ: Duration = Duration::from_secs(2);
/// So many faults are told at once.
const TOLD: usize = 10;

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    namespace: String,
    object: Value,
    old_object: Option<Value>,
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

#[derive(Deserialize)]
struct Stored<Spec> {
    spec: Spec,
}

/// An object that is about to be written.
pub struct Admission {
    uid: String,
    namespace: String,
    change: Change,
}

enum Change {
    Device(Specs<DeviceSpec>),
    Model(Specs<DeviceModelSpec>),
}

struct Specs<Spec> {
    now: Spec,
    /// None of what is new.
    before: Option<Spec>,
}

impl<Spec: DeserializeOwned> Specs<Spec> {
    fn parse(now: Value, before: Option<Value>) -> Result<Self, String> {
        let parsed = |object| serde_json::from_value::<Stored<Spec>>(object).map(|stored| stored.spec);
        let now = parsed(now).map_err(|error| format!("the object is malformed: {error}"))?;
        Ok(Self { now, before: before.and_then(|before| parsed(before).ok()) })
    }
}

impl Specs<DeviceSpec> {
    fn faults(&self, model: &DeviceModelSpec) -> Vec<Fault> {
        let Self { now, before } = self;
        // What was wrong with it as a device of another model is something else.
        let before = before.as_ref().filter(|before| before.device_model_ref == now.device_model_ref);
        let before = before.map(|before| validation::device(before, model)).unwrap_or_default();
        validation::added(validation::device(now, model), before)
    }
}

impl Specs<DeviceModelSpec> {
    fn faults(&self) -> Vec<Fault> {
        let before = self.before.as_ref().map(validation::model).unwrap_or_default();
        validation::added(validation::model(&self.now), before)
    }
}

impl Admission {
    /// # Errors
    /// What is no review of a Device or a DeviceModel.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let Review { request: Request { uid, kind, namespace, object, old_object } } =
            serde_json::from_slice(body).map_err(|error| format!("this is no AdmissionReview: {error}"))?;
        let change = match &*kind.kind {
            "Device" => Change::Device(Specs::parse(object, old_object)?),
            "DeviceModel" => Change::Model(Specs::parse(object, old_object)?),
            other => return Err(format!("kind {other:?} is neither Device nor DeviceModel")),
        };
        Ok(Self { uid, namespace, change })
    }

    /// The answer to the review.
    pub async fn answer(self, client: &Client) -> Value {
        let Self { uid, namespace, change } = self;
        match change {
            Change::Model(specs) => answer(&uid, &specs.faults(), None),
            // It is labelled, or placed on a node.
            Change::Device(Specs { now, before }) if before.as_ref() == Some(&now) => answer(&uid, &[], None),
            Change::Device(specs) => match model(client, &namespace, &specs.now).await {
                Ok(model) => answer(&uid, &specs.faults(&model), None),
                Err(warning) => answer(&uid, &[], Some(&warning)),
            },
        }
    }
}

fn answer(uid: &str, faults: &[Fault], warning: Option<&str>) -> Value {
    let mut response = json!({"uid": uid, "allowed": faults.is_empty()});
    if !faults.is_empty() {
        let mut told: Vec<String> = faults.iter().take(TOLD).map(Fault::to_string).collect();
        if faults.len() > TOLD {
            told.push(format!("and {} more", faults.len() - TOLD));
        }
        response["status"] = json!({"code": 400, "reason": "BadRequest", "message": told.join("\n")});
    }
    if let Some(warning) = warning {
        response["warnings"] = json!([warning]);
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

/// The model of a device. The error is why nothing can be said of the device, for people.
async fn model(client: &Client, namespace: &str, device: &DeviceSpec) -> Result<DeviceModelSpec, String> {
    let name = device.device_model_ref.as_ref().map_or("", |model| model.name.as_str());
    if name.is_empty() {
        return Err(
            "spec.deviceModelRef.name is missing: name the DeviceModel that the device is of".to_owned()
        );
    }
    let missing = || {
        format!(
            "spec.deviceModelRef.name: there is no DeviceModel {name} in namespace {namespace} yet; \
             the device was not checked, and is not driven before there is one"
        )
    };
    if !is_name(namespace) || !is_name(name) {
        return Err(missing());
    }
    let unread =
        |reason: &str| format!("the device was not checked: DeviceModel {name} cannot be read: {reason}");
    let path = format!("/apis/{GROUP}/v1beta1/namespaces/{namespace}/devicemodels/{name}");
    let read = async { api::read(client, &path).await?.part::<Stored<DeviceModelSpec>>() };
    match time::timeout(READ, read).await {
        Ok(Ok(stored)) => Ok(stored.spec),
        Ok(Err(Failure::Refused { code: 404, .. })) => Err(missing()),
        Ok(Err(failure)) => Err(unread(&runtime::chain(&failure).to_string())),
        Err(_) => Err(unread("the API server does not answer")),
    }
}

/// No part of any other path. Whoever reaches the port may ask.
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text.bytes().next().is_some_and(is_plain)
        && text.bytes().all(|byte| is_plain(byte) || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(kind: &str, now: &Value, before: &Value) -> Change {
        let object = |spec: &Value| if spec.is_null() { Value::Null } else { json!({"spec": spec}) };
        let request = json!({"uid": "u", "kind": {"group": GROUP, "version": "v1beta1", "kind": kind},
            "namespace": "a", "object": object(now), "oldObject": object(before)});
        let admission = Admission::parse(json!({"request": request}).to_string().as_bytes()).unwrap();
        assert_eq!((&*admission.uid, &*admission.namespace), ("u", "a"));
        admission.change
    }

    /// Of the models that allow 3000 and 1000.
    fn faults_of_device(now: &Value, before: &Value) -> [usize; 2] {
        let Change::Device(specs) = review("Device", now, before) else { panic!("no Device") };
        ["3000", "1000"].map(|maximum| {
            let model = json!({"properties": [{"name": "speed", "type": "INT", "maximum": maximum}]});
            specs.faults(&serde_json::from_value(model).unwrap()).len()
        })
    }

    #[test]
    fn what_was_wrong_already_is_let_through() {
        let device = |model: &str, speed: &str, node: &str| {
            json!({"deviceModelRef": {"name": model}, "nodeName": node,
                "properties": [{"name": "speed", "desired": {"value": speed}}]})
        };
        let before = device("pump", "2000", "edge-1");
        assert_eq!(faults_of_device(&before, &Value::Null), [0, 1]);
        assert_eq!(faults_of_device(&device("pump", "2000", "edge-2"), &before), [0, 0]);
        assert_eq!(faults_of_device(&device("pump", "2001", "edge-1"), &before), [0, 1]);
        assert_eq!(faults_of_device(&device("fan", "2000", "edge-1"), &before), [0, 1]);

        let model = |kind: &str| json!({"properties": [{"name": "p", "type": kind, "minimum": "1"}]});
        for (kind, before, wanted) in
            [("STRING", Value::Null, 1), ("STRING", model("STRING"), 0), ("STRING", model("INT"), 1)]
        {
            let Change::Model(specs) = review("DeviceModel", &model(kind), &before) else {
                panic!("no DeviceModel")
            };
            assert_eq!(specs.faults().len(), wanted);
        }
    }

    #[test]
    fn an_answer_refuses_with_all_reasons_or_warns() {
        let allowed = answer("u", &[], Some("careful"));
        assert_eq!(allowed["response"], json!({"uid": "u", "allowed": true, "warnings": ["careful"]}));
        let fault = |number: usize| Fault { field: format!("f{number}"), reason: "wrong".to_owned() };
        let faults: Vec<Fault> = (0..12).map(fault).collect();
        let review = answer("u", &faults, None);
        let refused = &review["response"];
        assert_eq!(refused["allowed"], false);
        let message = refused["status"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("f0: wrong\nf1: wrong\n") && message.ends_with("and 2 more"),
            "{message}"
        );
    }

    #[test]
    fn what_is_no_review_says_so() {
        let parse = |body: &str| Admission::parse(body.as_bytes()).err().unwrap();
        assert!(parse("{}").contains("no AdmissionReview"));
        let rule = r#"{"request": {"uid": "u", "kind": {"kind": "Rule"}, "object": {"spec": {}}}}"#;
        assert!(parse(rule).contains(r#"kind "Rule" is neither"#));
    }

    #[test]
    fn a_name_is_no_path() {
        assert!(is_name("pump") && is_name("pump-2.example"));
        for name in ["", ".", "..", "a/b", "a?b", "a%2fb", "A", "a b"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
