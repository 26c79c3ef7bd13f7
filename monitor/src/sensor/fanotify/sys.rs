//! The kernel boundary: fanotify and file handles. The only place here with `unsafe`.
//!
//! Facts: fanotify_init(2), fanotify_mark(2), fanotify(7), name_to_handle_at(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Longest file handle (`MAX_HANDLE_SZ`).
pub(super) const HANDLE_MAX: usize = 128;
/// `AT_HANDLE_FID`: a handle that identifies, but need not open. Linux 6.5 and later.
const AT_HANDLE_FID: libc::c_int = 0x200;

/// An inode as fanotify names it: fsid (8 bytes), handle length (4), handle type (4), handle. The same bytes that
/// stand in an event, so that a look-up copies nothing. Nearly all handles are short, and stand in it.
#[derive(Clone)]
pub(super) enum FileId {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(std::sync::Arc<[u8]>),
}

/// With handles of ext4, tmpfs and xfs it is shorter.
pub(super) const SHORT: usize = 28;
/// Bytes before the handle.
pub(super) const HEAD: usize = 16;

impl FileId {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut room = [0; SHORT];
        match (room.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(start), Ok(length)) => {
                start.copy_from_slice(bytes);
                Self::Short { length, bytes: room }
            }
            _ => Self::Long(bytes.into()),
        }
    }

    /// The file system.
    pub(super) fn fsid(&self) -> [u8; 8] {
        let mut fsid = [0; 8];
        fsid.copy_from_slice(&self[..8]);
        fsid
    }

    /// Of that beginning and of `handle` as much as it says.
    pub(super) fn of(head: &[u8; HEAD], handle: &[u8; SHORT - HEAD]) -> Self {
        let mut bytes = [0; SHORT];
        bytes[..HEAD].copy_from_slice(head);
        bytes[HEAD..].copy_from_slice(handle);
        let [.., a, b, c, d, _, _, _, _] = *head;
        let length = u32::from_ne_bytes([a, b, c, d]).min((SHORT - HEAD) as u32) as u8;
        Self::Short { length: HEAD as u8 + length, bytes }
    }

    /// What is before the handle.
    pub(super) fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head.copy_from_slice(&self[..HEAD]);
        head
    }

    pub(super) fn handle(&self) -> &[u8] {
        &self[HEAD..]
    }

    fn handle_type(&self) -> i32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self[12..16]);
        i32::from_ne_bytes(bytes)
    }
}

impl std::ops::Deref for FileId {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for FileId {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for FileId {}

impl PartialOrd for FileId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FileId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl std::hash::Hash for FileId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl std::borrow::Borrow<[u8]> for FileId {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", hex::encode(self.fsid()), self.handle_type(), hex::encode(self.handle()))
    }
}

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_MAX],
}

/// `fanotify_init(2)`.
pub(super) fn init(flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd =
        unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE) as u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given out and nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `fanotify_mark(2)` on the inode (or the file system) behind a descriptor, `O_PATH` or not.
pub(super) fn mark(group: BorrowedFd<'_>, flags: u32, mask: u64, at: BorrowedFd<'_>) -> io::Result<()> {
    mark_path(group, flags, mask, Path::new(&format!("/proc/self/fd/{}", at.as_raw_fd())))
}

/// `fanotify_mark(2)` on a path.
pub(super) fn mark_path(group: BorrowedFd<'_>, flags: u32, mask: u64, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let result =
        unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The inode behind a descriptor (`O_PATH` is enough), as events name it.
pub(super) fn file_id(fd: BorrowedFd<'_>) -> io::Result<FileId> {
    let handle = match handle_of(fd, 0) {
        // Overlay and others without export operations have handles that only identify.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => handle_of(fd, AT_HANDLE_FID)?,
        other => other?,
    };
    let fsid = fsid(fd)?;
    let length = usize::try_from(handle.bytes).unwrap_or(HANDLE_MAX).min(HANDLE_MAX);
    let mut bytes = Vec::with_capacity(16 + length);
    bytes.extend_from_slice(&fsid);
    bytes.extend_from_slice(&handle.bytes.to_ne_bytes());
    bytes.extend_from_slice(&handle.kind.to_ne_bytes());
    bytes.extend_from_slice(&handle.data[..length]);
    Ok(FileId::new(&bytes))
}

fn handle_of(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<RawHandle> {
    let mut handle = RawHandle { bytes: HANDLE_MAX as u32, kind: 0, data: [0; HANDLE_MAX] };
    let mut mount: libc::c_int = 0;
    // SAFETY: `handle` has room for the bytes it announces, and the path is an empty NUL-terminated string; both and
    // `mount` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH | flags,
        )
    };
    if result == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
}

/// `f_fsid` of the file system behind a descriptor.
pub(super) fn fsid(fd: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `stat` has room for what the call writes.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it was zeroed, and filled in by the call.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: `fsid_t` is two ints, for which any bytes are valid, and whose fields are private.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, [u8; 8]>(stat.f_fsid) })
}

/// `open_by_handle_at(2)` with `O_PATH` (or reading a directory). `mount` must be on the same file system, and not
/// `O_PATH` itself.
pub(super) fn open(mount: BorrowedFd<'_>, id: &FileId, flags: libc::c_int) -> io::Result<OwnedFd> {
    let source = id.handle();
    let mut handle = RawHandle { bytes: source.len() as u32, kind: id.handle_type(), data: [0; HANDLE_MAX] };
    let Some(room) = handle.data.get_mut(..source.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EOVERFLOW));
    };
    room.copy_from_slice(source);
    // SAFETY: `handle` holds as many bytes as it announces and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            flags | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given out and nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over a pidfd that stands in an event.
pub(super) fn adopt_pidfd(fd: i32) -> Option<OwnedFd> {
    // SAFETY: fanotify installed it for the reader of this event, who parses each event once.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process behind a pidfd has not been reaped: then its pid still is its own.
pub(super) fn pidfd_alive(pidfd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers but a null one, which pidfd_send_signal(2) allows; signal 0 only tests.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    // EPERM would mean that it lives and may not be signalled.
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Path of an open descriptor as procfs tells it.
pub(super) fn path_of(fd: impl AsFd) -> Option<Vec<u8>> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).ok()?;
    Some(link.as_os_str().as_bytes().to_vec())
}
