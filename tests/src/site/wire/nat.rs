//! A translator of ports: what the site sends comes from other ports, as many as there are flows, until it forgets them.

use std::{collections::HashMap, time::Duration};

use super::frame::Transport;

/// Flows that it remembers; one more, and it forgets all.
const FLOWS: usize = 1024;
const FIRST: u16 = 20_000;

/// A port of a protocol.
type Port = (u8, u16);

#[derive(Debug)]
pub(super) struct Nat {
    outer: HashMap<Port, u16>,
    inner: HashMap<Port, u16>,
    next: u16,
    /// How long a flow may be idle before it is forgotten.
    pub(super) memory: Option<Duration>,
    /// When something passed through each outer port last.
    used: HashMap<u16, Duration>,
}

impl Default for Nat {
    fn default() -> Self {
        Self { outer: HashMap::new(), inner: HashMap::new(), next: FIRST, memory: None, used: HashMap::new() }
    }
}

impl Nat {
    pub(super) fn forget(&mut self) {
        self.outer.clear();
        self.inner.clear();
        self.used.clear();
    }

    fn remembers(&self, outer: u16, now: Duration) -> bool {
        let idle = self.used.get(&outer).map(|used| now.saturating_sub(*used));
        self.memory.is_none_or(|memory| idle.is_some_and(|idle| idle < memory))
    }

    /// From the site. Always carried.
    pub(super) fn outwards(&mut self, frame: &mut [u8], now: Duration) -> bool {
        let Some(transport) = Transport::of(frame) else { return true };
        let (protocol, inner) = (transport.protocol, transport.source(frame));
        let known = self.outer.get(&(protocol, inner)).copied();
        let known = known.filter(|outer| self.remembers(*outer, now));
        let outer = known.unwrap_or_else(|| {
            if self.outer.len() == FLOWS {
                self.forget();
            }
            let outer = self.next;
            self.next = self.next.checked_add(1).unwrap_or(FIRST);
            self.outer.insert((protocol, inner), outer);
            self.inner.insert((protocol, outer), inner);
            outer
        });
        self.used.insert(outer, now);
        transport.set_source(frame, outer);
        true
    }

    /// To the site: carried if the site has spoken from there.
    pub(super) fn inwards(&mut self, frame: &mut [u8], now: Duration) -> bool {
        let Some(transport) = Transport::of(frame) else { return true };
        let outer = transport.destination(frame);
        let inner = self.inner.get(&(transport.protocol, outer)).copied();
        let inner = inner.filter(|_| self.remembers(outer, now));
        if let Some(inner) = inner {
            self.used.insert(outer, now);
            transport.set_destination(frame, inner);
        }
        inner.is_some()
    }
}
