//! Units: sealed objects as the judge keeps them, each verified as a whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::baseline::store::FIRST_USE;
use crate::baseline::{Digest, Found, Seal, SealedObject};
use crate::model::{HostPath, InodeKey, ObjectRef, Slot, Time};

use super::Container;
use super::acts::{Act, Acts};
use super::layers::{Backings, MadeOf};
use super::route::Places;
use super::slots::Ix;
use super::verdict::Seen;

/// One object of an accepted baseline, without a copy of it.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) objects: Arc<[SealedObject]>,
    pub(crate) at: u32,
}

impl Sealed {
    /// The very same seal of the very same baseline.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.objects, &other.objects) && self.at == other.at
    }
}

impl std::ops::Deref for Sealed {
    type Target = SealedObject;

    fn deref(&self) -> &SealedObject {
        &self.objects[self.at as usize]
    }
}

/// The baseline an object is sealed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) commit: Option<String>,
    pub(crate) writers: Vec<crate::baseline::Writer>,
}

impl Source {
    /// Nobody signed it.
    pub(crate) fn is_first_use(&self) -> bool {
        self.name == FIRST_USE
    }
}

/// What is known of an object's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not looked at since it was sealed, since a loss, or since it could not be read.
    Unverified,
    /// As sealed.
    Intact,
    /// Not as sealed.
    Violated,
    /// As the revision before sealed it, within its transition.
    Superseded,
    /// Gone with its pod, lawfully.
    Retired,
}

/// One sealed object.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) object: Sealed,
    pub(crate) source: Arc<Source>,
    /// The container whose file it is.
    pub(crate) container: Option<Arc<Container>>,
    /// The seal of the revision before, and until when it counts.
    pub(crate) before: Option<(Sealed, Instant)>,
    pub(crate) standing: Standing,
    /// The last look.
    pub(crate) seen: Option<Seen>,
    /// Digest over all content at the last look: tells a change from a repetition.
    pub(crate) content: Option<Digest>,
    /// All that was found at the last look, where the next one needs it (rotated objects, volumes).
    pub(crate) found: Option<Box<Found>>,
    /// Members of a volume at the last look.
    pub(crate) members: HashMap<Box<[u8]>, Seen>,
    /// The unit's own slot.
    pub(crate) slot: Option<Slot>,
    /// The inode that slot is on.
    pub(crate) watched: Option<InodeKey>,
    /// What observations know it by.
    pub(crate) known_as: Option<InodeKey>,
    /// Its places in the layers of an overlay.
    pub(crate) made_of: Option<MadeOf>,
    /// Inodes were put under watch since it was last asked who had them open for writing.
    pub(crate) fresh: bool,
    /// Who had it mapped writable at the last look, as acts that explain what changes without one.
    pub(crate) mapped: Vec<Act>,
    /// Slots inside it: of a volume's members, of names that do not belong into a directory.
    pub(crate) inner: HashMap<InodeKey, Slot>,
    pub(crate) acts: Acts,
    /// A look is under way.
    pub(crate) running: bool,
    /// Looks in a row that found something no act explains.
    pub(crate) waited: u8,
    /// It must be looked at again, whatever the acts (a loss, a new seal).
    pub(crate) dirty: bool,
    pub(crate) verified: Option<Time>,
    /// How often it had been opened for reading when it was last found intact.
    pub(crate) reads: Option<u64>,
    /// Why it could not be verified, as last reported.
    pub(crate) unreadable: Option<String>,
    /// Why it could not be watched, as last reported.
    pub(crate) unwatched: Option<String>,
}

impl Unit {
    pub(crate) fn new(object: Sealed, source: Arc<Source>) -> Self {
        Self {
            object,
            source,
            container: None,
            before: None,
            standing: Standing::Unverified,
            seen: None,
            content: None,
            found: None,
            members: HashMap::new(),
            slot: None,
            watched: None,
            known_as: None,
            made_of: None,
            fresh: false,
            mapped: Vec::new(),
            inner: HashMap::new(),
            acts: Acts::default(),
            running: false,
            waited: 0,
            dirty: true,
            verified: None,
            reads: None,
            unreadable: None,
            unwatched: None,
        }
    }

    /// The object of a record.
    pub(crate) fn object_ref(&self) -> ObjectRef {
        ObjectRef {
            id: self.object.id.to_string(),
            path: self.object.path.clone(),
            class: self.object.class,
            baseline: Some(self.source.name.clone()),
            revision: Some(self.source.revision),
        }
    }

    /// Something inside it that is, or should not be, an object of its own.
    pub(crate) fn inner_ref(&self, path: HostPath) -> ObjectRef {
        ObjectRef { id: SealedObject::id_of(&self.source.name, &path).to_string(), path, ..self.object_ref() }
    }

    /// Names in it are its own.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.object.seal, Seal::Volume { .. } | Seal::Directory { names: Some(_) })
    }

    pub(crate) fn is_volume(&self) -> bool {
        matches!(self.object.seal, Seal::Volume { .. })
    }
}

/// All units, by index and by path.
#[derive(Debug, Default)]
pub(crate) struct Units {
    /// By index, which is never given out again: what is said of one that is gone concerns nobody. Nothing is left of it: pods come
    /// and go for as long as the agent runs.
    list: BTreeMap<Ix, Box<Unit>>,
    next: Ix,
    by_path: HashMap<HostPath, Ix>,
    pub(super) backings: Backings,
}

impl Units {
    pub(crate) fn get(&self, ix: Ix) -> Option<&Unit> {
        self.list.get(&ix).map(|unit| &**unit)
    }

    pub(crate) fn get_mut(&mut self, ix: Ix) -> Option<&mut Unit> {
        self.list.get_mut(&ix).map(|unit| &mut **unit)
    }

    pub(crate) fn find(&self, path: &HostPath) -> Option<Ix> {
        self.by_path.get(path).copied()
    }

    pub(crate) fn insert(&mut self, unit: Unit) -> Ix {
        let ix = self.next;
        // At a hundred pods a second it takes months until they are used up.
        self.next = self.next.wrapping_add(1);
        self.by_path.insert(unit.object.path.clone(), ix);
        self.list.insert(ix, Box::new(unit));
        ix
    }

    pub(crate) fn remove(&mut self, ix: Ix) -> Option<Unit> {
        let unit = self.list.remove(&ix)?;
        self.by_path.remove(&unit.object.path);
        Some(*unit)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ix, &Unit)> {
        self.list.iter().map(|(ix, unit)| (*ix, &**unit))
    }

    pub(crate) fn indices(&self) -> Vec<Ix> {
        self.iter().map(|(ix, _)| ix).collect()
    }
}

impl Places for Units {
    fn path(&self, ix: Ix) -> &HostPath {
        static NOWHERE: std::sync::LazyLock<HostPath> = std::sync::LazyLock::new(|| HostPath::from("/"));
        self.get(ix).map_or(&NOWHERE, |unit| &unit.object.path)
    }

    fn inode(&self, ix: Ix) -> Option<InodeKey> {
        self.get(ix).and_then(|unit| unit.known_as)
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
