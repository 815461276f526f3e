//! A line that begins to swallow long packets under a connection over QUIC, and tells nobody: small ones come through, so that
//! nobody is silent, and what is large never arrives. QUIC's packets do not get smaller than 1200 bytes: such a connection is of
//! no use any more, and the next one will not begin, so that a WebSocket carries the link.

use std::{net::SocketAddr, pin::pin, time::Duration};

use futures_util::FutureExt;
use quinn::{Connection, WriteError};
use tokio::{sync::Notify, time};

use super::{LinkError, congestion::Large};

/// Bytes written that make it worth a look whether they arrive: the heartbeats of a quiet line are none.
pub(super) const WORTH: usize = 500;
/// What is lost was sent again several times by then.
const LOOK: Duration = Duration::from_secs(4);
/// More than goes into two packets, so that there is a short one at the end, which gets through. Nobody reads it: that it is
/// confirmed is all.
const PROBE: [u8; 2400] = [0; 2400];
/// How long the probe may take on a thin line, or one that loses much: beside this so many round trips.
const PATIENCE: Duration = Duration::from_secs(5);
const ROUND_TRIPS: u32 = 10;
/// No line takes longer, satellites included; right after a silence quinn takes that for a round trip.
const ROUND_TRIP_AT_MOST: Duration = Duration::from_secs(1);
/// In so many parts: a process that has had no CPU meanwhile finds one of them over, not all, and reads what has come for it.
const PARTS: u32 = 10;

/// Waits until it is found out. `written` is told of about [`WORTH`] bytes.
pub(super) async fn found_out(connection: &Connection, written: &Notify) -> LinkError {
    Large::forget(connection);
    let mut peer = connection.remote_address();
    loop {
        written.notified().await;
        // On the heap: most connections wait for something to be written, most of the time.
        if Box::pin(is_narrow(connection, &mut peer)).await {
            return LinkError::Narrow;
        }
    }
}

/// Waits until that is known of what was sent. A silence may last: others notice it.
async fn is_narrow(connection: &Connection, peer: &mut SocketAddr) -> bool {
    let mut wait = LOOK;
    loop {
        time::sleep(wait).await;
        let now = connection.remote_address();
        if *peer != now {
            *peer = now;
            Large::forget(connection);
        }
        match Large::of(connection) {
            Large { since: None, .. } => return false,
            Large { since: Some(since), overtaken: true } => match LOOK.checked_sub(since.elapsed()) {
                None | Some(Duration::ZERO) => break,
                Some(rest) => wait = rest,
            },
            Large { overtaken: false, .. } => wait = LOOK,
        }
    }
    // It may have been something that is not sent again, as of a stream that was given up.
    let patience = PATIENCE + ROUND_TRIPS * connection.rtt().min(ROUND_TRIP_AT_MOST);
    let mut probe = pin!(probe(connection));
    for _ in 0..PARTS {
        if time::timeout(patience / PARTS, &mut probe).await.is_ok() {
            return false;
        }
    }
    Large::of(connection).since.is_some()
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
