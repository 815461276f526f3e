//! The store after what an edge site does to it: kills, power cuts (files cut short), bad sectors, full disks.

#![expect(clippy::unwrap_used, reason = "test code, its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use edgecore::metamanager::{DesiredChange, Options, Store, StoreError};
use harness::wait;
use proto::{Object, ResourceKey, message::ReportKind};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(10);

const CHILD: &str = "SKERRY_TEST_STORE";

fn key(text: &str) -> ResourceKey {
    text.parse().unwrap()
}

fn object(text: &str, resource_version: u64, length: usize) -> Object {
    let mut bytes = format!("{resource_version} {text} ").into_bytes();
    bytes.resize(length.max(bytes.len()), b'.');
    Object::new(key(text), resource_version, bytes.into())
}

fn open(dir: &Path) -> Store {
    Store::open(dir, Options::default()).unwrap()
}

/// In memory where possible: thousands of stores are opened, and no power is cut here.
fn tempdir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// After an unclean stop it is of no use: it would only be copied, or make room on a full disk.
fn remove_sled(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

/// The files of a kind, newest last.
fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.file_stem().is_some_and(|stem| stem == kind) && path.is_file()).collect();
    paths.sort();
    paths
}

type State = (Vec<Object>, Vec<(String, Bytes)>, Vec<u64>);

fn state(store: &Store) -> State {
    let reports = store.pending_reports(0, 1000).unwrap();
    (
        store.list("Pod").unwrap(),
        store.list_local("").unwrap(),
        reports.iter().map(|report| report.id).collect(),
    )
}

/// A store that was stopped cleanly once, killed once, and then changed; the states that it went through since.
struct Small {
    dir: TempDir,
    states: Vec<State>,
}

impl Small {
    async fn new() -> Self {
        let dir = tempdir();
        let store = open(dir.path());
        store.apply(vec![DesiredChange::Put(object("Pod/a/old", 1, 50))]).await.unwrap();
        store.put_local("clock", Bytes::from_static(b"1")).await.unwrap();
        store.close().await.unwrap();
        let store = open(dir.path());
        store.apply(vec![DesiredChange::Put(object("Pod/a/older", 2, 50))]).await.unwrap();
        drop(store);
        let store = open(dir.path());
        let mut states = vec![state(&store)];
        for n in 0..4u64 {
            let put = DesiredChange::Put(object(&format!("Pod/a/{}", n % 3), n, 30));
            let delete = DesiredChange::Delete(key(&format!("Pod/a/{}", (n + 1) % 3)));
            store.apply(vec![put, delete]).await.unwrap();
            states.push(state(&store));
            store.report(ReportKind::Event, &key("Pod/a/0"), Bytes::from_static(b"{}")).await.unwrap();
            states.push(state(&store));
        }
        drop(store);
        remove_sled(dir.path());
        Self { dir, states }
    }

    /// A copy in which one file's content was changed.
    fn damaged(&self, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
        let dir = tempdir();
        copy(self.dir.path(), dir.path());
        let path = dir.path().join(file.file_name().unwrap());
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        dir
    }

    fn last(&self) -> &State {
        self.states.last().unwrap()
    }
}

#[tokio::test]
async fn a_journal_cut_at_any_length_leaves_a_prefix() {
    let small = Small::new().await;
    let journal = files(small.dir.path(), "journal").pop().unwrap();
    let length = fs::metadata(&journal).unwrap().len();
    let mut reached = 0;
    for cut in 0..=length {
        let dir = small.damaged(&journal, |bytes| bytes.truncate(usize::try_from(cut).unwrap()));
        let store = open(dir.path());
        let found = state(&store);
        let at = small.states.iter().position(|state| *state == found);
        let at = at.unwrap_or_else(|| panic!("cut at {cut} of {length}: no state that ever was"));
        assert!(at >= reached, "cut at {cut}: state {at} after state {reached}");
        reached = at;
        // And it goes on from there.
        store.put_local("after", Bytes::new()).await.unwrap();
        drop(store);
        assert_eq!(open(dir.path()).opened().healed, Vec::<String>::new());
    }
    assert_eq!(reached + 1, small.states.len());
}

