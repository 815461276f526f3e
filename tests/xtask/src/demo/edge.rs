//! Steps 3, 6 and 7: the edge node joins; edgecore is killed; the power fails.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    process::{kill9, wait_gone},
    product::{Cloud, Edge, ready},
};
use k8s_openapi::api::core::v1 as api;
use kube::{Api, ResourceExt};

use super::{Demo, NODE, story::Story, workload::Workload};

const SOON: Duration = Duration::from_mins(1);
const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

/// The edge node, and what happens to it.
pub(crate) struct Node(Edge);

/// `keadm gettoken` and `keadm join`; the node is Ready then.
pub(crate) async fn join(demo: &Demo, cloud: &Cloud, story: &mut Story) -> Result<Node> {
    cloud.token().await?;
    story.checked("keadm gettoken: a join token")?;
    // cloudcore vouches for the node until two heartbeats are missing; the default is made for metered lines.
    let joined = Edge::join(&demo.assets, cloud, &demo.site, NODE, &["modules.edgeHub.heartbeat=2"]);
    let line = |_: &Edge| format!("keadm join at the site: {NODE} has joined");
    let edge = story.step("keadm join", line, joined).await?;

    let nodes: Api<api::Node> = Api::all(demo.cluster.client());
    let node = nodes.get(NODE).await?;
    ready(&node)?;
    ensure!(node.labels().contains_key(EDGE_LABEL), "{NODE} is not labelled {EDGE_LABEL}");
    story.checked(&format!("the cloud has node {NODE}, Ready, labelled {EDGE_LABEL}"))?;
    Ok(Node(edge))
}

impl Node {
    /// `--root-dir` of the join.
    pub(crate) fn root(&self) -> &Path {
        self.0.root()
    }

    /// Step 6: `kill -9`, and a start with no cloud in reach.
    pub(crate) async fn survive_kill(
        &self,
        demo: &mut Demo,
        workload: &Workload,
        story: &mut Story,
    ) -> Result<()> {
        let before = workload.container_ids(demo).await?;
        let pid = self.0.pid()?;
        kill9(pid)?;
        wait_gone(pid, SOON)?;
        let doing = "edgecore coming back after kill -9, without the cloud";
        let line =
            |new: &u32| format!("edgecore killed (pid {pid}) and back (pid {new}) with no cloud in reach");
        let back = async {
            let new = self.0.come_back(pid).await?;
            self.0.works_alone().await?;
            anyhow::Ok(new)
        };
        story.step(doing, line, back).await?;
        workload.answers(demo).await?;
        let after = workload.container_ids(demo).await?;
        ensure!(before == after, "containers changed: {before:?} before, {after:?} after");
        story.checked(&format!("the same {} containers, answering", after.len()))
    }

    /// Step 7: everything at the site ends at once, and comes up again from the disk alone.
    pub(crate) async fn survive_power_cut(
        &self,
        demo: &mut Demo,
        workload: &Workload,
        story: &mut Story,
    ) -> Result<()> {
        demo.site.power_off()?;
        story.checked(
            "power cut: edgecore, containerd and every container killed at once; /run and tmpfs gone",
        )?;
        demo.site.power_on().await?;
        story.checked("the site boots, its line still cut")?;
        // As the unit or the boot script would; what supervised it before is dead like everything else.
        let edgecore = self.0.start(&demo.site)?;
        let pid = edgecore.pid();
        demo.edgecore = Some(edgecore);
        self.0.works_alone().await?;
        story.checked(&format!("edgecore is started (pid {pid}), with no cloud in reach"))?;
        story
            .step(
                "the pods coming back from the store",
                |()| "every pod is back from the store, with its UID, and answers".to_owned(),
                workload.answers(demo),
            )
            .await?;
        workload.has_token(demo).await?;
        story.checked("its service account token is mounted again")
    }
}
