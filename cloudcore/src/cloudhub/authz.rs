//! What a node may write and ask for: only what is its own. Pure rules; the callers fetch the facts.

use proto::message::TokenQuestion;

use crate::edgecontroller::objects::{Owned, PodFacts};

/// Why a node was refused; told to the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the pod does not exist")]
    Gone,
    #[error("the pod is not bound to this node")]
    OtherNode,
    #[error("the pod has been replaced by another one of the same name")]
    OtherUid,
    #[error("the pod is not being deleted")]
    NotDeleting,
    #[error("the pod uses another service account")]
    OtherServiceAccount,
    #[error("no volume of the pod has a token for that audience")]
    OtherAudience,
    #[error("the event is not about this node, nor about one of its pods, devices and rules")]
    ForeignEvent,
    #[error("the report is not about this node")]
    ForeignNode,
    #[error("the pod has ended, and an ended pod does not run again")]
    Ended,
    #[error("the device or rule does not exist")]
    DeviceGone,
    #[error("the device or rule is not this node's")]
    OtherNodesDevice,
    #[error("the device or rule has been replaced by another one of the same name")]
    OtherDevice,
    #[error("the node has been taken over by a machine with another key")]
    OtherKey,
}

/// Whether `node` may report on the pod that `pod` describes and it knows by `uid`.
pub fn may_report(node: &str, pod: &PodFacts, uid: &str) -> Result<(), Denied> {
    if *pod.node != *node {
        return Err(Denied::OtherNode);
    }
    if *pod.uid != *uid {
        return Err(Denied::OtherUid);
    }
    Ok(())
}

/// Whether `node` may report on the device, or the rule, that it knows by `uid`.
pub fn may_report_device(node: &str, device: &Owned, uid: &str) -> Result<(), Denied> {
    if *device.node != *node {
        return Err(Denied::OtherNodesDevice);
    }
    if *device.uid == *uid { Ok(()) } else { Err(Denied::OtherDevice) }
}

/// Whether `node` may say that the pod is in this phase: nobody leaves a terminal one.
pub fn may_report_phase(node: &str, pod: &PodFacts, uid: &str, phase: &str) -> Result<(), Denied> {
    may_report(node, pod, uid)?;
    if pod.ended && !is_terminal(phase) { Err(Denied::Ended) } else { Ok(()) }
}

/// Whether a pod in this phase has ended for good.
pub fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Whether `node` may say that the pod is gone.
pub fn may_terminate(node: &str, pod: &PodFacts, uid: &str) -> Result<(), Denied> {
    may_report(node, pod, uid)?;
    if pod.deleting { Ok(()) } else { Err(Denied::NotDeleting) }
}

/// Whether `node` may have a token of the service account for the pod: for the audiences alone for which the pod's own
/// volumes ask, as the API server's NodeRestriction has it for kubelets.
pub fn may_have_token(node: &str, pod: &PodFacts, question: &TokenQuestion) -> Result<(), Denied> {
    may_report(node, pod, &question.pod_uid)?;
    if *pod.service_account != *question.service_account {
        return Err(Denied::OtherServiceAccount);
    }
    let asked = |audience: &str| pod.token_audiences.iter().any(|of_pod| **of_pod == *audience);
    // None is the API server's own.
    let all = if question.audiences.is_empty() {
        asked("")
    } else {
        question.audiences.iter().all(|one| asked(one))
    };
    if all { Ok(()) } else { Err(Denied::OtherAudience) }
}

/// Whether a node may give itself this label, by the rules of the API server's NodeRestriction for kubelets: of the
/// names that belong to Kubernetes, only those that describe the node.
pub fn may_label(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').unwrap_or(("", key));
    let of_kubernetes = ["kubernetes.io", "k8s.io"].iter().any(|domain| {
        prefix == *domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    });
    if !of_kubernetes {
        return true;
    }
    match prefix {
        "kubernetes.io" | "beta.kubernetes.io" => {
            matches!(name, "hostname" | "os" | "arch" | "instance-type")
        }
        "node-role.kubernetes.io" => matches!(name, "edge" | "agent"),
        "topology.kubernetes.io" => matches!(name, "region" | "zone"),
        "node.kubernetes.io" | "kubelet.kubernetes.io" => true,
        _ => prefix.ends_with(".node.kubernetes.io") || prefix.ends_with(".kubelet.kubernetes.io"),
    }
}

