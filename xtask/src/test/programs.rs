//! The lanes that run the test programs of `tests/`: on this machine, and in a guest of each kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Tally;
use super::again::Run;
use crate::build::{self, Profile};
use crate::vm::kernel::{self, Series};
use crate::vm::{self, End, Output, VmSpec};
use crate::{cmd, setup, workspace};

/// One program may take this long, in seconds.
const PROGRAM_LIMIT: u32 = 600;
/// The same in the full lane.
const FULL_LIMIT: u32 = 3600;
/// Tells programs that they run in the full lane: some have cases for that.
const FULL: &str = "MESHSEAL_TESTS_FULL";

/// What the lanes run, static.
pub(super) struct Built {
    meshseal: PathBuf,
    native: Vec<PathBuf>,
    guest: Vec<PathBuf>,
}

pub(super) fn build() -> Result<Built> {
    let dir = build::static_binaries(
        Profile::Lane,
        &["--package", "monitor", "--bin", "meshseal", "--package", "meshseal-tests", "--bins"],
    )?;
    let programs = |prefix: &str| -> Result<Vec<PathBuf>> {
        let sources = workspace::root().join("tests/src/bin");
        let mut found = Vec::new();
        for entry in fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))? {
            let name = entry?.file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
            if name.starts_with(prefix) {
                found.push(dir.join(name));
            }
        }
        found.sort();
        Ok(found)
    };
    Ok(Built { meshseal: dir.join("meshseal"), native: programs("native_")?, guest: programs("vm_")? })
}

/// As root, on this machine; `full` with what takes long.
pub(super) fn native(built: &Built, full: bool, run: Run<'_>) -> Result<Tally> {
    if !rustix::process::geteuid().is_root() {
        bail!("the native tests need root: run `cargo xtask test` as root");
    }
    let mut tally = Tally::default();
    // Without them the programs that need them fail, and the others still show what they show.
    let receivers = setup::receivers().unwrap_or_else(|error| {
        tally.failed += 1;
        tally.log.push_str(&format!("FAIL third-party receivers: {error:#}\n"));
        PathBuf::new()
    });
    for program in &built.native {
        let name = name(program);
        let Some(cases) = run.cases(&name) else { continue };
        // Its stderr goes to a file: a program that writes much must not wait for somebody who reads.
        let mut errors = tempfile::tempfile().context("cannot create a temporary file")?;
        let limit = if full { FULL_LIMIT } else { PROGRAM_LIMIT };
        let mut command = Command::new("timeout");
        if full {
            command.env(FULL, "1");
        }
        let out = command
            .args(["-k", "5", &limit.to_string()])
            .arg(program)
            .args(cases)
            .env("MESHSEAL", &built.meshseal)
            .env("MESHSEAL_RECEIVERS", &receivers)
            .stdin(Stdio::null())
            .stderr(errors.try_clone().context("cannot use a temporary file")?)
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        add(&mut tally, &name, &String::from_utf8_lossy(&out.stdout), out.status.code());
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut errors)
            .and_then(|()| std::io::Read::read_to_end(&mut errors, &mut text))
            .context("cannot read a temporary file")?;
        tally.log.push_str(&String::from_utf8_lossy(&text));
    }
    Ok(tally)
}

/// A guest's security modules, and the programs that run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boot {
    /// With `bpf` among the security modules: all programs.
    Lsm,
    /// Without it: those that show what the agent sees, once more on the rung below.
    Fentry,
}

impl Boot {
    /// Both, with the words that stand behind the lane's name.
    pub(super) const ALL: [(Self, &str); 2] = [(Self::Lsm, ""), (Self::Fentry, " fentry")];

    fn runs(self, program: &Path, series: Series, full: bool) -> bool {
        let name = name(program);
        let here = match self {
            Self::Lsm => true,
            // This kernel preempts itself, and skips a program of this rung that another task is in.
            Self::Fentry if series == Series::V7_2 && !full => TAKES_SKIPS.contains(&name.as_str()),
            Self::Fentry if !full => {
                FENTRY_TOO.contains(&name.as_str()) && !FULL_ON_FENTRY.contains(&name.as_str())
            }
            Self::Fentry => FENTRY_TOO.contains(&name.as_str()),
        };
        here && (full || !FULL_ONLY.contains(&name.as_str()))
    }
}

/// Programs that take whatever rung the kernel allows.
const FENTRY_TOO: [&str; 6] =
    ["vm_agent", "vm_corpus", "vm_day", "vm_faults", "vm_observations", "vm_overlay"];
/// Of these, the programs that run on that rung in the full lane only.
const FULL_ON_FENTRY: [&str; 1] = ["vm_faults"];
/// Of these, the programs that do all over again what the kernel skipped.
const TAKES_SKIPS: [&str; 2] = ["vm_corpus", "vm_observations"];
/// Programs that start many agents or pods (the kernel's verifier, and all else, takes its time without hardware virtualisation), and
/// the corpus once more on file systems that [`guest`] has modules and tools for in the full lane only.
const FULL_ONLY: [&str; 5] = ["vm_agent", "vm_day", "vm_filesystems", "vm_journal", "vm_pods"];
/// The security modules of a node that does not have `bpf` among them.
const WITHOUT_BPF: &str = "lockdown,capability";

