//! How fast a serial line is, and waiting for it.

use std::time::Duration;

use tokio::{
    task::spawn_blocking,
    time::{self, Instant},
};

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Speed {
    /// Bytes come and go at this pace; 0 for at once.
    #[arg(long, default_value_t = 0)]
    baud: u32,
    /// Of a character, with its start, parity and stop bits: 11 of 8E1 and 8N2, 10 of 8N1.
    #[arg(long, default_value_t = 11)]
    bits: u32,
    /// Answer after the silence that ends a request, and byte by byte; otherwise all at once, when the last byte would be there.
    #[arg(long)]
    pub(super) pace: bool,
}

impl Speed {
    /// How long so many characters take.
    pub(super) fn characters(self, count: usize) -> Duration {
        let nanos = 1_000_000_000 * u64::from(self.bits) * count as u64;
        Duration::from_nanos(nanos.checked_div(self.baud.into()).unwrap_or_default())
    }

    /// The silence that ends a frame: Modbus over Serial Line V1.02, 2.5.1.1.
    pub(super) fn silence(self) -> Duration {
        if self.baud > 19_200 { Duration::from_micros(1750) } else { self.characters(7) / 2 }
    }
}

/// To a tenth of a millisecond: tokio's timers have whole ones, in which ten characters pass at 115,200 baud.
pub(super) async fn until(then: Instant) {
    let left = then.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "for less than a timer can wait")]
    let slept = spawn_blocking(move || std::thread::sleep(left));
    if slept.await.is_err() {
        time::sleep(left).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_its_time() {
        let speed = |baud, bits| Speed { baud, bits, pace: true };
        assert_eq!(speed(9600, 11).characters(96), Duration::from_millis(110));
        assert_eq!(speed(9600, 10).silence(), Duration::from_nanos(3_645_833));
        assert_eq!(speed(115_200, 11).silence(), Duration::from_micros(1750));
        assert_eq!(speed(0, 11).characters(8), Duration::ZERO);
    }
}
