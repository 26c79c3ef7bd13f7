//! `meshseal evidence`: a violation's records with proofs, to hand on; and checking such a bundle.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::ask::{self, Socket};
use super::journal::read_key;
use super::violations::{told, whole_id};
use super::{Failure, Format, output};
use crate::baseline::{read_bounded, write_atomic};
use crate::journal::evidence::{self, Checked, Evidence};

/// Bytes of a bundle.
const MAX_BUNDLE: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// Id of the violation, or the beginning of it if that is unique.
    #[arg(long, value_name = "ID", required = true)]
    violation: Option<String>,
    /// The bundle.
    #[arg(short, long, value_name = "FILE", required = true)]
    output: Option<PathBuf>,
    #[command(flatten)]
    socket: Socket,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check a bundle, without the node.
    ///
    /// Exit status: 0 sound, 1 not what the node signed, 2 unreadable.
    Verify {
        /// The bundle.
        file: PathBuf,
        /// The node's public key from elsewhere (vkey line or PEM), instead of the bundle's own.
        #[arg(long, value_name = "PUB")]
        key: Option<PathBuf>,
    },
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    match (&args.what, &args.violation, &args.output) {
        (Some(What::Verify { file, key }), ..) => verify(file, key.as_deref(), format),
        (None, Some(id), Some(out)) => gather(id, out, &args.socket, format),
        (None, ..) => Err(Failure::new("arguments", "--violation ID -o FILE", "required but not given")),
    }
}

fn gather(id: &str, out: &Path, socket: &Socket, format: Format) -> Result<ExitCode, Failure> {
    let (made, answer) = ask::ask(socket, async |mut agent| {
        let id = whole_id(&mut agent, id).await?;
        Ok(agent.get_json::<Evidence>(&format!("/v1/violations/{id}/evidence")).await?)
    })?;
    // Not handed on before it is known to hold.
    let checked = evidence::check(&made, None);
    if let Some(finding) = checked.findings.first() {
        return Err(Failure::new("evidence", &made.violation, finding));
    }
    write_atomic(out, &answer, 0o600)?;
    match format {
        Format::Json => {
            let count = made.records.len();
            output::line(&serde_json::json!({ "violation": made.violation, "records": count }).to_string())?;
        }
        Format::Text => {
            let text = format!("{} records of {} in {}", made.records.len(), made.violation, out.display());
            output::line(&output::one_line(&text))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(file: &Path, key: Option<&Path>, format: Format) -> Result<ExitCode, Failure> {
    let bytes = read_bounded(file, MAX_BUNDLE)?;
    let key = key.map(read_key).transpose()?;
    let checked = match serde_json::from_slice::<Evidence>(&bytes) {
        Ok(bundle) => evidence::check(&bundle, key.as_deref()),
        Err(e) if evidence::is_bundle(&bytes) => Checked::damaged(format!("not as it was written: {e}")),
        Err(e) => {
            let expected = format!("{e}, expected a bundle of meshseal evidence");
            return Err(Failure::new("evidence", file.display(), expected));
        }
    };
    match format {
        Format::Json => {
            let json =
                serde_json::to_string(&checked).map_err(|e| Failure::new("evidence", file.display(), e))?;
            output::line(&json)?;
        }
        Format::Text => output::text(&text(&checked))?,
    }
    Ok(ExitCode::from(u8::from(!checked.sound)))
}

fn text(checked: &Checked) -> String {
    let verdict = if checked.sound { "sound" } else { "NOT SOUND" };
    let mut lines = if checked.violation.is_empty() {
        vec![verdict.to_owned()]
    } else {
        vec![
            format!("{verdict}: violation {} of {}", checked.violation, checked.origin),
            format!("signed over {} records", checked.tree_size),
        ]
    };
    lines.extend(checked.findings.iter().map(|finding| format!("finding: {finding}")));
    lines.extend(checked.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(checked.records.iter().map(told));
    lines.iter().map(|line| output::one_line(line) + "\n").collect()
}
