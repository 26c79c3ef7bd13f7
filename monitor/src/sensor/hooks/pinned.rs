//! Generations of programs as they lie on the BPF file system: who has one, and how one is taken away.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where generations lie: a directory on the BPF file system.
pub(super) const ROOT: &str = "/sys/fs/bpf/meshseal";

/// All generations of programs that lie on the BPF file system, none of them an agent's that runs.
#[derive(Debug)]
pub struct Pinned {
    root: PathBuf,
    held: Vec<(PathBuf, File)>,
}

impl Pinned {
    /// Takes hold of all of them, so that no agent can adopt one.
    ///
    /// # Errors
    /// The one that an agent has, or that cannot be opened.
    pub fn all() -> Result<Self, String> {
        Self::below(Path::new(ROOT))
    }

    fn below(root: &Path) -> Result<Self, String> {
        let mut held = Vec::new();
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let dir = entry.path();
            let lock = lock(&dir).map_err(|_| dir.display().to_string())?;
            held.push((dir, lock));
        }
        Ok(Self { root: root.to_path_buf(), held })
    }

    /// Unpins them, which ends their programs, and removes the directory they lie in; tells how many there were.
    ///
    /// # Errors
    /// What is still there.
    pub fn remove(self) -> Result<usize, String> {
        for (dir, _lock) in &self.held {
            remove(dir);
            if dir.exists() {
                return Err(format!("{}: not unpinned", dir.display()));
            }
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", self.root.display()))
            }
            _ => Ok(self.held.len()),
        }
    }
}

/// Says that a generation is in use; an error where it is already.
pub(super) fn lock(dir: &Path) -> std::io::Result<File> {
    let file = File::open(dir)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Unpins a generation.
pub(super) fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(%error, pin = %entry.path().display(), "not unpinned");
        }
    }
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, dir = %dir.display(), "not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::{Pinned, lock};
    use std::fs;

    #[test]
    fn generations_are_unpinned_unless_an_agent_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("meshseal");
        for generation in ["A", "B"] {
            fs::create_dir_all(root.join(generation)).unwrap();
            fs::write(root.join(generation).join("file_open"), "").unwrap();
        }
        let held = lock(&root.join("B")).unwrap();
        assert_eq!(Pinned::below(&root).unwrap_err(), root.join("B").display().to_string());
        assert!(root.join("A/file_open").exists());
        drop(held);
        assert_eq!(Pinned::below(&root).unwrap().remove().unwrap(), 2);
        assert!(!root.exists());
        assert_eq!(Pinned::below(&root).unwrap().remove().unwrap(), 0);
    }
}
