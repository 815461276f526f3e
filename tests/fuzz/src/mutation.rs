//! Mutations from a seed, for where there is no coverage to go by.

/// Numbers at which lengths and counts tend to go wrong.
const EDGES: &[u64] =
    &[0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX];

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `limit`, which may be 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit.max(1) as u64)).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// One of the inputs, changed in a few places.
pub fn mutate(inputs: &[Vec<u8>], longest: usize, random: &mut Random) -> Vec<u8> {
    let pick = |random: &mut Random| inputs.get(random.below(inputs.len())).cloned().unwrap_or_default();
    let mut input = pick(random);
    for _ in 0..=random.below(5) {
        let at = random.below(input.len() + 1);
        let part = at..(at + random.below(16)).min(input.len());
        match random.below(7) {
            0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.byte()),
            2 => drop(input.drain(part)),
            3 => {
                let copy = input[part].to_vec();
                input.splice(at..at, copy);
            }
            4 => {
                let number = EDGES[random.below(EDGES.len())];
                let width = [1, 2, 4, 8][random.below(4)];
                let mut bytes = number.to_le_bytes();
                if random.below(2) == 0 {
                    bytes[..width].reverse();
                }
                let end = (at + width).min(input.len());
                input.splice(at..end, bytes[..width].iter().copied());
            }
            5 => input.truncate(at),
            _ => {
                let other = pick(random);
                let from = random.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
        }
    }
    input.truncate(longest);
    input
}
