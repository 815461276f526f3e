//! A line in user space: what the machine's kernel cannot do to packets (it has no netem) is done to them by a thread, so
//! that TCP and QUIC meet the same losses, delays and silences.
//!
//! ```text
//! host  skNh ═══ to-host [ namespace skerry-N-w: a thread between two packet sockets ] to-site ═══ skNe  site
//! ```
//!
//! The namespace between has no address: whole Ethernet frames pass, and the addresses at both ends stay. What becomes of a
//! frame is decided by [`way::Way`] from a seed and [`Terms`]; the same frames in the same order meet the same fate.
//! The thread sleeps while nothing is under way, holds no more than [`way::Way`] says, and ends with the [`Wire`].

mod frame;
mod nat;
mod terms;
mod way;

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike, bind, setsockopt, socket,
        sockopt::RcvBufForce,
    },
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, read, write},
};

use super::{
    Site,
    address::{Address, ip},
};
use crate::{random::Random, run::netns_of_wire};
pub use terms::{Counts, Flap, Silent, Terms};

use nat::Nat;
use way::Way;

/// The line's ends, in its own namespace.
const UP: &str = "to-host";
const DOWN: &str = "to-site";
/// Of a packet socket: what comes while the thread waits for a core.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Taken from one end before the other is looked at.
const TURN: usize = 64;
/// Nothing longer is sent without segmentation offload.
const LONGEST_FRAME: usize = 2048;
/// Changes of the terms that are remembered, for whoever reads of a failure.
const HISTORY: usize = 64;

/// A line in user space, good until it is told otherwise. Lasts until it is dropped, or the site's power is cut.
pub struct Wire {
    shared: Arc<Shared>,
    seed: u64,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Written to when the thread is to end.
    wake: OwnedFd,
    begun: Instant,
}

struct State {
    /// From the site, and to it.
    ways: [Way; 2],
    nat: Option<Nat>,
    history: Vec<(Duration, String)>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole whatever panicked beside it: a frame is in it or not.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    /// Puts a line in user space in the place of the one that there is, until a power cut. Nothing of what is under way on
    /// the old one arrives.
    pub fn wire(&self, seed: u64) -> Result<Wire> {
        Wire::lay(&self.address, seed).with_context(|| format!("no line in user space to {}", self.name()))
    }
}

impl Wire {
    pub(super) fn lay(address: &Address, seed: u64) -> Result<Self> {
        let Address { netns, host_interface, site_interface, .. } = address;
        let own = netns_of_wire(netns);
        ip(&["netns", "add", &own])?;
        // Or the kernel would talk over the line by itself.
        let ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
        ip(&["netns", "exec", &own, "sh", "-c", &format!("test ! -e {ipv6} || echo 1 > {ipv6}")])?;
        ip(&["-n", netns, "link", "set", site_interface, "netns", &own, "name", UP])?;
        ip(&[
            "-n",
            &own,
            "link",
            "add",
            DOWN,
            "type",
            "veth",
            "peer",
            "name",
            site_interface,
            "netns",
            netns,
        ])?;
        // Packets as they are on a line, not dozens in one.
        let single = ["gso_max_segs", "1"];
        ip(&[&["link", "set", host_interface], &single[..]].concat())?;
        ip(&[&["-n", netns, "link", "set", site_interface], &single[..]].concat())?;
        for end in [UP, DOWN] {
            ip(&["-n", &own, "link", "set", end, "up"])?;
        }
        let (site, host) = (address.site_ip.to_string(), address.host_ip.to_string());
        ip(&["-n", netns, "addr", "add", &format!("{site}/30"), "dev", site_interface])?;
        ip(&["-n", netns, "link", "set", site_interface, "up"])?;
        ip(&["-n", netns, "route", "add", "default", "via", &host, "dev", site_interface])?;
        Self::start(&own, seed)
    }

