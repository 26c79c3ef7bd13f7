//! What objects must be, who said so, and whether they are.
//!
//! - [`object`]: a sealed object in memory, and [`anchor`], what its path is relative to; [`statement`]: the same as
//!   in-toto text, parsed with suspicion.
//! - [`mod@observe`]: what stands at a path now; [`mod@compare`]: how that differs from what is sealed;
//!   [`volume`]: the shape of an `AtomicWriter` volume; [`identity`]: what a rotated certificate or token must keep.
//! - [`content`]: digests of what is read. [`secret`]: content that must never be told, not even as a plain hash.
//! - [`keys`], [`openssh`], [`dsse`], [`bundle`], [`signed`]: who signed, in whose form; [`trust`]: who may; [`uninstall`]: leave to go;
//!   [`store`]: which baselines are in force, and which never come back.
//! - [`seal`]: statements from files; [`review`]: what changed from one to the next.
//!
//! Nothing here needs the agent: the command line uses it alone.

mod advice;
pub mod anchor;
mod beside;
pub mod bundle;
mod certify;
#[cfg(test)]
pub(crate) mod certs;
pub mod compare;
pub mod content;
pub mod dsse;
pub mod error;
pub mod identity;
pub mod keys;
pub mod meaning;
pub mod object;
pub mod observe;
pub mod openssh;
mod parse;
pub mod review;
pub mod seal;
pub mod secret;
pub mod signed;
pub mod statement;
pub mod store;
pub mod trust;
pub mod uninstall;
pub mod verify;
pub mod volume;
pub mod wire;
mod wire_content;
mod xattr;

pub use anchor::{Anchor, Image, Workload, WorkloadKind};
pub use compare::{Aspect, Difference, check, compare, missing};
pub use content::FoundContent;
pub use error::Error;
pub use keys::{SigningKey, TrustedKey};
pub use meaning::{Form, Meaning};
pub use object::{
    Attributes, Content, Digest, EntryKind, Hashed, MountedAt, Names, ObjectId, PodWriter, Publish, Rule,
    Seal, SealedObject, VolumeEntry, Writer, XattrValue,
};
pub use observe::{Context, Found, FoundKind, ObserveError, Root, observe};
pub use signed::Signed;
pub use statement::{Baseline, Diff, Statement};
pub use store::{Accepted, AcceptedBaseline, Policy, Rejected, Store};
pub(crate) use xattr::counts as counts_xattr;

/// Why [`open_regular`] has no file to give.
#[derive(Debug)]
pub(crate) enum NoFile {
    /// What stands there instead.
    NotRegular(&'static str),
    /// It cannot be opened.
    Io(std::io::Error),
}

impl std::fmt::Display for NoFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRegular(is) => write!(f, "a {is}, expected a regular file"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<NoFile> for std::io::Error {
    fn from(none: NoFile) -> Self {
        match none {
            NoFile::Io(error) => error,
            odd @ NoFile::NotRegular(_) => Self::other(odd.to_string()),
        }
    }
}

/// Opens a regular file; never blocks on a FIFO or device that stands in its place. `follow`: a link may lead to it.
///
/// # Errors
/// Something else stands there, or it cannot be opened that way.
pub(crate) fn open_regular(
    path: &std::path::Path,
    options: &std::fs::OpenOptions,
    follow: bool,
) -> Result<std::fs::File, NoFile> {
    use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};

    let not_regular = |meta: &std::fs::Metadata| {
        let kind = meta.file_type();
        NoFile::NotRegular(match kind {
            kind if kind.is_dir() => "directory",
            kind if kind.is_fifo() => "FIFO",
            kind if kind.is_socket() => "socket",
            kind if kind.is_symlink() => "link",
            _ => "device",
        })
    };
    let link = if follow { 0 } else { libc::O_NOFOLLOW };
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC | link;
    let file = options.clone().custom_flags(flags).open(path).map_err(|error| {
        // A socket, a FIFO that nobody reads, a directory and a link are each refused with a number of their own.
        let meta = if follow { path.metadata() } else { path.symlink_metadata() };
        meta.ok().filter(|meta| !meta.is_file()).map_or(NoFile::Io(error), |meta| not_regular(&meta))
    })?;
    let meta = file.metadata().map_err(NoFile::Io)?;
    if meta.is_file() { Ok(file) } else { Err(not_regular(&meta)) }
}

/// Reads a whole regular file that people or pipelines hand in, bounded; never blocks on a FIFO or device.
///
/// # Errors
/// It cannot be opened or read, is no regular file, or is longer than `max` bytes.
pub fn read_bounded(path: &std::path::Path, max: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;

    let fail = |expected: String| Error::new("cannot read", path.display(), expected);
    let file =
        open_regular(path, std::fs::OpenOptions::new().read(true), true).map_err(|none| match none {
            NoFile::NotRegular(_) => fail("a regular file".into()),
            NoFile::Io(e) => fail(format!("a readable file ({e})")),
        })?;
    let meta = file.metadata().map_err(|e| fail(format!("a readable file ({e})")))?;
    if meta.len() > max {
        return Err(fail(format!("at most {max} bytes, not {}", meta.len())));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| fail(format!("a readable file ({e})")))?;
    if bytes.len() as u64 > max {
        return Err(fail(format!("at most {max} bytes")));
    }
    Ok(bytes)
}

/// Removes what a process left that died while it wrote, or what somebody put there, so that a file can be made anew: to open a FIFO for
/// writing would wait for ever.
///
/// # Errors
/// It is there still.
pub(crate) fn remove_left_over(path: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a whole file: beside, synced, renamed into place, directory synced. Nothing half-written is ever seen.
///
/// # Errors
/// Any step failed; the file is as it was, and what was written beside is removed.
pub fn write_atomic(path: &std::path::Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

    let fail = |e: std::io::Error| {
        Error::new("cannot write", path.display(), format!("a file that can be written ({e})"))
    };
    let name = path.file_name().ok_or_else(|| Error::new("cannot write", path.display(), "a file name"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = dir.join(beside);
    let written = (|| {
        // A rename would put a file in place of the name of a directory, a device, or a link such as /dev/stdout; and whose file a link
        // leads to is not for whoever made the link to say.
        if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
            return Err(std::io::Error::other("not a regular file"));
        }
        remove_left_over(&beside)?;
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        std::fs::File::open(dir)?.sync_all()
    })();
    written.map_err(|e| {
        // Nothing more can be done about it than not to leave it there.
        std::fs::remove_file(&beside).unwrap_or_default();
        fail(e)
    })
}

#[cfg(test)]
mod statement_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod trust_tests;
