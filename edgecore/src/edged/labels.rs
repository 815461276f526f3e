//! The labels and annotations by which a sandbox or container is known again after a restart, a reboot or a power cut.
//! They are kubelet's own, so `crictl` and log shippers understand them.

use std::collections::{BTreeMap, HashMap};

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Hash of the parts of a container's spec whose change restarts it.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What a container was made with of the resources that can change while it runs, see [`super::resources::resizable`].
pub const RESOURCES: &str = "node.skerry.io/resources";

/// When the pod was first seen on this node, carried from sandbox to sandbox: `status.startTime` has no other home
/// at the edge.
pub const POD_START: &str = "node.skerry.io/pod-start-time";

/// Label selector of everything that belongs to a pod.
pub fn pod_selector(uid: &str) -> HashMap<String, String> {
    HashMap::from([(POD_UID.to_owned(), uid.to_owned())])
}

/// Kubelet's three labels over those of the pod itself.
pub fn sandbox_labels(
    name: &str,
    namespace: &str,
    uid: &str,
    own: Option<&BTreeMap<String, String>>,
) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> =
        own.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.extend(identity(name, namespace, uid));
    labels
}

/// What a container is labelled with.
pub fn container_labels(name: &str, namespace: &str, uid: &str, container: &str) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = identity(name, namespace, uid).into_iter().collect();
    labels.insert(CONTAINER_NAME.to_owned(), container.to_owned());
    labels
}

fn identity(name: &str, namespace: &str, uid: &str) -> [(String, String); 3] {
    [(POD_NAME, name), (POD_NAMESPACE, namespace), (POD_UID, uid)].map(|(k, v)| (k.to_owned(), v.to_owned()))
}
