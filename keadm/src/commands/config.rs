//! `keadm config`: print, explain and check configuration files.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use crds::componentconfig::{
    cloudcore::{self, CloudCoreConfig},
    document,
    edgecore::{self, EdgeCoreConfig},
    explain::{Key, keys},
};
use runtime::config::nearest;
use serde_json::{Value, json};

use crate::{
    cli::{Component, Config, ConfigCommand, Format},
    output,
};

pub(crate) fn run(args: Config) -> Result<()> {
    match args.command {
        ConfigCommand::Defaults { component } => {
            let text = match component {
                Component::Cloudcore => document::annotated::<CloudCoreConfig>(),
                Component::Edgecore => document::annotated::<EdgeCoreConfig>(),
            };
            output::data(&text.context("failed to write the defaults")?)
        }
        ConfigCommand::Explain { key, component, output: format } => {
            explain(key.as_deref(), component, format)
        }
        ConfigCommand::Check { file } => check(&file),
    }
}

impl Component {
    fn name(self) -> &'static str {
        match self {
            Self::Cloudcore => "cloudcore",
            Self::Edgecore => "edgecore",
        }
    }

    fn keys(self) -> Result<Vec<Key>> {
        match self {
            Self::Cloudcore => keys::<CloudCoreConfig>(),
            Self::Edgecore => keys::<EdgeCoreConfig>(),
        }
        .context("failed to read the keys")
    }
}

fn explain(path: Option<&str>, component: Option<Component>, format: Format) -> Result<()> {
    let components = component.map_or(vec![Component::Cloudcore, Component::Edgecore], |one| vec![one]);
    let mut found = Vec::new();
    for component in &components {
        let below = component
            .keys()?
            .into_iter()
            .filter(|key| path.is_none_or(|path| is_at_or_below(&key.path, path)));
        found.extend(below.map(|key| (*component, key)));
    }
    if found.is_empty() {
        bail!("{}", unknown(path.unwrap_or_default(), &components)?);
    }
    match format {
        Format::Text => {
            let texts: Vec<String> = found.iter().map(|(component, key)| text(*component, key)).collect();
            output::data(&texts.join("\n"))
        }
        Format::Json => {
            let values: Vec<Value> = found
                .iter()
                .map(|(component, key)| {
                    let mut value = json!(key);
                    value["component"] = component.name().into();
                    value
                })
                .collect();
            output::json(&values)
        }
    }
}

fn is_at_or_below(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Why `path` is no key of the component's configuration, nor below one that takes a map.
pub(crate) fn unknown_key(path: &str, component: Component) -> Option<String> {
    let keys = component.keys().ok()?;
    let is_known =
        keys.iter().any(|key| key.path == path || (!key.is_section() && is_at_or_below(path, &key.path)));
    if is_known { None } else { unknown(path, &[component]).ok() }
}

/// Says which key was probably meant: the nearest path, or one that ends in the same name.
fn unknown(path: &str, components: &[Component]) -> Result<String> {
    let mut all = Vec::new();
    for component in components {
        all.extend(component.keys()?.into_iter().map(|key| key.path));
    }
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_lowercase();
    let near = nearest(path, all.iter().map(String::as_str))
        .or_else(|| all.iter().find(|known| last(known) == last(path)).map(String::as_str));
    Ok(match near {
        Some(near) => format!("there is no key {path}; did you mean {near}?"),
        None => format!("there is no key {path}; keadm config explain lists them all"),
    })
}

fn text(component: Component, key: &Key) -> String {
    let default = match &key.default {
        _ if key.is_section() => String::new(),
        Value::Null => ", left out by default".to_owned(),
        value => format!(", default {value}"),
    };
    format!("{} ({}; {}{default})\n    {}\n", key.path, component.name(), key.kind, key.description)
}

/// What a file says that it is.
#[derive(serde::Deserialize)]
struct Identity {
    kind: Option<String>,
}

fn check(file: &Path) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    let any = |_: &Identity| Ok::<_, Vec<String>>(());
    let identity = runtime::config::parse(&text, file, any)?;
    let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    match identity.kind.as_deref().unwrap_or(name) {
        cloudcore::KIND | "cloudcore" => {
            runtime::config::parse(&text, file, CloudCoreConfig::validate)?;
        }
        edgecore::KIND | "edgecore" => {
            runtime::config::parse(&text, file, EdgeCoreConfig::validate)?;
        }
        other => {
            bail!("{}: kind {other:?} is neither {} nor {}", file.display(), cloudcore::KIND, edgecore::KIND)
        }
    }
    output::done(format_args!("{} is valid", file.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_explains_what_is_below_it() {
        assert!(is_at_or_below("modules.edged.nodeIP", "modules.edged"));
        assert!(!is_at_or_below("modules.edgeHub.token", "modules.edge"));
    }

    #[test]
    fn a_key_says_type_default_and_purpose() {
        let keys = Component::Edgecore.keys().unwrap();
        let heartbeat = keys.iter().find(|key| key.path == "modules.edgeHub.heartbeat").unwrap();
        let text = text(Component::Edgecore, heartbeat);
        assert!(
            text.starts_with("modules.edgeHub.heartbeat (edgecore; integer, default 70)\n    Seconds "),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_key_gets_a_suggestion() {
        let both = [Component::Cloudcore, Component::Edgecore];
        let text = unknown("modules.edged.memorycapacity", &both).unwrap();
        assert!(text.ends_with("did you mean modules.edged.memoryCapacity?"), "{text}");
        let text = unknown("cpuFrequency", &both).unwrap();
        assert!(text.ends_with("did you mean modules.edged.cpuFrequency?"), "{text}");
    }

    #[test]
    fn files_are_checked_by_what_they_say_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        check(&write("edgecore.yaml", "")).unwrap();
        check(&write("x.yaml", "kind: CloudCore\n")).unwrap();
        check(&write(
            "seed.yaml",
            "kind: EdgeCore\nmodules:\n  edged:\n    memoryCapacity: 100Mi\n    cpuFrequency: 100\n",
        ))
        .unwrap();
        let bad = write("y.yaml", "kind: EdgeCore\nmodules:\n  edged:\n    memoryCapacity: 100MB\n");
        let error = check(&bad).unwrap_err().to_string();
        assert!(error.contains(":4:") && error.contains("100MB"), "{error}");
        let error = check(&write("z.yaml", "kind: Pod\n")).unwrap_err().to_string();
        assert!(error.ends_with("kind \"Pod\" is neither CloudCore nor EdgeCore"), "{error}");
    }
}
