//! `meshseal check-config FILE`: validates, starts nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Format, output};
use crate::config::{self, ConfigError};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The config file.
    file: PathBuf,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new("config", error.place(), error.message)
    }
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let config = config::load_file(&args.file)?;
    match format {
        Format::Text => output::line(&output::one_line(&format!("{}: ok", args.file.display())))?,
        Format::Json => {
            let file = args.file.display().to_string();
            let profiles: Vec<&str> = config.profiles.iter().map(|profile| profile.name.as_str()).collect();
            let mode = config.mode.as_str();
            let answer = serde_json::json!({ "file": file, "ok": true, "mode": mode, "profiles": profiles });
            output::line(&answer.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
