//! Waiting for a condition with a deadline, and telling the last thing seen when it does not come.

use std::{fmt::Display, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout};

/// Between two looks. Short beside anything that a container runtime or an API server does.
const PERIOD: Duration = Duration::from_millis(100);

/// Polls `condition` until it returns `Ok`, which becomes the result.
///
/// # Errors
/// When `deadline` has passed; the message names `what` and the last `Err` of the condition. A single look that
/// hangs is cut off at the deadline too.
pub async fn until<T, E, F>(what: &str, deadline: Duration, mut condition: F) -> Result<T>
where
    E: Display,
    F: AsyncFnMut() -> Result<T, E>,
{
    let start = Instant::now();
    let mut last = String::from("never looked");
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        match timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(status)) => last = format!("{status:#}"),
            Err(_) => bail!("{what}: not within {deadline:?}; last seen: {last} (the last look hung)"),
        }
        if start.elapsed() >= deadline {
            bail!("{what}: not within {deadline:?}; last seen: {last}");
        }
        sleep(PERIOD).await;
    }
}

/// Watches that `condition` stays `Ok` for the whole of `period`.
///
/// # Errors
/// The first `Err` of the condition, with how long it had held before.
pub async fn holds<E, F>(what: &str, period: Duration, mut condition: F) -> Result<()>
where
    E: Display,
    F: AsyncFnMut() -> Result<(), E>,
{
    let start = Instant::now();
    while start.elapsed() < period {
        if let Err(status) = condition().await {
            bail!("{what}: held for {:?} only: {status:#}", start.elapsed());
        }
        sleep(PERIOD).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn returns_the_value_once_it_is_there() {
        let mut looks = 0;
        let value = until("third look", Duration::from_secs(1), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err("not yet") }
        });
        assert_eq!(value.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_tells_the_last_status() {
        let error = until("a miracle", Duration::from_secs(1), async || Err::<(), _>("still nothing"));
        let text = error.await.unwrap_err().to_string();
        assert!(text.contains("a miracle") && text.contains("still nothing"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_cut_off() {
        let never = until("an answer", Duration::from_secs(1), async || {
            std::future::pending::<Result<(), String>>().await
        });
        assert!(never.await.unwrap_err().to_string().contains("hung"));
    }
}
