//! The time that edgecore spent inside CRI calls for a pod, from its log with those calls traced. Calls of a pod overlap: what
//! counts is the time during which at least one was under way.

use std::collections::HashMap;

use anyhow::{Context, Result};
use jiff::Timestamp;

/// What this needs of the configuration; keadm takes a comma for the end of a setting.
pub(super) const LOG_LEVEL: &str = "logLevel=edgecore::edged=trace";

/// One pod's way to Running, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Start {
    /// From its worker being hired until its Running was stored for the cloud, rounded up.
    pub(super) whole: f64,
    /// Of it, while a CRI call was under way.
    pub(super) inside: f64,
}

impl Start {
    pub(super) fn added(&self) -> f64 {
        self.whole - self.inside
    }
}

/// A CRI call, in microseconds since 1970.
type Interval = (i64, i64);

/// All pods that came to run, by name.
pub(super) fn starts<'a>(lines: impl Iterator<Item = &'a str>) -> Result<HashMap<String, Start>> {
    let mut calls: HashMap<&str, Vec<Interval>> = HashMap::new();
    let mut starts = HashMap::new();
    for line in lines {
        if line.contains("edged::cri: runtime call")
            && let Some(uid) = span_uid(line)
        {
            let end = time(line)?;
            calls.entry(uid).or_default().push((end - field(line, "micros=")?.parse::<i64>()?, end));
        } else if line.contains("pod runs ") {
            let end = time(line)?;
            let whole = field(line, "total_ms=")?.parse::<i64>()? + 1;
            let uid = span_uid(line).context("a pod's line has its span")?;
            let within = (end - whole * 1000, end);
            let inside = covered(calls.remove(uid).unwrap_or_default(), within);
            let name = field(line, "pod=")?.rsplit('/').next().unwrap_or_default().to_owned();
            starts.insert(name, Start { whole: whole as f64, inside: inside as f64 / 1000.0 });
        }
    }
    Ok(starts)
}

/// How much of `within` the intervals cover.
fn covered(mut intervals: Vec<Interval>, within: Interval) -> i64 {
    intervals.sort_unstable();
    let (mut sum, mut until) = (0, within.0);
    for (from, to) in intervals {
        let (from, to) = (from.max(until), to.min(within.1));
        sum += (to - from).max(0);
        until = until.max(to);
    }
    sum
}

fn time(line: &str) -> Result<i64> {
    let word = line.split_whitespace().next().unwrap_or_default();
    let time: Timestamp = word.parse().with_context(|| format!("no time at the start of {line:?}"))?;
    Ok(time.as_microsecond())
}

fn span_uid(line: &str) -> Option<&str> {
    line.split_once("pod{uid=")?.1.split_once('}').map(|(uid, _)| uid)
}

fn field<'a>(line: &'a str, key: &str) -> Result<&'a str> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
    value.with_context(|| format!("no {key} in {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_the_same_time_count_once() {
        let log = "\
2026-01-01T00:00:00.000100Z  INFO edgecore::app: edgecore started
2026-01-01T00:00:01.004000Z TRACE pod{uid=u1}: edgecore::edged::cri: runtime call call=\"A\" micros=3000
2026-01-01T00:00:01.005000Z TRACE pod{uid=u1}: edgecore::edged::cri: runtime call call=\"B\" micros=3000
2026-01-01T00:00:01.005000Z TRACE edgecore::edged::cri: runtime call call=\"Status\" micros=9000
2026-01-01T00:00:01.009000Z TRACE pod{uid=u1}: edgecore::edged::cri: runtime call call=\"C\" micros=1000
2026-01-01T00:00:01.010000Z  INFO pod{uid=u1}: edgecore::edged::pod_worker: pod runs pod=Pod/default/p uid=u1 total_ms=9 runtime_ms=7 added_micros=2000
2026-01-01T00:00:01.020000Z TRACE pod{uid=u1}: edgecore::edged::cri: runtime call call=\"D\" micros=1000
";
        let starts = starts(log.lines()).unwrap();
        assert_eq!(starts, HashMap::from([("p".to_owned(), Start { whole: 10.0, inside: 5.0 })]));
        assert!((starts["p"].added() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_outside_is_not_covered() {
        assert_eq!(covered(vec![(0, 5), (95, 200), (10, 20), (12, 15)], (3, 100)), 2 + 10 + 5);
    }
}
