//! What an act on a file that nobody watches costs with all programs attached: on and off in one guest, whose time counts
//! instructions, so that a busy machine changes nothing; beside audit, fanotify and inotify in the same guest; and with many objects.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Budget, Figure};
use crate::build::{self, Profile};
use crate::cmd::{self, say};
use crate::setup;
use crate::vm::kernel::{self, Series};
use crate::vm::{self, End, Output, VmSpec};

/// Each series, what the kernel's list of security modules is, the most that an open, write and close may cost more, in percent, and how many objects
/// are watched in the end: to make many takes its time in a guest that counts instructions.
const GUESTS: [(Series, &str, f64, u32); 5] = [
    (Series::V5_10, vm::DEFAULT_LSM, 7.0, 1_000),
    (Series::V6_1, vm::DEFAULT_LSM, 7.0, 1_000),
    (Series::V6_12, vm::DEFAULT_LSM, 5.0, 100_000),
    (Series::V7_2, vm::DEFAULT_LSM, 5.0, 1_000),
    (Series::V6_12, "lockdown,capability", 5.0, 1_000),
];
/// Longest that a guest may take, in which one processor is interpreted, instruction by instruction.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);
/// The most that creating and unlinking a file may cost more, in percent.
const NAMES: f64 = 10.0;

pub(super) fn run() -> Result<Vec<Figure>> {
    setup::packages(setup::BUILD)?;
    setup::packages(setup::VM)?;
    let built =
        build::static_binaries(Profile::Lane, &["--package", "meshseal-tests", "--bin", "bench_kernel"])?;
    let mut figures = Vec::new();
    for (series, lsm, most, objects) in GUESTS {
        say!("a guest with {series} ({lsm})");
        let objects = objects.to_string();
        let command = ["/with/bench_kernel", "/data", &objects].map(Into::into).to_vec();
        let mut spec = VmSpec::new(kernel::resolve(series)?, command);
        lsm.clone_into(&mut spec.lsm);
        spec.with = vec![built.join("bench_kernel")];
        spec.memory_mib = 2048;
        spec.output = Output::Capture;
        spec.timeout = Some(PATIENCE);
        spec.count_instructions();
        let outcome = vm::run(&spec)?;
        let said = String::from_utf8_lossy(&outcome.stdout);
        if !matches!(outcome.end, End::Exited(0)) {
            let errors = String::from_utf8_lossy(&outcome.stderr);
            bail!("bench_kernel on {series}: {:?}: {}", outcome.end, cmd::tail(errors.trim(), 10));
        }
        // Kept where the next guest comes to nothing: this one took half an hour.
        say!("{series} ({lsm}): {}", said.trim());
        let said: Value = serde_json::from_str(said.trim()).context("what bench_kernel says")?;
        figures.extend(figures_of(series, &said, most)?);
    }
    Ok(figures)
}

fn figures_of(series: Series, said: &Value, most: f64) -> Result<Vec<Figure>> {
    let rung = said["rung"].as_str().context("the rung")?;
    let number = |way: &str, act: &str| {
        said[way][act].as_f64().with_context(|| format!("{way} {act} of bench_kernel"))
    };
    let mut figures = Vec::new();
    for (act, words, most) in
        [("open_write_close", "open+write+close", most), ("create_unlink", "create+unlink", NAMES)]
    {
        let (off, on) = (number("off", act)?, number("on", act)?);
        let more = (on / off - 1.0) * 100.0;
        figures.push(Figure {
            what: format!("{series} {rung}: {words} of a file that is not watched"),
            value: on,
            unit: "instructions",
            beside: Some(("without programs".to_owned(), off)),
            budget: Some(Budget { says: format!("at most {most} % more"), is: more, met: more <= most }),
        });
        figures.push(Figure {
            what: format!(
                "{series} {rung}: {words} with programs that do nothing on file_open and file_permission"
            ),
            value: number("empty", act)?,
            unit: "instructions",
            beside: Some(("without programs".to_owned(), off)),
            budget: None,
        });
        // Any watch on a file system makes its files cost more: one of the agent's, one of inotify's.
        figures.push(Figure {
            what: format!("{series} {rung}: {words} where another file of the file system is watched"),
            value: number("held", act)?,
            unit: "instructions",
            beside: Some(("so by inotify, without programs".to_owned(), number("inotify_elsewhere", act)?)),
            budget: None,
        });
        let objects = said["many"]["objects"].as_u64().context("how many objects")?;
        figures.push(Figure {
            what: format!("{series} {rung}: {words} where {objects} files of the file system are watched"),
            value: said["many"]["acts"][act].as_f64().context("acts among many objects")?,
            unit: "instructions",
            beside: Some(("where one is".to_owned(), number("held", act)?)),
            budget: None,
        });
        for peer in ["inotify", "fanotify", "audit"] {
            let cost = number(peer, act)?;
            figures.push(Figure {
                what: format!("{series} {rung}: {words} beside {peer}"),
                value: on,
                unit: "instructions",
                beside: Some((peer.to_owned(), cost)),
                budget: Some(Budget {
                    says: format!("at most what it costs under {peer}"),
                    is: on / cost,
                    met: on <= cost,
                }),
            });
        }
    }
    let (off, on) = (number("tagged", "off")?, number("tagged", "on")?);
    let told = format!("{series} {rung}: a write to a file that is watched, its record read and told");
    let figure = |what: String, value: f64, beside: (&str, f64)| Figure {
        what,
        value,
        unit: "instructions",
        beside: Some((beside.0.to_owned(), beside.1)),
        budget: None,
    };
    figures.push(figure(told.clone(), on, ("not watched", off)));
    let among = format!("{told}, among {} objects", said["many"]["objects"]);
    figures.push(figure(among, number("many", "tagged")?, ("of one object", on)));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_about_on_and_off_in_one_guest() {
        let acts =
            |open: f64, create: f64| serde_json::json!({"open_write_close": open, "create_unlink": create});
        let said = serde_json::json!({
            "rung": "lsm", "off": acts(1000.0, 2000.0), "empty": acts(1030.0, 2010.0), "on": acts(1040.0, 2300.0),
            "held": acts(1100.0, 2400.0), "inotify_elsewhere": acts(1080.0, 2100.0), "inotify": acts(1500.0, 2200.0), "fanotify": acts(2600.0, 5000.0), "audit": acts(1400.0, 2900.0),
            "tagged": {"off": 500.0, "on": 900.0},
            "many": {"objects": 100, "acts": acts(1101.0, 2401.0), "tagged": 901.0},
        });
        let figures = figures_of(Series::V6_12, &said, 5.0).unwrap();
        let met: Vec<bool> =
            figures.iter().filter_map(|figure| figure.budget.as_ref()).map(|b| b.met).collect();
        assert_eq!(met, [true, true, true, true, false, false, true, true]);
        assert_eq!(figures.len(), 16);
        assert!(figures_of(Series::V6_12, &serde_json::json!({"rung": "lsm"}), 5.0).is_err());
    }
}
