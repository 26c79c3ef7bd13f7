//! A mount table that is read anew when the kernel says that it changed.
//!
//! For how long it was kept says nothing: the number of a mount that went is given to the next one that comes.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::mounts::{MOUNTINFO_MAX, Mounts};

/// What a `mountinfo` file says.
#[derive(Debug)]
pub(crate) struct MountTable {
    pub(crate) text: Vec<u8>,
    pub(crate) mounts: Mounts,
}

impl MountTable {
    /// Reads it, once.
    pub(crate) fn read(file: &mut impl std::io::Read) -> std::io::Result<Self> {
        let mut text = Vec::new();
        file.take(MOUNTINFO_MAX).read_to_end(&mut text)?;
        Ok(Self { mounts: Mounts::parse(&text), text })
    }
}

/// The mount table of one process, as it is now.
#[derive(Debug)]
pub(crate) struct KeptTable {
    mountinfo: PathBuf,
    kept: Option<(File, Arc<MountTable>)>,
}

impl KeptTable {
    /// Of the process whose `mountinfo` that is.
    pub(crate) const fn new(mountinfo: PathBuf) -> Self {
        Self { mountinfo, kept: None }
    }

    /// The table now; `None` if it cannot be read.
    pub(crate) fn now(&mut self) -> Option<Arc<MountTable>> {
        if let Some((file, table)) = &self.kept
            && is_as_read(file)
        {
            return Some(Arc::clone(table));
        }
        let mut file = File::open(&self.mountinfo).ok()?;
        let table = Arc::new(MountTable::read(&mut file).ok()?);
        self.kept = Some((file, Arc::clone(&table)));
        Some(table)
    }
}

/// Whether nothing was mounted or unmounted since the file was opened: that is an exceptional condition of it (proc_pid_mountinfo(5)).
fn is_as_read(file: &File) -> bool {
    let mut asked = [PollFd::new(file, PollFlags::PRI)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|changed| changed == 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::KeptTable;

    #[test]
    fn it_is_read_once_as_long_as_nothing_is_mounted() {
        let mut kept = KeptTable::new("/proc/self/mountinfo".into());
        let (first, again) = (kept.now().unwrap(), kept.now().unwrap());
        assert_eq!(first.text, again.text);
        assert!(!first.mounts.all().is_empty());
        assert!(Arc::strong_count(&again) >= 2);
        assert!(KeptTable::new("/nowhere".into()).now().is_none());
    }
}
