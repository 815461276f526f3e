//! Lengths of time as people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `90`, `90s`, `15m`, `24h`, `7d`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("not a length of time, as in 90s, 15m, 24h, 7d".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "not a length of time, as in 90s, 15m, 24h, 7d".to_owned())?;
    match number.checked_mul(unit) {
        // A token for longer than this is a password.
        Some(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("must be from 1s to 365d".to_owned()),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
