//! `cargo xtask vm`: one command on a real kernel, in a machine made for it and thrown away.
//!
//! The guest's own console is the first serial port. What the command says goes over virtio ports (one each for stdout, stderr and control),
//! so that it arrives byte for byte; at a terminal the command gets a virtio console instead. [`run`] is what the other verbs call.

mod cpio;
mod emulator;
mod guest;
pub(crate) mod kernel;
mod modules;
mod qemu;
mod stream;
mod terminal;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::cmd::say;
use crate::setup;
use kernel::{Kernel, Series};

/// What `timeout(1)` answers when the time is up.
const TIMED_OUT: u8 = 124;
/// The lane itself failed: the guest crashed, or told no status.
const LANE_FAILED: u8 = 125;
pub(crate) const DEFAULT_LSM: &str = "lockdown,capability,bpf";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel series
    #[arg(long)]
    kernel: Series,
    /// Replaces the list of LSMs that the kernel starts with
    #[arg(long, default_value = DEFAULT_LSM, value_name = "LIST")]
    lsm: String,
    /// A file to put at /with/NAME, with the libraries it needs
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// A module of the kernel to load besides those every guest has (`xfs`, `btrfs`)
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Memory of the guest
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..=65536))]
    memory: u32,
    /// Seconds after which the guest is ended (exit status 124); 1800 unless told or at a terminal
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// Shows the guest's console too
    #[arg(long)]
    console: bool,
    /// The guest's time counts instructions, so that what else the machine does changes nothing; one processor
    #[arg(long)]
    count_instructions: bool,
    /// What to run, as root
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// One run of one command in a guest.
#[derive(Debug, Clone)]
pub(crate) struct VmSpec {
    pub(crate) kernel: Kernel,
    /// The kernel's `lsm=`.
    pub(crate) lsm: String,
    /// The agent to put at /usr/bin/meshseal; static.
    pub(crate) meshseal: Option<PathBuf>,
    pub(crate) with: Vec<PathBuf>,
    /// Modules besides those every guest has (`xfs`, `btrfs`, ...).
    pub(crate) modules: Vec<String>,
    pub(crate) memory_mib: u32,
    pub(crate) processors: u32,
    /// Size of /data, sparse.
    pub(crate) data_mib: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) command: Vec<OsString>,
    pub(crate) output: Output,
    /// The guest's time counts instructions: what else the machine does changes nothing.
    pub(crate) counts_instructions: bool,
    /// More words for the kernel's command line, and for QEMU.
    pub(crate) kernel_args: Vec<String>,
    pub(crate) qemu_args: Vec<String>,
    /// Passes the guest's console on to stderr.
    pub(crate) console: bool,
}

impl VmSpec {
    /// The guest of the contract, with nothing in it but busybox.
    pub(crate) fn new(kernel: Kernel, command: Vec<OsString>) -> Self {
        Self {
            kernel,
            lsm: DEFAULT_LSM.to_owned(),
            meshseal: None,
            with: Vec::new(),
            modules: Vec::new(),
            memory_mib: 1024,
            processors: 2,
            data_mib: 4096,
            timeout: Some(Duration::from_secs(1800)),
            command,
            output: Output::Inherit,
            counts_instructions: false,
            kernel_args: Vec::new(),
            qemu_args: Vec::new(),
            console: false,
        }
    }

    /// Lets the guest's time count instructions, which takes one processor.
    pub(crate) fn count_instructions(&mut self) {
        self.counts_instructions = true;
        self.processors = 1;
    }
}

/// Where the command's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// To this process's stdout and stderr, as it comes.
    Inherit,
    /// Into [`VmOutcome`].
    Capture,
    /// Both ways: the command runs at this process's terminal.
    Terminal,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Exited(u8),
    TimedOut,
    /// The guest went away without a status: a kernel panic, an oops, or a failed start. Holds what the console said.
    Crashed(String),
}

