//! `meshseal events`: the records of the journal, as they are or as they come.

use std::process::ExitCode;

use super::ask::{self, Socket};
use super::violations::told;
use super::{Failure, Format, output};
use crate::model::{Record, Time};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// First sequence number wanted (inclusive).
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
    /// First time wanted, as RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = Time::parse)]
    since_time: Option<Time>,
    /// Go on with the records to come.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Args {
    fn path(&self) -> String {
        let since = self.since.unwrap_or(1).max(1);
        // `Time` prints in UTC with `Z`: nothing in it has to be escaped.
        let time = self.since_time.map_or_else(String::new, |time| format!("&since_time={time}"));
        format!("/v1/events?since={since}{time}")
    }
}

#[derive(serde::Deserialize)]
struct Numbered {
    seq: u64,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let mut expected = args.since.filter(|_| args.since_time.is_none()).map(|since| since.max(1));
    ask::ask(&args.socket, async |agent| {
        agent
            .lines(&args.path(), args.follow, |line: &[u8]| {
                let garbage = |error| {
                    let text =
                        format!("a record is not what a meshseal agent sends ({error}), expected JSON");
                    Failure::new("agent", "/v1/events", text)
                };
                let seq = serde_json::from_slice::<Numbered>(line).map_err(garbage)?.seq;
                if let Some(expected) = expected.filter(|&expected| seq > expected) {
                    // Evicted, most likely; a gap record in the journal tells. Nothing is left out in silence.
                    let missing = format!(
                        "meshseal: events: seq {expected} to {}: not in the journal any more",
                        seq - 1
                    );
                    output::error_line(&missing);
                }
                expected = Some(seq.saturating_add(1));
                match format {
                    Format::Json => output::line(ask::text(line)?),
                    Format::Text => {
                        let record: Record = serde_json::from_slice(line).map_err(garbage)?;
                        output::line(&told(&record))
                    }
                }
            })
            .await
    })?;
    Ok(ExitCode::SUCCESS)
}
