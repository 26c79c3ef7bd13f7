//! Attached is not working: each hook is proven by an act on a directory of our own, under a slot of its own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use monitor_ebpf::record::HookId;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::decode::Decoded;
use super::program;
use crate::baseline::{NoFile, open_regular};
use crate::inventory::inodes;
use crate::model::{Operation, Slot, Time};
use crate::sensor::tempdir::TempDir;

/// The file whose tag is set once, when the agent starts: where it is gone, others are too.
const SENTINEL: &str = ".meshseal-sentinel";

/// What came back.
#[derive(Debug)]
pub(super) struct Canaries {
    slot: u32,
    sentinel: u32,
    seen: Mutex<Vec<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    slot: u32,
    hook: HookId,
    dev: u32,
    operation: Operation,
    time: Time,
}

impl Canaries {
    /// For canaries under the last two of that many slots.
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slot: slots.saturating_sub(1),
            sentinel: slots.saturating_sub(2),
            seen: Mutex::new(Vec::new()),
        }
    }

    /// The slot that acts in a yard stand under.
    pub(super) fn slot(&self) -> Slot {
        Slot(self.slot)
    }

    /// The slot of the sentinel.
    pub(super) fn sentinel(&self) -> Slot {
        Slot(self.sentinel)
    }

    /// Whether that slot is ours.
    pub(super) fn owns(&self, slot: u32) -> bool {
        slot == self.slot || slot == self.sentinel
    }

    /// Takes an event if it is a canary's.
    pub(super) fn take(&self, event: &Decoded) -> bool {
        let slot = event.observation.slot.0;
        // The one that is told at its end stands under no slot.
        let set = event.hook == HookId::MountSetattr
            && event.observation.actor.as_ref().is_ok_and(|actor| actor.tgid == std::process::id());
        let slot = if set { self.slot } else { slot };
        let ours = self.owns(slot);
        if ours {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            // Somebody else acting in our directory must not fill the memory.
            if seen.len() < 1024 {
                let (operation, time) = (event.observation.operation, event.observation.time);
                seen.push(Seen { slot, hook: event.hook, dev: event.dev, operation, time });
            }
        }
        ours
    }

    /// Forgets what came before.
    pub(super) fn reset(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// When each hook was seen to work since [`reset`](Self::reset), by acts in a yard on the file system `own_dev`.
    pub(super) fn proven(&self, own_dev: u32) -> Vec<(HookId, Time)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let in_yard: Vec<Seen> = seen.iter().filter(|seen| seen.slot == self.slot).copied().collect();
        drop(seen);
        proven(&in_yard, own_dev)
    }

    /// Whether the sentinel was heard of since [`reset`](Self::reset).
    pub(super) fn sentinel_stands(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().any(|seen| seen.slot == self.sentinel)
    }
}

