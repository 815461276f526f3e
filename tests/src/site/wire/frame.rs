//! What a line reads and writes in Ethernet frames: IPv4, and the ports and checksums of TCP and UDP.

/// Of Ethernet.
pub(super) const HEADER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Where the transport's header is, in a frame that has it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transport {
    pub(super) protocol: u8,
    offset: usize,
    end: usize,
}

impl Transport {
    /// Of TCP or UDP over IPv4, not of a fragment.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(HEADER..)?;
        if frame.get(12..HEADER)? != IPV4 || packet.len() < 20 || packet[0] >> 4 != 4 {
            return None;
        }
        let header = usize::from(packet[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        // More fragments, or an offset.
        let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
        let protocol = packet[9];
        let least = match protocol {
            TCP => 20,
            UDP => 8,
            _ => return None,
        };
        let fits = total <= packet.len() && header >= 20 && header + least <= total;
        (fits && !is_fragment).then_some(Self { protocol, offset: HEADER + header, end: HEADER + total })
    }

    pub(super) fn source(self, frame: &[u8]) -> u16 {
        word(frame, self.offset)
    }

    pub(super) fn destination(self, frame: &[u8]) -> u16 {
        word(frame, self.offset + 2)
    }

    /// At either end.
    pub(super) fn has(self, frame: &[u8], port: u16) -> bool {
        self.source(frame) == port || self.destination(frame) == port
    }

    pub(super) fn set_source(self, frame: &mut [u8], port: u16) {
        put(frame, self.offset, port);
    }

    pub(super) fn set_destination(self, frame: &mut [u8], port: u16) {
        put(frame, self.offset + 2, port);
    }
}

/// The kernel leaves the transport's checksum to the device, which a line is here.
pub(super) fn fill_checksum(frame: &mut [u8]) {
    let Some(Transport { protocol, offset, end }) = Transport::of(frame) else { return };
    let field = offset + if protocol == UDP { 6 } else { 16 };
    put(frame, field, 0);
    let length = u32::try_from(end - offset).unwrap_or_default();
    let addresses = &frame[HEADER + 12..HEADER + 20];
    let mut sum = sum_of(addresses) + sum_of(&frame[offset..end]) + u32::from(protocol) + length;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or_default();
    // In UDP a zero says that there is none.
    put(frame, field, if checksum == 0 && protocol == UDP { 0xffff } else { checksum });
}

fn sum_of(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2);
    pairs.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
