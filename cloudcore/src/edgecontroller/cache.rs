//! Reflectors: one list and watch a kind, whose objects go to the index as bytes.
//!
//! kube's own watcher hides bookmarks and the version of a list, which [`Index::bookmark`] needs to know how fresh a cache
//! is, and parses objects; so this is list and watch on the raw answers. The states are client-go's: list everything
//! (a consistent read, in pages), apply it at once, watch from its version, resume from the last version seen when the watch
//! ends, and list again when the API server no longer has that version (410 Gone).

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{AsyncBufRead as _, AsyncBufReadExt as _};
use http::Request;
use kube::Client;
use proto::ResourceKey;
use runtime::backoff::Backoff;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{task, time};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    index::Index,
    objects::{Cached, Kind, resource_version},
};

/// Objects a page of a list, as client-go.
const PAGE: u32 = 500;
/// A page that takes longer is asked for again.
const LIST_DEADLINE: Duration = Duration::from_mins(1);
/// The API server ends a watch after this.
const WATCH_SECONDS: u64 = 290;
/// Bookmarks come every minute or so: a watch with nothing for this long has lost its connection.
const QUIET: Duration = Duration::from_secs(150);
/// Events that are applied before the sessions that need them have their turn.
const TURN: usize = 16;
/// A watch that ends sooner is a failure, to be backed off from.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("failed to list")]
    List(#[source] Box<kube::Error>),
    #[error("list did not come within {LIST_DEADLINE:?}")]
    ListTimedOut,
    #[error("failed to start watching")]
    Start(#[source] Box<kube::Error>),
    #[error("watch broke")]
    Broken(#[source] std::io::Error),
    #[error("watch ended at once")]
    Short,
    #[error("failed to build a request")]
    Build(#[source] http::Error),
    #[error("failed to parse the API server's answer")]
    Parse(#[source] serde_json::Error),
    #[error("API server ended the watch: {code} {message}")]
    Ended { code: u16, message: String },
}

impl WatchError {
    /// Of the API server's answer, if it gave one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Ended { code, .. } => Some(*code),
            Self::List(error) | Self::Start(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// The version to go on from is too old, or not known to this API server, or the kind is gone.
    fn needs_list(&self) -> bool {
        matches!(self.code(), Some(404 | 410 | 504))
    }

    /// There is no such kind, or it is not ours to read.
    fn is_absent(&self) -> bool {
        matches!(self.code(), Some(403 | 404))
    }
}

/// Keeps one kind of the index up to date.
pub struct Reflector {
    client: Client,
    kind: &'static Kind,
    index: Arc<Index>,
}

#[derive(Deserialize)]
struct List<'a> {
    metadata: ListMetadata,
    /// `null` when there are none and the server is old.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: ListMetadata,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// Lines of what comes in parts.
#[derive(Default)]
struct Lines {
    /// A line whose end has not come.
    begun: Vec<u8>,
}

impl Lines {
    /// Hands on each line that ends in this part.
    fn each<E>(&mut self, part: &[u8], mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for piece in part.split_inclusive(|&byte| byte == b'\n') {
            if piece.last() != Some(&b'\n') {
                self.begun.extend_from_slice(piece);
            } else if self.begun.is_empty() {
                take(piece)?;
            } else {
                let mut line = std::mem::take(&mut self.begun);
                line.extend_from_slice(piece);
                take(&line)?;
            }
        }
        Ok(())
    }
}

impl Reflector {
    pub fn new(client: Client, kind: &'static Kind, index: Arc<Index>) -> Self {
        Self { client, kind, index }
    }

    /// Runs until `stop`; whatever fails is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut version: Option<String> = None;
        loop {
            tokio::select! {
                // The list and the watch start over from what `version` says.
                result = self.advance(&mut version, &mut backoff) => {
                    let Err(error) = result else { continue };
                    if error.needs_list() {
                        version = None;
                    }
                    if self.kind.is_optional && error.is_absent() {
                        self.index.absent(self.kind);
                    }
                    let delay = backoff.next_delay();
                    let kind = self.kind.key;
                    // A single failure heals itself; then one line says it, and one line every few minutes.
                    if backoff.attempts() % 16 == 2 {
                        warn!(kind, error = %runtime::chain(&error), "cannot list or watch; trying again");
                    } else {
                        debug!(kind, error = %runtime::chain(&error), ?delay, "cannot list or watch; trying again");
                    }
                    tokio::select! {
                        // Nothing to lose.
                        () = time::sleep(delay) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Lists if there is no version to go on from, then watches until the watch ends.
    async fn advance(&self, version: &mut Option<String>, backoff: &mut Backoff) -> Result<(), WatchError> {
        let from = if let Some(version) = version.clone() {
            version
        } else {
            let (objects, unreadable, listed) = self.list().await?;
            info!(kind = self.kind.key, objects = objects.len(), version = listed, "listed");
            self.index.replace(self.kind, objects, unreadable, resource_version(&listed));
            *version = Some(listed.clone());
            listed
        };
        self.watch(from, version, backoff).await
    }

    /// The objects, the keys of those that cannot be passed on, and the version of the whole.
    async fn list(&self) -> Result<(Vec<Cached>, Vec<ResourceKey>, String), WatchError> {
        let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
        let mut next = String::new();
        loop {
            let mut path = format!("{}?limit={PAGE}{}", self.kind.path, self.selector());
            if !next.is_empty() {
                path.push_str("&continue=");
                // The token is URL-safe base64, but for padding.
                path.push_str(&next.replace('=', "%3D"));
            }
            let request = Request::get(path).body(Vec::new()).map_err(WatchError::Build)?;
            let text = time::timeout(LIST_DEADLINE, self.client.request_text(request))
                .await
                .map_err(|_| WatchError::ListTimedOut)?
                .map_err(|source| WatchError::List(Box::new(source)))?;
            let list: List<'_> = serde_json::from_str(&text).map_err(WatchError::Parse)?;
            for raw in list.items.unwrap_or_default() {
                match self.take(raw.get()) {
                    Some(cached) => objects.push(cached),
                    None => unreadable.extend(key_of(self.kind, raw.get())),
                }
            }
            if list.metadata.r#continue.is_empty() {
                return Ok((objects, unreadable, list.metadata.resource_version));
            }
            next = list.metadata.r#continue;
        }
    }

    async fn watch(
        &self,
        from: String,
        version: &mut Option<String>,
        backoff: &mut Backoff,
    ) -> Result<(), WatchError> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={from}{}",
            self.kind.path,
            self.selector()
        );
        let request = Request::get(path).body(Vec::new()).map_err(WatchError::Build)?;
        let stream = time::timeout(LIST_DEADLINE, self.client.request_stream(request))
            .await
            .map_err(|_| WatchError::ListTimedOut)?
            .map_err(|source| WatchError::Start(Box::new(source)))?;
        let mut stream = std::pin::pin!(stream);
        let (start, mut lines, mut handled) = (Instant::now(), Lines::default(), 0);
        loop {
            let part = match time::timeout(QUIET, stream.fill_buf()).await {
                Ok(part) => part.map_err(WatchError::Broken)?,
                // The connection is dead; resuming costs next to nothing.
                Err(_) => return Ok(()),
            };
            if part.is_empty() {
                // The server ended the watch.
                return if start.elapsed() < SHORTEST_WATCH { Err(WatchError::Short) } else { Ok(()) };
            }
            let (heard, length) = (Instant::now(), part.len());
            lines.each(part, |line| {
                let seen = self.handle(line, heard)?;
                handled += 1;
                backoff.reset();
                if !seen.is_empty() {
                    *version = Some(seen);
                }
                Ok(())
            })?;
            stream.as_mut().consume(length);
            if handled >= TURN {
                handled = 0;
                task::yield_now().await;
            }
        }
    }

    /// Applies one event; returns the version up to which this kind has now been seen.
    fn handle(&self, line: &[u8], heard: Instant) -> Result<String, WatchError> {
        let event: Event<'_> = serde_json::from_slice(line).map_err(WatchError::Parse)?;
        let raw = event.object.get();
        match event.r#type {
            "ADDED" | "MODIFIED" => {
                let Some(cached) = self.take(raw) else {
                    let seen = version_of(raw)?;
                    match key_of(self.kind, raw) {
                        Some(key) => self.index.withhold(self.kind, key, resource_version(&seen)),
                        None => self.index.bookmark(self.kind, resource_version(&seen)),
                    }
                    return Ok(seen);
                };
                let seen = match cached.object.version.resource_version {
                    // No number.
                    0 => version_of(raw)?,
                    number => number.to_string(),
                };
                self.index.apply_heard(self.kind, cached, heard);
                Ok(seen)
            }
            "DELETED" => {
                let seen = version_of(raw)?;
                match key_of(self.kind, raw) {
                    Some(key) => self.index.delete(self.kind, &key, resource_version(&seen)),
                    None => self.index.bookmark(self.kind, resource_version(&seen)),
                }
                Ok(seen)
            }
            "BOOKMARK" => {
                let seen = version_of(raw)?;
                self.index.bookmark(self.kind, resource_version(&seen));
                Ok(seen)
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(raw).map_err(WatchError::Parse)?;
                Err(WatchError::Ended { code: status.code, message: status.message })
            }
            other => {
                debug!(kind = self.kind.key, event = other, "unknown watch event");
                Ok(String::new())
            }
        }
    }

    /// An object that does not parse, or is too large, is reported and left out; it never stops the others.
    fn take(&self, raw: &str) -> Option<Cached> {
        match self.kind.take(raw) {
            Ok(cached) => Some(cached),
            Err(error) => {
                error!(error = %runtime::chain(&error), "object cannot be passed on to any node");
                None
            }
        }
    }

    fn selector(&self) -> String {
        // The only characters of our selectors that a query may not hold.
        let escape = |selector: &str| selector.replace('!', "%21").replace('=', "%3D");
        self.kind
            .field_selector
            .map(|selector| format!("&fieldSelector={}", escape(selector)))
            .unwrap_or_default()
    }
}

fn version_of(raw: &str) -> Result<String, WatchError> {
    let object: Bookmark = serde_json::from_str(raw).map_err(WatchError::Parse)?;
    Ok(object.metadata.resource_version)
}

fn key_of(kind: &Kind, raw: &str) -> Option<ResourceKey> {
    #[derive(Deserialize)]
    struct Named {
        metadata: Name,
    }
    #[derive(Deserialize)]
    struct Name {
        name: String,
        #[serde(default)]
        namespace: String,
    }
    let named: Named = serde_json::from_str(raw).ok()?;
    ResourceKey::new(kind.key, &named.metadata.namespace, &named.metadata.name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_they_come() {
        let text = b"one\n\nthree is longer\nfour\nand no end";
        for length in 1..=text.len() {
            let (mut lines, mut taken) = (Lines::default(), Vec::new());
            for part in text.chunks(length) {
                let each = lines.each(part, |line| {
                    taken.push(String::from_utf8(line.to_owned()).unwrap());
                    Ok::<_, Infallible>(())
                });
                each.unwrap();
            }
            assert_eq!(taken, ["one\n", "\n", "three is longer\n", "four\n"], "in parts of {length}");
            assert_eq!(lines.begun, b"and no end");
        }
    }
}
