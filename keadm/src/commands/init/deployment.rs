//! cloudcore in the cluster: what an earlier init left there, and the wait for it.

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use crds::componentconfig::cloudcore::CloudCoreConfig;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::manifests;
use crate::{
    commands::gettoken::NAMESPACE,
    kubernetes::{Cluster, Manifest},
    preflight::{Check, Problem},
};

fn named(api_version: &str, kind: &str) -> Manifest {
    let metadata = json!({ "namespace": NAMESPACE, "name": manifests::NAME });
    Manifest(json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata }))
}

/// What an earlier init applied, and an operator changed since.
pub(super) async fn existing(cluster: &Cluster) -> Check<Option<CloudCoreConfig>> {
    let config_map = named("v1", "ConfigMap");
    let found = cluster.get(&config_map).await.map_err(|error| {
        Problem::new(
            runtime::chain(error.as_ref()).to_string(),
            "name the kubeconfig of a cluster administrator with --kube-config",
        )
    })?;
    found.as_ref().map(parse).transpose()
}

fn parse(config_map: &Value) -> Check<CloudCoreConfig> {
    let text = config_map.pointer("/data/cloudcore.yaml").and_then(Value::as_str).unwrap_or_default();
    let place = format!("ConfigMap {NAMESPACE}/{}", manifests::NAME);
    runtime::config::parse(text, Path::new(&place), CloudCoreConfig::validate).map_err(|error| {
        Problem::new(
            runtime::chain(&error).to_string(),
            format!(
                "correct it (kubectl edit --namespace={NAMESPACE} configmap {}), or delete it to begin with the defaults",
                manifests::NAME
            ),
        )
    })
}

/// The image that an earlier init deployed.
pub(super) async fn image(cluster: &Cluster) -> Result<Option<String>> {
    let deployment = cluster.get(&named("apps/v1", "Deployment")).await?.unwrap_or_default();
    let image = deployment.pointer("/spec/template/spec/containers/0/image");
    Ok(image.and_then(Value::as_str).map(str::to_owned))
}

/// Waits for the Deployment, and says what the pod waits for when it does not come up.
pub(super) async fn available(cluster: &Cluster, image: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let manifest = named("apps/v1", "Deployment");
    loop {
        let deployment = cluster.get(&manifest).await?.unwrap_or_default();
        let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
        let is_seen = number("/status/observedGeneration") >= number("/metadata/generation");
        if is_seen && number("/status/updatedReplicas") > 0 && number("/status/readyReplicas") > 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            let reason = cluster.waiting_reason(NAMESPACE, "kubeedge=cloudcore").await?;
            let fix = fix(&reason, image);
            bail!(
                "Deployment {NAMESPACE}/cloudcore is not available after {} s: {reason}{fix}",
                limit.as_secs()
            );
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// What to do about an image that is not to be had; nothing for other reasons.
fn fix(reason: &str, image: &str) -> String {
    let is_of_image = ["ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"]
        .iter()
        .any(|word| reason.contains(word));
    if !is_of_image {
        return String::new();
    }
    format!(
        "; make the image {image} with cargo xtask image and import it on the cluster's nodes (ctr --namespace=k8s.io \
         images import FILE), or name one that they can pull with --image or --image-repository"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_to_be_had_comes_with_a_fix() {
        let text = fix("pod cloudcore-1 is ImagePullBackOff: Back-off pulling image", "skerry/cloudcore:v1");
        for word in ["skerry/cloudcore:v1", "cargo xtask image", "--image-repository"] {
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(fix("pod cloudcore-1 is CrashLoopBackOff", "skerry/cloudcore:v1"), "");
    }

    #[test]
    fn the_configuration_of_an_earlier_init_is_read_and_a_broken_one_is_named() {
        let config_map = |text: &str| json!({ "data": { "cloudcore.yaml": text } });
        let config = parse(&config_map("modules: {cloudHub: {nodeLimit: 77}}")).unwrap();
        assert_eq!(config.modules.cloud_hub.node_limit, 77);
        assert_eq!(parse(&json!({})).unwrap(), CloudCoreConfig::default());
        let problem = parse(&config_map("modules: {cloudHub: {nodeLimitt: 7}}")).unwrap_err();
        assert!(problem.cause.starts_with("ConfigMap kubeedge/cloudcore:"), "{problem:?}");
        assert!(problem.fix.contains("kubectl edit --namespace=kubeedge configmap cloudcore"), "{problem:?}");
    }
}
