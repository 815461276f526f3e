//! Changes at several rates, up to what takes all of the machine: how long until they are at the edge, what part of that is
//! cloudcore's, and who had to wait for a core.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::progress::during;
use serde_json::Value;

use super::{
    Turn, cores,
    stage::{Calls, Fleet},
};
use crate::bench::figure::{Figure, Goal};
use cores::{Cores, Passed};

/// Changes asked for in a second, and for how many seconds. The last is what cloudcore is held to.
const RATES: [(u32, u64); 4] = [(100, 10), (250, 10), (500, 10), (1000, 20)];
/// What the goal is.
const GOAL: Duration = Duration::from_millis(20);

/// What was read beside one rate.
struct Beside {
    called: Calls,
    passed: Passed,
    sent: Delays,
    acked: Delays,
}

impl Turn<'_> {
    pub(super) async fn changes(&mut self) -> Result<()> {
        let list = |of: fn(&(u32, u64)) -> String| RATES.iter().map(of).collect::<Vec<_>>().join(",");
        let fleet = self.stage.fleet(&[
            "--pods=1",
            &format!("--changes={}", list(|(rate, _)| rate.to_string())),
            &format!("--changing={}", list(|(_, seconds)| seconds.to_string())),
        ])?;
        self.live(&fleet, 0).await?;
        let mut beside = Vec::new();
        for (rate, seconds) in RATES {
            let limit = Duration::from_secs(seconds) + self.limit();
            fleet.until_told(&format!("changing ConfigMaps, {rate} a second"), limit).await?;
            let (calls, cores) = (self.stage.calls().await?, self.cores(&fleet)?);
            let (sent, acked) = self.delays().await?;
            let changed = format!("changed them, {rate} a second");
            during("changing ConfigMaps", fleet.until_told(&changed, limit)).await?;
            let passed = self.cores(&fleet)?.since(&cores);
            let now = self.delays().await?;
            let called = self.stage.calls().await?.since(&calls);
            beside.push(Beside { called, passed, sent: now.0.since(&sent), acked: now.1.since(&acked) });
        }
        fleet.until_told("all changes are made", self.limit()).await?;
        fleet.end()?;
        let summary = fleet.now()?;
        let outcomes = summary["changes"].as_array().context("the fleet told of no changes")?;
        ensure!(outcomes.len() == RATES.len(), "{} rates were told of: {summary}", outcomes.len());
        for (((rate, _), outcome), beside) in RATES.iter().zip(outcomes).zip(beside) {
            self.rate(*rate, outcome, &beside)?;
        }
        Ok(())
    }

    fn rate(&mut self, rate: u32, outcome: &Value, beside: &Beside) -> Result<()> {
        let number = |field: &str| outcome[field].as_f64().unwrap_or_default();
        let (asked, arrived) = (number("asked"), number("arrived"));
        ensure!(arrived > 0.0, "no change arrived: {outcome}");
        let name = self.name(&format!("{rate} changes a second"));
        let held = rate == RATES[RATES.len() - 1].0;
        let note =
            format!("{arrived} of {asked} arrived, {} failed; {}", number("failed"), beside.passed.waiting());
        let made = Figure::whole(&format!("{name}: made"), "/s", asked / number("seconds")).note(&note);
        self.figures.push(beside.passed.ran().fold(made, |figure, (whose, time)| figure.cpu(whose, time)));
        for (what, field) in [
            ("API's answer to commit, p50", "p50"),
            ("API's answer to commit, p99", "p99"),
            ("API's answer to commit, longest", "longest"),
            ("API's answer to a bare watch's event, p50", "event_p50"),
            ("API's answer to a bare watch's event, p99", "event_p99"),
            ("that event to commit, p50", "after_p50"),
            ("that event to commit, p99", "after_p99"),
            ("request to commit, p99", "whole_p99"),
        ] {
            let figure = Figure::whole(&format!("{name}: {what}"), "ms", number(field));
            let goal = matches!(field, "p99" | "after_p99");
            self.figures.push(if goal { figure.goal(Goal::AtMost(millis(GOAL))) } else { figure });
        }
        for (what, delays) in [("handed to the link", &beside.sent), ("acked by the edge", &beside.acked)] {
            let name = format!("{name}: cloudcore has the event to {what}");
            let within = delays.within(GOAL.as_secs_f64()) * 100.0;
            let note = format!("of {} batches, {within:.2} % within {} ms", delays.count(), millis(GOAL));
            for (quantile, share) in [("p50", 0.5), ("p99", 0.99)] {
                let figure =
                    Figure::whole(&format!("{name}, {quantile}"), "ms", delays.quantile(share) * 1e3);
                self.figures.push(figure.note(&note));
            }
        }
        let Calls { all, leases } = beside.called;
        let note = format!("{all:.0} calls, without {asked:.0} changes and {leases:.0} of leases");
        let calls = Figure::whole(
            &format!("{name}: API calls a delta"),
            "calls",
            (all - leases - asked).max(0.0) / arrived,
        );
        self.figures.push(if held { calls.goal(Goal::AtMost(0.05)) } else { calls }.note(&note));
        Ok(())
    }

    /// All that share the cores, the nodes apart from what loads and measures beside them.
    fn cores(&self, fleet: &Fleet) -> Result<Cores> {
        let mut cores = Cores::default();
        cores.add("cloudcore", self.stage.cloud.pid()?, |_| true)?;
        for program in ["kube-apiserver", "etcd", "kube-controller-manager"] {
            cores.add(program, self.stage.control_plane(program)?, |_| true)?;
        }
        let beside = |thread: &str| matches!(thread, "changes" | "beside");
        cores.add("hollow's nodes", fleet.pid(), |thread| !beside(thread))?;
        cores.add("hollow's changes and bare watch", fleet.pid(), beside)?;
        Ok(cores)
    }

    /// From the event to the link, and to the ack.
    async fn delays(&self) -> Result<(Delays, Delays)> {
        let page = self.stage.cloud.admin("/metrics").await?.body;
        Ok((
            Delays::of(&page, "cloudcore_batch_sent_seconds")?,
            Delays::of(&page, "cloudcore_batch_acked_seconds")?,
        ))
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A histogram of cloudcore's: the bounds in seconds, and how many were no longer.
#[derive(Debug, PartialEq)]
struct Delays(Vec<(f64, f64)>);

impl Delays {
    fn of(page: &str, name: &str) -> Result<Self> {
        let bucket = |line: &str| {
            let (bound, count) =
                line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.trim().parse().ok()?))
        };
        let buckets: Vec<(f64, f64)> = page.lines().filter_map(bucket).collect();
        ensure!(buckets.last().is_some_and(|(bound, _)| bound.is_infinite()), "no histogram {name}: {page}");
        Ok(Self(buckets))
    }

    fn since(&self, before: &Self) -> Self {
        let buckets = self.0.iter().zip(&before.0);
        Self(buckets.map(|((bound, now), (_, before))| (*bound, now - before)).collect())
    }

    fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The bound of the bucket that the quantile is in: it is no more than that.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = self.count() * share;
        self.0.iter().find(|(_, count)| *count >= wanted).map_or(0.0, |(bound, _)| *bound)
    }

    /// The share that took no longer than a bound.
    fn within(&self, limit: f64) -> f64 {
        let within = self.0.iter().rev().find(|(bound, _)| *bound <= limit).map_or(0.0, |(_, count)| *count);
        within / self.count().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read_as_it_is_written() {
        let page = "# TYPE a histogram\na_sum 1.5\na_count 9\na_bucket{le=\"0.01\"} 5\na_bucket{le=\"0.02\"} 8\n\
                    a_bucket{le=\"+Inf\"} 9\nab_bucket{le=\"7.0\"} 3\n";
        let now = Delays::of(page, "a").unwrap();
        assert_eq!((now.count(), now.quantile(0.5), now.quantile(0.99)), (9.0, 0.01, f64::INFINITY));
        assert!((now.within(0.02) - 8.0 / 9.0).abs() < 1e-9);
        let before = Delays(vec![(0.01, 5.0), (0.02, 5.0), (f64::INFINITY, 5.0)]);
        assert_eq!(now.since(&before), Delays(vec![(0.01, 0.0), (0.02, 3.0), (f64::INFINITY, 4.0)]));
        assert!(Delays::of(page, "b").is_err());
    }
}
