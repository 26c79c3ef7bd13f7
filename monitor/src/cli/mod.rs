//! The command line of the contract: one file per command, each with its `Args` and
//! `run(&Args, Format) -> Result<ExitCode, Failure>`.
//!
//! A command is plugged in with three lines: its `mod`, its arm of [`Command`] and its arm of [`Command::run`].

mod agent;
pub mod ask;
mod baseline;
mod check_config;
mod diff;
mod doctor;
mod events;
mod evidence;
pub mod failure;
mod interrupt;
mod journal;
mod keys;
mod objects;
pub mod output;
mod pods;
mod profile;
mod progress;
mod propose;
mod ready;
mod sarif;
mod seal;
mod sign;
mod status;
mod tree;
mod uninstall;
mod verify;
mod version;
mod violations;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

pub use failure::Failure;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people; may change.
    #[default]
    Text,
    /// For programs: the contract.
    Json,
}

impl Format {
    /// Whether the answer is JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        self == Self::Json
    }
}

/// What `--format` takes: two of them are of single commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Wanted {
    /// For people; may change.
    #[default]
    Text,
    /// For programs: the contract.
    Json,
    /// SARIF 2.1.0, for code scanning: `verify`.
    Sarif,
    /// For a pull request's comment: `baseline diff`.
    Markdown,
}

impl Wanted {
    /// For the commands that print text and JSON only.
    fn plain(self) -> Result<Format, Failure> {
        match self {
            Self::Text => Ok(Format::Text),
            Self::Json => Ok(Format::Json),
            Self::Sarif => Err(Failure::new("arguments", "--format", "text or json: sarif is for verify")),
            Self::Markdown => {
                Err(Failure::new("arguments", "--format", "text or json: markdown is for baseline diff"))
            }
        }
    }

    /// How errors are printed: in JSON where JSON was asked for.
    fn errors(self) -> Format {
        if self == Self::Json { Format::Json } else { Format::Text }
    }
}

/// Node-level integrity monitor for service meshes.
#[derive(Debug, Parser)]
#[command(name = "meshseal", version, disable_help_subcommand = true)]
struct Cli {
    /// How to print the answer.
    #[arg(long, global = true, value_enum, default_value_t = Wanted::Text, value_name = "FORMAT")]
    format: Wanted,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent.
    Agent(agent::Args),
    /// Validate a config file; start nothing.
    CheckConfig(check_config::Args),
    /// Ask the agent for the posture of this node.
    Status(status::Args),
    /// List what is protected, and in which state it is.
    Objects(objects::Args),
    /// List the pods of this node, as its disk and the Kubernetes API tell of them.
    Pods(pods::Args),
    /// List violations, or tell the story of one.
    Violations(violations::Args),
    /// Print the records of the journal.
    Events(events::Args),
    /// Make a bundle of a violation's records and their proofs, or check one.
    Evidence(evidence::Args),
    /// Tell whether the agent is ready; for probes.
    Ready(ready::Args),
    /// Check a journal offline.
    Journal(journal::Args),
    /// Take the agent's pins and state off this node; needs a signed statement, or makes one to sign.
    Uninstall(uninstall::Args),
    /// Tell what this kernel and node allow, and what the agent would not see.
    Doctor(doctor::Args),
    /// List what is known of meshes, or explain one profile.
    Profile(profile::Args),
    /// Make a statement for the mesh files of this node that are in no baseline.
    Propose(propose::Args),
    /// Make a statement from files.
    Seal(Box<seal::Args>),
    /// Sign a statement.
    Sign(sign::Args),
    /// Compare a tree with a signed baseline, once.
    Verify(verify::Args),
    /// Show or compare baselines.
    Baseline(baseline::Args),
    /// Print the version.
    Version(version::Args),
}

impl Command {
    fn run(&self, wanted: Wanted) -> Result<ExitCode, Failure> {
        let format = match self {
            Self::Verify(_) | Self::Baseline(_) => wanted.errors(),
            _ => wanted.plain()?,
        };
        match self {
            Self::Agent(args) => agent::run(args, format),
            Self::CheckConfig(args) => check_config::run(args, format),
            Self::Status(args) => status::run(args, format),
            Self::Objects(args) => objects::run(args, format),
            Self::Pods(args) => pods::run(args, format),
            Self::Violations(args) => violations::run(args, format),
            Self::Events(args) => events::run(args, format),
            Self::Evidence(args) => evidence::run(args, format),
            Self::Ready(args) => ready::run(args, format),
            Self::Journal(args) => journal::run(args, format),
            Self::Uninstall(args) => uninstall::run(args, format),
            Self::Doctor(args) => doctor::run(args, format),
            Self::Profile(args) => profile::run(args, format),
            Self::Propose(args) => propose::run(args, format),
            Self::Seal(args) => seal::run(args, format),
            Self::Sign(args) => sign::run(args, format),
            Self::Verify(args) => verify::run(args, wanted),
            Self::Baseline(args) => baseline::run(args, wanted),
            Self::Version(args) => version::run(args, format),
        }
    }
}

/// Parses the arguments, runs the command and returns its exit status.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    // Known before the arguments are: a script that asked for JSON gets its error as JSON even if they are wrong.
    let wanted = format_wanted(&arguments);
    let parsed = Cli::command().try_get_matches_from(arguments).and_then(|m| Cli::from_arg_matches(&m));
    match parsed {
        Ok(cli) => cli.command.run(cli.format).unwrap_or_else(|failure| failure.report(cli.format.errors())),
        Err(error) => failure::usage(&error, wanted),
    }
}

fn format_wanted(arguments: &[OsString]) -> Format {
    let pair = arguments.windows(2).any(|two| two[0] == "--format" && two[1] == "json");
    let one = arguments.iter().any(|argument| argument == "--format=json");
    if pair || one { Format::Json } else { Format::Text }
}

/// What the fuzzers give to the readers of an agent's answers: whatever names are in them, what a person sees is text.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let hidden = |c: char| {
        (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let now = crate::model::Time(1_800_000_000_000_000_000);
    let shown = [
        serde_json::from_slice(bytes).ok().map(|report| status::fuzz(&report, now)),
        serde_json::from_slice(bytes).ok().map(|objects| objects::fuzz(objects, now)),
        serde_json::from_slice(bytes).ok().map(pods::fuzz),
        serde_json::from_slice(bytes).ok().map(|story| violations::fuzz(&story)),
    ];
    for text in shown.into_iter().flatten() {
        assert!(!text.contains(hidden), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{Cli, Format, format_wanted};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_is_known_before_the_arguments_are() {
        let line = |text: &str| text.split(' ').map(Into::into).collect::<Vec<_>>();
        assert_eq!(format_wanted(&line("meshseal status --nonsense --format json")), Format::Json);
        assert_eq!(format_wanted(&line("meshseal --format=json nonsense")), Format::Json);
        assert_eq!(format_wanted(&line("meshseal status --format text")), Format::Text);
    }
}
