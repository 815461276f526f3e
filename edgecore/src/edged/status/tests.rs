use serde_json::json;

use super::*;
use crate::edged::pod_state::{
    Waiting,
    tests::{at, exited, pod, running, sandbox, view},
};

fn status(pod: &DesiredPod, observed: &Observed, memory: &Memory) -> PodStatus {
    status_while(Intent::Run, pod, observed, memory)
}

fn status_while(intent: Intent, pod: &DesiredPod, observed: &Observed, memory: &Memory) -> PodStatus {
    let node = NodeFacts {
        name: "edge-1".to_owned(),
        ips: vec!["192.0.2.7".to_owned()],
        runtime_name: "containerd".to_owned(),
    };
    View {
        pod,
        intent,
        observed,
        memory,
        pod_ips: &["10.0.0.2".to_owned()],
        node: &node,
        first_seen: at(50),
        before: None,
        now: Instant::now(),
    }
    .status()
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_).unwrap()
}

#[tokio::test]
async fn a_running_pod_is_ready_since_its_container_started() {
    let pod = pod(&json!({"containers": [{"name": "a", "image": "i:1"}]}));
    let observed = Observed {
        sandboxes: vec![sandbox(0, true)],
        containers: vec![view(&pod, "a", 2, "s0", running()), view(&pod, "a", 1, "s0", exited(3, 1))],
    };
    let status = status(&pod, &observed, &Memory::default());
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.0.0.2"), Some("192.0.2.7")));
    assert_eq!(status.start_time, Some(Time(at(0))));
    let ready = condition(&status, "Ready");
    assert_eq!((ready.status.as_str(), &ready.last_transition_time), ("True", &Some(Time(at(100)))));
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!((container.restart_count, container.container_id.as_deref()), (2, Some("containerd://a2")));
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
}

#[tokio::test]
async fn what_is_waited_for_is_said() {
    let pod = pod(&json!({"containers": [{"name": "a", "image": "i:1"}]}));
    let reason = |observed: &Observed, memory: &Memory| {
        let status = status(&pod, observed, memory);
        let state = status.container_statuses.unwrap().remove(0).state.unwrap();
        (status.phase.unwrap(), state.waiting.unwrap().reason.unwrap())
    };
    let nothing = Observed::default();
    let mut memory = Memory::default();
    assert_eq!(reason(&nothing, &memory), ("Pending".to_owned(), "ContainerCreating".to_owned()));
    memory.waiting = Some(Waiting { reason: "Unsupported".to_owned(), message: String::new() });
    assert_eq!(reason(&nothing, &memory), ("Pending".to_owned(), "Unsupported".to_owned()));

    let crashed = Observed {
        sandboxes: vec![sandbox(0, true)],
        containers: vec![view(&pod, "a", 3, "s0", exited(1, 1))],
    };
    let mut memory = Memory::default();
    memory.note(&pod, &crashed, Instant::now(), at(101));
    assert_eq!(reason(&crashed, &memory), ("Running".to_owned(), "CrashLoopBackOff".to_owned()));
}

#[tokio::test]
async fn an_unready_probe_makes_the_pod_unready() {
    let pod = pod(&json!({"containers": [{"name": "a", "readinessProbe": {"exec": {"command": ["x"]}}}]}));
    let observed =
        Observed { sandboxes: vec![sandbox(0, true)], containers: vec![view(&pod, "a", 0, "s0", running())] };
    let mut memory = Memory::default();
    memory.containers.entry("a".to_owned()).or_default().ready = Some(false);
    let status = status(&pod, &observed, &memory);
    let ready = condition(&status, "Ready");
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!((ready.status.as_str(), status.phase.as_deref()), ("False", Some("Running")));
}

