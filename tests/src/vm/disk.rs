//! A disk that loses what real ones lose in a power cut.
//!
//! It is a file, served to qemu as a network block device over a unix socket, with a cache in front that forgets: what
//! the machine writes is safe once it has flushed, or has written through. When the power is cut, of all else each
//! block of 4 KiB is there or not, as a seed decides. So a sync that is missing, or in the wrong order, shows. Less than
//! 4 KiB is not torn, as on flash: ext4's superblock is two sectors under one checksum, and would not be mountable.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::unix::{
        fs::FileExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};

const SECTOR: u64 = 512;
const SECTOR_BYTES: usize = 512;
/// What is written as a whole or not at all.
const BLOCK_SECTORS: u64 = 8;
/// qemu splits requests at 32 MiB; more is a fault.
const LONGEST: u32 = 32 << 20;

// The protocol's numbers: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
const MAGIC: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_UNSUPPORTED: u32 = 0x8000_0001;
/// There are flags; flushing and writing through are understood.
const EXPORT_FLAGS: u16 = 1 | 4 | 8;
const WRITE_THROUGH: u16 = 1;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// Sectors that were written and not flushed.
type Cache = BTreeMap<u64, [u8; SECTOR_BYTES]>;

/// Writes that are left; [`NO_FUSE`] when nobody counts.
type Fuse = Arc<AtomicU64>;
const NO_FUSE: u64 = u64::MAX;

/// A disk in use by one machine.
pub struct Disk {
    image: PathBuf,
    socket: PathBuf,
    fuse: Fuse,
    thread: JoinHandle<Result<Cache>>,
}

impl Disk {
    /// Serves the image on a socket beside it, to one machine. A thread of its own, because it works with plain files; it ends
    /// with the machine.
    pub fn serve(image: &Path) -> Result<Self> {
        let socket = image.with_extension("sock");
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(&socket).context("no socket for the disk")?;
        let file = File::options().read(true).write(true).open(image)?;
        let fuse = Fuse::new(NO_FUSE.into());
        let counted = Arc::clone(&fuse);
        let thread = thread::Builder::new().name("disk".to_owned()).spawn(move || {
            let (stream, _) = listener.accept().context("no machine has come for its disk")?;
            let size = file.metadata()?.len();
            Server { size, file, cache: Cache::new(), stream, fuse: counted }.run()
        })?;
        Ok(Self { image: image.to_owned(), socket, fuse, thread })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has no request answered any more once the machine has made so many writes: the instant of a power cut that is most
    /// likely to hurt. The machine is to be killed then.
    pub fn stop_at_write(&self, writes: u64) {
        self.fuse.store(writes, Relaxed);
    }

    /// Whether it came to that.
    pub fn has_stopped(&self) -> bool {
        self.fuse.load(Relaxed) == 0
    }

    /// For when the machine is dead: of what it had not flushed, keeps the blocks that `keep` chooses. Answers how many sectors it had
    /// not flushed. Blocks until all that the machine had sent is looked at.
    pub fn power_cut(self, mut keep: impl FnMut() -> bool) -> Result<usize> {
        // In case it died before it came.
        drop(UnixStream::connect(&self.socket));
        let Ok(served) = self.thread.join() else { bail!("the disk's thread has panicked") };
        let cache = served?;
        let file = File::options().write(true).open(&self.image)?;
        let mut last = (u64::MAX, false);
        for (sector, content) in &cache {
            let block = sector / BLOCK_SECTORS;
            if block != last.0 {
                last = (block, keep());
            }
            if last.1 {
                file.write_all_at(content, sector * SECTOR)?;
            }
        }
        Ok(cache.len())
    }
}

struct Server {
    file: File,
    size: u64,
    cache: Cache,
    stream: UnixStream,
    fuse: Fuse,
}

impl Server {
    /// Until the machine goes; answers what it had not flushed.
    fn run(mut self) -> Result<Cache> {
        match self.serve() {
            Ok(()) => Ok(self.cache),
            // It was killed, in the middle of whatever.
            Err(error)
                if error.downcast_ref::<io::Error>().is_some_and(|error| {
                    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
                    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
                }) =>
            {
                Ok(self.cache)
            }
            Err(error) => Err(error),
        }
    }

