//! The control groups above the containers: each pod's own, and those of the QoS classes. What pods get beside each other is
//! decided there, by the kubelet's numbers. Memory is bounded in each container: a bound of the pod would be the same sum, and
//! what a runtime takes to start a small container would have the pod's sandbox killed.
//!
//! Under the driver cgroupfs the runtime makes these groups and leaves them at the kernel's defaults; the numbers are
//! written into their files ([`write`]). A slice is systemd's, which would undo what others write: it is told ([`tell_systemd`])
//! what a slice is to have, before there is one.

use std::{
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::PodSpec;
use proto::cri::v1::CgroupDriver;
use tokio::{process::Command, time::timeout};

use super::{
    pod::PodUid,
    resources::{self, MAX_SHARES, MIN_SHARES, QUOTA_PERIOD, QosClass},
};

/// Where the kernel shows its control groups.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Where systemd keeps what it was told of a unit, until the next boot.
const TOLD: &str = "/run/systemd/system.control";
/// systemd answers at once, or is in trouble.
const SYSTEMD_DEADLINE: Duration = Duration::from_secs(30);

/// Where the pod's cgroup goes, in the words of the driver: a path, or the name of a systemd slice.
pub(super) fn parent(driver: CgroupDriver, class: QosClass, uid: &PodUid) -> String {
    match driver {
        CgroupDriver::Cgroupfs => format!("/{}/pod{uid}", directory(class)),
        CgroupDriver::Systemd => slice(class, uid),
    }
}

/// Under cgroupfs.
fn directory(class: QosClass) -> &'static str {
    match class {
        QosClass::Guaranteed => "kubepods",
        QosClass::Burstable => "kubepods/burstable",
        QosClass::BestEffort => "kubepods/besteffort",
    }
}

/// Of a slice's name, what its children's names begin with.
fn prefix(class: QosClass) -> &'static str {
    match class {
        QosClass::Guaranteed => "kubepods",
        QosClass::Burstable => "kubepods-burstable",
        QosClass::BestEffort => "kubepods-besteffort",
    }
}

fn slice(class: QosClass, uid: &PodUid) -> String {
    // A dash is a level of the tree in a slice's name.
    format!("{}-pod{}.slice", prefix(class), uid.as_str().replace('-', "_"))
}

/// Below a hierarchy, the directory of a class's slice.
fn slice_directory(class: QosClass) -> String {
    match class {
        QosClass::Guaranteed => "kubepods.slice".to_owned(),
        class => format!("kubepods.slice/{}.slice", prefix(class)),
    }
}

/// Version 2 has its tree at the root itself, version 1 one in each directory.
fn hierarchies(root: &Path) -> impl Iterator<Item = PathBuf> {
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(root.to_owned()).chain(below.filter(|path| path.is_dir()))
}

/// What a pod gets of the CPU.
struct Numbers {
    shares: i64,
    quota: Option<i64>,
}

impl Numbers {
    fn of(spec: &PodSpec) -> Self {
        let shares = match resources::qos_class(spec) {
            QosClass::BestEffort => MIN_SHARES,
            QosClass::Burstable | QosClass::Guaranteed => resources::pod_cpu_shares(spec),
        };
        Self { shares, quota: resources::pod_cpu_quota(spec) }
    }
}

/// Under the driver cgroupfs: to be called once the sandbox is there, before its containers are; again when it is made anew or
/// what the pod gets has changed.
pub(super) fn write(root: &Path, spec: &PodSpec, uid: &PodUid) -> io::Result<()> {
    let class = resources::qos_class(spec);
    let Numbers { shares, quota } = Numbers::of(spec);
    for hierarchy in hierarchies(root) {
        let parent = hierarchy.join(directory(class));
        let pod = parent.join(format!("pod{uid}"));
        set(&pod.join("cpu.shares"), shares)?;
        set(&pod.join("cpu.weight"), weight(shares))?;
        set(&pod.join("cpu.cfs_period_us"), QUOTA_PERIOD)?;
        set(&pod.join("cpu.cfs_quota_us"), quota.unwrap_or(-1))?;
        let most = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        set(&pod.join("cpu.max"), format_args!("{most} {QUOTA_PERIOD}"))?;
        weigh_class(&hierarchy, class)?;
    }
    Ok(())
}

