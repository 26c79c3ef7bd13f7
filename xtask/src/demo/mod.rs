//! `cargo xtask demo`: the main job end to end, on a node-shaped tree with a real Envoy.
//!
//! Set-up happens here, on the host ([`kit`]); the story itself ([`inside`]) runs in a guest, or on this machine where its kernel
//! allows BPF LSM and no kubelet runs. Every line of the story names the record it tells of, and is checked against `meshseal events`.

pub(crate) mod actors;
mod agent;
mod inside;
mod kit;
mod places;
mod story;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::cmd::say;
use crate::setup;
use crate::vm::kernel::{self, Series};
use crate::vm::{self, End, Output, VmSpec};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leaves the agent running: in a guest with a shell beside it, natively until you stop it
    #[arg(long)]
    keep: bool,
    /// Runs on this machine's kernel, on whichever rung it allows
    #[arg(long, hide = true)]
    here: bool,
    /// The sensor's rung, to see the demo fail without one
    #[arg(long, hide = true, default_value = "auto")]
    rung: String,
    /// Shows this static `meshseal` instead of building one
    #[arg(long, hide = true, value_name = "FILE")]
    meshseal: Option<PathBuf>,
    /// Tells the story, with the files in this directory
    #[arg(long, hide = true, value_name = "DIR")]
    inside: Option<PathBuf>,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(kit) = &args.inside {
        let meshseal = Path::new("/usr/bin/meshseal");
        return inside::run(kit, meshseal, places::Places::guest()?, &args.rung, args.keep);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the demo mounts, and runs an agent: run it as root");
    }
    setup::packages(setup::VM)?;
    setup::packages(kit::NEEDS)?;
    let work = tempfile::Builder::new()
        .prefix("meshseal-demo-kit-")
        .tempdir()
        .context("cannot create a directory for the demo's files")?;
    say!("making a CA, certificates, tokens and a signing key with openssl");
    let files = kit::make(work.path())?;
    let meshseal = match &args.meshseal {
        Some(file) => file.clone(),
        None => build::meshseal(Profile::Lane)?,
    };
    let reason = if args.here { None } else { why_not_here() };
    let Some(reason) = reason else {
        say!("running on this machine's kernel");
        return inside::run(work.path(), &meshseal, places::Places::native()?, &args.rung, args.keep);
    };
    say!("{reason}: running the same in a VM with Linux 6.12");
    guest(args, files, meshseal)
}

fn guest(args: &Args, mut files: Vec<PathBuf>, meshseal: PathBuf) -> Result<ExitCode> {
    files.push(std::env::current_exe().context("cannot find this xtask's own executable")?);
    let program = files.last().and_then(|file| file.file_name()).unwrap_or_default().to_owned();
    let mut command: Vec<OsString> =
        vec![Path::new("/with").join(program).into(), "demo".into(), "--inside".into(), "/with".into()];
    command.extend(["--rung".into(), OsString::from(&args.rung)]);
    if args.keep {
        command.push("--keep".into());
    }
    let mut spec = VmSpec::new(kernel::resolve(Series::V6_12)?, command);
    spec.meshseal = Some(meshseal);
    spec.with = files;
    spec.timeout = Some(Duration::from_secs(600));
    if args.keep {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            bail!("--keep ends in a shell in the guest: run it at a terminal");
        }
        spec.output = Output::Terminal;
        spec.timeout = None;
    }
    let outcome = vm::run(&spec)?;
    match outcome.end {
        End::Exited(status) => {
            say!("the demo ended with status {status} after {:.0} s in the VM", outcome.took.as_secs_f32());
            Ok(ExitCode::from(status))
        }
        End::TimedOut => bail!("the demo did not end within 10 minutes"),
        End::Crashed(console) => bail!("the guest went away; its console said:\n{console}"),
    }
}

/// Why the story cannot, or should not, run on this machine itself.
fn why_not_here() -> Option<String> {
    let lsm = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !lsm.trim().split(',').any(|name| name == "bpf") {
        return Some("this kernel refuses BPF LSM (no bpf in /sys/kernel/security/lsm)".to_owned());
    }
    if Path::new("/var/lib/kubelet/pods").exists() {
        return Some("a kubelet's files are on this machine, and the demo leaves them alone".to_owned());
    }
    let taken = ["/sys/fs/bpf/meshseal", "/run/meshseal"].into_iter().find(|path| Path::new(path).exists());
    taken.map(|path| format!("another agent may run here ({path} exists)"))
}
