//! From an observation to the units it concerns.

use crate::model::{HostPath, InodeKey, Observation, Operation, Slot};

use super::acts::Act;
use super::slots::{Ix, Slots, Use};
use super::topology::{Ways, is_mount};

/// What routing needs to know of the units.
pub(crate) trait Places {
    /// Path of a unit.
    fn path(&self, ix: Ix) -> &HostPath;
    /// Inode of a unit at the last look.
    fn inode(&self, ix: Ix) -> Option<InodeKey>;
    /// Names below the unit are its own: a closed directory or a volume.
    fn is_directory(&self, ix: Ix) -> bool;
    /// The unit sealed at exactly this path.
    fn at(&self, path: &HostPath) -> Option<Ix>;
    /// The units that are made of what lies at this path, in a layer of an overlay.
    fn made_of(&self, path: &HostPath) -> &[Ix];
}

/// What happened to a directory above objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was moved, there if that is known.
    Moved(Option<HostPath>),
    /// Something was moved to its place, from there if that is known.
    Came(Option<HostPath>),
    /// Something was mounted over it, or what it lay on was unmounted.
    Covered,
    /// It was the root of a mount, which was moved.
    Carried,
    /// Its mount got other options.
    Options,
    /// It came or went empty.
    Empty,
}

/// The units an observation concerns, each with the act as it is told of them. Empty for neighbours.
pub(crate) fn route(observation: &Observation, slots: &Slots, places: &impl Places) -> Vec<(Ix, Act)> {
    let what = slots.get(observation.slot);
    let first = what.as_ref();
    if is_name_operation(observation.operation) {
        names(observation, first, slots, places)
    } else if observation.operation.runs_code() {
        code(observation, first, places)
    } else {
        content(observation, first, places)
    }
}

const fn is_name_operation(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Link
            | Operation::Symlink
            | Operation::Create
            | Operation::Mkdir
            | Operation::Mknod
            | Operation::Unlink
            | Operation::Rmdir
            | Operation::Rename
    )
}

fn at_slot(slots: &Slots, slot: Option<Slot>) -> Option<Use> {
    slots.get(slot?)
}

/// The directory behind a slot, if it is one.
fn directory<'a>(what: Option<&'a Use>, places: &'a impl Places) -> Option<&'a HostPath> {
    match what? {
        Use::Way(path) | Use::Stray(_, path) => Some(path),
        Use::Unit(ix) | Use::Member(ix) => places.is_directory(*ix).then(|| places.path(*ix)),
        Use::Backing(_) => None,
    }
}

/// The unit behind a slot, if it is one or lies in one.
fn unit(what: Option<&Use>) -> Option<Ix> {
    match what? {
        Use::Unit(ix) | Use::Member(ix) | Use::Stray(ix, _) => Some(*ix),
        Use::Way(_) | Use::Backing(_) => None,
    }
}

/// The path of the unit behind a slot, or of the file in a layer.
fn place<'a>(what: Option<&'a Use>, places: &'a impl Places) -> Option<&'a HostPath> {
    match what? {
        Use::Backing(path) => Some(path),
        what => unit(Some(what)).map(|ix| places.path(ix)),
    }
}

/// Both ends of an act on a name.
struct Ends {
    from: Option<HostPath>,
    to: Option<HostPath>,
}

/// Whether a slot stands for the inode acted upon itself, rather than for the directory its name is in: then it is not
/// what the inode inherited.
fn is_itself(what: Option<&Use>, observation: &Observation, places: &impl Places) -> bool {
    match what {
        // Nothing inherits from a way.
        Some(Use::Way(_) | Use::Backing(_)) => observation.child_slot == Some(observation.slot),
        what => {
            unit(what).is_some_and(|ix| observation.inode.is_some() && places.inode(ix) == observation.inode)
        }
    }
}

