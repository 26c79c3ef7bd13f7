//! The cache: what xtask downloads or builds for itself, outside the checkout, keyed by version.
//!
//! `$XDG_CACHE_HOME/meshseal` or `~/.cache/meshseal`. An entry is a directory `<name>/<version>`; it is filled under another name and
//! renamed into place when whole, so that its presence is the mark of being done, and a killed run leaves nothing
//! that looks finished. A lock file beside it lets one run fill an entry while another waits for it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::cmd::say;

/// The cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Held while one run works on one entry; released on drop, or by the kernel when the run is killed.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub(crate) struct Lock {
    _file: File,
}

impl Cache {
    /// The user's cache, created where it is missing.
    pub(crate) fn open() -> Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute())
        {
            Some(dir) => dir,
            None => match std::env::var_os("HOME").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
                Some(home) => home.join(".cache"),
                None => bail!("no place for the cache: set HOME or XDG_CACHE_HOME to an absolute path"),
            },
        };
        Self::at(base.join("meshseal"))
    }

    fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot create the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// A directory of the cache that is kept up to date in place (package lists, for example). Take [`Cache::lock`] to write.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits for the lock of that name; says so when another run holds it.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock> {
        let dir = self.dir("locks")?;
        let path = dir.join(format!("{}.lock", name.replace('/', "_")));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            say!("waiting for another run that works on {name}");
            flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(Lock { _file: file })
    }

    /// The directory of `name` at `version`, filled by `fill` (in a directory given to it) if it is not there yet.
    pub(crate) fn entry(
        &self,
        name: &str,
        version: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if version.is_empty() || version.contains('/') || version.starts_with('.') {
            bail!("{version:?} cannot key an entry of the cache");
        }
        let parent = self.dir(name)?;
        let done = parent.join(version);
        if done.is_dir() {
            return Ok(done);
        }
        let _lock = self.lock(&format!("{name}-{version}"))?;
        if done.is_dir() {
            return Ok(done);
        }
        let unfinished = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot create a directory in {}", parent.display()))?;
        let filled = unfinished.path().join("entry");
        fs::create_dir(&filled).with_context(|| format!("cannot create {}", filled.display()))?;
        fill(&filled).with_context(|| format!("cannot provide {name} {version}"))?;
        fs::rename(&filled, &done).with_context(|| format!("cannot move {name} {version} into the cache"))?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("meshseal")).unwrap();
        (dir, cache)
    }

    #[test]
    fn an_entry_is_filled_once() {
        let (_dir, cache) = cache();
        let first = cache.entry("tool", "1.0", |dir| Ok(fs::write(dir.join("a"), "one")?)).unwrap();
        let second = cache.entry("tool", "1.0", |_| bail!("must not run again")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("a")).unwrap(), "one");
    }

    #[test]
    fn a_failed_fill_leaves_nothing_that_looks_done() {
        let (_dir, cache) = cache();
        let error = cache
            .entry("tool", "1.0", |dir| {
                fs::write(dir.join("half"), "")?;
                bail!("no network")
            })
            .unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot provide tool 1.0: no network");
        assert_eq!(fs::read_dir(cache.dir("tool").unwrap()).unwrap().count(), 0);
        cache.entry("tool", "1.0", |dir| Ok(fs::write(dir.join("whole"), "")?)).unwrap();
    }

    #[test]
    fn two_runs_fill_one_entry_once() {
        let (_dir, cache) = cache();
        let fills = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache
                        .entry("tool", "2.0", |_| {
                            fills.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap()
                });
            }
        });
        assert_eq!(fills.into_inner(), 1);
    }

    #[test]
    fn a_version_cannot_leave_the_cache() {
        let (_dir, cache) = cache();
        for bad in ["", "../x", ".hidden", "a/b"] {
            assert!(cache.entry("tool", bad, |_| Ok(())).is_err(), "{bad:?}");
        }
    }
}
