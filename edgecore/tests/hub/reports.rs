//! The cloud's end, as far as reports go.

use anyhow::{Context as _, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use proto::{
    codec,
    message::{Body, Report, ReportAck, ReportAcks},
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::cloud::{LONG, Socket, frame};

/// The next reports; whatever else comes is passed over.
pub(crate) async fn next(socket: &mut Socket) -> Result<Vec<Report>> {
    let reports = async {
        loop {
            let Some(message) = socket.next().await else { bail!("the edge left") };
            if let Message::Binary(frame) = message?
                && let Body::Reports(reports) = codec::decode(frame.slice(1..))?
            {
                return Ok(reports.reports);
            }
        }
    };
    timeout(LONG, reports).await.context("no reports come")?
}

/// Acks them all.
pub(crate) async fn take(socket: &mut Socket, reports: &[Report]) -> Result<()> {
    let acks = reports.iter().map(|report| ReportAck { id: report.id, refused: String::new() }).collect();
    Ok(socket.send(frame(Body::ReportAcks(ReportAcks { acks }))?).await?)
}
