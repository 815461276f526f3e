//! What only the inside of the store can bring about: a sync that fails, an index that breaks.

mod damage;

use std::path::Path;

use super::*;

fn options() -> Options {
    Options { outbox_bytes: 4 << 10, ..Options::default() }
}

fn key(text: &str) -> ResourceKey {
    text.parse().unwrap()
}

fn object(name: &str, bytes: &str) -> Object {
    Object::new(key(&format!("ConfigMap/default/{name}")), 1, Bytes::copy_from_slice(bytes.as_bytes()))
}

fn journals(dir: &Path) -> Vec<u64> {
    let mut found: Vec<u64> = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            u64::from_str_radix(name.strip_prefix("journal.")?, 16).ok()
        })
        .collect();
    found.sort_unstable();
    found
}

#[tokio::test]
async fn a_journal_whose_sync_failed_is_never_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    store.apply(vec![DesiredChange::Put(object("a", "1"))]).await.unwrap();
    let before = (store.digest(), journals(dir.path()));
    store.fail_next_sync().await.unwrap();
    let failed = store.apply(vec![DesiredChange::Put(object("a", "2"))]).await;
    assert!(matches!(failed, Err(StoreError::Journal { .. })), "{failed:?}");
    assert_eq!(store.digest(), before.0);
    assert_eq!(store.get(&key("ConfigMap/default/a")).unwrap(), Some(object("a", "1")));
    store.apply(vec![DesiredChange::Put(object("b", "3"))]).await.unwrap();
    assert!(journals(dir.path()).last() > before.1.last(), "the same journal was used again");
    drop(store);
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.list("ConfigMap").unwrap(), [object("a", "1"), object("b", "3")]);
    assert_eq!(store.opened().healed, Vec::<String>::new());
}

#[tokio::test]
async fn a_failed_report_leaves_the_outbox_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let pod = key("Pod/default/web");
    let first = store.report(ReportKind::PodStatus, &pod, Bytes::from_static(b"1")).await.unwrap();
    store.fail_next_sync().await.unwrap();
    store.report(ReportKind::PodStatus, &pod, Bytes::from_static(b"2")).await.unwrap_err();
    let again = store.report(ReportKind::PodStatus, &pod, Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(again, first, "the pending report was forgotten");
    let next = store.report(ReportKind::PodStatus, &pod, Bytes::from_static(b"2")).await.unwrap();
    assert!(next > first);
    let pending: Vec<u64> = store.pending_reports(0, 10).unwrap().iter().map(|report| report.id).collect();
    assert_eq!(pending, [next]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_index_is_built_again_under_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    store.apply(vec![DesiredChange::Put(object("a", &"x".repeat(10_000)))]).await.unwrap();
    let device = key("Device.devices.kubeedge.io/a/pump");
    let said = |text: &'static [u8]| {
        let store = store.clone();
        let device = device.clone();
        async move {
            store.report_in_memory(ReportKind::DeviceStatus, &device, Bytes::from_static(text)).await.unwrap()
        }
    };
    let id = said(b"1").await;
    // An entry whose head promises more than there is.
    if let Some(Index::Sled { trees, .. }) = &store.inner.shared.read().index {
        let mut part = index::object_key(&key("ConfigMap/default/a"));
        part.extend_from_slice(&[0, 1]);
        trees[Table::Objects as usize].remove(part).unwrap().unwrap();
    } else {
        panic!("sled was not used");
    }
    let read = tokio::task::spawn_blocking({
        let store = store.clone();
        move || store.list("ConfigMap")
    });
    assert_eq!(read.await.unwrap().unwrap(), [object("a", &"x".repeat(10_000))]);
    assert_eq!((said(b"1").await, store.pending()), (id, 1), "what was in memory alone");
    assert!(said(b"2").await > id && store.pending() == 1);
    store.apply(vec![DesiredChange::Delete(key("ConfigMap/default/a"))]).await.unwrap();
    assert_eq!(store.digest(), Digest::default());
    store.close().await.unwrap();
}

/// An index with holes would have edged remove the pods that it lacks.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_whole_is_not_put_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    for name in ["a", "b", "c"] {
        store.apply(vec![DesiredChange::Put(object(name, name))]).await.unwrap();
    }
    let (journal, digest) = (journals(dir.path()).pop().unwrap(), store.digest());
    let journal = dir.path().join(format!("journal.{journal:016x}"));
    let whole = std::fs::read(&journal).unwrap();
    let mut damaged = whole.clone();
    damaged[80] ^= 1;
    std::fs::write(&journal, &damaged).unwrap();
    let healed = tokio::task::spawn_blocking({
        let store = store.clone();
        move || store.heal(0)
    });
    healed.await.unwrap();
    assert_eq!((store.digest(), store.list("ConfigMap").unwrap().len()), (digest, 3));
    // Nothing more is taken until it can be: the next checkpoint would make the holes last.
    store.apply(vec![DesiredChange::Put(object("d", "d"))]).await.unwrap_err();
    assert_eq!(store.list("ConfigMap").unwrap().len(), 3);
    std::fs::write(&journal, &whole).unwrap();
    store.apply(vec![DesiredChange::Put(object("d", "d"))]).await.unwrap();
    store.close().await.unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!((store.opened().clean, store.list("ConfigMap").unwrap().len()), (true, 4));
}

