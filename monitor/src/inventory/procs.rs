//! Processes as /proc shows them: bounded reads, no assumption about what a process calls itself.
//!
//! Formats: proc(5). `comm` and command lines are whatever the process wants; `stat` is split after its last `)`.

use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::attribution::redact;
use crate::model::{Actor, Clock, HostPath, InodeKey};

/// Longest command line that is read, in bytes.
const CMDLINE_MAX: u64 = 64 * 1024;
/// Longest `stat`, `status` or `cgroup` file that is read, in bytes.
const FILE_MAX: u64 = 64 * 1024;
/// Most threads of one process that are looked at.
const THREADS_MAX: usize = 1024;
/// Most processes looked at in one scan.
const PIDS_MAX: usize = 1 << 17;

/// Why a process could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// It is gone, or its file cannot be read.
    #[error("{file}: {source}")]
    Read { file: PathBuf, source: io::Error },
    /// The file is not as proc(5) says.
    #[error("{file}: unexpected format")]
    Format { file: PathBuf },
    /// Another process took the pid while it was read.
    #[error("pid {0} was reused while it was read")]
    Reused(u32),
    /// It became another program while it was read: what was read is of both.
    #[error("pid {0} executed another program while it was read")]
    Executed(u32),
}

/// A mounted procfs.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
    /// Clock ticks per second (`sysconf(_SC_CLK_TCK)`).
    ticks: u64,
}

/// From `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Command name, lossy UTF-8.
    pub comm: String,
    /// State letter; `Z` and `X` are dead.
    pub state: u8,
    /// Parent.
    pub ppid: u32,
    /// `PF_*` of include/linux/sched.h.
    pub flags: u32,
    /// Start in clock ticks since boot.
    pub start_ticks: u64,
}

/// From `/proc/PID/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Process id.
    pub tgid: u32,
    /// Real uid.
    pub uid: u32,
    /// Pid of the tracer, 0 if none.
    pub tracer: u32,
}

impl Stat {
    /// It has ended, or is about to: what it had is given back bit by bit.
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        const PF_EXITING: u32 = 4;
        matches!(self.state, b'Z' | b'X') || self.flags & PF_EXITING != 0
    }
}

