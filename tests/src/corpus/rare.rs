//! Ways to change a file, or its name, that hardly any program takes, and that whoever evades a monitor does.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, RenameFlags};

use super::acts::{Act, By, Site, act, by, for_write, hooks_only, lower, or, prepared, some, v};
use super::raw::{self, Request};
use super::writes::{EXT4, is_on};

/// `IORING_OP_OPENAT`, `IORING_OP_RENAMEAT`, `IORING_OP_UNLINKAT`.
const OPENAT: u8 = 18;
const RENAMEAT: u8 = 35;
const UNLINKAT: u8 = 36;
/// A descriptor that stands for the current directory, as in an entry of a ring.
const HERE: i32 = libc::AT_FDCWD;
const BLOCK: usize = 4096;

/// Whether a ring of this kernel takes away names, which came with those that rename.
fn rings_know_names() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let nowhere = c"/nowhere/at/all";
        let request =
            Request { opcode: UNLINKAT, fd: HERE, addr: nowhere.as_ptr() as u64, ..Request::default() };
        raw::has_io_uring() && raw::submit(&request).is_ok_and(|result| result == -libc::ENOENT)
    })
}

fn done(request: &Request) -> Result<i32> {
    let result = raw::submit(request)?;
    ensure!(result >= 0, "{}", std::io::Error::from_raw_os_error(-result));
    Ok(result)
}

fn blocks(path: &Path, byte: u8) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&[byte; 2 * BLOCK])?;
    Ok(file.sync_all()?)
}

