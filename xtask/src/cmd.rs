//! Running other programs: progress lines, and errors that say what ran and how it ended.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// One progress line on stderr, with the seconds since this xtask started.
macro_rules! say {
    ($($arg:tt)*) => { $crate::cmd::say_line(format_args!($($arg)*)) };
}
pub(crate) use say;

/// A process that is killed with its owner.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already; nothing in it is worth a lawful end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

static START: OnceLock<Instant> = OnceLock::new();

#[doc(hidden)]
pub(crate) fn say_line(text: std::fmt::Arguments<'_>) {
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs_f32();
    eprintln!("xtask: [{seconds:6.1}s] {text}");
}

/// The command as a person would type it, shortened.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    if text.chars().count() > 300 {
        text = text.chars().take(300).chain(" ...".chars()).collect();
    }
    text
}

/// Runs a command to its end with stdin closed and its stdout sent to our stderr: stdout is for what a verb answers.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command quietly; its stdout is the answer, its stderr is shown when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` failed ({}): {}", shown(command), out.status, tail(stderr.trim(), 20));
    }
    String::from_utf8(out.stdout)
        .with_context(|| format!("`{}` printed bytes that are not UTF-8", shown(command)))
}

/// The last `lines` lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// The first executable file of that name in PATH, or in the places where Debian puts administrators' tools.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| {
            std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// Cargo's own variables, which an outer `cargo xtask` (or a caller's shell) leaves behind and which would turn an
/// inner build into another build.
fn is_cargo_variable(name: &str) -> bool {
    const EXACT: [&str; 9] = [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_BOOTSTRAP",
        "RUST_RECURSION_COUNT",
    ];
    const PREFIX: [&str; 7] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BUILD_",
        "CARGO_ENCODED_",
        "CARGO_BIN_",
        "CARGO_PRIMARY_",
        "CARGO_PROFILE_",
    ];
    EXACT.contains(&name) || PREFIX.iter().any(|prefix| name.starts_with(prefix))
}

/// A command free of the variables of the cargo that started this xtask.
pub(crate) fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_cargo_variable) {
            command.env_remove(&name);
        }
    }
    command
}

/// Cargo in the checkout, as the toolchain file chooses it, free of the outer cargo's variables.
pub(crate) fn cargo() -> Command {
    let mut command = clean("cargo");
    command.current_dir(crate::workspace::root());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_an_outer_cargo_are_told_from_the_users() {
        for gone in ["CARGO", "RUSTC", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_ENCODED_RUSTFLAGS"] {
            assert!(is_cargo_variable(gone), "{gone}");
        }
        for kept in [
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "CARGO_NET_OFFLINE",
            "RUSTUP_HOME",
            "PATH",
            "CARGO_TARGET_DIR",
        ] {
            assert!(!is_cargo_variable(kept), "{kept}");
        }
    }

    #[test]
    fn a_failed_command_is_named_with_its_status_and_last_words() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c echo no such thing >&2; exit 3` failed (exit status: 3): no such thing"
        );
    }
}
