//! Who has a file open for writing, or mapped shared and writable: descriptors and mappings from before a watch are
//! writers that no hook saw open it.
//!
//! The kernel's own count decides. `F_SETLEASE` with `F_RDLCK` is refused with `EAGAIN` while `i_writecount` is above
//! zero (`check_conflicting_open` in fs/locks.c, since 2.6): that counts descriptors in flight, fixed files of io_uring
//! and files that only a mapping keeps open as well, and needs no scan. Only where it says that there is a writer is
//! /proc read to name it; a writer that /proc does not show has no name.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::procs::{Proc, read};
use crate::model::InodeKey;

/// include/uapi/asm-generic/fcntl.h; the `libc` crate does not have it.
const F_SETSIG: libc::c_int = 10;
/// Longest `maps` of one process that is read, in bytes.
const MAPS_MAX: u64 = 16 << 20;
/// How old a list of holders may be for a writer that stands in it.
const FRESH: Duration = Duration::from_secs(1);
/// How often it is looked again for a writer that is counted and not found: it may be on its way out.
const TRIES: u32 = 3;

/// How a process holds a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A mapping that could be made writable: shared, of a file that was opened for writing.
    SharedMapping,
    /// A descriptor that may write.
    Descriptor,
    /// A shared, writable mapping: its stores pass no hook.
    Mapping,
}

/// A process that holds a file for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// How.
    pub way: Way,
}

/// Who can write to an inode without opening it again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Processes that /proc shows, each with the way that reaches furthest.
    pub holders: Vec<Holder>,
    /// The kernel counts a writer that /proc does not show.
    pub unknown: bool,
}

impl Held {
    /// Somebody has it, or may have it, mapped writable.
    #[must_use]
    pub fn mapped(&self) -> bool {
        self.unknown || self.holders.iter().any(|holder| holder.way != Way::Descriptor)
    }

    /// Nobody has it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        !self.unknown && self.holders.is_empty()
    }
}

/// Holders by inode, as /proc showed them last.
#[derive(Debug, Default)]
pub struct Handles {
    proc: Proc,
    last: Mutex<Option<Scan>>,
}

#[derive(Debug)]
struct Scan {
    begun: Instant,
    holders: HashMap<InodeKey, Vec<Holder>>,
}

impl Handles {
    /// As this procfs shows them; it must be the host's.
    #[must_use]
    pub fn new(proc: Proc) -> Self {
        Self { proc, last: Mutex::new(None) }
    }

    /// Who can write to the inode of `file`, which must be open for reading. Reads all of /proc where somebody can;
    /// costs two system calls where nobody can.
    ///
    /// # Errors
    /// The file system knows no leases (then nothing can be said), or `file` cannot be looked at.
    pub fn of(&self, file: &impl AsFd) -> io::Result<Held> {
        let key = key_of(file)?;
        for attempt in 1..=TRIES {
            if !has_writer(file)? {
                return Ok(Held::default());
            }
            let mut holders = self.holders(key, attempt == 1)?;
            let sure = |holder: &Holder| holder.way != Way::SharedMapping;
            if holders.iter().any(sure) {
                holders.retain(sure);
            }
            if !holders.is_empty() {
                return Ok(Held { holders, unknown: false });
            }
        }
        Ok(Held { holders: Vec::new(), unknown: true })
    }

    fn holders(&self, key: InodeKey, may_be_older: bool) -> io::Result<Vec<Holder>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.as_ref().filter(|scan| may_be_older && scan.begun.elapsed() < FRESH);
        if let Some(known) = fresh.and_then(|scan| scan.holders.get(&key)) {
            return Ok(known.clone());
        }
        let begun = Instant::now();
        let holders = scan(&self.proc)?;
        let found = holders.get(&key).cloned().unwrap_or_default();
        *last = Some(Scan { begun, holders });
        Ok(found)
    }
}

