//! Which requests read a set of properties: neighbours in one, as few as the protocol allows.

use super::register::{MAX_BITS, MAX_WORDS, Place, Table};

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) place: Place,
    /// Positions, in what was to be read, of what it reads.
    pub(super) parts: Vec<usize>,
}

impl Read {
    /// Whether it also reads registers for which nobody asked, which a slave may not have.
    pub(super) fn has_gaps(&self, places: &[Place]) -> bool {
        let mut end = u32::from(self.place.address);
        self.parts.iter().any(|&part| {
            let place = places[part];
            let gap = u32::from(place.address) > end;
            end = end.max(place.end());
            gap
        })
    }
}

/// Reads across at most `gap` registers for which nobody asked, or across 16 times as many bits, where that saves a request.
pub(super) fn plan(places: &[Place], gap: u16) -> Vec<Read> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&part| (places[part].table, places[part].address, places[part].count));
    let mut reads: Vec<Read> = Vec::new();
    for part in order {
        let place = places[part];
        if let Some(last) = reads.last_mut()
            && let Some(count) = extended(last.place, place, gap)
        {
            last.place.count = count;
            last.parts.push(part);
        } else {
            reads.push(Read { place, parts: vec![part] });
        }
    }
    reads
}

/// How many registers a request has that reads both; `None` if there is to be another.
fn extended(last: Place, next: Place, gap: u16) -> Option<u16> {
    if last.table != next.table {
        return None;
    }
    let (most, gap) = match last.table {
        Table::Coils | Table::DiscreteInputs => (MAX_BITS, 16 * u32::from(gap)),
        Table::Inputs | Table::Holdings => (MAX_WORDS, gap.into()),
    };
    let count = last.end().max(next.end()) - u32::from(last.address);
    let count = u16::try_from(count).ok().filter(|count| *count <= most)?;
    (u32::from(next.address) <= last.end() + gap).then_some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(table: Table, address: u16, count: u16) -> Place {
        Place { table, address, count }
    }

    #[test]
    fn neighbours_are_read_at_once() {
        let places = [
            at(Table::Holdings, 4, 2),
            at(Table::Inputs, 0, 1),
            at(Table::Holdings, 0, 2),
            at(Table::Holdings, 5, 1),
            at(Table::Holdings, 200, 1),
        ];
        let close = plan(&places, 2);
        let read = |table, address, count, parts: &[usize]| Read {
            place: at(table, address, count),
            parts: parts.to_vec(),
        };
        assert_eq!(
            close,
            [
                read(Table::Inputs, 0, 1, &[1]),
                read(Table::Holdings, 0, 6, &[2, 0, 3]),
                read(Table::Holdings, 200, 1, &[4]),
            ]
        );
        assert_eq!(close.iter().map(|read| read.has_gaps(&places)).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(plan(&places, 0).len(), 4);
    }

    #[test]
    fn a_thousand_registers_take_the_fewest_requests() {
        let places: Vec<Place> = (0..1000).map(|at_| at(Table::Holdings, at_ * 3, 1)).collect();
        // 42 of them, from the first to the last, are 124 registers.
        assert_eq!(plan(&places, MAX_WORDS).len(), 1000_usize.div_ceil(42));
    }

    proptest! {
        #[test]
        fn each_is_read_once_within_the_bounds(
            places in prop::collection::vec((0..4_usize, 0..500_u16, 1..5_u16), 0..60),
            gap in 0..130_u16,
        ) {
            let tables = [Table::Coils, Table::DiscreteInputs, Table::Inputs, Table::Holdings];
            let places: Vec<Place> = places.into_iter().map(|(table, address, count)| at(tables[table], address, count)).collect();
            let reads = plan(&places, gap);
            let mut seen: Vec<usize> = reads.iter().flat_map(|read| read.parts.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..places.len()).collect::<Vec<_>>());
            for read in &reads {
                let most = if read.place.table.is_bits() { MAX_BITS } else { MAX_WORDS };
                prop_assert!(read.place.count <= most);
                for &part in &read.parts {
                    let place = places[part];
                    prop_assert_eq!(place.table, read.place.table);
                    prop_assert!(place.address >= read.place.address && place.end() <= read.place.end());
                }
                prop_assert!(gap > 0 || !read.has_gaps(&places));
            }
        }
    }
}