/// The programs for that boot in one guest of that kernel; `full` with those that take long.
pub(super) fn guest(series: Series, boot: Boot, full: bool, built: &Built, run: Run<'_>) -> Result<Tally> {
    let limit = if full { FULL_LIMIT } else { PROGRAM_LIMIT };
    let programs: Vec<PathBuf> =
        built.guest.iter().filter(|program| boot.runs(program, series, full)).cloned().collect();
    let chosen: Vec<(String, Vec<&str>)> = programs
        .iter()
        .map(|program| name(program))
        .filter_map(|name| run.cases(&name).map(|cases| (name, cases)))
        .collect();
    let kernel = kernel::resolve(series)?;
    let package = kernel.package.clone();
    let set = if full { format!("export {FULL}=1; ") } else { String::new() };
    let script = format!(
        "{set}for program in \"$@\"; do echo \"== start ${{program%% *}}\"; timeout {limit} /with/$program; echo \"== end $?\"; done"
    );
    let mut command: Vec<std::ffi::OsString> = ["sh", "-c", &script, "sh"].map(Into::into).to_vec();
    // Names of programs and cases hold nothing that a shell takes apart or replaces, but for the blanks between them.
    command
        .extend(chosen.iter().map(|(name, cases)| [&[name.as_str()], &cases[..]].concat().join(" ").into()));
    let mut spec = VmSpec::new(kernel, command);
    spec.meshseal = Some(built.meshseal.clone());
    spec.with.clone_from(&programs);
    if full {
        setup::packages(setup::GUEST_TOOLS)?;
        spec.modules = ["xfs", "btrfs"].map(str::to_owned).to_vec();
        for need in setup::GUEST_TOOLS {
            spec.with.push(cmd::find(need.what).with_context(|| format!("no {}", need.what))?);
        }
    }
    if boot == Boot::Fentry {
        WITHOUT_BPF.clone_into(&mut spec.lsm);
    }
    spec.memory_mib = 2048;
    spec.output = Output::Capture;
    spec.timeout = Some(Duration::from_secs(u64::from(limit) * 3));
    let outcome = vm::run(&spec)?;

    let mut tally = Tally { note: package, ..Tally::default() };
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    let mut ended = 0;
    for (program, text, status) in sections(&stdout) {
        ended += usize::from(status.is_some());
        add(&mut tally, program, &text, status);
    }
    tally.log.push_str(&String::from_utf8_lossy(&outcome.stderr));
    match &outcome.end {
        End::Exited(_) if ended == chosen.len() => {}
        End::Exited(status) => {
            tally.failed += 1;
            tally.log.push_str(&format!("the guest ended with {status} before all programs had run\n"));
        }
        End::TimedOut => {
            tally.failed += 1;
            tally.log.push_str("FAIL the guest's time was up\n");
        }
        End::Crashed(console) => {
            tally.failed += 1;
            tally.log.push_str(&format!("{console}\nFAIL the guest crashed\n"));
        }
    }
    Ok(tally)
}

fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What each program said, and its exit status where it came so far.
fn sections(text: &str) -> Vec<(&str, String, Option<i32>)> {
    let mut sections: Vec<(&str, String, Option<i32>)> = Vec::new();
    for line in text.lines() {
        if let Some(program) = line.strip_prefix("== start ") {
            sections.push((program, String::new(), None));
        } else if let Some(last) = sections.last_mut() {
            match line.strip_prefix("== end ").map(str::parse) {
                Some(Ok(status)) => last.2 = Some(status),
                _ => {
                    last.1.push_str(line);
                    last.1.push('\n');
                }
            }
        }
    }
    sections
}

/// Counts a program's `ok` and `FAIL` lines; one that ends badly, or shows nothing, is a failure of its own.
fn add(tally: &mut Tally, program: &str, stdout: &str, status: Option<i32>) {
    let (mut passed, mut failed) = (0, 0);
    for line in stdout.lines() {
        if line.starts_with("ok ") {
            passed += 1;
        } else if line.starts_with("FAIL ") {
            failed += 1;
        }
        tally.log.push_str(&format!("{program}: {line}\n"));
    }
    let bad_end = match status {
        Some(0) if passed + failed == 0 => Some("it ran no case".to_owned()),
        Some(0) => None,
        Some(_) if failed > 0 => None,
        Some(124) => Some("not done within its time".to_owned()),
        Some(status) => Some(format!("exit status {status}")),
        None => Some("it did not end by itself".to_owned()),
    };
    if let Some(why) = bad_end {
        failed += 1;
        tally.log.push_str(&format!("FAIL {program}: {why}\n"));
    }
    tally.passed += passed;
    tally.failed += failed;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(stdout: &str, status: Option<i32>) -> (u32, u32) {
        let mut tally = Tally::default();
        add(&mut tally, "vm_x", stdout, status);
        (tally.passed, tally.failed)
    }

    #[test]
    fn a_program_counts_its_cases_and_its_own_end() {
        assert_eq!(added("ok a\nnoise\nok b\n", Some(0)), (2, 0));
        assert_eq!(added("ok a\nFAIL b: why\n", Some(1)), (1, 1));
        assert_eq!(added("ok a\n", Some(101)), (1, 1));
        assert_eq!(added("ok a\n", None), (1, 1));
        assert_eq!(added("", Some(0)), (0, 1));
    }

    #[test]
    fn what_programs_say_is_told_apart() {
        let text = "== start vm_a\nok one\n== end 0\n== start vm_b\nFAIL two: x\n== end 1\n== start vm_c\nok three\n";
        assert_eq!(
            sections(text),
            [
                ("vm_a", "ok one\n".to_owned(), Some(0)),
                ("vm_b", "FAIL two: x\n".to_owned(), Some(1)),
                ("vm_c", "ok three\n".to_owned(), None),
            ]
        );
    }
}
