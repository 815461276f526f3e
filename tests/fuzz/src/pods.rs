//! JSON of objects, reports and the runtime.

use std::{collections::HashMap, path::Path};

use bytes::Bytes;
use cloudcore::edgecontroller::upstream::{Reporter, take_apart};
use edgecore::edged::{dns, env, hosts, pod::DesiredPod, requests, resources, security, unsupported};
use proto::{Object, Report, cri, message::ReportKind};

pub(crate) fn pod_seeds() -> Vec<Vec<u8>> {
    [
        include_str!("../../../proto/tests/dictionary/pod.json").replace('\n', ""),
        include_str!("../../../proto/tests/dictionary/small_pod.json").replace('\n', ""),
        r#"{"metadata":{"name":"p","namespace":"d","uid":"u-1"},"spec":{"hostname":"h","setHostnameAsFQDN":true,"subdomain":"s","initContainers":[{"name":"i","restartPolicy":"Always","resources":{"limits":{"memory":"1Ei","cpu":"9E"}}}],"containers":[{"name":"c","image":"x","env":[{"name":"A","value":"$(B)$$"},{"name":"B","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu","divisor":"1m"}}}],"args":["$(A)$(A)"],"resources":{"requests":{"cpu":"100m"},"limits":{"memory":"99999999999999999999Ei"}},"securityContext":{"runAsUser":-1,"seccompProfile":{"type":"Localhost","localhostProfile":"../x"}}}],"ephemeralContainers":[{"name":"e","targetContainerName":"c"}]},"status":{"phase":"Failed"}}"#.to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

/// Any object in the place of a pod, through all that is asked of it before the runtime is.
pub(crate) fn pod(bytes: &[u8]) {
    let object = Object::new("Pod/d/p".parse().unwrap(), 1, Bytes::copy_from_slice(bytes));
    let Ok(pod) = DesiredPod::parse(&object) else { return };
    assert!(!pod.uid.as_str().contains(['/', '.']));
    drop(unsupported::find(&pod));
    drop(unsupported::of_ephemeral_containers(&pod));
    assert!(!hosts::hostname(&pod).contains('/'));
    drop(hosts::content(&pod, &["10.0.0.1".to_owned()], "cluster.local", Path::new("/dev/null"), None));
    drop(dns::sandbox_dns(&pod, &dns::DnsSettings::default()));
    let _ = (
        resources::qos_class(&pod.spec),
        resources::pod_memory_limit(&pod.spec),
        resources::pod_storage_limit(&pod.spec),
        resources::pod_cpu_quota(&pod.spec),
        resources::pod_cpu_shares(&pod.spec),
        resources::infeasible(&pod.spec, 2000, 1 << 30),
    );
    drop(security::sandbox(&pod, Path::new("/profiles")));
    let containers = pod.spec.containers.iter().chain(pod.spec.init_containers.iter().flatten());
    for container in containers {
        let applied = resources::resizable(container);
        assert!(
            !resources::resize_restarts(&applied, container) && !resources::cpu_grows(&applied, container)
        );
        drop(resources::shown(container, Some(&applied)));
        assert!(requests::termination_message_path(container).len() <= bytes.len() + 64);
        let mut variables = Vec::new();
        for variable in container.env.iter().flatten() {
            let value = variable.value.as_deref().unwrap_or_default();
            variables.push((variable.name.clone(), env::expand_one(value, &variables).into_bytes()));
        }
        drop(env::expand_all(container.args.as_ref(), &variables));
        for variable in container.env.iter().flatten() {
            let source = variable.value_from.as_ref().and_then(|source| source.resource_field_ref.as_ref());
            if let Some(source) = source {
                drop(env::resource(&pod, container, source, env::Capacity::default()));
            }
        }
    }
}

pub(crate) fn reports() -> Vec<Vec<u8>> {
    let of = |kind: ReportKind, key: &str, payload: &str| {
        [
            &[u8::try_from(i32::from(kind)).unwrap()],
            key.as_bytes(),
            b"\n",
            payload.replace('\n', "").as_bytes(),
        ]
        .concat()
    };
    vec![
        of(
            ReportKind::NodeStatus,
            "Node//edge-1",
            include_str!("../../../proto/tests/dictionary/node_status.json"),
        ),
        of(
            ReportKind::PodStatus,
            "Pod/default/web",
            include_str!("../../../proto/tests/dictionary/pod_status.json"),
        ),
        of(ReportKind::PodTerminated, "Pod/default/web", r#"{"uid":"u"}"#),
        of(ReportKind::Event, "Pod/default/web", include_str!("../../../proto/tests/dictionary/event.json")),
        of(
            ReportKind::NodeStatus,
            "Node//edge-1",
            r#"{"metadata":{"name":"edge-1","labels":{"a":null}},"spec":{"unschedulable":true},"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"Ready"},7]}}"#,
        ),
    ]
}

/// Any report, as cloudcore takes it apart.
pub(crate) fn report(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (key, payload) = rest.split_at(end);
    let report = Report {
        id: 1,
        kind: i32::from(*kind),
        key: String::from_utf8_lossy(key).into_owned(),
        payload: Bytes::copy_from_slice(payload.get(1..).unwrap_or_default()),
    };
    let reporter = Reporter { node: "edge-1".into(), key_hash: "hash".into() };
    if let Err(reason) = take_apart(&reporter, &report) {
        assert!(!reason.is_empty());
    }
}

pub(crate) fn runtime_statuses() -> Vec<Vec<u8>> {
    [
        r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"options":{"SystemdCgroup":true}}}}}"#,
        r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"options":null}}}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// What containerd says of its configuration.
pub(crate) fn runtime_status(bytes: &[u8]) {
    let config = String::from_utf8_lossy(bytes).into_owned();
    let driver = cri::configured_driver(&HashMap::from([("config".to_owned(), config.clone())]));
    assert!(driver.is_none() || config.contains("runtimes"));
}
