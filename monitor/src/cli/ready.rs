//! `meshseal ready`: for probes. 0 when hooks are live and the first verification is done, 1 when not yet; with `--live`, 0 when the
//! agent answers and works, however far it is.

use std::process::ExitCode;

use super::ask::{self, Socket};
use super::{Failure, Format, output};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Asks only whether the agent is alive
    #[arg(long)]
    live: bool,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let (path, word) = if args.live { ("/healthz", "live") } else { ("/readyz", "ready") };
    ask::ask(&args.socket, async |mut agent| match agent.get(path).await {
        Ok(_) => Ok(()),
        Err(error) => {
            // The agent answered, and the answer is: not yet.
            let status = if error.status.is_some() { 1 } else { 2 };
            Err(Failure::from(error).with_status(status))
        }
    })?;
    match format {
        Format::Text => output::line(word)?,
        Format::Json => output::line(&format!(r#"{{"{word}":true}}"#))?,
    }
    Ok(ExitCode::SUCCESS)
}
