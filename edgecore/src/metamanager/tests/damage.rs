//! The files of a store that is not open, each cut short and each with flipped bytes: what one of them lost, others have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::PathBuf,
    time::Instant,
};

use harness::random::Random;
use tempfile::TempDir;

use super::{
    journal::FILE_HEADER,
    record::{HEADER, Op},
    *,
};

/// sled is waited for a minute. Whoever takes this long has shown it damaged files.
const LIMIT: Duration = Duration::from_secs(10);

/// Of sled's file, which it takes in such steps.
const SEGMENT: usize = 512 << 10;

/// At the start and at the end of a file's used part: sled's and our own headers are there.
const EDGE: usize = 1 << 10;

/// One case in so many goes on to be used, stopped and opened again.
const FURTHER: usize = 64;

const KINDS: [&str; 3] = ["ConfigMap", "Pod", "Secret"];

/// How much is in a store.
#[derive(Clone, Copy)]
struct Scale {
    objects: usize,
    /// Of the text of most objects, and of one in 32.
    words: [u64; 2],
    /// How often some of it was changed between two stops.
    rounds: usize,
}

/// Files so short that each byte can be tried.
const SMALL: Scale = Scale { objects: 6, words: [8, 8], rounds: 2 };
/// An index of several segments, and objects of several of its parts.
const LARGE: Scale = Scale { objects: 200, words: [16, 1500], rounds: 16 };

fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap()
}

fn text(random: &mut Random, scale: Scale) -> Bytes {
    let [most, some] = scale.words;
    let bound = if random.below(32) == 0 { some } else { most };
    let words = 1 + random.below(bound);
    random.words(words).into()
}

fn object(random: &mut Random, scale: Scale) -> Object {
    numbered(below(random, scale.objects), scale, random)
}

fn numbered(n: usize, scale: Scale, random: &mut Random) -> Object {
    let kind = KINDS[n % KINDS.len()];
    Object::new(key(&format!("{kind}/default/o{n}")), random.number() >> 40, text(random, scale))
}

async fn fill(store: &Store, scale: Scale, random: &mut Random) {
    let puts = (0..scale.objects).map(|n| DesiredChange::Put(numbered(n, scale, random)));
    store.apply(puts.collect()).await.unwrap();
    for n in 0..scale.objects / 4 {
        store.put_local(&format!("pod/{n}"), text(random, scale)).await.unwrap();
    }
}

/// What a while of running does: objects are replaced and deleted, reports made and taken.
async fn change(store: &Store, scale: Scale, random: &mut Random) {
    for _ in 0..=scale.objects / 16 {
        let changes = (0..4).map(|_| {
            let object = object(random, scale);
            if random.below(8) == 0 { DesiredChange::Delete(object.key) } else { DesiredChange::Put(object) }
        });
        store.apply(changes.collect()).await.unwrap();
        let kind = if random.below(2) == 0 { ReportKind::Event } else { ReportKind::PodStatus };
        let about = key(&format!("Pod/default/o{}", random.below(8)));
        let payload = random.number().to_be_bytes();
        let id = store.report(kind, &about, Bytes::copy_from_slice(&payload)).await.unwrap();
        if random.below(3) == 0 {
            store.reports_done(vec![id]).await.unwrap();
        }
        let local = format!("pod/{}", below(random, scale.objects / 2));
        store.put_local(&local, text(random, scale)).await.unwrap();
    }
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

/// The paths of all files below `dir`, relative to it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = PathBuf::from(entry.file_name());
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).iter().map(|inner| name.join(inner)));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn open(dir: &Path, place: &str) -> Store {
    let begun = Instant::now();
    let store = Store::open(dir, Options::default()).unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(begun.elapsed() < LIMIT, "{place}: opening took {:?}", begun.elapsed());
    store
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    objects: BTreeMap<ResourceKey, Object>,
    reports: BTreeMap<u64, Report>,
    local: BTreeMap<String, Bytes>,
    dropped_reports: u64,
}

