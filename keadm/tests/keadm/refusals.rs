//! What cannot work is said before anything is changed: one cause, and its fix.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use harness::wait;
use runtime::token::{SigningKeys, Token};

use crate::stage::{Stage, free_port};

pub(crate) async fn ports_and_tokens(stage: &Stage<'_>) -> Result<()> {
    let good = stage.token(&[]).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let short = stage.token(&["--ttl=1s"]).await?;
    let strangers = SigningKeys::generate(now)?;
    let elsewhere = strangers.sign(b"another CA", Duration::from_hours(1), now)?;
    let pin = good.split_once('.').context("a token has parts")?.0;
    let forged = format!("{pin}.{}", Token::parse(&elsewhere)?.bearer);
    let other_name = stage.token(&["--node=edge-2"]).await?;
    wait::until("the short token has expired", Duration::from_mins(1), async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        ensure!(Token::parse(&short)?.expires < now, "not yet");
        anyhow::Ok(())
    })
    .await?;

    let hub = stage.endpoint(stage.port);
    let (plain, tls) = (stage.endpoint(stage.admin), stage.endpoint(stage.cluster.port()));
    let nothing = stage.endpoint(free_port()?);
    let another_cluster = format!("the CA at {hub} does not match the pin in the token");
    let something_else = |at: &str| format!("something other than cloudcore answers at {at}");
    let cases: [(&str, &str, String, &str); 9] = [
        (&hub, "rubbish", "not one that keadm gettoken prints".into(), "copy the whole output"),
        (&hub, &good[..good.len() - 7], "was not issued by this cluster".into(), "keadm gettoken"),
        (&hub, &short, "the token expired ".into(), "get a new token with keadm gettoken"),
        (&hub, &elsewhere, another_cluster, "from the right cluster with keadm gettoken"),
        (&hub, &forged, "was not issued by this cluster".into(), "keadm gettoken"),
        (&hub, &other_name, "the token is for node edge-2".into(), "keadm gettoken"),
        (&plain, &good, something_else(&plain), "check address and port"),
        (&tls, &good, something_else(&tls), "check address and port"),
        (&nothing, &good, format!("nothing listens at {nothing}"), "keadm init has run"),
    ];
    for (endpoint, token, cause, fix) in cases {
        let token = format!("--token={token}");
        let ran = stage.join(endpoint, &stage.root_dir, &[&token]).await?;
        let ran = ran.refuses(&[&cause, fix, "a preflight check failed; nothing was changed"])?;
        ensure!(!ran.err.contains("OtherError"), "{}", ran.err);
        ensure!(!stage.root_dir.exists(), "something was written: {}", ran.err);
    }
    stage.join(&hub, &stage.root_dir, &[]).await?.refuses(&["no token was given"])?;
    Ok(())
}

/// Another machine does not get the name of one that is there, but with a token for it.
pub(crate) async fn names(stage: &Stage<'_>) -> Result<()> {
    let hub = stage.endpoint(stage.port);
    let root = stage.site.dir().join("another-machine");
    let any = format!("--token={}", stage.token(&[]).await?);
    let refused = ["a machine has joined as edge-1 before", "keadm gettoken --node=edge-1"];
    stage.join(&hub, &root, &[&any]).await?.refuses(&refused)?;
    let own = format!("--token={}", stage.token(&["--node=edge-1"]).await?);
    // Here it would have the container runtime of the other.
    stage.join(&hub, &root, &[&own]).await?.refuses(&["another edgecore (process "])?;
    stage.join(&hub, &root, &[&own, "--dry-run", "--force"]).await?.says(&["would start edgecore"])?;
    Ok(())
}
