//! Requests and limits as the kernel's numbers: QoS class, CPU shares and quota, memory limit, OOM score.

use std::{collections::BTreeMap, fmt, path::Path};

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use proto::cri::v1::LinuxContainerResources;

pub(super) const MIN_SHARES: i64 = 2;
pub(super) const MAX_SHARES: i64 = 262_144;
pub(super) const QUOTA_PERIOD: i64 = 100_000;
/// The kernel's smallest quota.
const MIN_QUOTA: i64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A quantity in thousandths (`100m` is 100, `1Gi` is 2^30 * 1000); `None` for what is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let digits =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (power_of_ten, power_of_two) = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => (suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = format!("{}{fraction}", whole.trim_start_matches(['+', '-']));
    if digits.is_empty() || digits.len() > 24 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut value: i128 = digits.parse().ok()?;
    value = value.checked_mul(1 << power_of_two)?;
    // In thousandths, without the digits behind the point.
    let exponent = i32::checked_add(power_of_ten, 3)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let scale = 10_i128.checked_pow(exponent.unsigned_abs())?;
    value = if exponent >= 0 { value.checked_mul(scale)? } else { value.checked_add(scale - 1)? / scale };
    Some(if negative { -value } else { value })
}

/// Whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<i64> {
    i64::try_from(milli(quantity)?.checked_add(999)?.div_euclid(1000)).ok()
}

fn get<'a>(map: Option<&'a BTreeMap<String, Quantity>>, name: &str) -> Option<&'a Quantity> {
    map?.get(name)
}

fn limit<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a Quantity> {
    get(resources?.limits.as_ref(), name)
}

/// A request that is not given is the limit.
fn request<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a Quantity> {
    get(resources?.requests.as_ref(), name).or_else(|| limit(resources, name))
}

fn positive(quantity: Option<&Quantity>) -> Option<i128> {
    quantity.and_then(milli).filter(|milli| *milli > 0)
}

