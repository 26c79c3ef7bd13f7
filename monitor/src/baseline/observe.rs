//! What stands at a path now: type, attributes, content, read so that nothing on the way can mislead or block.
//!
//! - Paths resolve below the host's root (`openat2` with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, Linux 5.6), so a
//!   symlink planted on the host cannot lead into the agent's own files. The root is opened once and by itself:
//!   it may be `/proc/1/root`, which is a magic link.
//! - The last component is opened with `O_PATH | O_NOFOLLOW` first: that opens neither devices nor FIFOs. Only what
//!   turns out to be a regular file is opened for reading, through its descriptor, never by name again.
//! - A hash counts only if the inode did not move while it was read, and its ctime is at least 20 ms older than the
//!   start of reading (ctime ticks are coarse: a write in the same tick would leave no trace).
//! - Device numbers are what `statx` tells. btrfs subvolumes and overlayfs tell an anonymous device there that is not
//!   the kernel's `s_dev`: such objects must be matched by the pin's `/proc/self/fdinfo`, not by [`Found::inode`].
//! - Extended attributes: everything the kernel lists, but `security.ima`, `security.evm` (set by the kernel's
//!   own measurement), `security.selinux` (relabelled by policy) and `system.*` other than POSIX ACLs.
//!   `security.capability`, `trusted.*`, `user.*` are in. Listing `trusted.*` needs `CAP_SYS_ADMIN`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::content::{FoundContent, hash};
use super::error::Error;
use super::meaning::Form;
use super::object::{Attributes, Content, EntryKind, Seal, SealedObject};
use super::secret::SecretKey;
use super::volume::{self, Listing, Shape};
use super::xattr::xattrs;
use crate::model::{HostPath, InodeKey, State};
use crate::profile::Profiles;
use crate::text::one_line;

/// How often a file that moves under the reader is read again.
const TRIES: u32 = 4;
/// How old a ctime must be before it proves that nothing moved, in nanoseconds.
const SETTLED: i64 = 20_000_000;
/// Names in one directory.
const MAX_NAMES: usize = 1_000_000;
/// Deepest file of a volume: its directories and itself.
pub const MAX_VOLUME_DEPTH: usize = 16;
/// Most files and directories of a volume (a ConfigMap or Secret holds 1 MiB).
pub const MAX_VOLUME_ENTRIES: usize = 20_000;
/// Most places in one directory of a volume at which a pod mounts something else; few have more than one.
const MAX_NESTED: usize = 64;

/// The host's root, open.
#[derive(Debug, Clone)]
pub struct Root(Arc<OwnedFd>);

impl Root {
    /// Opens it; a final magic link (`/proc/1/root`) is followed.
    ///
    /// # Errors
    /// It is not there, or no directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map(|fd| Self(Arc::new(fd)))
            .map_err(|e| Error::new("cannot open root", path.display(), format!("a directory ({e})")))
    }

    /// Opens a path below it with `O_PATH`, without following a final symlink.
    ///
    /// # Errors
    /// As [`ObserveError`].
    pub fn locate(&self, path: &HostPath) -> Result<OwnedFd, ObserveError> {
        let relative = path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes());
        let relative = if relative.is_empty() { b".".as_slice() } else { relative };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES {
            match rustix::fs::openat2(&*self.0, relative, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                // A rename elsewhere raced with `..` in the path; the kernel asks to try again.
                Err(Errno::AGAIN) => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(ObserveError::Missing),
                Err(e) => return Err(ObserveError::io(path, "open", e)),
            }
        }
        Err(ObserveError::io(path, "open", Errno::AGAIN))
    }

    /// The names in a directory below the root. A final symlink is not followed.
    ///
    /// # Errors
    /// As [`ObserveError`].
    pub fn list(&self, path: &HostPath) -> Result<BTreeMap<Box<[u8]>, EntryKind>, ObserveError> {
        let fd = self.locate(path)?;
        list(&reopen(&fd, path, OFlags::DIRECTORY)?, path)
    }

    /// Permission bits of what stands there, with setuid, setgid and sticky.
    #[must_use]
    pub fn mode(&self, path: &HostPath) -> Option<u16> {
        Some(stat(&self.locate(path).ok()?, path).ok()?.stx_mode & 0o7777)
    }

    /// When what stands there was modified last.
    #[must_use]
    pub fn modified(&self, path: &HostPath) -> Option<std::time::SystemTime> {
        let at = nanos(&stat(&self.locate(path).ok()?, path).ok()?.stx_mtime);
        std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_nanos(u64::try_from(at).ok()?))
    }

    /// Opens a path below it for reading if a regular file stands there: devices and FIFOs are not opened.
    ///
    /// # Errors
    /// As [`ObserveError`].
    pub fn open_file(&self, path: &HostPath) -> Result<Option<std::fs::File>, ObserveError> {
        let fd = self.locate(path)?;
        if EntryKind::from_mode(u32::from(stat(&fd, path)?.stx_mode)) != Some(EntryKind::File) {
            return Ok(None);
        }
        Ok(Some(reopen(&fd, path, OFlags::empty())?.into()))
    }

    /// Reads a small regular file below the root.
    ///
    /// # Errors
    /// As [`ObserveError`]; longer than `max` bytes is one.
    pub fn read(&self, path: &HostPath, max: u64) -> Result<Vec<u8>, ObserveError> {
        use std::io::Read as _;

        let file = self.open_file(path)?;
        let file = file.ok_or_else(|| ObserveError::io(path, "read (not a regular file)", Errno::INVAL))?;
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(|e| ObserveError::Io {
            path: path.clone(),
            what: "read",
            reason: e.to_string(),
        })?;
        if bytes.len() as u64 > max {
            return Err(ObserveError::io(path, "read (too long)", Errno::FBIG));
        }
        Ok(bytes)
    }
}

