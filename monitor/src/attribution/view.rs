//! cgroup paths as the host names them, however this process's own cgroup namespace shows them.
//!
//! A container without `privileged` has a cgroup namespace of its own: procfs then shows other processes' cgroups
//! relative to the reader's (`/../../system.slice/kubelet.service`), and its own as `/`. The host's hierarchy below
//! the host's root gives the absolute name back: a cgroup v2 id is the inode number of its directory.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::inventory::procs::Proc;

/// Most cgroups that are kept.
const CGROUPS_MAX: usize = 1 << 16;
/// Deepest hierarchy that is walked.
const DEPTH_MAX: usize = 24;
/// Not walked more often than this.
const WALK_EVERY: Duration = Duration::from_secs(1);

/// Names cgroups as the host does.
#[derive(Debug)]
pub struct CgroupView {
    host: PathBuf,
    /// This process's cgroup namespace root, in the host's terms; `None` where that cannot be found out.
    own_root: Option<String>,
    by_id: HashMap<u64, String>,
    /// Controllers are on hierarchies of version 1, where pods are: the unified one, which is all that programs in the kernel tell, says
    /// nothing of them.
    first_version: bool,
    walked: Option<Instant>,
}

impl CgroupView {
    /// Finds out how this process sees cgroups.
    #[must_use]
    pub fn new(host_root: &Path, proc: &Proc) -> Self {
        let host = unified(&host_root.join("sys/fs/cgroup"));
        let mut view = Self {
            host,
            own_root: None,
            by_id: HashMap::new(),
            first_version: proc.has_controllers_of_version_1(),
            walked: None,
        };
        // pid 1 is at the top or in a scope right below it: procfs shows it climbing only from another namespace.
        let foreign = proc.cgroup(1).is_some_and(|path| path.starts_with("/.."));
        view.own_root = if foreign { view.find_own_root() } else { Some("/".to_owned()) };
        view
    }

    /// The path procfs shows, in the host's terms. Unchanged where the own root is not known: it then still begins
    /// with `/..`.
    #[must_use]
    pub fn absolute(&self, shown: &str) -> String {
        let Some(own_root) = &self.own_root else { return shown.to_owned() };
        join(own_root, shown)
    }

    /// Whether what a program in the kernel told of a process's cgroup may hide that it is in a pod.
    #[must_use]
    pub fn may_hide_a_pod(&self, told: Option<&str>) -> bool {
        self.first_version && !told.is_some_and(super::cgroup::in_kubepods)
    }

    /// The path of a cgroup v2 id. Walks the hierarchy if the id is new, at most once a second.
    pub fn path_of(&mut self, id: u64) -> Option<String> {
        if !self.by_id.contains_key(&id) && self.walked.is_none_or(|at| at.elapsed() > WALK_EVERY) {
            self.walk();
        }
        self.by_id.get(&id).cloned()
    }

    fn find_own_root(&mut self) -> Option<String> {
        let own = std::fs::metadata(unified(Path::new("/sys/fs/cgroup"))).ok()?.ino();
        self.path_of(own)
    }

    fn walk(&mut self) {
        self.walked = Some(Instant::now());
        self.by_id.clear();
        let mut pending = vec![(self.host.clone(), String::from("/"), 0)];
        while let Some((dir, path, depth)) = pending.pop() {
            let Ok(meta) = std::fs::symlink_metadata(&dir) else { continue };
            if self.by_id.len() >= CGROUPS_MAX {
                tracing::warn!(
                    limit = CGROUPS_MAX,
                    "more cgroups than are kept: some actors have no cgroup path"
                );
                return;
            }
            self.by_id.insert(meta.ino(), path.clone());
            if depth == DEPTH_MAX {
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let name = entry.file_name();
                    pending.push((entry.path(), join(&path, &name.to_string_lossy()), depth + 1));
                }
            }
        }
    }
}

/// cgroup v2, or its place beside v1 in a hybrid set-up.
fn unified(mount: &Path) -> PathBuf {
    let hybrid = mount.join("unified");
    if hybrid.is_dir() { hybrid } else { mount.to_owned() }
}

fn join(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{CgroupView, join};
    use crate::inventory::procs::Proc;
    use std::collections::HashMap;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn relative_paths_are_made_absolute() {
        let own = "/kubepods.slice/kubepods-pod1.slice/cri-containerd-a.scope";
        assert_eq!(join(own, "/../../../system.slice/kubelet.service"), "/system.slice/kubelet.service");
        assert_eq!(join(own, "/../../kubepods-pod2.slice"), "/kubepods.slice/kubepods-pod2.slice");
        assert_eq!(join(own, "/"), own);
        assert_eq!(join("/", "/a/b"), "/a/b");
    }

    #[test]
    fn what_the_unified_hierarchy_says_is_no_proof_beside_one_of_version_1() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1")).unwrap();
        for (text, hides) in [
            ("0::/init.scope\n", false),
            ("1:name=systemd:/init.scope\n0::/init.scope\n", false),
            ("5:cpuset:/\n1:name=systemd:/init.scope\n0::/init.scope\n", true),
        ] {
            std::fs::write(dir.path().join("1/cgroup"), text).unwrap();
            let view = CgroupView::new(dir.path(), &Proc::new(dir.path()));
            for told in [None, Some("/"), Some("/system.slice/containerd.service")] {
                assert_eq!(view.may_hide_a_pod(told), hides, "{text} {told:?}");
            }
            assert!(!view.may_hide_a_pod(Some("/kubepods/pod1/c")));
        }
    }

    #[test]
    fn ids_are_found_and_unknown_roots_stay_visible() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = dir.path().join("system.slice/kubelet.service");
        std::fs::create_dir_all(&leaf).unwrap();
        let mut view = CgroupView {
            host: dir.path().to_owned(),
            own_root: None,
            by_id: HashMap::new(),
            first_version: false,
            walked: None,
        };
        let id = std::fs::metadata(&leaf).unwrap().ino();
        assert_eq!(view.path_of(id).as_deref(), Some("/system.slice/kubelet.service"));
        assert_eq!(view.path_of(u64::MAX), None);
        assert_eq!(view.absolute("/../x"), "/../x");
    }
}
