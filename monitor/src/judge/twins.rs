//! Objects that are one inode by several sealed names: what is done to the inode is done to each of them, while a sensor knows it by one.

use std::collections::HashMap;

use crate::model::InodeKey;

use super::acts::Act;
use super::slots::Ix;
use super::topology::is_mount;
use super::units::Units;

/// Which objects were last seen to be an inode that has several names.
#[derive(Debug, Default)]
pub(super) struct Twins {
    by_inode: HashMap<InodeKey, Vec<Ix>>,
}

impl Twins {
    /// An object was seen to be this inode, which has that many names.
    pub(super) fn note(&mut self, ix: Ix, inode: InodeKey, links: u64) {
        if links < 2 {
            return;
        }
        let known = self.by_inode.entry(inode).or_default();
        if !known.contains(&ix) {
            known.push(ix);
        }
    }

    /// The other objects that an act on the inode of one of them concerns, each with the act as one on it.
    pub(super) fn of(&mut self, ix: Ix, act: &Act, units: &Units) -> Vec<(Ix, Act)> {
        let on_inode = !act.touches_names() && !is_mount(act.operation) && !act.runs_code();
        let Some(unit) = units.get(ix).filter(|unit| on_inode && unit.object().path == act.path) else {
            return Vec::new();
        };
        let Some(inode) = unit.seen().map(super::verdict::Seen::inode) else { return Vec::new() };
        let Some(known) = self.by_inode.get_mut(&inode) else { return Vec::new() };
        known.retain(|other| {
            units.get(*other).and_then(|unit| unit.seen()).is_some_and(|seen| seen.inode() == inode)
        });
        let others =
            known.iter().filter(|other| **other != ix).filter_map(|other| Some((*other, units.get(*other)?)));
        others.map(|(other, unit)| (other, Act { path: unit.object().path.clone(), ..act.clone() })).collect()
    }
}
