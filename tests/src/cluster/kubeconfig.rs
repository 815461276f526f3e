//! Kubeconfig files with embedded certificates, so that one file is enough wherever it is copied to.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use crate::pki::Identity;

pub(super) fn write(path: &Path, server: &str, ca: &Identity, user: &Identity) -> Result<()> {
    let inline = |path: &Path| -> Result<String> {
        let bytes = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
        Ok(base64(&bytes))
    };
    // JSON is YAML, and needs no other writer.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": {
            "server": server, "certificate-authority-data": inline(&ca.cert)? } }],
        "users": [{ "name": "test", "user": {
            "client-certificate-data": inline(&user.cert)?, "client-key-data": inline(&user.key)? } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    });
    fs::write(path, serde_json::to_vec_pretty(&config)?)
        .with_context(|| format!("failed to write {}", path.display()))
}

fn base64(bytes: &[u8]) -> String {
    serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec()))
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .expect("a ByteString is written as a base64 string")
}
