use std::os::unix::fs::{MetadataExt as _, symlink};

use super::{
    atomic::{File, Files},
    *,
};

fn files(list: &[(&str, &str)]) -> Files {
    list.iter()
        .map(|(path, text)| (PathBuf::from(path), File { content: text.as_bytes().to_vec(), mode: 0o640 }))
        .collect()
}

#[test]
fn contents_change_all_at_once_and_only_when_they_differ() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    atomic::write(root, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
    assert_eq!((read("a"), read("sub/b")), (Some("1".to_owned()), Some("2".to_owned())));
    assert_eq!(fs::metadata(root.join("a")).unwrap().mode() & 0o777, 0o640);
    let first = fs::read_link(root.join("..data")).unwrap();

    atomic::write(root, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
    assert_eq!(fs::read_link(root.join("..data")).unwrap(), first, "written though nothing changed");

    atomic::write(root, &files(&[("a", "3"), ("c", "4")]), None).unwrap();
    assert_eq!((read("a"), read("c"), read("sub/b")), (Some("3".to_owned()), Some("4".to_owned()), None));
    assert!(!root.join(first).exists(), "the old version is still there");

    // A power cut tore a file.
    fs::write(root.join("..data").join("a"), "").unwrap();
    atomic::write(root, &files(&[("a", "3"), ("c", "4")]), None).unwrap();
    assert_eq!(read("a"), Some("3".to_owned()));
    // And one between two steps left a directory and a link that nobody reads.
    fs::create_dir(root.join("..half")).unwrap();
    symlink("..half", root.join("..data_tmp")).unwrap();
    atomic::write(root, &files(&[("a", "5")]), None).unwrap();
    assert_eq!((read("a"), read("c")), (Some("5".to_owned()), None));
    assert_eq!(fs::read_dir(root).unwrap().count(), 3);
}

#[test]
fn a_sub_path_does_not_leave_its_volume() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("volume");
    let slot = directory.path().join("slot");
    fs::create_dir_all(&root).unwrap();
    symlink("/etc", root.join("out")).unwrap();
    for path in ["../x", "/etc", "out/passwd", "out", "a/../../x"] {
        assert!(sub_path::bind("v", &root, path, &slot).is_err(), "{path} was taken");
    }
    // Mounting needs rights that a plain user has not.
    if rustix::process::geteuid().is_root() {
        ownership::give(&root, 1234).unwrap();
        fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o2777)).unwrap();
        sub_path::bind("v", &root, "of/group", &slot).unwrap();
        let made = fs::metadata(&slot).unwrap();
        assert_eq!((made.gid(), made.mode() & 0o7777), (1234, 0o2777));
        rustix::mount::unmount(&slot, UnmountFlags::NOFOLLOW).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        sub_path::bind("v", &root, "deep/er", &slot).unwrap();
        fs::write(root.join("deep/er/file"), "x").unwrap();
        assert_eq!(fs::read_to_string(slot.join("file")).unwrap(), "x");
        rustix::mount::unmount(&slot, UnmountFlags::NOFOLLOW).unwrap();
    }
}
