//! What happens to an API server while a cluster lives: it hangs, it dies, it is started again.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, until_ready};

impl Cluster {
    /// The API server hangs: connections stay, and nothing is answered on them.
    pub fn suspend_apiserver(&self) -> Result<()> {
        self.signal_apiserver(Signal::STOP)
    }

    /// It goes on as if nothing had been.
    pub fn resume_apiserver(&self) -> Result<()> {
        self.signal_apiserver(Signal::CONT)
    }

    /// It dies. Connections break, new ones are refused; etcd keeps what was stored.
    pub fn kill9_apiserver(&mut self) -> Result<()> {
        self.apiserver.kill9()
    }

    /// Starts it again on its port, and waits until it is ready.
    pub async fn start_apiserver(&mut self) -> Result<()> {
        self.apiserver = self.apiserver_start.daemon()?;
        until_ready(&self.client, &mut self.apiserver).await
    }

    fn signal_apiserver(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.apiserver.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a child has a pid")?, signal).context("failed to signal kube-apiserver")
    }
}
