//! Edges of other versions, by the bytes that they send: what they add is skipped, what cannot be done is refused with what to do
//! about it, and the session goes on where the protocol has an answer.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use proto::{
    Lane,
    message::{Answer, Body, GoodbyeReason, Request},
};

use super::peer::{Peer, Stage, TRANSPORTS};

/// The bytes name this node.
const NODE: &str = "edge-1";

fn frames() -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let lines =
        include_str!("../../../proto/tests/golden/other").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, digits) = line.split_once(' ').context("a line is a name and digits")?;
            let pairs = digits
                .as_bytes()
                .chunks(2)
                .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
            Ok((name, pairs.collect::<Result<_>>()?))
        })
        .collect()
}

pub(crate) async fn run(stage: &Stage<'_>) -> Result<()> {
    let frames = frames()?;
    let identity = stage.identity(NODE)?;
    for transport in TRANSPORTS {
        let greet = async |name: &str| {
            let peer = Peer::connect(transport, stage.address()?, &identity).await?;
            peer.say_bytes(Lane::Control, &frames[name]);
            anyhow::Ok(peer)
        };
        // Neither older nor with fields that nobody knows here.
        for name in ["hello-without-dictionary", "hello-of-tomorrow"] {
            let mut peer = greet(name).await?;
            let welcome = peer.hear().await?;
            ensure!(
                matches!(&welcome, Some(Body::Welcome(welcome)) if welcome.dictionary == 1),
                "{welcome:?}"
            );
        }
        for (name, told) in [
            ("hello-of-protocol-2", "speaks protocol 2 to 3"),
            ("hello-of-protocol-0", "speaks protocol 0 to 0"),
        ] {
            let goodbye = greet(name).await?.goodbye().await?;
            ensure!(goodbye.reason() == GoodbyeReason::Protocol, "{goodbye:?}");
            let all = [told, "the cloud (cloudcore v", ") 1 to 1: upgrade "];
            ensure!(all.iter().all(|told| goodbye.detail.contains(told)), "{goodbye:?}");
        }

        // A question, a report of kinds to come: refused, and the next known one is answered in the same session.
        let mut peer = Peer::greeted(stage, transport, NODE).await?;
        for name in ["question-of-tomorrow", "report-of-tomorrow"] {
            peer.say_bytes(Lane::Status, &frames[name]);
        }
        peer.say(Body::Request(Request { id: 99, question: None }))?;
        let (mut refused, mut answered) = (false, Vec::new());
        while !refused || answered.len() < 2 {
            let body = peer.hear().await?.context("cloudcore closed the link")?;
            match body {
                Body::ReportAcks(acks) => {
                    refused = acks.acks.iter().all(|ack| ack.refused.contains("does not know"));
                }
                Body::Response(response) => {
                    ensure!(
                        matches!(&response.answer, Some(Answer::Refused(why)) if why.contains("does not know"))
                    );
                    answered.push(response.id);
                }
                Body::Goodbye(goodbye) => anyhow::bail!("the session ends: {goodbye:?}"),
                _ => {}
            }
        }
        answered.sort_unstable();
        ensure!(answered == [14, 99], "{answered:?}");

        // For a whole message of a kind to come there is no answer but the last.
        peer.say_bytes(Lane::Status, &frames["message-of-tomorrow"]);
        let goodbye = peer.goodbye().await?;
        ensure!(goodbye.reason() == GoodbyeReason::Violation, "{goodbye:?}");
        ensure!(
            goodbye.detail.contains("message of kind 40, which this version does not know"),
            "{goodbye:?}"
        );
    }
    Ok(())
}
