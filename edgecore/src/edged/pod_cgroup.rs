//! The numbers of a pod's own control group and of the QoS classes above it. The runtime makes these groups and leaves
//! them at the kernel's defaults, but what pods get beside each other is decided there. As the kubelet's, under the
//! cgroupfs driver; a slice belongs to systemd and gets none. Memory is bounded in each container: a bound of the pod would
//! be the same sum, and what a runtime takes to start a small container would have the pod's sandbox killed.

use std::{fs, io, path::Path};

use k8s_openapi::api::core::v1::PodSpec;

use super::{
    pod::PodUid,
    resources::{self, MAX_SHARES, MIN_SHARES, QUOTA_PERIOD, QosClass},
};

/// To be called once the sandbox is there, before its containers are; again whenever it is made anew.
pub(super) fn apply(root: &Path, spec: &PodSpec, uid: &PodUid) -> io::Result<()> {
    let shares = match resources::qos_class(spec) {
        QosClass::BestEffort => MIN_SHARES,
        QosClass::Burstable | QosClass::Guaranteed => resources::pod_cpu_shares(spec),
    };
    let quota = resources::pod_cpu_quota(spec);
    for pod in resources::cgroup_directories(root, uid) {
        set(&pod.join("cpu.shares"), shares)?;
        set(&pod.join("cpu.weight"), weight(shares))?;
        if let Some(quota) = quota {
            set(&pod.join("cpu.cfs_period_us"), QUOTA_PERIOD)?;
            set(&pod.join("cpu.cfs_quota_us"), quota)?;
            set(&pod.join("cpu.max"), format_args!("{quota} {QUOTA_PERIOD}"))?;
        }
    }
    for class in resources::class_directories(root) {
        if class.ends_with("besteffort") {
            set(&class.join("cpu.shares"), MIN_SHARES)?;
            set(&class.join("cpu.weight"), weight(MIN_SHARES))?;
        } else if class.ends_with("burstable") {
            let (least, most) = (MIN_SHARES, MAX_SHARES);
            set(&class.join("cpu.shares"), sum(&class, "cpu.shares").clamp(least, most))?;
            set(&class.join("cpu.weight"), sum(&class, "cpu.weight").clamp(weight(least), weight(most)))?;
        }
    }
    Ok(())
}

/// Each hierarchy has the files of its own controllers only.
fn set(file: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    if !file.exists() {
        return Ok(());
    }
    fs::write(file, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {value}: {error}", file.display())))
}

/// Of all pods of a class. One that goes meanwhile has nothing any more.
fn sum(class: &Path, file: &str) -> i64 {
    let pods = fs::read_dir(class).into_iter().flatten().flatten();
    let numbers = pods.filter_map(|pod| fs::read_to_string(pod.path().join(file)).ok()?.trim().parse().ok());
    numbers.fold(0, i64::saturating_add)
}

/// Shares of version 1 as a weight of version 2, by the kubelet's formula (KEP-2254).
fn weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_and_classes_get_the_numbers_of_their_requests() {
        let root = tempfile::tempdir().unwrap();
        let files = |group: &str, files: &[&str]| {
            let group = root.path().join(group);
            fs::create_dir_all(&group).unwrap();
            for file in files {
                fs::write(group.join(file), "1024").unwrap();
            }
        };
        let cpu = ["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"];
        files("cpu/kubepods/burstable", &["cpu.shares"]);
        files("cpu/kubepods/besteffort", &["cpu.shares"]);
        files("cpu/kubepods/burstable/podother", &cpu);
        files("cpu/kubepods/burstable/podu-1", &cpu);
        files("memory/kubepods/burstable/podu-1", &["memory.limit_in_bytes"]);
        // Version 2.
        files("kubepods/burstable/podu-1", &["cpu.weight", "cpu.max", "memory.max"]);
        let limited = |cpu: &str, limit: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": limit, "memory": "8Mi"}});
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [
                {"name": "a", "resources": limited("250m", "500m")}, {"name": "b", "resources": limited("250m", "1")},
            ],
        }))
        .unwrap();
        apply(root.path(), &spec, &PodUid::new("u-1").unwrap()).unwrap();
        for (file, number) in [
            ("cpu/kubepods/burstable/podu-1/cpu.shares", "512"),
            ("cpu/kubepods/burstable/podu-1/cpu.cfs_quota_us", "150000"),
            ("memory/kubepods/burstable/podu-1/memory.limit_in_bytes", "1024"),
            ("kubepods/burstable/podu-1/cpu.weight", "20"),
            ("kubepods/burstable/podu-1/cpu.max", "150000 100000"),
            ("kubepods/burstable/podu-1/memory.max", "1024"),
            ("cpu/kubepods/burstable/cpu.shares", "1536"),
            ("cpu/kubepods/besteffort/cpu.shares", "2"),
            ("cpu/kubepods/burstable/podother/cpu.shares", "1024"),
        ] {
            assert_eq!(fs::read_to_string(root.path().join(file)).unwrap(), number, "{file}");
        }
        assert!(!root.path().join("memory/kubepods/burstable/podu-1/cpu.shares").exists());
    }
}
