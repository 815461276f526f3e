//! The archive that the kernel takes as its initial file system: cpio, "newc".

/// An archive that is being filled.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

const DIRECTORY: usize = 0o040_000;
const FILE: usize = 0o100_000;

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.append(path, DIRECTORY | 0o755, &[]);
    }

    pub(crate) fn file(&mut self, path: &str, mode: usize, content: &[u8]) {
        self.append(path, FILE | mode, content);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.append("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn append(&mut self, path: &str, mode: usize, content: &[u8]) {
        self.entries += 1;
        let inode = self.entries;
        // uid, gid, links, time, size, the device's numbers twice, length of the name, checksum.
        let fields = [inode, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, path.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned() {
        let mut archive = Archive::default();
        archive.directory("a");
        archive.file("a/b", 0o644, b"hello");
        let bytes = archive.finish();
        let starts: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, six)| six == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|at| at.is_multiple_of(4)), "{starts:?}");
    }
}
