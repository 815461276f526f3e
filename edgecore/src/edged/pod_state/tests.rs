use jiff::Timestamp;
use proto::{Object, ResourceKey};
use serde_json::{Value, json};

use super::*;

/// A pod with that spec.
pub(crate) fn pod(spec: &Value) -> DesiredPod {
    let key: ResourceKey = "Pod/default/web".parse().unwrap();
    let json = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u-1"}, "spec": spec});
    DesiredPod::parse(&Object::new(key, 1, serde_json::to_vec(&json).unwrap().into())).unwrap()
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn simple(policy: &str) -> DesiredPod {
    pod(&json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i:1"}]}))
}

pub(crate) fn sandbox(attempt: u32, ready: bool) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        ready,
        created_at: at(attempt.into()),
        pod_start: Some(at(0)),
    }
}

pub(crate) fn view(pod: &DesiredPod, name: &str, attempt: u32, sandbox: &str, state: State) -> ContainerView {
    ContainerView {
        id: format!("{name}{attempt}"),
        sandbox_id: sandbox.to_owned(),
        name: name.to_owned(),
        attempt,
        hash: pod.container(name).map(|(_, spec)| container_hash(spec)),
        resources: pod.container(name).map(|(_, spec)| resources::resizable(spec)),
        image: "i:1".to_owned(),
        image_id: "sha256:1".to_owned(),
        user: None,
        state,
    }
}

pub(crate) fn running() -> State {
    State::Running { started_at: at(100) }
}

pub(crate) fn exited(code: i32, ran: i64) -> State {
    let (started_at, finished_at) = (at(100), at(100 + ran));
    State::Exited(Exit { code, reason: String::new(), message: String::new(), started_at, finished_at })
}

#[tokio::test]
async fn resources_are_changed_in_place_or_by_a_new_start() {
    let sized = |memory: &str, policy: &str| {
        pod(&json!({"containers": [{
            "name": "a", "image": "i:1",
            "resources": {"limits": {"cpu": "1", "memory": memory}},
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}],
        }]}))
    };
    let now = Instant::now();
    let actions = |pod: &DesiredPod, state: State, memory: &Memory| {
        let before = sized("1Mi", "NotRequired");
        let observed = seen(vec![sandbox(0, true)], vec![view(&before, "a", 0, "s0", state)]);
        decide(pod, Intent::Run, &observed, memory, now).actions
    };
    let none = Memory::default();
    assert_eq!(actions(&sized("1Mi", "RestartContainer"), running(), &none), []);
    let resize = Action::ResizeContainer { id: "a0".to_owned(), name: "a".to_owned() };
    let larger = sized("2Mi", "NotRequired");
    assert_eq!(actions(&larger, running(), &none), std::slice::from_ref(&resize));
    let anew = actions(&sized("2Mi", "RestartContainer"), running(), &none);
    let [Action::StopContainers(stops)] = anew.as_slice() else { panic!("{anew:?}") };
    assert_eq!(stops[0].why, Why::Resized);
    // Once it has ended, at once and whatever else the policy says.
    let started = actions(&sized("2Mi", "RestartContainer"), exited(0, 1), &none);
    assert!(matches!(started.as_slice(), [Action::StartContainer { attempt: 1, .. }]), "{started:?}");

    let of = |memory: ContainerMemory| Memory {
        containers: [("a".to_owned(), memory)].into(),
        ..Memory::default()
    };
    let wanted = resources::resizable(&larger.spec.containers[0]);
    let mut done = ContainerMemory::default();
    done.resized = Some(("a0".to_owned(), wanted.clone()));
    let done = of(done);
    assert_eq!(actions(&larger, running(), &done), []);
    let why = Waiting { reason: "Error".to_owned(), message: String::new() };
    let mut failed = ContainerMemory::default();
    failed.resize_failure = Some((wanted, why, now + Duration::from_secs(30)));
    let failed = of(failed);
    assert_eq!(actions(&larger, running(), &failed), []);
    assert_eq!(actions(&sized("3Mi", "NotRequired"), running(), &failed), [resize]);
}

fn seen(sandboxes: Vec<Sandbox>, containers: Vec<ContainerView>) -> Observed {
    Observed { sandboxes, containers }
}

fn plan(pod: &DesiredPod, observed: &Observed) -> Plan {
    let mut memory = Memory::default();
    let now = Instant::now();
    memory.note(pod, observed, now, at(10_000));
    decide(pod, Intent::Run, observed, &memory, now)
}

