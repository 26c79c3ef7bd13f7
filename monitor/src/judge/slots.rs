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

/// Of a slot that stands for no unit.
const NO_UNIT: Ix = Ix::MAX;

/// Gives out slots and takes them back. Most stand for units.
#[derive(Debug)]
pub(crate) struct Slots {
    /// By slot: the unit it stands for, or [`NO_UNIT`].
    units: Vec<Ix>,
    /// Those that stand for members of units.
    members: HashMap<Slot, Ix>,
    /// Those that stand for something else.
    others: HashMap<Slot, Use>,
    /// How many stand for units.
    of_units: usize,
    /// Taken from the front: a slot rests before it is used again, while late events for it drain.
    free: VecDeque<Slot>,
    next: u32,
    limit: u32,
}

impl Slots {
    /// Slots 1 to `limit`; the sensor keeps those above for itself.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            units: Vec::new(),
            members: HashMap::new(),
            others: HashMap::new(),
            of_units: 0,
            free: VecDeque::new(),
            next: 1,
            limit,
        }
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
        if at >= self.units.len() {
            self.units.resize(at + 1, NO_UNIT);
        }
        match what {
            Use::Unit(ix) => {
                self.units[at] = ix;
                self.of_units += 1;
            }
            Use::Member(ix) => {
                self.members.insert(slot, ix);
            }
            other => {
                self.others.insert(slot, other);
            }
        }
        Some(slot)
    }

    /// What a slot stands for.
    pub(crate) fn get(&self, slot: Slot) -> Option<Use> {
        match *self.units.get(slot.0 as usize)? {
            NO_UNIT => {
                let member = self.members.get(&slot).copied().map(Use::Member);
                member.or_else(|| self.others.get(&slot).cloned())
            }
            ix => Some(Use::Unit(ix)),
        }
    }

    /// How many are given out.
    pub(crate) fn len(&self) -> usize {
        self.of_units + self.members.len() + self.others.len()
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, slot: Slot) {
        let Some(unit) = self.units.get_mut(slot.0 as usize) else { return };
        let was_unit = std::mem::replace(unit, NO_UNIT) != NO_UNIT;
        self.of_units -= usize::from(was_unit);
        if was_unit || self.members.remove(&slot).is_some() || self.others.remove(&slot).is_some() {
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
        assert_eq!(slots.len(), 2);
        slots.release(Slot(1));
        slots.release(Slot(1));
        assert_eq!((slots.len(), slots.get(Slot(1)), slots.get(Slot(7))), (1, None, None));
        assert_eq!((slots.take(Use::Unit(3)), slots.take(Use::Unit(4))), (Some(Slot(1)), None));
    }
}
