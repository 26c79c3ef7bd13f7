//! `meshseal profile list|show`: what is known of meshes.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Format, output};
use crate::config;
use crate::profile::{Profile, Profiles};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the profiles in use.
    List(Source),
    /// Explain one.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, clap::Args)]
struct Source {
    /// The config whose profiles are in use too; may be given more than once: the first file that exists counts
    /// [default: /etc/meshseal/config.yaml, if there is one].
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::List(source) => {
            let config = config::load(&source.config)?;
            match format {
                Format::Text => output::text(&list(&config.profiles))?,
                Format::Json => {
                    output::line(&json(&config.profiles.iter().collect::<Vec<_>>())?)?;
                }
            }
        }
        Command::Show { name, source } => {
            let config = config::load(&source.config)?;
            let profile = config.profiles.get(name).ok_or_else(|| {
                let names: Vec<&str> = config.profiles.iter().map(|profile| profile.name.as_str()).collect();
                Failure::new("no such profile", name, format!("one of {}", names.join(", ")))
            })?;
            match format {
                Format::Text => output::text(&explain(profile))?,
                Format::Json => output::line(&json(profile)?)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new("cannot write JSON", "profile", e.to_string()))
}

fn list(profiles: &Profiles) -> String {
    let rows: Vec<Vec<String>> = profiles
        .iter()
        .map(|profile| {
            vec![
                profile.name.clone(),
                profile.mesh.clone(),
                profile.status.in_words().to_owned(),
                profile.files.len().to_string(),
                output::one_line(&profile.origin),
                output::one_line(&profile.read_from),
            ]
        })
        .collect();
    output::table(&["NAME", "MESH", "STATUS", "FILES", "FROM", "READ FROM"], &rows)
}

fn explain(profile: &Profile) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line(&format!("{}: {}", profile.name, profile.about));
    line(&format!("mesh {}, {}, from {}", profile.mesh, profile.status.in_words(), profile.read_from));
    if !profile.containers.is_empty() {
        let only = if profile.only_with_container { ", and volumes count in their pods only" } else { "" };
        line(&format!("containers {}{only}", profile.containers.join(", ")));
    }
    if let Some(identity) = &profile.identity {
        line(&format!("identity {identity}"));
    }
    for executable in &profile.executables {
        line(&format!("runs {}: {}", executable.path, executable.about));
    }
    for writer in &profile.writers {
        line(&format!("writer {}: {} in {}", writer.name, writer.exe, writer.containers.join(", ")));
    }
    if profile.files.is_empty() {
        return out;
    }
    out.push('\n');
    let rows: Vec<Vec<String>> = profile
        .files
        .iter()
        .map(|rule| {
            let severities =
                rule.severity.iter().map(|(kind, is)| format!("; {} is {}", output::word(kind), is.as_str()));
            let about = severities.fold(rule.about.clone(), |about, severity| about + &severity);
            let or_none = |list: &[String]| if list.is_empty() { "-".to_owned() } else { list.join(", ") };
            vec![
                rule.path.to_string(),
                output::word(&rule.class),
                output::word(&rule.role),
                or_none(&rule.writers),
                rule.rate.to_string(),
                output::word(&rule.publish),
                rule.compare.as_str().to_owned(),
                about,
            ]
        })
        .collect();
    out.push_str(&output::table(
        &["PATH", "CLASS", "ROLE", "WRITERS", "RATE", "PUBLISH", "COMPARE", "ABOUT"],
        &rows,
    ));
    out
}
