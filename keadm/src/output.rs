//! What people see: steps on standard error, with a spinner for those that take time, and data on standard output.

use std::{
    fmt,
    future::Future,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Steps that are done sooner need no spinner.
const SOON: Duration = Duration::from_millis(500);

enum Colour {
    Green,
    Red,
    Dim,
}

impl Colour {
    fn paint(&self, text: &str) -> String {
        if !io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
            return text.to_owned();
        }
        let code = match self {
            Self::Green => 32,
            Self::Red => 31,
            Self::Dim => 2,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Data that the command was asked for.
pub(crate) fn data(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        // `keadm … | head`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("failed to write to standard output"),
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    data(&serde_json::to_string_pretty(value)?)
}

/// Something done, or found to be well.
pub(crate) fn done(text: impl fmt::Display) {
    line(&format!("{} {text}", Colour::Green.paint("ok")));
}

/// Something that was so already.
pub(crate) fn unchanged(text: impl fmt::Display) {
    line(&format!("{} {text}", Colour::Dim.paint("--")));
}

/// Something that --dry-run leaves undone.
pub(crate) fn planned(text: impl fmt::Display) {
    line(&format!("{} {text}", Colour::Dim.paint("would")));
}

pub(crate) fn note(text: impl fmt::Display) {
    line(&text.to_string());
}

/// Something that is wrong, and what to do about it.
pub(crate) fn problem(cause: &str, fix: &str) {
    line(&format!("{} {cause}", Colour::Red.paint("!!")));
    line(&format!("   fix: {fix}"));
}

pub(crate) fn error(error: &anyhow::Error) {
    line(&format!("{} {}", Colour::Red.paint("error:"), runtime::chain(error.as_ref())));
}

fn line(text: &str) {
    // With standard error closed there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Waits for `work`, with a spinner on a terminal and a line elsewhere, and says how long it took.
pub(crate) async fn step<T>(text: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let mut work = std::pin::pin!(work);
    let result = match tokio::time::timeout(SOON, &mut work).await {
        Ok(result) => result,
        Err(_) if io::stderr().is_terminal() => {
            let spinner = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                .context("the template is well-formed")?;
            spinner.set_style(style);
            spinner.set_message(text.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
            let result = work.await;
            spinner.finish_and_clear();
            result
        }
        Err(_) => {
            line(&format!(".. {text}"));
            work.await
        }
    };
    if result.is_ok() {
        let seconds = started.elapsed().as_secs_f64();
        done(format_args!("{text} ({seconds:.1} s)"));
    }
    result
}

/// Asks on the terminal; anything but yes is no.
pub(crate) fn confirm(question: &str) -> Result<bool> {
    anyhow::ensure!(io::stdin().is_terminal(), "{question} Standard input is no terminal; say --force");
    drop(write!(io::stderr().lock(), "{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("failed to read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
