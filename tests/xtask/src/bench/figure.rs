//! A measured figure, with its goal beside it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a figure is to be held to. Both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// Which number of the samples is the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Statistic {
    Median,
    /// The 99th percentile by nearest rank: of fewer than 100 samples, the largest.
    P99,
    /// There is but one, over the whole of what was measured.
    Whole,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) statistic: Statistic,
    pub(crate) value: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: Vec<f64>,
    pub(crate) goal: Option<Goal>,
    pub(crate) met: Option<bool>,
    /// What was spent meanwhile: whose, and how many seconds.
    pub(crate) cpu: Vec<(String, f64)>,
    /// What is included, or left out.
    pub(crate) note: String,
}

impl Figure {
    /// # Panics
    /// Without a sample: a measure that got none has failed before.
    pub(crate) fn new(name: &str, unit: &str, statistic: Statistic, samples: Vec<f64>) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let value = match statistic {
            Statistic::Median => median(&sorted),
            Statistic::P99 => sorted[(sorted.len() * 99).div_ceil(100) - 1],
            Statistic::Whole => max,
        };
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            statistic,
            value,
            min,
            max,
            samples,
            goal: None,
            met: None,
            cpu: Vec::new(),
            note: String::new(),
        }
    }

    pub(crate) fn median(name: &str, unit: &str, samples: Vec<f64>) -> Self {
        Self::new(name, unit, Statistic::Median, samples)
    }

    /// The 99th percentile.
    pub(crate) fn p99(name: &str, unit: &str, samples: Vec<f64>) -> Self {
        Self::new(name, unit, Statistic::P99, samples)
    }

    /// One number, of which there are no others.
    pub(crate) fn whole(name: &str, unit: &str, value: f64) -> Self {
        Self::new(name, unit, Statistic::Whole, vec![value])
    }

    #[must_use]
    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self.met = Some(match goal {
            Goal::AtMost(limit) => self.value <= limit,
            Goal::AtLeast(limit) => self.value >= limit,
        });
        self
    }

    #[must_use]
    pub(crate) fn cpu(mut self, whose: &str, spent: Duration) -> Self {
        self.cpu.push((whose.to_owned(), spent.as_secs_f64()));
        self
    }

    #[must_use]
    pub(crate) fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_samples() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let median = Figure::median("m", "ms", hundred.clone());
        assert_eq!((median.value, median.min, median.max), (50.5, 1.0, 100.0));
        let p99 = |samples| Figure::p99("p", "ms", samples).value.to_string();
        assert_eq!((p99(hundred), p99(vec![3.0, 9.0, 1.0])), ("99".to_owned(), "9".to_owned()));
        assert_eq!(Figure::median("m", "ms", vec![7.0]).value.to_string(), "7");
    }

    #[test]
    fn a_goal_is_met_or_not() {
        let figure = |goal| Figure::median("m", "ms", vec![5.0]).goal(goal).met;
        assert_eq!(figure(Goal::AtMost(5.0)), Some(true));
        assert_eq!(figure(Goal::AtMost(4.9)), Some(false));
        assert_eq!(figure(Goal::AtLeast(5.1)), Some(false));
    }
}
