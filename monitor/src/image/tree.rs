//! The layers of an image one over the other, as a runtime would unpack them; nothing is unpacked.
//!
//! Whiteouts and opaque directories take away what lower layers put there, whatever the order in their own layer. A
//! name below a link of its own layer goes where the link leads, inside the root. One below a link or file of a lower layer makes a
//! directory in its place: runtimes on overlayfs (containerd, Docker, CRI-O) unpack each layer into a directory of its own, where the lower
//! ones are not. (umoci, which unpacks all into one, follows the link.) The names of a hard link share one inode, whose mode,
//! owner and attributes the last entry sets, as containerd and Docker do it; its file capabilities go with the change of owner, unless the
//! entry brings them along.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::entry::{CAPABILITY, Entry, Meta, What, XATTRS_MAX};
use crate::baseline::seal::SealedBytes;

/// Most files of an image.
const NODES_MAX: usize = 2_000_000;
/// Most bytes of names, targets and attributes that are kept.
const KEPT_MAX: usize = 512 << 20;
/// Most links on the way to a file.
const LINKS_MAX: usize = 40;
/// Longest path with all links followed, in bytes.
const RESOLVED_MAX: usize = 8192;
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that are a storage driver's own.
const DRIVER: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Most bytes of paths looked up on the way to directories; real images need some hundred million.
const STEPS_MAX: u64 = 8 << 30;

/// What stands at a path.
#[derive(Debug, Clone, Copy)]
struct Node {
    inode: usize,
    layer: u32,
}

/// A file without its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Mode, owner and attributes.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
}

/// What stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file; `None` for a secret that cannot be sealed.
    File(Option<Rc<SealedBytes>>),
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A device or FIFO.
    Special,
}

/// An image's files, by path: `/` before each component, nothing for the root.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
    inodes: Vec<Inode>,
    /// Whiteouts of this layer.
    taken_away: BTreeSet<Vec<u8>>,
    kept: usize,
    layer: u32,
    /// Bytes of paths that were looked up.
    steps: Cell<u64>,
}

/// The links that are followed on the way to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    /// All of them.
    All,
    /// Those of the layer that is being taken.
    OfThisLayer,
}

impl Tree {
    /// The next layer begins.
    pub fn next_layer(&mut self) {
        self.layer += 1;
        self.taken_away.clear();
    }

