//! `meshseal doctor`: what this kernel and node allow, which rung the agent would run on and why not a higher one,
//! what it could not see, and how to fix each. Needs no agent, and leaves nothing behind.

mod node;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::ask::Socket;
use super::{Failure, Format, output};
use crate::config::{self, Config, RungChoice};
use crate::model::{Coverage, Rung};
use crate::sensor::{Health, fanotify, hooks, inotify};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check what this config names too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    socket: Socket,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// What was found.
    detail: String,
    /// What to do about it; `None` where it is fine.
    fix: Option<String>,
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, ok: true, detail: detail.into(), fix: None }
    }

    fn bad(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, ok: false, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    rung: Rung,
    coverage: Coverage,
    blind_to: Vec<String>,
    checks: Vec<Check>,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let config = args.config.as_deref().map(config::load_file).transpose()?;
    let report = examine(config.as_ref(), &args.socket.path());
    match format {
        Format::Json => {
            let json = serde_json::to_string(&report).map_err(|e| Failure::new("doctor", "answer", e))?;
            output::line(&json)?;
        }
        Format::Text => output::text(&render(&report))?,
    }
    Ok(ExitCode::from(match report.rung {
        Rung::None => 4,
        _ if report.coverage == Coverage::Full => 0,
        _ => 3,
    }))
}

fn examine(config: Option<&Config>, default_socket: &Path) -> Report {
    let choice = config.map_or(RungChoice::Auto, |config| config.sensor.rung);
    let host_root = config.map_or(Path::new("/"), |config| &config.host_root);
    let (kernel, marks, watches) = (hooks::probe(), fanotify::probe(host_root), inotify::probe());
    let (rung, blind_to) = choose(choice, &kernel, &marks, &watches);
    let mut checks = kernel_checks(&kernel);
    checks.extend(fanotify_checks(&marks, host_root));
    checks.push(match &watches {
        Ok(()) => Check::good("inotify.init", "an instance can be made"),
        Err(reason) => Check::bad("inotify.init", reason, "raise fs.inotify.max_user_instances"),
    });
    if choice < RungChoice::Lsm {
        let detail = format!("the config's sensor.rung allows {} at most", choice.name());
        checks.push(Check::bad("sensor.rung", detail, "sensor.rung: auto"));
    }
    checks.extend(node::checks(config, default_socket));
    let health = Health { rung, hooks: Vec::new(), blind_to };
    Report { rung, coverage: health.coverage(), blind_to: health.blind_to, checks }
}

/// The rung the agent would run on, by the agent's own order, and what is not seen there.
fn choose(
    choice: RungChoice,
    kernel: &hooks::Probe,
    marks: &fanotify::FanotifyProbe,
    watches: &Result<(), String>,
) -> (Rung, Vec<String>) {
    if choice >= RungChoice::Lsm && kernel.allows_lsm() {
        return (Rung::Lsm, Vec::new());
    }
    if choice >= RungChoice::Fentry && kernel.allows_fentry() {
        return (Rung::Fentry, Vec::new());
    }
    if choice >= RungChoice::Fanotify && marks.usable() {
        return (Rung::Fanotify, marks.blind_to());
    }
    if choice >= RungChoice::Inotify && watches.is_ok() {
        return (Rung::Inotify, inotify::blind_to());
    }
    (Rung::None, vec!["everything: no sensor can run".to_owned()])
}

/// What to do where the kernel refuses a BPF program.
fn bpf_fix(reason: &str) -> String {
    let fix = if reason.contains("os error 1)") || reason.contains("os error 13)") {
        "run as root with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, and see that kernel lockdown and seccomp allow bpf()"
    } else if reason.starts_with("the kernel's BTF") {
        "a kernel built with CONFIG_BPF_LSM=y and CONFIG_DEBUG_INFO_BTF=y"
    } else {
        "a kernel built with CONFIG_BPF_SYSCALL=y, CONFIG_BPF_LSM=y and CONFIG_DEBUG_INFO_BTF=y"
    };
    fix.to_owned()
}

fn kernel_checks(kernel: &hooks::Probe) -> Vec<Check> {
    let list = match &kernel.lsm_list {
        Ok(list) if kernel.bpf_in_list => Check::good("lsm.list", list),
        Ok(list) => {
            let fix = format!("lsm={list},bpf on the kernel's command line, and a reboot");
            Check::bad("lsm.list", format!("{list}: bpf is not in use"), fix)
        }
        Err(reason) => Check::bad(
            "lsm.list",
            reason,
            "mount securityfs at /sys/kernel/security (in a container: from the host), on a kernel with CONFIG_BPF_LSM=y",
        ),
    };
    let btf = match &kernel.btf {
        Ok(()) => Check::good("kernel.btf", "readable"),
        Err(reason) => Check::bad("kernel.btf", reason, "a kernel built with CONFIG_DEBUG_INFO_BTF=y"),
    };
    let program = |name, loaded: &Result<(), String>| match loaded {
        Ok(()) => Check::good(name, "loads"),
        Err(reason) => Check::bad(name, reason, bpf_fix(reason)),
    };
    let objects = if kernel.objects {
        Check::good("ebpf.objects", "part of this binary")
    } else {
        Check::bad("ebpf.objects", "this binary was built without them", "build with cargo xtask build")
    };
    vec![
        list,
        btf,
        program("bpf.lsm", &kernel.lsm_program),
        program("bpf.tracing", &kernel.tracing_program),
        program("bpf.raw_tracepoint", &kernel.raw_tracepoint_program),
        objects,
    ]
}

