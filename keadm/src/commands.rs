//! One module a command.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::{
    cli::{Cli, Command},
    output,
};

mod certs;
pub(crate) mod config;
mod ctl;
mod gettoken;
mod init;
mod join;
mod reset;
mod revoke;
mod supervise;
mod version;

pub(crate) async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Init(args) => init::run(args).await,
        Command::GetToken(args) => gettoken::run(args).await,
        Command::Join(args) => join::run(*args).await,
        Command::Revoke(args) => revoke::run(args).await,
        Command::Certs(args) => certs::run(args).await,
        Command::Reset(args) => reset::run(args).await,
        Command::Config(args) => config::run(args),
        Command::Ctl(args) => ctl::run(args).await,
        Command::Version(args) => version::run(&args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keadm", &mut script);
            output::data(&String::from_utf8(script).context("the script is text")?)
        }
        Command::Supervise(args) => supervise::run(args).await,
    }
}