#[tokio::test]
async fn a_flipped_byte_is_survived_and_told() {
    let small = Small::new().await;
    let mut silent = 0;
    for kind in ["journal", "checkpoint"] {
        let newest = files(small.dir.path(), kind).pop().unwrap();
        for file in files(small.dir.path(), kind) {
            for at in 0..fs::metadata(&file).unwrap().len() {
                let at = usize::try_from(at).unwrap();
                let dir = small.damaged(&file, |bytes| bytes[at] ^= 0x40);
                let store = open(dir.path());
                let told = !store.opened().healed.is_empty();
                let whole = state(&store) == *small.last();
                let place = format!("byte {at} of {}", file.display());
                if file == newest {
                    assert!(told, "{place}: nothing was told");
                }
                assert!(whole || told, "{place}: lost without a word");
                // The checkpoint before it and its journal make up for a damaged checkpoint.
                assert!(whole || kind == "journal", "{place}: {:?}", store.opened());
                silent += u32::from(!told);
            }
        }
    }
    assert!(silent > 0, "the older generation was read without need");
}

#[tokio::test]
async fn damage_in_the_middle_costs_one_record() {
    let small = Small::new().await;
    let journal = files(small.dir.path(), "journal").pop().unwrap();
    // 28 bytes of file header, 32 of record header: the payload of the first record.
    let dir = small.damaged(&journal, |bytes| bytes[28 + 32 + 5] ^= 1);
    let store = open(dir.path());
    assert_eq!(state(&store).2, small.last().2, "reports after the damage were lost");
    assert!(store.opened().healed[0].contains("damaged"), "{:?}", store.opened());
}

