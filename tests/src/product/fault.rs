//! What may happen to a link: its line, or the program at one of its ends. Each begins, lasts, and is over at a moment from
//! which the node's return is timed.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{Cloud, Wired};
use crate::{
    Cluster, Flap, Silent, Terms,
    process::{kill9, resume, suspend},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Everything is dropped in one direction, or in both; nobody is told.
    Silence(Silent),
    /// The line comes and goes.
    Flapping(Flap),
    /// UDP is dropped.
    WithoutUdp,
    /// What translates addresses in between forgets all that it has.
    Rebinding,
    EdgeStopped,
    CloudStopped,
    EdgeKilled,
    CloudKilled,
    ApiServerStopped,
}

/// One that lasts.
pub struct Begun {
    fault: Fault,
    /// Of the program that was stopped or killed.
    pid: Option<u32>,
    at: Instant,
}

/// The line comes and goes faster than a link is given up.
pub const FLAP: Flap = Flap { up: Duration::from_millis(700), down: Duration::from_millis(600) };

impl Fault {
    /// For people, and in the names of figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silence(Silent::Up) => "half-open, upwards silent",
            Self::Silence(Silent::Down) => "half-open, downwards silent",
            Self::Silence(_) => "silence",
            Self::Flapping(_) => "flapping line",
            Self::WithoutUdp => "UDP blocked",
            Self::Rebinding => "NAT rebinds",
            Self::EdgeStopped => "edgecore stopped",
            Self::CloudStopped => "cloudcore stopped",
            Self::EdgeKilled => "edgecore killed",
            Self::CloudKilled => "cloudcore killed",
            Self::ApiServerStopped => "API server stopped",
        }
    }

    /// It begins.
    pub fn begin(self, node: &Wired, cloud: &Cloud, cluster: &Cluster) -> Result<Begun> {
        let mut pid = None;
        match self {
            Self::Silence(silent) => node.wire.set(&Terms { silent, ..Terms::default() }),
            Self::Flapping(flap) => node.wire.set(&Terms { flap: Some(flap), ..Terms::default() }),
            Self::WithoutUdp => node.wire.set(&Terms { without_udp: true, ..Terms::default() }),
            Self::Rebinding => node.wire.rebind(),
            Self::EdgeStopped | Self::EdgeKilled => pid = Some(node.edge.pid()?),
            Self::CloudStopped | Self::CloudKilled => pid = Some(cloud.pid()?),
            Self::ApiServerStopped => cluster.suspend_apiserver()?,
        }
        match (self, pid) {
            (Self::EdgeStopped | Self::CloudStopped, Some(pid)) => suspend(pid)?,
            (Self::EdgeKilled | Self::CloudKilled, Some(pid)) => kill9(pid)?,
            _ => {}
        }
        Ok(Begun { fault: self, pid, at: Instant::now() })
    }

    /// Whether it is over as soon as it has begun.
    pub fn is_momentary(self) -> bool {
        matches!(self, Self::Rebinding | Self::EdgeKilled | Self::CloudKilled | Self::WithoutUdp)
    }
}

impl Begun {
    /// For how long the line goes once more, before it is over: what was under way then is not there when it comes back.
    pub fn last_time(&self, node: &Wired) -> Option<Duration> {
        let Fault::Flapping(Flap { down, .. }) = self.fault else { return None };
        node.wire.set(&Terms { silent: Silent::Both, ..Terms::default() });
        Some(down)
    }

    /// It is over. Returns the moment from which the return counts.
    pub fn end(self, node: &Wired, cluster: &Cluster) -> Result<Instant> {
        match (self.fault, self.pid) {
            (Fault::Silence(_) | Fault::Flapping(_), _) => node.wire.heal(),
            (Fault::EdgeStopped | Fault::CloudStopped, Some(pid)) => resume(pid)?,
            (Fault::ApiServerStopped, _) => cluster.resume_apiserver()?,
            _ => return Ok(self.at),
        }
        Ok(Instant::now())
    }
}
