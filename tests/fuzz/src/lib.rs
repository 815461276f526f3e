//! Fuzz targets: every decoder that takes bytes from a peer, the disk or an operator, and the state machines behind them. A
//! target panics where a promise is broken; what it is given is only bad input.
//!
//! `cargo xtask fuzz [TARGET] [--seconds N]` runs them guided by coverage. `cargo test -p fuzz` runs each over its seeds, over
//! `corpus/TARGET/` (what runs before have found worth keeping, and every input that once made it panic) and for a moment over
//! mutations of both.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of it is test code")]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

mod codec;
mod identity;
mod input;
mod link;
pub mod mutation;
mod pods;
mod sessions;
mod settings;
mod store;

/// One decoder or state machine.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// What is right, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// No input is longer.
    pub longest: usize,
}

macro_rules! targets {
    ($($name:literal: $module:ident::$run:ident, $seeds:ident, $longest:expr;)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[
            $(Target { name: $name, run: $module::$run, seeds: $module::$seeds, longest: $longest },)*
        ];
    };
}

targets! {
    // From a peer.
    "frame": codec::frame, frames, 4096;
    "message": codec::message, messages, 4096;
    "patch": codec::patch, patches, 4096;
    "names": codec::names, name_seeds, 2048;
    "cloud-session": sessions::cloud, cloud_seeds, 2048;
    "edge-session": sessions::edge, edge_seeds, 2048;
    "websocket": link::websocket, websocket_seeds, 2048;
    "pieces": link::pieces, piece_seeds, 2048;
    "lengths": link::lengths, length_seeds, 2048;
    "proxy-answer": link::proxy_answer, proxy_answers, 1024;
    "token": identity::token, tokens, 1024;
    "csr": identity::csr, csrs, 1024;
    "certificate": identity::certificate, certificates, 1024;
    "report": pods::report, reports, 4096;
    "pod": pods::pod, pod_seeds, 8192;
    "runtime-status": pods::runtime_status, runtime_statuses, 2048;
    // From the disk.
    "identity": identity::files, identities, 4096;
    "record": store::record, records, 1024;
    "store-file": store::file, files, 2048;
    "sound-file": store::sound_file, sound_files, 2048;
    // From an operator.
    "cloudcore-yaml": settings::cloudcore, cloudcore_seeds, 2048;
    "edgecore-yaml": settings::edgecore, edgecore_seeds, 2048;
    "proxy-url": settings::proxy, proxies, 512;
    "quantity": settings::quantity, quantities, 64;
}

impl Target {
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.iter().copied().find(|target| target.name == name)
    }

    /// The directory with what was kept for it.
    pub fn corpus(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }

    /// Seeds and corpus.
    pub fn inputs(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut inputs = (self.seeds)();
        let kept = match fs::read_dir(self.corpus()) {
            Ok(kept) => kept.collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut paths: Vec<_> = kept.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            inputs.push(fs::read(path)?);
        }
        Ok(inputs)
    }
}
