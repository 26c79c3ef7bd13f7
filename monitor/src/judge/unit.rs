//! Units: sealed objects as the judge keeps them, each verified as a whole.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use crate::baseline::store::FIRST_USE;
use crate::baseline::{self, Digest, Found, Seal, SealedObject};
use crate::model::{HostPath, InodeKey, ObjectRef, Slot, Time};

use super::Container;
use super::acts::{Act, Acts};
use super::awaited::Awaited;
use super::incarnation::Incarnation;
use super::layers::MadeOf;
use super::look::sealed_digest;
use super::verdict::Seen;

/// Nanoseconds.
const SECOND: i64 = 1_000_000_000;

/// Objects that came together: of one baseline, and of one container if they are a container's.
#[derive(Debug)]
pub(crate) struct Lot {
    pub(crate) objects: Arc<[SealedObject]>,
    pub(crate) source: Arc<Source>,
    /// The container whose files they are.
    pub(crate) container: Option<Arc<Container>>,
}

/// One object of an accepted baseline, without a copy of it.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) lot: Arc<Lot>,
    pub(crate) at: u32,
}

impl Sealed {
    /// The very same seal of the very same baseline.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lot.objects, &other.lot.objects) && self.at == other.at
    }

    /// Something else is sealed, by whatever baseline.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        self.seal != other.seal || self.rule.attributes != other.rule.attributes
    }
}

impl std::ops::Deref for Sealed {
    type Target = SealedObject;

    fn deref(&self) -> &SealedObject {
        &self.lot.objects[self.at as usize]
    }
}

/// The baseline an object is sealed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) commit: Option<String>,
    pub(crate) writers: Vec<baseline::Writer>,
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

/// What content was found at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Unknown,
    /// As sealed: nothing is to be remembered.
    AsSealed,
    /// Another, or one that the seal does not tell: it is kept apart.
    Apart,
}

/// The inode that an object's slot is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// None that could be relied on.
    None,
    /// That of the last look.
    AsSeen,
    /// That of `seen`, of which nothing else counts: nobody has looked yet. Kept apart it would cost a piece of memory of every object
    /// between the start and the first look, and leave the heap full of holes.
    Unseen,
    /// Another: it is kept apart.
    Apart,
}

/// One sealed object. There may be a hundred thousand: what only few of them need is kept [`Apart`].
#[derive(Debug)]
pub(crate) struct Unit {
    /// What seals it: see [`Sealed`].
    lot: Arc<Lot>,
    at: u32,
    /// The last look.
    seen: Option<Seen>,
    /// The birth of the inode its slot is on.
    born: u32,
    slot: Option<NonZeroU32>,
    /// Seconds since the epoch.
    verified: Option<NonZeroU32>,
    apart: Option<Box<Apart>>,
    pub(crate) standing: Standing,
    content: Content,
    watched: Watched,
    /// Inodes were put under watch since it was last asked who had them open for writing.
    pub(crate) fresh: bool,
    /// A look is under way.
    pub(crate) running: bool,
    /// Looks in a row that found something no act explains.
    pub(crate) waited: u8,
    /// It must be looked at again, whatever the acts (a loss, a new seal).
    pub(crate) dirty: bool,
    /// Who opens it for reading has been counted since it was last found intact.
    pub(crate) reads_counted: bool,
}

const _: () = assert!(size_of::<Unit>() <= 72, "what the judge keeps of every object");