/// Makes the sentinel below `parent`, or takes the one that is there.
pub(super) fn sentinel(parent: &Path) -> std::io::Result<OwnedFd> {
    let path = parent.join(SENTINEL);
    let options = &mut File::options();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    match open_regular(&path, options, false) {
        Ok(file) => drop(file),
        Err(NoFile::NotRegular(is)) => {
            tracing::warn!(path = %path.display(), "a {is} stands where the sentinel should: made anew");
            if is == "directory" {
                std::fs::remove_dir(&path)?;
            } else {
                std::fs::remove_file(&path)?;
            }
            drop(options.create_new(true).open(&path)?);
        }
        Err(NoFile::Io(error)) => return Err(error),
    }
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the sentinel for writing, which its tag must tell of.
pub(super) fn touch_sentinel(parent: &Path) -> std::io::Result<()> {
    drop(open_regular(&parent.join(SENTINEL), File::options().write(true), false)?);
    Ok(())
}

/// Hooks with a record are proven by it. `d_instantiate` is by a write to a file that only it can have tagged, and
/// `sb_kern_mount` by a name made on a file system mounted below.
fn proven(seen: &[Seen], own_dev: u32) -> Vec<(HookId, Time)> {
    let mut out: Vec<(HookId, Time)> = Vec::new();
    for event in seen {
        let mut prove = |hook| match out.iter_mut().find(|(known, _)| *known == hook) {
            Some((_, time)) => *time = event.time,
            None => out.push((hook, event.time)),
        };
        prove(event.hook);
        if event.hook == HookId::FilePermission && event.dev == own_dev {
            prove(HookId::DInstantiate);
        }
        if event.operation == Operation::Create && event.dev != own_dev {
            prove(HookId::SbKernMount);
        }
    }
    out
}

/// The directory the acts are done in; gone when dropped.
#[derive(Debug)]
pub(super) struct Yard {
    dir: TempDir,
    /// To tag it by.
    pub fd: OwnedFd,
    /// Its file system, as the kernel numbers it.
    pub dev: u32,
}

impl Yard {
    /// Makes it below `parent`.
    pub(super) fn new(parent: &Path) -> std::io::Result<Self> {
        let dir = TempDir::new(parent)?;
        let fd =
            rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let dev = inodes::of(&fd)?.dev;
        Ok(Self { dir, fd, dev })
    }

    /// Does everything that a hook stands on, once. What a file system refuses was seen by its hook all the same.
    pub(super) fn act(&self) -> std::io::Result<()> {
        let at = |name: &str| self.dir.path().join(name);
        let path = at("file");
        let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
        file.write_all(b"canary")?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.set_len(4096)?;
        map(&file);
        set_flags(&file);
        // On its way through the VFS an attribute passes the hook before the file system says whether it has any.
        let _ = rustix::fs::fsetxattr(&file, "trusted.meshseal", b"1", rustix::fs::XattrFlags::empty());
        let _ = rustix::fs::fremovexattr(&file, "trusted.meshseal");
        let acl: &[u8] = &[
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255,
            255, 255, 255,
        ];
        let _ = rustix::fs::fsetxattr(&file, "system.posix_acl_access", acl, rustix::fs::XattrFlags::empty());
        let _ = rustix::fs::fremovexattr(&file, "system.posix_acl_access");
        drop(file);
        std::fs::hard_link(&path, at("link"))?;
        std::os::unix::fs::symlink("file", at("symlink"))?;
        std::fs::create_dir(at("dir"))?;
        rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)?;
        std::fs::rename(at("link"), at("renamed"))?;
        rustix::fs::unlinkat(CWD, at("renamed"), AtFlags::empty())?;
        std::fs::remove_dir(at("dir"))
    }

    /// Runs a program of the yard, which executes itself once more and makes code of what it has mapped, and reads a byte of
    /// its memory.
    pub(super) fn run_and_reach_into_it(&self) -> std::io::Result<()> {
        let path = self.dir.path().join("program");
        let mut file = File::options().create_new(true).write(true).mode(0o700).open(&path)?;
        file.write_all(&program::elf())?;
        drop(file);
        let mut command = std::process::Command::new(&path);
        let mut child = command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut byte = [0_u8];
        // It is started before its memory is laid out: its own word says that it runs.
        let runs = child.stdout.take().map_or(Ok(()), |mut out| out.read_exact(&mut byte));
        let to = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let from =
            libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(program::LOADED_AT), iov_len: 1 };
        let pid = i32::try_from(child.id()).unwrap_or_default();
        // SAFETY: room for one byte; whatever stands at the other address is the other process's.
        let read = unsafe { libc::process_vm_readv(pid, &raw const to, 1, &raw const from, 1, 0) };
        let failed = (read != 1).then(std::io::Error::last_os_error);
        child.kill()?;
        child.wait()?;
        runs?;
        failed.map_or(Ok(()), Err)
    }

    /// Makes an ioctl as a program of 32 bits does. False where no such program runs on this kernel, so that nothing can
    /// come by that way.
    pub(super) fn act_in_32_bits(&self) -> std::io::Result<bool> {
        Ok(ioctl_in_32_bits(&File::open(self.dir.path().join("file"))?))
    }

    /// Mounts below it, by the old way and the new, in a mount namespace that ends with the thread.
    pub(super) fn mount(&self) -> std::io::Result<()> {
        let (first, second) = (self.dir.path().join("mount"), self.dir.path().join("moved"));
        std::fs::create_dir(&first)?;
        std::fs::create_dir(&second)?;
        std::thread::scope(|scope| scope.spawn(|| mounts(&first, &second)).join())
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread that mounts panicked")))
    }
}