fn fanotify_checks(marks: &fanotify::FanotifyProbe, host_root: &Path) -> Vec<Check> {
    const RIGHTS: &str = "run as root with CAP_SYS_ADMIN, on Linux 5.9 or later with CONFIG_FANOTIFY=y";
    let group = match &marks.group {
        Err(reason) => return vec![Check::bad("fanotify.group", reason, RIGHTS)],
        Ok(flags) if marks.target_fid && marks.pidfd && marks.unlimited => {
            Check::good("fanotify.group", *flags)
        }
        Ok(flags) => Check::bad(
            "fanotify.group",
            format!("{flags}, queue {}", if marks.unlimited { "unlimited" } else { "limited" }),
            "Linux 5.17 or later names what a name stood for, 5.15 the process by pidfd; CAP_SYS_ADMIN lifts the limit",
        ),
    };
    let place = host_root.display();
    let mark = match &marks.filesystem_mark {
        Ok(()) => Check::good("fanotify.mark", format!("{place}: file system can be marked")),
        Err(reason) => Check::bad("fanotify.mark", format!("{place}: {reason}"), RIGHTS),
    };
    let rename = if marks.rename {
        Check::good("fanotify.rename", "one event with both names")
    } else {
        Check::bad("fanotify.rename", "two events, paired by time", "Linux 5.17 or later")
    };
    vec![group, mark, rename]
}

/// For people: the rung first, then what is wrong, then what is fine.
fn render(report: &Report) -> String {
    let mut out = String::new();
    let coverage = if report.coverage == Coverage::Full { "full" } else { "reduced" };
    let headline = match report.rung {
        Rung::None => "no sensor can run here".to_owned(),
        rung => format!("rung {}, coverage {coverage}", output::word(&rung)),
    };
    let _ = writeln!(out, "{headline}");
    for blind in &report.blind_to {
        let _ = writeln!(out, "  blind to  {}", output::one_line(blind));
    }
    out.push('\n');
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let mark = if check.ok { "ok" } else { "--" };
        let _ = writeln!(out, "{mark}  {:<width$}  {}", check.name, output::one_line(&check.detail));
        if let Some(fix) = &check.fix {
            let _ = writeln!(out, "    {:<width$}  fix: {}", "", output::one_line(fix));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(bpf: bool) -> hooks::Probe {
        hooks::Probe {
            lsm_list: Ok(if bpf { "lockdown,bpf" } else { "lockdown,apparmor" }.to_owned()),
            bpf_in_list: bpf,
            btf: Ok(()),
            lsm_program: Ok(()),
            tracing_program: Ok(()),
            raw_tracepoint_program: Err("BPF_PROG_LOAD: Operation not permitted (os error 1)".to_owned()),
            objects: true,
        }
    }

    fn marks(usable: bool) -> fanotify::FanotifyProbe {
        fanotify::FanotifyProbe {
            group: if usable { Ok("dfid_name+fid") } else { Err("fanotify_init: no".to_owned()) },
            unlimited: true,
            pidfd: true,
            target_fid: true,
            rename: true,
            filesystem_mark: Ok(()),
        }
    }

    #[test]
    fn the_rung_is_the_best_that_is_allowed() {
        let rung = |choice, bpf, usable| choose(choice, &kernel(bpf), &marks(usable), &Ok(())).0;
        assert_eq!(rung(RungChoice::Auto, true, true), Rung::Lsm);
        assert_eq!(rung(RungChoice::Auto, false, true), Rung::Fentry);
        assert_eq!(rung(RungChoice::Lsm, false, false), Rung::Fentry);
        assert_eq!(rung(RungChoice::Fentry, true, true), Rung::Fentry);
        assert_eq!(rung(RungChoice::Fanotify, true, true), Rung::Fanotify);
        assert_eq!(rung(RungChoice::None, true, true), Rung::None);
        let mut untraced = kernel(false);
        untraced.tracing_program = Err("BPF_PROG_LOAD: no".to_owned());
        assert_eq!(choose(RungChoice::Auto, &untraced, &marks(true), &Ok(())).0, Rung::Fanotify);
        assert_eq!(choose(RungChoice::Auto, &untraced, &marks(false), &Ok(())).0, Rung::Inotify);
        let no_watches = Err("inotify_init1: no".to_owned());
        assert_eq!(choose(RungChoice::Auto, &untraced, &marks(false), &no_watches).0, Rung::None);
        assert_eq!(rung(RungChoice::Inotify, true, true), Rung::Inotify);
        assert_eq!(choose(RungChoice::Auto, &kernel(true), &marks(true), &Ok(())).1, Vec::<String>::new());
    }

    #[test]
    fn each_refusal_has_its_reason_and_its_fix() {
        let bad: Vec<_> = kernel_checks(&kernel(false)).into_iter().filter(|check| !check.ok).collect();
        assert_eq!(
            bad,
            [
                Check::bad(
                    "lsm.list",
                    "lockdown,apparmor: bpf is not in use",
                    "lsm=lockdown,apparmor,bpf on the kernel's command line, and a reboot"
                ),
                Check::bad(
                    "bpf.raw_tracepoint",
                    "BPF_PROG_LOAD: Operation not permitted (os error 1)",
                    bpf_fix("(os error 1)")
                ),
            ]
        );
    }
}
