//! After a start: edges whose QUIC connection ended with the process before this one learn of it when they send something, and
//! a quiet one may not for most of a minute. So each is asked to, at the address that its Lease names; what it then sends is
//! answered with a reset, and it connects anew.
//!
//! They are asked at the pace at which they get in: who waits for its handshake sends again and again, and gives up in the end.

use std::{
    net::UdpSocket,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use runtime::{backoff::Backoff, link};
use tokio::time;
use tracing::{debug, info};

use super::{guests::Guests, registry::Registry};
use crate::edgecontroller::lease;

/// Later they have found out by themselves.
const WORTHWHILE: Duration = Duration::from_mins(1);
/// A datagram may be lost.
const ROUNDS: usize = 3;
const AGAIN: Duration = Duration::from_secs(3);
/// So many, and a pause: each answer makes a handshake.
const AT_ONCE: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// Strangers at the door while nobody else is asked to come, for so long: it need not be nodes who stand there.
const CROWD: usize = 64;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Asks all, as soon as the API server says who they are and strangers are let in as they come.
pub(super) async fn run(client: Client, registry: Arc<Registry>, guests: Arc<Guests>, socket: UdpSocket) {
    let begun = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let addresses = loop {
        match lease::addresses(&client).await {
            Ok(addresses) => break addresses,
            Err(error) => debug!(error = %runtime::chain(&error), "cannot list the nodes' leases"),
        }
        time::sleep(backoff.next_delay()).await;
        if begun.elapsed() > WORTHWHILE {
            return;
        }
    };
    while !guests.is_open() {
        time::sleep(PAUSE).await;
        if begun.elapsed() > WORTHWHILE {
            return;
        }
    }
    for round in 0..ROUNDS {
        let mut asked = 0;
        for some in addresses.chunks(AT_ONCE) {
            for (node, address) in some.iter().filter(|(node, _)| !registry.contains(node)) {
                match link::knock(&socket, *address) {
                    Ok(()) => asked += 1,
                    // It finds out by itself, only later.
                    Err(error) => debug!(node, %address, %error, "node cannot be asked to connect anew"),
                }
            }
            let door = async {
                time::sleep(PAUSE).await;
                while guests.count() > CROWD {
                    time::sleep(PAUSE).await;
                }
            };
            // All the same then.
            drop(time::timeout(LONGEST_PAUSE, door).await);
        }
        if asked > 0 && round == 0 {
            info!(nodes = asked, "asked the nodes of the process before this one to connect anew");
        }
        time::sleep(AGAIN).await;
    }
}