    fn start(netns: &str, seed: u64) -> Result<Self> {
        let mut random = Random::from_seed(seed);
        let ways = Silent::DIRECTIONS.map(|direction| Way::new(random.fork(), direction));
        let state = State { ways, nat: None, history: Vec::new(), ended: false };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: Mutex::new(state), wake, begun: Instant::now() });
        let (ends, opened) = std::sync::mpsc::channel();
        let (of_thread, namespace) = (Arc::clone(&shared), File::open(Path::new("/run/netns").join(netns))?);
        // A thread of its own, because it changes its network namespace for good, and because tests block theirs.
        let thread = std::thread::Builder::new().name(netns.to_owned()).spawn(move || {
            let open = setns(&namespace, CloneFlags::CLONE_NEWNET)
                .context("failed to enter the line's network namespace")
                .and_then(|()| Ok([end(DOWN)?, end(UP)?]));
            match open {
                Ok(open) => {
                    drop(ends.send(Ok(())));
                    carry(&open, &of_thread);
                }
                Err(error) => drop(ends.send(Err(error))),
            }
        })?;
        let wire = Self { shared, seed, thread: Some(thread) };
        opened.recv().context("the line's thread has died")??;
        Ok(wire)
    }

    /// From now on the line is like this, in both directions. What is under way arrives as it would have.
    pub fn set(&self, terms: &Terms) {
        let (now, mut state) = (self.shared.begun.elapsed(), self.shared.lock());
        state.note(now, terms.to_string());
        for way in &mut state.ways {
            way.set(now, terms.clone());
        }
    }

    /// As good as new.
    pub fn heal(&self) {
        self.set(&Terms::default());
    }

    /// There is a translator of addresses in between (NAT), which forgets what it has translated each time that this is called:
    /// what comes for the site is dropped until the site says something, which then comes from another port.
    pub fn rebind(&self) {
        let (now, mut state) = (self.shared.begun.elapsed(), self.shared.lock());
        state.note(now, "NAT rebinds".to_owned());
        state.nat.get_or_insert_default().forget();
    }

    /// As [`Wire::rebind`], and by itself each flow that has been idle for so long.
    pub fn forget_after(&self, idle: Duration) {
        let (now, mut state) = (self.shared.begun.elapsed(), self.shared.lock());
        state.note(now, format!("NAT forgets what is idle for {idle:?}"));
        let nat = state.nat.get_or_insert_default();
        nat.memory = Some(idle);
        nat.forget();
    }

    /// What became of the frames so far: of those from the site, and of those to it.
    pub fn counts(&self) -> [Counts; 2] {
        let state = self.shared.lock();
        [&state.ways[0], &state.ways[1]].map(Way::counts)
    }

    /// What it takes to have this again, and what came of it.
    pub fn story(&self) -> String {
        let [up, down] = self.counts();
        let state = self.shared.lock();
        let changes: Vec<String> =
            state.history.iter().map(|(at, what)| format!("{:.3} s: {what}", at.as_secs_f32())).collect();
        let seed = self.seed;
        format!("line of seed {seed}; {}; up {up:?}; down {down:?}", changes.join("; "))
    }
}

impl State {
    fn note(&mut self, at: Duration, what: String) {
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push((at, what));
    }

    /// Whether the frame goes on, translated.
    fn translate(&mut self, from: usize, frame: &mut [u8], now: Duration) -> bool {
        match (&mut self.nat, from) {
            (None, _) => true,
            (Some(nat), 0) => nat.outwards(frame, now),
            (Some(nat), _) => nat.inwards(frame, now),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        if let Err(error) = write(&self.shared.wake, &1_u64.to_ne_bytes()) {
            eprintln!("harness: a line's thread cannot be woken: {error}");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("harness: a line's thread panicked");
        }
    }
}

/// A socket that has all that comes out of an interface, and puts in what is written to it.
fn end(interface: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    let mut addresses = getifaddrs()?.filter(|one| one.interface_name == interface);
    let link = addresses.find_map(|one| one.address.and_then(|address| address.as_link_addr().copied()));
    let link: LinkAddr = link.with_context(|| format!("no interface {interface}"))?;
    bind(socket.as_raw_fd(), &link as &dyn SockaddrLike)
        .with_context(|| format!("failed to bind to {interface}"))?;
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(socket)
}

/// Carries frames between the two ends until the line is to end. `ends` are the site's and the host's.
fn carry(ends: &[OwnedFd; 2], shared: &Shared) {
    let mut buffer = [0; LONGEST_FRAME];
    loop {
        let wait = {
            let mut state = shared.lock();
            if state.ended {
                return;
            }
            for (from, end) in ends.iter().enumerate() {
                take(end, &mut buffer, from, &mut state, shared.begun);
            }
            let now = shared.begun.elapsed();
            for (way, to) in state.ways.iter_mut().zip([&ends[1], &ends[0]]) {
                while let Some(frame) = way.arrived(now) {
                    way.note_delivered(write(to, &frame).is_ok());
                }
            }
            let next = state.ways.iter().filter_map(Way::next_arrival).min();
            next.map(|at| at.saturating_sub(shared.begun.elapsed()))
        };
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let mut events = [
            PollFd::new(&ends[0], PollFlags::IN),
            PollFd::new(&ends[1], PollFlags::IN),
            PollFd::new(&shared.wake, PollFlags::IN),
        ];
        match poll(&mut events, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                eprintln!("harness: a line's thread cannot wait: {error}");
                return;
            }
        }
    }
}

/// A turn's worth of what has come to one end.
fn take(end: &OwnedFd, buffer: &mut [u8], from: usize, state: &mut State, begun: Instant) {
    for _ in 0..TURN {
        // Nothing there, or the interface is down.
        let Ok(length) = read(end, &mut *buffer) else { return };
        let frame = &mut buffer[..length];
        if !state.translate(from, frame, begun.elapsed()) {
            state.ways[from].note_untranslated();
            continue;
        }
        frame::fill_checksum(frame);
        state.ways[from].offer(begun.elapsed(), frame);
    }
}

#[cfg(test)]
mod tests;