impl Content {
    fn of(store: &Store) -> Self {
        let objects = KINDS.iter().flat_map(|kind| store.list(kind).unwrap());
        let reports = store.pending_reports(0, usize::MAX).unwrap();
        let found = Self {
            objects: objects.map(|object| (object.key.clone(), object)).collect(),
            reports: reports.into_iter().map(|report| (report.id, report)).collect(),
            local: store.list_local("").unwrap().into_iter().collect(),
            dropped_reports: store.dropped_reports(),
        };
        let versions = found.objects.values().map(|object| (&object.key, object.version.hash));
        assert_eq!(store.digest(), versions.collect::<Digest>());
        found
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::PutObject(object) => drop(self.objects.insert(object.key.clone(), object)),
            Op::DeleteObject(key) => drop(self.objects.remove(&key)),
            Op::PutReport(record::StoredReport { id, kind, key, payload }) => {
                let payload = payload.unpack().unwrap();
                self.reports.insert(id, Report { id, kind, key, payload });
            }
            Op::RemoveReport(id) => drop(self.reports.remove(&id)),
            Op::DropReport(id) => {
                self.reports.remove(&id);
                self.dropped_reports += 1;
            }
            Op::PutLocal(key, value) => drop(self.local.insert(key, value)),
            Op::DeleteLocal(key) => drop(self.local.remove(&key)),
            Op::Counters { dropped_reports, .. } => self.dropped_reports = dropped_reports,
            Op::End(_) => {}
        }
    }

    /// Whether there is nothing in it that is not in `other` too.
    fn is_part_of(&self, other: &Self) -> bool {
        self.objects.iter().all(|(key, object)| other.objects.get(key) == Some(object))
            && self.reports.iter().all(|(id, report)| other.reports.get(id) == Some(report))
            && self.local.iter().all(|(key, value)| other.local.get(key) == Some(value))
    }

    /// Short enough for a failure's message.
    fn sizes(&self) -> [usize; 3] {
        [self.objects.len(), self.reports.len(), self.local.len()]
    }
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut(usize),
    Flip { at: usize, bits: u8 },
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(length) => bytes.truncate(length),
            Self::Flip { at, bits } => bytes[at] ^= bits,
        }
    }

    fn spares(self, record: &Range<usize>) -> bool {
        match self {
            Self::Cut(length) => record.end <= length,
            Self::Flip { at, .. } => !record.contains(&at),
        }
    }
}

fn cuts(lengths: impl IntoIterator<Item = usize>) -> impl Iterator<Item = Damage> {
    lengths.into_iter().map(Damage::Cut)
}

fn flips(places: impl IntoIterator<Item = usize>) -> impl Iterator<Item = Damage> {
    places.into_iter().map(|at| Damage::Flip { at, bits: 1 << (at % 8) })
}

/// Length up to which there is something else than zeros.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Places in a file that is too long to try all: around powers of two and `borders`, and some that nobody chose.
fn places(bytes: &[u8], borders: &[usize], random: &mut Random) -> BTreeSet<usize> {
    let powers = (0..usize::BITS).map(|power| 1 << power);
    let near = powers.flat_map(|at: usize| at - 1..=at + 1);
    let near = near.chain(borders.iter().flat_map(|at| at.saturating_sub(2)..at + HEADER + 2));
    let anywhere = (0..100).map(|_| below(random, bytes.len()));
    near.chain(anywhere).filter(|at| *at < bytes.len()).collect()
}

/// Each place at the start and at the end of what is used of a file.
fn edges(bytes: &[u8]) -> BTreeSet<usize> {
    let used = used(bytes);
    (0..EDGE.min(used)).chain(used.saturating_sub(EDGE)..used).collect()
}

/// The records of a journal or checkpoint, and where they are.
fn records(bytes: &[u8]) -> Vec<(Range<usize>, Vec<Op>)> {
    let mut found = Vec::new();
    let mut start = FILE_HEADER;
    while let Some(length) = bytes.get(start..start + 4) {
        let length = u32::from_le_bytes(length.try_into().unwrap());
        let end = start + HEADER + usize::try_from(length).unwrap();
        let payload = Bytes::copy_from_slice(&bytes[start + HEADER..end]);
        found.push((start..end, Op::decode_all(payload).unwrap()));
        start = end;
    }
    found
}

fn borders(bytes: &[u8]) -> Vec<usize> {
    std::iter::once(0)
        .chain(records(bytes).iter().map(|(place, _)| place.start))
        .chain([bytes.len()])
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The index is to be taken over.
    Clean,
    /// A kill in the middle of its work.
    Unclean,
}

/// A store that is not open.
struct Stopped {
    dir: TempDir,
    content: Content,
    end: End,
}

