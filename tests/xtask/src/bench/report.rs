//! All figures: the file that they are kept in, and the table that people read.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use harness::setup::source_dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Measure,
    figure::{Figure, Goal, Statistic},
    reading,
};

const FILE: &str = "target/bench/first-light.json";
const DOCS: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Report {
    machine: Machine,
    measures: Vec<Measured>,
}

#[derive(Default, Serialize, Deserialize)]
struct Machine {
    cores: usize,
    cpu: String,
    memory_mib: u64,
    kernel: String,
}

#[derive(Serialize, Deserialize)]
struct Measured {
    measure: String,
    at: Timestamp,
    took_seconds: f64,
    /// Of the last minute before it began.
    load_average: f64,
    /// While it lasted, of all cores, by whatever runs on the machine.
    machine_busy_percent: f64,
    figures: Vec<Figure>,
}

/// What the machine was like when a measure began.
pub(crate) struct Conditions {
    at: Timestamp,
    begun: Instant,
    load_average: f64,
    busy: Duration,
}

/// What it was like until its end.
pub(crate) struct Passed {
    at: Timestamp,
    took: Duration,
    load_average: f64,
    busy: Duration,
}

impl Conditions {
    pub(crate) fn note() -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg")?;
        let load_average = load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
        Ok(Self { at: Timestamp::now(), begun: Instant::now(), load_average, busy: reading::machine_busy()? })
    }

    pub(crate) fn to_now(&self) -> Result<Passed> {
        Ok(Passed {
            at: self.at,
            took: self.begun.elapsed(),
            load_average: self.load_average,
            busy: reading::machine_busy()?.saturating_sub(self.busy),
        })
    }
}

impl Report {
    /// What was measured before, or nothing.
    pub(crate) fn load() -> Result<Self> {
        let path = file();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not what this version writes; remove it", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    pub(crate) fn describe_machine(&mut self) {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        self.machine = Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field(&text("/proc/cpuinfo"), "model name"),
            memory_mib: reading::number(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0) / 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        };
    }

    pub(crate) fn put(&mut self, measure: Measure, passed: &Passed, figures: Vec<Figure>) {
        self.forget(measure);
        let available = passed.took.as_secs_f64() * self.machine.cores.max(1) as f64;
        self.measures.push(Measured {
            measure: measure.name().to_owned(),
            at: passed.at,
            took_seconds: passed.took.as_secs_f64(),
            load_average: passed.load_average,
            machine_busy_percent: 100.0 * passed.busy.as_secs_f64() / available.max(0.01),
            figures,
        });
        let order = |name: &str| {
            use clap::ValueEnum;
            Measure::value_variants().iter().position(|measure| measure.name() == name)
        };
        self.measures.sort_by_key(|measured| order(&measured.measure));
    }

    pub(crate) fn forget(&mut self, measure: Measure) {
        self.measures.retain(|measured| measured.measure != measure.name());
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = file();
        fs::create_dir_all(path.parent().context("the file is in a directory")?)?;
        let new = path.with_extension("json.new");
        fs::write(&new, self.json()?)?;
        fs::rename(&new, &path).with_context(|| format!("failed to write {}", path.display()))
    }

    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// In Markdown, in columns that line up.
    pub(crate) fn table(&self) -> String {
        let header = ["measure", "figure", "value", "min", "max", "of", "goal", "met", "CPU seconds"];
        let mut rows = vec![header.map(str::to_owned)];
        for measured in &self.measures {
            rows.extend(measured.figures.iter().map(|figure| row(&measured.measure, figure)));
        }
        let widths: Vec<usize> = (0..header.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
            .collect();
        let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
        let mut lines: Vec<String> = rows
            .iter()
            .map(|row| row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect())
            .map(line)
            .collect();
        lines.insert(1, line(widths.iter().map(|&width| "-".repeat(width)).collect()));
        let Machine { cores, cpu, memory_mib, kernel } = &self.machine;
        lines.push(format!("\n{cores} cores ({cpu}), {memory_mib} MiB, Linux {kernel}.\n"));
        for measured in &self.measures {
            lines.push(format!(
                "- {}: {:.0}, {:.0} s, load {:.2} at the start, all cores {:.0} % busy",
                measured.measure,
                measured.at,
                measured.took_seconds,
                measured.load_average,
                measured.machine_busy_percent,
            ));
            let noted = measured.figures.iter().filter(|figure| !figure.note.is_empty());
            lines.extend(noted.map(|figure| format!("  - {}: {}", figure.name, figure.note)));
        }
        lines.join("\n")
    }

    /// Replaces the table in the documentation.
    pub(crate) fn write_docs(&self) -> Result<()> {
        let path = source_dir().join(DOCS);
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {DOCS}"))?;
        let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{DOCS} has no {BEGIN}"))?;
        let (_, after) = rest.split_once(END).with_context(|| format!("{DOCS} has no {END}"))?;
        let new = format!("{before}{BEGIN}\n\n{}\n{END}{after}", self.table());
        fs::write(&path, new).with_context(|| format!("failed to write {DOCS}"))
    }
}

fn row(measure: &str, figure: &Figure) -> [String; 9] {
    let unit = &figure.unit;
    let goal = match figure.goal {
        None => String::new(),
        Some(Goal::AtMost(limit)) => format!("<= {limit} {unit}"),
        Some(Goal::AtLeast(limit)) => format!(">= {limit} {unit}"),
    };
    let (min, max, of) = match figure.statistic {
        Statistic::Whole => (String::new(), String::new(), String::new()),
        Statistic::Median => {
            (short(figure.min), short(figure.max), format!("median of {}", figure.samples.len()))
        }
        Statistic::P99 => (short(figure.min), short(figure.max), format!("p99 of {}", figure.samples.len())),
    };
    let met = match figure.met {
        None => "",
        Some(true) => "yes",
        Some(false) => "NO",
    };
    let cpu: Vec<String> = figure.cpu.iter().map(|(whose, spent)| format!("{whose} {spent:.2}")).collect();
    [
        measure.to_owned(),
        figure.name.clone(),
        format!("{} {unit}", short(figure.value)),
        min,
        max,
        of,
        goal,
        met.to_owned(),
        cpu.join(", "),
    ]
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn file() -> PathBuf {
    source_dir().join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_goal_beside_the_figure() {
        let mut report = Report::default();
        let passed = Conditions::note().unwrap().to_now().unwrap();
        let met = Figure::median("small", "MiB", vec![3.0, 1.0, 2.0]).goal(Goal::AtMost(4.0));
        let missed = Figure::whole("fast", "/min", 1234.5).goal(Goal::AtLeast(2000.0));
        report.put(Measure::Idle, &passed, vec![met]);
        report.put(Measure::Size, &passed, vec![missed]);
        let table = report.table();
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(lines[2], ["", "size", "fast", "1234 /min", "", "", "", ">= 2000 /min", "NO", "", ""]);
        assert_eq!(
            lines[3],
            ["", "idle", "small", "2.00 MiB", "1.00", "3.00", "median of 3", "<= 4 MiB", "yes", "", ""]
        );
        report.put(Measure::Size, &passed, Vec::new());
        assert!(!report.table().contains("fast"), "figures of before stay");
    }
}
