//! OCI image archives, written byte for byte the same on every machine: no times, no owners but root, sorted blobs.
//!
//! Enough for `ctr images import`: one archive with an `oci-layout`, an `index.json` that names each image, and
//! uncompressed layers. Layers that images share are in it once.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use ring::digest;
use serde_json::json;

const BLOCK: usize = 512;

/// A layer that is being filled.
pub struct Layer {
    tar: Vec<u8>,
}

/// A finished layer.
pub struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Layer {
    #[expect(clippy::new_without_default, reason = "an empty layer is no useful default")]
    pub fn new() -> Self {
        Self { tar: Vec::new() }
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        append(&mut self.tar, &Entry { path: &format!("{path}/"), mode, kind: b'5', link: "", content: b"" })
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        append(&mut self.tar, &Entry { path, mode, kind: b'0', link: "", content })
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        append(&mut self.tar, &Entry { path, mode: 0o777, kind: b'2', link: target, content: b"" })
    }

    pub fn finish(mut self) -> Blob {
        self.tar.extend([0; 2 * BLOCK]);
        Blob { digest: sha256_hex(&self.tar), bytes: self.tar }
    }
}

/// An image to be written.
pub struct Image<'a> {
    name: String,
    layers: Vec<&'a Blob>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    labels: BTreeMap<String, String>,
}

impl<'a> Image<'a> {
    pub fn new(name: &str, layers: &[&'a Blob], entrypoint: &[&str], cmd: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Self {
            name: name.to_owned(),
            layers: layers.to_vec(),
            entrypoint: owned(entrypoint),
            cmd: owned(cmd),
            labels: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// The archive of all `images`.
pub fn archive(images: &[Image<'_>]) -> Result<Vec<u8>> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut put = |bytes: Vec<u8>| {
        let (digest, size) = (sha256_hex(&bytes), bytes.len());
        blobs.insert(digest.clone(), bytes);
        (format!("sha256:{digest}"), size)
    };
    let mut manifests = Vec::new();
    for image in images {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": image.entrypoint,
                "Cmd": image.cmd,
                "WorkingDir": "/",
                "Labels": image.labels,
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": image.layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>(),
            },
        });
        let (config, config_size) = put(serde_json::to_vec(&config)?);
        let layers: Vec<_> = image
            .layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": format!("sha256:{}", layer.digest),
                    "size": layer.bytes.len(),
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
            "layers": layers,
        });
        let (manifest, size) = put(serde_json::to_vec(&manifest)?);
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": size,
            "annotations": { "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name },
        }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });

    let mut tar = Vec::new();
    let mut file = |path: &str, content: &[u8]| {
        append(&mut tar, &Entry { path, mode: 0o644, kind: b'0', link: "", content })
    };
    file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    file("index.json", &serde_json::to_vec(&index)?)?;
    let mut layers: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        layers.insert(&layer.digest, &layer.bytes);
    }
    for (digest, bytes) in
        blobs.iter().map(|(digest, bytes)| (digest.as_str(), bytes.as_slice())).chain(layers)
    {
        file(&format!("blobs/sha256/{digest}"), bytes)?;
    }
    tar.extend([0; 2 * BLOCK]);
    Ok(tar)
}

/// SHA-256 as lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes everything");
        hex
    })
}

/// Go's name of the machine that the static binaries are for: this one.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    kind: u8,
    link: &'a str,
    content: &'a [u8],
}

/// A ustar header, the content, padding to whole blocks.
fn append(tar: &mut Vec<u8>, entry: &Entry<'_>) -> Result<()> {
    if entry.path.len() > 100 || entry.link.len() > 100 {
        bail!("{} does not fit a ustar header", entry.path);
    }
    let mut header = [0_u8; BLOCK];
    let mut field = |start: usize, bytes: &[u8]| header[start..start + bytes.len()].copy_from_slice(bytes);
    field(0, entry.path.as_bytes());
    field(100, format!("{:07o}", entry.mode).as_bytes());
    field(108, b"0000000");
    field(116, b"0000000");
    field(124, format!("{:011o}", entry.content.len()).as_bytes());
    field(136, b"00000000000");
    // The checksum counts its own field as spaces.
    field(148, b"        ");
    field(156, &[entry.kind]);
    field(157, entry.link.as_bytes());
    field(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(header);
    tar.extend(entry.content);
    tar.extend(std::iter::repeat_n(0, entry.content.len().next_multiple_of(BLOCK) - entry.content.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{command, output};

    fn layer() -> Blob {
        let mut layer = Layer::new();
        layer.directory("bin", 0o755).unwrap();
        layer.file("bin/program", 0o755, b"#!/bin/sh\n").unwrap();
        layer.symlink("bin/alias", "program").unwrap();
        layer.finish()
    }

    #[test]
    fn tar_reads_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.tar");
        std::fs::write(&path, layer().bytes).unwrap();
        let list = output(command("tar", [std::ffi::OsStr::new("-tvf"), path.as_os_str()])).unwrap();
        assert!(list.contains("-rwxr-xr-x 0/0") && list.contains("bin/alias -> program"), "{list}");
    }

    #[test]
    fn the_same_input_makes_the_same_archive_and_a_label_another_id() {
        let (first, second) = (layer(), layer());
        let image =
            |layer, label| archive(&[Image::new("x:1", &[layer], &["/bin/program"], &[]).label("a", label)]);
        assert_eq!(image(&first, "1").unwrap(), image(&second, "1").unwrap());
        assert_ne!(image(&first, "1").unwrap(), image(&second, "2").unwrap());
    }
}
