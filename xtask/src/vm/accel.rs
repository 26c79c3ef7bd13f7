//! How QEMU runs the guest's processors on this machine.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::cmd;

/// QEMU's arguments for that: KVM where it works, else software emulation.
pub(crate) fn arguments(qemu: &Path) -> [&'static str; 4] {
    static CHOICE: OnceLock<[&str; 4]> = OnceLock::new();
    *CHOICE.get_or_init(|| {
        if kvm_works(qemu) {
            ["-accel", "kvm", "-cpu", "host"]
        } else if locks_pages_before_translation(qemu) {
            ["-accel", "tcg,thread=multi", "-cpu", "max"]
        } else {
            ["-accel", "tcg,thread=single", "-cpu", "max"]
        }
    })
}

/// `/dev/kvm` may be there and yet be of no use: QEMU is asked to make a processor with it.
fn kvm_works(qemu: &Path) -> bool {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let probe = Command::new("timeout")
        .args(["-k", "1", "5"])
        .arg(qemu)
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args(["-S", "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut probe) = probe else { return false };
    if let Some(mut monitor) = probe.stdin.take() {
        // It may be gone already; then its status says so.
        drop(monitor.write_all(b"quit\n"));
    }
    probe.wait().is_ok_and(|status| status.success())
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
}
