//! Kubelets that come after another: one program restarted, or another after an upgrade.
//!
//! The first proof fixes what the kubelet is. Another executable takes its place only where it could not be told from an upgrade by whoever
//! administers the node: no kubelet that is known runs any more; the new one passes the whole proof, in the same cgroup; and it is the file
//! that stands where the one before stood (or beside it, where a version is part of the path), which nobody but root can have put there. That it
//! did is recorded. What merely looks like a kubelet while there is one, elsewhere, or in another cgroup, is none.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::inodes;
use super::writers::Proven;
use crate::attribution::below_root;
use crate::model::{HostPath, InodeKey};

/// How long one that ended is known: longer than its last acts may wait to be judged.
const KEPT: Duration = Duration::from_secs(300);
/// Others than their owner may write (`S_IWGRP`, `S_IWOTH`).
const OTHERS_WRITE: u32 = 0o022;
/// Only the owner of an entry may rename it (`S_ISVTX`).
const STICKY: u32 = 0o1000;

/// What the kubelet is, whichever process it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) exe: InodeKey,
    pub(super) exe_path: HostPath,
    pub(super) cgroup: String,
}

impl Fixed {
    pub(super) fn of(proven: &Proven) -> Self {
        Self { exe: proven.exe, exe_path: proven.exe_path.clone(), cgroup: proven.cgroup.clone() }
    }

    pub(super) fn is(&self, proven: &Proven) -> bool {
        self.exe == proven.exe && self.cgroup == proven.cgroup
    }

    /// Why `other`, which passed the whole proof, does not follow on it.
    fn refuses(&self, host_root: &Path, other: &Proven) -> Option<String> {
        if other.cgroup != self.cgroup {
            return Some(format!("is in cgroup {}, not in {}", other.cgroup, self.cgroup));
        }
        if !is_beside(&self.exe_path, &other.exe_path) {
            return Some(format!("stands elsewhere than {}", self.exe_path));
        }
        (!is_roots(host_root, other))
            .then(|| "is not at its path, or others than root may have put it there".to_owned())
    }
}

/// Kubelets that ended.
#[derive(Debug, Default)]
pub(super) struct Former(Vec<(Proven, Instant)>);

impl Former {
    /// Takes note of those that run no more.
    pub(super) fn note(&mut self, before: &[Proven], now: &[Proven]) {
        self.0.retain(|(_, since)| since.elapsed() < KEPT);
        let ended = before.iter().filter(|one| !now.contains(one));
        self.0.extend(ended.map(|one| (one.clone(), Instant::now())));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Proven> {
        self.0.iter().map(|(one, _)| one)
    }
}

/// The one that follows where none that is known runs; else why not, for each.
pub(super) fn successor(
    host_root: &Path,
    fixed: &Fixed,
    known_run: bool,
    others: &[Proven],
) -> Result<Fixed, Vec<String>> {
    let told = |one: &Proven, why: &str| {
        format!(
            "pid {} looks like a kubelet, and is not the one that is known: {} {why}",
            one.tgid, one.exe_path
        )
    };
    if known_run {
        return Err(others.iter().map(|one| told(one, "runs beside it")).collect());
    }
    let refused: Vec<String> =
        others.iter().filter_map(|one| Some(told(one, &fixed.refuses(host_root, one)?))).collect();
    let mut fit = others.iter().filter(|one| fixed.refuses(host_root, one).is_none());
    match (fit.next(), fit.next()) {
        (Some(one), None) => Ok(Fixed::of(one)),
        (Some(one), Some(other)) if one.exe == other.exe => Ok(Fixed::of(one)),
        (None, _) => Err(refused),
        // Which of them is the upgrade nobody can say.
        (Some(_), Some(_)) => Err(others.iter().map(|one| told(one, "is not the only one")).collect()),
    }
}

/// The same path, or one that differs in a single directory: that of a version.
fn is_beside(known: &HostPath, other: &HostPath) -> bool {
    let parts = |path: &HostPath| -> Vec<Vec<u8>> {
        let bytes = path.as_bytes();
        let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        bytes.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
    };
    let (known, other) = (parts(known), parts(other));
    let differ = known.iter().zip(&other).filter(|(a, b)| a != b).count();
    known.len() == other.len() && known.last() == other.last() && differ <= 1
}

/// It runs the file that stands at its path, and only root can have put it there.
fn is_roots(host_root: &Path, proven: &Proven) -> bool {
    let path = below_root(host_root, &proven.exe_path);
    let Ok(file) = std::fs::File::open(&path) else { return false };
    let Ok(meta) = file.metadata() else { return false };
    // That of the host's root itself, which is root.
    let Ok(root) = std::fs::metadata(host_root).map(|meta| meta.uid()) else { return false };
    let is_it = meta.is_file() && inodes::of(&file).ok() == Some(proven.exe);
    let guarded = |meta: &std::fs::Metadata| {
        meta.uid() == root && (meta.mode() & OTHERS_WRITE == 0 || meta.is_dir() && meta.mode() & STICKY != 0)
    };
    let mut above = path.ancestors().skip(1).take_while(|dir| dir.starts_with(host_root));
    is_it && guarded(&meta) && above.all(|dir| std::fs::metadata(dir).is_ok_and(|meta| guarded(&meta)))
}

#[cfg(test)]
mod tests {
    use super::is_beside;
    use crate::model::HostPath;

    #[test]
    fn a_version_may_be_part_of_the_path() {
        let beside = |a: &str, b: &str| is_beside(&HostPath::from(a), &HostPath::from(b));
        assert!(beside("/usr/bin/kubelet", "/usr/bin/kubelet"));
        assert!(beside("/usr/bin/kubelet (deleted)", "/usr/bin/kubelet"));
        assert!(beside("/snap/microk8s/7000/kubelite", "/snap/microk8s/7100/kubelite"));
        assert!(!beside("/usr/bin/kubelet", "/tmp/kubelet"));
        assert!(!beside("/usr/bin/kubelet", "/tmp/bin/kubelet/kubelet"));
        assert!(!beside("/usr/local/bin/kubelet", "/opt/evil/bin/kubelet"));
        assert!(!beside("/usr/bin/kubelet", "/usr/bin/kubelet2"));
    }
}
