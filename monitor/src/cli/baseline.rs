//! `meshseal baseline show`, `diff` and `keys`: for review. None decides whether a baseline is trusted, unless it is given
//! keys.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::keys::Keys;
use super::{Failure, Format, Wanted, diff, keys, output, sign};
use crate::baseline::signed::{Report, claims};
use crate::baseline::{Baseline, Signed, dsse, read_bounded, statement};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show what a statement or envelope says, and who signed it.
    Show {
        /// Statement, envelope or bundle.
        file: PathBuf,
        #[command(flatten)]
        keys: Keys,
        /// Signatures beside it, made by other tools.
        #[arg(long = "signature", num_args = 1.., value_name = "FILE")]
        signatures: Vec<PathBuf>,
    },
    /// Show what changed from one to the other: text, JSON, or Markdown for a pull request.
    Diff(diff::Args),
    /// Make a statement that changes whose signatures count.
    Keys(keys::Args),
}

pub(super) fn run(args: &Args, wanted: Wanted) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Show { file, keys, signatures } => show(file, keys, signatures, wanted.plain()?),
        Command::Diff(args) => diff::run(args, wanted),
        Command::Keys(args) => keys::run(args, wanted.plain()?),
    }
}

/// A statement, or an envelope around one, whoever signed it.
pub(super) fn read(path: &Path) -> Result<(Baseline, Signed), Failure> {
    let bytes = read_bounded(path, dsse::MAX_ENVELOPE)?;
    let read = || {
        let signed =
            if dsse::looks_like_envelope(&bytes) { Signed::read(&bytes)? } else { Signed::bare(bytes)? };
        Ok((statement::parse(&signed.payload)?, signed))
    };
    read().map_err(|e: crate::baseline::Error| e.in_file(path.display()).into())
}

fn show(file: &Path, keys: &Keys, beside: &[PathBuf], format: Format) -> Result<ExitCode, Failure> {
    let (baseline, mut signed) = read(file)?;
    for signature in beside {
        sign::attach_file(&mut signed, signature)?;
    }
    let claimed = claims(&signed);
    let report = if keys.trusted_keys.is_empty() {
        None
    } else {
        let trust = keys.trust()?;
        Some(signed.check(&trust.keys, trust.threshold).map_err(|e| e.in_file(file.display()))?)
    };
    let objects: Vec<_> = baseline
        .objects
        .iter()
        .map(|object| {
            serde_json::json!({
                "address": object.address(), "path": object.path, "id": object.id_at_anchor(&baseline.name), "class": object.rule.class, "publish": object.rule.publish,
                "writers": object.rule.writers, "state": object.state(),
            })
        })
        .collect();
    match format {
        Format::Json => output::line(
            &serde_json::json!({
                "name": baseline.name, "revision": baseline.revision, "sha256": hex::encode(baseline.sha256),
                "scope": baseline.scope, "validity": baseline.validity,
                "transition": baseline.transition.as_secs(), "source_commit": baseline.source_commit,
                "claimed_signers": claimed, "signers": report.as_ref().map(Report::ids), "objects": objects,
                "unresolved": baseline.unresolved,
            })
            .to_string(),
        )?,
        Format::Text => output::text(&for_people(&baseline, &claimed, report.as_ref()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn for_people(baseline: &Baseline, claimed: &[String], report: Option<&Report>) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{key:<12} {}", output::one_line(value));
    };
    line("name", &baseline.name);
    line("revision", &baseline.revision.to_string());
    line("sha256", &hex::encode(baseline.sha256));
    if let Some(cluster) = &baseline.scope.cluster {
        line("cluster", cluster);
    }
    if let Some(nodes) = &baseline.scope.nodes {
        let names = nodes.names.iter().cloned();
        let labels = nodes.labels.iter().map(|(key, value)| format!("{key}={value}"));
        line("nodes", &names.chain(labels).collect::<Vec<_>>().join(" "));
    }
    if let Some(from) = baseline.validity.not_before {
        line("not before", &from.to_string());
    }
    line("not after", &baseline.validity.not_after.map_or_else(|| "never".into(), |at| at.to_string()));
    line("transition", &format!("{} s", baseline.transition.as_secs()));
    if let Some(commit) = &baseline.source_commit {
        line("source", commit);
    }
    match report {
        Some(report) => {
            line("signed by", &report.signers());
            for remark in report.remarks() {
                line("", &remark);
            }
        }
        None if claimed.is_empty() => line("signed by", "nobody"),
        None => line("signed by", &format!("{} (claimed, not checked: --trusted-key)", claimed.join(" "))),
    }
    line("objects", &baseline.objects.len().to_string());
    let rows: Vec<Vec<String>> = baseline
        .objects
        .iter()
        .map(|object| {
            let state = object.state();
            let content = ["sha256", "public_key", "identity", "target", "names", "files"]
                .iter()
                .find_map(|key| state.get(*key).map(|value| format!("{key}={value}")));
            let field = |key: &str| state.get(key).cloned().unwrap_or_default();
            vec![
                object.rule.class.as_str().to_owned(),
                field("type"),
                field("mode"),
                format!("{}:{}", field("uid"), field("gid")),
                object.address(),
                content.unwrap_or_default(),
            ]
        })
        .collect();
    out.push('\n');
    out += &output::table(&["CLASS", "TYPE", "MODE", "OWNER", "PATH", "CONTENT"], &rows);
    if !baseline.unresolved.is_empty() {
        out.push_str("\nnot sealed:\n");
    }
    for unresolved in &baseline.unresolved {
        let _ = writeln!(out, "  {}", output::one_line(&unresolved.to_string()));
    }
    out
}
