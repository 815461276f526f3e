//! ConfigMaps and Secrets travel to the nodes whose pods refer to them, and to no other.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    product::{Edge, pod},
    setup::AGNHOST,
    wait,
};
use kube::ResourceExt;
use serde_json::json;

use crate::Node;

const SPACE: &str = "needed";
const SOON: Duration = Duration::from_secs(90);
const KEYS: [&str; 3] = ["ConfigMap/needed/settings", "Secret/needed/password", "Secret/needed/registry"];
/// What the objects hold, before and after they are changed.
const VALUES: [&str; 4] = ["first-setting", "first-password", "second-setting", "second-password"];

pub(crate) async fn run(one: &Node<'_>, two: &Node<'_>) -> Result<()> {
    let scene = one.scene;
    scene.namespace(SPACE).await?;
    scene.cluster.apply(include_str!("needed.yaml")).await?;
    let spec = json!({
        "imagePullSecrets": [{ "name": "registry" }],
        "containers": [{
            "name": "main", "image": AGNHOST, "imagePullPolicy": "IfNotPresent",
            "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
            "env": [{ "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "password", "key": "is" } } }],
            "volumeMounts": [
                { "name": "settings", "mountPath": "/etc/settings" },
                { "name": "password", "mountPath": "/etc/password" },
            ],
        }],
        "volumes": [
            { "name": "settings", "configMap": { "name": "settings" } },
            { "name": "password", "secret": { "secretName": "password" } },
        ],
    });
    let user =
        scene.run(SPACE, &pod("user", one.edge.name(), &spec)).await?.uid().context("a pod has a uid")?;
    // Its neighbour runs a pod of the same namespace that refers to nothing.
    scene.run(SPACE, &pod("other", two.edge.name(), &json!({}))).await?;
    ensure!(one.site.shell(&user, "echo -n $PASSWORD").await? == VALUES[1]);

    let patch = |key: &str, value: &str| format!(r#"{{"{key}":{{"is":"{value}"}}}}"#);
    let space = ["--namespace", SPACE, "patch", "--type=merge"];
    let kubectl = async |rest: &[&str]| scene.cluster.kubectl(&[space.as_slice(), rest].concat()).await;
    kubectl(&["configmap", "settings", "--patch", &patch("data", VALUES[2])]).await?;
    kubectl(&["secret", "password", "--patch", &patch("stringData", VALUES[3])]).await?;
    wait::until("the new values in the volumes", SOON, async || {
        for (file, value) in [("settings", VALUES[2]), ("password", VALUES[3])] {
            let text = one.site.shell(&user, &format!("cat /etc/{file}/is")).await?;
            ensure!(text == value, "{file} holds {text:?}");
        }
        Ok(())
    })
    .await?;

    let (user, other) = (stored(one.edge)?, stored(two.edge)?);
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    for key in KEYS {
        ensure!(has(&user, key), "{} has no {key}, though its pod refers to it", one.edge.name());
        ensure!(!has(&other, key), "{} has {key}, to which none of its pods refers", two.edge.name());
    }
    for value in VALUES {
        ensure!(!has(&other, value), "{} has the value {value:?} of another node's object", two.edge.name());
    }
    Ok(())
}

/// The bytes of the store's journals and checkpoints, one after the other.
fn stored(edge: &Edge) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(edge.store())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("journal.") || name.starts_with("checkpoint.") {
            all.extend(fs::read(entry.path())?);
        }
    }
    Ok(all)
}
