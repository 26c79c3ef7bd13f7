//! Whether a file that a sealed program loads as code, or executes, came with it.
//!
//! A program is sealed by itself; the libraries it needs seldom are. What its container's image brought is taken for its own, as
//! the image is what was deployed; so are, outside of overlays, the system's own libraries and programs, while only root may
//! write them. Anything else is foreign: what has no name (a memfd, a deleted file), what was made or changed in the container
//! (the upper layer), a file of a volume, a temporary directory, another container.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::code_hash::CodeHashes;
use super::layers::Layers;
use super::mount_table::{KeptTable, MountTable};
use super::mounts::Mounts;
use super::procs::{Proc, kernel_dev};
use crate::model::{Actor, HostPath, InodeKey, Observation};

/// Why a file of the layer of changes is foreign.
const MADE_HERE: &str = "is not its image's: it was made or changed in the container";

/// Where a system keeps its libraries and programs (file-hierarchy(7)).
const SYSTEM: [&str; 13] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libx32",
    "/usr/libexec",
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/sbin",
];
/// File systems that may be the system's: where their roots are mounted.
const SYSTEM_MOUNTS: [&str; 2] = ["/", "/usr"];

/// A file that did not come with the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Where the host sees it; its name alone, if it has no place.
    pub path: HostPath,
    /// Why it is foreign, to stand behind "it".
    pub why: &'static str,
    /// What it holds, if it could still be read.
    pub sha256: Option<String>,
}

/// Judges files, with the mount table of the node kept as long as it is the same: a shell that is sealed may start much.
#[derive(Debug)]
pub struct Code {
    host_root: PathBuf,
    proc: Proc,
    of_host: Mutex<KeptTable>,
    hashes: CodeHashes,
}

impl Code {
    /// For the node whose root is there.
    #[must_use]
    pub fn new(host_root: PathBuf, proc: Proc) -> Self {
        let of_host = Mutex::new(KeptTable::new(proc.path(1, "mountinfo")));
        Self { host_root, proc, of_host, hashes: CodeHashes::new() }
    }

    /// The node's mount table.
    fn of_host(&self) -> Option<Arc<MountTable>> {
        self.of_host.lock().unwrap_or_else(PoisonError::into_inner).now()
    }

    fn of_process(&self, pid: u32) -> Option<Arc<MountTable>> {
        let mut file = std::fs::File::open(self.proc.path(pid, "mountinfo")).ok()?;
        MountTable::read(&mut file).ok().map(Arc::new)
    }

    /// Judges the file that `observation` tells of. `None` if it came with the program that the actor runs. Reads /proc, and
    /// looks at the file; one that is foreign is hashed.
    #[must_use]
    pub fn foreign(&self, observation: &Observation) -> Option<Foreign> {
        let (path, why) = self.judged(observation)?;
        let mut places = vec![below(&self.host_root, &path)];
        if let (Ok(actor), Some(in_fs)) = (&observation.actor, &observation.path_in_fs) {
            places.push(below(&self.proc.path(actor.tgid, "root"), in_fs));
        }
        // What is told by its place in a container may be its layer's file.
        if let (Some(inode), Some(in_fs)) = (observation.inode, &observation.path_in_fs) {
            let table = self.of_host();
            let at = table.and_then(|table| table.mounts.host_path(inode.dev, in_fs));
            places.extend(at.map(|at| below(&self.host_root, &at)));
        }
        let sha256 = self.hashes.of(&self.proc, observation, &places);
        Some(Foreign { path, why, sha256 })
    }

    fn judged(&self, observation: &Observation) -> Option<(HostPath, &'static str)> {
        let name = observation.name.clone().unwrap_or_default();
        let known =
            observation.path_in_fs.clone().unwrap_or_else(|| HostPath::new(b"/".to_vec()).join(&name));
        let told = |path: HostPath, why| Some((path, why));
        let actor = observation.actor.as_ref().ok();
        let (Some(inode), Some(in_fs)) = (observation.inode, observation.path_in_fs.as_ref()) else {
            return told(known, "could not be placed");
        };
        // The host's view first: a process may mount in its own what it likes.
        let views = std::iter::once(None).chain(actor.map(|actor| Some(actor.tgid)));
        let mut seen_at = None;
        for view in views {
            let (table, root) = match view {
                None => (self.of_host(), self.host_root.clone()),
                Some(pid) => (self.of_process(pid), self.proc.path(pid, "root")),
            };
            let Some(table) = table else { continue };
            let Some(at) = table.mounts.host_path(inode.dev, in_fs) else { continue };
            let place = seen_at.get_or_insert(at);
            if observation.unlinked {
                break;
            }
            let all = table.mounts.all();
            let overlay = all.iter().find(|mount| mount.dev == inode.dev && mount.fs_type == "overlay");
            if let Some(overlay) = overlay {
                let layers = Layers::of_mount(&table.text, overlay.id)?;
                return of_overlay(&self.host_root, &layers, actor.map(Box::as_ref), inode, in_fs)
                    .and_then(|why| told(place.clone(), why));
            }
            if let Some((seen, changed)) = of_its_layers(&table, actor.map(Box::as_ref), inode, in_fs) {
                return if changed { told(seen, MADE_HERE) } else { None };
            }
            if is_systems(&table.mounts, &root, inode, in_fs) {
                return None;
            }
        }
        match seen_at {
            path if observation.unlinked => {
                told(path.unwrap_or(known), "has no name: it was made in memory, or deleted")
            }
            Some(path) => told(path, "is neither sealed nor the system's"),
            None => told(known, "lies on a file system that is not, or no longer, mounted"),
        }
    }
}

