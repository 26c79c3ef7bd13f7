//! What whoever is root can do to another process's programs and maps, by the numbers that the kernel gives them.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::agent::PATIENCE;

const MAP_DELETE_ELEM: i32 = 3;
const MAP_GET_NEXT_KEY: i32 = 4;
const PROG_GET_NEXT_ID: i32 = 11;
const MAP_GET_NEXT_ID: i32 = 12;
const PROG_GET_FD_BY_ID: i32 = 13;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_GET_FD_BY_ID: i32 = 30;
const ENABLE_STATS: i32 = 32;
const LINK_GET_NEXT_ID: i32 = 31;
const LINK_DETACH: i32 = 34;

/// `BPF_MAP_TYPE_INODE_STORAGE`.
const INODE_STORAGE: u32 = 28;
/// `BPF_OBJ_NAME_LEN`, with the zero at its end.
const NAME_LEN: usize = 16;
/// Longest key of a map of tags.
const KEY_MAX: usize = 64;

/// `union bpf_attr`, as far as it is used here.
type Attributes = [u64; 4];

/// The first two numbers of many commands.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn number(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

fn bpf(command: i32, attributes: &mut Attributes) -> std::io::Result<i32> {
    // SAFETY: the attributes are as long as is said; addresses in them are of memory that the caller holds.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(i32::try_from(done).unwrap_or(i32::MAX)) }
}

