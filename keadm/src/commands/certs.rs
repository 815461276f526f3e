//! `keadm certs`: the cluster's CA, and how another takes its place without shutting a node out.
//!
//! The Secret is all that is written: each cloudcore watches it, and tells its nodes. What those have, they tell cloudcore, which
//! writes it on their Nodes; that is what is read here.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use runtime::tls::{
    Authorities,
    authorities::{AuthoritiesError, Phase, SECRET_KEYS},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::gettoken::{self, NAMESPACE};
use crate::{
    cli::{Certs, CertsCommand, CertsStatus, Format, RotateCa, RotateStep},
    kubernetes::Cluster,
    output,
    preflight::Preflight,
};
use report::Report;

mod report;

const SECRET: &str = "casecret";
/// Between two looks at the nodes that follow.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Certs) -> Result<()> {
    match args.command {
        CertsCommand::Status(args) => status(args).await,
        CertsCommand::RotateCa(args) => rotate(args).await,
    }
}

async fn status(args: CertsStatus) -> Result<()> {
    let cluster = connect(args.kube.kube_config.as_deref()).await?;
    let (authorities, _) = read(&cluster).await?;
    print(&Report::of(&authorities, &report::nodes(&cluster).await?)?, args.output)
}

async fn rotate(args: RotateCa) -> Result<()> {
    let cluster = connect(args.kube.kube_config.as_deref()).await?;
    let (authorities, version) = read(&cluster).await?;
    let report = Report::of(&authorities, &report::nodes(&cluster).await?)?;
    let phase = authorities.phase();
    let step = match turn(args.step, phase)? {
        Turn::Take(step) => step,
        Turn::Taken(step) => {
            output::unchanged(format_args!("{step}: {}", step.taken(phase)));
            if !args.dry_run {
                follow(&cluster, args.timeout).await?;
            }
            return finish(&cluster, args.output).await;
        }
    };
    let behind = report.behind(step);
    if !behind.is_empty() && !args.force {
        let way_out = match step {
            RotateStep::Drop => {
                "a node that does not follow has to join anew after this: wait for it, or say --force"
            }
            RotateStep::Abort => {
                "it would be shut out: have the new CA issue (keadm certs rotate-ca issue) and abort then, or say --force"
            }
            RotateStep::Prepare | RotateStep::Issue => {
                "wait for these (an edgecore of an earlier version never will), or say --force"
            }
        };
        bail!("{step} is refused: {}; {way_out}", report::list(&behind));
    }
    if args.dry_run {
        output::planned(step.plan(phase));
        return finish(&cluster, args.output).await;
    }
    let changed = match step {
        RotateStep::Prepare => authorities.prepared(),
        RotateStep::Issue => authorities.issuing(),
        RotateStep::Drop => authorities.dropped(),
        RotateStep::Abort => authorities.aborted(),
    };
    let changed = match changed {
        Err(AuthoritiesError::KeyGone) => bail!(
            "{step} is refused: {}; go on with keadm certs rotate-ca drop, and rotate once more if the new CA is to go",
            AuthoritiesError::KeyGone
        ),
        changed => changed?,
    };
    // All of the step is in this: a keadm that is killed has taken it, or has not.
    write(&cluster, &changed.to_secret(), &version).await?;
    output::done(step.done(phase));
    if matches!(step, RotateStep::Drop | RotateStep::Abort) && !behind.is_empty() {
        output::note(format_args!(
            "to join anew, with keadm reset and a token for the node, once it has lost its link: {}",
            report::list(&behind)
        ));
    }
    follow(&cluster, args.timeout).await?;
    finish(&cluster, args.output).await
}

async fn connect(kube_config: Option<&std::path::Path>) -> Result<Cluster> {
    let mut preflight = Preflight::default();
    let cluster = preflight.take(Cluster::connect(kube_config).await);
    preflight.finish(false)?;
    Ok(cluster.context("the API server was reached")?.0)
}

/// The CAs, and the version of the Secret that they are in.
async fn read(cluster: &Cluster) -> Result<(Authorities, String)> {
    let Some(secret) = gettoken::secret(cluster, SECRET).await? else {
        bail!("cloudcore has not made its CA yet; run keadm init, or look into cloudcore's log");
    };
    let authorities = Authorities::from_secret(&gettoken::data(&secret)?)
        .with_context(|| format!("Secret {NAMESPACE}/{SECRET} is not usable; restore it from a backup"))?;
    let version = secret["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    Ok((authorities, version))
}

/// In the place of what was read.
async fn write(cluster: &Cluster, data: &BTreeMap<String, Vec<u8>>, version: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let encode = |key| (key, data.get(key).map(|value| BASE64_STANDARD.encode(value)));
    let entries: BTreeMap<&str, Option<String>> = SECRET_KEYS.into_iter().map(encode).collect();
    let patch = json!({"metadata": {"resourceVersion": version}, "data": entries});
    match secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            bail!(
                "somebody else has changed Secret {NAMESPACE}/{SECRET} just now; look with keadm certs status"
            )
        }
        Err(error) => Err(error).with_context(|| format!("failed to write Secret {NAMESPACE}/{SECRET}")),
    }
}

/// What is to be done about a step that was asked for, or about none.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Take(RotateStep),
    Taken(RotateStep),
}

