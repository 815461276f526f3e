//! At what pace certificates are renewed when a CA is rotated under a fleet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, interval};

use super::Cloud;

const LOOK: Duration = Duration::from_millis(50);

/// How certificates were renewed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the first to the last.
    pub took: Duration,
    /// In the second that had most.
    pub worst: u64,
}

/// How many certificates these cloudcores have renewed over the link since their starts.
pub async fn renewals(clouds: &[&Cloud]) -> Result<u64> {
    let mut sum = 0;
    for cloud in clouds {
        let page = cloud.admin("/metrics").await?.body;
        let count = page.lines().find_map(|line| line.strip_prefix("cloudcore_renewals_total "));
        sum += count.context("cloudcore does not count renewals")?.parse::<u64>()?;
    }
    Ok(sum)
}

impl Pace {
    /// Watches until there have been so many.
    ///
    /// # Errors
    /// There have not within `limit`.
    pub async fn until(clouds: &[&Cloud], until: u64, limit: Duration) -> Result<Self> {
        let begun = Instant::now();
        // When there were how many, wherever there were more than before.
        let mut seen: Vec<(Instant, u64)> = Vec::new();
        let mut looks = interval(LOOK);
        loop {
            looks.tick().await;
            let count = renewals(clouds).await?;
            if seen.last().is_none_or(|(_, last)| *last != count) {
                seen.push((Instant::now(), count));
            }
            if count >= until {
                return Ok(Self::of(&seen));
            }
            ensure!(begun.elapsed() < limit, "{count} of {until} renewals after {limit:?}");
        }
    }

    fn of(seen: &[(Instant, u64)]) -> Self {
        let in_a_second =
            seen.iter().zip(seen.iter().skip(1)).enumerate().map(|(number, (before, first))| {
                let second =
                    seen[number..].iter().take_while(|(at, _)| *at <= first.0 + Duration::from_secs(1));
                second.last().map_or(0, |(_, count)| count - before.1)
            });
        let worst = in_a_second.max().unwrap_or_default();
        // What was there at the first look is not of these.
        let took = match seen {
            [_, (first, _), .., (last, _)] => *last - *first,
            _ => Duration::ZERO,
        };
        Self { took, worst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_that_has_most_is_any_second() {
        let at = |millis: u64, begun: Instant, count| (begun + Duration::from_millis(millis), count);
        let begun = Instant::now();
        let seen =
            [at(0, begun, 5), at(400, begun, 6), at(900, begun, 9), at(1500, begun, 12), at(3000, begun, 13)];
        let pace = Pace::of(&seen);
        assert_eq!((pace.worst, pace.took), (6, Duration::from_millis(2600)));
        assert_eq!(Pace::of(&seen[..1]).worst, 0);
    }
}
