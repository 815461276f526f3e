//! Each target over its seeds, over what was kept for it, and for a moment over mutations of both, from a fixed seed.
//! `SKERRY_FUZZ_SEED` is another one, `SKERRY_FUZZ_SECONDS` how long a moment is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "it is all test, helpers too")]

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use fuzz::{
    Target,
    mutation::{Random, mutate},
};

const SEED: u64 = 1;
/// All targets together take two thirds of a minute on one core.
const SECONDS: f64 = 1.5;
/// Of one input: what takes longer is held up by something.
const SLOW: Duration = Duration::from_secs(20);

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn run(target: &Target, input: &[u8]) {
    let begun = Instant::now();
    let panicked = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err();
    if panicked || begun.elapsed() > SLOW {
        let path = target.corpus().join(format!("found-{:016x}", proto::resource::content_hash(input)));
        fs::create_dir_all(target.corpus()).unwrap();
        fs::write(&path, input).unwrap();
        panic!(
            "{} {}: its input is {}; again: cargo xtask fuzz {} --input {}",
            target.name,
            if panicked { "panicked" } else { "took too long" },
            path.display(),
            target.name,
            path.display()
        );
    }
}

fn replay_and_mutate(name: &str) {
    let target = Target::named(name).unwrap();
    let inputs = target.inputs().unwrap();
    assert!(!inputs.is_empty());
    for input in &inputs {
        run(&target, input);
    }
    let mut random = Random::new(number("SKERRY_FUZZ_SEED", SEED));
    let end = Instant::now() + Duration::from_secs_f64(number("SKERRY_FUZZ_SECONDS", SECONDS));
    let mut runs = 0_u64;
    while Instant::now() < end {
        run(&target, &mutate(&inputs, target.longest, &mut random));
        runs += 1;
    }
    eprintln!("{name}: {} inputs, {runs} mutations", inputs.len());
}

macro_rules! replays {
    ($($name:ident: $target:literal,)*) => {
        $(#[test]
        fn $name() {
            replay_and_mutate($target);
        })*

        #[test]
        fn no_target_is_left_out() {
            let here = [$($target),*];
            let there: Vec<_> = fuzz::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(here.as_slice(), there);
        }
    };
}

replays! {
    frame: "frame",
    message: "message",
    patch: "patch",
    names: "names",
    cloud_session: "cloud-session",
    edge_session: "edge-session",
    websocket: "websocket",
    pieces: "pieces",
    lengths: "lengths",
    proxy_answer: "proxy-answer",
    token: "token",
    csr: "csr",
    certificate: "certificate",
    report: "report",
    pod: "pod",
    runtime_status: "runtime-status",
    identity: "identity",
    record: "record",
    store_file: "store-file",
    sound_file: "sound-file",
    cloudcore_yaml: "cloudcore-yaml",
    edgecore_yaml: "edgecore-yaml",
    proxy_url: "proxy-url",
    quantity: "quantity",
}
