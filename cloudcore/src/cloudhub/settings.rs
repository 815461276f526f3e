//! How the cloud's half of a node's link is used: what the node's ConfigMap says, and where that says nothing, what the
//! edge's own configuration does, which its hello tells.
//!
//! The edge does the same with what it holds, and reports what is wrong with a document; here one that is wrong is
//! passed over. So both ends agree, but for the time that the ConfigMap takes, and a cap that is lifted
//! holds back no more of what is on its way already.

use std::time::Duration;

use crds::componentconfig::sync::{
    Bandwidth, ClassName, Interval, LinkSettings, PriorityClass, SYNC_DOCUMENT, Strategy, SyncStrategy,
};
use proto::message::{DownSettings, Hello};
use tracing::debug;

use crate::edgecontroller::index::SyncConfig;

#[derive(Debug, Default)]
pub(super) struct Settings {
    own: SyncStrategy,
    /// The last good document, or what the edge has kept of it.
    good: SyncStrategy,
    /// The hash of the ConfigMap that was looked at last.
    looked_at: Option<u64>,
}

impl Settings {
    pub(super) fn told_by(hello: &Hello) -> Self {
        let document = |settings: Option<DownSettings>| settings.map(document).unwrap_or_default();
        Self { own: document(hello.own), good: document(hello.kept), looked_at: None }
    }

    /// What counts now.
    pub(super) fn look(&mut self, config: SyncConfig) -> LinkSettings {
        match config {
            SyncConfig::None => (self.good, self.looked_at) = (SyncStrategy::default(), None),
            SyncConfig::Map(object) if self.looked_at != Some(object.version.hash) => {
                self.looked_at = Some(object.version.hash);
                let name = format!("{}/{}", object.key.namespace(), object.key.name());
                match runtime::config::document(&name, &object.bytes, SYNC_DOCUMENT, SyncStrategy::validate) {
                    Ok((good, _)) => self.good = good,
                    Err(error) => debug!(error = %runtime::chain(&error), "link settings stay as they are"),
                }
            }
            SyncConfig::Map(_) | SyncConfig::Unknown => {}
        }
        LinkSettings::of([&self.good, &self.own])
    }
}

fn document(settings: DownSettings) -> SyncStrategy {
    let DownSettings { full, compression, bandwidth, critical_ms, standard_ms, batch_ms } = settings;
    let classes = [
        (ClassName::Critical, critical_ms),
        (ClassName::Standard, standard_ms),
        (ClassName::Batch, batch_ms),
    ];
    let class = |(name, millis): (_, Option<u64>)| {
        let sync_interval = Interval::of(Duration::from_millis(millis?));
        Some(PriorityClass { name, sync_interval })
    };
    SyncStrategy {
        strategy: full.map(|full| if full { Strategy::Full } else { Strategy::Differential }),
        compression,
        priority_classes: classes.into_iter().filter_map(class).collect(),
        bandwidth: Bandwidth { up: None, down: bandwidth },
        ..SyncStrategy::default()
    }
}

#[cfg(test)]
mod tests {
    use proto::Object;

    use super::*;

    fn map(document: &str) -> SyncConfig {
        let json = serde_json::json!({ "data": { SYNC_DOCUMENT: document } });
        let key = "ConfigMap/default/sync-config".parse().unwrap();
        SyncConfig::Map(Object::new(key, 1, json.to_string().into()))
    }

    #[test]
    fn the_last_good_document_counts_before_what_the_edge_has_itself() {
        let own = DownSettings {
            compression: Some(false),
            bandwidth: Some(5000),
            standard_ms: Some(1500),
            batch_ms: Some(u64::MAX),
            ..DownSettings::default()
        };
        let kept = DownSettings { bandwidth: Some(7000), batch_ms: Some(0), ..DownSettings::default() };
        let mut settings = Settings::told_by(&Hello { own: Some(own), kept: Some(kept), ..Hello::default() });
        let caps = |settings: &mut Settings, config| settings.look(config).down;
        // Wrong from the beginning: the edge knows what was good before.
        assert_eq!(caps(&mut settings, map("bandwidth: {down: 1}")), Some(7000));
        assert_eq!(caps(&mut settings, SyncConfig::Unknown), Some(7000));
        let intervals = |critical, standard, batch| [critical, standard, batch].map(Duration::from_millis);
        assert_eq!(settings.look(SyncConfig::Unknown).intervals, intervals(0, 1500, 0));
        let config = map("priorityClasses: [{name: critical, syncInterval: 2s}]");
        // A year of what the edge's own configuration cannot have.
        assert_eq!(settings.look(config).intervals, intervals(2000, 1500, 366 * 86_400_000));
        let full = settings.look(map("strategy: full\nbandwidth: {down: 9000}"));
        assert!(full.full && full.plain && full.down == Some(9000), "{full:?}");
        assert!(settings.look(map("strategy: ful")).full);
        assert_eq!(caps(&mut settings, map("bandwidth: {down: 0}")), None);
        assert_eq!(caps(&mut settings, map("strategy: full")), Some(5000));
        let gone = settings.look(SyncConfig::None);
        assert!(!gone.full && gone.plain && gone.down == Some(5000), "{gone:?}");
        assert_eq!(Settings::told_by(&Hello::default()).look(SyncConfig::None), LinkSettings::default());
    }
}
