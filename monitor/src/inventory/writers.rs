//! Lawful writers as proven processes, not names.
//!
//! A kubelet is a process that looks like one (arguments and executable), runs as root in the host's mount namespace
//! outside the kubepods cgroups, and is not traced. The first proof fixes the executable's inode and the cgroup: from
//! then on only the same inode in the same cgroup is the kubelet again, or what follows on it ([`super::succession`]). A baseline may name
//! writers by path and hash instead; a declared writer replaces what would be found by looks.
//!
//! What this cannot prove: an executable swapped by `prctl(PR_SET_MM_EXE_FILE)`, or code written into a kubelet's memory
//! and detached again. Where the sensor takes identity at exec, its actor carries the executable of that moment.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::inodes;
use super::procs::{Proc, base_name};
use super::succession::{Fixed, Former, successor};
use crate::attribution::{CgroupView, below_root, cgroup};
use crate::model::{Actor, HostPath, InodeKey};

/// The kubelet's directory unless its arguments say otherwise.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";
/// Executables that carry a kubelet under another name.
const MULTI_CALL: [&[u8]; 5] = [b"k3s", b"kubelite", b"rke2", b"k0s", b"hyperkube"];
/// Largest declared writer that is hashed, in bytes.
const EXE_MAX: u64 = 512 << 20;

/// Whether an actor is a lawful writer, and if not why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lawful {
    /// Proven.
    Yes,
    /// It is not.
    No(String),
    /// Too little is known of the actor or the writer.
    Unknown(String),
}

/// A writer that a baseline names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Name, as the baseline's objects refer to it.
    pub name: String,
    /// Path of its executable on the host.
    pub exe: HostPath,
    /// Hex SHA-256 of its executable, where given.
    pub sha256: Option<String>,
}

/// A process that was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Process id.
    pub tgid: u32,
    /// Start in nanoseconds since boot (as procfs gives it: whole clock ticks).
    pub start_boottime: u64,
    /// Its executable.
    pub exe: InodeKey,
    /// Its executable's path.
    pub exe_path: HostPath,
    /// Its cgroup.
    pub cgroup: String,
    /// Its mount namespace.
    pub mount_ns: u64,
    /// Its directory.
    pub root_dir: HostPath,
}

/// Knows the lawful writers of this node.
#[derive(Debug)]
pub struct Writers {
    proc: Proc,
    host_root: PathBuf,
    host_mount_ns: Option<u64>,
    kubelets: Vec<Proven>,
    former: Former,
    /// Executable and cgroup as proven; outlives the processes, so that a restart is known again.
    fixed: Option<Fixed>,
    declared: BTreeMap<String, (Declared, Result<InodeKey, String>)>,
    rejected: Vec<String>,
}

impl Writers {
    /// Knows nobody until [`Writers::refresh`].
    #[must_use]
    pub fn new(host_root: &Path, proc: Proc) -> Self {
        Self {
            host_mount_ns: proc.mount_ns(1),
            proc,
            host_root: host_root.to_owned(),
            kubelets: Vec::new(),
            former: Former::default(),
            fixed: None,
            declared: BTreeMap::new(),
            rejected: Vec::new(),
        }
    }

    /// Takes over what the accepted baselines declare, and proves it.
    pub fn declare(&mut self, writers: impl IntoIterator<Item = Declared>) {
        self.declared.clear();
        for writer in writers {
            let proof = self.prove_declared(&writer);
            self.declared.insert(writer.name.clone(), (writer, proof));
        }
    }

    /// Looks for kubelets again. Returns whether what is known changed.
    pub fn refresh(&mut self, view: &CgroupView) -> bool {
        let pids = self.proc.pids().unwrap_or_default();
        let found = pids.into_iter().filter_map(|pid| self.examine(pid, view)).collect();
        self.take_up(found)
    }

    /// Looks at one process that may be a kubelet, and whether those that are known run still. Returns as [`Self::refresh`].
    pub fn look_at(&mut self, pid: u32, view: &CgroupView) -> bool {
        let mut pids: Vec<u32> = self.kubelets.iter().map(|kubelet| kubelet.tgid).collect();
        if !pids.contains(&pid) {
            pids.push(pid);
        }
        let found = pids.into_iter().filter_map(|pid| self.examine(pid, view)).collect();
        self.take_up(found)
    }