    fn serve(&mut self) -> Result<()> {
        self.stream.write_all(MAGIC)?;
        self.stream.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
        self.u32()?;
        self.negotiate()?;
        while self.request()? {}
        // With the connection closed the machine would see errors; a disk without power says nothing.
        io::copy(&mut self.stream, &mut io::sink())?;
        Ok(())
    }

    fn negotiate(&mut self) -> Result<()> {
        loop {
            ensure!(self.u64()? == OPTION, "qemu asks for no option");
            let (option, length) = (self.u32()?, self.u32()?);
            self.bytes(length)?;
            if option == OPT_GO {
                let mut info = vec![0, 0];
                info.extend_from_slice(&self.size.to_be_bytes());
                info.extend_from_slice(&EXPORT_FLAGS.to_be_bytes());
                self.reply_to_option(option, REP_INFO, &info)?;
                return self.reply_to_option(option, REP_ACK, &[]);
            }
            self.reply_to_option(option, REP_UNSUPPORTED, &[])?;
        }
    }

    fn reply_to_option(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<()> {
        let mut reply = OPTION_REPLY.to_be_bytes().to_vec();
        for number in [option, kind, u32::try_from(data.len())?] {
            reply.extend_from_slice(&number.to_be_bytes());
        }
        reply.extend_from_slice(data);
        Ok(self.stream.write_all(&reply)?)
    }

    /// `false` when it was the last.
    fn request(&mut self) -> Result<bool> {
        ensure!(self.u32()? == REQUEST, "qemu sends no request");
        let (flags, kind) = (self.u16()?, self.u16()?);
        let (cookie, offset, length) = (self.u64()?, self.u64()?, self.u32()?);
        let end = offset.checked_add(length.into()).context("a request beyond all disks")?;
        ensure!(end <= self.size && offset % SECTOR == 0 && end % SECTOR == 0, "{length} bytes at {offset}");
        let mut answer = Vec::new();
        match kind {
            READ => answer = self.read(offset, length)?,
            WRITE => {
                let content = self.bytes(length)?;
                self.write(offset, &content);
                let counted = |left: u64| (left != NO_FUSE).then(|| left.saturating_sub(1));
                if self.fuse.fetch_update(Relaxed, Relaxed, counted).is_ok_and(|left| left <= 1) {
                    return Ok(false);
                }
                if flags & WRITE_THROUGH != 0 {
                    self.flush(offset / SECTOR..end / SECTOR)?;
                }
            }
            FLUSH => self.flush(0..u64::MAX)?,
            DISCONNECT => return Ok(false),
            other => bail!("qemu asks for {other}, which was not offered"),
        }
        let mut reply = REPLY.to_be_bytes().to_vec();
        reply.extend_from_slice(&[0; 4]);
        reply.extend_from_slice(&cookie.to_be_bytes());
        reply.append(&mut answer);
        self.stream.write_all(&reply)?;
        Ok(true)
    }

    fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>> {
        ensure!(length <= LONGEST, "a read of {length} bytes");
        let mut content = vec![0; length as usize];
        self.file.read_exact_at(&mut content, offset)?;
        for (sector, part) in (offset / SECTOR..).zip(content.chunks_exact_mut(SECTOR_BYTES)) {
            if let Some(newer) = self.cache.get(&sector) {
                part.copy_from_slice(newer);
            }
        }
        Ok(content)
    }

    fn write(&mut self, offset: u64, content: &[u8]) {
        for (sector, part) in (offset / SECTOR..).zip(content.chunks_exact(SECTOR_BYTES)) {
            self.cache.insert(sector, part.try_into().expect("chunks are exact"));
        }
    }

    /// What is in the file survives: the file's host has no power cut.
    fn flush(&mut self, sectors: std::ops::Range<u64>) -> Result<()> {
        let mut rest = self.cache.split_off(&sectors.start);
        let mut above = rest.split_off(&sectors.end);
        for (sector, content) in rest {
            self.file.write_all_at(&content, sector * SECTOR)?;
        }
        self.cache.append(&mut above);
        Ok(())
    }

    fn bytes(&mut self, length: u32) -> Result<Vec<u8>> {
        ensure!(length <= LONGEST, "qemu sends {length} bytes");
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