/// What to look for beside the plain hash.
#[derive(Debug, Clone)]
pub struct Context {
    /// The cluster's key for secrets; without it no HMAC is made.
    pub secret_key: Option<Arc<SecretKey>>,
    /// Whether a directory is to be taken as a volume; `None`: by its shape.
    pub volume: Option<bool>,
    /// In which forms content is to be read.
    pub forms: Vec<Form>,
    /// It is sealed as a secret, whatever it looks like.
    pub secret: bool,
    /// What the page cache holds of it does not count: an exchange of extents leaves the old bytes there.
    pub from_disk: bool,
    /// The names in a directory count as they are found, though it changes meanwhile: it is not waited until it rests.
    pub restless: bool,
    /// What tells plugins of meshes from others, for who reads of a difference.
    pub profiles: Arc<Profiles>,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            secret_key: None,
            volume: None,
            forms: Vec::new(),
            secret: false,
            from_disk: false,
            restless: false,
            profiles: Arc::clone(Profiles::built_in()),
        }
    }
}

impl Context {
    /// As this sealed object needs it.
    #[must_use]
    pub fn for_sealed(&self, sealed: &SealedObject) -> Self {
        let mut forms = Vec::new();
        let mut ask = |content: &Content| {
            if let Content::Meaning(meaning) = content
                && !forms.contains(&meaning.form())
            {
                forms.push(meaning.form());
            }
        };
        match &sealed.seal {
            Seal::File(content) => ask(content),
            Seal::Volume { entries } => {
                entries.iter().filter_map(|entry| entry.file.as_ref()).for_each(&mut ask);
            }
            _ => {}
        }
        let volume = Some(matches!(sealed.seal, Seal::Volume { .. }));
        let secret = matches!(sealed.seal, Seal::File(Content::Hmac(_)));
        Self { volume, forms, secret, ..self.clone() }
    }
}

/// Why it could not be said what stands there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObserveError {
    /// Nothing is there: a finding, where something is sealed.
    #[error("nothing there")]
    Missing,
    /// It moved each time it was read. Try again when it has settled.
    #[error("{}: keeps changing while it is read", one_line(&path.to_string()))]
    Unstable {
        /// What moved.
        path: HostPath,
    },
    /// It cannot be read.
    #[error("{}: cannot {what}: {reason}", one_line(&path.to_string()))]
    Io {
        /// What cannot be read.
        path: HostPath,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// More than an object may hold.
    #[error("{}: {what} beyond the limit of {limit}", one_line(&path.to_string()))]
    TooMuch {
        /// Where.
        path: HostPath,
        /// Of what.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
}

impl ObserveError {
    pub(super) fn io(path: &HostPath, what: &'static str, errno: Errno) -> Self {
        Self::Io { path: path.clone(), what, reason: std::io::Error::from(errno).to_string() }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub path: HostPath,
    /// Which inode, by `statx` (see the module's words on btrfs and overlayfs).
    pub inode: InodeKey,
    /// Change time, nanoseconds since the epoch.
    pub ctime: i64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime: i64,
    /// Names of the inode.
    pub nlink: u64,
    /// Mode, owner, extended attributes.
    pub attributes: Attributes,
    /// Type and content.
    pub kind: FoundKind,
}

/// Type and content of what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// What is in it.
        content: FoundContent,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: Box<[u8]>,
    },
    /// A directory.
    Directory {
        /// What is in it.
        names: BTreeMap<Box<[u8]>, EntryKind>,
    },
    /// An `AtomicWriter` volume.
    Volume {
        /// Its shape.
        shape: Shape,
        /// Logical path → what lies there: `.` is the directory `..data` points at, the rest lies below it.
        entries: BTreeMap<Box<[u8]>, Found>,
    },
    /// A FIFO, socket or device: never opened.
    Special(EntryKind),
}