impl Stopped {
    /// Its index was opened a second time, and both of its checkpoints have something in them.
    async fn new(scale: Scale, end: End, random: &mut Random) -> Self {
        let dir = tempdir();
        // Room for the state of all pods and for some events.
        let options = Options { outbox_bytes: 1000 + scale.objects as u64 * 4, ..Options::default() };
        let store = Store::open(dir.path(), options).unwrap();
        fill(&store, scale, random).await;
        store.close().await.unwrap();
        let store = Store::open(dir.path(), options).unwrap();
        for _ in 0..scale.rounds {
            change(&store, scale, random).await;
        }
        if end == End::Clean {
            let content = Content::of(&store);
            store.close().await.unwrap();
            return Self { dir, content, end };
        }
        store.close().await.unwrap();
        let store = Store::open(dir.path(), options).unwrap();
        change(&store, scale, random).await;
        let killed = tempdir();
        copy(dir.path(), killed.path());
        Self { dir: killed, content: Content::of(&store), end }
    }

    /// Of a kind, newest last.
    fn files(&self, kind: &str) -> Vec<PathBuf> {
        files(self.dir.path()).into_iter().filter(|file| is(file, kind)).collect()
    }

    fn newest(&self, kind: &str) -> PathBuf {
        self.files(kind).pop().unwrap()
    }

    fn read(&self, file: &Path) -> Vec<u8> {
        fs::read(self.dir.path().join(file)).unwrap()
    }

    fn remove(&self, file: &Path) {
        fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    fn damaged(&self, damages: &[(&Path, Damage)]) -> TempDir {
        let dir = tempdir();
        copy(self.dir.path(), dir.path());
        for (file, damage) in damages {
            let mut bytes = self.read(file);
            damage.apply(&mut bytes);
            fs::write(dir.path().join(file), bytes).unwrap();
        }
        dir
    }

    /// What damage to a file has to be told as. Nothing, if the file is not read.
    fn told(&self, file: &Path) -> &'static [&'static str] {
        match self.end {
            End::Clean if is(file, "sled") => &["its files have changed"],
            End::Clean if is(file, "clean") => &["the clean-stop marker is damaged"],
            End::Clean if *file == self.newest("journal") => {
                &["the journal is not empty", "the header of journal"]
            }
            // Of reports sled has nothing.
            End::Clean if *file == self.newest("checkpoint") => &["is damaged", "is damaged"],
            End::Unclean if *file == self.newest("checkpoint") => &["is damaged"],
            _ => &[],
        }
    }

    /// Whatever is done to this file, all is there.
    async fn survives(&self, file: &Path, damages: impl IntoIterator<Item = Damage>) {
        let told = self.told(file);
        let trusted = self.end == End::Clean && told.is_empty();
        for (number, damage) in damages.into_iter().enumerate() {
            let place = format!("{:?} end, {}: {damage:?}", self.end, file.display());
            let dir = self.damaged(&[(file, damage)]);
            let store = open(dir.path(), &place);
            let opened = store.opened();
            let found = Content::of(&store);
            assert!(found == self.content, "{place}: {:?}, {opened:?}", found.sizes());
            let healed = &opened.healed;
            let as_told = healed.iter().zip(told).all(|(found, told)| found.contains(told));
            assert!(as_told && healed.len() == told.len(), "{place}: {opened:?}");
            assert_eq!(opened.clean, trusted, "{place}: {opened:?}");
            let kept = self.files("sled").iter().any(|file| dir.path().join(file).exists());
            assert_eq!(kept, trusted, "{place}: {:?}", files(dir.path()));
            if number % FURTHER == 0 {
                goes_on(&dir, store, &self.content, &place).await;
            }
        }
    }

    /// Cut at every length, and each byte flipped. Of a file that is not read, some.
    async fn survives_all(&self, file: &Path) {
        let used = used(&self.read(file));
        let every = if self.told(file).is_empty() { 8 } else { 1 };
        self.survives(file, cuts((0..used).step_by(every))).await;
        self.survives(file, flips((0..used).step_by(every))).await;
    }

    /// What can be had from these files, oldest first, after the damage.
    fn whole_records(&self, files: &[PathBuf], damages: &[(&Path, Damage)]) -> Content {
        let mut content = Content::default();
        for file in files {
            let damages = damages.iter().filter(|(damaged, _)| damaged == file);
            for (place, ops) in records(&self.read(file)) {
                if damages.clone().all(|(_, damage)| damage.spares(&place)) {
                    for op in ops {
                        content.apply(op);
                    }
                }
            }
        }
        content
    }

