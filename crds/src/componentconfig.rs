//! The configuration files `cloudcore.yaml` and `edgecore.yaml`, with KubeEdge's key names.
//!
//! Every key has a default, so an empty file is valid; an unknown key is refused. A type is checked as a whole by its
//! `validate`, which reports every fault at once. A key is here only if it does something.

use std::{fmt, net::SocketAddr, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod cloudcore;
pub mod document;
pub mod edgecore;
pub mod explain;
pub mod quantity;
pub mod sync;
pub mod threshold;

/// One thing that is wrong with a configuration, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The path of the key, `modules.cloudHub.websocket.port`.
    pub key: String,
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Gathers faults.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn check(&mut self, ok: bool, key: &str, reason: impl FnOnce() -> String) {
        if !ok {
            self.0.push(Fault { key: key.to_owned(), reason: reason() });
        }
    }

    fn identity(&mut self, api_version: (&str, &[&str]), kind: (&str, &str)) {
        let (got, known) = api_version;
        self.check(known.contains(&got), "apiVersion", || format!("{got:?} is not {}", known.join(" or ")));
        let (got, want) = kind;
        self.check(got == want, "kind", || {
            format!("{got:?} is not {want}: is this the other program's file?")
        });
    }

    /// `HOST:PORT`, where the host may be a name.
    /// Of one or several, with commas.
    fn endpoints(&mut self, key: &str, text: &str) {
        for one in text.split(',') {
            self.check(is_endpoint(one), key, || format!("{one:?} is not HOST:PORT, as in 192.0.2.10:10000"));
        }
    }

    /// `unix:///PATH` or `IP:PORT`.
    fn listener(&mut self, key: &str, text: &str) {
        let ok = match text.strip_prefix("unix://") {
            Some(path) => Path::new(path).is_absolute(),
            None => text.parse::<SocketAddr>().is_ok(),
        };
        self.check(ok, key, || format!("{text:?} is neither IP:PORT nor unix:///PATH"));
    }

    fn at_least(&mut self, key: &str, value: u64, least: u64, why: &str) {
        self.check(value >= least, key, || format!("{value} is below {least}: {why}"));
    }

    fn done(self) -> Result<(), Vec<Fault>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// Whether `text` is `HOST:PORT`, `1.2.3.4:PORT` or `[::1]:PORT`.
pub fn is_endpoint(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return true;
    }
    text.rsplit_once(':')
        .is_some_and(|(host, port)| is_dns_name(host) && port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// Whether `name` is a DNS-1123 subdomain, which is what Kubernetes asks of a node's name.
pub fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| inner(byte) || byte == b'-')
        && label.bytes().next().is_some_and(inner)
        && label.bytes().last().is_some_and(inner)
}

/// Whether `key` and `value` make a Kubernetes label.
pub fn is_label(key: &str, value: &str) -> bool {
    let word = |text: &str| {
        text.len() <= 63
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric())
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_dns_name) && word(name) && (value.is_empty() || word(value))
}