impl Proc {
    /// The procfs mounted at `root`; it must show the host's processes.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ticks: rustix::param::clock_ticks_per_second().max(1) }
    }

    /// Path of a process's file.
    #[must_use]
    pub fn path(&self, pid: u32, file: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(file)
    }

    /// All process ids, at most 131,072 of them.
    ///
    /// # Errors
    /// procfs cannot be listed.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let entries = std::fs::read_dir(&self.root)?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.take(PIDS_MAX).collect())
    }

    /// `/proc/PID/stat`.
    ///
    /// # Errors
    /// The process is gone, or the file is not as expected.
    pub fn stat(&self, pid: u32) -> Result<Stat, ProcError> {
        let file = self.path(pid, "stat");
        let text = read(&file, FILE_MAX)?;
        parse_stat(&text).ok_or(ProcError::Format { file })
    }

    /// `/proc/PID/status`.
    ///
    /// # Errors
    /// The process is gone, or the file is not as expected.
    pub fn status(&self, pid: u32) -> Result<Status, ProcError> {
        let file = self.path(pid, "status");
        let text = read(&file, FILE_MAX)?;
        parse_status(&text).ok_or(ProcError::Format { file })
    }

    /// The path in the cgroup hierarchy, as procfs shows it (relative to the reader's cgroup namespace: see
    /// [`crate::attribution::CgroupView`]). `None` of a process that is ending too, where it is not known any more.
    #[must_use]
    pub fn cgroup(&self, pid: u32) -> Option<String> {
        let text = read(&self.path(pid, "cgroup"), FILE_MAX).ok()?;
        let ending = self.stat(pid).map_or(true, |stat| stat.is_ending());
        parse_cgroup(&text, ending)
    }

    /// As [`Self::cgroup`], if the process that has the number is still that one.
    #[must_use]
    pub fn cgroup_of(&self, actor: &Actor) -> Option<String> {
        let is_it = || {
            let start = self.ticks_to_ns(self.stat(actor.tgid).ok()?.start_ticks);
            (start.abs_diff(actor.start_boottime) <= self.tick_ns()).then_some(())
        };
        is_it()?;
        let path = self.cgroup(actor.tgid)?;
        is_it().map(|()| path)
    }

    /// Whether controllers are on hierarchies of version 1.
    #[must_use]
    pub fn has_controllers_of_version_1(&self) -> bool {
        let text = read(&self.path(1, "cgroup"), FILE_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        hierarchies(&text)
            .any(|(controllers, _)| !controllers.is_empty() && !controllers.starts_with("name="))
    }

    /// A thread of the process that is not ending, itself first. The thread that a process began with may end before others: what is read of
    /// it then is nothing, and what the others run goes on.
    fn living_thread(&self, pid: u32, leader: &Stat) -> u32 {
        if !leader.is_ending() {
            return pid;
        }
        let threads = std::fs::read_dir(self.path(pid, "task")).into_iter().flatten().take(THREADS_MAX);
        let mut ids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.find(|tid| self.stat(*tid).is_ok_and(|stat| !stat.is_ending())).unwrap_or(pid)
    }

    /// Inode number of the mount namespace.
    #[must_use]
    pub fn mount_ns(&self, pid: u32) -> Option<u64> {
        std::fs::metadata(self.path(pid, "ns/mnt")).ok().map(|meta| meta.ino())
    }

    /// Path of the executable in its own mount namespace; ` (deleted)` stays as the kernel appends it.
    #[must_use]
    pub fn exe(&self, pid: u32) -> Option<HostPath> {
        let link = std::fs::read_link(self.path(pid, "exe")).ok()?;
        Some(HostPath::from(link.as_path()))
    }

    /// The executable's inode.
    #[must_use]
    pub fn exe_inode(&self, pid: u32) -> Option<InodeKey> {
        super::inodes::at(&self.path(pid, "exe")).ok()
    }

    /// Working directory.
    #[must_use]
    pub fn cwd(&self, pid: u32) -> Option<HostPath> {
        std::fs::read_link(self.path(pid, "cwd")).ok().map(|link| HostPath::from(link.as_path()))
    }

    /// Arguments, at most 64 KiB of them; empty for kernel threads and the dead.
    #[must_use]
    pub fn args(&self, pid: u32) -> Vec<Vec<u8>> {
        let bytes = read(&self.path(pid, "cmdline"), CMDLINE_MAX).unwrap_or_default();
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if bytes.is_empty() {
            return Vec::new();
        }
        bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
    }

    /// Clock ticks since boot as nanoseconds.
    #[must_use]
    pub const fn ticks_to_ns(&self, ticks: u64) -> u64 {
        (ticks / self.ticks) * 1_000_000_000 + (ticks % self.ticks) * 1_000_000_000 / self.ticks
    }

    /// Length of a clock tick in nanoseconds: how far a start time from here may lie below the kernel's own.
    #[must_use]
    pub const fn tick_ns(&self) -> u64 {
        1_000_000_000 / self.ticks
    }

    /// All that can be told of a live process. Read between two looks at its start time, so that it is one process.
    ///
    /// # Errors
    /// The process is gone, its pid was reused meanwhile, or it executed another program.
    pub fn actor(&self, pid: u32) -> Result<Actor, ProcError> {
        let before = self.stat(pid)?;
        let status = self.status(pid)?;
        let thread = self.living_thread(pid, &before);
        let (exe, exe_inode) = (self.exe(thread), self.exe_inode(thread));
        let cmdline = redact::cmdline(&self.args(thread));
        let (cgroup, mount_ns) = (self.cgroup(thread), self.mount_ns(thread));
        let after = self.stat(pid)?;
        if before.start_ticks != after.start_ticks {
            return Err(ProcError::Reused(pid));
        }
        if before.comm != after.comm || is_another(exe_inode, self.exe_inode(thread)) {
            return Err(ProcError::Executed(pid));
        }
        let start_boottime = self.ticks_to_ns(after.start_ticks);
        Ok(Actor {
            pid,
            tgid: status.tgid,
            ppid: after.ppid,
            uid: status.uid,
            comm: after.comm,
            exe,
            exe_sha256: None,
            is_io_worker: false,
            exe_inode,
            cmdline,
            start_time: Some(Clock::now().wall(start_boottime)),
            start_boottime,
            cgroup,
            cgroup_id: 0,
            mount_ns,
            container: None,
            pod: None,
        })
    }
}

