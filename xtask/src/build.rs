//! `cargo xtask build`: the static `meshseal` binary with its eBPF objects inside.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::cmd::{self, say};
use crate::{ebpf, setup, workspace};

pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised, as it is shipped; without it: the faster build that the lanes use
    #[arg(long)]
    release: bool,
}

/// How much the compiler may take its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What the VM lane and the tests run.
    Lane,
    /// What is shipped.
    Release,
}

impl Profile {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Release => "release",
        }
    }
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let binary = meshseal(if args.release { Profile::Release } else { Profile::Lane })?;
    println!("{}", binary.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the eBPF objects, then the static agent around them; the answer is its path.
pub(crate) fn meshseal(profile: Profile) -> Result<PathBuf> {
    let dir = static_binaries(profile, &["--package", "monitor", "--bin", "meshseal"])?;
    let binary = dir.join("meshseal");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    Ok(binary)
}

/// Builds what `selection` (arguments of `cargo build`) names as static binaries around the eBPF objects; the answer
/// is the directory they are in.
pub(crate) fn static_binaries(profile: Profile, selection: &[&str]) -> Result<PathBuf> {
    setup::packages(setup::BUILD)?;
    let objects = ebpf::build()?;
    say!("building {} (static, {})", selection.join(" "), profile.name());
    let mut cargo = static_cargo(profile, "build", &objects);
    cmd::run(cargo.arg("--quiet").args(selection)).context("the static build failed")?;
    Ok(workspace::target().join(TARGET).join(profile.name()))
}

/// Cargo for static programs with the eBPF objects of that directory inside.
pub(crate) fn static_cargo(profile: Profile, verb: &str, objects: &Path) -> Command {
    let mut cargo = cmd::cargo();
    // A target of its own, though it is the host's: the flag must not reach build scripts and proc macros.
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static").env("MESHSEAL_EBPF_DIR", objects);
    cargo.args([verb, "--locked", "--profile", profile.name(), "--target", TARGET]);
    cargo
}
