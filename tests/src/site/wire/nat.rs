//! A translator of ports: what the site sends comes from other ports, as many as there are flows, until it forgets them.

use std::collections::HashMap;

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
}

impl Default for Nat {
    fn default() -> Self {
        Self { outer: HashMap::new(), inner: HashMap::new(), next: FIRST }
    }
}

impl Nat {
    pub(super) fn forget(&mut self) {
        self.outer.clear();
        self.inner.clear();
    }

    /// From the site. Always carried.
    pub(super) fn outwards(&mut self, frame: &mut [u8]) -> bool {
        let Some(transport) = Transport::of(frame) else { return true };
        let (protocol, inner) = (transport.protocol, transport.source(frame));
        let known = self.outer.get(&(protocol, inner)).copied();
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
        transport.set_source(frame, outer);
        true
    }

    /// To the site: carried if the site has spoken from there.
    pub(super) fn inwards(&self, frame: &mut [u8]) -> bool {
        let Some(transport) = Transport::of(frame) else { return true };
        let inner = self.inner.get(&(transport.protocol, transport.destination(frame))).copied();
        if let Some(inner) = inner {
            transport.set_destination(frame, inner);
        }
        inner.is_some()
    }
}