    /// Of these, which passed the whole proof, some are the kubelet.
    fn take_up(&mut self, mut found: Vec<Proven>) -> bool {
        let before = (self.kubelets.clone(), self.fixed.clone());
        self.rejected.clear();
        found.sort_by_key(|kubelet| kubelet.start_boottime);
        if self.fixed.is_none() {
            self.fixed = found.first().map(Fixed::of);
        }
        if let Some(fixed) = self.fixed.clone() {
            let (known, others): (Vec<_>, Vec<_>) = found.iter().cloned().partition(|one| fixed.is(one));
            match successor(&self.host_root, &fixed, !known.is_empty(), &others) {
                Ok(next) => {
                    found.retain(|one| next.is(one));
                    self.fixed = Some(next);
                }
                Err(why) => {
                    found = known;
                    self.rejected = why;
                }
            }
        }
        self.former.note(&self.kubelets, &found);
        self.kubelets = found;
        before != (self.kubelets.clone(), self.fixed.clone())
    }

    /// The kubelets that run now.
    #[must_use]
    pub fn kubelets(&self) -> &[Proven] {
        &self.kubelets
    }

    /// What looked like a kubelet and was not accepted, and why.
    #[must_use]
    pub fn rejected(&self) -> &[String] {
        &self.rejected
    }

    /// Whether it is called as one that could be a kubelet, and is none that is known: it may have started, or become one, since the last look.
    #[must_use]
    pub fn may_be_new(&self, actor: &Actor) -> bool {
        let exe = actor.exe.as_ref().map(|exe| base_name(exe.as_bytes()));
        let called = exe.is_some_and(|exe| exe == b"kubelet" || MULTI_CALL.contains(&exe));
        called && !self.kubelets.iter().any(|known| self.same_process(known, actor))
    }

    /// The kubelet's directory as the host names it.
    #[must_use]
    pub fn kubelet_root(&self) -> HostPath {
        self.kubelets.first().map_or_else(|| HostPath::from(KUBELET_ROOT), |kubelet| kubelet.root_dir.clone())
    }

    /// Whether `actor` is the writer of that name: `kubelet`, or one that a baseline declares. Its cgroup must be in
    /// the host's terms ([`crate::attribution::Attribution::enrich`]).
    #[must_use]
    pub fn is_lawful(&self, actor: &Actor, writer: &str) -> Lawful {
        if let Some(cgroup) = &actor.cgroup
            && cgroup::in_kubepods(cgroup)
        {
            return Lawful::No(format!("runs in a pod's cgroup: {cgroup}"));
        }
        match (actor.mount_ns, self.host_mount_ns) {
            (Some(own), Some(host)) if own != host => {
                return Lawful::No(format!("runs in mount namespace {own}, not in the host's ({host})"));
            }
            (_, None) => return Lawful::Unknown("the host's mount namespace cannot be read".into()),
            (None, _) => return Lawful::Unknown("the actor's mount namespace is not known".into()),
            _ => {}
        }
        if actor.uid != 0 {
            return Lawful::No(format!("runs as uid {}, not as root", actor.uid));
        }
        if let Ok(status) = self.proc.status(actor.tgid)
            && status.tracer != 0
        {
            return Lawful::No(format!("is traced by pid {}", status.tracer));
        }
        let Some(exe) = actor.exe_inode else {
            return Lawful::Unknown("the actor's executable is not known".into());
        };
        match self.declared.get(writer) {
            Some((_, Ok(proven))) if *proven == exe => Lawful::Yes,
            Some((declared, Ok(_))) => Lawful::No(format!("is another executable than {}", declared.exe)),
            Some((_, Err(reason))) => Lawful::Unknown(reason.clone()),
            None if writer == "kubelet" => self.is_kubelet(actor, exe),
            None => Lawful::Unknown(format!("no writer {writer} is declared in an accepted baseline")),
        }
    }