pub fn qos_class(spec: &PodSpec) -> QosClass {
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let asks = |container: &Container| {
        let resources = container.resources.as_ref();
        ["cpu", "memory"].iter().any(|name| {
            positive(request(resources, name)).is_some() || positive(limit(resources, name)).is_some()
        })
    };
    if !containers().any(asks) {
        return QosClass::BestEffort;
    }
    let guaranteed = containers().all(|container| {
        let resources = container.resources.as_ref();
        ["cpu", "memory"].iter().all(|name| {
            let limit = positive(limit(resources, name));
            limit.is_some() && limit == positive(request(resources, name))
        })
    });
    if guaranteed { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// What of a container's resources can change while it runs (KEP-1287), as JSON with its keys in order: what two of them
/// have the same is the same.
pub fn resizable(container: &Container) -> String {
    let resources = container.resources.clone().unwrap_or_default();
    let only = |map: Option<BTreeMap<String, Quantity>>| {
        let map: BTreeMap<_, _> =
            map.into_iter().flatten().filter(|(name, _)| RESIZABLE.contains(&name.as_str())).collect();
        (!map.is_empty()).then_some(map)
    };
    let part = ResourceRequirements {
        limits: only(resources.limits),
        requests: only(resources.requests),
        ..Default::default()
    };
    serde_json::to_string(&part).unwrap_or_default()
}

const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Whether a container that has `applied` ([`resizable`]) is to be started anew to have what its pod says now.
pub fn resize_restarts(applied: &str, container: &Container) -> bool {
    let applied: ResourceRequirements = serde_json::from_str(applied).unwrap_or_default();
    let wanted = container.resources.as_ref();
    container.resize_policy.iter().flatten().any(|policy| {
        let name = policy.resource_name.as_str();
        policy.restart_policy == "RestartContainer"
            && (limit(Some(&applied), name) != limit(wanted, name)
                || request(Some(&applied), name) != request(wanted, name))
    })
}

/// Whether a container may use more of the CPU than with what it has ([`resizable`]).
pub fn cpu_grows(applied: &str, container: &Container) -> bool {
    let applied: ResourceRequirements = serde_json::from_str(applied).unwrap_or_default();
    let most = |resources| positive(limit(resources, "cpu")).unwrap_or(i128::MAX);
    most(container.resources.as_ref()) > most(Some(&applied))
}

/// A container's resources as its status shows them: as its pod says, but for what has not been changed yet.
pub fn shown(container: &Container, applied: Option<&str>) -> ResourceRequirements {
    let mut shown = container.resources.clone().unwrap_or_default();
    let applied: Option<ResourceRequirements> =
        applied.and_then(|applied| serde_json::from_str(applied).ok());
    if let Some(applied) = applied {
        for (to, from) in [(&mut shown.limits, applied.limits), (&mut shown.requests, applied.requests)] {
            let mut map = to.take().unwrap_or_default();
            map.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
            map.extend(from.into_iter().flatten());
            *to = (!map.is_empty()).then_some(map);
        }
    }
    shown.claims = None;
    shown
}

/// The first resource of which a pod asks for more than a node has, and both amounts: thousandths of a core, or bytes.
pub fn infeasible(spec: &PodSpec, milli_cpu: i64, memory: i64) -> Option<(&'static str, i64, i64)> {
    let cpu =
        |container: &Container| whole(positive(request(container.resources.as_ref(), "cpu")).unwrap_or(0));
    let bytes = |container: &Container| {
        Some(request(container.resources.as_ref(), "memory").and_then(units).unwrap_or(0))
    };
    let cpu = ("cpu", of_pod(spec, "cpu", cpu), milli_cpu);
    let memory = ("memory", of_pod(spec, "memory", bytes), memory);
    [cpu, memory].into_iter().find_map(|(name, asked, capacity)| {
        let asked = asked.unwrap_or(i64::MAX);
        (asked > capacity).then_some((name, asked, capacity))
    })
}

/// What the container's cgroup gets. `node_memory` is the node's capacity in bytes, for the OOM score.
pub fn container_resources(
    spec: &PodSpec,
    container: &Container,
    node_memory: u64,
) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    // What the node cannot do without dies as late as what is guaranteed.
    let class = match spec.priority_class_name.as_deref() {
        Some("system-node-critical") => QosClass::Guaranteed,
        _ => qos_class(spec),
    };
    let cpu_limit = positive(limit(resources, "cpu"));
    let cpu_request = positive(request(resources, "cpu"));
    // As kubelet under version 2: of a container all processes die, or none.
    let unified = Path::new(super::cgroup::CGROUPS).join("cgroup.controllers").exists();
    let unified = unified.then(|| ("memory.oom.group".to_owned(), "1".to_owned()));
    LinuxContainerResources {
        unified: unified.into_iter().collect(),
        cpu_period: QUOTA_PERIOD,
        cpu_quota: cpu_limit.map_or(0, to_quota),
        cpu_shares: cpu_request.map_or(MIN_SHARES, to_shares),
        memory_limit_in_bytes: limit(resources, "memory")
            .and_then(units)
            .filter(|bytes| *bytes > 0)
            .unwrap_or(0),
        oom_score_adj: oom_score(class, request(resources, "memory").and_then(units), node_memory),
        ..Default::default()
    }
}

/// The memory that a pod may use at most, in bytes: `None` when a container has no limit.
pub fn pod_memory_limit(spec: &PodSpec) -> Option<i64> {
    of_pod(spec, "memory", |container| {
        limit(container.resources.as_ref(), "memory").and_then(units).filter(|bytes| *bytes > 0)
    })
}

/// What a pod may take of the disk, in bytes: the sum over the containers that have a limit, `None` when none has.
pub fn pod_storage_limit(spec: &PodSpec) -> Option<u64> {
    let of = |container: &Container| {
        limit(container.resources.as_ref(), "ephemeral-storage").and_then(units).filter(|bytes| *bytes > 0)
    };
    if !spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|one| of(one).is_some()) {
        return None;
    }
    of_pod(spec, "ephemeral-storage", |container| Some(of(container).unwrap_or(0)))
        .and_then(|bytes| u64::try_from(bytes).ok())
}

/// A number of bytes as a quantity.
pub fn storage_text(bytes: u64) -> String {
    let steps = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let fits = steps.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    fits.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// What a pod may use of the CPU in each period: `None` when a container has no limit.
pub fn pod_cpu_quota(spec: &PodSpec) -> Option<i64> {
    let milli =
        of_pod(spec, "cpu", |container| whole(positive(limit(container.resources.as_ref(), "cpu"))?))?;
    Some(to_quota(milli.into()))
}

/// A pod's part of the CPU beside others, by what its containers ask for.
pub fn pod_cpu_shares(spec: &PodSpec) -> i64 {
    let milli = of_pod(spec, "cpu", |container| {
        whole(positive(request(container.resources.as_ref(), "cpu")).unwrap_or(0))
    });
    milli.map_or(MAX_SHARES, |milli| to_shares(milli.into()))
}

fn whole(milli: i128) -> Option<i64> {
    i64::try_from(milli).ok()
}

/// The sum over a pod: `None` when a container has no number, or it is too large for one. Init containers run before the
/// others and one at a time, but a sidecar goes on beside all that come after it.
fn of_pod(spec: &PodSpec, resource: &str, of: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let (mut sidecars, mut starting) = (0_i64, 0_i64);
    for container in spec.init_containers.iter().flatten() {
        let beside = sidecars.checked_add(of(container)?)?;
        starting = starting.max(beside);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = beside;
        }
    }
    let running =
        spec.containers.iter().try_fold(sidecars, |sum, container| sum.checked_add(of(container)?))?;
    let overhead = get(spec.overhead.as_ref(), resource);
    let overhead =
        if resource == "cpu" { overhead.and_then(milli).and_then(whole) } else { overhead.and_then(units) };
    starting.max(running).checked_add(overhead.unwrap_or(0))
}