    /// No checkpoint is whole: what is readable is there, and nothing else.
    fn is_salvaged(&self, files: &[PathBuf], damages: &[(&Path, Damage)]) {
        let place = format!("{damages:?}");
        let expected = self.whole_records(files, damages);
        assert!(expected.is_part_of(&self.content), "{place}: the test expects what never was");
        let dir = self.damaged(damages);
        let store = open(dir.path(), &place);
        let (opened, mut found) = (store.opened(), Content::of(&store));
        // The count may have been in what is lost.
        found.dropped_reports = expected.dropped_reports;
        assert!(found == expected, "{place}: {:?} of {:?}, {opened:?}", found.sizes(), expected.sizes());
        let told = opened.healed.iter().any(|healed| healed.contains("no whole checkpoint"));
        assert!(!opened.clean && told, "{place}: {opened:?}");
    }
}

fn is(file: &Path, kind: &str) -> bool {
    file.to_str().unwrap().starts_with(kind)
}

/// It takes changes, over a kill and over a clean stop.
async fn goes_on(dir: &TempDir, store: Store, content: &Content, place: &str) {
    let last = content.reports.last_key_value().map_or(0, |(id, _)| *id);
    let id = store.report(ReportKind::NodeStatus, &key("Node//after"), Bytes::new()).await.unwrap();
    assert!(id > last, "{place}: id {id} after {last}");
    store.reports_done(vec![id]).await.unwrap();
    store.put_local("after", Bytes::new()).await.unwrap();
    let mut content = content.clone();
    content.local.insert("after".to_owned(), Bytes::new());
    drop(store);
    let store = open(dir.path(), place);
    assert!(Content::of(&store) == content, "{place}: after a kill: {:?}", store.opened());
    store.close().await.unwrap();
    let store = open(dir.path(), place);
    assert!(Content::of(&store) == content, "{place}: after a stop: {:?}", store.opened());
    assert!(store.opened().clean && store.opened().healed.is_empty(), "{place}: {:?}", store.opened());
}

#[tokio::test]
async fn after_a_clean_stop_no_damaged_byte_costs_anything() {
    let stopped = Stopped::new(SMALL, End::Clean, &mut Random::seeded("clean").unwrap()).await;
    for file in ["sled", "checkpoint", "journal", "clean"].iter().flat_map(|kind| stopped.files(kind)) {
        stopped.survives_all(&file).await;
    }
}

/// But for those of the newest journal, whose records are nowhere else.
#[tokio::test]
async fn after_a_kill_no_damaged_byte_costs_anything() {
    let stopped = Stopped::new(SMALL, End::Unclean, &mut Random::seeded("kill").unwrap()).await;
    for file in ["sled", "checkpoint", "journal"].iter().flat_map(|kind| stopped.files(kind)) {
        if file != stopped.newest("journal") {
            stopped.survives_all(&file).await;
        }
    }
}

#[tokio::test]
async fn a_damaged_index_of_hundreds_of_objects_is_rebuilt() {
    let mut random = Random::seeded("index").unwrap();
    // Of 16 rounds one seed or another leaves a single segment.
    let stopped = Stopped::new(Scale { rounds: 32, ..LARGE }, End::Clean, &mut random).await;
    for file in stopped.files("sled") {
        let bytes = stopped.read(&file);
        let mut borders: Vec<usize> = (0..bytes.len()).step_by(SEGMENT).collect();
        borders.extend([used(&bytes), bytes.len()]);
        let places = places(&bytes, &borders, &mut random);
        stopped.survives(&file, cuts(places.clone())).await;
        stopped.survives(&file, flips(places)).await;
        if file.ends_with("db") {
            assert!(bytes.len() > SEGMENT, "a single segment");
            stopped.survives(&file, flips(edges(&bytes))).await;
        }
    }
}

#[tokio::test]
async fn a_damaged_checkpoint_of_hundreds_of_objects_costs_nothing() {
    let mut random = Random::seeded("checkpoint").unwrap();
    // A damaged checkpoint is made up for by the journal before it: a long one would only take its time.
    let stopped = Stopped::new(Scale { rounds: 1, ..LARGE }, End::Unclean, &mut random).await;
    let [older, newest] = &stopped.files("checkpoint")[..] else { panic!("two checkpoints are kept") };
    let bytes = stopped.read(newest);
    let places = places(&bytes, &borders(&bytes), &mut random);
    stopped.survives(newest, cuts(places.clone())).await;
    stopped.survives(newest, flips(&edges(&bytes) | &places)).await;
    let some = |length| (0..length).step_by(length / 50);
    for file in stopped.files("sled").iter().chain([older]) {
        let length = stopped.read(file).len();
        stopped.survives(file, cuts(some(length))).await;
        stopped.survives(file, flips(some(length))).await;
    }
}

