//! The current containerd, beside the older one of Debian: sites have either.

use std::path::PathBuf;

use anyhow::Result;

use super::go::GoModule;

const MODULE: &str = "github.com/containerd/containerd/v2";
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
];

/// The directory of containerd, its shim and ctr.
pub(super) async fn ensure() -> Result<PathBuf> {
    let module = GoModule::new("containerd")?;
    if PROGRAMS.iter().any(|(name, _)| !module.built().join(name).is_file()) {
        let version = module.required_version(MODULE)?;
        let what = format!("building containerd {version} from source, once: about 2 minutes on two cores");
        module.build(&what, &format!("-X {MODULE}/version.Version={version}"), PROGRAMS).await?;
    }
    Ok(module.built().to_owned())
}
