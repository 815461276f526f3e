//! How a configuration file is read: YAML as kubectl reads it, a type that refuses unknown keys, then the type's own
//! checks. What is wrong is said with the file, the place, the key, and, for an unknown key, the nearest known one.

use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

mod config_map;

pub use config_map::{DocumentError, document};
use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Error as YamlError, Options};

/// No configuration comes near it; a wrong path (a disk image, a device) must not fill the memory.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: larger than {MAX_SIZE} bytes; is it the right file?", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}{place}: {message}", path.display())]
    Syntax { path: PathBuf, place: Place, message: String },
    #[error("{}: {}", path.display(), faults.join("; "))]
    Faults {
        path: PathBuf,
        /// Each is `key: reason`.
        faults: Vec<String>,
    },
}

/// Displays `:LINE:COLUMN: KEY`, or nothing where the place is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub position: Option<(u64, u64)>,
    pub key: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        self.key.as_ref().map_or(Ok(()), |key| write!(f, ": {key}"))
    }
}

/// Reads the configuration at `path`; `check` is the type's `validate`.
///
/// An empty file, or one with comments only, is the defaults.
pub fn load<T, F>(path: &Path, check: impl FnOnce(&T) -> Result<(), Vec<F>>) -> Result<T, ConfigError>
where
    T: DeserializeOwned,
    F: fmt::Display,
{
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        place: Place::default(),
        message: format!("not UTF-8 text after byte {}", error.utf8_error().valid_up_to()),
    })?;
    parse(&text, path, check)
}

/// As [`load`], from text; `path` is only named in errors.
pub fn parse<T, F>(
    text: &str,
    path: &Path,
    check: impl FnOnce(&T) -> Result<(), Vec<F>>,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned,
    F: fmt::Display,
{
    let says_something = |line: &str| {
        let line = line.trim();
        !(line.is_empty() || line.starts_with('#') || line == "---" || line == "...")
    };
    let yaml = if text.lines().any(says_something) { text } else { "{}" };
    let config =
        serde_saphyr::from_str_with_options(yaml, options()).map_err(|error| describe(&error, text, path))?;
    check(&config).map_err(|faults| ConfigError::Faults {
        path: path.to_owned(),
        faults: faults.iter().map(ToString::to_string).collect(),
    })?;
    Ok(config)
}

/// YAML as kubectl reads it: `0644` is octal; and a key that is written twice is an error.
fn options() -> Options {
    serde_saphyr::options! {
        legacy_octal_numbers: true,
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
    }
}

fn describe(error: &YamlError, text: &str, path: &Path) -> ConfigError {
    let error = error.without_snippet();
    let position = error.location().map(|at| (at.line(), at.column()));
    let key = position.and_then(|(line, _)| usize::try_from(line).ok()).and_then(|line| key_at(text, line));
    let message = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        YamlError::SerdeUnknownVariant { variant, expected, .. } => {
            format!("{variant:?} is not one of {}", expected.join(", "))
        }
        YamlError::DuplicateMappingKey { .. } => "the key is there twice".to_owned(),
        other => without_position(&other.to_string()),
    };
    ConfigError::Syntax { path: path.to_owned(), place: Place { position, key }, message }
}

fn unknown_key(key: &str, known: &[&'static str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key {key:?}; did you mean {near:?}?"),
        None => format!("unknown key {key:?}; known here: {}", known.join(", ")),
    }
}

/// The parser's own text ends in, or starts with, the position, which is already said.
fn without_position(text: &str) -> String {
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let text = match text.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, message)) => message,
        None => text.rsplit_once(" at line ").map_or(text, |(message, _)| message),
    };
    text.to_owned()
}

/// The path of the key on a line of block-style YAML: the line's own key, below those that are indented less.
fn key_at(text: &str, line: usize) -> Option<String> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    let mut keys = Vec::new();
    let mut limit = usize::MAX;
    for line in lines.iter().rev() {
        let indent = line.len() - line.trim_start().len();
        let Some((key, _)) = line.trim_start().trim_start_matches("- ").split_once(':') else { continue };
        if indent < limit && !key.is_empty() && !key.starts_with('#') {
            keys.push(key.trim_matches('"'));
            limit = indent;
        }
    }
    keys.reverse();
    (!keys.is_empty()).then(|| keys.join("."))
}

