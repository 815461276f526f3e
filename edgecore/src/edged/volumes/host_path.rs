//! hostPath: a path of the node, checked against its type.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;

pub(super) fn prepare(volume: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = Path::new(&source.path);
    let wrong =
        |wanted| VolumeError::HostPath { volume: volume.to_owned(), path: source.path.clone(), wanted };
    let io = |source| VolumeError::Io {
        volume: volume.to_owned(),
        operation: "failed to make the hostPath",
        source,
    };
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
        return Err(wrong("absolute path without .."));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let is = |test: fn(&fs::FileType) -> bool| {
        fs::metadata(path).is_ok_and(|metadata| test(&metadata.file_type()))
    };
    let check = |holds: bool, wanted| if holds { Ok(()) } else { Err(wrong(wanted)) };
    match kind {
        "" => {}
        "DirectoryOrCreate" => {
            if !path.exists() {
                fs::create_dir_all(path).map_err(io)?;
            }
            check(is(fs::FileType::is_dir), "directory")?;
        }
        "FileOrCreate" => {
            if !path.exists() {
                fs::File::create_new(path).map_err(io)?;
            }
            check(is(fs::FileType::is_file), "file")?;
        }
        "Directory" => check(is(fs::FileType::is_dir), "directory")?,
        "File" => check(is(fs::FileType::is_file), "file")?,
        "Socket" => check(is(FileTypeExt::is_socket), "socket")?,
        "CharDevice" => check(is(FileTypeExt::is_char_device), "character device")?,
        "BlockDevice" => check(is(FileTypeExt::is_block_device), "block device")?,
        other => {
            let field = format!("hostPath.type={other}");
            return Err(VolumeError::Unsupported { volume: volume.to_owned(), field });
        }
    }
    Ok(path.to_owned())
}
