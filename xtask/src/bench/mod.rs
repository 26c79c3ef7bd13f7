//! `cargo xtask bench`: the budgets of the design, each measured beside what it is compared with, in one run.
//!
//! A bench is an entry of [`ALL`]: a name, what it is about, and a function that returns [`Figure`]s. What it needs from the
//! system it installs itself (`setup::packages`), so that nobody else pays for it. Times are medians of interleaved rounds;
//! a budget is a ratio wherever there is something to compare with, because machines differ.

mod baseline;
mod kernel;
mod latency;
mod measure;
mod memory;
mod verify;

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::cmd::say;

/// Every bench there is.
const ALL: &[Bench] = &[
    Bench { name: "verify", about: "a whole tree beside AIDE and openssl, warm cache", run: verify::run },
    Bench {
        name: "baseline",
        about: "100,000 objects: read, checked, and kept in memory",
        run: baseline::run,
    },
    Bench { name: "memory", about: "what an object costs a running agent", run: memory::run },
    Bench {
        name: "latency",
        about: "from an act to its record on disk, with few objects and many",
        run: latency::run,
    },
    Bench {
        name: "kernel",
        about: "files that nobody watches, with and without the programs, in guests that count instructions",
        run: kernel::run,
    },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which; all of them without a name
    names: Vec<String>,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// One bench.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Vec<Figure>>,
}

/// One thing that was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// What it is.
    pub(crate) what: String,
    /// How much, in `unit`.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What it is compared with, and how much that is, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) beside: Option<(String, f64)>,
    /// What must hold, in words and in truth; `None` for a figure that is for information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<Budget>,
}

/// What a figure must keep to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Budget {
    /// In words.
    pub(crate) says: String,
    /// The number it is about: a ratio, or the value.
    pub(crate) is: f64,
    /// Whether it is kept.
    pub(crate) met: bool,
}

/// The verb: fails if a budget is not kept.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(unknown) = args.names.iter().find(|name| ALL.iter().all(|bench| bench.name != **name)) {
        let names: Vec<&str> = ALL.iter().map(|bench| bench.name).collect();
        bail!("no bench is called {unknown}: there are {}", names.join(", "));
    }
    let wanted =
        ALL.iter().filter(|bench| args.names.is_empty() || args.names.iter().any(|n| n == bench.name));
    let mut all = serde_json::Map::new();
    let mut met = true;
    for bench in wanted {
        say!("bench {}: {}", bench.name, bench.about);
        let figures = (bench.run)()?;
        met &= figures.iter().filter_map(|figure| figure.budget.as_ref()).all(|budget| budget.met);
        if args.format == Format::Text {
            for figure in &figures {
                println!("{:<9} {}", bench.name, line(figure));
            }
        }
        all.insert(bench.name.to_owned(), serde_json::to_value(figures)?);
    }
    if args.format == Format::Json {
        println!("{}", serde_json::Value::Object(all));
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(figure: &Figure) -> String {
    let beside = figure
        .beside
        .as_ref()
        .map_or_else(String::new, |(what, value)| format!(", {what} {value:.3} {}", figure.unit));
    let budget = figure.budget.as_ref().map_or_else(String::new, |budget| {
        let met = if budget.met { "met" } else { "NOT MET" };
        format!("; {} (is {:.2}): {met}", budget.says, budget.is)
    });
    format!("{}: {:.3} {}{beside}{budget}", figure.what, figure.value, figure.unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_tells_itself_on_one_line() {
        let figure = Figure {
            what: "verify".into(),
            value: 0.5,
            unit: "s",
            beside: Some(("aide".into(), 4.0)),
            budget: Some(Budget { says: ">= 6 times faster".into(), is: 8.0, met: true }),
        };
        assert_eq!(line(&figure), "verify: 0.500 s, aide 4.000 s; >= 6 times faster (is 8.00): met");
    }
}
