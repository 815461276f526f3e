//! `keadm ctl`: what edgecore's admin address tells of this node, as tables or JSON.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result, bail, ensure};
use crds::{
    componentconfig::edgecore::{EdgeCoreConfig, EdgePaths},
    devices::v1beta1::{DeviceStatus, Twin},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    cli::ctl::{Ctl, CtlCommand, CtlDescribe, CtlFormat, CtlGet, CtlSet, Scope},
    fetch, output,
};

const PAGE: &str = "/devices";

#[derive(Debug, Deserialize, Serialize)]
struct Device {
    namespace: String,
    name: String,
    protocol: String,
    status: DeviceStatus,
}

pub(crate) async fn run(args: Ctl) -> Result<()> {
    match args.command {
        CtlCommand::Get(CtlGet { kind: _, names, scope, output: format }) => {
            let devices = chosen(&scope, &names).await?;
            match format {
                Some(CtlFormat::Json) => output::json(&devices),
                format => output::data(&table(&devices, scope.all_namespaces, format.is_some())),
            }
        }
        CtlCommand::Describe(CtlDescribe { kind: _, names, scope }) => {
            let described: Vec<String> = chosen(&scope, &names).await?.iter().map(describe).collect();
            output::data(&described.join("\n"))
        }
        CtlCommand::Set(set) => self::set(set).await,
    }
}

async fn set(CtlSet { kind: _, name, values, scope }: CtlSet) -> Result<()> {
    ensure!(!scope.all_namespaces, "a device is set in one namespace: say --namespace");
    let address = admin_address(&scope.root_dir)?;
    for (property, value) in values {
        let asked = json!({"namespace": scope.namespace, "name": name, "property": property, "value": value});
        let (status, answer) = fetch::admin_put(&address, PAGE, &asked).await.context(NOT_THERE)?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(status == StatusCode::OK, "{}", answer.trim());
        output::done(format_args!("{property} of {name} is to be {value}"));
    }
    Ok(())
}

const NOT_THERE: &str = "edgecore does not answer; is it running? (--root-dir names another one)";

async fn chosen(scope: &Scope, names: &[String]) -> Result<Vec<Device>> {
    let (status, page) = fetch::admin(&admin_address(&scope.root_dir)?, PAGE).await.context(NOT_THERE)?;
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => bail!("edgecore leaves devices alone: modules.deviceTwin.enable is false"),
        status => bail!("edgecore answers with {status}"),
    }
    let mut devices: Vec<Device> =
        serde_json::from_slice(&page).context("failed to read edgecore's answer")?;
    devices.retain(|device| scope.all_namespaces || device.namespace == scope.namespace);
    for name in names {
        let is_there = devices.iter().any(|device| device.name == *name);
        ensure!(is_there, "device {name} is none of this node's in namespace {}", scope.namespace);
    }
    devices.retain(|device| names.is_empty() || names.contains(&device.name));
    Ok(devices)
}

/// As edgecore's own configuration has it, where there is one.
fn admin_address(root: &Path) -> Result<String> {
    let file = EdgePaths::under(root).config_file;
    let config = runtime::config::load(&file, EdgeCoreConfig::validate)
        .with_context(|| format!("this is no edge node, as far as {} tells", file.display()))?;
    Ok(config.paths().admin_address)
}

fn table(devices: &[Device], with_namespaces: bool, wide: bool) -> String {
    if devices.is_empty() {
        return "No devices found.".to_owned();
    }
    let mut header = vec!["NAME", "PROTOCOL", "STATE", "LAST SEEN"];
    header.extend(wide.then_some("PROPERTIES"));
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for device in devices {
        let Device { name, protocol, status, .. } = device;
        let seen = if status.last_online_time.is_empty() { "-" } else { &status.last_online_time };
        let mut row = vec![name.clone(), protocol.clone(), status.state.clone(), seen.to_owned()];
        if wide {
            let values =
                status.twins.iter().map(|twin| format!("{}={}", twin.property_name, twin.reported.value));
            row.push(values.collect::<Vec<_>>().join(","));
        }
        rows.push(row);
    }
    if with_namespaces {
        let namespaces = devices.iter().map(|device| device.namespace.clone());
        for (row, namespace) in rows.iter_mut().zip(["NAMESPACE".to_owned()].into_iter().chain(namespaces)) {
            row.insert(0, namespace);
        }
    }
    aligned(&rows)
}

/// Columns as kubectl has them.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn describe(device: &Device) -> String {
    let Device { namespace, name, protocol, status } = device;
    let mut text = String::new();
    let mut line = |field: &str, value: &str| {
        if !value.is_empty() {
            writeln!(text, "{:<12}{value}", format!("{field}:")).expect("a String takes all that is written");
        }
    };
    line("Name", name);
    line("Namespace", namespace);
    line("Protocol", protocol);
    line("State", &status.state);
    line("Last seen", &status.last_online_time);
    line("Error", status.extensions.get("error").and_then(|error| error.as_str()).unwrap_or_default());
    if !status.twins.is_empty() {
        let mut rows =
            vec![["PROPERTY", "REPORTED", "DESIRED", "SINCE", "ERROR"].map(str::to_owned).to_vec()];
        rows.extend(status.twins.iter().map(property));
        text.push_str("Properties:\n");
        for row in aligned(&rows).lines() {
            text.push_str("  ");
            text.push_str(row);
            text.push('\n');
        }
    }
    text
}

fn property(twin: &Twin) -> Vec<String> {
    let Twin { property_name, reported, observed_desired } = twin;
    let of = |key: &str| {
        let found = observed_desired.metadata.get(key).or_else(|| reported.metadata.get(key));
        found.cloned().unwrap_or_default()
    };
    let since = reported.metadata.get("timestamp").and_then(|since| since.parse().ok());
    let since = since.and_then(|since| jiff::Timestamp::from_millisecond(since).ok());
    let since = since.map(|since| format!("{since:.0}")).unwrap_or_default();
    vec![property_name.clone(), reported.value.clone(), observed_desired.value.clone(), since, of("error")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        serde_json::from_value(json!({
            "namespace": "north", "name": "pump-7", "protocol": "modbus",
            "status": {"state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z", "twins": [
                {"propertyName": "speed",
                    "reported": {"value": "900", "metadata": {"timestamp": "1767225600000", "type": "int"}},
                    "observedDesired": {"value": "9000", "metadata": {"error": "too fast"}}},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn devices_are_shown_as_kubectl_shows_things() {
        assert_eq!(
            table(&[device()], true, true),
            "NAMESPACE   NAME     PROTOCOL   STATE    LAST SEEN              PROPERTIES\n\
             north       pump-7   modbus     online   2026-01-01T00:00:00Z   speed=900\n"
        );
        assert_eq!(table(&[], false, false), "No devices found.");
        let text = describe(&device());
        assert!(text.contains("Last seen:  2026-01-01T00:00:00Z\n"), "{text}");
        assert!(text.contains("speed      900        9000      2026-01-01T00:00:00Z   too fast"), "{text}");
    }
}
