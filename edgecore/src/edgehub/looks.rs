//! What the throttle has to know of a report: its class, and what a person sees of it first.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crds::{
    PRIORITY_CLASS_ANNOTATION,
    componentconfig::sync::{ClassName, LinkSettings},
};
use proto::{Object, Report, ResourceKey, message::ReportKind, resource::content_hash};
use serde::Deserialize;
use serde_json::Value;

use super::throttle::{Class, Subject};

/// Takes a report apart; `held` gives the store's objects. The second is what is wrong with the annotation of its pod.
pub(super) fn subject(
    report: &Report,
    settings: &LinkSettings,
    held: impl Fn(&ResourceKey) -> Option<Object>,
) -> (Subject, Option<String>) {
    let kind = report.kind();
    let mut subject = Subject {
        id: report.id,
        key: content_hash(format!("{} {}", report.kind, report.key).as_bytes()),
        class: Class::AtOnce,
        look: 0,
        hash: content_hash(&report.payload),
        is_status: kind.is_status(),
        once_a_session: kind == ReportKind::NodeStatus,
    };
    if settings.intervals.iter().all(Duration::is_zero) {
        return (subject, None);
    }
    let mut wrong = None;
    subject.class = match (kind, report.key.parse::<ResourceKey>()) {
        (ReportKind::NodeStatus, _) => Class::Usual,
        (ReportKind::PodStatus | ReportKind::DeviceStatus, Ok(key)) => class_of(held(&key), &mut wrong),
        (ReportKind::Event, Ok(key)) if key.kind() == "Pod" => class_of(held(&key), &mut wrong),
        // A pod that has ended, and what is about the node itself: somebody waits for it.
        _ => Class::AtOnce,
    };
    let payload = serde_json::from_slice(&report.payload).unwrap_or_default();
    subject.look = content_hash(look(kind, &payload).as_bytes());
    (subject, wrong)
}

