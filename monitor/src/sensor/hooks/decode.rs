//! Records of the ring, turned into observations. The bytes come from our own programs, and are checked as if not.

use monitor_ebpf::limits;
use monitor_ebpf::record::{
    ACTOR_ARGV_TRUNCATED, ACTOR_CGROUP_TRUNCATED, ACTOR_EXE_TRUNCATED, ACTOR_IO_WORKER, Actor as RawActor,
    CallEnd, EVENT_ENDS, EVENT_ONE_MOUNT, EVENT_PATH_AS_NAMED, EVENT_PATH_TRUNCATED, EVENT_REPLACES,
    EVENT_TO_PATH_TRUNCATED, EVENT_UNLINKED, Event, HookId, KIND_CALL_END, KIND_EVENT, KIND_RENAME, Op,
    RenameEvent,
};

use super::cmdline;
use crate::model::{Actor, Clock, HostPath, InodeKey, Observation, Operation, RenamedTo, Rung, Slot};

/// A record that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("record of {0} bytes")]
    Size(usize),
    #[error("record with {what} {number}")]
    Number { what: &'static str, number: u32 },
}

/// A record, understood.
#[derive(Debug)]
pub(super) struct Decoded {
    pub hook: HookId,
    /// All slots concerned, each once.
    pub slots: Vec<u32>,
    /// Of the file system it happened on.
    pub dev: u32,
    /// A rename onto an existing name.
    pub replaces: bool,
    /// How the call ends is told by a record to come.
    pub ends: bool,
    /// Of the options of a mount, only those of this one.
    pub one_mount: bool,
    pub observation: Observation,
}

/// Takes one record apart.
pub(super) fn decode(bytes: &[u8], clock: Clock, rung: Rung) -> Result<Decoded, DecodeError> {
    let event: Event = pod(bytes)?;
    let to_path = match event.kind {
        KIND_EVENT => None,
        KIND_RENAME => Some(pod::<RenameEvent>(bytes)?.to_path),
        number => return Err(DecodeError::Number { what: "kind", number }),
    };
    let hook = HookId::try_from(event.hook).map_err(|number| DecodeError::Number { what: "hook", number })?;
    let op = Op::try_from(event.op).map_err(|number| DecodeError::Number { what: "operation", number })?;
    let mounts = matches!(op, Op::Mount | Op::Umount | Op::PivotRoot | Op::Remount | Op::MountSetattr);
    if event.slot == 0 && !mounts {
        return Err(DecodeError::Number { what: "slot", number: 0 });
    }

    let (name, path) = if event.flags & EVENT_PATH_AS_NAMED == 0 {
        path(&event.path, event.path_len, event.flags & EVENT_PATH_TRUNCATED != 0)
    } else {
        (None, as_named(&event.path, event.path_len))
    };
    let (to_name, to_path_in_fs) = to_path.map_or((None, None), |bytes| {
        self::path(&bytes, event.to_path_len, event.flags & EVENT_TO_PATH_TRUNCATED != 0)
    });
    let some_slot = |slot| (slot != 0).then_some(Slot(slot));
    // Where the old directory is not watched the record has the new one's slot: the old name is not in that one.
    let from_elsewhere = event.slot == event.to_slot
        && to_path.is_some_and(|to| {
            names(&event.path, event.path_len).get(1..) != names(&to, event.to_path_len).get(1..)
        });
    let mut slots = vec![event.slot];
    for slot in [event.child_slot, event.to_slot, event.replaced_slot] {
        if slot != 0 && !slots.contains(&slot) {
            slots.push(slot);
        }
    }
    let observation = Observation {
        time: clock.wall(event.time),
        sensor: rung,
        operation: operation(hook, op),
        slot: Slot(if from_elsewhere { 0 } else { event.slot }),
        child_slot: some_slot(event.child_slot),
        inode: (event.ino != 0).then_some(InodeKey { dev: event.dev, ino: event.ino }),
        name,
        path_in_fs: path,
        renamed_to: (op == Op::Rename).then(|| RenamedTo {
            slot: Slot(event.to_slot),
            name: to_name.unwrap_or_default(),
            path_in_fs: to_path_in_fs,
        }),
        replaced_slot: some_slot(event.replaced_slot),
        actor: Ok(Box::new(actor(&event.actor, clock))),
        count: 1,
        denied: false,
        failed: false,
        unlinked: event.flags & EVENT_UNLINKED != 0,
        moved: None,
    };
    let replaces = event.flags & EVENT_REPLACES != 0;
    let (ends, one_mount) = (event.flags & EVENT_ENDS != 0, event.flags & EVENT_ONE_MOUNT != 0);
    Ok(Decoded { hook, slots, dev: event.dev, replaces, ends, one_mount, observation })
}

