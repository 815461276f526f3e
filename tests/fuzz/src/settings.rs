//! What an operator writes.

use std::path::Path;

use crds::componentconfig::{
    cloudcore::CloudCoreConfig, document, edgecore::EdgeCoreConfig, is_endpoint, is_label, quantity::Memory,
};
use edgecore::edged::resources;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime::{config, link::proxy::Proxy};

pub(crate) fn cloudcore_seeds() -> Vec<Vec<u8>> {
    [
        "",
        "modules:\n  cloudHub:\n    nodeLimit: 0x10\n    websocket:\n      port: 010000\n",
        "a: &a [*a]\n",
        "modules: {cloudHub: {quic: {enable: yes}}}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into_iter()
    .chain([document::minimal(&CloudCoreConfig::default()).unwrap().into_bytes()])
    .collect()
}

pub(crate) fn cloudcore(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let parsed = config::parse(&text, Path::new("cloudcore.yaml"), CloudCoreConfig::validate);
    match parsed {
        Ok(config) => {
            let again = document::minimal(&config).unwrap();
            let again = config::parse(&again, Path::new("again.yaml"), CloudCoreConfig::validate);
            assert_eq!(again.unwrap(), config);
        }
        Err(error) => assert!(error.to_string().starts_with("cloudcore.yaml"), "{error}"),
    }
}

pub(crate) fn edgecore_seeds() -> Vec<Vec<u8>> {
    ["modules:\n  edged:\n    hostnameOverride: pump-7\n    memoryCapacity: 100Mi\n    nodeLabels:\n      site: north\n", "modules:\n  edgeHub:\n    heartbeat: 70\n    quic:\n      server: '[::1]:10000'\n"]
        .map(|text| text.as_bytes().to_vec())
        .into_iter()
        .chain([document::minimal(&EdgeCoreConfig::default()).unwrap().into_bytes()])
        .collect()
}

pub(crate) fn edgecore(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let parsed = config::parse(&text, Path::new("edgecore.yaml"), EdgeCoreConfig::validate);
    match parsed {
        Ok(config) => {
            let again = document::minimal(&config).unwrap();
            let again = config::parse(&again, Path::new("again.yaml"), EdgeCoreConfig::validate);
            assert_eq!(again.unwrap(), config);
        }
        Err(error) => assert!(error.to_string().starts_with("edgecore.yaml"), "{error}"),
    }
}

pub(crate) fn proxies() -> Vec<Vec<u8>> {
    ["http://joe:s%40crEt@proxy.example:3128", "https://[2001:db8::1]/", "https://a@b@c:1"]
        .map(|text| text.as_bytes().to_vec())
        .into()
}

pub(crate) fn proxy(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(proxy) = text.parse::<Proxy>() {
        assert!(proxy.address().contains(':'));
        assert!(!format!("{proxy:?}").contains("Basic "));
    }
    let (key, value) = text.split_once('=').unwrap_or((&text, ""));
    let _ = (is_endpoint(&text), is_label(key, value));
}

pub(crate) fn quantities() -> Vec<Vec<u8>> {
    ["100Mi", "1.5Gi", "1e3", "-1", "0.000000001n", ".0147573952589676412927Ei", "99999999999Ti"]
        .map(|text| text.as_bytes().to_vec())
        .into()
}

pub(crate) fn quantity(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Ok(memory) = text.parse::<Memory>() {
        assert_eq!(memory.to_string(), text);
        // The same number for both readers of it.
        let milli = resources::milli(&Quantity(text.clone()));
        assert!(milli.is_none_or(|milli| milli == i128::from(memory.bytes()) * 1000), "{text}: {milli:?}");
    }
    let quantity = Quantity(text);
    if let Some(units) = resources::units(&quantity) {
        let milli = resources::milli(&quantity).unwrap();
        assert!(i128::from(units) * 1000 >= milli && (i128::from(units) - 1) * 1000 < milli, "{quantity:?}");
    }
}
