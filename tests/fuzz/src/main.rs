//! One target under libFuzzer, whose arguments these are; `SKERRY_FUZZ_TARGET` names it, and the directory `SKERRY_FUZZ_SEEDS`
//! gets its seeds first. `cargo xtask fuzz` builds and runs this.

#![no_main]
#![allow(
    unsafe_code,
    unreachable_pub,
    clippy::print_stdout,
    clippy::exit,
    reason = "libFuzzer has the entry point, and calls in by name"
)]

use std::{env, fs, path::Path, process, sync::OnceLock};

use fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target that the environment names, with its seeds in place.
fn choose() -> Target {
    let name = env::var("SKERRY_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = Target::named(&name) else {
        // `list`, or what is none.
        for target in TARGETS {
            println!("{}", target.name);
        }
        process::exit(i32::from(name != "list"));
    };
    if let Some(directory) = env::var_os("SKERRY_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let path = Path::new(&directory).join(format!("seed-{number}"));
            fs::write(&path, seed).expect("the directory of the seeds can be written to");
        }
    }
    target
}

libfuzzer_sys::fuzz_target!(
    init: {
        TARGET.get_or_init(choose);
    },
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(bytes.get(..target.longest).unwrap_or(bytes));
        }
    }
);