/// Reads a `T` from the start. The ring rounds sizes up to 8.
fn pod<T: aya::Pod>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() < size_of::<T>() {
        return Err(DecodeError::Size(bytes.len()));
    }
    // SAFETY: long enough, and `Pod` says that every bit pattern is a value.
    Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

const fn operation(hook: HookId, op: Op) -> Operation {
    match op {
        Op::Open => Operation::Open,
        Op::Write => Operation::Write,
        Op::Mmap => Operation::Mmap,
        Op::Setattr => Operation::Setattr,
        Op::Truncate => Operation::Truncate,
        Op::Setxattr => Operation::Setxattr,
        Op::Removexattr => Operation::Removexattr,
        Op::Create => Operation::Create,
        Op::Link => Operation::Link,
        Op::Symlink => Operation::Symlink,
        Op::Mkdir => Operation::Mkdir,
        Op::Mknod => Operation::Mknod,
        Op::Unlink => Operation::Unlink,
        Op::Rmdir => Operation::Rmdir,
        Op::Rename => Operation::Rename,
        Op::Mount => Operation::Mount,
        Op::Umount => Operation::Umount,
        Op::PivotRoot => Operation::PivotRoot,
        Op::Remount => Operation::Remount,
        Op::MountSetattr => Operation::MountSetattr,
        Op::Ioctl => Operation::Ioctl,
        Op::FileSetattr => Operation::FileSetattr,
        Op::Ptrace => Operation::Ptrace,
        Op::Execute if hook as u32 == HookId::BprmCheckSecurity as u32 => Operation::Execve,
        Op::Execute => Operation::MmapCode,
    }
}

/// Names from the last to the first, each with its NUL. The root's own is none.
fn names(bytes: &[u8], len: u32) -> Vec<&[u8]> {
    let bytes = bytes.get(..len as usize).unwrap_or(bytes);
    bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty() && *name != b"/").collect()
}

/// The last name, and the whole path if the root was reached.
fn path(bytes: &[u8], len: u32, truncated: bool) -> (Option<Vec<u8>>, Option<HostPath>) {
    let names = names(bytes, len);
    let name = names.first().map(|name| name.to_vec());
    let path = (!truncated).then(|| joined(&names));
    (name, path.map(HostPath::new))
}

/// A path as the caller named it, if that is absolute. NUL and what follows is not part of it.
fn as_named(bytes: &[u8], len: u32) -> Option<HostPath> {
    let named = bytes.get(..len as usize)?.split(|byte| *byte == 0).next()?;
    named.starts_with(b"/").then(|| HostPath::new(named.to_vec()))
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With the root of what was moved, if something was.
    Done(Option<InodeKey>),
    Failed,
    /// Done, and what lies over something now is that itself.
    Same,
}

/// How a call ended, if that is what the record tells: the thread, and what became of it.
pub(super) fn call_end(bytes: &[u8]) -> Option<(u32, Outcome)> {
    let end: CallEnd = pod(bytes).ok()?;
    let outcome = match (end.failed, end.same) {
        (0, 0) => Outcome::Done((end.ino != 0).then_some(InodeKey { dev: end.dev, ino: end.ino })),
        (0, _) => Outcome::Same,
        _ => Outcome::Failed,
    };
    (end.kind == KIND_CALL_END).then_some((end.pid, outcome))
}

