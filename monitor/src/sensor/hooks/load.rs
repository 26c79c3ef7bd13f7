//! Loading and attaching: what can be stands, the rest is named.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Map, MapData};
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use monitor_ebpf::{Layout, limits};

use super::revive::Standing;
use super::rung::HookRung;
use super::{HookError, Options, State, specs};
use crate::sensor::btf::Btf;

/// Room in the map of programs where it is not used: a map has to have some.
const NO_PROGRAMS: u32 = 64;

/// Kernels before 5.11 charge maps to `RLIMIT_MEMLOCK`.
pub(in crate::sensor) fn raise_memlock() {
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}

pub(super) fn load(
    object: &[u8],
    kernel: &Btf,
    layout: &Layout,
    options: &Options,
) -> Result<Ebpf, HookError> {
    let agent = std::process::id();
    // Since 5.11.
    let typed_current = kernel.function_id("bpf_get_current_task_btf").is_some();
    let programs = if typed_current { NO_PROGRAMS } else { limits::PROGRAMS as u32 };
    EbpfLoader::new()
        .override_global("LAYOUT", layout, true)
        .override_global("AGENT", &agent, true)
        .override_global("ENDS", &1_u32, true)
        .override_global("TYPED_CURRENT", &u32::from(typed_current), true)
        .override_global(aya_log::LEVEL, &(aya_log::Level::Warn as u8), false)
        .map_max_entries("SLOTS", options.slots)
        .map_max_entries("PROGRAMS", programs)
        .map_max_entries("EVENTS", options.ring_bytes)
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .load(object)
        .map_err(|error| HookError::Load(chain(&error)))
}

/// What came of attaching.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// Each hook's state.
    pub hooks: Vec<State>,
    /// All programs that stand.
    pub programs: Vec<OwnedFd>,
    /// What keeps them there, by hook.
    pub links: Vec<(String, FdLink)>,
    /// What stands where, to be attached anew.
    pub standing: Vec<Standing>,
}

/// Attaches what can be; the rest is named.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    rung: HookRung,
    kernel: &Btf,
    layout: &Layout,
) -> Result<Attached, HookError> {
    let btf = aya::Btf::from_sys_fs().map_err(|error| HookError::Load(chain(&error)))?;
    let mut attached = Attached::default();
    let mut standing = Vec::new();
    let mut one = |name: &'static str, hook: &'static str, needs: &[&'static str]| {
        let lacking = specs::missing(layout, needs);
        if !lacking.is_empty() {
            return Err(format!("{} not in this kernel's BTF", lacking.join(", ")));
        }
        let program = ebpf.program_mut(name).ok_or("no such program in the object")?;
        let link = rung.attach(program, hook, kernel, &btf)?;
        let fd = program.fd().map_err(|error| chain(&error))?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        attached.programs.push(fd);
        attached.links.push((name.to_owned(), link));
        Ok(())
    };
    for (hook, needs) in rung.keepers() {
        one(hook, hook, needs).map_err(|reason| HookError::Keeper { hook: rung.named(hook), reason })?;
        standing.push(Standing::keeper(hook, rung));
    }
    let mut hooks = Vec::new();
    for spec in specs::SPECS {
        if spec.covered_elsewhere && !specs::missing(layout, spec.needs).is_empty() {
            continue;
        }
        let failure = match one(spec.program, spec.hook, spec.needs) {
            Ok(()) => {
                standing.push(Standing::on_hook(spec, rung));
                None
            }
            Err(reason) => {
                tracing::warn!(hook = spec.named(rung), %reason, "program not attached");
                Some(reason)
            }
        };
        hooks.push(State { id: spec.id, failure, last_canary: None });
    }
    (attached.hooks, attached.standing) = (hooks, standing);
    if attached.hooks.iter().all(|hook| hook.failure.is_some()) {
        let reason = attached.hooks.iter().find_map(|hook| hook.failure.clone()).unwrap_or_default();
        return Err(HookError::NothingAttached(reason));
    }
    Ok(attached)
}

/// An error with its causes, on one line. A verifier's log is cut to its end, where the reason stands.
pub(in crate::sensor) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.as_slice() {
        [first, .., before, last] => format!("{first} … {before} / {last}"),
        _ => lines.join(" "),
    }
}

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, HookError> {
    ebpf.take_map(name).ok_or(HookError::Map { name, reason: "not in the object".to_owned() })
}

pub(super) fn map_error(name: &'static str, error: &dyn std::error::Error) -> HookError {
    HookError::Map { name, reason: chain(error) }
}

pub(super) fn array(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, HookError> {
    match take(ebpf, name)? {
        Map::Array(data) => Ok(data),
        _ => Err(HookError::Map { name, reason: "not an array".to_owned() }),
    }
}
