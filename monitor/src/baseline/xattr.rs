//! Extended attributes of an inode, read by descriptor.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::object::XattrValue;
use super::observe::{ObserveError, proc_path};
use crate::model::HostPath;

/// Longest value (the kernel's `XATTR_SIZE_MAX`) and list of names (`XATTR_LIST_MAX`).
const XATTR_MAX: usize = 65536;

/// By name; `None` where there are none.
pub(super) type Xattrs = Option<Box<BTreeMap<Box<[u8]>, XattrValue>>>;

/// All that count, of any inode an `O_PATH` descriptor stands for; by `open`, where it is open for reading too.
pub(super) fn xattrs(
    fd: &OwnedFd,
    open: Option<BorrowedFd<'_>>,
    path: &HostPath,
) -> Result<Xattrs, ObserveError> {
    // Through /proc because the f*xattr calls refuse O_PATH. The magic link ends at the inode itself, be it a symlink.
    let at = if open.is_some() { String::new() } else { proc_path(fd.as_fd()) };
    let mut names = Vec::with_capacity(1024);
    loop {
        let room = rustix::buffer::spare_capacity(&mut names);
        let listed = match open {
            Some(open) => rustix::fs::flistxattr(open, room),
            None => rustix::fs::listxattr(&at, room),
        };
        match listed {
            Ok(_) => break,
            Err(Errno::RANGE) if names.capacity() <= XATTR_MAX => names = Vec::with_capacity(2 * XATTR_MAX),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(e) => return Err(ObserveError::io(path, "list extended attributes", e)),
        }
    }
    let mut map = BTreeMap::new();
    for name in names.split(|b| *b == 0).filter(|name| counts(name)) {
        let mut value = Vec::with_capacity(256);
        let read = loop {
            let room = rustix::buffer::spare_capacity(&mut value);
            let read = match open {
                Some(open) => rustix::fs::fgetxattr(open, name, room),
                None => rustix::fs::getxattr(&at, name, room),
            };
            match read {
                Err(Errno::RANGE) if value.capacity() < XATTR_MAX => value = Vec::with_capacity(XATTR_MAX),
                other => break other,
            }
        };
        match read {
            Ok(_) => {
                map.insert(name.into(), XattrValue::of(&value));
            }
            // Gone since it was listed: ctime moved, so the look is repeated.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(ObserveError::io(path, "read an extended attribute", e)),
        }
    }
    Ok((!map.is_empty()).then(|| Box::new(map)))
}

/// Whether an extended attribute is part of what is sealed.
pub(crate) fn counts(name: &[u8]) -> bool {
    let acl = [b"system.posix_acl_access".as_slice(), b"system.posix_acl_default"];
    let own = [b"security.ima".as_slice(), b"security.evm", b"security.selinux"];
    !name.is_empty() && !own.contains(&name) && (!name.starts_with(b"system.") || acl.contains(&name))
}
