//! `meshseal propose`: a statement for the mesh files of this node that no baseline covers, to review and sign.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::ask::{self, Socket};
use super::seal::write_statement;
use super::{Failure, Format, output};
use crate::attribution::below_root;
use crate::baseline::seal::{Options, Proposal, statement_for};
use crate::baseline::secret::SecretKey;
use crate::baseline::statement::{NodeSelector, Scope, is_name, parse};
use crate::baseline::{Error, Root};
use crate::inventory::mesh::CniDirs;
use crate::model::HostPath;
use crate::profile::{Layout, Profiles};
use crate::status::StatusReport;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Where the host's root is [default: where the agent has it].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Name of the baseline [default: the node's name, with a number if a baseline of that name is in force].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Revision of the baseline, higher than the one in force.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    revision: u64,
    /// The cluster's key, under which secrets are sealed; without it they are left out, and listed.
    #[arg(long, value_name = "FILE")]
    secret_key: Option<PathBuf>,
    /// Profiles beside or instead of the built-in ones: files, or directories of *.yaml.
    #[arg(long = "profiles", value_name = "FILE")]
    profiles: Vec<PathBuf>,
    /// The statement; - for stdout.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let secret_key = args.secret_key.as_deref().map(SecretKey::read).transpose()?.map(Arc::new);
    let (report, unsealed) = ask::ask(&args.socket, async |mut agent| {
        let (report, _) = agent.get_json::<StatusReport>("/v1/status").await?;
        let (unsealed, _) = agent.get_json::<Vec<HostPath>>("/v1/unsealed").await?;
        Ok((report, unsealed))
    })?;
    let at = args.root.clone().unwrap_or_else(|| below_root(Path::new("/"), &report.agent.host_root));
    let root = Root::open(&at)?;
    let name = name(args, &report)?;
    if unsealed.is_empty() {
        return Err(Failure::new(
            "propose",
            &report.node,
            "nothing is unsealed, expected mesh files of this node that are in no baseline",
        ));
    }
    let names = std::iter::once(report.node.clone()).collect();
    let options = Options {
        name,
        revision: args.revision,
        scope: Scope { cluster: None, nodes: Some(NodeSelector { names, ..NodeSelector::default() }) },
        secret_key,
        profiles: Arc::new(Profiles::with(&args.profiles)?),
        layout: Layout { cni: CniDirs::find(&at), ..Layout::default() },
        skip_unsealable: true,
        ..Options::default()
    };
    let proposal = statement_for(&root, &unsealed, &options)?;
    for note in &proposal.notes {
        output::error_line(&output::one_line(&format!("meshseal: note: {note}")));
    }
    if proposal.statement.predicate.objects.is_empty() {
        let expected = format!("none of {} paths could be sealed, expected one at least", unsealed.len());
        return Err(Failure::new("propose", at.display(), expected));
    }
    if args.output.as_os_str() == "-" {
        output::line(&checked(&proposal)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    write_statement(&proposal.statement, &args.output)?;
    tell(args, &proposal, unsealed.len(), format)?;
    Ok(ExitCode::SUCCESS)
}

/// The statement as text, read once more by the reader that will judge it.
fn checked(proposal: &Proposal) -> Result<String, Failure> {
    let json = proposal.statement.to_json()?;
    parse(&json)?;
    String::from_utf8(json).map_err(|e| Error::new("propose", "statement", e).into())
}

/// The name that was asked for, else one that does not replace a baseline in force.
fn name(args: &Args, report: &StatusReport) -> Result<String, Failure> {
    let in_force = |name: &str| report.baseline.iter().find(|baseline| baseline.name == name);
    if let Some(name) = &args.name {
        return match in_force(name) {
            Some(baseline) if args.revision <= baseline.revision => {
                let expected = format!(
                    "baseline {name} is in force at revision {}, expected --revision above that (it replaces the \
                     objects of that baseline) or another --name",
                    baseline.revision
                );
                Err(Failure::new("arguments", "--revision", expected))
            }
            _ => Ok(name.clone()),
        };
    }
    let base = if is_name(&report.node) && report.node.len() <= 100 { report.node.as_str() } else { "node" };
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    let mut candidates = std::iter::once(base.to_owned()).chain(numbered);
    candidates
        .find(|name| in_force(name).is_none())
        .ok_or_else(|| Failure::new("arguments", "--name", "expected a name that is not in force"))
}

fn tell(args: &Args, proposal: &Proposal, asked: usize, format: Format) -> Result<(), Failure> {
    let predicate = &proposal.statement.predicate;
    let objects = predicate.objects.len();
    match format {
        Format::Text => output::line(&output::one_line(&format!(
            "{objects} objects of {asked} unsealed paths as {} revision {} in {}; review it, then meshseal sign",
            predicate.name,
            predicate.revision,
            args.output.display()
        ))),
        Format::Json => output::line(
            &serde_json::json!({
                "name": predicate.name, "revision": predicate.revision, "objects": objects, "unsealed": asked,
                "sha256": proposal.statement.subject.first().map(|subject| &subject.digest.sha256),
                "notes": proposal.notes,
            })
            .to_string(),
        ),
    }
}