/// What a class gets beside others is what its pods ask for.
fn weigh_class(hierarchy: &Path, class: QosClass) -> io::Result<()> {
    let group = hierarchy.join(directory(class));
    let (shares, weights) = match class {
        QosClass::Guaranteed => return Ok(()),
        QosClass::BestEffort => (MIN_SHARES, weight(MIN_SHARES)),
        QosClass::Burstable => (
            sum(&group, |pod| number(&pod.join("cpu.shares"))).clamp(MIN_SHARES, MAX_SHARES),
            sum(&group, |pod| number(&pod.join("cpu.weight"))).clamp(weight(MIN_SHARES), weight(MAX_SHARES)),
        ),
    };
    set(&group.join("cpu.shares"), shares)?;
    set(&group.join("cpu.weight"), weights)
}

/// Each hierarchy has the files of its own controllers only.
fn set(file: &Path, value: impl Display) -> io::Result<()> {
    if !file.exists() {
        return Ok(());
    }
    fs::write(file, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {value}: {error}", file.display())))
}

/// Of all groups below one. A pod that goes meanwhile has nothing any more.
fn sum(group: &Path, of: impl Fn(&Path) -> Option<i64>) -> i64 {
    let pods = fs::read_dir(group).into_iter().flatten().flatten();
    pods.filter_map(|pod| of(&pod.path())).fold(0, i64::saturating_add)
}

fn number(file: &Path) -> Option<i64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Shares of version 1 as a weight of version 2, by the kubelet's formula (KEP-2254).
fn weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9999 / 262_142
}

/// Under the driver systemd: to be called before the sandbox is there, or while it is made; then [`weigh_slice`].
pub(super) async fn tell_systemd(spec: &PodSpec, uid: &PodUid) -> io::Result<()> {
    let Numbers { shares, quota } = Numbers::of(spec);
    // Of systemd's period, which is QUOTA_PERIOD, too. Nothing is no bound.
    let quota = quota.map(|quota| format!("{}.{}%", quota / 1000, quota % 1000 / 100)).unwrap_or_default();
    let told = [format!("CPUWeight={}", weight(shares)), format!("CPUQuota={quota}")];
    set_property(&slice(resources::qos_class(spec), uid), &told).await
}

/// As [`weigh_class`], once the slices of the class's pods are there.
pub(super) async fn weigh_slice(root: &Path, class: QosClass) -> io::Result<()> {
    let mut groups = hierarchies(root).map(|hierarchy| hierarchy.join(slice_directory(class)));
    let Some((now, group)) = groups.find_map(|group| Some((weight_of(&group)?, group))) else {
        return Ok(());
    };
    let wanted = match class {
        QosClass::Guaranteed => return Ok(()),
        QosClass::BestEffort => weight(MIN_SHARES),
        QosClass::Burstable => sum(&group, weight_of).clamp(weight(MIN_SHARES), weight(MAX_SHARES)),
    };
    if now == wanted {
        return Ok(());
    }
    set_property(&format!("{}.slice", prefix(class)), &[format!("CPUWeight={wanted}")]).await
}

/// Of a slice. Under version 1 systemd makes shares of the weight that it was told, rounded down.
fn weight_of(group: &Path) -> Option<i64> {
    let shares = || Some(number(&group.join("cpu.shares"))?.saturating_mul(100).saturating_add(1023) / 1024);
    number(&group.join("cpu.weight")).or_else(shares)
}

/// Until the next boot.
async fn set_property(slice: &str, told: &[String]) -> io::Result<()> {
    let arguments = ["set-property", "--runtime", slice].into_iter().chain(told.iter().map(String::as_str));
    systemctl(&arguments.collect::<Vec<_>>()).await
}

