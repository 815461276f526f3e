//! A line that takes its time, in this process.

use std::net::Ipv4Addr;

use socket2::SockRef;
use tokio::{
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};

use super::*;

/// Carries what comes to `address` to an end, and back; each way takes `delay`.
pub(super) struct Delayed {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Delayed {
    pub(super) async fn tcp(to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let here = listener.accept().await.unwrap().0;
            let there = TcpStream::connect(to).await.unwrap();
            for tcp in [&here, &there] {
                tcp.set_nodelay(true).unwrap();
            }
            let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
            tokio::join!(bytes(from_here, to_there, delay), bytes(from_there, to_here, delay));
        });
        Self { address, _tasks: tasks }
    }

    pub(super) async fn udp(to: SocketAddr, delay: Duration) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        // What comes at once is not to be lost.
        SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        let address = socket.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (late, mut due) = mpsc::unbounded_channel();
            let take = async {
                let (mut edge, mut datagram) = (None, [0; 2048]);
                loop {
                    let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
                    let to = if from == to { edge.unwrap() } else { to };
                    if from != to && edge.is_none() {
                        edge = Some(from);
                    }
                    late.send((time::Instant::now() + delay, to, datagram[..length].to_vec())).unwrap();
                }
            };
            let give = async {
                while let Some((at, to, datagram)) = due.recv().await {
                    time::sleep_until(at).await;
                    socket.send_to(&datagram, to).await.unwrap();
                }
            };
            tokio::join!(take, give);
        });
        Self { address, _tasks: tasks }
    }
}

async fn bytes(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (late, mut due) = mpsc::unbounded_channel();
    let take = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            late.send((time::Instant::now() + delay, buffer[..length].to_vec())).unwrap();
        }
    };
    let give = async move {
        while let Some((at, bytes)) = due.recv().await {
            time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(take, give);
}
