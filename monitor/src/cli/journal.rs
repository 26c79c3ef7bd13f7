//! `meshseal journal verify`: checks a journal offline.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, one_line};
use super::{Failure, Format};
use crate::baseline::{NoFile, open_regular};
use crate::journal::{Against, JournalError, Report, expect_checkpoint, expect_key, verify};

/// Arguments of `journal`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check every leaf, link and checkpoint of a journal, without an agent.
    ///
    /// Exit status: 0 sound, 1 tampered with or an undeclared hole, 2 unreadable.
    Verify {
        /// The journal: `<stateDir>/journal`.
        dir: PathBuf,
        /// A checkpoint of this journal kept elsewhere (the `note` of a checkpoint record): finds a cut tail or a fork.
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// The node's public key from elsewhere (vkey line or PEM), instead of the journal's own node.pub.
        #[arg(long, value_name = "PUB")]
        key: Option<PathBuf>,
    },
}

/// Runs the command.
///
/// # Errors
/// The journal, or a file named on the command line, cannot be read.
pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let Command::Verify { dir, checkpoint, key } = &args.command;
    let note = checkpoint.as_deref().map(read_checkpoint).transpose()?;
    let key = key.as_deref().map(read_key).transpose()?;
    let against = Against { checkpoint: note.as_deref(), key: key.as_deref() };
    let report = verify(dir, against).map_err(|e| match e {
        JournalError::Io { path, source } => Failure::new("journal", path.display(), source),
        JournalError::Missing(dir) => {
            Failure::new("journal", dir.display(), "no journal, expected a directory with a meta.json")
        }
        e => Failure::new("journal", dir.display(), e),
    })?;
    if format.is_json() {
        let json = serde_json::to_string(&report).map_err(|e| Failure::new("journal", dir.display(), e))?;
        output::line(&json)?;
    } else {
        output::text(&text(&report))?;
    }
    Ok(ExitCode::from(u8::from(!report.sound)))
}

/// At most 1 MiB: no checkpoint or key is larger.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let fail = |e: std::io::Error| Failure::new("journal", path.display(), e);
    let file =
        open_regular(path, std::fs::OpenOptions::new().read(true), true).map_err(|none| match none {
            NoFile::Io(e) => fail(e),
            NoFile::NotRegular(_) => {
                Failure::new("journal", path.display(), "not a regular file, expected a checkpoint or a key")
            }
        })?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn read_checkpoint(path: &Path) -> Result<Vec<u8>, Failure> {
    let note = read(path)?;
    expect_checkpoint(&note).map_err(|e| {
        Failure::new("journal", path.display(), format!("{e}, expected the note of a checkpoint"))
    })?;
    Ok(note)
}

/// Reads a node's public key, of whichever node: that it is another's is for the check to find.
pub(super) fn read_key(path: &Path) -> Result<String, Failure> {
    let fail = |e: String| {
        Failure::new("key", path.display(), format!("{e}, expected a vkey line or a PEM public key"))
    };
    let text = String::from_utf8(read(path)?).map_err(|_| fail("not text".to_owned()))?;
    expect_key(&text).map_err(fail)?;
    Ok(text)
}

fn text(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let verdict = if report.sound { "sound" } else { "TAMPERED" };
    let _ = writeln!(out, "{verdict}: {}", one_line(&report.origin));
    let _ = writeln!(
        out,
        "{} records, {} present, {} checkpoints, signed up to record {}\nroot {}",
        report.records, report.present, report.checkpoints, report.signed, report.root
    );
    for finding in &report.findings {
        let _ = writeln!(out, "finding: {}", one_line(finding));
    }
    if report.more_findings > 0 {
        let _ = writeln!(out, "finding: and {} more", report.more_findings);
    }
    for note in &report.notes {
        let _ = writeln!(out, "note: {}", one_line(note));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{read_checkpoint, read_key};

    #[test]
    fn what_is_no_key_and_no_checkpoint_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        for (bytes, key, checkpoint) in [
            (&b""[..], "empty", "malformed note"),
            (b"x\n", "malformed verifier key", "malformed note"),
            (b"\xff", "not text", "malformed note"),
        ] {
            fs::write(&path, bytes).unwrap();
            let place = path.display();
            let failure = read_key(&path).unwrap_err();
            assert_eq!(
                (failure.to_string(), failure.status),
                (format!("meshseal: key: {place}: {key}, expected a vkey line or a PEM public key"), 2)
            );
            let failure = read_checkpoint(&path).unwrap_err();
            assert_eq!(
                (failure.to_string(), failure.status),
                (format!("meshseal: journal: {place}: {checkpoint}, expected the note of a checkpoint"), 2)
            );
        }
    }
}
