//! Bounds of what the programs record. Bytes, unless said otherwise.

/// Longest name in a directory, with its NUL (`NAME_MAX` + 1).
pub const NAME: usize = 256;
/// A path is walked upwards until this much is taken; one more name fits behind it.
pub const PATH_WALK: usize = 512;
/// Room for a path.
pub const PATH: usize = PATH_WALK + NAME;
/// As `PATH_WALK`, for the path of an executable.
pub const EXE_WALK: usize = 256;
/// Room for the path of an executable.
pub const EXE: usize = EXE_WALK + NAME;
/// As `PATH_WALK`, for the path of a cgroup.
pub const CGROUP_WALK: usize = 256;
/// Longest name of a cgroup that is kept whole, with its NUL.
pub const CGROUP_NAME: usize = 128;
/// Room for the path of a cgroup.
pub const CGROUP: usize = CGROUP_WALK + CGROUP_NAME;
/// Arguments, as they stand in memory: each ends with NUL.
pub const ARGV: usize = 256;
/// `TASK_COMM_LEN` of the kernel.
pub const COMM: usize = 16;
/// Names in a path, at most.
pub const DEPTH: u32 = 32;
/// Names in the path of a cgroup, at most.
pub const CGROUP_DEPTH: u32 = 12;
/// Slots, unless the loader says otherwise (count).
pub const SLOTS: usize = 131_072;
/// Tagged inodes where there is no inode storage (count).
pub const TAGS: usize = 262_144;
/// Kinds of inode numbers by which tagged inodes are counted (count, a power of two).
pub const CROWDS: usize = 1 << CROWD_BITS;
/// The same, as bits of a number.
pub const CROWD_BITS: u32 = 18;
/// Ring, unless the loader says otherwise.
pub const RING: usize = 4 << 20;
/// Tasks inside a mount call at one time (count).
pub const MOUNTERS: usize = 1024;
/// Processes whose identity is kept after exec (count).
pub const EXECS: usize = 4096;

/// Executables known by the address of their inode, where that is needed (count); the loader makes it small where not.
pub const PROGRAMS: usize = 16_384;

/// PID namespaces in each other that a process's numbers are looked for in.
pub const PID_LEVELS: u32 = 8;

#[cfg(test)]
mod tests {
    #[test]
    fn walks_end_at_a_power_of_two() {
        for walk in [super::PATH_WALK, super::EXE_WALK, super::CGROUP_WALK, super::ARGV] {
            assert!(walk.is_power_of_two());
        }
    }

    #[test]
    fn ring_is_a_power_of_two_of_pages() {
        assert!(super::RING.is_power_of_two());
        assert_eq!(super::RING % 4096, 0);
    }
}