/// Whether anybody has the inode open for writing, by the kernel's count.
fn has_writer(file: &impl AsFd) -> io::Result<bool> {
    let fd = file.as_fd().as_raw_fd();
    let fcntl = |command, argument: libc::c_int| {
        // SAFETY: a live descriptor, and commands that take a number.
        let done = unsafe { libc::fcntl(fd, command, argument) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // Whoever opens it for writing in between waits until the lease is given back, and the kernel tells the holder by
    // a signal: one that nobody minds, since SIGIO would end the process.
    fcntl(F_SETSIG, libc::SIGURG)?;
    match fcntl(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => {
            fcntl(libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(false)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

fn key_of(file: &impl AsFd) -> io::Result<InodeKey> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    Ok(InodeKey::of(&stat))
}

/// The inode behind a link of procfs, without asking a server for what it is like now.
fn linked(path: &Path) -> Option<InodeKey> {
    let flags = AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(CWD, path, flags, StatxFlags::INO).ok().map(|stat| InodeKey::of(&stat))
}

/// All that can write without opening again, but the agent itself.
fn scan(proc: &Proc) -> io::Result<HashMap<InodeKey, Vec<Holder>>> {
    let mut all: HashMap<InodeKey, Vec<Holder>> = HashMap::new();
    let own = std::process::id();
    for pid in proc.pids()?.into_iter().filter(|pid| *pid != own) {
        let mut add = |key: InodeKey, way: Way| {
            let holders = all.entry(key).or_default();
            match holders.iter_mut().find(|holder| holder.pid == pid) {
                Some(known) => known.way = known.way.max(way),
                None => holders.push(Holder { pid, way }),
            }
        };
        // Whoever is gone by now holds nothing.
        for link in std::fs::read_dir(proc.path(pid, "fd")).into_iter().flatten().filter_map(Result::ok) {
            use std::os::unix::fs::PermissionsExt as _;
            // The link's own mode tells how the file was opened.
            let writes = link.metadata().is_ok_and(|link| link.permissions().mode() & 0o200 != 0);
            if let Some(key) = writes.then(|| linked(&link.path())).flatten() {
                add(key, Way::Descriptor);
            }
        }
        let maps = read(&proc.path(pid, "maps"), MAPS_MAX).unwrap_or_default();
        for (range, writable) in maps.split(|byte| *byte == b'\n').filter_map(shared_mapping) {
            let way = if writable { Way::Mapping } else { Way::SharedMapping };
            if let Some(key) = linked(&proc.path(pid, "map_files").join(range)) {
                add(key, way);
            }
        }
    }
    Ok(all)
}

/// Of a line of `maps` that tells of a shared mapping of a file: its range, and whether it is writable.
fn shared_mapping(line: &[u8]) -> Option<(&str, bool)> {
    let line = std::str::from_utf8(line.get(..line.len().min(256))?)
        .or_else(|error| std::str::from_utf8(line.get(..error.valid_up_to()).unwrap_or_default()))
        .ok()?;
    let mut fields = line.split_ascii_whitespace();
    let (range, mode) = (fields.next()?, fields.next()?.as_bytes());
    let inode = fields.nth(2)?;
    (mode.get(3) == Some(&b's') && inode != "0").then(|| (range, mode.get(1) == Some(&b'w')))
}

/// What the fuzzers give to the reader of `maps`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(bytes: &[u8]) {
    bytes.split(|byte| *byte == b'\n').for_each(|line| crate::fuzz::used(shared_mapping(line)));
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write as _;
    use std::process::{Child, Command, Stdio};

    use super::{Handles, Held, Holder, Way, shared_mapping};

    /// `sh` with the file open for writing, in a state in which it waits.
    fn shell_that_holds(path: &std::path::Path) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", "exec 3<>\"$0\"; echo; read line"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut one = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut one).unwrap();
        child
    }

    #[test]
    fn a_writer_is_found_and_its_end_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f\n");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        let handles = Handles::default();
        assert_eq!(handles.of(&file).unwrap(), Held::default());
        let mut child = shell_that_holds(&path);
        let holder = Holder { pid: child.id(), way: Way::Descriptor };
        let held = handles.of(&file).unwrap();
        assert_eq!(held, Held { holders: vec![holder], unknown: false });
        assert!(!held.mapped());
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        assert!(handles.of(&file).unwrap().is_empty());
    }

    /// This process is left out of the scan, so what it holds is counted and not found.
    #[test]
    fn a_writer_that_is_not_shown_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        let held = Handles::default().of(&File::open(&path).unwrap()).unwrap();
        assert_eq!(held, Held { holders: Vec::new(), unknown: true });
        assert!(held.mapped());
        drop(writer);
    }

    #[test]
    fn shared_mappings_of_files_are_told_apart() {
        let line = |text: &'static str| shared_mapping(text.as_bytes());
        assert_eq!(line("7f00-7f01 rw-s 00000000 fe:00 77   /x"), Some(("7f00-7f01", true)));
        assert_eq!(line("7f00-7f01 r--s 00000000 fe:00 77   /a b"), Some(("7f00-7f01", false)));
        assert_eq!(line("7f00-7f01 rw-p 00000000 fe:00 77   /x"), None);
        assert_eq!(line("7f00-7f01 rw-s 00000000 00:00 0"), None);
        assert_eq!(line(""), None);
        assert_eq!(shared_mapping(b"7f00-7f01 rw-s 0 fe:00 77 /\xff"), Some(("7f00-7f01", true)));
    }
}