    fn is_kubelet(&self, actor: &Actor, exe: InodeKey) -> Lawful {
        let Some(Fixed { exe: fixed_exe, cgroup: fixed_cgroup, .. }) = &self.fixed else {
            return Lawful::Unknown("no kubelet was found on this node".into());
        };
        let path = actor.exe.as_ref().map_or_else(|| "unknown path".into(), ToString::to_string);
        let ended = |one: &Proven| {
            one.exe == exe
                && self.same_process(one, actor)
                && actor.cgroup.as_ref().is_none_or(|own| *own == one.cgroup)
        };
        if exe != *fixed_exe {
            return if self.former.iter().any(ended) {
                Lawful::Yes
            } else {
                Lawful::No(format!("is another executable than the kubelet: {path}"))
            };
        }
        match &actor.cgroup {
            Some(cgroup) if cgroup == fixed_cgroup => Lawful::Yes,
            Some(cgroup) => Lawful::No(format!("runs the kubelet's executable outside its cgroup: {cgroup}")),
            None if self.kubelets.iter().any(|known| self.same_process(known, actor)) => Lawful::Yes,
            None => Lawful::Unknown("the actor's cgroup is not known".into()),
        }
    }

    fn same_process(&self, known: &Proven, actor: &Actor) -> bool {
        let apart = known.start_boottime.abs_diff(actor.start_boottime);
        known.tgid == actor.tgid && apart <= self.proc.tick_ns()
    }

    /// The whole proof for one process.
    fn examine(&self, pid: u32, view: &CgroupView) -> Option<Proven> {
        let args = self.proc.args(pid);
        let exe_path = self.proc.exe(pid)?;
        if !looks_like_kubelet(&args, &exe_path) {
            return None;
        }
        let actor = self.proc.actor(pid).ok()?;
        let status = self.proc.status(pid).ok()?;
        let cgroup = view.absolute(actor.cgroup.as_deref()?);
        let proven = actor.tgid == pid
            && actor.uid == 0
            && status.tracer == 0
            && actor.mount_ns.is_some()
            && actor.mount_ns == self.host_mount_ns
            && !cgroup.starts_with("/..")
            && !cgroup::in_kubepods(&cgroup);
        if !proven {
            return None;
        }
        let root_dir = root_dir(&args, &exe_path, self.proc.cwd(pid).as_ref());
        Some(Proven {
            tgid: pid,
            start_boottime: actor.start_boottime,
            exe: actor.exe_inode?,
            exe_path,
            cgroup,
            mount_ns: actor.mount_ns?,
            root_dir,
        })
    }

    fn prove_declared(&self, writer: &Declared) -> Result<InodeKey, String> {
        let path = below_root(&self.host_root, &writer.exe);
        let fail = |what: String| format!("declared writer {}: {}: {what}", writer.name, writer.exe);
        let mut file = std::fs::File::open(&path).map_err(|error| fail(error.to_string()))?;
        let meta = file.metadata().map_err(|error| fail(error.to_string()))?;
        if !meta.is_file() || meta.size() > EXE_MAX {
            return Err(fail("expected a regular file of at most 512 MiB".into()));
        }
        if let Some(wanted) = &writer.sha256 {
            let mut digest = Sha256::new();
            std::io::copy(&mut file, &mut digest).map_err(|error| fail(error.to_string()))?;
            if hex::encode(digest.finalize()) != wanted.to_ascii_lowercase() {
                return Err(fail("its SHA-256 is not the declared one".into()));
            }
        }
        inodes::of(&file).map_err(|error| fail(error.to_string()))
    }
}

fn looks_like_kubelet(args: &[Vec<u8>], exe: &HostPath) -> bool {
    let Some(first) = args.first() else { return false };
    let (called, is) = (base_name(first), base_name(exe.as_bytes()));
    let is = is.strip_suffix(b" (deleted)").unwrap_or(is);
    // "k3s server" rewrites its arguments into one.
    let words = || args.iter().flat_map(|arg| arg.split(|byte| *byte == b' '));
    let option = |names: &[&[u8]]| words().any(|word| names.iter().any(|name| word.starts_with(name)));
    let configured = option(&[b"--config", b"--kubeconfig", b"--bootstrap-kubeconfig", b"--root-dir"]);
    let multi = MULTI_CALL.contains(&is);
    let service = words().skip(1).any(|word| matches!(word, b"server" | b"agent" | b"kubelet"));
    match () {
        () if called == b"kubelet" && (is == b"kubelet" || multi) => configured,
        () if is == b"kubelite" => true,
        () if multi => service,
        () => false,
    }
}