impl Found {
    /// The type of the inode.
    #[must_use]
    pub const fn entry_kind(&self) -> EntryKind {
        match &self.kind {
            FoundKind::File { .. } => EntryKind::File,
            FoundKind::Symlink { .. } => EntryKind::Symlink,
            FoundKind::Directory { .. } | FoundKind::Volume { .. } => EntryKind::Directory,
            FoundKind::Special(kind) => *kind,
        }
    }

    /// All of it, as records show it. Secrets show no content.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state = self.attributes.state();
        state.insert("type".into(), self.entry_kind().as_str().into());
        match &self.kind {
            FoundKind::File { size, content } => {
                state.insert("size".into(), size.to_string());
                if !content.secret {
                    state.insert("sha256".into(), hex::encode(content.sha256));
                }
            }
            FoundKind::Symlink { target } => {
                state.insert("target".into(), HostPath::new(target.to_vec()).to_string());
            }
            FoundKind::Directory { names } => {
                state.insert("names".into(), names.len().to_string());
            }
            FoundKind::Volume { entries, .. } => {
                state.insert("files".into(), entries.len().to_string());
            }
            FoundKind::Special(_) => {}
        }
        state
    }
}

/// Looks at one path. Blocks for reading, and for at most a few ticks of the clock per file that just changed:
/// call it where blocking is allowed.
///
/// What is found stood at the path when the reading was done, not only when it began: a large file may be renamed over
/// while it is hashed.
///
/// # Errors
/// As [`ObserveError`]; [`ObserveError::Missing`] is a finding, the others say that nothing can be said.
pub fn observe(root: &Root, path: &HostPath, context: &Context) -> Result<Found, ObserveError> {
    let mut fd = root.locate(path)?;
    for _ in 0..TRIES {
        let found = observe_fd(&fd, path, context, context.volume);
        let now = root.locate(path)?;
        match found {
            Ok(found) if InodeKey::of(&stat(&now, path)?) == found.inode => return Ok(found),
            // It moved under the reader, and is the same inode still.
            Err(error) if InodeKey::of(&stat(&now, path)?) == InodeKey::of(&stat(&fd, path)?) => {
                return Err(error);
            }
            _ => fd = now,
        }
    }
    Err(ObserveError::Unstable { path: path.clone() })
}

fn observe_fd(
    fd: &OwnedFd,
    path: &HostPath,
    context: &Context,
    as_volume: Option<bool>,
) -> Result<Found, ObserveError> {
    for _ in 0..TRIES {
        let before = stat(fd, path)?;
        let settled = wait_settled(&before);
        let found = look(fd, path, context, as_volume, &before)?;
        let after = stat(fd, path)?;
        let rested = settled && fingerprint(&before) == fingerprint(&after);
        if let Some(found) = found
            && (rested || context.restless && matches!(found.kind, FoundKind::Directory { .. }))
        {
            return Ok(found);
        }
    }
    Err(ObserveError::Unstable { path: path.clone() })
}

/// Everything that moves when an inode is changed.
fn fingerprint(stat: &Statx) -> (i64, i64, u64, u16, u32, u64) {
    (
        nanos(&stat.stx_ctime),
        nanos(&stat.stx_mtime),
        stat.stx_size,
        stat.stx_mode,
        stat.stx_nlink,
        stat.stx_ino,
    )
}

fn nanos(at: &rustix::fs::StatxTimestamp) -> i64 {
    at.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(at.tv_nsec))
}

/// Waits until the ctime is [`SETTLED`] old. A ctime in the future (the clock was set back) cannot be waited for and
/// proves as much as it can.
fn wait_settled(stat: &Statx) -> bool {
    let ctime = nanos(&stat.stx_ctime);
    let age = crate::model::Time::now().0.saturating_sub(ctime);
    if (-SETTLED..SETTLED).contains(&age) {
        let until = ctime.saturating_add(SETTLED);
        let until =
            rustix::thread::Timespec { tv_sec: until / 1_000_000_000, tv_nsec: until % 1_000_000_000 };
        return rustix::thread::clock_nanosleep_absolute(rustix::thread::ClockId::Realtime, &until).is_ok();
    }
    true
}

