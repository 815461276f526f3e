//! Logs: structured, to standard error, with a level that can be changed while the process runs.

use std::{iter, sync::Arc};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Libraries that log a line for each thing that a peer does wrong, which would be the peer's to write to the disk.
const QUIET: &[(&str, &str)] = &[("mqtt5", "error")];

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Changes the log level of the running process.
#[derive(Clone)]
pub struct LogLevel {
    handle: Option<Arc<reload::Handle<EnvFilter, Registry>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log filter {filter:?} is not valid; use a level (error, warn, info, debug, trace) or target=level,…"
    )]
    Filter {
        filter: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("the log filter cannot be changed")]
    Reload(#[source] reload::Error),
    #[error("logging was set up twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Starts logging with `filter` (`info`, or `warn,edgecore::edged=debug`).
pub fn init(filter: &str, format: LogFormat) -> Result<LogLevel, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let result = match format {
        LogFormat::Text => {
            // No colours on a terminal either: asking for them without their feature panics.
            registry.with(fmt::layer().with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Json => {
            registry.with(fmt::layer().json().with_writer(std::io::stderr).flatten_event(true)).try_init()
        }
    };
    result.map_err(LogError::Twice)?;
    Ok(LogLevel { handle: Some(Arc::new(handle)) })
}

impl LogLevel {
    /// For tests: changes nothing.
    pub fn fixed() -> Self {
        Self { handle: None }
    }

    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let filter = parse(filter)?;
        self.handle.as_ref().map_or(Ok(()), |handle| handle.reload(filter)).map_err(LogError::Reload)
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    // Whoever names one wants to hear it.
    let quiet = QUIET.iter().filter(|(library, _)| !filter.contains(library));
    let quiet = quiet.map(|(library, level)| format!("{library}={level}"));
    let directives: Vec<String> = iter::once(filter.to_owned()).chain(quiet).collect();
    let parsed = EnvFilter::builder().parse(directives.join(","));
    parsed.map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_peers_make_talk_is_heard_by_whoever_names_it() {
        assert_eq!(parse("info").unwrap().to_string(), "mqtt5=error,info");
        assert_eq!(parse("info,mqtt5=debug").unwrap().to_string(), "mqtt5=debug,info");
        let error = parse("info=loud").unwrap_err().to_string();
        assert!(error.starts_with("log filter \"info=loud\" is not valid"), "{error}");
    }
}
