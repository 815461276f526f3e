//! Where pods reach what runs on their node: at the address that the node has on their network, open to pods of this node and to nobody
//! else. On a bridge that is the bridge's own; where pods are routed it may be one that the outside reaches as well, so
//! whoever connects is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Connections through one door at once.
const CONNECTIONS: usize = 200;
const REACH: Duration = Duration::from_secs(5);
/// After the port was taken, or no connection could be accepted.
const RETRY: Duration = Duration::from_secs(10);

/// Pods' addresses, and how many have each: one that ends may have the address of one that begins.
type Pods = BTreeMap<IpAddr, usize>;

/// Whom the doors are open to. Clones are the same ones.
#[derive(Clone)]
pub struct Doors(Arc<watch::Sender<Pods>>);

/// A pod that is let in, as long as this is kept.
pub struct Pass {
    doors: Doors,
    pods: Vec<IpAddr>,
}

impl Default for Doors {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Pods::new())))
    }
}

impl Doors {
    /// Lets a pod of this node in that has these addresses.
    #[must_use]
    pub fn admit(&self, pod: &[String]) -> Pass {
        let pods: Vec<IpAddr> = pod.iter().filter_map(|ip| ip.parse().ok()).collect();
        self.0.send_modify(|all| {
            for ip in &pods {
                *all.entry(*ip).or_default() += 1;
            }
        });
        Pass { doors: self.clone(), pods }
    }
}

impl Pass {
    /// Where the pod finds the door.
    pub fn door(&self) -> Option<IpAddr> {
        self.pods.iter().find_map(|pod| toward(*pod))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.doors.0.send_modify(|all| {
            for ip in &self.pods {
                if let Some(count) = all.get_mut(ip) {
                    *count -= 1;
                    if *count == 0 {
                        all.remove(ip);
                    }
                }
            }
        });
    }
}

/// The address that the node has for a pod. Nothing is sent.
fn toward(pod: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = if pod.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((pod, 1)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// Keeps a door to `target`, HOST:PORT, on each network that has pods; at the same port.
pub async fn keep(
    doors: Doors,
    port: u16,
    target: String,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut pods = doors.0.subscribe();
    let mut open: BTreeMap<IpAddr, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted: BTreeSet<IpAddr> =
            pods.borrow_and_update().keys().filter_map(|pod| toward(*pod)).collect();
        open.retain(|address, task| {
            let stays = wanted.contains(address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for address in wanted {
            let at = SocketAddr::new(address, port);
            open.entry(address).or_insert_with(|| tasks.spawn(serve(doors.clone(), at, target.clone())));
        }
        tokio::select! {
            Ok(()) = pods.changed() => {}
            // One that was closed, or has died: it is looked at what is to be open.
            Some(_) = tasks.join_next() => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// One door.
async fn serve(doors: Doors, at: SocketAddr, target: String) {
    let listener = loop {
        match TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(%at, %error, "pods do not reach the MQTT broker");
                time::sleep(RETRY).await;
            }
        }
    };
    info!(%at, "open to pods");
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if room.available_permits() > 0 => match accepted {
                Ok((pod, peer)) => {
                    if !doors.0.borrow().contains_key(&peer.ip()) {
                        debug!(%peer, "is no pod of this node");
                        continue;
                    }
                    let (place, target) = (Arc::clone(&room).try_acquire_owned(), target.clone());
                    connections.spawn(async move {
                        let _place = place;
                        if let Err(error) = carry(pod, &target).await {
                            debug!(%peer, %error, "connection of a pod ended");
                        }
                    });
                }
                Err(error) => {
                    warn!(%at, %error, "failed to accept a pod's connection");
                    time::sleep(RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut pod: TcpStream, target: &str) -> io::Result<()> {
    let mut there = time::timeout(REACH, TcpStream::connect(target)).await??;
    copy_bidirectional(&mut pod, &mut there).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_let_in_as_long_as_one_has_its_address() {
        let doors = Doors::default();
        let ip = ["192.0.2.9".to_owned()];
        let (one, other) = (doors.admit(&ip), doors.admit(&ip));
        drop(one);
        assert_eq!(doors.0.borrow().len(), 1);
        drop(other);
        assert!(doors.0.borrow().is_empty());
        assert!(doors.admit(&["no address".to_owned()]).door().is_none());
    }
}