fn mounts(first: &Path, second: &Path) -> std::io::Result<()> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
        MoveMountFlags, UnmountFlags,
    };
    // SAFETY: only this thread, which ends with the function, leaves the mount namespace and the shared root.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("none", first, "tmpfs", MountFlags::empty(), None)?;
    File::create(first.join("file"))?;
    let picked = rustix::mount::fspick(CWD, first, FsPickFlags::FSPICK_CLOEXEC)?;
    rustix::mount::fsconfig_reconfigure(picked.as_fd())?;
    // It ends at what is no mount point, after its hook.
    let (root, old) = (first.join("root"), first.join("root/old"));
    std::fs::create_dir_all(&old)?;
    let _refused = rustix::process::pivot_root(&root, &old);
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, second, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    set_attributes(second)?;
    // Its descriptor still holds it.
    rustix::mount::unmount(second, UnmountFlags::DETACH)?;
    Ok(())
}

/// `mount_setattr`, where the kernel has it (5.12).
fn set_attributes(point: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    /// `struct mount_attr`: set, clear, propagation, user namespace. `MOUNT_ATTR_NOEXEC`.
    const ATTRIBUTES: [u64; 4] = [8, 0, 0, 0];
    let path = std::ffi::CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: a string that ends with NUL, and a structure as long as is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            ATTRIBUTES.as_ptr(),
            size_of_val(&ATTRIBUTES),
        )
    };
    let error = std::io::Error::last_os_error();
    if done == 0 || error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) }
}

/// Sets the inode's flags to what they are. File systems that have none do not get as far as the hook for them.
fn set_flags(file: &File) {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int, for which there is room.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } == 0 {
        // SAFETY: the kernel reads an int.
        let _ = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) };
    }
    // SAFETY: no file system knows it, and no memory is passed.
    let _ = unsafe { libc::ioctl(file.as_raw_fd(), UNKNOWN_IOCTL, 0) };
}

/// `_IO('m', 0x7f)`: nobody's.
const UNKNOWN_IOCTL: libc::c_ulong = 0x6d7f;

/// In a child: a kernel without the 32-bit entry kills whoever uses it.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "one child, from beginning to end")]
fn ioctl_in_32_bits(file: &File) -> bool {
    let fd = u64::try_from(file.as_raw_fd()).unwrap_or_default();
    // SAFETY: the child makes two system calls and touches no memory but its stack.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            // ioctl is number 54 there. `rbx` is the compiler's, and is given back.
            std::arch::asm!(
                "xchg rbx, {fd}",
                "int 0x80",
                "xchg rbx, {fd}",
                fd = inout(reg) fd => _,
                inout("rax") 54_u64 => _,
                in("rcx") UNKNOWN_IOCTL,
                in("rdx") 0_u64,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
            libc::_exit(0);
        }
        let mut status = 0;
        child > 0 && libc::waitpid(child, &raw mut status, 0) == child && libc::WIFEXITED(status)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn ioctl_in_32_bits(_file: &File) -> bool {
    false
}

/// A shared writable mapping, and one that becomes so.
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "one mapping, from beginning to end")]
fn map(file: &File) {
    for prot in [libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ] {
        // SAFETY: a fresh mapping, not touched, changed and taken away again.
        unsafe {
            let page = libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, file.as_raw_fd(), 0);
            if page != libc::MAP_FAILED {
                let _ = libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE);
                let _ = libc::munmap(page, 4096);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{SENTINEL, sentinel, touch_sentinel};

    #[test]
    fn a_sentinel_that_is_no_file_is_made_anew_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SENTINEL);
        let odd: [&dyn Fn(); 4] = [
            &|| mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
            &|| drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
            &|| std::os::unix::fs::symlink("elsewhere", &path).unwrap(),
            &|| std::fs::create_dir(&path).unwrap(),
        ];
        for make in odd {
            make();
            touch_sentinel(dir.path()).unwrap_err();
            sentinel(dir.path()).unwrap();
            assert!(path.symlink_metadata().unwrap().is_file());
            touch_sentinel(dir.path()).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        assert!(!dir.path().join("elsewhere").exists());
    }
}