fn ends(observation: &Observation, slots: &Slots, places: &impl Places) -> Ends {
    let (what, replaced) = (slots.get(observation.slot), at_slot(slots, observation.replaced_slot));
    let (first, replaced) = (what.as_ref(), replaced.as_ref());
    let renamed = observation.renamed_to.as_ref();
    let to_dir = renamed.and_then(|to| slots.get(to.slot));
    // A directory that is itself renamed or removed stands under its own slot: the name is not in it.
    let from_dir = directory(first, places).filter(|_| !is_itself(first, observation, places));
    let told = observation.path_in_fs.as_ref();
    let from = from_dir.zip(observation.name.as_ref()).map(|(dir, name)| inside(dir, name, told));
    let to = directory(to_dir.as_ref(), places)
        .zip(renamed)
        .map(|(dir, to)| inside(dir, &to.name, to.path_in_fs.as_ref()))
        .or_else(|| place(replaced, places).cloned());
    Ends { from, to }
}

/// The path of a name in a directory, or in one below it that has its slot from it: `told` is the path in the file system, which begins
/// elsewhere than the host's where that is not mounted at the root.
fn inside(dir: &HostPath, name: &[u8], told: Option<&HostPath>) -> HostPath {
    let direct = || dir.join(name);
    let Some(told) = told.filter(|told| told.name() == name) else { return direct() };
    if told.parent().is_none_or(|parent| parent.name() == dir.name()) {
        return direct();
    }
    let above = std::iter::successors(told.parent(), HostPath::parent);
    let same = above.filter(|at| at == dir || (at.name() == dir.name() && !dir.name().is_empty())).last();
    let rest = same.and_then(|at| told.below(&at).map(<[u8]>::to_vec));
    rest.filter(|rest| !rest.is_empty()).map_or_else(direct, |rest| dir.join(&rest))
}

/// Directories above objects (`ways` knows which are) that something happened to.
pub(crate) fn displaced(
    observation: &Observation,
    slots: &Slots,
    places: &impl Places,
    ways: &Ways,
) -> Vec<(HostPath, Fate)> {
    let mut list: Vec<(HostPath, Fate)> = Vec::new();
    let mut add = |path: HostPath, fate: Fate| {
        let is_way = fate == Fate::Options || ways.contains(&path);
        if is_way && !list.iter().any(|(known, _)| *known == path) {
            list.push((path, fate));
        }
    };
    let own = |what: Option<&Use>| match what {
        Some(Use::Way(path)) => Some(path.clone()),
        Some(Use::Unit(ix)) if is_itself(what, observation, places) => Some(places.path(*ix).clone()),
        _ => None,
    };
    if observation.operation == Operation::MountSetattr {
        // Only the caller's words say which mount that is.
        let named = observation.path_in_fs.clone();
        if let Some(path) = named.filter(|path| ways.contains(path) || places.at(path).is_some()) {
            add(path, Fate::Options);
        }
        return list;
    }
    if is_mount(observation.operation) {
        let what = slots.get(observation.slot);
        let first = what.as_ref();
        match (own(first), observation.operation) {
            // Of an object it is told by its own slot.
            (Some(path), Operation::Remount) if matches!(first, Some(Use::Way(_))) => {
                add(path, Fate::Options);
            }
            (Some(_), Operation::Remount) | (None, _) => {}
            (Some(path), _) => add(path, Fate::Covered),
        }
        return list;
    }
    if !is_name_operation(observation.operation) {
        return list;
    }
    let Ends { from, to } = ends(observation, slots, places);
    if observation.operation != Operation::Rename {
        let child = at_slot(slots, observation.child_slot);
        for path in own(child.as_ref()).into_iter().chain(from) {
            add(path, Fate::Empty);
        }
        return list;
    }
    if let Some(path) = own(at_slot(slots, observation.child_slot).as_ref()) {
        add(path, Fate::Moved(to.clone()));
    }
    if let Some(Use::Way(path)) = at_slot(slots, observation.replaced_slot) {
        add(path, Fate::Came(from.clone()));
    }
    if let Some(path) = from.clone() {
        add(path, Fate::Moved(to.clone()));
    }
    if let Some(path) = to {
        add(path, Fate::Came(from));
    }
    list
}