/// The descriptor of what goes by that number.
fn by_id(command: i32, id: u32) -> std::io::Result<OwnedFd> {
    let fd = bpf(command, &mut [pair(id, 0), 0, 0, 0])?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct bpf_map_info`, its beginning.
#[repr(C)]
#[derive(Debug, Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// A map of tags.
#[derive(Debug)]
pub(super) struct Tags {
    fd: OwnedFd,
    info: MapInfo,
}

/// The numbers of all that the kernel has of one kind.
fn all(next: i32) -> Result<Vec<u32>> {
    let (mut found, mut id) = (Vec::new(), 0);
    loop {
        let mut attributes = [pair(id, 0), 0, 0, 0];
        match bpf(next, &mut attributes) {
            Ok(_) => id = u32::try_from(attributes[0] >> 32)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error).context("asking for the next number"),
        }
        found.push(id);
    }
}

/// All programs, maps and links that the kernel has.
pub(super) fn everything() -> Result<[Vec<u32>; 3]> {
    Ok([all(PROG_GET_NEXT_ID)?, all(MAP_GET_NEXT_ID)?, all(LINK_GET_NEXT_ID)?])
}

/// All maps of tags that there are.
pub(super) fn tags() -> Result<Vec<Tags>> {
    let mut found = Vec::new();
    for id in all(MAP_GET_NEXT_ID)? {
        // It may have gone since.
        let Ok(fd) = by_id(MAP_GET_FD_BY_ID, id) else { continue };
        let mut info = MapInfo::default();
        let len = u32::try_from(size_of::<MapInfo>())?;
        bpf(OBJ_GET_INFO_BY_FD, &mut [pair(number(&fd), len), (&raw mut info).addr() as u64, 0, 0])
            .context("BPF_OBJ_GET_INFO_BY_FD")?;
        if info.name.starts_with(b"TAGS\0") {
            found.push(Tags { fd, info });
        }
    }
    ensure!(!found.is_empty(), "no map of tags");
    Ok(found)
}

impl Tags {
    /// Takes the tag of that file away, if it has one.
    pub(super) fn take(&self, file: &File) -> Result<bool> {
        ensure!(self.info.kind == INODE_STORAGE, "tags are not kept by inode here");
        self.remove(&number(file).to_ne_bytes())
    }

    fn remove(&self, key: &[u8]) -> Result<bool> {
        match bpf(MAP_DELETE_ELEM, &mut [pair(number(&self.fd), 0), key.as_ptr().addr() as u64, 0, 0]) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error).context("BPF_MAP_DELETE_ELEM"),
        }
    }

    /// Takes all tags away; where they are kept by inode, those of these files. The answer is how many there were.
    pub(super) fn empty(&self, files: &[File]) -> Result<usize> {
        if self.info.kind == INODE_STORAGE {
            let taken = files.iter().map(|file| self.take(file)).collect::<Result<Vec<_>>>()?;
            return Ok(taken.into_iter().filter(|taken| *taken).count());
        }
        ensure!(self.info.key_size as usize <= KEY_MAX, "long keys");
        let mut taken = 0;
        loop {
            let mut key = [0_u8; KEY_MAX];
            let next = [pair(number(&self.fd), 0), 0, key.as_mut_ptr().addr() as u64, 0];
            match bpf(MAP_GET_NEXT_KEY, &mut next.clone()) {
                Ok(_) => taken += usize::from(self.remove(&key)?),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(taken),
                Err(error) => return Err(error).context("BPF_MAP_GET_NEXT_KEY"),
            }
        }
    }
}

/// `struct bpf_prog_info`, as far as 5.10 has it.
#[repr(C)]
#[derive(Debug, Default)]
struct ProgInfo {
    before: [u64; 8],
    name: [u8; NAME_LEN],
    between: [u64; 15],
    run_cnt: u64,
}

fn info_of(program: u32) -> Result<ProgInfo> {
    let fd = by_id(PROG_GET_FD_BY_ID, program)?;
    let mut info = ProgInfo::default();
    let len = u32::try_from(size_of::<ProgInfo>())?;
    bpf(OBJ_GET_INFO_BY_FD, &mut [pair(number(&fd), len), (&raw mut info).addr() as u64, 0, 0])
        .context("BPF_OBJ_GET_INFO_BY_FD")?;
    Ok(info)
}

/// Waits until a program runs no more when `act` is done. Its link is gone a moment before: the kernel takes away the link's number first,
/// and then, perhaps in a thread of its own, the program from where it stands.
pub(super) fn runs_no_more(program: u32, act: impl Fn() -> Result<()>) -> Result<()> {
    // Runs are counted as long as this is open.
    let counting = bpf(ENABLE_STATS, &mut [0; 4]).context("BPF_ENABLE_STATS")?;
    // SAFETY: the kernel just made it for us.
    let _counting = unsafe { OwnedFd::from_raw_fd(counting) };
    let until = Instant::now() + PATIENCE;
    loop {
        // One that is gone runs no more.
        let Ok(before) = info_of(program) else { return Ok(()) };
        act()?;
        if info_of(program).is_ok_and(|now| now.run_cnt == before.run_cnt) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "program {program} still runs");
    }
}

/// A link by which a process holds a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) link: u32,
    pub(super) program: u32,
    pub(super) descriptor: i32,
}

/// The links by which a process holds the program of that name: as much of it as the kernel keeps.
pub(super) fn links_of(pid: i32, program: &str) -> Result<Vec<Held>> {
    let kept = &program[..program.len().min(NAME_LEN - 1)];
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let entry = entry?;
        // What was open may be closed by now.
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let number = |name: &str| {
            let mut fields = info.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse::<u32>().ok())
        };
        if let (Some(link), Some(program)) = (number("link_id"), number("prog_id"))
            && info_of(program)?.name.split(|byte| *byte == 0).next() == Some(kept.as_bytes())
        {
            found.push(Held { link, program, descriptor: entry.file_name().to_string_lossy().parse()? });
        }
    }
    Ok(found)
}

/// Asks the kernel to detach a link.
pub(super) fn detach(link: u32) -> std::io::Result<()> {
    let fd = by_id(LINK_GET_FD_BY_ID, link)?;
    bpf(LINK_DETACH, &mut [pair(number(&fd), 0), 0, 0, 0]).map(drop)
}

/// Whether the kernel still has that link.
pub(super) fn is_linked(link: u32) -> bool {
    by_id(LINK_GET_FD_BY_ID, link).is_ok()
}
