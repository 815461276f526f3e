#![allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
};

use super::*;
use crate::run::remove_network;

const SECOND: Duration = Duration::from_secs(1);

fn way(seed: u64, terms: Terms) -> Way {
    let mut way = Way::new(Random::from_seed(seed), Silent::Up);
    way.set(Duration::ZERO, terms);
    way
}

/// How long each was under way, of frames that came every `gap`.
fn delays(arrivals: &[(u16, Duration)], gap: Duration) -> Vec<Duration> {
    arrivals.iter().map(|(number, at)| at.checked_sub(u32::from(*number) * gap).unwrap()).collect()
}

/// The number of each frame that arrives, and when; one comes every `gap`, each of `length` bytes of IP.
fn pass(way: &mut Way, count: u16, gap: Duration, length: usize) -> Vec<(u16, Duration)> {
    let mut arrivals = Vec::new();
    let mut arrive = |way: &mut Way, now| {
        while let Some(at) = way.next_arrival().filter(|at| *at <= now) {
            let frame = way.arrived(at).unwrap();
            arrivals.push((u16::from_be_bytes([frame[0], frame[1]]), at));
        }
    };
    for number in 0..count {
        let now = u32::from(number) * gap;
        arrive(way, now);
        let mut frame = vec![0; frame::HEADER + length];
        frame[..2].copy_from_slice(&number.to_be_bytes());
        way.offer(now, &frame);
    }
    arrive(way, Duration::MAX);
    arrivals
}

#[test]
fn a_good_line_carries_all_at_once_and_in_order() {
    let arrivals = pass(&mut way(1, Terms::default()), 1000, Duration::from_millis(1), 1500);
    let sent: Vec<_> = (0..1000).map(|number| (number, Duration::from_millis(number.into()))).collect();
    assert_eq!(arrivals, sent);
}

#[test]
fn the_same_seed_decides_the_same() {
    let ms = Duration::from_millis;
    let terms =
        Terms { loss: 20, delay: ms(50), jitter: ms(30), duplicated: 10, reordered: 10, ..Terms::default() };
    let of = |seed| pass(&mut way(seed, terms.clone()), 2000, ms(2), 500);
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn what_is_lost_twice_or_held_up_is_the_share_that_was_asked_for() {
    let terms = Terms { loss: 20, duplicated: 10, reordered: 5, ..Terms::default() };
    let mut way = way(3, terms);
    let arrivals = pass(&mut way, 20_000, Duration::from_millis(10), 100);
    let Counts { offered, lost, duplicated, reordered, .. } = way.counts();
    let percent = |count: u64, of: u64| 100.0 * count as f64 / of as f64;
    assert!((19.0..21.0).contains(&percent(lost, offered)), "{lost} lost");
    let carried = offered - lost;
    assert!((9.0..11.0).contains(&percent(duplicated, carried)), "{duplicated} twice");
    assert!((4.0..6.0).contains(&percent(reordered, carried)), "{reordered} held up");
    assert_eq!(arrivals.len() as u64, carried + duplicated);
    let overtaken = arrivals.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
    assert!(overtaken as u64 > reordered / 2, "{overtaken} overtaken");
}

#[test]
fn a_delay_with_jitter_lies_between_its_bounds_and_reorders_nothing() {
    let (delay, jitter) = (Duration::from_millis(400), Duration::from_millis(100));
    let gap = Duration::from_millis(100);
    let arrivals = pass(&mut way(4, Terms { delay, jitter, ..Terms::default() }), 5000, gap, 100);
    let delays = delays(&arrivals, gap);
    assert!(delays.iter().all(|one| (delay..=delay + jitter).contains(one)));
    let mean = delays.iter().sum::<Duration>() / 5000;
    assert!((Duration::from_millis(440)..Duration::from_millis(460)).contains(&mean), "{mean:?}");
    assert!(arrivals.is_sorted_by_key(|(number, _)| *number));
}

#[test]
fn a_rate_is_kept_and_its_queue_bounded() {
    // 1000 bytes of IP are an eighth of a second of the line; twice as many come.
    let terms = Terms { rate: 64, queue: (10, 64 << 10), ..Terms::default() };
    let mut thin = way(5, terms);
    let gap = Duration::from_micros(62_500);
    let arrivals = pass(&mut thin, 160, gap, 1000);
    let last = arrivals.last().unwrap().1;
    let rate = arrivals.len() as f64 * 8.0 / last.as_secs_f64();
    assert!((63.0..65.0).contains(&rate), "{rate} kbit/s");
    assert!(thin.counts().overflowed > 60, "{:?}", thin.counts());
    let longest = delays(&arrivals, gap).into_iter().max().unwrap();
    // Ten that wait, the one that is being sent, and itself.
    assert!(longest > SECOND && longest < SECOND * 12 / 8 + SECOND / 100, "{longest:?}");

    let terms = Terms { rate: 64, queue: (1000, 3000), ..Terms::default() };
    assert_eq!(pass(&mut way(5, terms), 100, Duration::ZERO, 1000).len(), 4, "one is sent, three wait");
}

#[test]
fn what_is_under_way_is_bounded() {
    let mut slow = way(6, Terms { delay: 1000 * SECOND, ..Terms::default() });
    let arrivals = pass(&mut slow, 10_000, Duration::ZERO, 1000);
    assert_eq!(arrivals.len(), (5 << 20) / (1000 + frame::HEADER));
    assert_eq!(slow.counts().overflowed, 10_000 - arrivals.len() as u64);
}

#[test]
fn what_is_too_long_or_meets_silence_is_swallowed() {
    let long = Terms { mtu: Some(1200), ..Terms::default() };
    assert_eq!(pass(&mut way(1, long.clone()), 10, SECOND, 1200).len(), 10);
    assert_eq!(pass(&mut way(1, long), 10, SECOND, 1201).len(), 0);
    for (silent, carried) in [(Silent::Up, 0), (Silent::Both, 0), (Silent::Down, 10), (Silent::Neither, 10)] {
        let terms = Terms { silent, ..Terms::default() };
        assert_eq!(pass(&mut way(1, terms), 10, SECOND, 100).len(), carried, "{silent:?}");
    }
    let flap = Some(Flap { up: 2 * SECOND, down: 3 * SECOND });
    let arrivals = pass(&mut way(1, Terms { flap, ..Terms::default() }), 10, SECOND, 100);
    let numbers: Vec<u16> = arrivals.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 5, 6]);
}