/// All acts of this file.
pub(super) const ACTS: &[Act] = &[
    act(
        "link_an_unnamed_file",
        |site, _| {
            let mut file =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(site.out())?;
            file.write_all(b"unnamed\n")?;
            let here = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::linkat(CWD, here, CWD, site.dir().join("new"), AtFlags::SYMLINK_FOLLOW)?)
        },
        &[lower("create", v("new", "unexpected", "link"))],
    ),
    act(
        "rename_leaving_a_whiteout",
        |site, _| {
            let to = site.out().join("away");
            Ok(rustix::fs::renameat_with(CWD, site.f(), CWD, to, RenameFlags::WHITEOUT)?)
        },
        &[some("f", "replaced", "rename")],
    ),
    prepared(
        "chown_of_a_link",
        |site| Ok(std::os::unix::fs::symlink("f", site.dir().join("s"))?),
        |site, _| Ok(std::os::unix::fs::lchown(site.dir().join("s"), Some(1234), Some(1234))?),
        &[v("s", "attributes", "setattr")],
    ),
    prepared(
        "rename_over_a_link",
        |site| Ok(std::os::unix::fs::symlink("f", site.dir().join("s"))?),
        |site, _| {
            let other = site.out().join("other");
            std::os::unix::fs::symlink("g", &other)?;
            Ok(fs::rename(other, site.dir().join("s"))?)
        },
        &[v("s", "replaced", "rename")],
    ),
    Act {
        can: |site| is_on(site, &[EXT4]) && moves_extents(site),
        ..prepared(
            "move_extents",
            |site| {
                blocks(&site.f(), b'a')?;
                blocks(&site.out().join("other"), b'X')
            },
            |site, _| {
                let other = OpenOptions::new().read(true).write(true).open(site.out().join("other"))?;
                let sealed = OpenOptions::new().read(true).write(true).open(site.f())?;
                // The sealed file is the one that gives its blocks, and takes the other's.
                raw::move_extents(&other, &sealed, 2)
            },
            &[some("f", "content", "open")],
        )
    },
    Act {
        can: |_| rings_know_names(),
        ..act(
            "unlink_by_io_uring",
            |site, _| {
                let path = raw::c_path(&site.f())?;
                let addr = path.as_ptr() as u64;
                done(&Request { opcode: UNLINKAT, fd: HERE, addr, ..Request::default() }).map(drop)
            },
            &[v("f", "removed", "unlink")],
        )
    },
    Act {
        can: |_| rings_know_names(),
        ..act(
            "rename_by_io_uring",
            |site, _| {
                let new = site.out().join("new");
                fs::write(&new, b"another\n")?;
                let (from, to) = (raw::c_path(&new)?, raw::c_path(&site.f())?);
                done(&Request {
                    opcode: RENAMEAT,
                    fd: HERE,
                    addr: from.as_ptr() as u64,
                    offset: to.as_ptr() as u64,
                    len: HERE.cast_unsigned(),
                    ..Request::default()
                })
                .map(drop)
            },
            &[v("f", "replaced", "rename")],
        )
    },
    Act {
        can: |_| rings_know_names(),
        ..act(
            "truncate_by_io_uring",
            |site, _| {
                let path = raw::c_path(&site.f())?;
                let opened = done(&Request {
                    opcode: OPENAT,
                    fd: HERE,
                    addr: path.as_ptr() as u64,
                    flags: (libc::O_WRONLY | libc::O_TRUNC).cast_unsigned(),
                    ..Request::default()
                })?;
                raw::close(opened);
                Ok(())
            },
            &[v("f", "content", "truncate")],
        )
    },
    Act {
        can: |_| Path::new("/dev/loop-control").exists(),
        ..prepared(
            "write_through_a_loop_device",
            |site| blocks(&site.f(), b'a'),
            |site, _| {
                let file = OpenOptions::new().read(true).write(true).open(site.f())?;
                raw::Loop::of(&file)?.write(&[b'X'; BLOCK])
            },
            // Of older kernels it passes the hook.
            &[or("write", some("f", "content", "open"))],
        )
    },
    act(
        "account_processes_to_it",
        |site, _| {
            raw::account_to(Some(&site.f()))?;
            // Who turns it off is accounted, too.
            raw::account_to(None)
        },
        // The one that writes last is a worker of the kernel's.
        &[by(By::TheKernel, lower("write", some("f", "content", "open")))],
    ),
    Act {
        can: |_| raw::has(libc::SYS_fchmodat2),
        ..act("fchmodat2", |site, _| raw::fchmodat2(&site.f(), 0o600), &[v("f", "attributes", "setattr")])
    },
    Act {
        can: |_| raw::has(raw::SYS_SETXATTRAT),
        ..act(
            "setxattrat",
            |site, _| raw::setxattrat(&site.f(), c"trusted.meshseal", b"x"),
            &[v("f", "attributes", "setxattr")],
        )
    },
    Act {
        can: |site| raw::has(raw::SYS_FILE_SETATTR) && is_on(site, &[EXT4]),
        ..act(
            "file_setattr",
            |site, _| raw::file_setattr_nodump(&site.f()),
            &[hooks_only(some("f", "attributes", "file_setattr"))],
        )
    },
    Act {
        can: |site| is_on(site, &[EXT4]) && sets_generations(site),
        ..act(
            "write_after_the_generation_was_set",
            |site, _| {
                raw::set_generation(&File::open(site.f())?, 4711)?;
                Ok(for_write(&site.f())?.write_all(b"TAMPER")?)
            },
            &[some("f", "content", "write")],
        )
    },
];

/// Not on every ext4: it depends on how that was made and mounted.
fn moves_extents(site: &Site) -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let probes = ["one", "other"].map(|name| site.root.join(format!(".probe-{name}")));
        let moved = (|| -> Result<()> {
            let mut files = Vec::new();
            for probe in &probes {
                blocks(probe, b'p')?;
                files.push(OpenOptions::new().read(true).write(true).open(probe)?);
            }
            raw::move_extents(&files[0], &files[1], 2)
        })();
        probes.iter().for_each(|probe| drop(fs::remove_file(probe)));
        moved.is_ok()
    })
}

/// Not where metadata has checksums, which hold the generation.
fn sets_generations(site: &Site) -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let probe = site.root.join(".probe");
        let set =
            File::create(&probe).map_err(anyhow::Error::from).and_then(|file| raw::set_generation(&file, 1));
        drop(fs::remove_file(probe));
        set.is_ok()
    })
}
