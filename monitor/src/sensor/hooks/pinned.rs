//! Generations of programs as they lie on the BPF file system: who has one, and how one is taken away.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where generations lie: a directory on the BPF file system.
pub(super) const ROOT: &str = "/sys/fs/bpf/meshseal";

/// All generations of programs that lie on the BPF file system, none of them an agent's that runs.
#[derive(Debug)]
pub struct Pinned {
    root: PathBuf,
    held: Vec<(PathBuf, File)>,
    /// What lies there and is no generation.
    foreign: Vec<Left>,
}

/// What is still there, and why.
pub(super) type Left = (PathBuf, String);

/// What became of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpinned {
    /// Generations whose programs ended.
    pub generations: usize,
    /// What is left where they lay.
    pub left: Vec<Left>,
}

/// Why a generation cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("an agent that runs has it")]
    InUse,
    #[error("not a generation of an agent's")]
    NotAGeneration,
    #[error(transparent)]
    Io(std::io::Error),
}

impl Pinned {
    /// Takes hold of all of them, so that no agent can adopt one.
    ///
    /// # Errors
    /// The one that an agent has, or that cannot be opened, and which of the two.
    pub fn all() -> Result<Self, Left> {
        Self::below(Path::new(ROOT))
    }

    fn below(root: &Path) -> Result<Self, Left> {
        let mut out = Self { root: root.to_path_buf(), held: Vec::new(), foreign: Vec::new() };
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(out),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                out.foreign.push((out.root.clone(), Refused::NotAGeneration.to_string()));
                return Ok(out);
            }
            Err(error) => return Err((out.root, error.to_string())),
        };
        for entry in entries.flatten() {
            let dir = entry.path();
            match lock(&dir) {
                Ok(lock) => out.held.push((dir, lock)),
                Err(none @ Refused::NotAGeneration) => out.foreign.push((dir, none.to_string())),
                Err(refused) => return Err((dir, refused.to_string())),
            }
        }
        Ok(out)
    }

    /// Unpins them, which ends their programs, and removes the directory they lie in if nothing else lies there.
    #[must_use]
    pub fn remove(self) -> Unpinned {
        let mut unpinned = Unpinned { generations: 0, left: self.foreign };
        for (dir, _lock) in &self.held {
            let left = remove(dir).err().unwrap_or_default();
            // A directory is no pin of an agent's.
            unpinned.generations += usize::from(left.iter().all(|(path, _)| path != dir && path.is_dir()));
            unpinned.left.extend(left);
        }
        if unpinned.left.is_empty()
            && let Err(error) = fs::remove_dir(&self.root)
            && error.kind() != ErrorKind::NotFound
        {
            unpinned.left.push((self.root, error.to_string()));
        }
        unpinned.left.sort();
        unpinned
    }
}

/// Says that a generation is in use; an error where it is already.
pub(super) fn lock(dir: &Path) -> Result<File, Refused> {
    use std::os::unix::fs::OpenOptionsExt as _;

    // A pin is not opened: that tells nothing, and fails in ways of its own.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file =
        File::options().read(true).custom_flags(flags).open(dir).map_err(|error| match error.kind() {
            ErrorKind::NotADirectory => Refused::NotAGeneration,
            _ => Refused::Io(error),
        })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refused::InUse),
        Err(error) => Err(Refused::Io(error.into())),
    }
}

/// Unpins a generation.
///
/// # Errors
/// What of it is still there, and why; all else is gone.
pub(super) fn remove(dir: &Path) -> Result<(), Vec<Left>> {
    let mut left = Vec::new();
    let mut keep = |path: &Path, done: std::io::Result<()>| match done {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            left.push((path.to_path_buf(), error.to_string()));
        }
        _ => {}
    };
    match fs::read_dir(dir) {
        Err(error) => keep(dir, Err(error)),
        Ok(entries) => {
            for entry in entries.flatten() {
                let path = entry.path();
                // What lies in a directory is not the agent's: it pins none.
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                keep(&path, if is_dir { fs::remove_dir(&path) } else { fs::remove_file(&path) });
            }
        }
    }
    if left.is_empty() {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                left.push((dir.to_path_buf(), error.to_string()));
            }
            _ => {}
        }
    }
    if left.is_empty() { Ok(()) } else { Err(left) }
}

/// What is left, in one line: the first few, by name.
pub(super) fn told(left: &[Left]) -> String {
    const TOLD: usize = 3;
    let mut told: Vec<String> = left
        .iter()
        .take(TOLD)
        .map(|(path, why)| format!("{}: {why}", path.file_name().unwrap_or_default().to_string_lossy()))
        .collect();
    if left.len() > TOLD {
        told.push(format!("and {} more", left.len() - TOLD));
    }
    told.join("; ")
}

/// Logs what is left, where nobody can be told of it.
pub(super) fn warn_of(removed: Result<(), Vec<Left>>) {
    for (path, why) in removed.err().unwrap_or_default() {
        tracing::warn!(path = %path.display(), why, "not unpinned");
    }
}

#[cfg(test)]
mod tests {
    use super::{Pinned, Unpinned, lock};
    use std::fs;
    use std::path::PathBuf;

    const FOREIGN: &str = "not a generation of an agent's";

    #[test]
    fn generations_are_unpinned_unless_an_agent_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("meshseal");
        for generation in ["A", "B"] {
            fs::create_dir_all(root.join(generation)).unwrap();
            fs::write(root.join(generation).join("file_open"), "").unwrap();
        }
        let held = lock(&root.join("B")).unwrap();
        assert_eq!(
            Pinned::below(&root).unwrap_err(),
            (root.join("B"), "an agent that runs has it".to_owned())
        );
        assert!(root.join("A/file_open").exists());
        drop(held);
        assert_eq!(Pinned::below(&root).unwrap().remove(), Unpinned { generations: 2, left: Vec::new() });
        assert!(!root.exists());
        assert_eq!(Pinned::below(&root).unwrap().remove(), Unpinned { generations: 0, left: Vec::new() });
    }

    #[test]
    fn what_is_not_an_agents_is_left_and_named_and_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("meshseal");
        let at = |name: &str| root.join(name);
        let left = |all: &[(PathBuf, &str)]| {
            all.iter().map(|(path, why)| (path.clone(), (*why).to_owned())).collect::<Vec<_>>()
        };
        fs::create_dir_all(at("A/inode_rename/pin")).unwrap();
        fs::create_dir_all(at("A/empty")).unwrap();
        fs::write(at("A/file_open"), "").unwrap();
        fs::write(at("mine"), "").unwrap();
        std::os::unix::fs::symlink("A", at("to")).unwrap();
        let unpinned = Pinned::below(&root).unwrap().remove();
        let not_empty = "Directory not empty (os error 39)";
        let expected = left(&[(at("A/inode_rename"), not_empty), (at("mine"), FOREIGN), (at("to"), FOREIGN)]);
        assert_eq!(unpinned, Unpinned { generations: 1, left: expected });
        assert!(!at("A/file_open").exists() && at("A/inode_rename/pin").exists() && at("mine").exists());
        fs::remove_dir_all(&root).unwrap();
        fs::write(&root, "").unwrap();
        let unpinned = Pinned::below(&root).unwrap().remove();
        assert_eq!(unpinned, Unpinned { generations: 0, left: left(&[(root.clone(), FOREIGN)]) });
    }
}