/// What is out of the ordinary of a unit.
#[derive(Debug)]
pub(crate) struct Apart {
    /// The seal of the revision before, and until when it counts.
    pub(crate) before: Option<(Sealed, Instant)>,
    /// Digest over all content at the last look: tells a change from a repetition.
    content: Option<Digest>,
    /// All that was found at the last look, where the next one needs it (rotated objects, volumes).
    pub(crate) found: Option<Box<Found>>,
    /// What was found when it was right last, where it was not at the last look.
    pub(super) right: Option<Box<Found>>,
    /// Members of a volume at the last look.
    pub(crate) members: BTreeMap<Box<[u8]>, Seen>,
    /// The inode its slot is on, where the last look saw another.
    watched: Option<InodeKey>,
    /// What observations know it by, if not by the inode that is watched.
    known_as: Option<InodeKey>,
    /// Its places in the layers of an overlay.
    pub(crate) made_of: Option<MadeOf>,
    /// Who had it mapped writable at the last look, as acts that explain what changes without one.
    pub(crate) mapped: Vec<Act>,
    /// Slots inside it: of a volume's members, of names that do not belong into a directory.
    pub(super) inner: BTreeMap<Incarnation, Slot>,
    pub(crate) acts: Acts,
    /// Acts that were told of, and may come to pass yet: whoever had it open, or was kept waiting.
    pub(super) lately: Vec<Act>,
    /// Acts on what stood there before something came to lie over it: what they did shows when that is gone.
    pub(super) under: Vec<Act>,
    /// Acts on the key that it must belong to, since the last look.
    pub(super) beside: Vec<Act>,
    /// A writer closed it since the last look.
    pub(super) closed: bool,
    /// It is sealed otherwise than at the last look.
    pub(super) resealed: bool,
    /// What was published, and waits for its baseline.
    pub(super) awaited: Option<Box<Awaited>>,
    /// Since when its installer has it away.
    pub(super) away: Option<Instant>,
    /// Why it could not be verified, as last reported.
    pub(crate) unreadable: Option<String>,
    /// Why it could not be watched, as last reported.
    pub(crate) unwatched: Option<String>,
}

/// Of most units.
static NOTHING: Apart = Apart::nothing();

impl Apart {
    const fn nothing() -> Self {
        Self {
            before: None,
            content: None,
            found: None,
            right: None,
            members: BTreeMap::new(),
            watched: None,
            known_as: None,
            made_of: None,
            mapped: Vec::new(),
            inner: BTreeMap::new(),
            acts: Acts::none(),
            lately: Vec::new(),
            under: Vec::new(),
            beside: Vec::new(),
            closed: false,
            resealed: false,
            awaited: None,
            away: None,
            unreadable: None,
            unwatched: None,
        }
    }

    fn is_nothing(&self) -> bool {
        let Self {
            before,
            content,
            found,
            right,
            members,
            watched,
            known_as,
            made_of,
            mapped,
            inner,
            acts,
            lately,
            under,
            beside,
            closed,
            resealed,
            awaited,
            away,
            unreadable,
            unwatched,
        } = self;
        before.is_none()
            && content.is_none()
            && found.is_none()
            && right.is_none()
            && members.is_empty()
            && watched.is_none()
            && known_as.is_none()
            && made_of.is_none()
            && mapped.is_empty()
            && inner.is_empty()
            && acts.is_empty()
            && lately.is_empty()
            && under.is_empty()
            && beside.is_empty()
            && !closed
            && !resealed
            && awaited.is_none()
            && away.is_none()
            && unreadable.is_none()
            && unwatched.is_none()
    }
}

impl Unit {
    pub(crate) fn new(Sealed { lot, at }: Sealed) -> Self {
        Self {
            lot,
            at,
            seen: None,
            born: 0,
            slot: None,
            verified: None,
            apart: None,
            standing: Standing::Unverified,
            content: Content::Unknown,
            watched: Watched::None,
            fresh: false,
            running: false,
            waited: 0,
            dirty: true,
            reads_counted: false,
        }
    }

    /// What it must be.
    pub(crate) fn object(&self) -> &SealedObject {
        &self.lot.objects[self.at as usize]
    }

    /// The same, to be kept.
    pub(crate) fn sealed(&self) -> Sealed {
        Sealed { lot: Arc::clone(&self.lot), at: self.at }
    }