fn joined(names: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names.iter().rev() {
        out.push(b'/');
        out.extend_from_slice(name);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// An actor, as the programs record it.
pub(crate) fn actor(raw: &RawActor, clock: Clock) -> Actor {
    let comm = raw.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    let exe_names = names(&raw.exe, raw.exe_len);
    // A path cut short would be taken for another one.
    let exe_whole = !exe_names.is_empty() && raw.flags & ACTOR_EXE_TRUNCATED == 0;
    let exe = exe_whole.then(|| HostPath::new(joined(&exe_names)));
    let argv = raw.argv.get(..raw.argv_len as usize).unwrap_or(&raw.argv);
    let cgroup = (raw.flags & ACTOR_CGROUP_TRUNCATED == 0)
        .then(|| String::from_utf8_lossy(&joined(&names(&raw.cgroup, raw.cgroup_len))).into_owned());
    Actor {
        pid: raw.pid,
        tgid: raw.tgid,
        ppid: raw.ppid,
        uid: raw.uid,
        comm: String::from_utf8_lossy(comm).into_owned(),
        exe,
        exe_sha256: None,
        is_io_worker: raw.flags & ACTOR_IO_WORKER != 0,
        exe_inode: (raw.exe_ino != 0).then_some(InodeKey { dev: raw.exe_dev, ino: raw.exe_ino }),
        cmdline: cmdline::render(argv, raw.flags & ACTOR_ARGV_TRUNCATED != 0),
        start_time: (raw.start_boottime != 0).then(|| clock.wall(raw.start_boottime)),
        start_boottime: raw.start_boottime,
        cgroup,
        cgroup_id: raw.cgroup_id,
        mount_ns: (raw.mount_ns != 0).then_some(u64::from(raw.mount_ns)),
        container: None,
        pod: None,
    }
}

// The ring holds whole records, whatever their kind.
const _: () = assert!(size_of::<RenameEvent>() * 64 < limits::RING);

/// What the fuzzers give to the decoders of records and actors.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let clock = Clock::with_offset(0);
    crate::fuzz::used(decode(bytes, clock, Rung::Lsm));
    crate::fuzz::used(pod::<RawActor>(bytes).map(|raw| actor(&raw, clock)));
    crate::fuzz::used(call_end(bytes));
    crate::fuzz::used(cmdline::render(bytes, true));
}

/// A record of each kind, with names, a command line and a path.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_seeds() -> Vec<Vec<u8>> {
    fn put(into: &mut [u8], text: &[u8]) -> u32 {
        into.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        u32::try_from(text.len()).unwrap_or(u32::MAX)
    }
    fn bytes<T: aya::Pod>(value: &T) -> Vec<u8> {
        // SAFETY: `Pod` has no padding, and the slice lives as long as the value.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }
    // SAFETY: every bit pattern is a value.
    let mut rename: RenameEvent = unsafe { std::mem::zeroed() };
    rename.event.to_path_len = put(&mut rename.to_path, b"new\0dir\0etc\0");
    let event = &mut rename.event;
    (event.kind, event.hook, event.op) = (KIND_RENAME, HookId::InodeRename as u32, Op::Rename as u32);
    (event.time, event.slot, event.child_slot, event.to_slot, event.replaced_slot) = (5, 3, 4, 3, 9);
    (event.ino, event.dev) = (7, 8);
    event.path_len = put(&mut event.path, b"old\0dir\0etc\0");
    let actor = &mut event.actor;
    (actor.pid, actor.tgid, actor.ppid, actor.uid, actor.start_boottime) = (1, 1, 1, 0, 9);
    put(&mut actor.comm, b"sh");
    actor.exe_len = put(&mut actor.exe, b"sh\0bin\0");
    actor.argv_len = put(&mut actor.argv, b"sh\0-c\0--token=x https://u:p@h\0");
    actor.cgroup_len = put(&mut actor.cgroup, b"pod1\0kubepods\0");
    let mut write = rename.event;
    (write.kind, write.hook, write.op) = (KIND_EVENT, HookId::FilePermission as u32, Op::Write as u32);
    let mut named = write;
    (named.hook, named.op, named.flags) = (HookId::SbMount as u32, Op::Mount as u32, EVENT_PATH_AS_NAMED);
    named.path_len = put(&mut named.path, b"/etc/dir\0");
    let end = CallEnd { kind: KIND_CALL_END, pid: 3, failed: 1, same: 0, ino: 0, dev: 0, reserved: 0 };
    vec![bytes(&rename), bytes(&write), bytes(&named), bytes(&end), bytes(&write.actor)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Time;

    fn bytes_of<T: aya::Pod>(value: &T) -> Vec<u8> {
        // SAFETY: `Pod` has no padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    fn put(into: &mut [u8], text: &[u8]) -> u32 {
        into[..text.len()].copy_from_slice(text);
        u32::try_from(text.len()).unwrap()
    }

    fn rename() -> RenameEvent {
        // SAFETY: every bit pattern is a value.
        let mut record: RenameEvent = unsafe { std::mem::zeroed() };
        let event = &mut record.event;
        (event.kind, event.hook, event.op) = (KIND_RENAME, HookId::InodeRename as u32, Op::Rename as u32);
        (event.time, event.slot, event.child_slot, event.to_slot, event.replaced_slot) = (5, 3, 4, 3, 9);
        (event.ino, event.dev) = (77, 0xfe00_0001);
        event.path_len = put(&mut event.path, b"a\xff\0dir\0");
        let actor = &mut event.actor;
        (actor.pid, actor.tgid, actor.ppid, actor.mount_ns) = (12, 11, 10, 4_026_531_841);
        put(&mut actor.comm, b"mv");
        actor.exe_len = put(&mut actor.exe, b"mv\0bin\0");
        actor.argv_len = put(&mut actor.argv, b"mv\0a\0b\0");
        actor.cgroup_len = put(&mut actor.cgroup, b"x.scope\0");
        record.event.to_path_len = put(&mut record.to_path, b"b\0dir\0");
        record
    }

    #[test]
    fn a_rename_is_read_whole() {
        let decoded = decode(&bytes_of(&rename()), Clock::with_offset(100), Rung::Lsm).unwrap();
        assert_eq!(decoded.slots, [3, 4, 9]);
        let seen = decoded.observation;
        assert_eq!((seen.time, seen.operation, seen.slot), (Time(105), Operation::Rename, Slot(3)));
        assert_eq!((seen.child_slot, seen.replaced_slot), (Some(Slot(4)), Some(Slot(9))));
        assert_eq!(seen.inode, Some(InodeKey { dev: 0xfe00_0001, ino: 77 }));
        assert_eq!(seen.name, Some(b"a\xff".to_vec()));
        assert_eq!(seen.path_in_fs, Some(HostPath::new(b"/dir/a\xff".to_vec())));
        let to = RenamedTo {
            path_in_fs: Some(HostPath::from("/dir/b")),
            ..RenamedTo::new(Slot(3), b"b".to_vec())
        };
        assert_eq!(seen.renamed_to, Some(to));
        let actor = seen.actor.unwrap();
        assert_eq!((actor.pid, actor.tgid, actor.ppid), (12, 11, 10));
        assert_eq!((actor.comm.as_str(), actor.cmdline.as_str()), ("mv", "mv a b"));
        assert_eq!(actor.exe, Some(HostPath::from("/bin/mv")));
        assert_eq!(actor.cgroup.as_deref(), Some("/x.scope"));
        assert_eq!(actor.mount_ns, Some(4_026_531_841));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |change: fn(&mut RenameEvent)| {
            let mut record = rename();
            change(&mut record);
            decode(&bytes_of(&record), Clock::with_offset(0), Rung::Lsm).unwrap_err().to_string()
        };
        assert_eq!(error(|record| record.event.kind = 9), "record with kind 9");
        assert_eq!(error(|record| record.event.hook = 0), "record with hook 0");
        assert_eq!(error(|record| record.event.op = 77), "record with operation 77");
        assert_eq!(error(|record| record.event.slot = 0), "record with slot 0");
        let short = bytes_of(&rename());
        let short = &short[..size_of::<Event>()];
        assert_eq!(
            decode(short, Clock::with_offset(0), Rung::Lsm).unwrap_err(),
            DecodeError::Size(size_of::<Event>())
        );
        assert_eq!(decode(&[], Clock::with_offset(0), Rung::Lsm).unwrap_err(), DecodeError::Size(0));
    }

    proptest! {
        #[test]
        fn hostile_records_do_no_harm(
            flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..64),
            len in 0..=size_of::<RenameEvent>(),
        ) {
            let mut bytes = bytes_of(&rename());
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            drop(decode(&bytes[..len], Clock::with_offset(i64::MAX), Rung::Lsm));
            drop(decode(&bytes, Clock::with_offset(i64::MIN), Rung::Lsm));
        }
    }
}