impl Default for Proc {
    fn default() -> Self {
        Self::new("/proc")
    }
}

/// `st_dev` in the kernel's own form (major << 20 | minor).
#[must_use]
pub const fn kernel_dev(st_dev: u64) -> u32 {
    let (major, minor) = (libc::major(st_dev), libc::minor(st_dev));
    (major << 20) | (minor & 0xf_ffff)
}

/// Reads at most `max` bytes of a file.
pub(crate) fn read(file: &Path, max: u64) -> Result<Vec<u8>, ProcError> {
    let fail = |source| ProcError::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(file).map_err(fail)?.take(max).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let ppid = fields.next()?.parse().ok()?;
    let flags = fields.nth(4)?.parse().ok()?;
    let start_ticks = fields.nth(12)?.parse().ok()?;
    Some(Stat { comm, state, ppid, flags, start_ticks })
}

fn parse_status(text: &[u8]) -> Option<Status> {
    let (mut tgid, mut uid, mut tracer) = (None, None, None);
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = || std::str::from_utf8(&line[colon + 1..]).ok()?.split_ascii_whitespace().next();
        match &line[..colon] {
            b"Tgid" => tgid = tgid.or(value()?.parse().ok()),
            b"Uid" => uid = uid.or(value()?.parse().ok()),
            b"TracerPid" => tracer = tracer.or(value()?.parse().ok()),
            _ => {}
        }
    }
    Some(Status { tgid: tgid?, uid: uid?, tracer: tracer? })
}

/// Controllers and path of each line of a `cgroup` file; no controllers on the unified hierarchy.
fn hierarchies(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        Some((controllers, path))
    })
}

/// One path out of all controllers' lines: one below kubepods if any is, else the unified one, else systemd's.
///
/// Of a process that is `ending` the kernel says `/` on each hierarchy of version 1 (`proc_cgroup_show`), whatever it was in: then it is not
/// known.
fn parse_cgroup(text: &[u8], ending: bool) -> Option<String> {
    // What the kernel puts behind the name of one that was removed.
    const GONE: &str = " (deleted)";
    let text = String::from_utf8_lossy(text);
    let lines: Vec<(&str, &str)> = hierarchies(&text)
        .map(|(controllers, path)| (controllers, path.strip_suffix(GONE).unwrap_or(path)))
        .collect();
    let mut first_version = lines.iter().filter(|(controllers, _)| !controllers.is_empty()).peekable();
    let forgotten = ending && first_version.peek().is_some() && first_version.all(|(_, path)| *path == "/");
    if forgotten && !lines.iter().any(|(_, path)| path.contains("kubepods")) {
        return None;
    }
    let pick = |wanted: &dyn Fn(&str, &str) -> bool| {
        lines.iter().find(|(controllers, path)| wanted(controllers, path)).map(|(_, path)| (*path).to_owned())
    };
    pick(&|_, path| path.contains("kubepods"))
        .or_else(|| pick(&|controllers, path| controllers.is_empty() && path != "/"))
        .or_else(|| pick(&|controllers, path| controllers == "name=systemd" && path != "/"))
        .or_else(|| pick(&|_, path| path != "/"))
        .or_else(|| pick(&|_, _| true))
}

/// The last component of an argument or path.
#[must_use]
pub fn base_name(path: &[u8]) -> &[u8] {
    Path::new(std::ffi::OsStr::from_bytes(path)).file_name().map_or(&[], OsStrExt::as_bytes)
}

/// What the fuzzers give to the parsers of /proc.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(parse_stat(bytes));
    crate::fuzz::used(parse_status(bytes));
    crate::fuzz::used((parse_cgroup(bytes, false), parse_cgroup(bytes, true)));
    crate::fuzz::used(base_name(bytes));
    super::handles::fuzz(bytes);
    let text = String::from_utf8_lossy(bytes);
    super::code_hash::fuzz(&text);
    super::inodes::fuzz(&text);
}

/// Whether a process has executed another program, by what it ran before and after. One that ended in between runs nothing any more: what was read
/// before is of it.
fn is_another(before: Option<InodeKey>, after: Option<InodeKey>) -> bool {
    after.is_some() && before != after
}

