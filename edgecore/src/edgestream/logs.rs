//! A container's log as it is asked for: the runtime's file (CRI log format: `<RFC 3339 time> stdout|stderr F|P <text>`), from
//! some line on, followed across rotations until the container has ended. The options are those of `PodLogOptions`.

use std::{future::Future, os::unix::fs::MetadataExt, path::Path, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    fs::File,
    io::{self, AsyncReadExt, AsyncSeekExt, SeekFrom},
    sync::mpsc,
    time,
};

/// Read at once.
const CHUNK: usize = 32 << 10;
/// A runtime cuts lines at 16 KiB; what is longer by far is no line, and is passed on in parts.
const LONGEST_LINE: usize = 256 << 10;
/// Between looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(200);
/// Looks between questions whether the container still runs.
const LOOKS: u32 = 10;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub(super) previous: bool,
    follow: bool,
    timestamps: bool,
    /// So many lines from the end.
    tail: Option<u64>,
    /// So many bytes, and no more.
    limit: Option<u64>,
    since: Option<Timestamp>,
    /// `stdout` or `stderr` alone.
    stream: Option<&'static str>,
}

impl Options {
    /// # Errors
    /// Names the parameter and its value.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let wrong = |wanted: &str| format!("{key}={value:?} is not {wanted}");
            let flag = || value.parse::<bool>().map_err(|_| wanted_flag(&key, &value));
            let number = || value.parse::<u64>().map_err(|_| wrong("a number from 0"));
            match &*key {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => options.limit = Some(number()?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).map_err(|_| wrong("a number of seconds"))?;
                    let since = Timestamp::now().checked_sub(SignedDuration::from_secs(seconds));
                    // Before all that there is.
                    options.since = since.ok();
                }
                "sinceTime" => {
                    let since = value.parse().map_err(|_| wrong("a time as in 2026-01-02T03:04:05Z"))?;
                    options.since = Some(since);
                }
                "stream" => {
                    options.stream = match &*value {
                        "" | "All" => None,
                        "Stdout" => Some("stdout"),
                        "Stderr" => Some("stderr"),
                        _ => return Err(wrong("All, Stdout or Stderr")),
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

fn wanted_flag(key: &str, value: &str) -> String {
    format!("{key}={value:?} is not true or false")
}

pub(super) async fn open(path: &Path) -> io::Result<File> {
    File::open(path).await
}

/// Sends what is asked for of the log that is at `path`, and that `file` was opened from. `running` says whether more may come.
///
/// # Errors
/// The log cannot be read. That nobody takes what is sent is none.
pub(super) async fn send<R: Future<Output = bool>>(
    mut file: File,
    path: &Path,
    options: &Options,
    running: impl Fn() -> R,
    to: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    if let Some(lines) = options.tail {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut lines = Lines {
        options,
        rest: BytesMut::new(),
        cut: false,
        left: options.limit,
        recent: options.since.is_none(),
    };
    let (mut next, mut looks, mut ended) = (None, 0, false);
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        if file.read_buf(&mut chunk).await? > 0 {
            looks = 0;
            let out = lines.take(&chunk);
            if !out.is_empty() && to.send(Ok(out)).await.is_err() || lines.left == Some(0) {
                return Ok(());
            }
            continue;
        }
        if let Some(new) = next.take() {
            // The runtime writes nothing to the old one since the new one is there, and all of it was read after that.
            file = new;
            continue;
        }
        if options.follow {
            next = reopened(&file, path).await?;
            if next.is_some() {
                continue;
            }
        }
        if !options.follow || ended {
            let out = lines.last();
            if !out.is_empty() {
                drop(to.send(Ok(out)).await);
            }
            return Ok(());
        }
        if looks % LOOKS == 0 && !running().await {
            // What it wrote before its end is read once more.
            ended = true;
            continue;
        }
        looks += 1;
        tokio::select! {
            () = to.closed() => return Ok(()),
            () = time::sleep(LOOK) => {}
        }
    }
}

/// What lies at the path now, if it is another file: the log was rotated.
async fn reopened(file: &File, path: &Path) -> io::Result<Option<File>> {
    let new = match File::open(path).await {
        Ok(new) => new,
        // Moved aside, and not yet opened anew; or all of it is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (old, now) = (file.metadata().await?, new.metadata().await?);
    Ok(Some(new).filter(|_| (old.dev(), old.ino()) != (now.dev(), now.ino())))
}

/// Where the last so many lines begin.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata().await?.len();
    // The newline at the very end belongs to the last line.
    let mut wanted = lines.saturating_add(1);
    let length = end;
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        file.seek(SeekFrom::Start(start)).await?;
        let mut chunk = Vec::new();
        (&mut *file).take(end - start).read_to_end(&mut chunk).await?;
        for (at, byte) in chunk.iter().enumerate().rev() {
            let after = start + at as u64 + 1;
            if *byte == b'\n' {
                wanted -= 1;
            } else if after == length {
                // The last line has no newline yet.
                wanted -= 1;
            }
            if wanted == 0 {
                return Ok(after);
            }
        }
        end = start;
    }
    Ok(0)
}

/// Makes of the file's lines what was asked for.
struct Lines<'a> {
    options: &'a Options,
    /// The beginning of a line.
    rest: BytesMut,
    /// What comes next belongs to a line of which a part was passed on.
    cut: bool,
    /// Of [`Options::limit`].
    left: Option<u64>,
    /// Lines are new enough from here on.
    recent: bool,
}

impl Lines<'_> {
    fn take(&mut self, chunk: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(chunk.len());
        let mut chunk = chunk;
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, after) = chunk.split_at(end + 1);
            chunk = after;
            if self.rest.is_empty() {
                self.line(line, &mut out);
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole, &mut out);
            }
        }
        self.rest.extend_from_slice(chunk);
        if self.rest.len() > LONGEST_LINE {
            let part = std::mem::take(&mut self.rest);
            self.line(&part, &mut out);
            self.cut = true;
        }
        out.freeze()
    }

    /// What the file ends with.
    fn last(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        let rest = std::mem::take(&mut self.rest);
        self.line(&rest, &mut out);
        out.freeze()
    }

    /// With its newline, if it has one.
    fn line(&mut self, line: &[u8], out: &mut BytesMut) {
        if std::mem::take(&mut self.cut) {
            return self.pass(line, out);
        }
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag), Some(content)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return;
        };
        if self.options.stream.is_some_and(|wanted| wanted.as_bytes() != stream) {
            return;
        }
        if !self.recent {
            let time: Option<Timestamp> = std::str::from_utf8(time).ok().and_then(|text| text.parse().ok());
            if time.is_none_or(|time| self.options.since.is_some_and(|since| time < since)) {
                return;
            }
            self.recent = true;
        }
        if self.options.timestamps {
            self.pass(time, out);
            self.pass(b" ", out);
        }
        // Of a line that goes on the newline is the file's alone. Tags may have more than one part.
        let partial = tag.split(|byte| *byte == b':').next() == Some(b"P");
        let newline = content.last() == Some(&b'\n');
        self.pass(if partial && newline { &content[..content.len() - 1] } else { content }, out);
    }

    fn pass(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let most = self
            .left
            .map_or(bytes.len(), |left| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        out.put_slice(&bytes[..most]);
        if let Some(left) = &mut self.left {
            *left -= most as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.5Z stdout F first\n\
                       2026-01-01T00:00:01Z stderr F second\n\
                       2026-01-01T00:00:02Z stdout P thi\n\
                       2026-01-01T00:00:02Z stdout F rd\n\
                       not a line\n\
                       2026-01-01T00:00:03Z stdout F \n";
    const SOON: Duration = Duration::from_secs(10);

    async fn read(query: &str, content: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, content).unwrap();
        let (parts, mut body) = mpsc::channel(1);
        let options = Options::parse(query).unwrap();
        let file = open(&path).await.unwrap();
        let sending = async {
            send(file, &path, &options, || async { false }, &parts).await.unwrap();
            drop(parts);
        };
        let reading = async {
            let mut all = Vec::new();
            while let Some(part) = body.recv().await {
                all.extend_from_slice(&part.unwrap());
            }
            String::from_utf8(all).unwrap()
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn what_is_asked_for_is_what_comes() {
        for (query, wanted) in [
            ("", "first\nsecond\nthird\n\n"),
            ("follow=true", "first\nsecond\nthird\n\n"),
            ("tailLines=0", ""),
            ("tailLines=2", "\n"),
            ("tailLines=3", "rd\n\n"),
            ("tailLines=100", "first\nsecond\nthird\n\n"),
            ("limitBytes=8", "first\nse"),
            ("limitBytes=0", ""),
            ("stream=Stderr", "second\n"),
            ("stream=Stdout&limitBytes=9", "first\nthi"),
            ("sinceTime=2026-01-01T00:00:01Z", "second\nthird\n\n"),
            ("sinceTime=2026-01-01T01:00:02%2B01:00", "third\n\n"),
            ("sinceSeconds=99999999999", "first\nsecond\nthird\n\n"),
            ("sinceSeconds=1", ""),
            (
                "timestamps=true&tailLines=4",
                "2026-01-01T00:00:02Z thi2026-01-01T00:00:02Z rd\n2026-01-01T00:00:03Z \n",
            ),
        ] {
            assert_eq!(read(query, LOG).await, wanted, "{query}");
        }
        // A line under way counts as one.
        assert_eq!(read("tailLines=1", &format!("{LOG}2026-01-01T00:00:04Z stdout F half")).await, "half");
        assert_eq!(read("", "").await, "");
    }

    #[tokio::test]
    async fn lines_longer_than_what_is_read_at_once_come_whole() {
        let long = "x".repeat(3 * CHUNK);
        let log = format!("2026-01-01T00:00:00Z stdout F {long}\n2026-01-01T00:00:01Z stdout F end\n");
        assert_eq!(read("", &log).await, format!("{long}\nend\n"));
        assert_eq!(read("tailLines=2", &log).await, format!("{long}\nend\n"));
        let endless = "y".repeat(3 * LONGEST_LINE);
        let log = format!("2026-01-01T00:00:00Z stdout F {endless}\n2026-01-01T00:00:01Z stdout F end\n");
        assert_eq!(read("", &log).await, format!("{endless}\nend\n"));
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (query, named) in [
            ("tailLines=-1", "tailLines=\"-1\""),
            ("limitBytes=many", "limitBytes"),
            ("sinceTime=yesterday", "sinceTime=\"yesterday\""),
            ("follow=perhaps", "follow"),
            ("stream=stdin", "stream"),
        ] {
            let reason = Options::parse(query).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_log_is_followed_across_its_rotation_to_the_containers_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, "2026-01-01T00:00:00Z stdout F a\n").unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let (parts, mut body) = mpsc::channel(1);
        let (asked, log) = (Arc::clone(&running), path.clone());
        let file = open(&path).await.unwrap();
        let mut sending = tokio::task::JoinSet::new();
        sending.spawn(async move {
            let options = Options::parse("follow=true").unwrap();
            let running = || async { asked.load(Ordering::Relaxed) };
            send(file, &log, &options, running, &parts).await
        });
        let mut next = async || {
            let part = time::timeout(SOON, body.recv()).await.expect("nothing comes");
            part.map(|part| String::from_utf8(part.unwrap().to_vec()).unwrap())
        };
        assert_eq!(next().await.as_deref(), Some("a\n"));
        let mut old = fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(old, "2026-01-01T00:00:01Z stdout F b").unwrap();
        writeln!(old, "c").unwrap();
        assert_eq!(next().await.as_deref(), Some("bc\n"));
        // The runtime writes to the old one until it has opened the new one.
        fs::rename(&path, directory.path().join("0.log.old")).unwrap();
        writeln!(old, "2026-01-01T00:00:02Z stdout F d").unwrap();
        fs::write(&path, "2026-01-01T00:00:03Z stdout F e\n").unwrap();
        let mut rest = String::new();
        while rest != "d\ne\n" {
            rest += &next().await.unwrap();
            assert!("d\ne\n".starts_with(&rest), "{rest:?}");
        }
        running.store(false, Ordering::Relaxed);
        let mut new = fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(new, "2026-01-01T00:00:04Z stdout F last").unwrap();
        assert_eq!(next().await.as_deref(), Some("last"));
        assert_eq!(next().await, None);
        sending.join_next().await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn nobody_is_sent_to_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, "").unwrap();
        let (parts, body) = mpsc::channel(1);
        let options = Options::parse("follow=true").unwrap();
        let file = open(&path).await.unwrap();
        drop(body);
        let sent = send(file, &path, &options, || async { true }, &parts);
        time::timeout(SOON, sent).await.expect("it goes on").unwrap();
    }
}
