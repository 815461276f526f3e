//! Tells the API server where the webhooks are, and has it serve the version that is converted.
//!
//! Of several cloudcores any will do: one that the API server has been told of is left in place for as long as it can be
//! reached.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use crds::devices::{CONVERTED, GROUP, WEBHOOK};
use http::Uri;
use kube::Client;
use runtime::tls::{self, Authorities};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time};
use tracing::{info, warn};

use super::{CONVERT, VALIDATE};
use crate::edgecontroller::api::{self, Failure, Patch};

/// The kinds that there are in two versions.
const PLURALS: [&str; 2] = ["devices", "devicemodels"];
/// Between two looks: as long as nobody is asked after the cloudcore that did has gone for good.
const LOOK: Duration = Duration::from_secs(30);
/// For one to be reached.
const REACH: Duration = Duration::from_secs(5);

/// Runs until it is dropped. `at` is where the API server reaches the webhooks here.
pub async fn serve_webhooks(client: Client, at: SocketAddr, authorities: impl Fn() -> Arc<Authorities>) {
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut said = String::new();
    loop {
        looks.tick().await;
        let [conversion, validation] = webhooks(at, &authorities());
        let mut failed = None;
        for plural in PLURALS {
            failed = failed.or(look(&client, plural, &conversion).await.err());
        }
        failed = failed.or(look_at_validation(&client, &validation).await.err());
        let reason = failed.map(|error| runtime::chain(&error).to_string()).unwrap_or_default();
        if !reason.is_empty() && reason != said {
            warn!(
                reason,
                "the API server cannot be told where its webhooks are; keadm init gives cloudcore the right to"
            );
        }
        said = reason;
    }
}

/// As they are in a CustomResourceDefinition and in the ValidatingWebhookConfiguration.
fn webhooks(at: SocketAddr, authorities: &Authorities) -> [Value; 2] {
    let bundle: String =
        authorities.trusted().iter().map(|certificate| tls::pem("CERTIFICATE", certificate)).collect();
    let bundle = BASE64_STANDARD.encode(bundle);
    let client_config = |path: &str| json!({"url": format!("https://{at}{path}"), "caBundle": bundle});
    let conversion = json!({"strategy": "Webhook", "webhook": {
        "clientConfig": client_config(CONVERT), "conversionReviewVersions": ["v1"],
    }});
    let validation = json!({
        "name": WEBHOOK,
        "clientConfig": client_config(VALIDATE),
        "rules": [{
            "apiGroups": [GROUP],
            "apiVersions": ["v1beta1"],
            "resources": PLURALS,
            "operations": ["CREATE", "UPDATE"],
            "scope": "Namespaced",
        }],
        // What is written in the other version, too, converted.
        "matchPolicy": "Equivalent",
        // A cloudcore that is down keeps nobody from anything.
        "failurePolicy": "Ignore",
        "timeoutSeconds": 3,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    });
    [conversion, validation]
}

async fn look(client: &Client, plural: &str, own: &Value) -> Result<(), Failure> {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GROUP}");
    let definition = match api::get(client, &path).await {
        Ok(definition) => definition,
        // Not set up yet, or without devices.
        Err(Failure::Refused { code: 404, .. }) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    // A definition of KubeEdge's own has one version alone.
    let Some(index) = versions.iter().position(|version| version["name"] == CONVERTED) else { return Ok(()) };
    let there = &definition["spec"]["conversion"];
    let is_there = there == own || does_as_well(&there["webhook"], &own["webhook"]).await;
    if versions[index]["served"] == true && is_there {
        return Ok(());
    }
    let version = format!("/spec/versions/{index}");
    let patch = json!([
        {"op": "test", "path": format!("{version}/name"), "value": CONVERTED},
        {"op": "replace", "path": format!("{version}/served"), "value": true},
        {"op": "add", "path": "/spec/conversion", "value": own},
    ]);
    api::patch(client, &path, Patch::Json, &patch).await?;
    info!(
        kind = plural,
        url = own["webhook"]["clientConfig"]["url"].as_str(),
        "{CONVERTED} is converted here"
    );
    Ok(())
}

async fn look_at_validation(client: &Client, own: &Value) -> Result<(), Failure> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{WEBHOOK}");
    let configuration = match api::get(client, &path).await {
        Ok(configuration) => configuration,
        Err(Failure::Refused { code: 404, .. }) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let there = &configuration["webhooks"][0];
    // The API server adds fields, with their defaults.
    let mut fields = own.as_object().into_iter().flatten();
    let is_alike = fields.all(|(field, value)| field == "clientConfig" || there[field] == *value);
    if is_alike && (there["clientConfig"] == own["clientConfig"] || does_as_well(there, own).await) {
        return Ok(());
    }
    api::patch(client, &path, Patch::Merge, &json!({"webhooks": [own]})).await?;
    info!(url = own["clientConfig"]["url"].as_str(), "devices are looked at here before they are written");
    Ok(())
}

/// Whether it is another cloudcore's, which trusts the same CAs and can be reached.
async fn does_as_well(there: &Value, own: &Value) -> bool {
    let [there, own] = [there, own].map(|webhook| &webhook["clientConfig"]);
    if there["caBundle"] != own["caBundle"] {
        return false;
    }
    let uri: Option<Uri> = there["url"].as_str().and_then(|url| url.parse().ok());
    let Some((host, port)) = uri.as_ref().and_then(|uri| Some((uri.host()?, uri.port_u16()?))) else {
        return false;
    };
    let connected = TcpStream::connect((host.trim_matches(['[', ']']), port));
    matches!(time::timeout(REACH, connected).await, Ok(Ok(_)))
}
