//! What a line is like.

use std::{fmt, time::Duration};

/// The default is a good line. Of a hundred frames each share is by chance, independently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Of a hundred frames, how many are lost.
    pub loss: u8,
    /// One way.
    pub delay: Duration,
    /// At most so much is added to the delay. By itself it reorders nothing.
    pub jitter: Duration,
    /// Of a hundred frames, how many come twice.
    pub duplicated: u8,
    /// Of a hundred frames, how many are held up, so that those after them come first.
    pub reordered: u8,
    /// Kilobits a second; 0 for no limit.
    pub rate: u32,
    /// What may wait for its turn on a line with a rate: packets, and bytes of them. What comes then is dropped.
    pub queue: (usize, usize),
    /// Longer IP packets are dropped, and nobody is told.
    pub mtu: Option<usize>,
    pub silent: Silent,
    /// UDP is dropped.
    pub without_udp: bool,
    /// Whoever has this port is gone: what goes there, and what comes from there, is dropped.
    pub gone: Option<u16>,
    pub flap: Option<Flap>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            loss: 0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            duplicated: 0,
            reordered: 0,
            rate: 0,
            queue: (50, 16 << 10),
            mtu: None,
            silent: Silent::Neither,
            without_udp: false,
            gone: None,
            flap: None,
        }
    }
}

/// What is not as on a good line.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            loss,
            delay,
            jitter,
            duplicated,
            reordered,
            rate,
            queue: (packets, bytes),
            mtu,
            silent,
            without_udp,
            gone,
            flap,
        } = self;
        let mut parts = Vec::new();
        let mut tell = |is: bool, what: String| parts.extend(is.then_some(what));
        tell(*loss > 0, format!("{loss} % lost"));
        tell(!delay.is_zero() || !jitter.is_zero(), format!("{delay:?} to {:?} late", *delay + *jitter));
        tell(*duplicated > 0, format!("{duplicated} % twice"));
        tell(*reordered > 0, format!("{reordered} % held up"));
        tell(*rate > 0, format!("{rate} kbit/s, {packets} packets or {bytes} bytes waiting"));
        tell(mtu.is_some(), format!("at most {} bytes", mtu.unwrap_or_default()));
        tell(*silent != Silent::Neither, format!("silent: {silent:?}"));
        tell(*without_udp, "no UDP".to_owned());
        tell(gone.is_some(), format!("port {} gone", gone.unwrap_or_default()));
        if let Some(Flap { up, down }) = flap {
            tell(true, format!("{up:?} up, {down:?} down"));
        }
        if parts.is_empty() {
            return f.write_str("good");
        }
        f.write_str(&parts.join(", "))
    }
}

/// The direction in which everything is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Silent {
    #[default]
    Neither,
    /// Nothing comes from the site.
    Up,
    /// Nothing comes to the site.
    Down,
    Both,
}

impl Silent {
    /// From the site, and to it.
    pub(super) const DIRECTIONS: [Self; 2] = [Self::Up, Self::Down];

    pub(super) fn is(self, direction: Self) -> bool {
        self == Self::Both || self == direction
    }
}

/// The line carries for a while, then drops everything for a while, and so on, from the moment when it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    pub up: Duration,
    pub down: Duration,
}

impl Flap {
    pub(super) fn is_down(self, since: Duration) -> bool {
        let period = (self.up + self.down).as_nanos().max(1);
        since.as_nanos() % period >= self.up.as_nanos()
    }
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub offered: u64,
    pub delivered: u64,
    /// By chance.
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// The queue was full.
    pub overflowed: u64,
    pub too_long: u64,
    /// The line was silent, or down, or carries no UDP, or the other end is gone.
    pub swallowed: u64,
    /// No translation of the address.
    pub untranslated: u64,
    /// The interface did not take it.
    pub refused: u64,
}
