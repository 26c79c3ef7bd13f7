//! The acts: each done once, by a process of its own, on objects of its own, with all the records it must give.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};

use crate::process::{heard, say};

/// What every object holds when it is sealed.
pub(super) const SEALED: &[u8] = b"sealed content\n";
const XATTR: &str = "trusted.meshseal";

/// Where one act happens.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// The tree of all acts on one file system.
    pub(super) root: PathBuf,
    pub(super) name: &'static str,
}

impl Site {
    /// A closed, sealed directory with `f` and `g`.
    pub(super) fn dir(&self) -> PathBuf {
        self.root.join("t").join(self.name)
    }

    /// A directory that is not watched, on the same file system.
    pub(super) fn out(&self) -> PathBuf {
        self.root.join("o").join(self.name)
    }

    /// A directory that is open, in which `f` is sealed.
    pub(super) fn lone(&self) -> PathBuf {
        self.root.join("l").join(self.name)
    }

    /// A program that is sealed: this one.
    pub(super) fn program(&self) -> PathBuf {
        self.root.join("program")
    }

    /// The name of a file in memory, as records print it without the slash before.
    pub(super) fn in_memory(&self) -> String {
        format!("memfd:{}-{}", self.name, self.root.display().to_string().replace('/', "-"))
    }

    pub(super) fn f(&self) -> PathBuf {
        self.dir().join("f")
    }

    fn g(&self) -> PathBuf {
        self.dir().join("g")
    }
}

/// One record that must come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// Below `t/<act>`, or below `l/<act>` where it begins with a slash; or [`IN_MEMORY`]. As records print it.
    pub(super) path: &'static str,
    /// `None`: an attempt.
    pub(super) violation: Option<&'static str>,
    /// As the `lsm` rung tells it.
    pub(super) operation: &'static str,
    /// Checked on the `lsm` rung, where it is exact.
    pub(super) count: Option<u64>,
    /// Only programs on the kernel's hooks see it.
    pub(super) hooks_only: bool,
    /// What lower rungs say of this act, where that is not what they say of the operation.
    pub(super) lower: Option<&'static str>,
    /// What some kernels say of it instead of the operation.
    pub(super) instead: Option<&'static str>,
    pub(super) by: By,
}

/// Who is told to have acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The process that acts.
    It,
    /// A child of it, of the same name and program, which is gone before anybody can ask.
    Momentary,
    /// It, or on lower rungs a thread of the kernel's own.
    TheKernel,
}

/// The path of what has none: [`Site::in_memory`].
pub(super) const IN_MEMORY: &str = "memfd:";

/// Told otherwise by lower rungs.
pub(super) const fn lower(operation: &'static str, expected: Expected) -> Expected {
    Expected { lower: Some(operation), ..expected }
}

/// What lower rungs cannot see.
pub(super) const fn hooks_only(expected: Expected) -> Expected {
    Expected { hooks_only: true, ..expected }
}

/// Told by some kernels with another word.
pub(super) const fn or(operation: &'static str, expected: Expected) -> Expected {
    Expected { instead: Some(operation), ..expected }
}

/// By another than the process that acts.
pub(super) const fn by(by: By, expected: Expected) -> Expected {
    Expected { by, ..expected }
}

/// A violation by one act.
pub(super) const fn v(path: &'static str, violation: &'static str, operation: &'static str) -> Expected {
    times(1, path, violation, operation)
}

/// As [`v`], where the kernel may ask its hooks more than once.
pub(super) const fn some(path: &'static str, violation: &'static str, operation: &'static str) -> Expected {
    Expected { count: None, ..v(path, violation, operation) }
}

/// As [`v`], done so many times.
const fn times(count: u64, path: &'static str, violation: &'static str, operation: &'static str) -> Expected {
    Expected {
        path,
        violation: Some(violation),
        operation,
        count: Some(count),
        hooks_only: false,
        lower: None,
        instead: None,
        by: By::It,
    }
}

/// Told as /proc shows it, on each rung.
const fn held(path: &'static str, operation: &'static str) -> Expected {
    lower(operation, some(path, "held_handle", operation))
}

pub(super) const fn attempt(path: &'static str, operation: &'static str) -> Expected {
    Expected { violation: None, ..v(path, "", operation) }
}

/// When the process that acts begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// Once the agent is ready.
    Now,
    /// Before the agent starts; it acts when the agent is ready.
    Before,
}