fn start(name: &str, role: Role, attempt: u32) -> Action {
    Action::StartContainer { name: name.to_owned(), role, attempt }
}

#[tokio::test]
async fn a_new_pod_gets_a_sandbox_then_its_container() {
    let pod = simple("Always");
    assert_eq!(plan(&pod, &Observed::default()).actions, [Action::CreateSandbox { attempt: 0 }]);
    let with_sandbox = seen(vec![sandbox(0, true)], Vec::new());
    assert_eq!(plan(&pod, &with_sandbox).actions, [start("a", Role::Main, 0)]);
    let up = seen(vec![sandbox(0, true)], vec![view(&pod, "a", 0, "s0", running())]);
    let plan = plan(&pod, &up);
    assert_eq!((plan.actions, plan.course), (Vec::new(), Course::Going));
}

#[tokio::test]
async fn what_was_left_half_started_is_made_anew_under_its_number() {
    let pod = simple("Always");
    let observed = seen(vec![sandbox(0, true)], vec![view(&pod, "a", 0, "s0", State::Created)]);
    let expected = [Action::RemoveContainer { id: "a0".to_owned() }, start("a", Role::Main, 0)];
    assert_eq!(plan(&pod, &observed).actions, expected);
}

#[tokio::test]
async fn policies_after_an_exit() {
    for (policy, code, restarts) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let pod = simple(policy);
        let observed = seen(vec![sandbox(0, true)], vec![view(&pod, "a", 0, "s0", exited(code, 5))]);
        let plan = plan(&pod, &observed);
        if restarts {
            assert_eq!(plan.actions, [start("a", Role::Main, 1)], "{policy} {code}");
        } else {
            let ended = Terminal::ended(code == 0);
            assert_eq!(plan.course, Course::Ended(ended), "{policy} {code}");
            assert_eq!(plan.actions, [Action::StopSandbox { id: "s0".to_owned() }]);
        }
    }
}

#[tokio::test]
async fn a_reboot_starts_over_in_a_new_sandbox_and_goes_on_counting() {
    let pod = simple("Always");
    let observed = seen(vec![sandbox(2, false)], vec![view(&pod, "a", 4, "s2", exited(255, 1))]);
    let expected = [Action::StopSandbox { id: "s2".to_owned() }, Action::CreateSandbox { attempt: 3 }];
    assert_eq!(plan(&pod, &observed).actions, expected);
    let renewed = seen(vec![sandbox(2, false), sandbox(3, true)], observed.containers);
    // With no back-off: it was not the container's fault.
    assert_eq!(plan(&pod, &renewed).actions, [start("a", Role::Main, 5)]);
    // Nor when the dead sandbox was seen before the new one.
    let dead = seen(vec![sandbox(2, false)], renewed.containers.clone());
    let (mut memory, now) = (Memory::default(), Instant::now());
    memory.note(&pod, &dead, now, at(200));
    memory.note(&pod, &renewed, now, at(200));
    assert_eq!(decide(&pod, Intent::Run, &renewed, &memory, now).actions, [start("a", Role::Main, 5)]);
}

#[tokio::test]
async fn a_job_is_not_run_again_after_a_reboot() {
    let pod = simple("Never");
    let lost = seen(vec![sandbox(0, false)], vec![view(&pod, "a", 0, "s0", exited(137, 1))]);
    let ended = Course::Ended(Terminal::ended(false));
    assert_eq!(plan(&pod, &lost).course, ended);
    // Nothing of it had started: that is no end.
    let unstarted = seen(vec![sandbox(0, false)], Vec::new());
    assert!(plan(&pod, &unstarted).actions.contains(&Action::CreateSandbox { attempt: 1 }));
    let pod = simple("OnFailure");
    let done = seen(vec![sandbox(0, false)], vec![view(&pod, "a", 0, "s0", exited(0, 1))]);
    let ended = Course::Ended(Terminal::ended(true));
    assert_eq!(plan(&pod, &done).course, ended);
}

#[tokio::test]
async fn what_has_ended_in_the_cloud_is_not_run_again_by_an_edge_that_lost_its_disk() {
    let mut pod = simple("Never");
    pod.ended = Some(true);
    let ended = Course::Ended(Terminal::ended(true));
    let plan = plan(&pod, &seen(Vec::new(), Vec::new()));
    assert_eq!((plan.course, plan.actions), (ended, Vec::new()));
}

