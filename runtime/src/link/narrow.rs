//! A line that begins to swallow long packets under a connection over QUIC, and tells nobody: small ones come through, so that
//! nobody is silent, and what is large never arrives. QUIC's packets do not get smaller than 1200 bytes: such a connection is of
//! no use any more, and the next one will not begin, so that a WebSocket carries the link.

use std::{pin::pin, time::Duration};

use futures_util::FutureExt;
use quinn::{Connection, WriteError};
use tokio::{sync::Notify, time};

use super::LinkError;

/// Bytes written that make it worth a look whether they arrive: the heartbeats of a quiet line are none.
pub(super) const WORTH: usize = 500;
/// After what was written. By then the peer was pinged, and what its answer does not confirm counts as lost.
const LOOK: Duration = Duration::from_secs(4);
/// More than goes into two packets, so that there is a short one at the end, which gets through. Nobody reads it: that it is
/// confirmed is all.
const PROBE: [u8; 2400] = [0; 2400];
/// How long the probe may take on a thin line, or one that loses much: beside this so many round trips.
const PATIENCE: Duration = Duration::from_secs(5);
const ROUND_TRIPS: u32 = 10;
/// In so many parts: a process that has had no CPU meanwhile finds one of them over, not all, and reads what has come for it.
const PARTS: u32 = 10;
/// Between a probe that has arrived and the next look: a line that loses much makes for many looks.
const PAUSE: Duration = Duration::from_mins(1);

/// Waits until it is found out. `written` is told of about [`WORTH`] bytes.
pub(super) async fn found_out(connection: &Connection, written: &Notify) -> LinkError {
    loop {
        written.notified().await;
        // On the heap: most connections wait for something to be written, most of the time.
        match Box::pin(look(connection)).await {
            Look::Well => {}
            Look::Silent => written.notify_one(),
            Look::Narrow => return LinkError::Narrow,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Well,
    /// Others notice that. What was written is to be looked at again.
    Silent,
    Narrow,
}

/// Packets that are known to be lost, and datagrams that have come.
#[derive(Clone, Copy)]
struct Counts {
    lost: u64,
    heard: u64,
}

impl Counts {
    fn of(connection: &Connection) -> Self {
        let stats = connection.stats();
        Self { lost: stats.path.lost_packets, heard: stats.udp_rx.datagrams }
    }

    /// What these and later ones say; nothing if something was lost, which a line that loses some does, too.
    fn until(self, later: Self) -> Option<Look> {
        match (later.heard > self.heard, later.lost > self.lost) {
            (true, true) => None,
            (true, false) => Some(Look::Well),
            // Without a word from the peer, nothing is known to be lost.
            (false, _) => Some(Look::Silent),
        }
    }
}

async fn look(connection: &Connection) -> Look {
    let begun = Counts::of(connection);
    time::sleep(LOOK).await;
    if let Some(seen) = begun.until(Counts::of(connection)) {
        return seen;
    }
    let patience = PATIENCE + ROUND_TRIPS * connection.rtt();
    let mut probe = pin!(probe(connection));
    for _ in 0..PARTS {
        if time::timeout(patience / PARTS, &mut probe).await.is_ok() {
            time::sleep(PAUSE).await;
            return Look::Well;
        }
    }
    // Heard of since the begin: what is on its way and not confirmed leaves no room for anything short, either.
    if Counts::of(connection).heard > begun.heard { Look::Narrow } else { Look::Silent }
}

/// Returns once the peer has confirmed something long, or when that cannot be tried: an older peer takes no such stream, and one
/// that reads nothing has left no room.
async fn probe(connection: &Connection) {
    let Some(Ok(mut stream)) = connection.open_uni().now_or_never() else { return };
    // Before all lanes. It fails only on a stream that has ended.
    drop(stream.set_priority(1));
    let written: Option<Result<(), WriteError>> = stream.write_all(&PROBE).now_or_never();
    if matches!(written, Some(Ok(()))) && stream.finish().is_ok() {
        // That the peer wants no more of it says as much: it has seen it.
        drop(stream.stopped().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_looked_at_again() {
        let begun = Counts { lost: 7, heard: 10 };
        for (lost, heard, seen) in [
            (7, 11, Some(Look::Well)),
            (8, 11, None),
            (7, 10, Some(Look::Silent)),
            // Told of by what came before.
            (8, 10, Some(Look::Silent)),
        ] {
            assert_eq!(begun.until(Counts { lost, heard }), seen, "{lost} lost, {heard} heard");
        }
    }
}