/// One act.
#[derive(Debug, Clone, Copy)]
pub(super) struct Act {
    pub(super) name: &'static str,
    pub(super) begins: Begins,
    /// Before sealing; `f` and `g` are there already.
    pub(super) prepare: fn(&Site) -> Result<()>,
    /// Done by a process of its own. The gate returns when the agent is ready.
    pub(super) act: fn(&Site, Gate) -> Result<()>,
    /// All records it gives.
    pub(super) expected: &'static [Expected],
    /// Whether this kernel and file system can do it at all.
    pub(super) can: fn(&Site) -> bool,
}

/// All acts of all files.
pub(super) fn all() -> impl Iterator<Item = &'static Act> {
    ACTS.iter()
        .chain(super::writes::ACTS)
        .chain(super::rare::ACTS)
        .chain(super::ways::ACTS)
        .chain(super::combined::ACTS)
        .chain(super::subvolumes::ACTS)
        .chain(super::memory::ACTS)
        .chain(super::code::ACTS)
}

pub(super) type Gate = fn() -> Result<()>;

pub(super) const fn act(
    name: &'static str,
    act: fn(&Site, Gate) -> Result<()>,
    expected: &'static [Expected],
) -> Act {
    Act { name, begins: Begins::Now, prepare: |_| Ok(()), act, expected, can: |_| true }
}

pub(super) const fn prepared(
    name: &'static str,
    prepare: fn(&Site) -> Result<()>,
    act: fn(&Site, Gate) -> Result<()>,
    expected: &'static [Expected],
) -> Act {
    Act { name, begins: Begins::Now, prepare, act, expected, can: |_| true }
}

pub(super) fn for_write(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path).with_context(|| path.display().to_string())
}

fn other(path: &Path) -> Result<()> {
    Ok(for_write(path)?.write_all(b"TAMPER")?)
}

/// Maps `f`, stores into it, and unmaps it.
fn store(path: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    super::mapping::Mapping::of(&file, SEALED.len())?.store(0, b'X');
    Ok(())
}

fn hostile(site: &Site, name: &[u8]) -> PathBuf {
    site.dir().join(OsStr::from_bytes(name))
}

fn mkfifo(path: &Path) -> Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?)
}

pub(super) fn source(site: &Site) -> Result<File> {
    let path = site.out().join("source");
    fs::write(&path, b"from elsewhere\n")?;
    Ok(File::open(path)?)
}