/// Why a file of an overlay is foreign, if it is.
fn of_overlay(
    host_root: &Path,
    layers: &Layers,
    actor: Option<&Actor>,
    inode: InodeKey,
    in_fs: &HostPath,
) -> Option<&'static str> {
    let runs_there = actor.and_then(|actor| actor.exe_inode).is_some_and(|exe| exe.dev == inode.dev);
    if !runs_there {
        return Some("is another container's");
    }
    let upper = below(host_root, &layers.upper()?.join(relative(in_fs)));
    // What cannot be looked for is not known to be the image's.
    let absent = std::fs::symlink_metadata(upper).is_err_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    });
    (!absent).then_some(MADE_HERE)
}

/// Where a file of a layer is seen in the container whose program the actor runs, if that is made of the layer; and whether it was made or
/// changed there. What is mapped on an overlay is mapped from the layer, and so the kernel names it where a mapping is made code later.
fn of_its_layers(
    table: &MountTable,
    actor: Option<&Actor>,
    inode: InodeKey,
    in_fs: &HostPath,
) -> Option<(HostPath, bool)> {
    let exe = actor?.exe_inode?;
    let all = table.mounts.all();
    let mut overlays = all.iter().filter(|mount| mount.dev == exe.dev && mount.fs_type == "overlay");
    overlays.find_map(|overlay| {
        let layers = Layers::of_mount(&table.text, overlay.id)?;
        // The layers are named as whoever mounted the overlay saw them.
        let mut its = all.iter().filter(|mount| mount.dev == inode.dev);
        its.find_map(|mount| layers.seen(&Mounts::seen_through(mount, in_fs)?))
    })
}

/// Whether the file is one of the system's, which only root may write.
fn is_systems(mounts: &Mounts, root: &Path, inode: InodeKey, in_fs: &HostPath) -> bool {
    let its = mounts.all().iter().filter(|mount| {
        mount.dev == inode.dev && SYSTEM_MOUNTS.iter().any(|at| mount.point == HostPath::from(*at))
    });
    let mut seen = its.filter_map(|mount| Mounts::seen_through(mount, in_fs));
    seen.any(|path| {
        let in_place = SYSTEM.iter().any(|dir| path.below(&HostPath::from(*dir)).is_some());
        in_place
            && std::fs::symlink_metadata(below(root, &path)).is_ok_and(|meta| {
                let same = kernel_dev(meta.dev()) == inode.dev && meta.ino() == inode.ino;
                same && meta.uid() == 0 && meta.mode() & 0o022 == 0
            })
    })
}

fn relative(path: &HostPath) -> &[u8] {
    path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes())
}