    /// The baseline it is sealed by.
    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.lot.source
    }

    /// The container whose file it is.
    pub(crate) fn container(&self) -> Option<&Container> {
        self.lot.container.as_deref()
    }

    /// What is out of the ordinary.
    pub(crate) fn apart(&self) -> &Apart {
        self.apart.as_deref().unwrap_or(&NOTHING)
    }

    /// The same, to be changed.
    pub(crate) fn apart_mut(&mut self) -> &mut Apart {
        self.apart.get_or_insert_with(|| Box::new(Apart::nothing()))
    }

    /// Nothing is out of the ordinary any more, if so.
    pub(crate) fn tidy(&mut self) {
        self.apart.take_if(|apart| apart.is_nothing());
    }

    /// The acts that wait to be judged, of which there are none from now on.
    pub(crate) fn take_acts(&mut self) -> Acts {
        self.apart.as_mut().map(|apart| std::mem::take(&mut apart.acts)).unwrap_or_default()
    }

    /// What was published and waited for its baseline, which it does no longer.
    pub(super) fn take_awaited(&mut self) -> Option<Box<Awaited>> {
        self.apart.as_mut()?.awaited.take()
    }

    /// Whether a writer closed it since this was last asked.
    pub(super) fn take_closed(&mut self) -> bool {
        self.apart.as_mut().is_some_and(|apart| std::mem::take(&mut apart.closed))
    }

    /// The slots inside it, of which there are none from now on.
    pub(super) fn take_inner(&mut self) -> BTreeMap<Incarnation, Slot> {
        self.apart.as_mut().map(|apart| std::mem::take(&mut apart.inner)).unwrap_or_default()
    }

    /// It is sealed anew.
    pub(crate) fn seal(&mut self, Sealed { lot, at }: Sealed) {
        let content = self.content();
        (self.lot, self.at) = (lot, at);
        self.found_content(content);
    }

    /// Digest over all content at the last look.
    pub(crate) fn content(&self) -> Option<Digest> {
        match self.content {
            Content::Unknown => None,
            Content::AsSealed => sealed_digest(&self.object().seal),
            Content::Apart => self.apart().content,
        }
    }

    /// That content was found.
    pub(crate) fn found_content(&mut self, digest: Option<Digest>) {
        let apart = digest.filter(|_| digest != sealed_digest(&self.object().seal));
        self.content = match (digest, apart) {
            (None, _) => Content::Unknown,
            (Some(_), None) => Content::AsSealed,
            (Some(_), Some(_)) => Content::Apart,
        };
        if apart.is_some() || self.apart.is_some() {
            self.apart_mut().content = apart;
        }
    }

    /// A look found other content than the last one.
    pub(crate) fn is_other(&self, found: Option<Digest>) -> bool {
        self.content().is_some_and(|known| Some(known) != found)
    }

    /// Its own slot.
    pub(crate) fn slot(&self) -> Option<Slot> {
        self.slot.map(|slot| Slot(slot.get()))
    }

    pub(crate) const fn set_slot(&mut self, slot: Slot) {
        self.slot = NonZeroU32::new(slot.0);
    }

    /// The last look.
    pub(crate) const fn seen(&self) -> Option<&Seen> {
        match self.watched {
            Watched::Unseen => None,
            _ => self.seen.as_ref(),
        }
    }

    /// It was looked at.
    pub(crate) fn set_seen(&mut self, seen: Option<Seen>) {
        let watched = self.watched();
        self.seen = seen;
        self.watched = Watched::None;
        self.put_watched(watched);
    }

    /// The inode that its slot is on.
    pub(crate) fn watched(&self) -> Option<InodeKey> {
        match self.watched {
            Watched::None => None,
            Watched::AsSeen | Watched::Unseen => self.seen.as_ref().map(Seen::inode),
            Watched::Apart => self.apart().watched,
        }
    }

    fn put_watched(&mut self, inode: Option<InodeKey>) {
        let seen = self.seen().map(Seen::inode);
        let other = inode.filter(|_| seen.is_some() && inode != seen);
        if seen.is_none() {
            self.seen = inode.map(Seen::unseen);
        }
        self.watched = match (inode, other) {
            (None, _) => Watched::None,
            (Some(_), None) if seen.is_none() => Watched::Unseen,
            (Some(_), None) => Watched::AsSeen,
            (Some(_), Some(_)) => Watched::Apart,
        };
        if other.is_some() || self.apart.is_some() {
            self.apart_mut().watched = other;
        }
    }

    /// Whether its slot is on that one.
    pub(super) fn watches(&self, one: &Incarnation) -> bool {
        self.watched() == Some(one.inode) && self.born == one.born
    }

    /// Its slot is on that inode, which observations know by another number on some file systems.
    pub(super) fn set_watched(&mut self, one: &Incarnation, known_as: InodeKey) {
        self.put_watched(Some(one.inode));
        self.born = one.born;
        let other = (known_as != one.inode).then_some(known_as);
        if other.is_some() || self.apart.is_some() {
            self.apart_mut().known_as = other;
        }
    }

    /// Its slot is on no inode that could be relied on.
    pub(crate) fn untagged(&mut self) {
        self.put_watched(None);
    }

    /// What observations know it by.
    pub(crate) fn known_as(&self) -> Option<InodeKey> {
        self.apart().known_as.or_else(|| self.watched())
    }

    /// When it was last looked at, to the second.
    pub(crate) fn verified(&self) -> Option<Time> {
        self.verified.map(|seconds| Time(i64::from(seconds.get()) * SECOND))
    }

    /// It has been looked at just now.
    pub(crate) fn verified_now(&mut self) {
        self.verified = u32::try_from(Time::now().0 / SECOND).ok().and_then(NonZeroU32::new);
    }

    /// The object of a record.
    pub(crate) fn object_ref(&self) -> ObjectRef {
        ObjectRef {
            id: SealedObject::id_of(&self.source().name, &self.object().path).to_string(),
            path: self.object().path.clone(),
            class: self.object().rule.class,
            baseline: Some(self.source().name.clone()),
            revision: Some(self.source().revision),
        }
    }

    /// Something inside it that is, or should not be, an object of its own.
    pub(crate) fn inner_ref(&self, path: HostPath) -> ObjectRef {
        let object = self.object_ref();
        let member = path.below(&object.path).and_then(|inside| self.object().seal.member(inside));
        ObjectRef {
            id: SealedObject::id_of(&self.source().name, &path).to_string(),
            path,
            class: member.map_or(object.class, |entry| entry.class),
            ..object
        }
    }

    /// Names in it are its own.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.object().seal, Seal::Volume { .. } | Seal::Directory { names: Some(_) })
    }

    /// Nothing is sealed of it but who writes it.
    pub(super) fn is_by_its_writer_alone(&self) -> bool {
        matches!(self.object().seal, Seal::File(baseline::Content::Any))
    }

    pub(crate) fn is_volume(&self) -> bool {
        matches!(self.object().seal, Seal::Volume { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::incarnation::Incarnation;
    use super::{Lot, Sealed, Seen, Source, Unit};
    use crate::baseline::{Anchor, Attributes, Publish, Rule, Seal, SealedObject};
    use crate::model::{Class, HostPath, InodeKey};

    fn unit() -> Unit {
        let rule = Rule {
            anchor: Anchor::Host,
            mounts: Vec::new(),
            class: Class::Sealed,
            publish: Publish::InPlace,
            attributes: Attributes::default(),
            writers: Vec::new(),
        };
        let object = SealedObject {
            path: HostPath::from("/x"),
            rule: Arc::new(rule),
            seal: Seal::Directory { names: None },
        };
        let source = Source { name: "test".into(), revision: 1, commit: None, writers: Vec::new() };
        let lot = Lot { objects: Arc::new([object]), source: Arc::new(source), container: None };
        Unit::new(Sealed { lot: Arc::new(lot), at: 0 })
    }

    #[test]
    fn what_is_watched_is_no_look_and_outlasts_looks_at_others() {
        let [a, b] = [1, 2].map(|ino| InodeKey { dev: 1, ino });
        let mut unit = unit();
        unit.set_watched(&Incarnation { inode: a, born: 7 }, a);
        assert_eq!((unit.seen(), unit.watched(), unit.known_as()), (None, Some(a), Some(a)));
        assert!(unit.apart.is_none(), "something is kept apart before the first look");
        // Nothing stands there.
        unit.set_seen(None);
        assert_eq!((unit.seen(), unit.watched()), (None, Some(a)));
        unit.set_seen(Some(Seen::unseen(b)));
        assert_eq!((unit.seen().map(Seen::inode), unit.watched()), (Some(b), Some(a)));
        unit.set_seen(Some(Seen::unseen(a)));
        assert_eq!((unit.seen().map(Seen::inode), unit.watched()), (Some(a), Some(a)));
        unit.set_watched(&Incarnation { inode: b, born: 8 }, b);
        assert_eq!((unit.seen().map(Seen::inode), unit.watched()), (Some(a), Some(b)));
        unit.set_seen(None);
        assert_eq!((unit.seen(), unit.watched()), (None, Some(b)));
        unit.untagged();
        assert_eq!((unit.seen(), unit.watched()), (None, None));
    }
}
