//! Frames of a few hundred bytes that would be megabytes, and what is no frame at all: each ends its session with a word about it,
//! and takes no memory.

use anyhow::{Context, Result, ensure};
use proto::{
    Lane, codec,
    message::{Body, GoodbyeReason, Inventory, InventoryEntry, Report, Reports},
};

use super::peer::{Peer, Stage, TRANSPORTS};

/// A block of zstd (RFC 8878) that stands for so many zeros.
const ZEROS: u32 = 128 << 10;
/// What cloudcore may hold more after all of it: next to nothing of what it would be.
const MEMORY: u64 = 32 << 20;

/// 64 MiB of zeros after `head`.
fn zeros(head: &[u8]) -> Vec<u8> {
    let block = |last: u32| [&(ZEROS << 3 | 1 << 1 | last).to_le_bytes()[..3], &[0]].concat();
    [head, &block(0).repeat(511), &block(1)].concat()
}

/// What it is called, its lane, its bytes, and what the goodbye is to say.
type Bomb = (&'static str, Lane, Vec<u8>, &'static str);

fn bombs() -> Result<Vec<Bomb>> {
    let entries = vec![InventoryEntry::default(); 1_900_000];
    let reports = vec![Report::default(); 1_900_000];
    Ok(vec![
        // No content size, a window of 4 MiB, dictionary 1.
        ("zeros", Lane::Objects, zeros(&[2, 1, 0x60, 1]), "longer than"),
        (
            "zeros without a dictionary",
            Lane::Status,
            zeros(&[1, 0x28, 0xb5, 0x2f, 0xfd, 0, 0x60]),
            "longer than",
        ),
        // It says to be three gigabytes.
        ("a length that is a lie", Lane::Objects, vec![2, 0xa1, 1, 0, 0, 0, 0xc0, 1, 0, 0], "decompress"),
        (
            "two million entries",
            Lane::Objects,
            encoded(Body::Inventory(Inventory { entries, last: false }))?,
            "fields",
        ),
        ("two million reports", Lane::Status, encoded(Body::Reports(Reports { reports }))?, "fields"),
        ("another dictionary", Lane::Status, zeros(&[2, 1, 0x60, 9]), "dictionary 9"),
        ("nothing", Lane::Control, Vec::new(), "empty frame"),
        ("an encoding to come", Lane::Control, vec![77, 1, 2], "encoding 77"),
        ("half a message", Lane::Control, vec![0, 0x42, 200, 8], "decode"),
    ])
}

fn encoded(body: Body) -> Result<Vec<u8>> {
    let frame = codec::encode(body)?.to_vec();
    ensure!(frame.len() < 4 << 10, "{} bytes are no bomb", frame.len());
    Ok(frame)
}

pub(crate) async fn run(stage: &Stage<'_>) -> Result<()> {
    let before = stage.memory()?;
    for transport in TRANSPORTS {
        let node = format!("bombing-{transport:?}").to_lowercase();
        let mut sent = 0;
        for (what, lane, frame, told) in bombs()? {
            let mut peer = Peer::greeted(stage, transport, &node).await?;
            peer.say_bytes(lane, &frame);
            sent += frame.len();
            let goodbye = peer.goodbye().await.context(what)?;
            ensure!(goodbye.reason() == GoodbyeReason::Violation, "{what}: {goodbye:?}");
            ensure!(goodbye.detail.contains(told), "{what}: {goodbye:?}");
        }
        let more = stage.memory()?.saturating_sub(before);
        eprintln!("{transport:?}: {} KiB more for {sent} bytes", more >> 10);
        ensure!(more <= MEMORY, "{} KiB more", more >> 10);
    }
    Ok(())
}