fn below(root: &Path, path: &HostPath) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    root.join(std::ffi::OsStr::from_bytes(relative(path)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::{Code, Foreign};
    use crate::inventory::procs::{Proc, kernel_dev};
    use crate::model::{Actor, HostPath, InodeKey, Observation, Operation, Rung, Slot, Time};

    const PROXY: u32 = 77;

    /// A node whose mount tables are files, and whose root is a directory.
    struct Node {
        dir: tempfile::TempDir,
        dev: u32,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let dev = kernel_dev(fs::metadata(dir.path()).unwrap().dev());
            for made in
                ["proc/1", "proc/77", "root/usr/lib/x", "root/tmp", "root/s/3/fs/tmp", "root/s/1/fs/lib"]
            {
                fs::create_dir_all(dir.path().join(made)).unwrap();
            }
            let node = Self { dir, dev };
            let own = format!("{}:{}", dev >> 20, dev & 0xf_ffff);
            let table = format!(
                "22 1 {own} / / rw - ext4 d rw\n70 22 0:50 / /run/b/rootfs rw - overlay o rw,lowerdir=/s/1/fs,upperdir=/s/3/fs,workdir=/w\n71 22 0:51 / /v rw - tmpfs t rw\n"
            );
            fs::write(node.path("proc/1/mountinfo"), table).unwrap();
            node
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.dir.path().join(path)
        }

        /// A file on the host; the answer is its inode.
        fn file(&self, path: &str, mode: u32) -> InodeKey {
            use std::os::unix::fs::PermissionsExt as _;
            let path = self.path("root").join(path);
            fs::write(&path, "code").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            InodeKey { dev: self.dev, ino: fs::metadata(path).unwrap().ino() }
        }

        fn judge(&self, observation: &Observation) -> Option<(String, &'static str)> {
            let proc = Proc::new(self.path("proc"));
            let code = Code::new(self.path("root"), proc);
            code.foreign(observation).map(|Foreign { path, why, .. }| (path.to_string(), why))
        }
    }

    pub(in crate::inventory) fn loaded(inode: InodeKey, path: &str, exe_dev: u32) -> Observation {
        let actor = Actor {
            tgid: PROXY,
            exe_inode: Some(InodeKey { dev: exe_dev, ino: 1 }),
            ..Proc::default().actor(std::process::id()).unwrap()
        };
        Observation {
            time: Time(1),
            sensor: Rung::Lsm,
            operation: Operation::Execve,
            slot: Slot(1),
            child_slot: None,
            inode: Some(inode),
            name: Some(HostPath::from(path).name().to_vec()),
            path_in_fs: Some(HostPath::from(path)),
            renamed_to: None,
            replaced_slot: None,
            actor: Ok(Box::new(actor)),
            count: 1,
            denied: false,
            failed: false,
            unlinked: false,
            moved: None,
        }
    }

    #[test]
    fn the_systems_own_libraries_are_no_news_while_only_root_may_write_them() {
        let node = Node::new();
        let other = "is neither sealed nor the system's";
        let at = |inode, path: &str| node.judge(&loaded(inode, path, node.dev));
        let lib = node.file("usr/lib/x/libc.so", 0o755);
        if rustix::process::getuid().is_root() {
            assert_eq!(at(lib, "/usr/lib/x/libc.so"), None);
        }
        let open = node.file("usr/lib/x/open.so", 0o777);
        assert_eq!(at(open, "/usr/lib/x/open.so"), Some(("/usr/lib/x/open.so".to_owned(), other)));
        // Another file than the one that stands there now.
        let gone = InodeKey { ino: lib.ino + 1_000_000, ..lib };
        assert_eq!(at(gone, "/usr/lib/x/libc.so"), Some(("/usr/lib/x/libc.so".to_owned(), other)));
        let temporary = node.file("tmp/evil.so", 0o755);
        assert_eq!(at(temporary, "/tmp/evil.so"), Some(("/tmp/evil.so".to_owned(), other)));
        let volume = InodeKey { dev: 51, ino: 9 };
        assert_eq!(at(volume, "/usr/lib/evil.so"), Some(("/v/usr/lib/evil.so".to_owned(), other)));
    }

    #[test]
    fn an_images_files_came_with_the_program_and_those_of_the_upper_layer_did_not() {
        let node = Node::new();
        let inode = InodeKey { dev: 50, ino: 9 };
        let at = |path: &str, exe| node.judge(&loaded(inode, path, exe));
        node.file("s/1/fs/lib/libc.so", 0o755);
        node.file("s/3/fs/tmp/evil.so", 0o755);
        assert_eq!(at("/lib/libc.so", 50), None);
        assert_eq!(
            at("/tmp/evil.so", 50),
            Some((
                "/run/b/rootfs/tmp/evil.so".to_owned(),
                "is not its image's: it was made or changed in the container"
            ))
        );
        let others = Some(("/run/b/rootfs/lib/libc.so".to_owned(), "is another container's"));
        assert_eq!(at("/lib/libc.so", 3), others);
    }

    #[test]
    fn what_is_mapped_from_a_layer_is_judged_as_the_container_sees_it() {
        let node = Node::new();
        let at = |inode, path: &str, exe| node.judge(&loaded(inode, path, exe));
        let own = node.file("s/1/fs/lib/libc.so", 0o755);
        let made = node.file("s/3/fs/tmp/evil.so", 0o755);
        assert_eq!(at(own, "/s/1/fs/lib/libc.so", 50), None);
        assert_eq!(
            at(made, "/s/3/fs/tmp/evil.so", 50),
            Some(("/run/b/rootfs/tmp/evil.so".to_owned(), super::MADE_HERE))
        );
        // Of another program's container it is not.
        let other = "is neither sealed nor the system's";
        assert_eq!(at(own, "/s/1/fs/lib/libc.so", 3), Some(("/s/1/fs/lib/libc.so".to_owned(), other)));
    }

    #[test]
    fn what_has_no_name_or_no_place_is_foreign() {
        let node = Node::new();
        let mut memory = loaded(InodeKey { dev: 1, ino: 9 }, "/memfd:x", node.dev);
        memory.unlinked = true;
        let no_name = "has no name: it was made in memory, or deleted";
        assert_eq!(node.judge(&memory), Some(("/memfd:x".to_owned(), no_name)));
        let unmounted = loaded(InodeKey { dev: 99, ino: 9 }, "/x", node.dev);
        let nowhere = "lies on a file system that is not, or no longer, mounted";
        assert_eq!(node.judge(&unmounted), Some(("/x".to_owned(), nowhere)));
    }
}
