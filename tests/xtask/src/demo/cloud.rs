//! Step 2: `keadm init`.

use anyhow::{Result, ensure};
use harness::product::Cloud;

use super::{Demo, story::Story};

pub(crate) async fn init(demo: &Demo, story: &mut Story) -> Result<Cloud> {
    let addresses = [demo.site.host_address()];
    let cloud = Cloud::init(&demo.run, &demo.assets, &demo.cluster, &addresses);
    let line = |cloud: &Cloud| format!("keadm init: cloudcore is ready on {}", cloud.endpoint(&demo.site));
    let cloud = story.step("keadm init", line, cloud).await?;
    let kinds = demo.cluster.kubectl(&["get", "customresourcedefinitions", "--output=name"]).await?;
    let kinds = kinds.lines().filter(|name| name.ends_with(".kubeedge.io")).count();
    ensure!(kinds > 0, "no CustomResourceDefinition of kubeedge.io is there");
    // Fails if one of them is missing.
    let parts =
        ["secret/casecret", "secret/tokensecret", "serviceaccount/cloudcore", "rolebinding/cloudcore"];
    demo.cluster.kubectl(&[&["--namespace=kubeedge", "get"], &parts[..]].concat()).await?;
    demo.cluster.kubectl(&["get", "clusterrole/cloudcore", "clusterrolebinding/cloudcore"]).await?;
    story.checked(&format!(
        "in the cluster: {kinds} CRDs, namespace kubeedge, roles and bindings, the Secrets of CA and tokens"
    ))?;
    Ok(cloud)
}