#[derive(Debug, Clone)]
pub(crate) struct VmOutcome {
    pub(crate) end: End,
    /// From the start of QEMU to the start of the command.
    pub(crate) booted: Option<Duration>,
    /// All of it.
    pub(crate) took: Duration,
    /// Empty unless captured.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// The verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    match from_arguments(args).and_then(|spec| run(&spec)) {
        Ok(outcome) => Ok(ExitCode::from(report(&outcome))),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            Ok(ExitCode::from(LANE_FAILED))
        }
    }
}

fn from_arguments(args: Args) -> Result<VmSpec> {
    setup::packages(setup::VM)?;
    let meshseal = build::meshseal(Profile::Lane)?;
    let kernel = kernel::resolve(args.kernel)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut spec = VmSpec::new(kernel, args.command);
    spec.lsm = args.lsm;
    spec.meshseal = Some(meshseal);
    spec.with = args.with;
    spec.modules = args.module;
    spec.memory_mib = args.memory;
    spec.console = args.console;
    if args.count_instructions {
        spec.count_instructions();
    }
    if terminal {
        spec.output = Output::Terminal;
        spec.timeout = None;
    }
    if let Some(seconds) = args.timeout {
        spec.timeout = Some(Duration::from_secs(seconds.into()));
    }
    Ok(spec)
}

/// Says how the run ended; the answer is the exit status.
fn report(outcome: &VmOutcome) -> u8 {
    let seconds = outcome.took.as_secs_f32();
    match &outcome.end {
        End::Exited(status) => {
            let boot = outcome.booted.map_or(0.0, |boot| boot.as_secs_f32());
            say!("exit status {status} after {seconds:.1} s ({boot:.1} s of them to boot)");
            *status
        }
        End::TimedOut => {
            say!("time is up after {seconds:.1} s");
            TIMED_OUT
        }
        End::Crashed(console) => {
            eprintln!("{console}");
            say!("the guest went away without an exit status after {seconds:.1} s; its console is above");
            LANE_FAILED
        }
    }
}

/// Boots a guest, runs the command in it, and ends it.
pub(crate) fn run(spec: &VmSpec) -> Result<VmOutcome> {
    let started = Instant::now();
    let work = tempfile::Builder::new()
        .prefix("meshseal-vm-")
        .tempdir()
        .context("cannot create a directory for the guest's disks")?;
    let token = token()?;
    let terminal = match spec.output {
        Output::Terminal => Some(terminal::size()),
        Output::Inherit | Output::Capture => None,
    };
    let initramfs = guest::initramfs(&guest::Content {
        kernel: &spec.kernel,
        extra_modules: &spec.modules,
        meshseal: spec.meshseal.as_deref(),
        with: &spec.with,
        command: &spec.command,
        token: &token,
        terminal,
    })?;
    let files = qemu::Files {
        initramfs: work.path().join("initramfs"),
        data: work.path().join("data.img"),
        with: (!spec.with.is_empty()).then(|| work.path().join("with.img")),
    };
    std::fs::write(&files.initramfs, initramfs).context("cannot write the initramfs")?;
    guest::data_disk(&files.data, spec.data_mib)?;
    if let Some(image) = &files.with {
        guest::with_disk(image, &spec.with, work.path())?;
    }
    say!("booting {} (lsm={}, {} MiB)", spec.kernel.package, spec.lsm, spec.memory_mib);
    let mut outcome = qemu::run(spec, &files, &token)?;
    if outcome.booted.is_none() && outcome.took > qemu::TO_BOOT {
        // On a busy machine an emulated processor was seen to lose its timer while the kernel started. Nothing that is to be run has run by then.
        say!("the guest did not boot in {} s: once more", qemu::TO_BOOT.as_secs());
        outcome = qemu::run(spec, &files, &token)?;
    }
    outcome.took = started.elapsed();
    Ok(outcome)
}

/// 32 characters that no command writes by chance.
fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(hex::encode(bytes))
}
