//! What the nodes have of the cluster: the CA that signs their certificates, and the pods that they are to run.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::{Api, Client, api::PostParams};
use proto::ResourceKey;
use runtime::tls::Authorities;
use serde_json::json;
use tokio::{task::JoinSet, time};

use crate::{changes::write, fleet::name};

/// Objects made at a time.
const AT_ONCE: usize = 32;
/// A pod of 50 KB.
const NAMED_BY_A_POD: usize = 1000;
/// The controller manager makes a namespace's service account within a moment.
const SOON: Duration = Duration::from_secs(30);

/// The CAs that cloudcore has.
pub async fn authorities(client: &Client) -> Result<Authorities> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kubeedge");
    let secret = secrets.get("casecret").await.context(
        "failed to read Secret kubeedge/casecret; has this cluster a cloudcore, and may the user read it?",
    )?;
    let data = secret.data.unwrap_or_default().into_iter().map(|(name, part)| (name, part.0)).collect();
    Authorities::from_secret(&data).context("Secret kubeedge/casecret is not usable")
}

/// What [`populate`] makes.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub nodes: usize,
    /// For each node.
    pub pods: usize,
    /// ConfigMaps that the first pod of each node refers to, beside its own.
    pub shared: usize,
}

/// The ConfigMaps that all nodes hold.
pub fn shared(prefix: &str, count: usize) -> Result<Vec<ResourceKey>> {
    let keys =
        (0..count).map(|number| ResourceKey::new("ConfigMap", prefix, &format!("{prefix}-shared-{number}")));
    Ok(keys.collect::<Result<_, _>>()?)
}

/// Makes pods for each of the nodes, in the namespace `PREFIX`; the first one of each refers to a ConfigMap of its
/// own, which is answered. What is there already stays.
pub async fn populate(client: &Client, prefix: &str, workload: Workload) -> Result<Vec<ResourceKey>> {
    let Workload { nodes, pods, shared: of_all } = workload;
    namespace(client, prefix).await?;
    let of_all = shared(prefix, of_all)?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), prefix);
    for key in &of_all {
        create(&maps, &serde_json::from_value(config(key.name()))?).await?;
    }
    let mut configs = Vec::new();
    let mut making = JoinSet::new();
    for number in 0..nodes {
        let node = name(prefix, number);
        configs.push(ResourceKey::new("ConfigMap", prefix, &node)?);
        let (client, prefix) = (client.clone(), prefix.to_owned());
        let named: Vec<String> =
            [node.clone()].into_iter().chain(of_all.iter().map(|key| key.name().to_owned())).collect();
        making.spawn(async move {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &prefix);
            create(&maps, &serde_json::from_value(config(&node))?).await?;
            let all: Api<Pod> = Api::namespaced(client, &prefix);
            for pod in 0..pods {
                let named = if pod == 0 { &named[..] } else { &[] };
                create(&all, &serde_json::from_value(pod_of(&node, pod, named))?).await?;
            }
            anyhow::Ok(())
        });
        while making.len() >= AT_ONCE {
            settle(&mut making).await?;
        }
    }
    while !making.is_empty() {
        settle(&mut making).await?;
    }
    Ok(configs)
}

/// Makes so many ConfigMaps, and pods on the node that refer to them, which are answered. What is there already stays.
pub(crate) async fn burden(
    client: &Client,
    prefix: &str,
    node: &str,
    count: usize,
) -> Result<Vec<ResourceKey>> {
    namespace(client, prefix).await?;
    let names: Vec<String> = (0..count).map(|number| format!("{node}-{number}")).collect();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), prefix);
    each(&names, |name| {
        let (maps, config) = (maps.clone(), config(&name));
        async move { create(&maps, &serde_json::from_value(config)?).await }
    })
    .await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), prefix);
    for (number, named) in names.chunks(NAMED_BY_A_POD).enumerate() {
        create(&pods, &serde_json::from_value(pod_of(node, number, named))?).await?;
    }
    let keys = names.iter().map(|name| ResourceKey::new("ConfigMap", prefix, name));
    Ok(keys.collect::<Result<_, _>>()?)
}

/// Changes each of these once.
pub(crate) async fn change_all(client: &Client, configs: &[ResourceKey], number: u64) -> Result<()> {
    each(configs, |config| {
        let client = client.clone();
        async move { Ok(write(&client, &config, number).await?) }
    })
    .await
}

async fn each<T: Clone, F>(of: &[T], mut work: impl FnMut(T) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut making = JoinSet::new();
    for one in of {
        making.spawn(work(one.clone()));
        while making.len() >= AT_ONCE {
            settle(&mut making).await?;
        }
    }
    while !making.is_empty() {
        settle(&mut making).await?;
    }
    Ok(())
}

async fn settle(making: &mut JoinSet<Result<()>>) -> Result<()> {
    making.join_next().await.unwrap_or(Ok(Ok(()))).context("a task that made objects has died")?
}

async fn namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    create(&Api::<Namespace>::all(client.clone()), &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    let made = async {
        while accounts.get_opt("default").await?.is_none() {
            time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    match time::timeout(SOON, made).await {
        Ok(made) => made,
        Err(_) => {
            bail!("namespace {name} gets no default service account; does kube-controller-manager run?")
        }
    }
}

/// Of the size of a usual one.
fn config(node: &str) -> serde_json::Value {
    let lines: BTreeMap<String, String> = (0..8)
        .map(|line| (format!("key-{line}"), format!("the value of line {line}, as configured for {node}")))
        .collect();
    json!({ "metadata": { "name": node }, "data": lines })
}

/// It refers to the ConfigMaps of these names.
fn pod_of(node: &str, number: usize, named: &[String]) -> serde_json::Value {
    let mut container = json!({
        "name": "main", "image": "registry.k8s.io/pause:3.10",
        "resources": { "requests": { "cpu": "1m", "memory": "1Mi" } },
    });
    if !named.is_empty() {
        let named: Vec<_> = named.iter().map(|name| json!({ "configMapRef": { "name": name } })).collect();
        container["envFrom"] = named.into();
    }
    json!({
        "metadata": { "name": format!("{node}-{number}"), "labels": { "app": "hollow" } },
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    })
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug + kube::Resource,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        made => {
            let name = object.meta().name.as_deref().unwrap_or_default();
            made.map(drop).with_context(|| format!("failed to create {name}"))
        }
    }
}
