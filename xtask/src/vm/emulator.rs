//! The QEMU that runs a guest, and how it runs the guest's processors on this machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::cmd::{self, say};

/// A QEMU, with what it must be told first.
#[derive(Debug, Clone)]
pub(crate) struct Emulator {
    pub(crate) program: PathBuf,
    /// Where its firmware is, if not where it looks by itself.
    firmware: Vec<PathBuf>,
    processors: Processors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Processors {
    /// The machine's own.
    Kvm,
    /// Emulated, a thread for each.
    Threads,
    /// Emulated, one after the other.
    InTurn,
}

/// The first that works of: the machine's own with KVM; one that may emulate each processor in a thread of its own, the machine's or
/// that of Debian's backports; the machine's own.
///
/// `kernel` is the image of one that the guest runs.
pub(crate) fn emulator(kernel: &Path) -> Result<Emulator> {
    static CHOICE: OnceLock<Emulator> = OnceLock::new();
    if let Some(chosen) = CHOICE.get() {
        return Ok(chosen.clone());
    }
    let program = cmd::find("qemu-system-x86_64")
        .context("QEMU is missing: the package qemu-system-x86 provides it")?;
    let own = |processors| Emulator { program: program.clone(), firmware: Vec::new(), processors };
    let chosen = if kvm_works(&program, kernel) {
        own(Processors::Kvm)
    } else if locks_pages_before_translation(&program) {
        own(Processors::Threads)
    } else {
        backported().unwrap_or_else(|error| {
            say!("a guest's processors take turns, which is slow: no QEMU of Debian's backports: {error:#}");
            own(Processors::InTurn)
        })
    };
    Ok(CHOICE.get_or_init(|| chosen).clone())
}

impl Emulator {
    /// The first words of its command line. `counted`: one that counts instructions cannot run its processors in threads.
    pub(crate) fn arguments(&self, counted: bool) -> Vec<OsString> {
        let [accel, cpu] = match self.processors {
            Processors::Kvm if !counted => ["kvm", "host"],
            Processors::Threads if !counted => ["tcg,thread=multi", "max"],
            _ => ["tcg,thread=single", "max"],
        };
        let mut arguments: Vec<OsString> = ["-accel", accel, "-cpu", cpu].map(OsString::from).to_vec();
        for dir in &self.firmware {
            arguments.extend(["-L".into(), dir.into()]);
        }
        arguments
    }
}

/// `/dev/kvm` may be there and yet be of no use: without virtualisation by the processor it may interpret the guest's instructions, and stops at
/// the first that it does not know. A kernel is asked, which comes until it misses its root and ends.
fn kvm_works(qemu: &Path, kernel: &Path) -> bool {
    let virtualises = |cpuinfo: String| {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
    };
    fs::read_to_string("/proc/cpuinfo").is_ok_and(virtualises)
        && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
        && boots(qemu, kernel, "kvm", "host")
}

/// Whether a kernel comes up and ends within 20 s.
fn boots(qemu: &Path, kernel: &Path, accel: &str, cpu: &str) -> bool {
    let mut probe = Command::new("timeout");
    probe.args(["-k", "1", "20"]).arg(qemu).args(["-accel", accel, "-cpu", cpu, "-m", "512"]);
    probe.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    probe.arg("-kernel").arg(kernel).args(["-append", "console=ttyS0 panic=-1"]);
    let outcome = probe.stdin(Stdio::null()).stderr(Stdio::null()).output();
    outcome.is_ok_and(|said| {
        said.status.success() && String::from_utf8_lossy(&said.stdout).contains("Linux version")
    })
}

/// With a thread for each processor, QEMU before 8.1 can keep translated code that another processor was just patching (QEMU commit
/// "accel/tcg: Always lock pages before translation"): the kernel, which patches itself whenever a jump label or
/// a BPF trampoline changes, then meets a breakpoint that is no longer there and panics. Seen on 7.2 guests with QEMU 7.2.
fn locks_pages_before_translation(qemu: &Path) -> bool {
    cmd::output(Command::new(qemu).arg("--version"))
        .ok()
        .and_then(|text| version(&text))
        .is_some_and(|v| v >= (8, 1))
}

/// Of Debian's backports for this machine's release: it runs with the libraries that are installed with the machine's own.
fn backported() -> Result<Emulator> {
    const PACKAGE: &str = "qemu-system-x86";
    const FILES: [&str; 3] = [PACKAGE, "qemu-system-data", "seabios"];
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = codename(&release).context("this machine is no Debian release")?;
    let cache = Cache::open()?;
    let suite = format!("{codename}-backports");
    let _lock = cache.lock(&format!("qemu-{suite}"))?;
    let unpacked = Apt::new(&cache, &suite)?.entry(
        &cache,
        "qemu",
        |apt| Ok((PACKAGE.to_owned(), apt.show(PACKAGE)?.version)),
        |apt, _, dir| {
            let tree = apt.unpack(FILES)?;
            cmd::output(Command::new("cp").arg("-a").arg(tree.root().join("usr")).arg(dir.join("usr")))
                .map(drop)
        },
    )?;
    let program = unpacked.dir.join("usr/bin/qemu-system-x86_64");
    if !locks_pages_before_translation(&program) {
        bail!("{} {} is too old as well, or does not run here", unpacked.package, unpacked.version);
    }
    let share = |name: &str| unpacked.dir.join("usr/share").join(name);
    Ok(Emulator { program, firmware: vec![share("qemu"), share("seabios")], processors: Processors::Threads })
}

/// `VERSION_CODENAME` of `ID=debian`.
fn codename(release: &str) -> Option<&str> {
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"'))
    };
    field("ID").filter(|id| *id == "debian")?;
    field("VERSION_CODENAME").filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()))
}

/// `QEMU emulator version 7.2.22 (Debian ...)`
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split(['.', ' ', '\n']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_tells_its_version() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n";
        assert_eq!(version(text), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.0\n"), Some((10, 0)));
        assert_eq!(version("no such thing"), None);
    }

    #[test]
    fn the_release_is_debians() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(text), Some("bookworm"));
        assert_eq!(codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=../x\n"), None);
    }
}