fn root_dir(args: &[Vec<u8>], exe: &HostPath, cwd: Option<&HostPath>) -> HostPath {
    let mut given = None;
    for (at, arg) in args.iter().enumerate() {
        if let Some(value) = arg.strip_prefix(b"--root-dir=") {
            given = Some(value);
        } else if arg == b"--root-dir" {
            given = args.get(at + 1).map(Vec::as_slice);
        }
    }
    match given {
        Some(path) if path.starts_with(b"/") => HostPath::new(path),
        Some(path) => cwd.map_or_else(|| HostPath::from(KUBELET_ROOT), |cwd| cwd.join(path)),
        None if exe.as_bytes().starts_with(b"/snap/microk8s/") => {
            HostPath::from("/var/snap/microk8s/common/var/lib/kubelet")
        }
        None => HostPath::from(KUBELET_ROOT),
    }
}

#[cfg(test)]
mod tests {
    use super::{Declared, Fixed, Lawful, Proven, Writers, looks_like_kubelet, root_dir};
    use crate::inventory::procs::Proc;
    use crate::model::{Actor, HostPath, InodeKey};
    use std::path::Path;

    fn args(words: &[&str]) -> Vec<Vec<u8>> {
        words.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    fn looks(exe: &str, words: &[&str]) -> bool {
        looks_like_kubelet(&args(words), &HostPath::from(exe))
    }

    #[test]
    fn looks_take_arguments_and_executable() {
        assert!(looks("/usr/bin/kubelet", &["/usr/bin/kubelet", "--config=/x"]));
        assert!(looks("/usr/bin/kubelet (deleted)", &["kubelet", "--kubeconfig", "/x"]));
        assert!(looks("/usr/local/bin/k3s", &["/usr/local/bin/k3s server"]));
        assert!(looks("/usr/bin/hyperkube", &["kubelet", "--config=/x"]));
        assert!(!looks("/bin/sh", &["kubelet", "--config=/x"]));
        assert!(!looks("/usr/bin/kubelet", &["kubelet", "--version"]));
        assert!(!looks("/usr/local/bin/k3s", &["k3s", "kubectl", "get", "pods"]));
        assert!(!looks("/usr/bin/kubelet", &[]));
    }

    #[test]
    fn root_directory_from_arguments() {
        let exe = HostPath::from("/usr/bin/kubelet");
        let cwd = HostPath::from("/srv");
        let root = |words: &[&str]| root_dir(&args(words), &exe, Some(&cwd)).to_string();
        assert_eq!(root(&["kubelet"]), "/var/lib/kubelet");
        assert_eq!(root(&["kubelet", "--root-dir=/a"]), "/a");
        assert_eq!(root(&["kubelet", "--root-dir", "/a", "--root-dir=b"]), "/srv/b");
    }

    fn actor(exe: u64, cgroup: &str) -> Actor {
        let mut actor = Proc::default().actor(std::process::id()).unwrap();
        actor.exe_inode = Some(InodeKey { dev: 1, ino: exe });
        actor.exe = Some(HostPath::from("/tmp/kubelet"));
        actor.cgroup = Some(cgroup.into());
        actor.mount_ns = Some(1);
        actor.uid = 0;
        actor
    }

    fn writers() -> Writers {
        let mut writers = Writers::new(Path::new("/"), Proc::default());
        writers.host_mount_ns = Some(1);
        writers.fixed = Some(Fixed {
            exe: InodeKey { dev: 1, ino: 7 },
            exe_path: HostPath::from("/usr/bin/kubelet"),
            cgroup: "/system.slice/kubelet.service".into(),
        });
        writers
    }

    #[test]
    fn only_the_proven_kubelet_is_lawful() {
        let (writers, service) = (writers(), "/system.slice/kubelet.service");
        let judge = |actor: &Actor| writers.is_lawful(actor, "kubelet");
        assert_eq!(judge(&actor(7, service)), Lawful::Yes);
        assert_eq!(
            judge(&actor(8, service)),
            Lawful::No("is another executable than the kubelet: /tmp/kubelet".into())
        );
        assert_eq!(
            judge(&actor(7, "/user.slice")),
            Lawful::No("runs the kubelet's executable outside its cgroup: /user.slice".into())
        );
        assert_eq!(judge(&actor(7, "/kubepods/x")), Lawful::No("runs in a pod's cgroup: /kubepods/x".into()));
        let mut other = actor(7, service);
        other.mount_ns = Some(2);
        assert_eq!(judge(&other), Lawful::No("runs in mount namespace 2, not in the host's (1)".into()));
        other = actor(7, service);
        other.uid = 1000;
        assert_eq!(judge(&other), Lawful::No("runs as uid 1000, not as root".into()));
        other = actor(7, service);
        other.exe_inode = None;
        assert_eq!(judge(&other), Lawful::Unknown("the actor's executable is not known".into()));
        assert_eq!(
            writers.is_lawful(&actor(7, service), "installer"),
            Lawful::Unknown("no writer installer is declared in an accepted baseline".into())
        );
    }

    #[test]
    fn declared_writers_are_proven_by_inode_and_hash() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("installer"), "binary").unwrap();
        let mut writers = Writers::new(root.path(), Proc::default());
        writers.host_mount_ns = Some(1);
        let declared = |sha256: &str| Declared {
            name: "installer".into(),
            exe: HostPath::from("/installer"),
            sha256: Some(sha256.into()),
        };
        writers.declare([declared("9a3a45d01531a20e89ac6ae10b0b0beb0492acd7216a368aa062d1a5fecaf9cd")]);
        let mut acting = actor(0, "/system.slice/x.service");
        acting.exe_inode = super::inodes::at(&root.path().join("installer")).ok();
        assert_eq!(writers.is_lawful(&acting, "installer"), Lawful::Yes);
        writers.declare([declared("00")]);
        assert_eq!(
            writers.is_lawful(&acting, "installer"),
            Lawful::Unknown(
                "declared writer installer: /installer: its SHA-256 is not the declared one".into()
            )
        );
    }

    const SERVICE: &str = "/system.slice/kubelet.service";

    /// A node with a kubelet, which has been proven.
    fn upgradable() -> (tempfile::TempDir, Writers) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        std::fs::create_dir_all(root.path().join("tmp")).unwrap();
        put(root.path(), "/usr/bin/kubelet", "first");
        let mut writers = Writers::new(root.path(), Proc::default());
        writers.host_mount_ns = Some(1);
        assert!(writers.take_up(vec![runs(root.path(), "/usr/bin/kubelet", 10, SERVICE)]));
        (root, writers)
    }

    fn put(root: &Path, path: &str, text: &str) {
        let at = root.join(path.trim_start_matches('/'));
        let new = root.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, at).unwrap();
    }

    /// A process that passed the proof.
    fn runs(root: &Path, exe: &str, pid: u32, cgroup: &str) -> Proven {
        Proven {
            tgid: pid,
            start_boottime: u64::from(pid) * 1_000_000_000,
            exe: super::inodes::at(&root.join(exe.trim_start_matches('/'))).unwrap(),
            exe_path: HostPath::from(exe),
            cgroup: cgroup.to_owned(),
            mount_ns: 1,
            root_dir: HostPath::from("/var/lib/kubelet"),
        }
    }

    fn is_lawful(writers: &Writers, proven: &Proven) -> bool {
        let mut actor = actor(0, &proven.cgroup);
        (actor.tgid, actor.start_boottime) = (proven.tgid, proven.start_boottime);
        writers.is_kubelet(&actor, proven.exe) == Lawful::Yes
    }

    #[test]
    fn an_upgrade_in_the_place_of_the_one_before_is_the_kubelet() {
        let (root, mut writers) = upgradable();
        let first = writers.kubelets()[0].clone();
        put(root.path(), "/usr/bin/kubelet", "second");
        let second = runs(root.path(), "/usr/bin/kubelet", 20, SERVICE);
        // As long as the first one runs it is.
        assert!(!writers.take_up(vec![first.clone(), second.clone()]));
        let beside =
            "pid 20 looks like a kubelet, and is not the one that is known: /usr/bin/kubelet runs beside it";
        assert_eq!(writers.rejected(), [beside]);
        assert!(is_lawful(&writers, &first) && !is_lawful(&writers, &second));
        assert!(writers.take_up(vec![second.clone()]));
        assert_eq!(writers.rejected(), [""; 0]);
        assert_eq!(writers.kubelets(), std::slice::from_ref(&second));
        // What the first one did last may be judged only now; another process that runs it is none.
        assert!(is_lawful(&writers, &first) && is_lawful(&writers, &second));
        assert!(!is_lawful(&writers, &Proven { tgid: 30, ..first.clone() }));
        // And no way back while the second one runs.
        assert!(!writers.take_up(vec![second, Proven { tgid: 31, start_boottime: 31_000_000_000, ..first }]));
    }

    #[test]
    fn what_only_looks_like_an_upgrade_is_not() {
        let (root, mut writers) = upgradable();
        put(root.path(), "/tmp/kubelet", "evil");
        std::fs::create_dir(root.path().join("usr/open")).unwrap();
        std::fs::set_permissions(
            root.path().join("usr/open"),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .unwrap();
        put(root.path(), "/usr/open/kubelet", "evil");
        let elsewhere = runs(root.path(), "/tmp/kubelet", 20, SERVICE);
        let open = runs(root.path(), "/usr/open/kubelet", 21, SERVICE);
        // The file that stands there is another by now, or it ran in the place of one that was covered.
        put(root.path(), "/usr/bin/kubelet", "evil");
        let covered = runs(root.path(), "/usr/bin/kubelet", 22, SERVICE);
        put(root.path(), "/usr/bin/kubelet", "again");
        let session = runs(root.path(), "/usr/bin/kubelet", 23, "/user.slice/user-0.slice/session-1.scope");
        let told = |pid: u32, what: &str| {
            vec![format!("pid {pid} looks like a kubelet, and is not the one that is known: {what}")]
        };
        let not_roots = "is not at its path, or others than root may have put it there";
        for (one, why) in [
            (&elsewhere, told(20, "/tmp/kubelet stands elsewhere than /usr/bin/kubelet")),
            (&open, told(21, &format!("/usr/open/kubelet {not_roots}"))),
            (&covered, told(22, &format!("/usr/bin/kubelet {not_roots}"))),
            (
                &session,
                told(
                    23,
                    "/usr/bin/kubelet is in cgroup /user.slice/user-0.slice/session-1.scope, not in /system.slice/kubelet.service",
                ),
            ),
        ] {
            // The first one has ended.
            writers.take_up(vec![one.clone()]);
            assert_eq!(writers.rejected(), why);
            assert!(!is_lawful(&writers, one) && writers.kubelets().is_empty());
        }
        // The right one comes at last, and then another beside it at once.
        let second = runs(root.path(), "/usr/bin/kubelet", 24, SERVICE);
        writers.take_up(vec![elsewhere, second.clone()]);
        assert!(is_lawful(&writers, &second));
    }

    #[test]
    fn of_two_upgrades_neither_is() {
        let (root, mut writers) = upgradable();
        put(root.path(), "/usr/bin/kubelet", "second");
        std::fs::create_dir(root.path().join("usr/other")).unwrap();
        put(root.path(), "/usr/other/kubelet", "third");
        let [second, third] = [("/usr/bin/kubelet", 20), ("/usr/other/kubelet", 21)]
            .map(|(exe, pid)| runs(root.path(), exe, pid, SERVICE));
        writers.take_up(vec![second.clone(), third.clone()]);
        assert!(!is_lawful(&writers, &second) && !is_lawful(&writers, &third));
        assert_eq!(writers.rejected().len(), 2);
    }
}