#[tokio::test]
async fn init_containers_run_one_after_another_and_sidecars_stay() {
    let pod = pod(&json!({
        "initContainers": [{"name": "one"}, {"name": "side", "restartPolicy": "Always"}, {"name": "two"}],
        "containers": [{"name": "a"}],
    }));
    let here = |containers| seen(vec![sandbox(0, true)], containers);
    assert_eq!(plan(&pod, &here(Vec::new())).actions, [start("one", Role::Init, 0)]);
    let one = view(&pod, "one", 0, "s0", exited(0, 1));
    assert_eq!(plan(&pod, &here(vec![one.clone()])).actions, [start("side", Role::Sidecar, 0)]);
    let side = view(&pod, "side", 0, "s0", running());
    assert_eq!(plan(&pod, &here(vec![one.clone(), side.clone()])).actions, [start("two", Role::Init, 0)]);
    let failed = view(&pod, "two", 0, "s0", exited(1, 1));
    assert_eq!(
        plan(&pod, &here(vec![one.clone(), side.clone(), failed])).actions,
        [start("two", Role::Init, 1)]
    );
    let two = view(&pod, "two", 0, "s0", exited(0, 1));
    let up = vec![one.clone(), side.clone(), two.clone()];
    assert_eq!(plan(&pod, &here(up)).actions, [start("a", Role::Main, 0)]);
    let a = view(&pod, "a", 0, "s0", running());
    let dead_side = view(&pod, "side", 0, "s0", exited(1, 1));
    let all = vec![one, dead_side, two, a];
    assert_eq!(plan(&pod, &here(all.clone())).actions, [start("side", Role::Sidecar, 1)]);
    // A new sandbox starts over with the first.
    let dead: Vec<_> = all.into_iter().map(|view| ContainerView { state: exited(255, 1), ..view }).collect();
    let renewed = seen(vec![sandbox(0, false), sandbox(1, true)], dead);
    assert_eq!(plan(&pod, &renewed).actions, [start("one", Role::Init, 1)]);
}

#[tokio::test]
async fn back_off_grows_is_kept_in_bounds_and_forgotten_after_a_long_run() {
    let pod = simple("Always");
    let mut memory = Memory::default();
    let now = Instant::now();
    let mut delays = Vec::new();
    for attempt in 0..8 {
        let observed = seen(vec![sandbox(0, true)], vec![view(&pod, "a", attempt, "s0", exited(1, 5))]);
        // The wall clock says that it has just ended.
        memory.note(&pod, &observed, now, at(105));
        let until = memory.containers["a"].backoff_until(&format!("a{attempt}")).unwrap();
        delays.push(until.duration_since(now).as_secs());
    }
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    let observed = seen(vec![sandbox(0, true)], vec![view(&pod, "a", 8, "s0", exited(1, 601))]);
    memory.note(&pod, &observed, now, at(701));
    assert_eq!(memory.containers["a"].backoff_until("a8"), Some(now));

    // After a restart of edgecore the restart count stands in, and a clock that was set back adds nothing.
    let mut fresh = Memory::default();
    let observed = seen(vec![sandbox(0, true)], vec![view(&pod, "a", 3, "s0", exited(1, 5))]);
    fresh.note(&pod, &observed, now, at(-100_000));
    assert_eq!(fresh.containers["a"].backoff_until("a3"), Some(now + Duration::from_secs(40)));
    let plan = decide(&pod, Intent::Run, &observed, &fresh, now);
    assert_eq!((plan.actions, plan.wake), (Vec::new(), Some(now + Duration::from_secs(40))));
}

#[tokio::test]
async fn a_changed_image_or_a_failed_probe_restarts_the_container() {
    let pod = simple("Always");
    let mut old = view(&pod, "a", 0, "s0", running());
    let observed = |container: &ContainerView| seen(vec![sandbox(0, true)], vec![container.clone()]);
    let mut memory = Memory::default();
    memory.containers.entry("a".to_owned()).or_default().unhealthy = Some(("a0".to_owned(), Why::Liveness));
    let stops =
        |plan: Plan| matches!(&plan.actions[..], [Action::StopContainers(stops)] if stops[0].id == "a0");
    assert!(stops(decide(&pod, Intent::Run, &observed(&old), &memory, Instant::now())));
    old.hash = Some("another".to_owned());
    assert!(stops(plan(&pod, &observed(&old))));
    // A container of which nobody wrote down what it was made from is left alone.
    old.hash = None;
    assert!(plan(&pod, &observed(&old)).actions.is_empty());
}

