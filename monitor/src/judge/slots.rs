//! Slots: the numbers a sensor knows watched inodes by, and what each one is to the judge.

use std::collections::{HashMap, VecDeque};

use crate::model::{HostPath, Slot};

/// Index of a unit in the judge's table. Never reused while the agent runs.
pub(crate) type Ix = u32;

/// What a slot stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Use {
    /// A unit: the file, link, directory or volume itself.
    Unit(Ix),
    /// Something inside a volume unit.
    Member(Ix),
    /// A name that does not belong into a directory unit.
    Stray(Ix, HostPath),
    /// A directory above objects.
    Way(HostPath),
    /// A file in a layer of an overlay, that objects are made of.
    Backing(HostPath),
}

/// What is kept of every slot. Most stand for units.
#[derive(Debug, Clone, Copy)]
enum Kept {
    Free,
    Unit(Ix),
    Member(Ix),
    /// In [`Slots::others`].
    Other,
}

/// Gives out slots and takes them back.
#[derive(Debug)]
pub(crate) struct Slots {
    /// By slot.
    kept: Vec<Kept>,
    others: HashMap<Slot, Use>,
    used: usize,
    /// Taken from the front: a slot rests before it is used again, while late events for it drain.
    free: VecDeque<Slot>,
    next: u32,
    limit: u32,
}

impl Slots {
    /// Slots 1 to `limit`; the sensor keeps those above for itself.
    pub(crate) fn new(limit: u32) -> Self {
        Self { kept: Vec::new(), others: HashMap::new(), used: 0, free: VecDeque::new(), next: 1, limit }
    }

    /// A new slot, or `None` if all are taken.
    pub(crate) fn take(&mut self, what: Use) -> Option<Slot> {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None if self.next <= self.limit => {
                self.next += 1;
                Slot(self.next - 1)
            }
            None => return None,
        };
        let at = slot.0 as usize;
        if at >= self.kept.len() {
            self.kept.resize(at + 1, Kept::Free);
        }
        self.kept[at] = match what {
            Use::Unit(ix) => Kept::Unit(ix),
            Use::Member(ix) => Kept::Member(ix),
            other => {
                self.others.insert(slot, other);
                Kept::Other
            }
        };
        self.used += 1;
        Some(slot)
    }

    /// What a slot stands for.
    pub(crate) fn get(&self, slot: Slot) -> Option<Use> {
        match *self.kept.get(slot.0 as usize)? {
            Kept::Free => None,
            Kept::Unit(ix) => Some(Use::Unit(ix)),
            Kept::Member(ix) => Some(Use::Member(ix)),
            Kept::Other => self.others.get(&slot).cloned(),
        }
    }

    /// How many are given out.
    pub(crate) const fn len(&self) -> usize {
        self.used
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, slot: Slot) {
        let Some(kept) = self.kept.get_mut(slot.0 as usize) else { return };
        if !matches!(kept, Kept::Free) {
            *kept = Kept::Free;
            self.others.remove(&slot);
            self.used -= 1;
            self.free.push_back(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Slots, Use};
    use crate::model::Slot;

    #[test]
    fn slots_are_given_out_once_and_come_back() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.take(Use::Unit(0)), Some(Slot(1)));
        assert_eq!(slots.take(Use::Unit(1)), Some(Slot(2)));
        assert_eq!(slots.take(Use::Unit(2)), None);
        slots.release(Slot(1));
        assert_eq!(slots.take(Use::Member(1)), Some(Slot(1)));
        assert_eq!(slots.get(Slot(1)), Some(Use::Member(1)));
    }
}
