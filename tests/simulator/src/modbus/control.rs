//! Telling the slaves what to hold and how to misbehave: a line of JSON for each request, and one for its answer.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use super::{
    faults::Faults,
    slaves::{self, Set, Slaves, Table},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Command {
    /// Registers are there, with these values.
    Set(Set),
    /// The values of registers; `null` for one that is not there.
    Get {
        unit: u8,
        table: Table,
        address: u16,
        count: u16,
    },
    Misbehave(Faults),
    /// What was asked since the last time.
    Asked {},
    /// How many requests there were since the start.
    Requests {},
}

pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("failed to listen on {}", path.display()))
}

pub(super) async fn serve(listener: UnixListener, slaves: Arc<Slaves>) -> Result<()> {
    let mut clients = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.context("failed to accept a control connection")?;
        clients.spawn(converse(client, Arc::clone(&slaves)));
        while clients.try_join_next().is_some() {}
    }
}

async fn converse(client: UnixStream, slaves: Arc<Slaves>) -> Result<()> {
    let (read, mut write) = client.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match obey(&line, &slaves) {
            Ok(answer) => answer,
            Err(error) => json!({"error": format!("{error:#}")}),
        };
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

fn obey(line: &str, slaves: &Slaves) -> Result<Value> {
    Ok(match serde_json::from_str(line)? {
        Command::Set(set) => {
            slaves::check(&set)?;
            slaves.set(&set)?;
            json!({})
        }
        Command::Get { unit, table, address, count } => {
            json!({"values": slaves.get(unit, table, address, count)})
        }
        Command::Misbehave(faults) => {
            slaves.misbehave(faults);
            json!({})
        }
        Command::Asked {} => json!({"asked": slaves.asked()}),
        Command::Requests {} => json!({"requests": slaves.requests()}),
    })
}
