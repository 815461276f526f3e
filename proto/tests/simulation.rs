//! The sync protocol under everything that may happen to it, simulated: real sessions and real bytes; lines,
//! disks, caches, the API server and time are models that one seed drives.
//!
//! `SKERRY_SIMULATION_SEED=N` runs that seed alone and prints its trace, with the fault that `SKERRY_SIMULATION_FAULT`
//! names. Beyond the fixed seeds new ones are run for `SKERRY_SIMULATION_SECONDS` (20).

mod simulation {
    pub(crate) mod api;
    pub(crate) mod cache;
    pub(crate) mod claim;
    pub(crate) mod cloud;
    pub(crate) mod disk;
    pub(crate) mod edge;
    pub(crate) mod faults;
    pub(crate) mod link;
    pub(crate) mod rng;
    pub(crate) mod world;
}

use std::{
    env,
    fmt::Debug,
    time::{Duration, Instant, SystemTime},
};

use simulation::{
    faults::Fault,
    world::{Options, Run, run},
};

/// Seeds that are always run: 0 to this.
const SEEDS: u64 = 512;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("the variable is a number"))
}

/// The one of `all` that a variable names.
fn named<T: Copy + Debug>(name: &str, all: &[T]) -> Option<T> {
    let text = env::var(name).ok()?;
    let found = all.iter().find(|one| format!("{one:?}") == text);
    Some(*found.expect("the variable names one that there is"))
}

/// Runs a failing seed again, to say how it came to that.
fn explain(options: Options) -> String {
    let Run { failure, trace, .. } = run(Options { traced: true, ..options });
    let Options { seed, fault, .. } = options;
    let fault = fault.map(|fault| format!(" SKERRY_SIMULATION_FAULT={fault:?}")).unwrap_or_default();
    let trace = trace.join("\n");
    format!(
        "{failure:?}\n{trace}\nreplay: SKERRY_SIMULATION_SEED={seed}{fault} cargo test -p proto \
         --test simulation honest -- --nocapture"
    )
}

/// Runs seeds until one fails: which, and how much time has passed in how many of them.
fn search(seeds: impl Iterator<Item = u64>, fault: Option<Fault>) -> (Option<Options>, Duration, u64) {
    let (mut time, mut count) = (Duration::ZERO, 0);
    for seed in seeds {
        let options = Options { seed, fault, ..Options::default() };
        let ran = run(options);
        time += ran.virtual_time;
        count += 1;
        if ran.failure.is_some() {
            return (Some(options), time, count);
        }
    }
    (None, time, count)
}

#[test]
fn honest_peers_keep_every_promise() {
    if let Some(seed) = number("SKERRY_SIMULATION_SEED") {
        let fault = named("SKERRY_SIMULATION_FAULT", Fault::ALL);
        let options = Options { seed, fault, ..Options::default() };
        println!("{}", explain(Options { whole: true, ..options }));
        assert!(run(options).failure.is_none());
        return;
    }
    let started = Instant::now();
    let (failed, mut time, mut count) = search(0..SEEDS, None);
    if let Some(options) = failed {
        panic!("{}", explain(options));
    }
    let limit = Duration::from_secs(number("SKERRY_SIMULATION_SECONDS").unwrap_or(20));
    let new = Instant::now();
    let first = SystemTime::UNIX_EPOCH.elapsed().map_or(SEEDS, |since| since.as_secs() << 20);
    let seeds = (first..).take_while(|_| new.elapsed() < limit);
    let (failed, more_time, more) = search(seeds, None);
    if let Some(options) = failed {
        panic!("{}", explain(options));
    }
    time += more_time;
    count += more;
    let speed = time.as_secs_f64() / started.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {} h of virtual time, {speed:.0} times as fast as real time",
        time.as_secs() / 3600
    );
    assert!(speed > 200.0, "{speed}");
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..32 {
        let options = Options { seed, traced: true, ..Options::default() };
        let (one, two) = (run(options), run(options));
        assert!(one.hash == two.hash && one.events == two.events && one.trace == two.trace, "seed {seed}");
    }
}

#[test]
fn each_planted_fault_is_found() {
    let mut missed = Vec::new();
    for fault in Fault::ALL.iter().copied() {
        let Some(options) = search(0..SEEDS, Some(fault)).0 else {
            missed.push(fault);
            continue;
        };
        let failure = run(options).failure.expect("a seed fails again as it failed before");
        println!("{fault:?}: {:?}, seed {}: {}", failure.invariant, options.seed, failure.detail);
        assert!(fault.breaks().contains(&failure.invariant), "{}", explain(options));
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
