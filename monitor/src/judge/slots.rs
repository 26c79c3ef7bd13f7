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

/// Gives out slots and takes them back.
#[derive(Debug)]
pub(crate) struct Slots {
    uses: HashMap<Slot, Use>,
    /// Taken from the front: a slot rests before it is used again, while late events for it drain.
    free: VecDeque<Slot>,
    next: u32,
    limit: u32,
}

impl Slots {
    /// Slots 1 to `limit`; the sensor keeps those above for itself.
    pub(crate) fn new(limit: u32) -> Self {
        Self { uses: HashMap::new(), free: VecDeque::new(), next: 1, limit }
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
        self.uses.insert(slot, what);
        Some(slot)
    }

    /// What a slot stands for.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Use> {
        self.uses.get(&slot)
    }

    /// How many are given out.
    pub(crate) fn len(&self) -> usize {
        self.uses.len()
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, slot: Slot) {
        if self.uses.remove(&slot).is_some() {
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
        assert_eq!(slots.get(Slot(1)), Some(&Use::Member(1)));
    }
}