fn turn(asked: Option<RotateStep>, phase: Phase) -> Result<Turn> {
    let next = match phase {
        Phase::Steady => RotateStep::Prepare,
        Phase::Prepared => RotateStep::Issue,
        Phase::Issuing | Phase::Returning => RotateStep::Drop,
    };
    let Some(asked) = asked.filter(|asked| *asked != next) else { return Ok(Turn::Take(next)) };
    match (asked, phase) {
        (RotateStep::Abort, Phase::Prepared | Phase::Issuing) => Ok(Turn::Take(asked)),
        (RotateStep::Prepare, Phase::Prepared | Phase::Issuing)
        | (RotateStep::Issue, Phase::Issuing)
        | (RotateStep::Drop, Phase::Steady)
        | (RotateStep::Abort, Phase::Steady | Phase::Returning) => Ok(Turn::Taken(asked)),
        (_, Phase::Returning) => {
            bail!("it is not the turn of {asked}: the rotation is taken back, and the next step is {next}")
        }
        _ => bail!("it is not the turn of {asked}: the next step is {next}"),
    }
}

/// Waits for the nodes that are connected. That the others have not followed is no failure: they do when they come back.
async fn follow(cluster: &Cluster, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let following = async {
        loop {
            let (authorities, _) = read(cluster).await?;
            let report = Report::of(&authorities, &report::nodes(cluster).await?)?;
            if report.following() || Instant::now() > deadline {
                return Ok(report);
            }
            sleep(LOOK).await;
        }
    };
    let report = output::step("the nodes that are connected follow", following).await?;
    if !report.following() {
        output::note(format_args!("not yet: {}", report::list(&report.waiting)));
    }
    Ok(())
}

async fn finish(cluster: &Cluster, format: Format) -> Result<()> {
    let (authorities, _) = read(cluster).await?;
    let report = Report::of(&authorities, &report::nodes(cluster).await?)?;
    if format == Format::Json {
        return output::json(&report);
    }
    if report.phase != "steady" {
        let next = report.next_step;
        output::note(format_args!(
            "next: keadm certs rotate-ca {next}; how far the nodes are: keadm certs status"
        ));
    }
    Ok(())
}

fn print(report: &Report, format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(report),
        Format::Text => output::data(&report.to_string()),
    }
}

impl RotateStep {
    fn plan(self, phase: Phase) -> &'static str {
        match (self, phase) {
            (Self::Prepare, _) => "make a CA and have every node trust it beside the one that issues",
            (Self::Issue, _) => "have the new CA issue certificates",
            (Self::Drop, Phase::Returning) => "drop the CA that was to be the new one",
            (Self::Drop, _) => "drop the CA that was there before",
            (Self::Abort, Phase::Issuing) => {
                "have the CA that was there before issue again, and every node go back to it"
            }
            (Self::Abort, _) => "forget the CA that was made",
        }
    }

    fn done(self, phase: Phase) -> &'static str {
        match (self, phase) {
            (Self::Prepare, _) => "made a CA; it is trusted beside the one that issues",
            (Self::Issue, _) => "the new CA issues certificates",
            (Self::Drop, Phase::Returning) => "dropped the CA that was to be the new one",
            (Self::Drop, _) => "dropped the CA that was there before",
            (Self::Abort, Phase::Issuing) => {
                "the CA that was there before issues again; the other one is trusted until it is dropped"
            }
            (Self::Abort, _) => "the CA that was made is trusted no more",
        }
    }

    /// Why it is not taken again.
    fn taken(self, phase: Phase) -> &'static str {
        match (self, phase) {
            (Self::Abort, Phase::Steady) => {
                "no rotation is under way, and a CA that was dropped does not come back"
            }
            _ => "that step has been taken",
        }
    }
}

impl fmt::Display for RotateStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Issue => "issue",
            Self::Drop => "drop",
            Self::Abort => "abort",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_taken_once_and_in_turn() {
        use RotateStep::{Abort, Drop, Issue, Prepare};
        for (asked, phase, wanted) in [
            (None, Phase::Steady, Turn::Take(Prepare)),
            (None, Phase::Prepared, Turn::Take(Issue)),
            (None, Phase::Issuing, Turn::Take(Drop)),
            (Some(Prepare), Phase::Steady, Turn::Take(Prepare)),
            (Some(Prepare), Phase::Prepared, Turn::Taken(Prepare)),
            (Some(Prepare), Phase::Issuing, Turn::Taken(Prepare)),
            (Some(Issue), Phase::Issuing, Turn::Taken(Issue)),
            (Some(Drop), Phase::Issuing, Turn::Take(Drop)),
            (Some(Drop), Phase::Steady, Turn::Taken(Drop)),
            (None, Phase::Returning, Turn::Take(Drop)),
            (Some(Drop), Phase::Returning, Turn::Take(Drop)),
            (Some(Abort), Phase::Steady, Turn::Taken(Abort)),
            (Some(Abort), Phase::Prepared, Turn::Take(Abort)),
            (Some(Abort), Phase::Issuing, Turn::Take(Abort)),
            (Some(Abort), Phase::Returning, Turn::Taken(Abort)),
        ] {
            assert_eq!(turn(asked, phase).unwrap(), wanted, "{asked:?} {phase:?}");
        }
        let early = turn(Some(Drop), Phase::Prepared).unwrap_err().to_string();
        assert_eq!(early, "it is not the turn of drop: the next step is issue");
        assert!(turn(Some(Issue), Phase::Steady).is_err());
        for forward in [Prepare, Issue] {
            let refused = turn(Some(forward), Phase::Returning).unwrap_err().to_string();
            assert!(refused.ends_with("the rotation is taken back, and the next step is drop"), "{refused}");
        }
    }
}
