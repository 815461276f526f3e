//! A map of ids that come in ascending order and mostly leave in it. Its entries lie side by side, in pieces that are given back as
//! they empty: of hundreds of thousands a tree would take twice as much memory.

use std::collections::VecDeque;

/// Entries of a piece: so few that one can be taken out of their midst.
const PIECE: usize = 512;

pub(super) struct Queue<V> {
    /// None is empty; ascending, and so is each.
    pieces: VecDeque<Vec<(u64, V)>>,
    count: usize,
}

impl<V> Default for Queue<V> {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), count: 0 }
    }
}

impl<V: Copy> Queue<V> {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// In the place of what the id had, if anything.
    pub(super) fn insert(&mut self, id: u64, value: V) {
        let last = self.pieces.back().and_then(|piece| piece.last());
        if last.is_none_or(|(last, _)| *last < id) {
            match self.pieces.back_mut() {
                Some(piece) if piece.len() < PIECE => piece.push((id, value)),
                _ => self.pieces.push_back(vec![(id, value)]),
            }
            self.count += 1;
            return;
        }
        // Rare: what is taken back, or a file that was damaged.
        let number = self.piece_of(id);
        let piece = &mut self.pieces[number];
        match piece.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => piece[at].1 = value,
            Err(at) => {
                piece.insert(at, (id, value));
                self.count += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<V> {
        let number = self.piece_of(id);
        let piece = self.pieces.get_mut(number)?;
        let at = piece.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (_, value) = piece.remove(at);
        self.count -= 1;
        if piece.is_empty() {
            self.pieces.remove(number);
        } else if piece.len() < piece.capacity() / 4 {
            piece.shrink_to_fit();
        }
        Some(value)
    }

    pub(super) fn get(&self, id: u64) -> Option<V> {
        let piece = self.pieces.get(self.piece_of(id))?;
        let at = piece.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(piece[at].1)
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.ids_after(None).next()
    }

    /// Ids above this one.
    pub(super) fn ids_after(&self, after: Option<u64>) -> impl Iterator<Item = u64> {
        let number = after.map_or(0, |id| self.piece_of(id));
        let ids = self.pieces.iter().skip(number).flatten().map(|(id, _)| *id);
        ids.skip_while(move |id| after.is_some_and(|after| *id <= after))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = V> {
        self.pieces.iter().flatten().map(|(_, value)| *value)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.pieces.iter_mut().for_each(|piece| piece.retain(|(id, _)| keep(*id)));
        self.pieces.retain(|piece| !piece.is_empty());
        self.count = self.pieces.iter().map(Vec::len).sum();
    }

    /// The piece in which the id is, or would be.
    fn piece_of(&self, id: u64) -> usize {
        let after = self.pieces.partition_point(|piece| piece.first().is_some_and(|(first, _)| *first <= id));
        after.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ops::Bound};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(
            length in 0..2000_u64,
            steps in proptest::collection::vec((0..4_u8, 0..2500_u64), 0..400),
        ) {
            let (mut queue, mut model) = (Queue::default(), BTreeMap::new());
            for id in 0..length {
                queue.insert(2 * id, id);
                model.insert(2 * id, id);
            }
            for (step, id) in steps {
                match step {
                    0 => {
                        queue.insert(id, 7);
                        model.insert(id, 7);
                    }
                    1 => prop_assert_eq!(queue.remove(id), model.remove(&id)),
                    2 => {
                        let from = id.saturating_sub(600);
                        for id in from..id {
                            prop_assert_eq!(queue.remove(id), model.remove(&id));
                        }
                    }
                    _ => {
                        prop_assert_eq!(queue.get(id), model.get(&id).copied());
                        let above = model.range((Bound::Excluded(id), Bound::Unbounded)).map(|(id, _)| *id);
                        prop_assert!(queue.ids_after(Some(id)).eq(above));
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.first(), model.keys().next().copied());
            }
            prop_assert!(queue.values().eq(model.values().copied()));
            queue.retain(|id| id % 3 == 0);
            model.retain(|id, _| id % 3 == 0);
            prop_assert!(queue.ids_after(None).eq(model.keys().copied()) && queue.len() == model.len());
            prop_assert!(queue.pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
