//! A program that somebody detached is attached anew.
//!
//! Nobody can detach a program by its number on the kernels there are; but whoever is root can take away the pin, and in the
//! agent the descriptor, that hold its link. After each proof it is looked whether all links are still there. A program whose
//! link went is attached at once, and stays in `blind_to` until a canary has shown that it works. Tries are bounded: whoever detaches
//! it again and again is told of, not raced.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::FdLink;
use monitor_ebpf::record::HookId;

use super::kept::Kept;
use super::rung::{self, HookRung};
use super::specs::{EndSpec, Spec};
use super::{chain, ends};
use crate::model::{Family, Time};
use crate::sensor::btf::Btf;
use crate::sensor::{Hook, Lapse};

/// Tries in a row, after each of which the next waits twice as long. They last for three hours.
const TRIES: u32 = 14;
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(1200);
/// A hook that lived for so long is none that is detached again and again.
const LIVED: Duration = Duration::from_secs(3600);

/// Where a program stands.
#[derive(Debug, Clone, Copy)]
enum On {
    Hook(&'static str),
    End(&'static EndSpec),
}

/// A program that was attached when the sensor started.
#[derive(Debug)]
pub(super) struct Standing {
    /// Its name in the object.
    program: &'static str,
    on: On,
    /// What a canary proves it by, if one can.
    id: Option<HookId>,
    families: &'static [Family],
    /// What it stands on, for people.
    name: String,
}

impl Standing {
    pub(super) fn on_hook(spec: &'static Spec, rung: HookRung) -> Self {
        Self {
            program: spec.program,
            on: On::Hook(spec.hook),
            id: Some(spec.id),
            families: spec.families,
            name: spec.named(rung),
        }
    }

    /// One that keeps the tags, and tells nothing itself.
    pub(super) fn keeper(hook: &'static str, rung: HookRung) -> Self {
        let name = rung.named(hook);
        Self { program: hook, on: On::Hook(hook), id: None, families: &[Family::Inherit], name }
    }

    pub(super) fn on_end(spec: &'static EndSpec) -> Self {
        let name = spec.function.to_owned();
        Self { program: spec.program, on: On::End(spec), id: spec.id, families: &[Family::Mounts], name }
    }

    fn attach(&self, ebpf: &mut Ebpf, rung: HookRung) -> Result<FdLink, String> {
        let program = ebpf.program_mut(self.program).ok_or("no such program in the object")?;
        rung::attach_anew(program, |program| {
            let btf = aya::Btf::from_sys_fs().map_err(|error| chain(&error))?;
            match self.on {
                On::End(spec) => ends::load(program, &btf, spec),
                On::Hook(hook) => {
                    let kernel = Btf::of_kernel().map_err(|error| error.to_string())?;
                    rung.attach(program, hook, &kernel, &btf)
                }
            }
        })
    }
}

/// A program that was found detached.
#[derive(Debug)]
struct Case {
    /// When it was last known to work.
    dead_since: Option<Time>,
    tries: u32,
    next: Instant,
    /// Attached anew, or why not; `None` once it was proven.
    pending: Option<Result<(), String>>,
    /// When it was proven last.
    alive: Option<Instant>,
    /// How long it was dead, the last time.
    lapse: Option<Lapse>,
}

impl Case {
    fn new(now: Instant) -> Self {
        Self { dead_since: None, tries: 0, next: now, pending: None, alive: None, lapse: None }
    }

    /// Whether it is time for another try, which then counts.
    fn takes_try(&mut self, now: Instant) -> bool {
        if self.alive.is_some_and(|alive| now.duration_since(alive) > LIVED) {
            self.tries = 0;
        }
        if self.tries >= TRIES || self.tries > 0 && now < self.next {
            return false;
        }
        self.next = now + FIRST_WAIT.saturating_mul(1 << self.tries).min(LONGEST_WAIT);
        self.tries += 1;
        true
    }
}

/// All that were found detached since the sensor started, by program.
#[derive(Debug, Default)]
pub(super) struct Revivals(BTreeMap<&'static str, Case>);

/// What a look at the links came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Hooks that are to be proven again before they count as live.
    pub unproven: Vec<HookId>,
    /// A proof is wanted soon.
    pub again: bool,
}

impl Revivals {
    /// What lives again by a proof that ended now, in which these hooks were `seen`; since and until when.
    pub(super) fn proven(
        &mut self,
        standing: &[Standing],
        kept: &Kept,
        seen: &[(HookId, Time)],
    ) -> Vec<(String, Lapse)> {
        let mut revived = Vec::new();
        for (program, case) in &mut self.0 {
            let Some(one) = standing.iter().find(|one| one.program == *program) else { continue };
            if !matches!(case.pending, Some(Ok(()))) || !kept.is_linked(program) {
                continue;
            }
            let until = match one.id {
                Some(id) => seen.iter().find(|(seen, _)| *seen == id).map(|(_, time)| *time),
                None => Some(Time::now()),
            };
            let Some(until) = until else { continue };
            let lapse = Lapse { dead_since: case.dead_since.take(), live_since: until, tries: case.tries };
            (case.pending, case.alive, case.lapse) = (None, Some(Instant::now()), Some(lapse));
            revived.push((one.name.clone(), lapse));
        }
        revived
    }

    /// Attaches anew whatever has no link any more. `last` tells when a hook was last seen to work.
    pub(super) fn attach(
        &mut self,
        standing: &[Standing],
        kept: &mut Kept,
        ebpf: &mut Ebpf,
        rung: HookRung,
        last: impl Fn(HookId) -> Option<Time>,
    ) -> Outcome {
        let now = Instant::now();
        let mut outcome = Outcome::default();
        for one in standing {
            if kept.is_linked(one.program) {
                continue;
            }
            let case = self.0.entry(one.program).or_insert_with(|| Case::new(now));
            if case.pending.is_none() {
                case.dead_since = one.id.and_then(&last);
                case.pending = Some(Err("detached".to_owned()));
            }
            outcome.unproven.extend(one.id);
            if !case.takes_try(now) {
                continue;
            }
            let attached = one.attach(ebpf, rung).and_then(|link| kept.replace(one.program, link));
            tracing::warn!(
                hook = one.name,
                tries = case.tries,
                ?attached,
                "somebody detached it: attaching it anew"
            );
            outcome.again |= attached.is_ok();
            case.pending = Some(attached);
        }
        outcome
    }

    /// When a program was dead last, if it lives again.
    pub(super) fn lapse(&self, program: &str) -> Option<Lapse> {
        self.0.get(program).and_then(|case| case.lapse)
    }

    /// What is to be said of a hook that is not live: that it was detached, and what was done about it.
    pub(super) fn reason(&self, program: &str) -> Option<String> {
        let case = self.0.get(program)?;
        Some(match case.pending.as_ref()? {
            Ok(()) => "detached, attached anew, not proven yet".to_owned(),
            Err(reason) if case.tries >= TRIES => format!("detached, given up after {TRIES} tries: {reason}"),
            Err(reason) => format!("detached, to be attached anew: {reason}"),
        })
    }

    /// Programs that no canary proves and that were found detached, as hooks; and the families that are blind while they are.
    pub(super) fn beside_canaries(&self, standing: &[Standing]) -> (Vec<Hook>, Vec<String>) {
        let (mut hooks, mut blind) = (Vec::new(), Vec::new());
        for one in standing.iter().filter(|one| one.id.is_none()) {
            let Some(case) = self.0.get(one.program) else { continue };
            let reason = self.reason(one.program);
            for family in one.families {
                hooks.push(Hook {
                    name: one.name.clone(),
                    family: *family,
                    live: reason.is_none(),
                    last_canary: None,
                    lapse: case.lapse,
                });
                blind.extend(reason.iter().map(|why| format!("{}: {}: {why}", family.as_str(), one.name)));
            }
        }
        (hooks, blind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensor::hooks::specs::ENDS;

    #[test]
    fn what_no_canary_proves_is_dead_until_it_is_attached_anew() {
        let standing = [Standing::keeper("path_notify", HookRung::Fentry), Standing::on_end(&ENDS[0])];
        let mut revivals = Revivals::default();
        assert_eq!(revivals.beside_canaries(&standing), (Vec::new(), Vec::new()));
        let mut case = Case::new(Instant::now());
        case.pending = Some(Err("detached".to_owned()));
        revivals.0.insert("path_notify", case);
        let (hooks, blind) = revivals.beside_canaries(&standing);
        let one = |hooks: &[Hook]| match hooks {
            [one] => (one.name.clone(), one.family, one.live, one.lapse),
            _ => panic!("{hooks:?}"),
        };
        assert_eq!(one(&hooks), ("security_path_notify".to_owned(), Family::Inherit, false, None));
        assert_eq!(blind, ["inherit: security_path_notify: detached, to be attached anew: detached"]);
        let lapse = Lapse { dead_since: None, live_since: Time(7), tries: 1 };
        let case = revivals.0.get_mut("path_notify").unwrap();
        (case.pending, case.lapse) = (None, Some(lapse));
        let (hooks, blind) = revivals.beside_canaries(&standing);
        assert_eq!(one(&hooks), ("security_path_notify".to_owned(), Family::Inherit, true, Some(lapse)));
        assert!(blind.is_empty());
    }

    #[test]
    fn tries_are_bounded_and_ever_rarer() {
        let begun = Instant::now();
        let mut case = Case::new(begun);
        let (mut now, mut at) = (begun, Vec::new());
        while now < begun + Duration::from_secs(6 * 3600) {
            if case.takes_try(now) {
                at.push(now.duration_since(begun).as_secs());
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(at.len(), TRIES as usize);
        assert_eq!(at[..5], [0, 2, 6, 14, 30]);
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST_WAIT.as_secs()));
        // One that lived for long since is attached at once.
        case.alive = Some(now);
        assert!(!case.takes_try(now + LIVED));
        assert!(case.takes_try(now + LIVED + Duration::from_secs(1)));
    }
}
