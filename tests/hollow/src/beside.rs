//! A bare watch of the ConfigMaps beside the nodes: when the API server tells of a change, whatever cloudcore does then. It has a
//! thread of its own, so that it does not wait behind a thousand nodes.

use std::{sync::Arc, thread::JoinHandle};

use anyhow::{Result, ensure};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use kube::Client;
use proto::ResourceKey;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    apart,
    changes::{Changes, number_of},
};

/// A running watch.
pub struct Beside {
    stop: CancellationToken,
    thread: JoinHandle<Result<()>>,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    resource_version: String,
}

impl Beside {
    /// Returns once the API server has begun to tell.
    pub async fn start(config: kube::Config, namespace: &str, changes: &Arc<Changes>) -> Result<Self> {
        let stop = CancellationToken::new();
        let (begun, watches) = oneshot::channel();
        let (stopped, namespace, changes) = (stop.clone(), namespace.to_owned(), Arc::clone(changes));
        let thread = apart::spawn("beside", move || async move {
            tokio::select! {
                ended = watch(config, &namespace, &changes, begun) => ended,
                () = stopped.cancelled() => Ok(()),
            }
        })?;
        let beside = Self { stop, thread };
        if watches.await.is_ok() {
            return Ok(beside);
        }
        beside.stop()?;
        anyhow::bail!("the watch beside the nodes has ended at once")
    }

    /// An error if it had ended before.
    pub fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.thread.join().map_err(|_| anyhow::anyhow!("the watch beside the nodes has panicked"))?
    }
}

async fn watch(
    config: kube::Config,
    namespace: &str,
    changes: &Changes,
    begun: oneshot::Sender<()>,
) -> Result<()> {
    let client = Client::try_from(config)?;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let list = client.request_text(Request::get(format!("{path}?limit=1")).body(Vec::new())?).await?;
    let list: Named = serde_json::from_str(&list)?;
    let mut version = list.metadata.resource_version;
    let mut begun = Some(begun);
    loop {
        let query = format!("{path}?watch=true&timeoutSeconds=3600&resourceVersion={version}");
        let mut lines = client.request_stream(Request::get(query).body(Vec::new())?).await?.lines();
        if let Some(begun) = begun.take() {
            changes.watched(true);
            if begun.send(()).is_err() {
                // Whoever started it has been stopped meanwhile.
                return Ok(());
            }
        }
        // The API server ends a watch whose client is slower than the changes; it goes on where it was, as any other client would.
        while let Some(line) = lines.try_next().await? {
            let event: Event<'_> = serde_json::from_str(&line)?;
            if event.r#type != "MODIFIED" {
                ensure!(event.r#type != "ERROR", "the watch beside the nodes: {}", event.object);
                continue;
            }
            let named: Named = serde_json::from_str(event.object.get())?;
            version = named.metadata.resource_version;
            if let Some(number) = number_of(event.object.get().as_bytes()) {
                let key = ResourceKey::new("ConfigMap", &named.metadata.namespace, &named.metadata.name)?;
                changes.seen(&key, number);
            }
        }
    }
}