/// All acts.
const ACTS: &[Act] = &[
    act("open_for_write_only", |site, _| for_write(&site.f()).map(drop), &[attempt("f", "open")]),
    act("write", |site, _| other(&site.f()), &[v("f", "content", "write")]),
    act(
        "pwrite",
        |site, _| Ok(for_write(&site.f())?.write_all_at(b"TAMPER", 3)?),
        &[v("f", "content", "write")],
    ),
    act(
        "writev",
        |site, _| {
            let two = [IoSlice::new(b"TAM"), IoSlice::new(b"PER")];
            let written = for_write(&site.f())?.write_vectored(&two)?;
            ensure!(written == 6, "short write");
            Ok(())
        },
        &[v("f", "content", "write")],
    ),
    act(
        "open_truncating",
        |site, _| {
            drop(OpenOptions::new().write(true).truncate(true).open(site.f())?);
            Ok(())
        },
        &[v("f", "content", "truncate")],
    ),
    act("truncate", |site, _| super::raw::truncate(&site.f(), 3), &[v("f", "content", "truncate")]),
    act("ftruncate", |site, _| Ok(for_write(&site.f())?.set_len(3)?), &[v("f", "content", "truncate")]),
    act(
        "append",
        |site, _| Ok(OpenOptions::new().append(true).open(site.f())?.write_all(b"more\n")?),
        &[v("f", "content", "write")],
    ),
    act("store_through_a_mapping", |site, _| store(&site.f()), &[v("f", "content", "mmap")]),
    act(
        "chmod",
        |site, _| Ok(fs::set_permissions(site.f(), fs::Permissions::from_mode(0o666))?),
        &[v("f", "attributes", "setattr")],
    ),
    act(
        "fchmod",
        |site, _| Ok(File::open(site.f())?.set_permissions(fs::Permissions::from_mode(0o666))?),
        &[v("f", "attributes", "setattr")],
    ),
    act(
        "chown",
        |site, _| Ok(std::os::unix::fs::chown(site.f(), Some(4711), Some(4712))?),
        &[v("f", "attributes", "setattr")],
    ),
    act(
        "utimensat",
        |site, _| {
            let then = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
            let times = Timestamps { last_access: then, last_modification: then };
            Ok(rustix::fs::utimensat(CWD, site.f(), &times, AtFlags::empty())?)
        },
        &[v("f", "attributes", "setattr")],
    ),
    act(
        "setxattr",
        |site, _| Ok(rustix::fs::setxattr(site.f(), XATTR, b"new", XattrFlags::empty())?),
        &[v("f", "attributes", "setxattr")],
    ),
    prepared(
        "removexattr",
        |site| Ok(rustix::fs::setxattr(site.f(), XATTR, b"sealed", XattrFlags::empty())?),
        |site, _| Ok(rustix::fs::removexattr(site.f(), XATTR)?),
        &[v("f", "attributes", "removexattr")],
    ),
    act(
        "chmod_of_the_directory",
        |site, _| Ok(fs::set_permissions(site.dir(), fs::Permissions::from_mode(0o777))?),
        &[v("", "attributes", "setattr")],
    ),
    act(
        "link_outside",
        |site, _| Ok(fs::hard_link(site.f(), site.out().join("alias"))?),
        &[v("f", "linked", "link")],
    ),
    act(
        "symlink",
        |site, _| Ok(symlink("/etc/passwd", site.dir().join("new"))?),
        &[v("new", "unexpected", "symlink")],
    ),
    act("mkdir", |site, _| Ok(fs::create_dir(site.dir().join("new"))?), &[v("new", "unexpected", "mkdir")]),
    act("mkfifo", |site, _| mkfifo(&site.dir().join("new")), &[v("new", "unexpected", "mknod")]),
    act(
        "create",
        |site, _| Ok(fs::write(site.dir().join("new"), b"dropped")?),
        &[v("new", "unexpected", "create")],
    ),
    act("unlink", |site, _| Ok(fs::remove_file(site.f())?), &[v("f", "removed", "unlink")]),
    prepared(
        "rmdir",
        |site| Ok(fs::create_dir(site.dir().join("sub"))?),
        |site, _| Ok(fs::remove_dir(site.dir().join("sub"))?),
        &[v("sub", "removed", "rmdir")],
    ),
    act(
        "rename_away",
        |site, _| Ok(fs::rename(site.f(), site.out().join("away"))?),
        &[v("f", "renamed", "rename")],
    ),
    act(
        "rename_over",
        |site, _| {
            let new = site.out().join("new");
            fs::write(&new, b"another\n")?;
            Ok(fs::rename(new, site.f())?)
        },
        &[v("f", "replaced", "rename")],
    ),
    act(
        "move_in",
        |site, _| {
            let new = site.out().join("new");
            fs::write(&new, b"dropped")?;
            Ok(fs::rename(new, site.dir().join("new"))?)
        },
        &[v("new", "unexpected", "rename")],
    ),
    act(
        "move_a_directory_in",
        |site, _| {
            let new = site.out().join("new");
            fs::create_dir(&new)?;
            fs::write(new.join("file"), b"dropped")?;
            Ok(fs::rename(new, site.dir().join("new"))?)
        },
        &[v("new", "unexpected", "rename")],
    ),
    act(
        "rename_within",
        |site, _| Ok(fs::rename(site.f(), site.dir().join("h"))?),
        &[v("f", "renamed", "rename")],
    ),
    prepared(
        "rename_exchange",
        |site| Ok(fs::write(site.g(), b"sealed differently\n")?),
        |site, _| Ok(rustix::fs::renameat_with(CWD, site.f(), CWD, site.g(), RenameFlags::EXCHANGE)?),
        &[some("f", "replaced", "rename"), some("g", "replaced", "rename")],
    ),
    act(
        "write_the_same_bytes",
        |site, _| Ok(for_write(&site.f())?.write_all(SEALED)?),
        &[v("f", "reverted", "write")],
    ),
    act(
        "change_and_put_back",
        |site, _| {
            let file = for_write(&site.f())?;
            file.write_all_at(b"X", 0)?;
            Ok(file.write_all_at(&SEALED[..1], 0)?)
        },
        &[times(2, "f", "reverted", "write")],
    ),
    prepared(
        "write_through_a_hard_link",
        |site| Ok(fs::hard_link(site.f(), site.out().join("alias"))?),
        |site, _| other(&site.out().join("alias")),
        &[v("f", "content", "write")],
    ),
    act(
        "write_through_a_bind_mount",
        |site, _| {
            super::raw::private_mounts()?;
            rustix::mount::mount_bind(site.dir(), site.out())?;
            other(&site.out().join("f"))
        },
        &[v("f", "content", "write")],
    ),
    act(
        "write_through_proc_root",
        |site, _| {
            let root = PathBuf::from(format!("/proc/{}/root", std::os::unix::process::parent_id()));
            other(&root.join(site.f().strip_prefix("/")?))
        },
        &[v("f", "content", "write")],
    ),
    Act {
        name: "write_through_a_held_handle",
        begins: Begins::Before,
        prepare: |_| Ok(()),
        act: |site, gate| {
            let mut file = for_write(&site.f())?;
            gate()?;
            Ok(file.write_all(b"TAMPER")?)
        },
        expected: &[held("f", "open"), v("f", "content", "write")],
        can: |_| true,
    },
    Act {
        name: "store_through_a_held_mapping",
        begins: Begins::Before,
        prepare: |_| Ok(()),
        act: |site, gate| {
            let file = OpenOptions::new().read(true).write(true).open(site.f())?;
            let mapping = super::mapping::Mapping::of(&file, SEALED.len())?;
            drop(file);
            gate()?;
            mapping.store(0, b'X');
            Ok(())
        },
        expected: &[held("f", "mmap"), some("f", "content", "mmap")],
        can: |_| true,
    },
    act(
        "sendfile",
        |site, _| {
            let (from, to) = (source(site)?, for_write(&site.f())?);
            ensure!(rustix::fs::sendfile(&to, &from, None, 15)? == 15, "short sendfile");
            Ok(())
        },
        &[some("f", "content", "write")],
    ),
    act(
        "copy_file_range",
        |site, _| {
            let (from, to) = (source(site)?, for_write(&site.f())?);
            ensure!(rustix::fs::copy_file_range(&from, None, &to, None, 15)? == 15, "short copy");
            Ok(())
        },
        &[some("f", "content", "write")],
    ),
    act(
        "splice",
        |site, _| {
            let (read, write) = rustix::pipe::pipe()?;
            rustix::io::write(&write, b"through a pipe\n")?;
            let to = for_write(&site.f())?;
            let flags = rustix::pipe::SpliceFlags::empty();
            ensure!(rustix::pipe::splice(&read, None, &to, None, 15, flags)? == 15, "short splice");
            Ok(())
        },
        &[some("f", "content", "write")],
    ),
    act(
        "fallocate",
        |site, _| Ok(rustix::fs::fallocate(for_write(&site.f())?, FallocateFlags::empty(), 0, 4096)?),
        &[some("f", "content", "write")],
    ),
    act(
        "sed_in_place",
        |site, _| {
            let temporary = site.dir().join("sedXXX1");
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(b"edited content\n")?;
            drop(file);
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
            Ok(fs::rename(temporary, site.f())?)
        },
        &[v("f", "replaced", "rename")],
    ),
    act(
        "write_as_an_editor_does",
        |site, _| {
            fs::rename(site.f(), site.dir().join("f~"))?;
            Ok(fs::write(site.f(), b"edited content\n")?)
        },
        &[v("f", "replaced", "rename"), v("f~", "unexpected", "rename")],
    ),
    act(
        "drop_and_remove",
        |site, _| {
            let new = site.dir().join("moment");
            fs::write(&new, b"gone soon")?;
            Ok(fs::remove_file(new)?)
        },
        &[v("moment", "unexpected", "create")],
    ),
    prepared(
        "write_to_hostile_names",
        |site| {
            for name in [&b"new\nline"[..], b"\xff\xfe\\"] {
                fs::write(hostile(site, name), SEALED)?;
            }
            Ok(())
        },
        |site, _| {
            other(&hostile(site, b"new\nline"))?;
            other(&hostile(site, b"\xff\xfe\\"))
        },
        &[v("new\nline", "content", "write"), v("\\xff\\xfe\\x5c", "content", "write")],
    ),
    act(
        "drop_hostile_names",
        |site, _| {
            fs::write(hostile(site, b"a\nb"), b"dropped")?;
            Ok(fs::write(hostile(site, b"\xc3\x28"), b"dropped")?)
        },
        &[v("a\nb", "unexpected", "create"), v("\\xc3(", "unexpected", "create")],
    ),
    prepared(
        "replace_a_fifo",
        |site| {
            mkfifo(&site.dir().join("pipe"))?;
            drop(std::os::unix::net::UnixListener::bind(site.dir().join("s"))?);
            Ok(())
        },
        |site, _| {
            let new = site.out().join("new");
            fs::write(&new, b"no pipe\n")?;
            Ok(fs::rename(new, site.dir().join("pipe"))?)
        },
        &[v("pipe", "replaced", "rename")],
    ),
    act(
        "by_a_child_that_lives_a_moment",
        |site, _| super::raw::momentary(&site.f()),
        &[by(By::Momentary, v("f", "content", "write"))],
    ),
    act(
        "write_by_threads_of_one_process",
        |site, _| {
            // The thread has to begin at another time than its process.
            let began = std::time::Instant::now();
            while began.elapsed() < std::time::Duration::from_millis(50) {
                std::thread::yield_now();
            }
            other(&site.f())?;
            let thread = std::thread::scope(|scope| scope.spawn(|| other(&site.f())).join());
            thread.map_err(|_| anyhow::anyhow!("the thread panicked"))?
        },
        &[times(2, "f", "content", "write")],
    ),
    act(
        "write_after_the_first_thread_ended",
        |site, _| {
            let path = site.f();
            std::thread::spawn(move || {
                let first = format!("/proc/self/task/{}/stat", std::process::id());
                while !fs::read_to_string(&first).is_ok_and(|stat| stat.contains(") Z ")) {
                    std::thread::yield_now();
                }
                let done = other(&path).and_then(|()| say("done")).and_then(|()| heard());
                std::process::exit(i32::from(done.is_err()));
            });
            super::raw::end_this_thread()
        },
        &[v("f", "content", "write")],
    ),
    act("write_to_a_lone_file", |site, _| other(&site.lone().join("f")), &[v("/f", "content", "write")]),
    act(
        "unlink_a_lone_file",
        |site, _| Ok(fs::remove_file(site.lone().join("f"))?),
        &[v("/f", "removed", "unlink")],
    ),
    act(
        "make_a_lone_file_anew",
        |site, _| {
            fs::remove_file(site.lone().join("f"))?;
            Ok(fs::write(site.lone().join("f"), b"another\n")?)
        },
        &[some("/f", "replaced", "create")],
    ),
    act(
        "rename_over_a_lone_file",
        |site, _| {
            let new = site.lone().join("new");
            fs::write(&new, b"another\n")?;
            Ok(fs::rename(new, site.lone().join("f"))?)
        },
        &[v("/f", "replaced", "rename")],
    ),
    act(
        "write_beside_a_lone_file",
        |site, _| {
            let beside = site.lone().join("beside");
            fs::write(&beside, b"neighbour")?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            fs::rename(&beside, site.lone().join("besides"))?;
            Ok(fs::remove_file(site.lone().join("besides"))?)
        },
        &[],
    ),
    prepared(
        "read_list_and_execute",
        |site| {
            fs::write(site.dir().join("run"), b"#!/bin/sh\nexit 0\n")?;
            Ok(fs::set_permissions(site.dir().join("run"), fs::Permissions::from_mode(0o755))?)
        },
        |site, _| {
            for _ in 0..20 {
                ensure!(fs::read(site.f())? == SEALED, "other bytes");
                fs::metadata(site.f())?;
                ensure!(fs::read_dir(site.dir())?.count() == 3, "other names");
                rustix::fs::access(site.f(), rustix::fs::Access::WRITE_OK)?;
                let mapped = super::mapping::Mapping::private(&File::open(site.f())?, SEALED.len())?;
                ensure!(mapped.first() == b's', "other bytes");
            }
            let done = std::process::Command::new(site.dir().join("run")).status()?;
            ensure!(done.success(), "{done}");
            rustix::fs::flock(File::open(site.f())?.as_fd(), rustix::fs::FlockOperation::LockShared)?;
            ensure!(File::open(site.dir())?.as_raw_fd() >= 0, "no directory");
            Ok(())
        },
        &[],
    ),
];
