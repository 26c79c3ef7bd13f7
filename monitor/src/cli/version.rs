//! `meshseal version`.

use std::process::ExitCode;

use super::{Failure, Format, output};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match format {
        Format::Text => output::line(&format!("meshseal {version}"))?,
        Format::Json => output::line(&serde_json::json!({ "version": version }).to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}