#[tokio::test]
async fn taking_down_ends_sidecars_last_and_leaves_nothing() {
    let pod = pod(&json!({
        "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
        "terminationGracePeriodSeconds": 7,
    }));
    let ids = |plan: &Plan| match &plan.actions[..] {
        [Action::StopContainers(stops)] => stops.iter().map(|stop| (stop.id.clone(), stop.grace)).collect(),
        _ => Vec::new(),
    };
    let now = Instant::now();
    let memory = Memory { stopping_since: Some(now - Duration::from_secs(3)), ..Memory::default() };
    let side = view(&pod, "side", 0, "s0", running());
    let both = seen(vec![sandbox(0, true)], vec![side.clone(), view(&pod, "a", 0, "s0", running())]);
    let first = decide(&pod, Intent::Stop, &both, &memory, now);
    assert_eq!(ids(&first), [("a0".to_owned(), Duration::from_secs(4))]);
    let dead = view(&pod, "a", 0, "s0", exited(0, 1));
    let half = seen(vec![sandbox(0, true)], vec![side, dead.clone()]);
    let late = now + Duration::from_mins(1);
    assert_eq!(ids(&decide(&pod, Intent::Stop, &half, &memory, late)), [("side0".to_owned(), LEAST_GRACE)]);
    let down = seen(vec![sandbox(0, false)], vec![dead.clone()]);
    let stopped = decide(&pod, Intent::Stop, &down, &memory, now);
    assert_eq!((stopped.actions, stopped.course), (Vec::new(), Course::Stopped));
    let removed = decide(&pod, Intent::Remove, &down, &memory, now);
    assert_eq!(removed.actions, [Action::RemoveSandbox { id: "s0".to_owned() }]);
    let homeless = decide(&pod, Intent::Remove, &seen(Vec::new(), vec![dead]), &memory, now);
    assert_eq!(homeless.actions, [Action::RemoveContainer { id: "a0".to_owned() }]);
    assert_eq!(decide(&pod, Intent::Remove, &Observed::default(), &memory, now).course, Course::Removed);
}

#[tokio::test]
async fn one_dead_container_is_kept_of_each() {
    let pod = simple("Always");
    let dead = |attempt, sandbox| view(&pod, "a", attempt, sandbox, exited(1, 1));
    let observed = seen(
        vec![sandbox(0, false), sandbox(1, false), sandbox(2, true)],
        vec![dead(0, "s0"), dead(1, "s1"), dead(2, "s1"), view(&pod, "a", 3, "s2", running())],
    );
    let actions = plan(&pod, &observed).actions;
    let removed = |id: &str| Action::RemoveContainer { id: id.to_owned() };
    assert_eq!(actions, [Action::RemoveSandbox { id: "s0".to_owned() }, removed("a0"), removed("a1")]);
}

#[tokio::test]
async fn what_failed_is_not_tried_before_its_time() {
    let pod = simple("Always");
    let now = Instant::now();
    let until = now + Duration::from_secs(9);
    let mut memory = Memory::default();
    let waiting = Waiting { reason: "ErrImagePull".to_owned(), message: String::new() };
    memory.containers.entry("a".to_owned()).or_default().failure = Some((waiting, until));
    let observed = seen(vec![sandbox(0, true)], Vec::new());
    let plan = decide(&pod, Intent::Run, &observed, &memory, now);
    assert_eq!((plan.actions, plan.wake), (Vec::new(), Some(until)));
    assert_eq!(decide(&pod, Intent::Run, &observed, &memory, until).actions, [start("a", Role::Main, 0)]);
}

#[tokio::test]
async fn what_waits_holds_up_no_end_and_gets_its_signal() {
    let pod = simple("Always");
    let now = Instant::now();
    let observed = seen(vec![sandbox(0, true)], vec![view(&pod, "a", 0, "s0", running())]);
    let memory = Memory {
        hold: Some(now + Duration::from_secs(30)),
        stopping_since: Some(now - Duration::from_mins(5)),
        ..Memory::default()
    };
    assert_eq!(decide(&pod, Intent::Run, &observed, &memory, now).actions, []);
    for intent in [Intent::Stop, Intent::Remove] {
        let actions = decide(&pod, intent, &observed, &memory, now).actions;
        let [Action::StopContainers(stops)] = &actions[..] else { panic!("{intent:?}: {actions:?}") };
        assert_eq!(stops[0].grace, LEAST_GRACE);
    }
}
