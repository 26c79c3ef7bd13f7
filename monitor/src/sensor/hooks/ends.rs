//! What became of calls that a hook told of at their beginning: the programs on their ends say so, right after.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{FExit, Program, ProgramError};

use super::decode::{Decoded, Outcome};
use super::revive::Standing;
use super::specs::{self, EndSpec};
use super::{State, chain};
use crate::model::{Observation, Slot};

/// How long an end may take: a mount of a device can be slow. A call whose end is not told (one of a 32-bit program, or
/// a ring that was full) is taken for done.
const PATIENCE: Duration = Duration::from_secs(2);
/// Calls waited for at one time.
const MAX: usize = 256;

/// Programs on the ends of calls.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// Those that tell of something themselves.
    pub states: Vec<State>,
    pub programs: Vec<OwnedFd>,
    pub links: Vec<(String, FdLink)>,
    pub standing: Vec<Standing>,
    /// Why not all ends are told.
    pub blind: Vec<String>,
}

/// Attaches them. `known` tells whether the kernel has a function; a call it does not have does not end.
pub(super) fn attach(ebpf: &mut Ebpf, known: impl Fn(&str) -> bool) -> Attached {
    let mut attached = Attached::default();
    let btf = match aya::Btf::from_sys_fs() {
        Ok(btf) => btf,
        Err(error) => {
            attached.blind.push(format!("mounts: what failed is not told apart: {}", chain(&error)));
            return attached;
        }
    };
    for spec in specs::ENDS.iter().filter(|spec| known(spec.function)) {
        let failure = match attach_one(ebpf, &btf, spec) {
            Ok((program, link)) => {
                attached.programs.push(program);
                attached.links.push((spec.program.to_owned(), link));
                attached.standing.push(Standing::on_end(spec));
                None
            }
            Err(reason) => {
                tracing::warn!(function = spec.function, %reason, "program not attached");
                Some(reason)
            }
        };
        match (spec.id, failure) {
            (Some(id), failure) => attached.states.push(State { id, failure, last_canary: None }),
            (None, Some(reason)) => {
                let function = spec.function;
                attached.blind.push(format!("mounts: what failed is not told apart: {function}: {reason}"));
            }
            (None, None) => {}
        }
    }
    attached
}

fn attach_one(ebpf: &mut Ebpf, btf: &aya::Btf, spec: &EndSpec) -> Result<(OwnedFd, FdLink), String> {
    let program = ebpf.program_mut(spec.program).ok_or("no such program in the object")?;
    let link = load(program, btf, spec)?;
    let fd = program.fd().map_err(|error| chain(&error))?;
    Ok((fd.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?, link))
}

/// Loads a program and attaches it to the end of its function, for as long as the link is there.
pub(super) fn load(program: &mut Program, btf: &aya::Btf, spec: &EndSpec) -> Result<FdLink, String> {
    let program: &mut FExit = program.try_into().map_err(|error: ProgramError| chain(&error))?;
    program.load(spec.function, btf).map_err(|error| {
        if let ProgramError::LoadError { verifier_log, .. } = &error {
            tracing::debug!(function = spec.function, log = %verifier_log, "the verifier's log");
        }
        chain(&error)
    })?;
    let link = program.attach().and_then(|id| program.take_link(id)).map_err(|error| chain(&error))?;
    Ok(link.into())
}

/// Calls that have not ended.
#[derive(Debug)]
pub(super) struct Ends {
    /// Programs stand on all ends.
    pub live: bool,
    waiting: Vec<(Instant, Box<Observation>)>,
}

impl Ends {
    /// `live`: programs stand on the ends of calls.
    pub(super) const fn new(live: bool) -> Self {
        Self { live, waiting: Vec::new() }
    }

    /// Takes what is to be told at the end of its call; hands back what is to be told at once.
    pub(super) fn begins(&mut self, decoded: Decoded) -> Option<Box<Observation>> {
        let observation = Box::new(decoded.observation);
        if !self.live || !decoded.ends || self.waiting.len() >= MAX {
            return Some(observation);
        }
        self.waiting.push((Instant::now(), observation));
        None
    }

    /// A call of that thread has ended. What covers a thing by itself is told as a mount of which it is not known what it concerns: in
    /// the host's own namespace it may hide what is mounted below, which shows when that is looked up.
    pub(super) fn ended(&mut self, pid: u32, outcome: Outcome) -> Option<Box<Observation>> {
        let of = |observation: &Observation| observation.actor.as_ref().is_ok_and(|actor| actor.pid == pid);
        let at = self.waiting.iter().rposition(|(_, observation)| of(observation))?;
        let (_, mut observation) = self.waiting.remove(at);
        match outcome {
            Outcome::Done(moved) => observation.moved = moved,
            Outcome::Failed => observation.failed = true,
            Outcome::Same => (observation.slot, observation.child_slot) = (Slot(0), None),
        }
        Some(observation)
    }

    /// All calls that have not ended.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = Box<Observation>> {
        self.waiting.drain(..).map(|(_, observation)| observation)
    }

    /// Calls whose end is not to be expected any more.
    pub(super) fn overdue(&mut self) -> impl Iterator<Item = Box<Observation>> {
        let over = self.waiting.extract_if(.., |(since, _)| since.elapsed() > PATIENCE);
        over.map(|(_, observation)| observation)
    }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::record::HookId;

    use super::*;
    use crate::model::{Actor, Operation, Rung, Time};

    fn mount(pid: u32) -> Decoded {
        let actor = Actor {
            pid,
            tgid: 1,
            ppid: 0,
            uid: 0,
            comm: String::new(),
            exe: None,
            exe_sha256: None,
            is_io_worker: false,
            exe_inode: None,
            cmdline: String::new(),
            start_time: None,
            start_boottime: 0,
            cgroup: None,
            cgroup_id: 0,
            mount_ns: None,
            container: None,
            pod: None,
        };
        let observation = Observation {
            time: Time(1),
            sensor: Rung::Lsm,
            operation: Operation::Mount,
            slot: Slot(1),
            child_slot: None,
            inode: None,
            name: None,
            path_in_fs: None,
            renamed_to: None,
            replaced_slot: None,
            actor: Ok(Box::new(actor)),
            count: 1,
            denied: false,
            failed: false,
            unlinked: false,
            moved: None,
        };
        let (slots, hook) = (vec![1], HookId::SbMount);
        Decoded { hook, slots, dev: 0, replaces: false, ends: true, one_mount: false, observation }
    }

    #[test]
    fn each_end_belongs_to_its_threads_call() {
        let mut ends = Ends::new(true);
        assert!(ends.begins(mount(1)).is_none());
        assert!(ends.begins(mount(2)).is_none());
        assert!(ends.begins(mount(4)).is_none());
        assert!(ends.ended(3, Outcome::Done(None)).is_none());
        assert!(ends.ended(1, Outcome::Failed).unwrap().failed);
        let done = ends.ended(2, Outcome::Done(None)).unwrap();
        assert!(!done.failed && done.slot == Slot(1));
        let same = ends.ended(4, Outcome::Same).unwrap();
        assert!(!same.failed && same.slot == Slot(0));
        assert!(ends.waiting.is_empty() && ends.overdue().next().is_none());
        assert!(Ends::new(false).begins(mount(1)).is_some());
    }
}