#[tokio::test]
async fn a_readiness_gate_waits_for_its_condition() {
    let spec =
        json!({"containers": [{"name": "a", "image": "i:1"}], "readinessGates": [{"conditionType": "x"}]});
    let mut pod = pod(&spec);
    let observed =
        Observed { sandboxes: vec![sandbox(0, true)], containers: vec![view(&pod, "a", 0, "s0", running())] };
    let ready = |pod: &DesiredPod| {
        let status = status(pod, &observed, &Memory::default());
        assert_eq!(condition(&status, "ContainersReady").status, "True");
        condition(&status, "Ready").clone()
    };
    let missing = ready(&pod);
    assert_eq!(
        (missing.status.as_str(), missing.reason.as_deref()),
        ("False", Some("ReadinessGatesNotReady"))
    );
    let gate = |status: &str| PodCondition {
        type_: "x".to_owned(),
        status: status.to_owned(),
        last_transition_time: Some(Time(at(500))),
        ..Default::default()
    };
    pod.gates = vec![gate("False")];
    let unmet = ready(&pod).message.unwrap();
    assert!(unmet.ends_with("is not \"True\", but False"), "{unmet}");
    pod.gates = vec![gate("True")];
    let met = ready(&pod);
    assert_eq!((met.status.as_str(), met.last_transition_time), ("True", Some(Time(at(500)))));
}

#[tokio::test]
async fn the_end_is_the_end() {
    let pod = pod(&json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    let observed = Observed {
        sandboxes: vec![sandbox(0, false)],
        containers: vec![view(&pod, "a", 0, "s0", exited(0, 1))],
    };
    let terminal = Some(Terminal::ended(true));
    let status = status(&pod, &observed, &Memory { terminal, ..Memory::default() });
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("PodCompleted"));
    // People look where a job has run.
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
}

#[tokio::test]
async fn nothing_has_ended_while_a_container_runs() {
    let pod = pod(&json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}));
    let reason = Some("DeadlineExceeded".to_owned());
    let terminal = Some(Terminal { reason: reason.clone(), ..Terminal::ended(false) });
    let memory = Memory { terminal, ..Memory::default() };
    let ended = view(&pod, "a", 0, "s0", exited(0, 1));
    let with = |b| Observed {
        sandboxes: vec![sandbox(0, true)],
        containers: vec![ended.clone(), view(&pod, "b", 0, "s0", b)],
    };
    let before = status(&pod, &with(running()), &memory);
    assert_eq!((before.phase.as_deref(), before.reason), (Some("Running"), None));
    let after = status(&pod, &with(exited(137, 9)), &memory);
    assert_eq!((after.phase.as_deref(), after.reason), (Some("Failed"), reason));
}

#[tokio::test]
async fn what_never_ran_has_failed_when_its_pod_is_deleted() {
    let pod = pod(&json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let states = |status: PodStatus| -> Vec<ContainerState> {
        let all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
        all.filter_map(|status| status.state).collect()
    };
    let waits = status(&pod, &Observed::default(), &Memory::default());
    assert_eq!(waits.phase.as_deref(), Some("Pending"));
    for state in states(waits) {
        assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("PodInitializing"));
    }
    let gone = status_while(Intent::Stop, &pod, &Observed::default(), &Memory::default());
    assert_eq!(gone.phase.as_deref(), Some("Failed"));
    for state in states(gone) {
        let terminated = state.terminated.unwrap();
        assert_eq!(
            (terminated.exit_code, terminated.reason.as_deref()),
            (137, Some("ContainerStatusUnknown"))
        );
    }
}

#[test]
fn fields_of_the_downward_api() {
    let pod = pod(&json!({"containers": [], "serviceAccountName": "robot"}));
    let node = NodeFacts { name: "edge-1".to_owned(), ..NodeFacts::default() };
    let get = |path: &str| field(&pod, path, &["10.0.0.2".to_owned()], &node);
    assert_eq!(get("metadata.name").as_deref(), Some("web"));
    assert_eq!(get("spec.nodeName").as_deref(), Some("edge-1"));
    assert_eq!(get("status.podIP").as_deref(), Some("10.0.0.2"));
    assert_eq!(get("metadata.labels['app']").as_deref(), Some(""));
    assert_eq!(get("spec.unknown"), None);
}