#[tokio::test]
async fn lost_files_are_survived() {
    let small = Small::new().await;
    let all: Vec<_> =
        ["journal", "checkpoint"].iter().flat_map(|kind| files(small.dir.path(), kind)).collect();
    assert_eq!(all.len(), 4);
    for lost in 0..16u32 {
        for emptied in [false, true] {
            let dir = tempdir();
            copy(small.dir.path(), dir.path());
            for (at, file) in all.iter().enumerate().filter(|(at, _)| lost & 1 << at != 0) {
                let path = dir.path().join(file.file_name().unwrap());
                if emptied {
                    fs::write(path, b"").unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                }
                assert!(at < 4);
            }
            let store = open(dir.path());
            let opened = store.opened().clone();
            let whole = state(&store) == *small.last();
            // Nothing at all is a new store, and without its newest generation it is an older one: no file can tell.
            let nothing = !emptied && (lost == 0b1111 || lost == 0b1010);
            assert!(whole || nothing || !opened.healed.is_empty(), "lost {lost:04b}: {opened:?}");
            let id = store.report(ReportKind::Event, &key("Pod/a/0"), Bytes::new()).await.unwrap();
            assert!(whole || nothing || id > 1 << 39, "id {id} may have been used before");
            store.close().await.unwrap();
            assert_eq!(open(dir.path()).opened().healed, Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn a_damaged_sled_is_rebuilt_without_a_cloud() {
    let origin = tempdir();
    let store = open(origin.path());
    for n in 0..40 {
        store.apply(vec![DesiredChange::Put(object(&format!("Pod/a/{n}"), n, 3000))]).await.unwrap();
    }
    let expected = state(&store);
    store.close().await.unwrap();
    let sled = |dir: &Path| {
        let mut paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.find(|path| path.is_dir()).unwrap()
    };
    let mut names: Vec<_> =
        fs::read_dir(sled(origin.path())).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_file());
    assert!(names.iter().any(|path| path.ends_with("db")), "{names:?}");
    for file in &names {
        let length = usize::try_from(fs::metadata(file).unwrap().len()).unwrap();
        for damage in 0..12 {
            let dir = tempdir();
            copy(origin.path(), dir.path());
            let path = sled(dir.path()).join(file.file_name().unwrap());
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                0 => fs::remove_file(&path).unwrap(),
                1..5 if length == 0 => fs::write(&path, b"x").unwrap(),
                1..5 => fs::write(&path, &bytes[..length * (damage - 1) / 4]).unwrap(),
                _ if length == 0 => continue,
                _ => {
                    bytes[length / 8 * (damage - 5) + 3] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
            }
            let store = open(dir.path());
            assert_eq!(state(&store), expected, "{} damaged in way {damage}", path.display());
            assert_eq!(store.opened().healed.len(), 1, "{:?}", store.opened());
        }
    }
    fs::remove_dir_all(sled(origin.path())).unwrap();
    assert_eq!(state(&open(origin.path())), expected);
}

#[tokio::test]
async fn a_damaged_marker_is_an_unclean_stop() {
    let dir = tempdir();
    let store = open(dir.path());
    store.apply(vec![DesiredChange::Put(object("Pod/a/0", 1, 10))]).await.unwrap();
    let expected = state(&store);
    store.close().await.unwrap();
    let marker = fs::read(dir.path().join("clean")).unwrap();
    for at in 0..marker.len() {
        let copied = tempdir();
        copy(dir.path(), copied.path());
        let mut bytes = marker.clone();
        bytes[at] ^= 1;
        fs::write(copied.path().join("clean"), bytes).unwrap();
        let store = open(copied.path());
        assert_eq!((state(&store), store.opened().clean), (expected.clone(), false));
    }
}

#[tokio::test]
async fn a_lock_that_is_about_to_go_is_no_damage() {
    let dir = tempdir();
    open(dir.path()).close().await.unwrap();
    let sled =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    let held = fs::File::open(sled.unwrap().join("db")).unwrap();
    held.lock().unwrap();
    let opening = tokio::task::spawn_blocking({
        let dir = dir.path().to_owned();
        move || open(&dir).opened().clone()
    });
    // "->" marks a waiter in /proc/locks (proc_locks(5)).
    let waiter = format!(":{} ", held.metadata().unwrap().ino());
    wait::until("the opening waiting for sled's lock", LIMIT, async || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let waits = locks.lines().any(|line| line.contains("->") && line.contains(&waiter));
        if waits { Ok(()) } else { Err(locks) }
    })
    .await
    .unwrap();
    held.unlock().unwrap();
    let opened = opening.await.unwrap();
    assert!(opened.clean && opened.healed.is_empty(), "{opened:?}");
}

struct Mount(TempDir);

impl Mount {
    /// A file system of its own, 6 MiB large. The suite runs as root.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount("skerry-test", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=6m")).unwrap();
        Self(dir)
    }

    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        for size in [64 << 10, 4096, 512, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let mounted = Mount::new();
    let dir = mounted.0.path().join("store");
    let store = open(&dir);
    let mut acked = BTreeMap::new();
    let put = |n: u64| DesiredChange::Put(object(&format!("Pod/a/{}", n % 10), n, 10_000));
    for n in 0..20 {
        store.apply(vec![put(n)]).await.unwrap();
        acked.insert(n % 10, n);
    }
    let check = |store: &Store, acked: &BTreeMap<u64, u64>| {
        let found: BTreeMap<u64, u64> = store
            .list("Pod")
            .unwrap()
            .iter()
            .map(|object| (object.key.name().parse().unwrap(), object.version.resource_version))
            .collect();
        assert_eq!(&found, acked);
    };
    let filler = mounted.fill();
    let mut refused = 0;
    for n in 20..60 {
        match store.apply(vec![put(n)]).await {
            Ok(()) => drop(acked.insert(n % 10, n)),
            Err(StoreError::Journal { .. } | StoreError::Checkpoint { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
        check(&store, &acked);
    }
    assert!(refused > 30, "only {refused} writes were refused by a full disk");
    fs::remove_file(&filler).unwrap();
    store.apply(vec![put(61)]).await.unwrap();
    acked.insert(1, 61);
    check(&store, &acked);

    // Found full at the start: readable, and nothing is taken.
    drop(store);
    remove_sled(&dir);
    let filler = mounted.fill();
    let store = open(&dir);
    check(&store, &acked);
    store.apply(vec![put(70)]).await.unwrap_err();
    check(&store, &acked);
    fs::remove_file(filler).unwrap();
    store.apply(vec![put(71)]).await.unwrap();
    acked.insert(1, 71);
    check(&store, &acked);
    store.close().await.unwrap();
    check(&open(&dir), &acked);
}

#[tokio::test]
async fn a_read_only_disk_is_read_and_refuses_until_it_is_writable() {
    let mounted = Mount::new();
    let dir = mounted.0.path().join("store");
    let store = open(&dir);
    store.apply(vec![DesiredChange::Put(object("Pod/a/0", 1, 10))]).await.unwrap();
    let expected = state(&store);
    store.close().await.unwrap();
    // A child that another test is starting has the store's files open until it calls exec.
    wait::until("the closed store's files being closed", LIMIT, async || {
        mount_remount(mounted.0.path(), MountFlags::RDONLY, "")
    })
    .await
    .unwrap();
    let store = open(&dir);
    assert_eq!(state(&store), expected);
    let put = || vec![DesiredChange::Put(object("Pod/a/1", 2, 10))];
    store.apply(put()).await.unwrap_err();
    assert_eq!(state(&store), expected);
    mount_remount(mounted.0.path(), MountFlags::empty(), "").unwrap();
    store.apply(put()).await.unwrap();
    let expected = state(&store);
    drop(store);
    assert_eq!(state(&open(&dir)), expected);
}

const WORKERS: usize = 3;
const SLOTS: u64 = 7;

/// Not a test of its own: what [`kill_at_random_instants_loses_nothing_acked`] starts and kills.
#[test]
fn child() {
    let Ok(dir) = env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store =
            Store::open(Path::new(&dir), Options { journal_bytes: 64 << 10, ..Options::default() }).unwrap();
        println!("opened {}", store.opened().healed.join(", "));
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            let store = store.clone();
            workers.spawn(async move {
                let counter = format!("worker-{worker}");
                let start = store
                    .local(&counter)
                    .unwrap()
                    .map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
                for n in start + 1.. {
                    let text = format!("Pod/{worker}/{}", n % SLOTS);
                    let length = usize::try_from(n * 37 % 9000).unwrap();
                    store.apply(vec![DesiredChange::Put(object(&text, n, length))]).await.unwrap();
                    println!("object {worker} {n}");
                    store.put_local(&counter, n.to_be_bytes().to_vec().into()).await.unwrap();
                    println!("local {worker} {n}");
                    let id =
                        store.report(ReportKind::Event, &key(&text), n.to_string().into()).await.unwrap();
                    println!("report {id} {n}");
                    if n.is_multiple_of(3) {
                        println!("done {id} {n}");
                        store.reports_done(vec![id]).await.unwrap();
                    }
                }
            });
        }
        workers.join_all().await;
    });
}

#[derive(Default)]
struct Acked {
    objects: BTreeMap<(String, u64), u64>,
    local: BTreeMap<String, u64>,
    reports: BTreeMap<u64, String>,
    done: BTreeSet<u64>,
    last_id: u64,
    count: usize,
}

impl Acked {
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, whose, n] = words[..] else { return };
        let Ok(number) = n.parse() else { return };
        match what {
            "object" => drop(self.objects.insert((whose.to_owned(), number % SLOTS), number)),
            "local" => drop(self.local.insert(whose.to_owned(), number)),
            "report" => {
                let id = whose.parse().unwrap();
                self.reports.insert(id, n.to_owned());
                self.last_id = self.last_id.max(id);
            }
            "done" => drop(self.done.insert(whose.parse().unwrap())),
            _ => return,
        }
        self.count += 1;
    }

    fn check(&self, store: &Store) {
        for ((worker, slot), acked) in &self.objects {
            let found = store.get(&key(&format!("Pod/{worker}/{slot}"))).unwrap();
            let found = found.map_or(0, |object| object.version.resource_version);
            assert!(found >= *acked, "object {slot} of {worker}: {found} instead of {acked}");
        }
        for (worker, acked) in &self.local {
            let value = store.local(&format!("worker-{worker}")).unwrap().unwrap();
            let found = u64::from_be_bytes(value[..].try_into().unwrap());
            assert!(found >= *acked, "local {worker}: {found} instead of {acked}");
        }
        let pending = store.pending_reports(0, usize::MAX).unwrap();
        let pending: BTreeMap<u64, Bytes> =
            pending.into_iter().map(|report| (report.id, report.payload)).collect();
        for (id, payload) in self.reports.iter().filter(|(id, _)| !self.done.contains(id)) {
            assert_eq!(pending.get(id).map(|found| &found[..]), Some(payload.as_bytes()), "report {id}");
        }
    }
}

#[tokio::test]
async fn kill_at_random_instants_loses_nothing_acked() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = Acked::default();
    // Any seed will do: where the kill hits is up to the scheduler anyway.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..50 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in output.lines() {
                sender.send(line.unwrap()).unwrap();
            }
        });
        // Every third round hits the start, the others the stream.
        let wait = Duration::from_micros(seed >> 33).min(Duration::from_millis((seed >> 40) % 250));
        if round % 3 != 0 {
            let line = lines.iter().find(|line| line.contains("opened"));
            let line = line.unwrap_or_else(|| panic!("round {round}: the child could not open the store"));
            assert!(!line.contains("damaged") && !line.contains("missing"), "round {round}: {line}");
        }
        let deadline = Instant::now() + wait;
        while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            acked.take(&line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        for line in &lines {
            acked.take(&line);
        }

        let store = open(dir.path());
        acked.check(&store);
        let id = store.report(ReportKind::NodeStatus, &key("Node//edge"), vec![round].into()).await.unwrap();
        assert!(id > acked.last_id, "id {id} after {}", acked.last_id);
        if round % 4 == 0 {
            store.close().await.unwrap();
        }
    }
    assert!(acked.count > 1000, "only {} acks in all rounds", acked.count);
}
