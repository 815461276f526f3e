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