/// What reports are about.
#[derive(Default, Deserialize)]
struct Reported {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Whether it is a pod that is being deleted.
pub(super) fn is_ending(object: &Object) -> bool {
    let ends = |pod: Reported| pod.metadata.deletion_timestamp.is_some();
    object.key.kind() == "Pod" && serde_json::from_slice(&object.bytes).is_ok_and(ends)
}

/// The class of the reports about an object, and what is wrong with its annotation.
fn class_of(object: Option<Object>, wrong: &mut Option<String>) -> Class {
    // It may be gone.
    let Some(object) = object.and_then(|object| serde_json::from_slice::<Reported>(&object.bytes).ok())
    else {
        return Class::AtOnce;
    };
    // Whoever deletes a pod waits for its end.
    if object.metadata.deletion_timestamp.is_some() {
        return Class::AtOnce;
    }
    match chosen(&object) {
        Ok(Some(name)) => Class::Chosen(name),
        Ok(None) => Class::Usual,
        Err(fault) => {
            *wrong = Some(fault);
            Class::Usual
        }
    }
}

/// The class that an object names, and what is wrong with one that is none.
fn chosen(object: &Reported) -> Result<Option<ClassName>, String> {
    let annotations = object.metadata.annotations.as_ref();
    let Some(named) = annotations.and_then(|annotations| annotations.get(PRIORITY_CLASS_ANNOTATION)) else {
        return Ok(None);
    };
    if let Some(name) = ClassName::ALL.into_iter().find(|name| name.as_str() == named) {
        return Ok(Some(name));
    }
    let names = ClassName::ALL.map(ClassName::as_str).join(", ");
    let named: String = named.chars().take(100).collect();
    Err(format!("annotation {PRIORITY_CLASS_ANNOTATION}: {named:?} is not one of {names}; it is passed over"))
}

/// What is wrong with the class that an object names for its way down. That of a pod is told with its reports.
pub(super) fn wrong_class(object: &Object) -> Option<String> {
    let wanted = PRIORITY_CLASS_ANNOTATION.as_bytes();
    if object.key.kind() == "Pod" || !object.bytes.windows(wanted.len()).any(|window| window == wanted) {
        return None;
    }
    chosen(&serde_json::from_slice(&object.bytes).ok()?).err()
}

/// What `kubectl get` and `kubectl describe` show first: of pods the phase, what is ready, and what containers wait for; of a
/// node its conditions and addresses; of events the reason, if it is a warning; of a
/// device its state; of a rule whether it is active.
fn look(kind: ReportKind, payload: &Value) -> String {
    let mut look = String::new();
    let mut add = |value: &Value| write!(look, "{value} ").expect("a String takes all that is written");
    let status = &payload["status"];
    match kind {
        ReportKind::PodStatus => {
            [&payload["uid"], &status["phase"], &status["reason"]].into_iter().for_each(&mut add);
            each(&status["conditions"])
                .filter(|one| one["type"] == "Ready")
                .for_each(|one| add(&one["status"]));
            for list in ["initContainerStatuses", "containerStatuses"] {
                for container in each(&status[list]) {
                    let state = &container["state"];
                    add(&container["ready"]);
                    add(&state["waiting"]["reason"]);
                    add(&state["terminated"]["reason"]);
                }
            }
        }
        ReportKind::NodeStatus => {
            each(&status["conditions"]).for_each(|one| {
                add(&one["type"]);
                add(&one["status"]);
            });
            add(&status["addresses"]);
        }
        ReportKind::Event => {
            add(&payload["involvedObject"]["uid"]);
            if payload["type"] == "Warning" {
                add(&payload["reason"]);
            }
        }
        ReportKind::DeviceStatus => {
            [&payload["uid"], &status["state"], &status["active"]].into_iter().for_each(&mut add);
        }
        ReportKind::PodTerminated | ReportKind::Unspecified => {}
    }
    look
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subject_of(
        kind: ReportKind,
        key: &str,
        payload: &Value,
        pod: Option<&Value>,
    ) -> (Subject, Option<String>) {
        let payload = payload.to_string().into();
        let report = Report { id: 1, kind: kind.into(), key: key.to_owned(), payload };
        let settings = LinkSettings { intervals: [Duration::from_mins(1); 3], ..LinkSettings::default() };
        subject(&report, &settings, |key| Some(Object::new(key.clone(), 1, pod?.to_string().into())))
    }

    fn pod_status(
        pod: Option<&Value>,
        restarts: u32,
        ready: bool,
        waiting: Option<&str>,
    ) -> (Subject, Option<String>) {
        let container =
            json!({"ready": ready, "restartCount": restarts, "state": {"waiting": {"reason": waiting}}});
        let status = json!({"phase": "Running", "containerStatuses": [container]});
        subject_of(ReportKind::PodStatus, "Pod/a/web", &json!({"uid": "u", "status": status}), pod)
    }

    #[test]
    fn an_object_that_names_a_class_that_there_is_not_is_told() {
        let wrong = |key: &str, class: &str| {
            let object = json!({"metadata": {"annotations": {PRIORITY_CLASS_ANNOTATION: class}}});
            wrong_class(&Object::new(key.parse().unwrap(), 1, object.to_string().into()))
        };
        assert!(wrong("ConfigMap/a/b", "urgent").unwrap().contains("\"urgent\" is not one of critical,"));
        assert_eq!(wrong("ConfigMap/a/b", "batch"), None);
        assert_eq!(wrong("Pod/a/b", "urgent"), None);
    }

    #[test]
    fn a_pod_chooses_its_class_until_it_is_deleted() {
        let class = |metadata: Option<Value>| {
            let pod = metadata.map(|metadata| json!({"metadata": metadata}));
            let (subject, wrong) = pod_status(pod.as_ref(), 0, true, None);
            (subject.class, wrong)
        };
        let annotated = |class: &str| json!({"annotations": {PRIORITY_CLASS_ANNOTATION: class}});
        assert_eq!(class(Some(json!({}))), (Class::Usual, None));
        assert_eq!(class(Some(annotated("batch"))), (Class::Chosen(ClassName::Batch), None));
        assert_eq!(class(None), (Class::AtOnce, None));
        let mut deleted = annotated("batch");
        deleted["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(class(Some(deleted)), (Class::AtOnce, None));
        let (class, wrong) = class(Some(annotated("urgent")));
        assert_eq!(class, Class::Usual);
        let wrong = wrong.unwrap();
        assert!(
            wrong.contains("skerry.io/priority-class: \"urgent\" is not one of critical, standard, batch"),
            "{wrong}"
        );
    }

    #[test]
    fn a_look_is_what_people_see_first() {
        let pod = json!({"metadata": {}});
        let look = |restarts, ready, waiting| {
            let (subject, _) = pod_status(Some(&pod), restarts, ready, waiting);
            (subject.look, subject.hash)
        };
        let calm = look(0, true, None);
        let restarted = look(1, true, None);
        assert!(calm.0 == restarted.0 && calm.1 != restarted.1);
        assert_ne!(calm.0, look(0, false, None).0);
        assert_ne!(look(0, false, None).0, look(0, false, Some("ErrImagePull")).0);
        let event = |kind: &str, reason: &str| {
            let event = json!({"type": kind, "reason": reason, "involvedObject": {"uid": "u"}});
            subject_of(ReportKind::Event, "Pod/a/web", &event, Some(&pod)).0.look
        };
        assert_eq!(event("Normal", "Pulled"), event("Normal", "Started"));
        assert_ne!(event("Warning", "Failed"), event("Warning", "BackOff"));
    }

    #[test]
    fn what_somebody_waits_for_is_not_held() {
        let pod = json!({"metadata": {}});
        for (kind, key) in [(ReportKind::PodTerminated, "Pod/a/web"), (ReportKind::Event, "Node//n")] {
            assert_eq!(subject_of(kind, key, &json!({}), Some(&pod)).0.class, Class::AtOnce);
        }
        assert_eq!(subject_of(ReportKind::NodeStatus, "Node//n", &json!({}), None).0.class, Class::Usual);
    }
}