fn stat(fd: &impl AsFd, path: &HostPath) -> Result<Statx, ObserveError> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_SYNC_AS_STAT, StatxFlags::BASIC_STATS)
        .map_err(|e| ObserveError::io(path, "stat", e))
}

/// Opens what an `O_PATH` descriptor stands for, by the descriptor.
fn reopen(fd: &impl AsFd, path: &HostPath, more: OFlags) -> Result<OwnedFd, ObserveError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    let reopened = match descriptors() {
        Some(dir) => rustix::fs::openat(dir, fd.as_fd().as_raw_fd().to_string(), flags, Mode::empty()),
        None => rustix::fs::open(proc_path(fd.as_fd()), flags, Mode::empty()),
    };
    reopened.map_err(|e| ObserveError::io(path, "read", e))
}

/// `/proc/self/fd`, opened once: the way there is longer than that to most files. `None` while there is no /proc.
fn descriptors() -> Option<&'static OwnedFd> {
    static DIR: OnceLock<OwnedFd> = OnceLock::new();
    if DIR.get().is_none() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()).ok()?;
        return Some(DIR.get_or_init(|| dir));
    }
    DIR.get()
}

/// The magic link of a descriptor.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// One look; `None` if it moved meanwhile in a way that `stat` may not show.
fn look(
    fd: &OwnedFd,
    path: &HostPath,
    context: &Context,
    as_volume: Option<bool>,
    stat: &Statx,
) -> Result<Option<Found>, ObserveError> {
    let Some(kind) = EntryKind::from_mode(u32::from(stat.stx_mode)) else {
        return Err(ObserveError::io(path, "tell the type", Errno::INVAL));
    };
    let mut open = None;
    let kind = match kind {
        EntryKind::File => {
            let file = open.insert(std::fs::File::from(reopen(fd, path, OFlags::empty())?));
            let Some(content) = hash(file, path, stat.stx_size, context)? else { return Ok(None) };
            FoundKind::File { size: stat.stx_size, content }
        }
        EntryKind::Symlink => {
            let target = rustix::fs::readlinkat(fd, c"", Vec::new())
                .map_err(|e| ObserveError::io(path, "read the link", e))?;
            FoundKind::Symlink { target: target.into_bytes().into() }
        }
        EntryKind::Directory => {
            let dir = reopen(fd, path, OFlags::DIRECTORY)?;
            let names = list(&dir, path)?;
            if as_volume == Some(false) {
                FoundKind::Directory { names }
            } else {
                let Some(listing) = with_targets(&dir, path, &names)? else { return Ok(None) };
                if as_volume == Some(true) || volume::is_volume(&listing) {
                    volume_kind(&dir, path, context, &listing)?
                } else {
                    FoundKind::Directory { names }
                }
            }
        }
        other => FoundKind::Special(other),
    };
    Ok(Some(Found {
        path: path.clone(),
        inode: InodeKey::of(stat),
        ctime: nanos(&stat.stx_ctime),
        mtime: nanos(&stat.stx_mtime),
        nlink: u64::from(stat.stx_nlink),
        attributes: Attributes {
            mode: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            xattrs: xattrs(fd, open.as_ref().map(AsFd::as_fd), path)?,
        },
        kind,
    }))
}

fn list(dir: &OwnedFd, path: &HostPath) -> Result<BTreeMap<Box<[u8]>, EntryKind>, ObserveError> {
    let mut names = BTreeMap::new();
    let entries = rustix::fs::Dir::read_from(dir).map_err(|e| ObserveError::io(path, "list", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| ObserveError::io(path, "list", e))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match EntryKind::from_mode(entry.file_type().as_raw_mode()) {
            Some(kind) => kind,
            // The file system does not tell types in its directories.
            None => match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => EntryKind::from_mode(stat.st_mode)
                    .ok_or_else(|| ObserveError::io(&path.join(name), "tell the type", Errno::INVAL))?,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(ObserveError::io(&path.join(name), "stat", e)),
            },
        };
        names.insert(name.into(), kind);
        if names.len() > MAX_NAMES {
            return Err(ObserveError::TooMuch { path: path.clone(), what: "names", limit: MAX_NAMES });
        }
    }
    Ok(names)
}

