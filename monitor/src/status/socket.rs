//! The status socket: never reachable by others for a moment, never taken from an agent that lives.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why the socket could not be opened: `socket: PATH: MESSAGE`.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("socket: {0}: another agent answers here, expected none")]
    InUse(String),
    /// Something else stands there, and it is not ours to remove.
    #[error("socket: {0}: is no socket, expected a socket or nothing")]
    NotASocket(String),
    /// The system refused.
    #[error("socket: {path}: {call}: {source}")]
    System { path: String, call: &'static str, source: io::Error },
}

/// A listening socket. Dropping it removes its file, if it is still the one that was made.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Listens at `path` with mode 0600. A directory that has to be made gets 0700; what a dead agent left is replaced.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let shown = path.display().to_string();
        let system = |call: &'static str| {
            let path = shown.clone();
            move |source: io::Error| SocketError::System { path, call, source }
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(system("mkdir"))?;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(system("lstat")(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(shown)),
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(shown)),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(system("connect")(error)),
            },
        }
        // bind() makes the file with what umask leaves. Here it is made where nobody else can reach, gets its mode, and
        // is moved into place; umask stays untouched, as it is the whole process's.
        let private = parent.join(format!(".meshseal-{}", ulid::Ulid::generate()));
        DirBuilder::new().mode(0o700).create(&private).map_err(system("mkdir"))?;
        let made = Self::bind_in(&private, path);
        let removed = fs::remove_dir_all(&private);
        let (listener, inode) = made.map_err(system("bind"))?;
        removed.map_err(system("rmdir"))?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    fn bind_in(private: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
        // By descriptor, so that the private name does not count against the 107 bytes of a socket address.
        let dir = File::open(private)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", dir.as_raw_fd()))?;
        let made = private.join("s");
        fs::set_permissions(&made, Permissions::from_mode(0o600))?;
        let inode = identity(&made)?;
        fs::rename(&made, path)?;
        Ok((listener, inode))
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.inode) {
            // Nobody is left to tell; the next start replaces a left-over socket.
            let _left_over = fs::remove_file(&self.path);
        }
    }
}