/// The directory, above objects or one itself, that the observation is of.
pub(crate) fn itself_a_directory(
    observation: &Observation,
    slots: &Slots,
    places: &impl Places,
) -> Option<HostPath> {
    match slots.get(observation.slot)? {
        Use::Way(path) => Some(path),
        Use::Unit(ix) if places.is_directory(ix) => {
            let itself = observation.inode.is_some() && observation.inode == places.inode(ix);
            itself.then(|| places.path(ix).clone())
        }
        _ => None,
    }
}

fn names(
    observation: &Observation,
    first: Option<&Use>,
    slots: &Slots,
    places: &impl Places,
) -> Vec<(Ix, Act)> {
    let (child, replaced) =
        (at_slot(slots, observation.child_slot), at_slot(slots, observation.replaced_slot));
    let (child, replaced) = (child.as_ref(), replaced.as_ref());
    let to_dir = at_slot(slots, observation.renamed_to.as_ref().map(|to| to.slot));
    let to_dir = to_dir.as_ref();
    let Ends { from, to } = ends(observation, slots, places);
    // A slot that was inherited from a directory, its own or the one it came into, tells of that directory.
    let itself = |what: &&Use| {
        let inherits = unit(Some(what)).filter(|ix| places.is_directory(*ix));
        inherits.is_none_or(|ix| observation.inode.is_some() && places.inode(ix) == observation.inode)
    };
    let own = || place(child.filter(itself), places).or_else(|| place(first, places)).cloned();
    let path = from.clone().or_else(own).or_else(|| observation.path_in_fs.clone()).or_else(|| to.clone());
    let Some(path) = path else { return Vec::new() };

    let mut touched = Vec::new();
    let mut touch = |ix: Option<Ix>| {
        if let Some(ix) = ix
            && !touched.contains(&ix)
        {
            touched.push(ix);
        }
    };
    touch(from.as_ref().and_then(|path| places.at(path)));
    // One that came anew has its slot from the directory above it yet.
    touch(from.as_ref().and_then(HostPath::parent).and_then(|dir| places.at(&dir)));
    touch(unit(child));
    touch(to.as_ref().and_then(|path| places.at(path)));
    touch(unit(replaced));
    touch(unit(first));
    touch(unit(to_dir));
    let layers = [Some(&path), to.as_ref(), place(child, places), place(replaced, places)];
    let mut made: Vec<Ix> = layers.into_iter().flatten().flat_map(|at| places.made_of(at)).copied().collect();
    made.retain(|ix| !touched.contains(ix));
    made.sort_unstable();
    made.dedup();
    let act = Act::new(observation, path, to);
    let made = made.into_iter().map(|ix| (ix, in_layer(&act, ix, places))).collect::<Vec<_>>();
    touched.into_iter().map(|ix| (ix, act.clone())).chain(made).collect()
}

/// The act on what a unit is made of, as one on the unit.
pub(crate) fn in_layer(act: &Act, ix: Ix, places: &impl Places) -> Act {
    let seen = |path: &HostPath| {
        if places.made_of(path).contains(&ix) { places.path(ix).clone() } else { path.clone() }
    };
    Act { path: seen(&act.path), to: act.to.as_ref().map(seen), in_layer: true, ..act.clone() }
}

/// The slot is the program's; what the act tells of is a file somewhere else.
fn code(observation: &Observation, first: Option<&Use>, places: &impl Places) -> Vec<(Ix, Act)> {
    let units = match first {
        Some(Use::Backing(path)) => places.made_of(path).to_vec(),
        what => unit(what).into_iter().collect(),
    };
    let act = |ix| Act::new(observation, places.path(ix).clone(), None);
    units.into_iter().map(|ix| (ix, act(ix))).collect()
}