/// A site without anything in it, removed at the end.
struct Bare(Address);

impl Bare {
    fn lay() -> Self {
        let address = Address::claim().unwrap();
        address.lay(None).unwrap();
        Self(address)
    }

    /// A socket at the site.
    fn socket(&self) -> UdpSocket {
        let netns = File::open(Path::new("/run/netns").join(&self.0.netns)).unwrap();
        let ip = self.0.site_ip;
        let open = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
            UdpSocket::bind((ip, 0)).unwrap()
        };
        thread::spawn(open).join().unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        remove_network(&self.0.netns, &self.0.host_interface).unwrap();
    }
}

fn patient(socket: &UdpSocket, patience: Duration) {
    socket.set_read_timeout(Some(patience)).unwrap();
}

/// What a datagram's way to the other end takes, and from where it seems to come.
fn exchange(from: &UdpSocket, to: &UdpSocket, at: (Ipv4Addr, u16)) -> Option<(Duration, u16)> {
    let begun = Instant::now();
    from.send_to(&[1; 1000], at).unwrap();
    let mut buffer = [0; 2000];
    let (length, sender) = to.recv_from(&mut buffer).ok()?;
    assert_eq!(length, 1000);
    Some((begun.elapsed(), sender.port()))
}

#[test]
fn packets_pass_between_the_host_and_a_site_as_the_terms_say() {
    let bare = Bare::lay();
    let wire = Wire::lay(&bare.0, 9).unwrap();
    let (site, host) = (bare.socket(), UdpSocket::bind((bare.0.host_ip, 0)).unwrap());
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let (site_at, host_at) = ((bare.0.site_ip, port(&site)), (bare.0.host_ip, port(&host)));
    patient(&site, 10 * SECOND);
    patient(&host, 10 * SECOND);
    let (_, seen) = exchange(&site, &host, host_at).unwrap_or_else(|| panic!("{}", wire.story()));
    assert_eq!(seen, port(&site));
    exchange(&host, &site, site_at).unwrap();

    let delay = Duration::from_millis(150);
    wire.set(&Terms { delay, ..Terms::default() });
    let (took, _) = exchange(&site, &host, host_at).unwrap();
    assert!(took >= delay, "{took:?}");

    // Another port with every translation, and the way back only through it.
    wire.heal();
    wire.rebind();
    let (_, first) = exchange(&site, &host, host_at).unwrap();
    wire.rebind();
    patient(&site, Duration::from_millis(200));
    assert!(exchange(&host, &site, (site_at.0, first)).is_none(), "a way back that was forgotten");
    let (_, second) = exchange(&site, &host, host_at).unwrap();
    assert!(first != second && first != seen, "{seen}, {first}, {second}");
    exchange(&host, &site, (site_at.0, second)).unwrap();

    // One that is idle for a while.
    let idle = Duration::from_millis(300);
    wire.forget_after(idle);
    let (_, first) = exchange(&site, &host, host_at).unwrap();
    exchange(&host, &site, (site_at.0, first)).unwrap();
    patient(&site, idle);
    assert!(site.recv(&mut [0]).is_err(), "nobody said anything");
    assert!(exchange(&host, &site, (site_at.0, first)).is_none(), "a way back that was idle");
    assert_ne!(exchange(&site, &host, host_at).unwrap().1, first);

    patient(&host, Duration::from_millis(200));
    for terms in [
        Terms { silent: Silent::Up, ..Terms::default() },
        Terms { mtu: Some(1000), ..Terms::default() },
        Terms { without_udp: true, ..Terms::default() },
        Terms { gone: Some(host_at.1), ..Terms::default() },
        Terms { loss: 100, ..Terms::default() },
    ] {
        wire.set(&terms);
        assert!(exchange(&site, &host, host_at).is_none(), "{}", wire.story());
    }
    let story = wire.story();
    assert!(
        story.contains("seed 9") && story.contains("NAT rebinds") && story.contains("100 % lost"),
        "{story}"
    );
}