#[cfg(test)]
mod tests {
    use super::{
        Proc, Stat, Status, base_name, is_another, kernel_dev, parse_cgroup, parse_stat, parse_status,
    };
    use crate::model::InodeKey;

    #[test]
    fn who_ended_while_he_was_read_has_executed_nothing() {
        let [sh, dd] = [1, 2].map(|ino| Some(InodeKey { dev: 1, ino }));
        assert!(!is_another(sh, sh) && !is_another(sh, None) && !is_another(None, None));
        assert!(is_another(sh, dd) && is_another(None, dd));
    }

    #[test]
    fn stat_survives_a_hostile_comm() {
        let line = b"42 (a) R 1 (b\n\xff) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        let expected = Stat {
            comm: "a) R 1 (b\n\u{fffd}".into(),
            state: b'S',
            ppid: 7,
            flags: 4_194_560,
            start_ticks: 987_654,
        };
        assert_eq!(parse_stat(line), Some(expected));
    }

    #[test]
    fn garbage_is_no_stat() {
        for line in [&b""[..], b"1 (x", b"1 )x( S 1", b"1 (x) S", b"1 (x) S 1 2 3"] {
            assert_eq!(parse_stat(line), None);
        }
    }

    #[test]
    fn status_takes_the_first_of_each() {
        let text = b"Name:\tx\nTgid:\t9\nPid:\t9\nTracerPid:\t3\nUid:\t1000\t0\t0\t0\nTgid:\t1\n";
        assert_eq!(parse_status(text), Some(Status { tgid: 9, uid: 1000, tracer: 3 }));
        assert_eq!(parse_status(b"Tgid: 1\nUid: x\n"), None);
    }

    #[test]
    fn cgroup_of_pod_wins_over_other_hierarchies() {
        let path = |text: &[u8]| parse_cgroup(text, false);
        let text = b"12:memory:/kubepods/burstable/pod1\n1:name=systemd:/system.slice/x.service\n0::/\n";
        assert_eq!(path(text).as_deref(), Some("/kubepods/burstable/pod1"));
        assert_eq!(path(b"1:name=systemd:/a\n0::/b:c\n").as_deref(), Some("/b:c"));
        assert_eq!(path(b"1:name=systemd:/a\n0::/\n").as_deref(), Some("/a"));
        assert_eq!(path(b"0::/\n").as_deref(), Some("/"));
        assert_eq!(path(b"0::/kubepods/pod1/c (deleted)\n").as_deref(), Some("/kubepods/pod1/c"));
        assert_eq!(path(b"nonsense\n"), None);
    }

    #[test]
    fn cgroup_of_what_is_ending_is_not_the_root() {
        let path = |text: &[u8]| parse_cgroup(text, true);
        assert_eq!(path(b"12:memory:/\n1:name=systemd:/\n0::/system.slice/containerd.service\n"), None);
        assert_eq!(path(b"12:memory:/kubepods/pod1\n0::/\n").as_deref(), Some("/kubepods/pod1"));
        assert_eq!(path(b"12:memory:/\n0::/kubepods/pod1\n").as_deref(), Some("/kubepods/pod1"));
        assert_eq!(path(b"0::/\n").as_deref(), Some("/"));
    }

    #[test]
    fn this_process_is_read() {
        let actor = Proc::default().actor(std::process::id()).unwrap();
        assert_eq!(actor.tgid, std::process::id());
        assert_eq!(actor.exe.clone().unwrap().as_path(), std::env::current_exe().unwrap());
        assert!(actor.start_time.unwrap() < crate::model::Time::now());
        // Another one that has its number later is not taken for it.
        assert_eq!(Proc::default().cgroup_of(&actor), actor.cgroup);
        let later = crate::model::Actor { start_boottime: actor.start_boottime + 1_000_000_000, ..actor };
        assert_eq!(Proc::default().cgroup_of(&later), None);
    }

    #[test]
    fn names_and_devices() {
        assert_eq!(base_name(b"/usr/bin/kubelet"), b"kubelet");
        assert_eq!(base_name(b"kubelet"), b"kubelet");
        assert_eq!(base_name(b""), b"");
        assert_eq!(kernel_dev(libc::makedev(254, 3)), (254 << 20) | 3);
    }
}
