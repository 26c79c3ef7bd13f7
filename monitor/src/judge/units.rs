//! All units, by index and by path.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::model::{HostPath, InodeKey};

use super::layers::Backings;
use super::route::Places;
use super::slots::Ix;
use super::unit::Unit;

/// Units that lie together in memory: those of one pod mostly, which come and go together.
const PAGE: Ix = 64;

/// All units.
#[derive(Debug, Default)]
pub(crate) struct Units {
    /// By index, in pages. An index is never given out again: what is said of one that is gone concerns nobody. Nothing is left of
    /// a page whose units are gone: pods come and go for as long as the agent runs.
    pages: BTreeMap<Ix, Box<[Option<Unit>]>>,
    next: Ix,
    /// By path, which the units have themselves.
    by_path: HashTable<Ix>,
    hasher: RandomState,
    pub(super) backings: Backings,
}

const fn place(ix: Ix) -> (Ix, usize) {
    (ix / PAGE, (ix % PAGE) as usize)
}

fn in_pages(pages: &BTreeMap<Ix, Box<[Option<Unit>]>>, ix: Ix) -> Option<&Unit> {
    let (page, at) = place(ix);
    pages.get(&page)?[at].as_ref()
}

impl Units {
    pub(crate) fn get(&self, ix: Ix) -> Option<&Unit> {
        in_pages(&self.pages, ix)
    }

    pub(crate) fn get_mut(&mut self, ix: Ix) -> Option<&mut Unit> {
        let (page, at) = place(ix);
        self.pages.get_mut(&page)?[at].as_mut()
    }

    pub(crate) fn find(&self, path: &HostPath) -> Option<Ix> {
        let is_it = |ix: &Ix| self.get(*ix).is_some_and(|unit| unit.object().path == *path);
        self.by_path.find(self.hasher.hash_one(path), is_it).copied()
    }

    /// A unit whose path no other has.
    pub(crate) fn insert(&mut self, unit: Unit) -> Ix {
        let ix = self.next;
        // At a hundred pods a second it takes months until they are used up.
        self.next = self.next.wrapping_add(1);
        let hash = self.hasher.hash_one(&unit.object().path);
        let (page, at) = place(ix);
        self.pages.entry(page).or_insert_with(|| (0..PAGE).map(|_| None).collect())[at] = Some(unit);
        let Self { pages, hasher, .. } = self;
        let path_of = |ix: &Ix| in_pages(pages, *ix).map(|unit| &unit.object().path);
        self.by_path.insert_unique(hash, ix, |ix| path_of(ix).map_or(0, |path| hasher.hash_one(path)));
        ix
    }

    pub(crate) fn remove(&mut self, ix: Ix) -> Option<Unit> {
        let hash = self.hasher.hash_one(&self.get(ix)?.object().path);
        if let Ok(entry) = self.by_path.find_entry(hash, |known| *known == ix) {
            entry.remove();
        }
        let (page, at) = place(ix);
        let units = self.pages.get_mut(&page)?;
        let unit = units[at].take();
        if units.iter().all(Option::is_none) {
            self.pages.remove(&page);
        }
        unit
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ix, &Unit)> {
        let of_page = |(page, units): (_, _)| (page * PAGE..).zip(units);
        self.pages
            .iter()
            .map(|(page, units)| (*page, units.iter()))
            .flat_map(of_page)
            .filter_map(|(ix, unit)| Some((ix, unit.as_ref()?)))
    }

    pub(crate) fn indices(&self) -> Vec<Ix> {
        self.iter().map(|(ix, _)| ix).collect()
    }
}

impl Places for Units {
    fn path(&self, ix: Ix) -> &HostPath {
        static NOWHERE: std::sync::LazyLock<HostPath> = std::sync::LazyLock::new(|| HostPath::from("/"));
        self.get(ix).map_or(&NOWHERE, |unit| &unit.object().path)
    }

    fn inode(&self, ix: Ix) -> Option<InodeKey> {
        self.get(ix).and_then(Unit::known_as)
    }

    fn is_directory(&self, ix: Ix) -> bool {
        self.get(ix).is_some_and(Unit::is_directory)
    }

    fn at(&self, path: &HostPath) -> Option<Ix> {
        self.find(path)
    }

    fn made_of(&self, path: &HostPath) -> &[Ix] {
        self.backings.get(path).map_or(&[], |backing| backing.units.as_slice())
    }
}
