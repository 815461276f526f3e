//! Telling a person what takes so long: one line that counts the seconds on a terminal, a line now and then in a log.

use std::{
    future::Future,
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

/// What is over sooner than this is not worth a line.
const QUIET: Duration = Duration::from_secs(2);
/// Between two lines where there is no terminal to rewrite one on.
const LOG_PERIOD: Duration = Duration::from_secs(20);

/// Drives `work` and shows `what` with the time it has taken, from two seconds on.
pub async fn during<F: Future>(what: &str, work: F) -> F::Output {
    let terminal = stderr().is_terminal();
    let start = Instant::now();
    let mut ticks = interval(Duration::from_millis(500));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut next_line = QUIET;
    tokio::pin!(work);
    let output = loop {
        tokio::select! {
            output = &mut work => break output,
            _ = ticks.tick() => {
                let elapsed = start.elapsed();
                if elapsed < next_line {
                    continue;
                }
                if terminal {
                    show(&format!("\r\x1b[2K  … {what} ({} s)", elapsed.as_secs()));
                } else {
                    show(&format!("  … {what} ({} s)\n", elapsed.as_secs()));
                    next_line = elapsed + LOG_PERIOD;
                }
            }
        }
    };
    if terminal {
        show("\r\x1b[2K");
    }
    output
}

/// Progress is for people: when nobody can be told (a closed pipe), the work goes on.
fn show(text: &str) {
    let mut out = stderr().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
