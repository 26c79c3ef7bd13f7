//! Who processes are, remembered by tracepoint programs from their fork or exec on: names actors that were gone before
//! a rung without actors in its events (fanotify) could look them up. Works where LSM and tracing programs are refused.

use std::sync::Arc;

use aya::maps::{HashMap, MapData};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader};
use monitor_ebpf::layout::MISSING;
use monitor_ebpf::record::{ACTOR_INCOMPLETE, Actor as RawActor};

use super::btf::{Btf, BtfError, LSM_PREFIX};
use super::fanotify::ActorSource;
use super::hooks::decode;
use super::hooks::objects;
use crate::model::{Actor, Clock};

/// The programs, with their tracepoints.
const PROGRAMS: [(&str, &str); 2] =
    [("process_exec", "sched_process_exec"), ("process_fork", "sched_process_fork")];

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum ExecCacheError {
    /// The objects are not part of this binary.
    #[error("built without eBPF objects; build with `cargo xtask build`")]
    NotBuilt,
    /// No type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The type information lacks a field.
    #[error(
        "BTF: task_struct: expected tgid, pid, start_boottime and mm; in a nested PID namespace thread_pid and struct pid too"
    )]
    Layout,
    /// The kernel refused.
    #[error("{what}: {reason}")]
    Refused {
        /// Which step.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// The cache. Dropping it detaches the programs.
pub struct ExecCache {
    /// Keeps the links.
    _ebpf: Ebpf,
    actors: HashMap<MapData, u32, RawActor>,
}

impl std::fmt::Debug for ExecCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecCache").finish_non_exhaustive()
    }
}

impl ExecCache {
    /// Loads and attaches the programs.
    ///
    /// # Errors
    /// The kernel refuses them, or has no type information; nothing is left behind.
    pub fn start() -> Result<Self, ExecCacheError> {
        let object = objects::TRACE.ok_or(ExecCacheError::NotBuilt)?;
        let layout = Btf::of_kernel()?.layout(LSM_PREFIX);
        let needed = [layout.task_tgid, layout.task_pid, layout.task_start_boottime, layout.task_mm];
        let pid_ns = nested_pid_namespace();
        let nested = [
            layout.task_group_leader,
            layout.task_thread_pid,
            layout.pid_level,
            layout.pid_numbers,
            layout.upid_nr,
            layout.upid_ns,
            layout.pid_ns_inum,
        ];
        if needed.contains(&MISSING) || (pid_ns != 0 && nested.contains(&MISSING)) {
            return Err(ExecCacheError::Layout);
        }
        super::hooks::raise_memlock();
        let refused = |what, error: &dyn std::error::Error| ExecCacheError::Refused {
            what,
            reason: super::hooks::chain(error),
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("LAYOUT", &layout, true)
            .override_global("PID_NS", &pid_ns, true)
            .load(object)
            .map_err(|error| refused("loading the tracepoint programs", &error))?;
        for (name, tracepoint) in PROGRAMS {
            let program = ebpf.program_mut(name).ok_or_else(|| ExecCacheError::Refused {
                what: name,
                reason: "not in the object".to_owned(),
            })?;
            let program: &mut RawTracePoint = program.try_into().map_err(|error| refused(name, &error))?;
            program.load().map_err(|error| refused(name, &error))?;
            program.attach(tracepoint).map_err(|error| refused(tracepoint, &error))?;
        }
        let map = ebpf.take_map("ACTORS").ok_or_else(|| ExecCacheError::Refused {
            what: "ACTORS",
            reason: "not in the object".to_owned(),
        })?;
        let actors = HashMap::try_from(map).map_err(|error| refused("ACTORS", &error))?;
        Ok(Self { _ebpf: ebpf, actors })
    }

    /// The process that had this number (a tgid) last, if it began or executed something since the start.
    #[must_use]
    pub fn lookup(&self, pid: u32) -> Option<Actor> {
        let raw = self.actors.get(&pid, 0).ok()?;
        let whole = raw.tgid == pid && raw.flags & ACTOR_INCOMPLETE == 0;
        whole.then(|| decode::actor(&raw, Clock::now()))
    }
}

/// This process's PID namespace, 0 if it is the first one: in a node that is a container itself processes have other
/// numbers than those the kernel counts by, and a number taken for the other kind would name the wrong process.
fn nested_pid_namespace() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    /// `PROC_PID_INIT_INO` in the kernel.
    const FIRST: u64 = 0xEFFF_FFFC;
    let own = std::fs::metadata("/proc/self/ns/pid").map_or(FIRST, |meta| meta.ino());
    if own == FIRST { 0 } else { u32::try_from(own).unwrap_or(0) }
}

impl ActorSource for ExecCache {
    fn lookup(&self, pid: u32) -> Option<Actor> {
        Self::lookup(self, pid)
    }
}

impl ActorSource for Arc<ExecCache> {
    fn lookup(&self, pid: u32) -> Option<Actor> {
        ExecCache::lookup(self, pid)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Needs root and the object; elsewhere the refusal is checked for having a reason.
    #[test]
    fn a_process_that_is_gone_has_a_name() {
        let cache = match ExecCache::start() {
            Ok(cache) => cache,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        let args = ["--password=x", "-H", "Authorization: Bearer x", "\u{e4}\n"];
        let mut child = Command::new("true").args(args).spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let actor = cache.lookup(pid).unwrap();
        assert_eq!((actor.pid, actor.tgid, actor.ppid), (pid, pid, std::process::id()));
        assert_eq!(actor.comm, "true");
        assert_eq!(actor.cmdline, "true --password=[redacted] -H Authorization: [redacted] \u{e4}\n");
        assert!(actor.exe.unwrap().as_bytes().ends_with(b"/true"));
        assert_eq!(cache.lookup(0), None);
    }
}
