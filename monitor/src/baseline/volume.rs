//! The shape of a volume as the kubelet's `AtomicWriter` lays it out, and everything that is not so shaped.
//!
//! `..data` is a link to one directory `..<timestamp>` beside it; each visible name is a link to exactly
//! `..data/<name>`; nothing else is there. A displaced `..<timestamp>` directory is litter: the kubelet leaves one
//! behind after it healed a swung `..data`. `..data_tmp` is there for the blink of a publish.
//! Facts: the kubelet's `pkg/volume/util/atomic_writer.go`, steps 1 to 12.

use std::collections::BTreeMap;

use super::object::EntryKind;
use crate::model::HostPath;

/// The link that a publish renames into place.
pub const DATA: &[u8] = b"..data";
/// Its name before that.
pub const DATA_TMP: &[u8] = b"..data_tmp";

/// What stands in the root of a volume: name → type, and the target of each link.
pub type Listing = BTreeMap<Box<[u8]>, (EntryKind, Option<Box<[u8]>>)>;

/// Something that is not as `AtomicWriter` makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The name in the volume's root, or the logical path below `..data`.
    pub name: Box<[u8]>,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub actual: String,
}

/// The shape found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// The directory `..data` points at, if it does so properly.
    pub current: Option<Box<[u8]>>,
    /// Visible names that are proper links.
    pub visible: Vec<Box<[u8]>>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// `..<timestamp>` directories that `..data` does not point at.
    pub litter: Vec<Box<[u8]>>,
    /// `..data_tmp` is there: a publish runs, or someone blocks the next one.
    pub publishing: bool,
}

/// Whether a directory with this listing is meant to be a volume: sealing asks this, judging does not.
#[must_use]
pub fn is_volume(listing: &Listing) -> bool {
    matches!(listing.get(DATA), Some((EntryKind::Symlink, Some(target))) if is_timestamp_name(target))
}

fn is_timestamp_name(name: &[u8]) -> bool {
    name.len() > 2 && name.starts_with(b"..") && !name.contains(&b'/') && name != DATA && name != DATA_TMP
}

/// Checks the root of a volume.
#[must_use]
pub fn shape(listing: &Listing) -> Shape {
    let mut shape = Shape::default();
    match listing.get(DATA) {
        Some((EntryKind::Symlink, Some(target))) if is_timestamp_name(target) => match listing.get(target) {
            Some((EntryKind::Directory, _)) => shape.current = Some(target.clone()),
            Some((kind, _)) => shape.fault(target, "directory", kind.as_str()),
            None => shape.fault(target, "directory", "nothing"),
        },
        Some((EntryKind::Symlink, target)) => {
            let target = link(target.as_deref());
            shape.fault(DATA, "link to one directory ..<timestamp> beside it", &target);
        }
        Some((kind, _)) => shape.fault(DATA, "link to ..<timestamp>", kind.as_str()),
        None => shape.fault(DATA, "link to ..<timestamp>", "nothing"),
    }
    for (name, (kind, target)) in listing {
        match &**name {
            DATA => {}
            DATA_TMP => {
                shape.publishing = true;
                if *kind != EntryKind::Symlink {
                    shape.fault(name, "nothing, or a link while a publish runs", kind.as_str());
                }
            }
            _ if name.starts_with(b"..") => {
                if *kind != EntryKind::Directory {
                    shape.fault(name, "directory", kind.as_str());
                } else if shape.current.as_ref() != Some(name) {
                    shape.litter.push(name.clone());
                }
            }
            _ => {
                let wanted = [b"..data/", &**name].concat();
                if *kind == EntryKind::Symlink && target.as_deref() == Some(&wanted) {
                    shape.visible.push(name.clone());
                } else {
                    let actual = if *kind == EntryKind::Symlink {
                        link(target.as_deref())
                    } else {
                        kind.as_str().to_owned()
                    };
                    shape.fault(name, &link(Some(&wanted)), &actual);
                }
            }
        }
    }
    shape
}

impl Shape {
    /// Notes a fault.
    pub fn fault(&mut self, name: &[u8], expected: &str, actual: &str) {
        self.faults.push(Fault { name: name.into(), expected: expected.into(), actual: actual.into() });
    }
}

fn link(target: Option<&[u8]>) -> String {
    format!("link to {}", HostPath::new(target.unwrap_or_default().to_vec()))
}
