//! `meshseal agent`: runs until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Format};
use crate::config::{self, LogLevel};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The config file; given more than once, the first that exists. Without it: /etc/meshseal/config.yaml, or the
    /// built-in defaults if that does not exist.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, _format: Format) -> Result<ExitCode, Failure> {
    let config = config::load(&args.config)?;
    let level = match config.log {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false).init();
    tracing::info!(config = ?config, "resolved configuration");
    Ok(crate::agent::run(config))
}