#[tokio::test]
async fn a_damaged_checkpoint_beside_a_damaged_index_costs_nothing() {
    let mut random = Random::seeded("both").unwrap();
    let stopped = Stopped::new(LARGE, End::Clean, &mut random).await;
    let checkpoint = stopped.newest("checkpoint");
    let length = stopped.read(&checkpoint).len();
    for index in stopped.files("sled") {
        let used = used(&stopped.read(&index));
        for number in 0..40 {
            let mut damage = |length| {
                let at = below(&mut random, length);
                if number % 2 == 0 {
                    Damage::Cut(at)
                } else {
                    Damage::Flip { at, bits: 1 << random.below(8) }
                }
            };
            let damages = [(&*index, damage(used)), (&*checkpoint, damage(length))];
            let place = format!("{damages:?}");
            let dir = stopped.damaged(&damages);
            let store = open(dir.path(), &place);
            assert!(Content::of(&store) == stopped.content, "{place}: {:?}", store.opened());
            assert_eq!(store.opened().healed.len(), 2, "{place}: {:?}", store.opened());
            if number == 0 {
                goes_on(&dir, store, &stopped.content, &place).await;
            }
        }
    }
}

/// An index that was taken over hides that the checkpoint below it is damaged, until it is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_above_a_damaged_checkpoint_can_be_built_again() {
    let mut random = Random::seeded("hidden").unwrap();
    let stopped = Stopped::new(LARGE, End::Clean, &mut random).await;
    let checkpoint = stopped.newest("checkpoint");
    let bytes = stopped.read(&checkpoint);
    for damage in cuts([0, FILE_HEADER, bytes.len() / 2]).chain(flips([0, FILE_HEADER, bytes.len() - 1])) {
        let dir = stopped.damaged(&[(&checkpoint, damage)]);
        let store = open(dir.path(), "hidden");
        store.put_local("pod/0", Bytes::from_static(b"newer")).await.unwrap();
        let mut content = stopped.content.clone();
        content.local.insert("pod/0".to_owned(), Bytes::from_static(b"newer"));
        let healed = tokio::task::spawn_blocking({
            let store = store.clone();
            move || store.heal(0)
        });
        assert!(healed.await.unwrap(), "{damage:?}");
        assert_eq!(store.inner.shared.read().generation, 1, "{damage:?}: the index was not built again");
        assert!(Content::of(&store) == content, "{damage:?}: {:?}", Content::of(&store).sizes());
    }
}

#[tokio::test]
async fn of_the_only_checkpoint_each_whole_record_is_kept() {
    let mut random = Random::seeded("only").unwrap();
    let stopped = Stopped::new(LARGE, End::Unclean, &mut random).await;
    for kind in ["checkpoint", "journal"] {
        stopped.remove(&stopped.files(kind)[0]);
    }
    let files = [stopped.newest("checkpoint"), stopped.newest("journal")];
    let bytes = stopped.read(&files[0]);
    assert!(records(&bytes).len() > 2, "too few records");
    let places = places(&bytes, &borders(&bytes), &mut random);
    for damage in cuts(places.clone()).chain(flips(places)) {
        stopped.is_salvaged(&files, &[(&files[0], damage)]);
    }
}

#[tokio::test]
async fn of_two_damaged_checkpoints_each_whole_record_is_kept() {
    let mut random = Random::seeded("two").unwrap();
    let stopped = Stopped::new(LARGE, End::Unclean, &mut random).await;
    let (checkpoints, journals) = (stopped.files("checkpoint"), stopped.files("journal"));
    let [older, newest] = &checkpoints[..] else { panic!("two checkpoints are kept") };
    let files = [older.clone(), journals[0].clone(), newest.clone(), journals[1].clone()];
    let lengths = [older, newest].map(|file| stopped.read(file).len());
    for number in 0..200 {
        let [of_older, of_newest] = lengths.map(|length| {
            let at = below(&mut random, length);
            if number % 2 == 0 { Damage::Cut(at) } else { Damage::Flip { at, bits: 1 << random.below(8) } }
        });
        stopped.is_salvaged(&files, &[(older, of_older), (newest, of_newest)]);
    }
}
