//! `cargo xtask coverage`: what each rung tells of each act of the tamper corpus, as it was seen just now, in
//! `docs/coverage.md`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::{self, Profile};
use crate::cmd::say;
use crate::vm::kernel::{self, Series};
use crate::vm::{self, End, Output, VmSpec};
use crate::{setup, workspace};

const BEGIN: &str = "<!-- begin of what `cargo xtask coverage` writes -->";
const END: &str = "<!-- end of what `cargo xtask coverage` writes -->";
/// The rungs in falling order: the program that runs there, and the security modules of its guest if it has one.
const RUNGS: [(&str, &str, Option<&str>); 4] = [
    ("lsm", "vm_corpus", Some("lockdown,capability,bpf")),
    ("fentry", "vm_corpus", Some("lockdown,capability")),
    ("fanotify", "native_agent", None),
    ("inotify", "native_agent_inotify", None),
];
/// The kernel of the guests.
const SERIES: Series = Series::V6_12;

/// What one rung told: acts in the corpus's order.
type Told = Vec<(String, String)>;

/// The verb.
pub(crate) fn run() -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the corpus needs root: run `cargo xtask coverage` as root");
    }
    setup::packages(setup::VM)?;
    let dir = build::static_binaries(
        Profile::Lane,
        &["--package", "monitor", "--bin", "meshseal", "--package", "meshseal-tests", "--bins"],
    )?;
    let mut columns = Vec::new();
    for (rung, program, lsm) in RUNGS {
        say!("the corpus on {rung}");
        let text = match lsm {
            Some(lsm) => guest(&dir, program, lsm)?,
            None => native(&dir, program)?,
        };
        columns.push(told(&text, rung)?);
    }
    let table = table(&columns)?;
    let file = workspace::root().join("docs/coverage.md");
    let old = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(&file, spliced(&old, &table)?).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(ExitCode::SUCCESS)
}

fn native(dir: &Path, program: &str) -> Result<String> {
    let out = Command::new(dir.join(program))
        .arg("--table")
        .env("MESHSEAL", dir.join("meshseal"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(out.status.success(), "{program} ended with {}", out.status);
    String::from_utf8(out.stdout).context("not UTF-8")
}

fn guest(dir: &Path, program: &str, lsm: &str) -> Result<String> {
    let command: Vec<OsString> = vec![format!("/with/{program}").into(), "--table".into()];
    let mut spec = VmSpec::new(kernel::resolve(SERIES)?, command);
    spec.meshseal = Some(dir.join("meshseal"));
    spec.with = vec![dir.join(program)];
    lsm.clone_into(&mut spec.lsm);
    spec.memory_mib = 2048;
    spec.output = Output::Capture;
    spec.timeout = Some(Duration::from_secs(1800));
    let outcome = vm::run(&spec)?;
    match outcome.end {
        End::Exited(0) => String::from_utf8(outcome.stdout).context("not UTF-8"),
        End::Exited(status) => {
            bail!("{program} ended with {status}: {}", String::from_utf8_lossy(&outcome.stderr))
        }
        End::TimedOut => bail!("{program}: the guest's time was up"),
        End::Crashed(console) => bail!("{program}: the guest crashed: {console}"),
    }
}

/// What a program's `--table` says, if it ran on that rung.
fn told(text: &str, rung: &str) -> Result<Told> {
    let on = text.lines().find_map(|line| line.strip_prefix("rung\t")).context("no rung")?;
    ensure!(on == rung, "the corpus ran on {on}: this machine does not allow {rung}");
    let acts = text.lines().filter_map(|line| line.strip_prefix("act\t")?.split_once('\t'));
    let told: Told = acts.map(|(act, told)| (act.to_owned(), told.to_owned())).collect();
    ensure!(!told.is_empty(), "no acts");
    Ok(told)
}

/// The best rung's words, and where others differ. Not every kernel and file system does every act.
fn table(columns: &[Told]) -> Result<String> {
    let [best, others @ ..] = columns else { bail!("no rungs") };
    let mut out = format!("| act | {} |\n|---|", RUNGS.map(|(rung, ..)| format!("`{rung}`")).join(" | "));
    out.push_str(&"---|".repeat(RUNGS.len()));
    for (act, told) in best {
        out.push_str(&format!("\n| {} | {told} |", act.replace('_', " ")));
        for other in others {
            let said = other.iter().find(|(same, _)| same == act).map(|(_, said)| said);
            let said = match said {
                Some(said) if said == told => "same",
                Some(said) => said,
                None => "not done",
            };
            out.push_str(&format!(" {said} |"));
        }
    }
    out.push('\n');
    Ok(out)
}

/// The text with what stands between the marks replaced.
fn spliced(old: &str, table: &str) -> Result<String> {
    let (before, rest) = old.split_once(BEGIN).context("docs/coverage.md: no mark of the beginning")?;
    let (_, after) = rest.split_once(END).context("docs/coverage.md: no mark of the end")?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_where_rungs_differ() {
        let column = |words: &str| vec![("open_it".to_owned(), words.to_owned())];
        let columns = [column("a by b"), column("a by b"), column("a by c"), column("nothing")];
        assert_eq!(
            table(&columns).unwrap(),
            "| act | `lsm` | `fentry` | `fanotify` | `inotify` |\n|---|---|---|---|---|\n| open it | a by b | same | a by c | nothing |\n"
        );
        assert!(table(&[column("a"), vec![]]).unwrap().ends_with("| open it | a | not done |\n"));
        assert!(table(&[]).is_err());
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let old = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        assert_eq!(spliced(&old, "new\n").unwrap(), format!("head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"));
        assert!(spliced("no marks", "new").is_err());
    }

    #[test]
    fn a_run_on_another_rung_is_refused() {
        let text = "noise\nrung\tfanotify\nact\twrite\tcontent by write\n";
        assert_eq!(told(text, "fanotify").unwrap(), [("write".to_owned(), "content by write".to_owned())]);
        assert!(told(text, "lsm").is_err());
    }
}