/// Whether `text` can be the name of an object, and so a segment of a URL.
pub fn is_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edgecontroller::protection::Eviction;

    fn pod() -> PodFacts {
        PodFacts {
            uid: "u".into(),
            node: "mine".into(),
            service_account: "robot".into(),
            token_audiences: vec!["".into(), "vault".into()],
            deleting: false,
            ended: false,
            opted_out: false,
            eviction: Eviction::Never,
            references: Vec::new(),
            status: None,
        }
    }

    #[test]
    fn a_node_reports_on_its_own_pods_only() {
        assert_eq!(may_report("mine", &pod(), "u"), Ok(()));
        assert_eq!(may_report("other", &pod(), "u"), Err(Denied::OtherNode));
        assert_eq!(may_report("mine", &pod(), "older"), Err(Denied::OtherUid));
        let ended = PodFacts { ended: true, ..pod() };
        assert_eq!(may_report_phase("mine", &ended, "u", "Failed"), Ok(()));
        assert_eq!(may_report_phase("mine", &ended, "u", "Running"), Err(Denied::Ended));
        assert_eq!(may_report_phase("mine", &pod(), "u", "Running"), Ok(()));
        assert_eq!(may_terminate("mine", &pod(), "u"), Err(Denied::NotDeleting));
        assert_eq!(may_terminate("mine", &PodFacts { deleting: true, ..pod() }, "u"), Ok(()));
        assert_eq!(
            may_terminate("other", &PodFacts { deleting: true, ..pod() }, "u"),
            Err(Denied::OtherNode)
        );
    }

    #[test]
    fn a_node_reports_on_its_own_devices_only() {
        let device = Owned { uid: "u".into(), node: "mine".into() };
        assert_eq!(may_report_device("mine", &device, "u"), Ok(()));
        assert_eq!(may_report_device("other", &device, "u"), Err(Denied::OtherNodesDevice));
        assert_eq!(may_report_device("mine", &device, "older"), Err(Denied::OtherDevice));
    }

    #[test]
    fn a_token_is_for_the_pods_own_account() {
        let question = |account: &str, uid: &str| TokenQuestion {
            service_account: account.to_owned(),
            pod_uid: uid.to_owned(),
            ..TokenQuestion::default()
        };
        assert_eq!(may_have_token("mine", &pod(), &question("robot", "u")), Ok(()));
        assert_eq!(may_have_token("mine", &pod(), &question("admin", "u")), Err(Denied::OtherServiceAccount));
        assert_eq!(may_have_token("mine", &pod(), &question("robot", "v")), Err(Denied::OtherUid));
        assert_eq!(may_have_token("other", &pod(), &question("robot", "u")), Err(Denied::OtherNode));
        let audiences = |audiences: &[&str]| TokenQuestion {
            audiences: audiences.iter().map(|&audience| audience.to_owned()).collect(),
            ..question("robot", "u")
        };
        assert_eq!(may_have_token("mine", &pod(), &audiences(&["vault"])), Ok(()));
        assert_eq!(
            may_have_token("mine", &pod(), &audiences(&["vault", "bank"])),
            Err(Denied::OtherAudience)
        );
        let tokenless = PodFacts { token_audiences: Vec::new(), ..pod() };
        assert_eq!(may_have_token("mine", &tokenless, &audiences(&[])), Err(Denied::OtherAudience));
    }

    #[test]
    fn labels_follow_node_restriction() {
        for key in [
            "kubernetes.io/hostname",
            "site",
            "example.com/site",
            "node-role.kubernetes.io/edge",
            "topology.kubernetes.io/zone",
            "notkubernetes.io/x",
        ] {
            assert!(may_label(key), "{key}");
        }
        for key in [
            "node-restriction.kubernetes.io/tenant",
            "node-role.kubernetes.io/control-plane",
            "kubernetes.io/cluster-service",
            "x.k8s.io/y",
        ] {
            assert!(!may_label(key), "{key}");
        }
    }

    #[test]
    fn names_cannot_leave_their_segment_of_a_url() {
        assert!(is_name("web-0.example"));
        for text in ["", "..", ".", "a/b", "a?b", "a%2fb", "a#b", "A", "a b", &"x".repeat(254)] {
            assert!(!is_name(text), "{text:?}");
        }
    }
}