    /// Takes an entry of the layer.
    ///
    /// # Errors
    /// The name was there before in this layer, its way leads nowhere, a hard link has no target, or there is too much.
    pub fn take(&mut self, entry: Entry) -> Result<(), String> {
        let shown = show(&entry.path);
        let Some((above, name)) = split(&entry.path) else {
            // The root itself: its attributes are the runtime's.
            return Ok(());
        };
        let mut path = self.resolve(above, Links::OfThisLayer, &shown)?;
        if name == OPAQUE {
            self.directories(&path)?;
            return self.hide(path, false, &shown);
        }
        if name.starts_with(DRIVER) || above.split(|b| *b == b'/').any(|part| part.starts_with(DRIVER)) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(format!("a whiteout of a name, not {shown}"));
            }
            self.directories(&path)?;
            path.push(b'/');
            path.extend_from_slice(hidden);
            return self.hide(path, true, &shown);
        }
        self.directories(&path)?;
        path.push(b'/');
        path.extend_from_slice(name);
        if let Some(known) = self.nodes.get(&path).copied() {
            let both = entry.what == What::Directory && self.inodes[known.inode].kind == Kind::Directory;
            if known.layer == self.layer && !both {
                return Err(format!("each name once in a layer, {shown} comes twice"));
            }
            if !both {
                self.remove_below(&path, u32::MAX);
            }
        }
        let kind = match entry.what {
            What::File(content) => Kind::File(content),
            What::Directory => Kind::Directory,
            What::Symlink(target) => Kind::Symlink(target),
            What::Special => Kind::Special,
            What::Hardlink(target) => {
                let inode = self
                    .linked(&target, &shown)?
                    .ok_or_else(|| format!("a hard link {shown} to a file of the image"))?;
                return self.link(path, inode, entry.meta);
            }
        };
        self.insert(path, Inode { meta: entry.meta, kind })
    }

    /// All files, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Inode)> {
        self.nodes.iter().map(|(path, node)| (path.as_slice(), &self.inodes[node.inode]))
    }

    /// What stands at a path whose last component is not followed, though those above it are.
    #[must_use]
    pub fn at(&self, path: &[u8]) -> Option<&Inode> {
        self.nodes.get(path).map(|node| &self.inodes[node.inode])
    }

    /// The links on the way to where a path leads, the last component followed too, and that place; `None` if it is
    /// nowhere, or round in circles.
    #[must_use]
    pub fn follow(&self, path: &[u8]) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
        let (links, path) = self.walk(path, Links::All)?;
        self.nodes.contains_key(&path).then_some((links, path))
    }

    /// The inode a hard link leads to: links above it are followed, it itself is not.
    fn linked(&self, path: &[u8], shown: &str) -> Result<Option<usize>, String> {
        let Some((above, name)) = split(path) else { return Ok(None) };
        let mut path = self.resolve(above, Links::All, shown)?;
        path.push(b'/');
        path.extend_from_slice(name);
        let inode = self.nodes.get(&path).map(|node| node.inode);
        Ok(inode.filter(|inode| self.inodes[*inode].kind != Kind::Directory))
    }

    /// A directory's path without those links. What is not there yet is taken as it is.
    fn resolve(&self, path: &[u8], links: Links, shown: &str) -> Result<Vec<u8>, String> {
        let found = self.walk(path, links);
        if self.steps.get() > STEPS_MAX {
            return Err(format!("links that lead somewhere in fewer steps, {shown} among them"));
        }
        let (_, path) = found.ok_or_else(|| format!("{shown} below directories that end somewhere"))?;
        Ok(path)
    }

    fn walk(&self, path: &[u8], follow: Links) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
        let mut pending: Vec<&[u8]> = path.split(|b| *b == b'/').rev().collect();
        let (mut at, mut links) = (Vec::with_capacity(path.len()), Vec::new());
        while let Some(part) = pending.pop() {
            if part.is_empty() || part == b"." {
                continue;
            }
            if part == b".." {
                // Above the root is the root.
                at.truncate(split(&at).map_or(0, |(above, _)| above.len()));
                continue;
            }
            let above = at.len();
            at.push(b'/');
            at.extend_from_slice(part);
            if at.len() > RESOLVED_MAX {
                return None;
            }
            self.steps.set(self.steps.get().saturating_add(at.len() as u64));
            let node = self.nodes.get(&at).filter(|node| follow == Links::All || node.layer == self.layer);
            let Some(Inode { kind: Kind::Symlink(target), .. }) = node.map(|node| &self.inodes[node.inode])
            else {
                continue;
            };
            if links.len() >= LINKS_MAX {
                return None;
            }
            links.push(at.clone());
            at.truncate(if target.starts_with(b"/") { 0 } else { above });
            pending.extend(target.split(|b| *b == b'/').rev());
        }
        Some((links, at))
    }

    /// Directories that no entry names are made as runtimes make them.
    fn directories(&mut self, path: &[u8]) -> Result<(), String> {
        let ends = (1..=path.len()).filter(|end| path.get(*end).is_none_or(|byte| *byte == b'/'));
        for end in ends {
            let known = self.nodes.get(&path[..end]).copied();
            match known.map(|node| (node.layer, &self.inodes[node.inode].kind)) {
                Some((_, Kind::Directory)) => {}
                Some((layer, _)) if layer == self.layer => {
                    return Err(format!("directories only above files; {} is none", show(&path[..end])));
                }
                known => {
                    // As the directory is that a link of a lower layer leads to.
                    let like =
                        known.and_then(|_| self.follow(&path[..end])).and_then(|(_, end)| self.at(&end));
                    let like = like.filter(|inode| inode.kind == Kind::Directory);
                    let made = || Meta { mode: 0o755, ..Meta::default() };
                    let meta = like.map_or_else(made, |inode| inode.meta.clone());
                    self.insert(path[..end].to_vec(), Inode { meta, kind: Kind::Directory })?;
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: Vec<u8>, inode: Inode) -> Result<(), String> {
        let target = if let Kind::Symlink(target) = &inode.kind { target.len() } else { 0 };
        self.keep(path.len() + target + kept_by(&inode.meta))?;
        self.inodes.push(inode);
        self.nodes.insert(path, Node { inode: self.inodes.len() - 1, layer: self.layer });
        Ok(())
    }

    fn link(&mut self, path: Vec<u8>, inode: usize, meta: Meta) -> Result<(), String> {
        self.keep(path.len() + kept_by(&meta))?;
        let known = &mut self.inodes[inode].meta;
        let mut xattrs = std::mem::take(&mut known.xattrs);
        xattrs.retain(|(name, _)| name != CAPABILITY && meta.xattrs.iter().all(|(other, _)| other != name));
        xattrs.extend(meta.xattrs);
        if xattrs.len() > XATTRS_MAX {
            return Err(format!("at most {XATTRS_MAX} extended attributes of a file, {}", show(&path)));
        }
        *known = Meta { xattrs, ..meta };
        self.nodes.insert(path, Node { inode, layer: self.layer });
        Ok(())
    }

    /// Counts what is kept, also what later layers take away again.
    fn keep(&mut self, bytes: usize) -> Result<(), String> {
        self.kept = self.kept.saturating_add(bytes);
        if self.kept > KEPT_MAX {
            return Err(format!("at most {KEPT_MAX} bytes of names and attributes"));
        }
        if self.inodes.len() >= NODES_MAX || self.nodes.len() >= NODES_MAX {
            return Err(format!("at most {NODES_MAX} files"));
        }
        Ok(())
    }

    /// Takes away all that lower layers have below a path, and at it.
    fn hide(&mut self, path: Vec<u8>, with_it: bool, shown: &str) -> Result<(), String> {
        self.keep(path.len())?;
        if with_it && self.nodes.get(&path).is_some_and(|node| node.layer < self.layer) {
            self.nodes.remove(&path);
        }
        self.remove_below(&path, self.layer);
        let mut path = path;
        path.extend_from_slice(if with_it { b"/" } else { b"/." });
        if !self.taken_away.insert(path) {
            return Err(format!("each name once in a layer, {shown} comes twice"));
        }
        Ok(())
    }

    fn remove_below(&mut self, path: &[u8], before: u32) {
        let below = [path, b"/"].concat();
        let gone: Vec<Vec<u8>> = self
            .nodes
            .range(below.clone()..)
            .take_while(|(at, _)| at.starts_with(&below))
            .filter(|(_, node)| node.layer < before)
            .map(|(at, _)| at.clone())
            .collect();
        for path in gone {
            self.nodes.remove(&path);
        }
    }
}

/// Bytes that attributes take.
fn kept_by(meta: &Meta) -> usize {
    meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// What is above the last component, and that; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    Some((&path[..slash], &path[slash + 1..]))
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
