//! Steps 3, 6 and 7: the edge node joins; edgecore is killed; the power fails.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    process::{command, is_running, kill9, output_async, wait_gone},
    wait,
};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};

use super::{Demo, NODE, cloud::Cloud, story::Story, workload::Workload};

const SOON: Duration = Duration::from_mins(1);
const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

/// The edge node's files and program.
pub(crate) struct Edge {
    root: PathBuf,
    edgecore: PathBuf,
}

/// `keadm gettoken` and `keadm join`; the node is Ready then.
pub(crate) async fn join(demo: &Demo, cloud: &Cloud, story: &mut Story) -> Result<Edge> {
    let mut gettoken = command(&cloud.keadm, ["gettoken"]);
    gettoken.arg(format!("--kube-config={}", demo.cluster.kubeconfig().display()));
    let token = output_async(gettoken).await?.trim().to_owned();
    ensure!(!token.is_empty(), "keadm gettoken printed nothing");
    story.checked("keadm gettoken: a join token")?;

    let bin = demo.assets.product()?;
    let root = demo.site.dir().join("edge");
    let options = [
        "join".to_owned(),
        format!("--cloudcore-ipport={}", cloud.endpoint),
        format!("--token={token}"),
        format!("--edgenode-name={NODE}"),
        format!("--remote-runtime-endpoint={}", demo.site.runtime_endpoint()),
        format!("--root-dir={}", root.display()),
        format!("--bin-dir={}", bin.display()),
        // cloudcore vouches for the node until two heartbeats are missing; the default is made for metered lines.
        "--set=modules.edgeHub.heartbeat=2".to_owned(),
    ];
    let line = |_: &String| format!("keadm join at the site: {NODE} has joined");
    story.step("keadm join", line, demo.site.output(&cloud.keadm, options)).await?;

    let nodes: Api<Node> = Api::all(demo.cluster.client());
    let node = nodes.get(NODE).await?;
    ready(&node)?;
    ensure!(node.labels().contains_key(EDGE_LABEL), "{NODE} is not labelled {EDGE_LABEL}");
    story.checked(&format!("the cloud has node {NODE}, Ready, labelled {EDGE_LABEL}"))?;
    Ok(Edge { root, edgecore: bin.join("edgecore") })
}

impl Edge {
    /// Step 6: `kill -9`, and a start with no cloud in reach.
    pub(crate) async fn survive_kill(
        &self,
        demo: &mut Demo,
        workload: &Workload,
        story: &mut Story,
    ) -> Result<()> {
        let before = workload.container_ids(demo).await?;
        let pid = self.pid()?;
        kill9(pid)?;
        wait_gone(pid, SOON)?;
        let doing = "edgecore coming back after kill -9, without the cloud";
        let line =
            |new: &u32| format!("edgecore killed (pid {pid}) and back (pid {new}) with no cloud in reach");
        story.step(doing, line, self.come_back(pid)).await?;
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
        let pid = self.start(demo)?;
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

    fn pid(&self) -> Result<u32> {
        let path = self.root.join("edgecore.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds no pid: {text:?}", path.display()))
    }

    /// Waits for the supervisor to start an edgecore other than `old`.
    async fn come_back(&self, old: u32) -> Result<u32> {
        wait::until("edgecore started again by its supervisor", SOON, async || {
            let pid = self.pid()?;
            if pid == old || !is_running(pid) {
                bail!("edgecore.pid names {pid}, which is gone");
            }
            Ok(pid)
        })
        .await
    }

    fn start(&self, demo: &mut Demo) -> Result<u32> {
        let config = self.root.join("config/edgecore.yaml");
        let config = config.to_str().context("a run's directory has a plain name")?;
        let edgecore = demo.site.spawn(&self.edgecore, ["--config", config], "edgecore")?;
        let pid = edgecore.pid();
        demo.edgecore = Some(edgecore);
        Ok(pid)
    }
}

/// An error that says why a node is not Ready.
pub(crate) fn ready(node: &Node) -> Result<()> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    match ready {
        None => bail!("{} has no Ready condition", node.name_any()),
        Some(condition) if condition.status == "True" => Ok(()),
        Some(condition) => bail!(
            "{} is Ready={}: {}",
            node.name_any(),
            condition.status,
            condition.message.as_deref().unwrap_or_default()
        ),
    }
}