fn content(observation: &Observation, first: Option<&Use>, places: &impl Places) -> Vec<(Ix, Act)> {
    let Some(what) = first else { return Vec::new() };
    match what {
        // What happens to the inode of a mere parent is none of our business.
        Use::Way(_) => Vec::new(),
        Use::Stray(ix, path) => vec![(*ix, Act::new(observation, path.clone(), None))],
        Use::Backing(path) => {
            let act = Act::new(observation, path.clone(), None);
            places.made_of(path).iter().map(|ix| (*ix, in_layer(&act, *ix, places))).collect()
        }
        Use::Unit(ix) | Use::Member(ix) => {
            let unit_path = places.path(*ix);
            // A sensor that came too late to see the inode still knows the name of what lay below.
            let unknown = observation.inode.is_none() && observation.name.is_none();
            let itself = unknown || observation.inode.is_some() && observation.inode == places.inode(*ix);
            if !places.is_directory(*ix) || itself {
                return vec![(*ix, Act::new(observation, unit_path.clone(), None))];
            }
            // Something below that inherited the directory's slot.
            let below =
                observation.name.as_ref().map_or_else(|| unit_path.clone(), |name| unit_path.join(name));
            let act = Act::new(observation, below.clone(), None);
            let mut list = vec![(*ix, act.clone())];
            if let Some(named) = places.at(&below).filter(|named| named != ix) {
                list.push((named, act));
            }
            list
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Places, route};
    use crate::judge::slots::{Ix, Slots, Use};
    use crate::model::{HostPath, InodeKey, Observation, Operation, RenamedTo, Rung, Slot, Time};

    /// Unit 0: closed directory /d; unit 1: file /d/a; unit 2: lone file /x/lone.
    struct Tree;

    const PATHS: [&str; 3] = ["/d", "/d/a", "/x/lone"];

    impl Places for Tree {
        fn path(&self, ix: Ix) -> &HostPath {
            static ALL: std::sync::OnceLock<Vec<HostPath>> = std::sync::OnceLock::new();
            &ALL.get_or_init(|| PATHS.iter().map(|path| HostPath::from(*path)).collect())[ix as usize]
        }
        fn inode(&self, ix: Ix) -> Option<InodeKey> {
            Some(InodeKey { dev: 1, ino: 100 + u64::from(ix) })
        }
        fn is_directory(&self, ix: Ix) -> bool {
            ix == 0
        }
        fn made_of(&self, path: &HostPath) -> &[Ix] {
            if *path == HostPath::from("/layer/lone") { &[2] } else { &[] }
        }
        fn at(&self, path: &HostPath) -> Option<Ix> {
            PATHS.iter().position(|known| path == &HostPath::from(*known)).map(|ix| ix as Ix)
        }
    }

    /// Slots 1, 2, 3 for the units, 4 for the lone file's parent, 5 and 6 for the file it is made of, and its directory.
    fn slots() -> Slots {
        let mut slots = Slots::new(10);
        for ix in 0..3 {
            slots.take(Use::Unit(ix));
        }
        slots.take(Use::Way(HostPath::from("/x")));
        slots.take(Use::Backing(HostPath::from("/layer/lone")));
        slots.take(Use::Way(HostPath::from("/layer")));
        slots
    }

    fn observed(operation: Operation, slot: u32) -> Observation {
        Observation {
            time: Time(1),
            sensor: Rung::Lsm,
            operation,
            slot: Slot(slot),
            child_slot: None,
            inode: None,
            name: None,
            path_in_fs: None,
            renamed_to: None,
            replaced_slot: None,
            actor: Err("test".to_owned()),
            count: 1,
            denied: false,
            failed: false,
            unlinked: false,
            moved: None,
        }
    }

    fn routed(observation: &Observation) -> Vec<(Ix, String, Option<String>)> {
        route(observation, &slots(), &Tree)
            .into_iter()
            .map(|(ix, act)| (ix, act.path.to_string(), act.to.map(|to| to.to_string())))
            .collect()
    }

    #[test]
    fn a_rename_over_a_lone_file_reaches_it() {
        let mut rename = observed(Operation::Rename, 4);
        rename.name = Some(b"new".to_vec());
        rename.renamed_to = Some(RenamedTo::new(Slot(4), b"lone".to_vec()));
        rename.replaced_slot = Some(Slot(3));
        assert_eq!(routed(&rename), [(2, "/x/new".to_owned(), Some("/x/lone".to_owned()))]);
    }

    #[test]
    fn neighbours_in_a_parent_are_ignored() {
        let mut create = observed(Operation::Create, 4);
        create.name = Some(b"neighbour".to_vec());
        assert_eq!(routed(&create), []);
    }

    #[test]
    fn a_rename_in_a_closed_directory_reaches_file_and_directory() {
        let mut rename = observed(Operation::Rename, 1);
        rename.name = Some(b"a".to_vec());
        rename.child_slot = Some(Slot(2));
        rename.renamed_to = Some(RenamedTo::new(Slot(1), b"b".to_vec()));
        let to = Some("/d/b".to_owned());
        assert_eq!(routed(&rename), [(1, "/d/a".to_owned(), to.clone()), (0, "/d/a".to_owned(), to)]);
    }

    #[test]
    fn what_is_moved_deeper_is_told_where_it_goes() {
        // The directory was made in the same look: its slot is that of the one above it.
        for to in ["/d/sub/a", "/d/sub/b"] {
            let to = HostPath::from(to);
            let mut rename = observed(Operation::Rename, 1);
            (rename.name, rename.path_in_fs) = (Some(b"a".to_vec()), Some(HostPath::from("/d/a")));
            rename.child_slot = Some(Slot(2));
            let name = to.name().to_vec();
            rename.renamed_to =
                Some(RenamedTo { path_in_fs: Some(to.clone()), ..RenamedTo::new(Slot(1), name) });
            let told = |ix| (ix, "/d/a".to_owned(), Some(to.to_string()));
            assert_eq!(routed(&rename), [told(1), told(0)]);
        }
    }

    #[test]
    fn what_is_made_deeper_is_told_where_it_is() {
        for (told, path) in [
            (None, "/d/new"),
            (Some("/d/new"), "/d/new"),
            (Some("/d/sub/new"), "/d/sub/new"),
            (Some("/elsewhere/d/sub/new"), "/d/sub/new"),
            (Some("/elsewhere/d/new"), "/d/new"),
            (Some("/elsewhere/new"), "/d/new"),
        ] {
            let mut create = observed(Operation::Create, 1);
            create.name = Some(b"new".to_vec());
            create.path_in_fs = told.map(HostPath::from);
            assert_eq!(routed(&create), [(0, path.to_owned(), None)], "{told:?}");
        }
    }

    #[test]
    fn a_write_below_a_closed_directory_names_the_new_file() {
        let mut write = observed(Operation::Write, 1);
        write.inode = Some(InodeKey { dev: 1, ino: 999 });
        write.name = Some(b"dropped".to_vec());
        assert_eq!(routed(&write), [(0, "/d/dropped".to_owned(), None)]);
    }

    #[test]
    fn what_is_done_in_a_layer_is_done_to_what_is_made_of_it() {
        let mut write = observed(Operation::Write, 5);
        write.inode = Some(InodeKey { dev: 1, ino: 7 });
        let all = route(&write, &slots(), &Tree);
        assert!(all.iter().all(|(_, act)| act.in_layer));
        assert_eq!(routed(&write), [(2, "/x/lone".to_owned(), None)]);
        let mut rename = observed(Operation::Rename, 6);
        rename.name = Some(b"new".to_vec());
        rename.renamed_to = Some(RenamedTo::new(Slot(6), b"lone".to_vec()));
        rename.replaced_slot = Some(Slot(5));
        assert_eq!(routed(&rename), [(2, "/layer/new".to_owned(), Some("/x/lone".to_owned()))]);
        let mut create = observed(Operation::Create, 6);
        create.name = Some(b"other".to_vec());
        assert_eq!(routed(&create), []);
    }

    #[test]
    fn what_is_gone_below_a_closed_directory_is_not_the_directory() {
        let mut setattr = observed(Operation::Setattr, 1);
        setattr.name = Some(b"moment".to_vec());
        assert_eq!(routed(&setattr), [(0, "/d/moment".to_owned(), None)]);
        setattr.name = None;
        assert_eq!(routed(&setattr), [(0, "/d".to_owned(), None)]);
    }

    #[test]
    fn an_unlink_of_a_file_in_an_unwatched_directory_reaches_it() {
        let mut unlink = observed(Operation::Unlink, 3);
        unlink.name = Some(b"alias".to_vec());
        assert_eq!(routed(&unlink), [(2, "/x/lone".to_owned(), None)]);
    }
}
