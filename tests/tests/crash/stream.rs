//! A stream of changes, decided by a seed: ConfigMaps are made, replaced, patched and deleted.

use std::collections::BTreeMap;

use anyhow::Result;
use harness::random::Random;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::Mutex, time::sleep};

/// The ConfigMaps that the stream changes: `cm-0` and on.
pub(crate) const NAMES: usize = 24;
/// The key that every ConfigMap of the stream has.
pub(crate) const VALUE: &str = "value";
/// Between two changes, at most. Less would only keep the API server busy.
const PAUSE_MS: u64 = 25;

/// Mostly short, sometimes many of the store's chunks.
fn text(random: &mut Random) -> String {
    let bound = if random.below(8) == 0 { 2_500 } else { 60 };
    let words = 1 + random.below(bound);
    random.words(words)
}

pub(crate) type Content = BTreeMap<String, String>;

struct Inner {
    random: Random,
    there: BTreeMap<String, Content>,
    changes: u64,
}

pub(crate) struct Stream {
    api: Api<ConfigMap>,
    /// Held for each change; whoever holds it pauses the stream.
    inner: Mutex<Inner>,
}

impl Stream {
    pub(crate) fn new(client: Client, random: Random) -> Self {
        let inner = Inner { random, there: BTreeMap::new(), changes: 0 };
        Self { api: Api::default_namespaced(client), inner: Mutex::new(inner) }
    }

    /// Goes on until it is dropped or fails.
    pub(crate) async fn run(&self) -> Result<()> {
        loop {
            let pause = {
                let mut inner = self.inner.lock().await;
                self.change(&mut inner).await?;
                inner.random.millis(PAUSE_MS)
            };
            sleep(pause).await;
        }
    }

    async fn change(&self, inner: &mut Inner) -> Result<()> {
        let Inner { random, there, changes } = inner;
        *changes += 1;
        let name = format!("cm-{}", random.below(NAMES as u64));
        let Some(content) = there.get_mut(&name) else {
            let content = Content::from([(VALUE.to_owned(), text(random))]);
            self.api.create(&PostParams::default(), &config_map(&name, &content)).await?;
            there.insert(name, content);
            return Ok(());
        };
        match random.below(8) {
            0 => {
                self.api.delete(&name, &DeleteParams::default()).await?;
                there.remove(&name);
            }
            1..=4 => {
                let key = if random.below(2) == 0 { VALUE } else { "note" };
                let text = text(random);
                let patch = Patch::Merge(json!({ "data": { key: text } }));
                self.api.patch(&name, &PatchParams::default(), &patch).await?;
                content.insert(key.to_owned(), text);
            }
            _ => {
                *content = Content::from([(VALUE.to_owned(), text(random))]);
                self.api.replace(&name, &PostParams::default(), &config_map(&name, content)).await?;
            }
        }
        Ok(())
    }

    /// Pauses the stream while `work` is done; it is given what is in the cloud now.
    pub(crate) async fn paused<T>(
        &self,
        work: impl AsyncFnOnce(&BTreeMap<String, Content>) -> Result<T>,
    ) -> Result<T> {
        work(&self.inner.lock().await.there).await
    }

    pub(crate) async fn changes(&self) -> u64 {
        self.inner.lock().await.changes
    }
}

fn config_map(name: &str, content: &Content) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(content.clone()),
        ..ConfigMap::default()
    }
}

/// The sources of a projected volume that has the value of each ConfigMap of the stream in a file of its name.
pub(crate) fn sources() -> serde_json::Value {
    (0..NAMES)
        .map(|n| {
            let items = json!([{ "key": VALUE, "path": format!("cm-{n}") }]);
            json!({ "configMap": { "name": format!("cm-{n}"), "optional": true, "items": items } })
        })
        .collect()
}
