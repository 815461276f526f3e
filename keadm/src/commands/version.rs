//! `keadm version`.

use anyhow::Result;
use serde_json::json;

use crate::{
    cli::{Format, Version},
    output,
};

pub(crate) fn run(args: &Version) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Format::Text => output::data(version),
        Format::Json => output::json(&json!({
            "version": version,
            "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            "oldestKubeEdgeDialect": "1.12.0",
        })),
    }
}
