//! A directory for canaries, that goes away with its owner.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct TempDir(PathBuf);

impl TempDir {
    /// Makes it below `parent`, for root alone.
    pub(super) fn new(parent: &Path) -> std::io::Result<Self> {
        let path = parent.join(format!(".meshseal-canary-{}", std::process::id()));
        // Left over by a run that was killed.
        if path.symlink_metadata().is_ok() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "canary directory not removed");
        }
    }
}
