//! `meshseal objects`: what is protected, in which state.

use std::process::ExitCode;

use super::ask::{self, Socket};
use super::{Failure, Format, output};
use crate::model::Time;
use crate::status::ObjectEntry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let (objects, answer) = ask::ask(&args.socket, async |mut agent| {
        Ok(agent.get_json::<Vec<ObjectEntry>>("/v1/objects").await?)
    })?;
    match format {
        Format::Json => output::line(ask::text(&answer)?)?,
        Format::Text => output::text(&render(objects, Time::now()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What needs a look comes first.
fn render(mut objects: Vec<ObjectEntry>, now: Time) -> String {
    use crate::status::ObjectState::{Intact, Superseded, Unsealed, Unverified, Violated};
    let rank = |entry: &ObjectEntry| match entry.state {
        Violated => 0,
        Unverified => 1,
        Superseded => 2,
        Intact => 3,
        Unsealed => 4,
    };
    objects.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.path.cmp(&b.path)));
    if objects.is_empty() {
        return "no objects\n".to_owned();
    }
    let rows: Vec<Vec<String>> = objects
        .iter()
        .map(|entry| {
            vec![
                entry.state.as_str().to_owned(),
                output::word(&entry.class),
                entry.kind.clone(),
                entry.baseline.clone().unwrap_or_else(|| "-".to_owned()),
                entry.last_verified.map_or_else(|| "never".to_owned(), |at| output::ago(at, now)),
                entry.path.to_string(),
            ]
        })
        .collect();
    output::table(&["STATE", "CLASS", "TYPE", "BASELINE", "VERIFIED", "PATH"], &rows)
}

/// What the fuzzers look at.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(objects: Vec<ObjectEntry>, now: Time) -> String {
    render(objects, now)
}
