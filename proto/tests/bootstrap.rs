//! Generates the checked-in code of `src/gen` again and fails when it differs.
//! `SKERRY_REGENERATE=1 cargo test -p proto --test bootstrap` writes it.

use std::{env, fs, path::Path};

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    let files = protox::compile(["cri/api.proto", "containerd/tasks.proto"], [root.join("protos")]).unwrap();
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        // These two may hold secrets: `src/cri.rs` has a Debug that leaves them out.
        .skip_debug([".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"])
        .out_dir(fresh.path())
        .compile_fds(files)
        .unwrap();
    let files = protox::compile(["dmi/api.proto"], [root.join("protos")]).unwrap();
    tonic_prost_build::configure().build_transport(false).out_dir(fresh.path()).compile_fds(files).unwrap();

    for entry in fs::read_dir(fresh.path()).unwrap() {
        let entry = entry.unwrap();
        let generated = fs::read_to_string(entry.path()).unwrap();
        let kept = root.join("src/gen").join(entry.file_name());
        if env::var_os("SKERRY_REGENERATE").is_some() {
            fs::write(&kept, &generated).unwrap();
        }
        let current = fs::read_to_string(&kept).unwrap_or_default();
        assert!(
            current == generated,
            "{} is out of date: set SKERRY_REGENERATE=1 and run again",
            kept.display()
        );
    }
}