fn with_targets(
    dir: &OwnedFd,
    path: &HostPath,
    names: &BTreeMap<Box<[u8]>, EntryKind>,
) -> Result<Option<Listing>, ObserveError> {
    let mut listing = Listing::new();
    for (name, kind) in names {
        let target = if *kind == EntryKind::Symlink {
            match rustix::fs::readlinkat(dir, &**name, Vec::new()) {
                Ok(target) => Some(target.into_bytes().into_boxed_slice()),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(e) => return Err(ObserveError::io(&path.join(name), "read the link", e)),
            }
        } else {
            None
        };
        listing.insert(name.clone(), (*kind, target));
    }
    Ok(Some(listing))
}

/// Directories in the root of a volume that are not the publisher's, and have nothing but directories in them. The kubelet makes them where a
/// pod mounts something inside the volume (`nested_volumes.go`, `MakeNestedMountpoints`), as Istio's sidecars do with their revocation list, and
/// for a subPath that the volume has not; what is mounted there is not seen from the host.
fn mount_points(dir: &OwnedFd, path: &HostPath, listing: &Listing) -> Result<Vec<Box<[u8]>>, ObserveError> {
    let mut empty = Vec::new();
    for (name, (kind, _)) in listing {
        if *kind == EntryKind::Directory
            && !name.starts_with(b"..")
            && has_directories_alone(dir, name, &path.join(name), 1)?
        {
            empty.push(name.clone());
        }
    }
    Ok(empty)
}

fn has_directories_alone(
    dir: &OwnedFd,
    name: &[u8],
    at: &HostPath,
    depth: usize,
) -> Result<bool, ObserveError> {
    if depth > MAX_VOLUME_DEPTH {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(inner) => inner,
        // Removed since it was listed: the next look tells.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            return Err(ObserveError::Unstable { path: at.clone() });
        }
        Err(e) => return Err(ObserveError::io(at, "open", e)),
    };
    let names = list(&inner, at)?;
    if names.len() > MAX_NESTED || names.values().any(|kind| *kind != EntryKind::Directory) {
        return Ok(false);
    }
    for name in names.keys() {
        if !has_directories_alone(&inner, name, &at.join(name), depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn volume_kind(
    dir: &OwnedFd,
    path: &HostPath,
    context: &Context,
    listing: &Listing,
) -> Result<FoundKind, ObserveError> {
    let mut listing = listing.clone();
    for name in mount_points(dir, path, &listing)? {
        listing.remove(&name);
    }
    let mut shape = volume::shape(&listing);
    let mut entries = BTreeMap::new();
    if let Some(current) = shape.current.clone() {
        let mut queue = vec![(path.join(&current), current.to_vec(), b".".to_vec(), 0_usize)];
        while let Some((at, from_dir, logical, depth)) = queue.pop() {
            if depth > MAX_VOLUME_DEPTH || entries.len() > MAX_VOLUME_ENTRIES {
                return Err(ObserveError::TooMuch {
                    path: path.clone(),
                    what: "depth or files of a volume",
                    limit: if depth > MAX_VOLUME_DEPTH { MAX_VOLUME_DEPTH } else { MAX_VOLUME_ENTRIES },
                });
            }
            // Below the volume nothing is followed: a link in there is a fault, not a way.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let fd = match rustix::fs::openat2(dir, from_dir.as_slice(), flags, Mode::empty(), resolve) {
                Ok(fd) => fd,
                // Removed since it was listed: the next look tells.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN) => {
                    return Err(ObserveError::Unstable { path: at });
                }
                Err(e) => return Err(ObserveError::io(&at, "open", e)),
            };
            let found = observe_fd(&fd, &at, context, Some(false))?;
            match &found.kind {
                FoundKind::Directory { names } => {
                    for name in names.keys() {
                        let below = if logical == b"." {
                            name.to_vec()
                        } else {
                            [&logical, b"/".as_slice(), name].concat()
                        };
                        queue.push((
                            at.join(name),
                            [&from_dir, b"/".as_slice(), name].concat(),
                            below,
                            depth + 1,
                        ));
                    }
                    if logical == b"." {
                        for name in names.keys() {
                            if !shape.visible.contains(name) && !listing.contains_key(name) {
                                shape.fault(name, "visible link", "nothing");
                            }
                        }
                        for name in shape.visible.clone() {
                            if !names.contains_key(&name) {
                                shape.fault(&name, "a file for the visible link", "nothing");
                            }
                        }
                    }
                }
                FoundKind::File { .. } => {}
                other => {
                    let kind = match other {
                        FoundKind::Symlink { .. } => EntryKind::Symlink,
                        FoundKind::Special(kind) => *kind,
                        _ => EntryKind::Directory,
                    };
                    shape.fault(&logical, "file or directory", kind.as_str());
                }
            }
            entries.insert(logical.into(), found);
        }
    }
    Ok(FoundKind::Volume { shape, entries })
}