/// It is in one place only. What came before and after it goes up.
#[tokio::test]
async fn a_report_that_is_damaged_on_the_disk_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { journal_bytes: 2000, ..options() };
    let store = Store::open(dir.path(), options).unwrap();
    let pod = key("Pod/default/web");
    let event =
        |text: &'static str| store.report(ReportKind::Event, &pod, Bytes::from_static(text.as_bytes()));
    let mut ids = Vec::new();
    for text in ["before", "damaged", "after"] {
        ids.push(event(text).await.unwrap());
    }
    let journal = dir.path().join(format!("journal.{:016x}", journals(dir.path()).pop().unwrap()));
    let mut bytes = std::fs::read(&journal).unwrap();
    let at = bytes.windows(7).position(|window| window == b"damaged").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    let pending = || store.pending_reports(0, 2).unwrap().iter().map(|report| report.id).collect::<Vec<_>>();
    assert_eq!((pending(), store.dropped_reports()), (vec![ids[0], ids[2]], 0));
    while store.dropped_reports() == 0 {
        store.put_local("filler", store.bytes_written().to_string().into()).await.unwrap();
        assert!(store.bytes_written() < 1 << 20, "the checkpoint has taken it over");
    }
    assert_eq!(pending(), [ids[0], ids[2]]);
    store.close().await.unwrap();
    let store = Store::open(dir.path(), options).unwrap();
    let pending = store.pending_reports(0, 9).unwrap();
    assert_eq!(
        pending.iter().map(|report| &report.payload[..]).collect::<Vec<_>>(),
        [&b"before"[..], b"after"]
    );
    assert_eq!((store.opened().clean, store.dropped_reports()), (true, 1));
}

/// Whatever the file is that they are in.
#[tokio::test]
async fn reports_are_read_from_wherever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { outbox_bytes: 1 << 20, journal_bytes: 3000 };
    let mut store = Store::open(dir.path(), options).unwrap();
    let mut expected = std::collections::BTreeMap::new();
    let read = |store: &Store| {
        let pending = store.pending_reports(0, usize::MAX).unwrap().into_iter();
        pending.map(|report| (report.id, report.payload)).collect::<std::collections::BTreeMap<_, _>>()
    };
    for n in 0..400_u64 {
        let kind = if n % 5 == 0 { ReportKind::PodStatus } else { ReportKind::Event };
        let pod = key(&format!("Pod/default/web-{n}"));
        let payload = Bytes::from(format!("{n} {}", "x".repeat((n * 7 % 300) as usize)));
        let id = store.report(kind, &pod, payload.clone()).await.unwrap();
        expected.insert(id, payload);
        if n % 3 == 0 {
            let done = *expected.keys().nth(expected.len() / 2).unwrap();
            store.reports_done(vec![done]).await.unwrap();
            expected.remove(&done);
        }
        if n % 50 == 49 {
            assert_eq!(read(&store), expected, "{n}");
            if n % 100 == 99 {
                store.close().await.unwrap();
            } else {
                drop(store);
            }
            store = Store::open(dir.path(), options).unwrap();
            assert_eq!(read(&store), expected, "{n}, opened again");
        }
    }
    let statuses = store.pending_statuses(0, usize::MAX).unwrap();
    let all = store.pending_reports(0, usize::MAX).unwrap();
    let wanted: Vec<_> =
        all.iter().filter(|report| report.kind() == ReportKind::PodStatus).cloned().collect();
    assert!(!wanted.is_empty() && statuses == wanted);
    assert_eq!(store.pending_statuses(wanted[0].id, 2).unwrap(), wanted[1..3]);
}

/// Of a version before reports were packed.
#[tokio::test]
async fn a_report_of_an_earlier_version_goes_up() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), options()).unwrap());
    let epoch = journals(dir.path()).pop().unwrap();
    let path = dir.path().join(format!("journal.{epoch:016x}"));
    let mut journal = std::fs::read(&path).unwrap();
    let payload = record::Payload::Plain(Bytes::from_static(b"{}"));
    let report = record::StoredReport { id: 7, kind: 4, key: "Pod/default/web".to_owned(), payload };
    journal::append_ops(&mut journal, epoch, 1, 0, &[record::Op::PutReport(report)]);
    std::fs::write(&path, journal).unwrap();
    // From the journal, and from the checkpoint that takes it over.
    for _ in 0..2 {
        let store = Store::open(dir.path(), options()).unwrap();
        assert_eq!(store.opened().healed, Vec::<String>::new());
        let pending = store.pending_reports(0, 9).unwrap();
        assert_eq!(
            pending.iter().map(|report| (report.id, &report.payload[..])).collect::<Vec<_>>(),
            [(7, &b"{}"[..])]
        );
    }
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.report(ReportKind::Event, &key("Pod/default/web"), Bytes::new()).await.unwrap(), 8);
}
