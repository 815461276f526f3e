//! `keadm gettoken`: a new token, signed with the newest key.

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use runtime::token::{SigningKeys, hex};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cli::{Format, GetToken},
    kubernetes::{Cluster, Manifest},
    output,
    preflight::Preflight,
    time,
};

pub(crate) const NAMESPACE: &str = "kubeedge";

pub(crate) async fn run(args: GetToken) -> Result<()> {
    let mut preflight = Preflight::default();
    let cluster = preflight.take(Cluster::connect(args.kube.kube_config.as_deref()).await);
    preflight.finish(false)?;
    let (cluster, _) = cluster.context("the API server was reached")?;
    let ca = certificate_authority(&cluster).await?;
    let Some(secret) = secret(&cluster, "tokensecret").await? else {
        bail!(
            "cloudcore has not made its token signing keys yet; run keadm init, or look into cloudcore's log"
        );
    };
    let keys = SigningKeys::from_secret(&data(&secret)?)?;
    let now = time::now();
    let token = keys.sign_for(args.node.as_deref(), &ca, args.ttl, now)?;
    match args.output {
        Format::Text => output::data(&token),
        Format::Json => {
            let seconds =
                i64::try_from(now.saturating_add(args.ttl.as_secs())).context("the expiry is a time")?;
            let expires = jiff::Timestamp::from_second(seconds).context("the expiry is a time")?;
            let hash = hex(&Sha256::digest(&ca));
            let node = args.node.as_deref();
            output::json(
                &json!({ "token": token, "expires": expires.to_string(), "caCertHash": hash, "node": node }),
            )
        }
    }
}

/// The certificate of the cluster's CA, DER.
pub(crate) async fn certificate_authority(cluster: &Cluster) -> Result<Vec<u8>> {
    let Some(secret) = secret(cluster, "casecret").await? else {
        bail!("cloudcore has not made its CA yet; run keadm init, or look into cloudcore's log");
    };
    data(&secret)?.remove("cadata").context("Secret kubeedge/casecret has no cadata")
}

pub(crate) async fn secret(cluster: &Cluster, name: &str) -> Result<Option<Value>> {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "namespace": NAMESPACE, "name": name },
    });
    cluster.get(&Manifest(secret)).await
}

/// A Secret's data, decoded.
pub(crate) fn data(secret: &Value) -> Result<std::collections::BTreeMap<String, Vec<u8>>> {
    let entries = secret["data"].as_object().into_iter().flatten();
    let decode = |(key, value): (&String, &Value)| {
        let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default());
        Ok((key.clone(), bytes.with_context(|| format!("{key} is not base64"))?))
    };
    entries.map(decode).collect()
}
