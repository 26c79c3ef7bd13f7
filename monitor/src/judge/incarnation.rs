//! One inode, told from a later one of the same number.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::model::InodeKey;

/// An inode, and when it was born: a file system gives a number out again once its inode is gone (ext4 at once), and what the earlier one
/// was watched by went with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Incarnation {
    pub(super) inode: InodeKey,
    /// A digest of `stx_btime`; 0 where the file system keeps none, and such inodes are told by their numbers alone.
    pub(super) born: u32,
}

impl Incarnation {
    /// What is behind a descriptor; `None` if it cannot be asked.
    pub(super) fn of(fd: &impl AsFd) -> Option<Self> {
        let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, asked).ok()?;
        let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let born = if told { digest(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { 0 };
        Some(Self { inode: InodeKey::of(&stat), born })
    }
}

/// 32 bits of both: nanoseconds have 30, and two births a whole number of seconds apart differ as well.
const fn digest(seconds: i64, nanoseconds: u32) -> u32 {
    let [a, b, c, d, ..] = seconds.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).rotate_left(16) ^ nanoseconds
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{Incarnation, digest};

    #[test]
    fn a_file_is_itself_by_every_name_and_another_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "").unwrap();
        fs::hard_link(&one, &two).unwrap();
        let of = |path| Incarnation::of(&File::open(path).unwrap()).unwrap();
        assert_eq!(of(&one), of(&two));
        fs::write(&one, "changed").unwrap();
        assert_eq!(of(&one), of(&two));
        fs::remove_file(&two).unwrap();
        fs::write(&two, "").unwrap();
        assert_ne!(of(&one), of(&two));
    }

    #[test]
    fn births_are_told_apart() {
        assert_ne!(digest(1_790_000_000, 4_000_000), digest(1_790_000_000, 8_000_000));
        assert_ne!(digest(1_790_000_000, 4_000_000), digest(1_790_000_001, 4_000_000));
    }
}