fn to_quota(milli: i128) -> i64 {
    i64::try_from(milli * i128::from(QUOTA_PERIOD) / 1000).unwrap_or(i64::MAX).max(MIN_QUOTA)
}

fn to_shares(milli: i128) -> i64 {
    i64::try_from(milli * 1024 / 1000).unwrap_or(MAX_SHARES).clamp(MIN_SHARES, MAX_SHARES)
}

/// The kernel kills the highest first: BestEffort, then Burstable by how little of the node they asked for.
fn oom_score(class: QosClass, memory_request: Option<i64>, node_memory: u64) -> i64 {
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = i128::from(memory_request.unwrap_or(0));
            let score = 1000 - 1000 * request / i128::from(node_memory.max(1));
            // Above Guaranteed, below BestEffort.
            i64::try_from(score).unwrap_or(999).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let cases = [
            ("100m", Some(100)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(3 * (1 << 29) * 1000)),
            ("128Mi", Some(128 * (1 << 20) * 1000)),
            ("1e3", Some(1_000_000)),
            ("100k", Some(100_000_000)),
            ("1n", Some(1)),
            ("", None),
            ("x", None),
            ("1Zi", None),
            ("1e2147483647", None),
            ("0.1e-2147483648", None),
        ];
        for (text, expected) in cases {
            assert_eq!(milli(&Quantity(text.to_owned())), expected, "{text}");
        }
    }

    #[test]
    fn what_a_pod_may_use_of_the_memory() {
        let container = |name: &str, memory: Option<&str>, policy: Option<&str>| {
            let limits = memory.map(|memory| serde_json::json!({"memory": memory}));
            serde_json::json!({"name": name, "restartPolicy": policy, "resources": {"limits": limits}})
        };
        let limit = |init: Vec<serde_json::Value>, main: Vec<serde_json::Value>| {
            let spec =
                serde_json::json!({"initContainers": init, "containers": main, "overhead": {"memory": "1"}});
            pod_memory_limit(&serde_json::from_value(spec).unwrap())
        };
        let side = || container("s", Some("10"), Some("Always"));
        assert_eq!(
            limit(vec![], vec![container("a", Some("5"), None), container("b", Some("6"), None)]),
            Some(12)
        );
        assert_eq!(limit(vec![side()], vec![container("a", Some("5"), None)]), Some(16));
        let big = || container("i", Some("50"), None);
        assert_eq!(limit(vec![big(), side()], vec![container("a", Some("5"), None)]), Some(51));
        assert_eq!(limit(vec![side(), big()], vec![container("a", Some("5"), None)]), Some(61));
        assert_eq!(limit(vec![], vec![container("a", Some("5"), None), container("b", None, None)]), None);
    }

    #[test]
    fn classes_and_numbers() {
        let spec = |json: serde_json::Value| -> PodSpec {
            serde_json::from_value(serde_json::json!({"containers": [{"name": "a", "resources": json}]}))
                .unwrap()
        };
        let best = spec(serde_json::json!({}));
        assert_eq!(qos_class(&best), QosClass::BestEffort);
        let numbers = container_resources(&best, &best.containers[0], 1 << 30);
        assert_eq!((numbers.cpu_shares, numbers.cpu_quota, numbers.oom_score_adj), (2, 0, 1000));

        let burst = spec(serde_json::json!({"requests": {"cpu": "250m", "memory": "512Mi"}}));
        assert_eq!(qos_class(&burst), QosClass::Burstable);
        let numbers = container_resources(&burst, &burst.containers[0], 1 << 30);
        assert_eq!((numbers.cpu_shares, numbers.memory_limit_in_bytes, numbers.oom_score_adj), (256, 0, 500));

        let sure = spec(serde_json::json!({"limits": {"cpu": "1", "memory": "64Mi"}}));
        assert_eq!(qos_class(&sure), QosClass::Guaranteed);
        let numbers = container_resources(&sure, &sure.containers[0], 1 << 30);
        assert_eq!(
            (numbers.cpu_quota, numbers.memory_limit_in_bytes, numbers.oom_score_adj),
            (100_000, 64 << 20, -997)
        );
    }
}