/// Removes what a pod's runtime leaves behind of its control groups, under either driver.
pub(super) async fn remove(root: &Path, uid: &PodUid) {
    for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
        let slice = slice(class, uid);
        let below = Path::new(&slice_directory(class)).join(&slice);
        let told = Path::new(TOLD).join(format!("{slice}.d"));
        if told.exists() || hierarchies(root).any(|hierarchy| hierarchy.join(&below).exists()) {
            say(&slice, systemctl(&["stop", &slice]).await);
            // Of version 1, systemd leaves the hierarchies that it does not use to the runtime.
            for hierarchy in hierarchies(root) {
                say(&slice, fs::remove_dir(hierarchy.join(&below)));
            }
            say(&slice, fs::remove_dir_all(told));
            say(&slice, weigh_slice(root, class).await);
        }
        for hierarchy in hierarchies(root) {
            let group = hierarchy.join(directory(class)).join(format!("pod{uid}"));
            if group.exists() {
                say(&group.to_string_lossy(), fs::remove_dir(&group));
                say(&group.to_string_lossy(), weigh_class(&hierarchy, class));
            }
        }
    }
}

/// An empty group does no harm.
fn say(group: &str, done: io::Result<()>) {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, group, "cgroup not tidied up");
        }
        _ => {}
    }
}

/// systemd's own tool, because it needs no bus, as a small gateway may not have one.
async fn systemctl(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("systemctl").args(arguments).kill_on_drop(true).output();
    let output = timeout(SYSTEMD_DEADLINE, output).await.map_err(io::Error::from)??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("systemctl {}: {}: {}", arguments.join(" "), output.status, said.trim())))
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
        write(root.path(), &spec, &PodUid::new("u-1").unwrap()).unwrap();
        for (file, number) in [
            ("cpu/kubepods/burstable/podu-1/cpu.shares", "512"),
            ("cpu/kubepods/burstable/podu-1/cpu.cfs_quota_us", "150000"),
            ("memory/kubepods/burstable/podu-1/memory.limit_in_bytes", "1024"),
            ("kubepods/burstable/podu-1/cpu.weight", "20"),
            ("kubepods/burstable/podu-1/cpu.max", "150000 100000"),
            ("kubepods/burstable/podu-1/memory.max", "1024"),
            ("cpu/kubepods/burstable/cpu.shares", "1536"),
            ("cpu/kubepods/besteffort/cpu.shares", "1024"),
            ("cpu/kubepods/burstable/podother/cpu.shares", "1024"),
        ] {
            assert_eq!(fs::read_to_string(root.path().join(file)).unwrap(), number, "{file}");
        }
        assert!(!root.path().join("memory/kubepods/burstable/podu-1/cpu.shares").exists());
        weigh_class(&root.path().join("cpu"), QosClass::BestEffort).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cpu/kubepods/besteffort/cpu.shares")).unwrap(), "2");
        fs::remove_dir_all(root.path().join("cpu/kubepods/burstable/podu-1")).unwrap();
        weigh_class(&root.path().join("cpu"), QosClass::Burstable).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("cpu/kubepods/burstable/cpu.shares")).unwrap(),
            "1024"
        );
    }

    #[test]
    fn each_driver_has_its_words_for_a_pod() {
        let uid = PodUid::new("7c9e-7425").unwrap();
        let of = |driver, class| parent(driver, class, &uid);
        for (driver, class, expected) in [
            (CgroupDriver::Cgroupfs, QosClass::Guaranteed, "/kubepods/pod7c9e-7425"),
            (CgroupDriver::Cgroupfs, QosClass::BestEffort, "/kubepods/besteffort/pod7c9e-7425"),
            (CgroupDriver::Systemd, QosClass::Guaranteed, "kubepods-pod7c9e_7425.slice"),
            (CgroupDriver::Systemd, QosClass::Burstable, "kubepods-burstable-pod7c9e_7425.slice"),
        ] {
            assert_eq!(of(driver, class), expected);
        }
    }
}
