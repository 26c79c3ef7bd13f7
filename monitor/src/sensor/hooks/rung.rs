//! What differs between the two rungs whose programs stand on the kernel's security hooks.

use std::path::Path;

use aya::Btf as AyaBtf;
use aya::programs::links::FdLink;
use aya::programs::{FEntry, Lsm, Program, ProgramError};

use super::{HookError, chain, objects, probe};
use crate::model::Rung;
use crate::sensor::btf::{Btf, FENTRY_PREFIX, LSM_PREFIX};

/// On what the programs stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookRung {
    /// On the hooks themselves, as a security module among others; tags in inode storage.
    Lsm,
    /// On the functions that call the hooks, for kernels without that module; tags in a hash map.
    Fentry,
}

/// A hook by name, and what its program needs of the layout.
type Keeper = (&'static str, &'static [&'static str]);

/// What keeps the tags where they are in inode storage, and where they are in a table.
const OF_STORAGE: &[Keeper] = &[("path_notify", &["path_dentry", "arg_path_notify_path"])];
const OF_TABLE: &[Keeper] = &[
    ("path_notify", &["path_dentry", "inode_i_generation", "arg_path_notify_path"]),
    ("inode_free", &["inode_i_generation", "arg_inode_free_inode"]),
];

impl HookRung {
    /// As records and status name it.
    #[must_use]
    pub const fn rung(self) -> Rung {
        match self {
            Self::Lsm => Rung::Lsm,
            Self::Fentry => Rung::Fentry,
        }
    }

    /// What makes the name of a hook that of the function whose arguments the programs get.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Lsm => LSM_PREFIX,
            Self::Fentry => FENTRY_PREFIX,
        }
    }

    /// The eBPF object, if it is part of this binary.
    pub(super) const fn object(self) -> Option<&'static [u8]> {
        match self {
            Self::Lsm => objects::LSM,
            Self::Fentry => objects::FENTRY,
        }
    }

    /// Programs that must stand, or the rung cannot be used.
    pub(super) const fn keepers(self) -> &'static [Keeper] {
        match self {
            Self::Lsm => OF_STORAGE,
            Self::Fentry => OF_TABLE,
        }
    }

    /// Whether a map of this rung's may be created here at all.
    pub(super) fn allowed(self) -> Result<(), HookError> {
        if self == Self::Fentry {
            return Ok(());
        }
        let list = probe::list(Path::new(probe::LSM_LIST)).map_err(HookError::NoBpfLsm)?;
        if probe::contains_bpf(&list) { Ok(()) } else { Err(HookError::NoBpfLsm(list)) }
    }

    /// What a hook is called here, for people.
    pub(super) fn named(self, hook: &str) -> String {
        match self {
            Self::Lsm => hook.to_owned(),
            Self::Fentry => format!("{FENTRY_PREFIX}{}", hook.strip_suffix("_security").unwrap_or(hook)),
        }
    }

    /// Loads a program and attaches it to the hook of its name, for as long as the link is there.
    pub(super) fn attach(
        self,
        program: &mut Program,
        hook: &'static str,
        layout: &Btf,
        btf: &AyaBtf,
    ) -> Result<FdLink, String> {
        let wrong = |error: ProgramError| chain(&error);
        let loaded = match self {
            Self::Lsm => {
                let program: &mut Lsm = program.try_into().map_err(wrong)?;
                program
                    .load(hook, btf)
                    .and_then(|()| program.attach())
                    .and_then(|id| program.take_link(id).map(FdLink::from))
            }
            Self::Fentry => {
                let function = layout
                    .function_of(FENTRY_PREFIX, hook)
                    .ok_or_else(|| format!("no function {} in this kernel's BTF", self.named(hook)))?;
                let program: &mut FEntry = program.try_into().map_err(wrong)?;
                program
                    .load(&function, btf)
                    .and_then(|()| program.attach())
                    .and_then(|id| program.take_link(id).map(FdLink::from))
            }
        };
        loaded.map_err(|error| {
            if let ProgramError::LoadError { verifier_log, .. } = &error {
                tracing::debug!(hook, log = %verifier_log, "the verifier's log");
            }
            chain(&error)
        })
    }
}

/// Attaches a program anew that was detached. Kernels before 5.13 take it only if it is loaded anew as well.
pub(super) fn attach_anew(
    program: &mut Program,
    load: impl FnOnce(&mut Program) -> Result<FdLink, String>,
) -> Result<FdLink, String> {
    let attached = match program {
        Program::Lsm(one) => one.attach().and_then(|id| one.take_link(id).map(FdLink::from)),
        Program::FEntry(one) => one.attach().and_then(|id| one.take_link(id).map(FdLink::from)),
        Program::FExit(one) => one.attach().and_then(|id| one.take_link(id).map(FdLink::from)),
        _ => return Err("no program that stands on a hook".to_owned()),
    };
    match attached {
        // It stands still, and two of them would tell of everything twice.
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EBUSY) => {
            Err(error.to_string())
        }
        Err(_) => {
            let unloaded = match program {
                Program::Lsm(one) => one.unload(),
                Program::FEntry(one) => one.unload(),
                Program::FExit(one) => one.unload(),
                _ => Ok(()),
            };
            // A try before this one may have ended there.
            match unloaded {
                Err(error) if !matches!(error, ProgramError::NotLoaded) => Err(chain(&error)),
                _ => load(program),
            }
        }
        Ok(link) => Ok(link),
    }
}

#[cfg(test)]
mod tests {
    use super::HookRung;

    #[test]
    fn hooks_go_by_the_function_that_calls_them() {
        assert_eq!(HookRung::Lsm.named("bprm_check_security"), "bprm_check_security");
        assert_eq!(HookRung::Fentry.named("bprm_check_security"), "security_bprm_check");
        assert_eq!(HookRung::Fentry.named("file_open"), "security_file_open");
    }
}
