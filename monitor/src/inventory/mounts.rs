//! The mount table: from a path inside a file system to where the host sees it.
//!
//! Format: proc_pid_mountinfo(5); blanks, tabs, newlines and backslashes in paths are octal escapes.

use std::path::Path;

use super::procs::{ProcError, read};
use crate::model::HostPath;

/// Longest mountinfo that is read, in bytes (a node with thousands of pods has a few megabytes).
pub(super) const MOUNTINFO_MAX: u64 = 64 << 20;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Mount id.
    pub id: u64,
    /// Id of the parent mount.
    pub parent: u64,
    /// `s_dev` in the kernel's form (major << 20 | minor).
    pub dev: u32,
    /// Directory (or file) of the file system that is mounted.
    pub root: HostPath,
    /// Where it is mounted.
    pub point: HostPath,
    /// File system type.
    pub fs_type: String,
}

/// A mount table, in the kernel's order.
#[derive(Debug, Clone, Default)]
pub struct Mounts {
    mounts: Vec<Mount>,
}

impl Mounts {
    /// Reads a `mountinfo` file; for the host's view `/proc/1/mountinfo`.
    ///
    /// # Errors
    /// The file cannot be read. Lines that are not as expected are left out.
    pub fn read(mountinfo: &Path) -> Result<Self, ProcError> {
        Ok(Self::parse(&read(mountinfo, MOUNTINFO_MAX)?))
    }

    /// Parses the text of a `mountinfo` file.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self { mounts: text.split(|byte| *byte == b'\n').filter_map(parse_line).collect() }
    }

    /// All mounts.
    #[must_use]
    pub fn all(&self) -> &[Mount] {
        &self.mounts
    }

    /// The mount of that id.
    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// Where the host sees `path_in_fs` of the file system `dev`: below the mount that shows it with the longest
    /// root, and of these the shortest mount point. `None` if no mount shows it. A mount that lies over it is not
    /// taken into account.
    #[must_use]
    pub fn host_path(&self, dev: u32, path_in_fs: &HostPath) -> Option<HostPath> {
        let shows = |mount: &&Mount| {
            mount.dev == dev && (mount.root == *path_in_fs || path_in_fs.below(&mount.root).is_some())
        };
        let best =
            self.mounts.iter().filter(shows).min_by_key(|mount| {
                (usize::MAX - mount.root.as_bytes().len(), mount.point.as_bytes().len())
            })?;
        Some(rebase(path_in_fs, &best.root, &best.point))
    }

    /// Where `path_in_fs` is seen through that mount, if it is.
    #[must_use]
    pub fn seen_through(mount: &Mount, path_in_fs: &HostPath) -> Option<HostPath> {
        let shown = mount.root == *path_in_fs || path_in_fs.below(&mount.root).is_some();
        shown.then(|| rebase(path_in_fs, &mount.root, &mount.point))
    }

    /// Where `path`, seen through the mount `id`, lies below the root of its file system.
    #[must_use]
    pub fn path_in_fs(&self, id: u64, path: &HostPath) -> Option<HostPath> {
        let mount = self.by_id(id)?;
        (mount.point == *path || path.below(&mount.point).is_some())
            .then(|| rebase(path, &mount.point, &mount.root))
    }
}

fn rebase(path: &HostPath, from: &HostPath, to: &HostPath) -> HostPath {
    match path.below(from) {
        Some(rest) if !rest.is_empty() => to.join(rest),
        _ => to.clone(),
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: Option<&[u8]>| std::str::from_utf8(field?).ok()?.parse::<u64>().ok();
    let (id, parent) = (number(fields.next())?, number(fields.next())?);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let mut after_dash = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(after_dash.next()?).into_owned();
    Some(Mount {
        id,
        parent,
        dev: (major << 20) | minor,
        root: HostPath::new(root),
        point: HostPath::new(point),
        fs_type,
    })
}

pub(super) fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(field.len()), 0);
    while at < field.len() {
        let octal = field[at..].strip_prefix(b"\\").and_then(|rest| rest.get(..3)).and_then(|three| {
            three.iter().try_fold(0_u32, |sum, digit| {
                (b'0'..=b'7').contains(digit).then(|| sum * 8 + u32::from(digit - b'0'))
            })
        });
        if let Some(byte) = octal.and_then(|value| u8::try_from(value).ok()) {
            out.push(byte);
            at += 4;
        } else {
            out.push(field[at]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Mounts;
    use crate::model::HostPath;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:33 / /run rw - tmpfs tmpfs rw
41 22 254:0 /data/vol /mnt/a\\040b rw shared:7 master:2 - ext4 /dev/vda rw
42 22 0:50 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/s rw - tmpfs tmpfs rw
garbage
43 22 x:y / / rw - a b
";

    #[test]
    fn finds_where_the_host_sees_it() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.all().len(), 4);
        let find = |dev, path: &str| mounts.host_path(dev, &HostPath::from(path));
        assert_eq!(find(254 << 20, "/etc/x"), Some(HostPath::from("/etc/x")));
        assert_eq!(find(254 << 20, "/data/vol/f"), Some(HostPath::from("/mnt/a b/f")));
        assert_eq!(find(254 << 20, "/data/vol"), Some(HostPath::from("/mnt/a b")));
        assert_eq!(
            find(50, "/..data"),
            Some(HostPath::from("/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/s/..data"))
        );
        assert_eq!(find(51, "/"), None);
    }

    #[test]
    fn finds_the_path_in_the_file_system() {
        let mounts = Mounts::parse(TABLE);
        let find = |id, path: &str| mounts.path_in_fs(id, &HostPath::from(path));
        assert_eq!(find(41, "/mnt/a b/f"), Some(HostPath::from("/data/vol/f")));
        assert_eq!(find(22, "/etc"), Some(HostPath::from("/etc")));
        assert_eq!(find(22, "/"), Some(HostPath::from("/")));
        assert_eq!(find(41, "/etc"), None);
    }
}