/// The candidate nearest to `word`, if it is near enough to be a slip of the finger or another spelling of it.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&lower, &candidate.to_lowercase()), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance * 3 <= candidate.chars().count().max(word.chars().count()))
        .map(|(_, candidate)| candidate)
}

/// How many letters have to be put in, left out, replaced, or swapped with their neighbour.
fn edit_distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, a) in from.iter().enumerate() {
        let mut this = vec![row + 1];
        for (column, b) in to.iter().enumerate() {
            let replaced = last[column] + usize::from(a != b);
            let mut least = replaced.min(last[column + 1] + 1).min(this[column] + 1);
            if row > 0 && column > 0 && *a == to[column - 1] && from[row - 1] == *b {
                least = least.min(before[column - 1] + 1);
            }
            this.push(least);
        }
        before = std::mem::replace(&mut last, this);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Hub {
        heartbeat: u32,
        keep_alive: bool,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Modules {
        edge_hub: Hub,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Config {
        mode: u32,
        modules: Modules,
    }

    fn check(config: &Config) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        if config.mode == 7 {
            faults.push("mode: 7 is out of order".to_owned());
            faults.push("modules.edgeHub.heartbeat: would be too slow".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn read(text: &str) -> Result<Config, String> {
        parse(text, Path::new("x.yaml"), check).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_the_defaults() {
        for text in ["", "\n\n", "# a comment\n---\n"] {
            assert_eq!(read(text), Ok(Config::default()), "{text:?}");
        }
    }

    #[test]
    fn numbers_and_booleans_are_those_of_kubectl() {
        let config = read("mode: 0644\nmodules: {edgeHub: {keepAlive: yes}}\n").unwrap();
        assert_eq!(config.mode, 0o644);
        assert!(config.modules.edge_hub.keep_alive);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest() {
        let error = read("mode: 1\nmodules:\n  edgeHub:\n    hartbeat: 30\n").unwrap_err();
        assert_eq!(
            error,
            "x.yaml:4:5: modules.edgeHub.hartbeat: unknown key \"hartbeat\"; did you mean \"heartbeat\"?"
        );
        let error = read("modules:\n  kitchen: {}\n").unwrap_err();
        assert_eq!(error, "x.yaml:2:3: modules.kitchen: unknown key \"kitchen\"; known here: edgeHub");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_key() {
        let error = read("modules:\n  edgeHub:\n    heartbeat: soon\n").unwrap_err();
        assert!(error.starts_with("x.yaml:3:16: modules.edgeHub.heartbeat: "), "{error}");
        assert!(!error.contains("line 3"), "{error}");
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        let error = read("mode: 1\nmode: 2\n").unwrap_err();
        assert_eq!(error, "x.yaml:2:1: mode: the key is there twice");
    }

    #[test]
    fn broken_yaml_is_an_error_with_its_place() {
        let error = read("modules:\n  edgeHub: [1, 2\n").unwrap_err();
        assert!(error.starts_with("x.yaml:"), "{error}");
        assert!(read("modules: *nowhere\n").is_err());
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let error = read("mode: 7\n").unwrap_err();
        assert_eq!(error, "x.yaml: mode: 7 is out of order; modules.edgeHub.heartbeat: would be too slow");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load(Path::new("/nowhere/x.yaml"), check).unwrap_err();
        assert!(
            crate::chain(&error).to_string().starts_with("failed to read the configuration /nowhere/x.yaml")
        );
    }

    #[test]
    fn swapped_letters_are_one_slip() {
        assert_eq!(edit_distance("heratbeat", "heartbeat"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(nearest("nodeip", ["nodeIP", "nodeLabels"]), Some("nodeIP"));
    }
}
