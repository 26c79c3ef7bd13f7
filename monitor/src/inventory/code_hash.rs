//! The hash of a file that became code, while there is still something of it to read.
//!
//! The process that runs it has it as its executable, or mapped; else it lies where it was told of. Only the very inode counts, so
//! that neither another file that was put in its place nor a process with the same number is taken for it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::inodes;
use super::procs::{Proc, read};
use crate::attribution::ExeHashes;
use crate::model::{InodeKey, Observation};

/// Files larger than this are not hashed, in bytes.
const SIZE_MAX: u64 = 64 << 20;
/// Bytes that are read in one [`PERIOD`]: whoever makes much code must not keep the judge from its work.
const BUDGET: u64 = 256 << 20;
const PERIOD: Duration = Duration::from_secs(1);
/// Longest list of mappings that is read, in bytes.
const MAPS_MAX: u64 = 4 << 20;
/// Mappings that are looked at, of those that may be of the file.
const MAPPINGS_MAX: usize = 64;

/// Hashes of files that became code, kept.
#[derive(Debug)]
pub(super) struct CodeHashes(Mutex<State>);

#[derive(Debug)]
struct State {
    hashes: ExeHashes,
    since: Instant,
    left: u64,
}

impl CodeHashes {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { hashes: ExeHashes::default(), since: Instant::now(), left: BUDGET }))
    }

    /// The hash of what `observation` tells of; `None` if it can be read no more, is too large, or too much was read just now.
    pub(super) fn of(&self, proc: &Proc, observation: &Observation, places: &[PathBuf]) -> Option<String> {
        let inode = observation.inode?;
        let pid = observation.actor.as_ref().ok().map(|actor| actor.tgid);
        let file = pid
            .and_then(|pid| open(&proc.path(pid, "exe"), inode).or_else(|| mapped(proc, pid, inode)))
            .or_else(|| places.iter().find_map(|place| open(place, inode)))?;
        let meta = file.metadata().ok()?;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.elapsed() > PERIOD {
            (state.since, state.left) = (Instant::now(), BUDGET);
        }
        if meta.len() > SIZE_MAX {
            return None;
        }
        state.left = state.left.checked_sub(meta.len())?;
        state.hashes.of_file(file, &meta)
    }
}

/// Opens what stands at a path for reading, if it is that inode and a regular file.
fn open(path: &Path, inode: InodeKey) -> Option<File> {
    // Nothing is opened for reading before it is known what it is: a pipe would wait, a device might act.
    let there = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let is_file = File::from(there.try_clone().ok()?).metadata().ok()?.is_file();
    if !is_file || inodes::of(&there).ok()? != inode {
        return None;
    }
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&there));
    File::open(link).ok()
}

/// Opens what a process has mapped, if one of its mappings is of that inode.
fn mapped(proc: &Proc, pid: u32, inode: InodeKey) -> Option<File> {
    let maps = read(&proc.path(pid, "maps"), MAPS_MAX).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let mappings: Vec<(&str, bool, u64)> = maps.lines().filter_map(mapping).collect();
    // The number is another one where the file system has two for a file; then it is among what is code.
    let same = mappings.iter().filter(|(.., ino)| *ino == inode.ino);
    let code = mappings.iter().filter(|(_, code, ino)| *code && *ino != inode.ino);
    let mut candidates = same.chain(code).take(MAPPINGS_MAX);
    candidates.find_map(|(range, ..)| open(&proc.path(pid, &format!("map_files/{range}")), inode))
}

/// Of a line of /proc/PID/maps that tells of a file: the range, whether it is code, and the number of the inode. Zeros at the
/// beginning of an address are not in the names of `map_files`.
fn mapping(line: &str) -> Option<(&str, bool, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, mode) = (fields.next()?, fields.next()?);
    let ino: u64 = fields.nth(2)?.parse().ok()?;
    (ino != 0).then_some((range, mode.contains('x'), ino))
}

/// What the fuzzers give to the reader of `maps`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(text: &str) {
    text.lines().for_each(|line| crate::fuzz::used(mapping(line)));
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::inventory::code::tests::loaded;
    use crate::model::Actor;

    fn hash(bytes: &[u8]) -> Option<String> {
        Some(hex::encode(Sha256::digest(bytes)))
    }

    fn own(inode: InodeKey) -> Observation {
        let mut observation = loaded(inode, "/x", 1);
        let actor: Actor = Proc::default().actor(std::process::id()).unwrap();
        observation.actor = Ok(Box::new(actor));
        observation
    }

    #[test]
    fn a_file_that_lies_where_it_was_is_hashed_and_another_one_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("code"), dir.path().join("other"));
        std::fs::write(&path, "code").unwrap();
        std::fs::write(&other, "other").unwrap();
        let inode = inodes::at(&path).unwrap();
        let hashes = CodeHashes::new();
        let at = |places: &[PathBuf]| hashes.of(&Proc::default(), &own(inode), places);
        assert_eq!(at(&[other.clone(), path.clone()]), hash(b"code"));
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(at(&[path, dir.path().join("gone")]), None);
    }

    #[test]
    fn too_large_and_too_much_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("code");
        let file = File::create_new(&path).unwrap();
        let inode = inodes::at(&path).unwrap();
        let hashes = CodeHashes::new();
        let at = || hashes.of(&Proc::default(), &own(inode), std::slice::from_ref(&path));
        file.set_len(SIZE_MAX + 1).unwrap();
        assert_eq!(at(), None);
        file.set_len(8).unwrap();
        hashes.0.lock().unwrap().left = 7;
        assert_eq!(at(), None);
        hashes.0.lock().unwrap().left = 8;
        assert_eq!(at(), hash(&[0; 8]));
    }

    #[test]
    fn what_has_no_name_any_more_is_read_from_who_has_it_mapped() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"in memory").unwrap();
        let inode = inodes::of(&file).unwrap();
        // SAFETY: a new mapping where the kernel likes, not touched.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), 9, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        assert_ne!(page, libc::MAP_FAILED);
        drop(file);
        let hashes = CodeHashes::new();
        assert_eq!(hashes.of(&Proc::default(), &own(inode), &[]), hash(b"in memory"));
        // SAFETY: the mapping made above.
        assert_eq!(unsafe { libc::munmap(page, 9) }, 0);
        assert_eq!(CodeHashes::new().of(&Proc::default(), &own(inode), &[]), None);
    }

    #[test]
    fn a_running_programs_own_file_is_hashed() {
        let inode = inodes::at(Path::new("/proc/self/exe")).unwrap();
        let size = std::fs::metadata("/proc/self/exe").unwrap().len();
        let expected = hash(&std::fs::read("/proc/self/exe").unwrap()).filter(|_| size <= SIZE_MAX);
        assert_eq!(CodeHashes::new().of(&Proc::default(), &own(inode), &[]), expected);
    }

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f00-7f01 r-xp 00000000 fe:00 77                 /lib/a b.so";
        assert_eq!(mapping(line), Some(("7f00-7f01", true, 77)));
        assert_eq!(mapping("7f00-7f01 rw-p 00000000 00:00 0 [heap]"), None);
        assert_eq!(mapping("7f00"), None);
    }
}