#[test]
fn a_stream_is_whole_however_it_came() {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };
    let bare = Bare::lay();
    let wire = Wire::lay(&bare.0, 10).unwrap();
    wire.set(&Terms { loss: 2, duplicated: 5, reordered: 5, ..Terms::default() });
    let netns = File::open(Path::new("/run/netns").join(&bare.0.netns)).unwrap();
    let listener = TcpListener::bind((bare.0.host_ip, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let sender = thread::spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
        let mut stream = std::net::TcpStream::connect(to).unwrap();
        let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        stream.write_all(&bytes).unwrap();
    });
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received.len() == 300_000, "{} bytes", received.len());
    assert!(received.iter().enumerate().all(|(number, byte)| usize::from(*byte) == number % 251));
    let [up, down] = wire.counts();
    assert!(up.lost > 0 && up.duplicated > 0 && up.reordered > 0 && down.delivered > 0, "{up:?} {down:?}");
}

#[test]
fn the_thread_sleeps_while_nothing_passes_and_ends_with_the_line() {
    let bare = Bare::lay();
    let wire = Wire::lay(&bare.0, 11).unwrap();
    wire.set(&Terms { delay: Duration::from_millis(50), ..Terms::default() });
    let (site, host) = (bare.socket(), UdpSocket::bind((bare.0.host_ip, 0)).unwrap());
    patient(&host, 10 * SECOND);
    exchange(&site, &host, (bare.0.host_ip, host.local_addr().unwrap().port())).unwrap();
    let name = netns_of_wire(&bare.0.netns);
    let before = wakeups(&name).unwrap();
    // Nothing comes.
    patient(&host, SECOND / 2);
    assert!(host.recv(&mut [0]).is_err());
    let now = wakeups(&name).unwrap();
    assert!(now - before <= 8, "woken {} times in half a second", now - before);
    drop(wire);
    assert_eq!(wakeups(&name), None);
}

/// How often a thread of ours went to sleep; `None` without such a thread.
fn wakeups(name: &str) -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let own = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let task = tasks.map(|task| task.unwrap().path()).find(own)?;
    let status = std::fs::read_to_string(task.join("status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    Some(count.trim().parse().unwrap())
}
