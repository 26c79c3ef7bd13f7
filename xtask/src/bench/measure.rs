//! Times of commands, in rounds.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cmd;

/// One contender: a name, how it is started, and the exit status that says it did its work.
pub(super) struct Contender<'c> {
    pub(super) name: &'static str,
    pub(super) command: &'c dyn Fn() -> Command,
    pub(super) status: i32,
}

/// Runs each once for the caches, then all of them in turn, `rounds` times; the median seconds of each, in order.
pub(super) fn interleaved(contenders: &[Contender<'_>], rounds: usize) -> Result<Vec<f64>> {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (contender, times) in contenders.iter().zip(&mut times) {
            let mut command = (contender.command)();
            let shown = cmd::shown(&command);
            let started = Instant::now();
            let output = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .output()
                .with_context(|| format!("cannot start `{shown}`"))?;
            let seconds = started.elapsed().as_secs_f64();
            if output.status.code() != Some(contender.status) {
                let stderr = String::from_utf8_lossy(&output.stderr);
                bail!(
                    "{}: `{shown}` ended with {}: {}",
                    contender.name,
                    output.status,
                    cmd::tail(stderr.trim(), 5)
                );
            }
            if round > 0 {
                times.push(seconds);
            }
        }
    }
    Ok(times.into_iter().map(median).collect())
}

/// 0 for no values.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).abs() < f64::EPSILON);
    }

    #[test]
    fn a_contender_that_fails_is_named_with_its_last_words() {
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo no such tree >&2; exit 3"]);
            command
        };
        let contender = Contender { name: "sh", command: &command, status: 0 };
        let error = interleaved(&[contender], 1).unwrap_err().to_string();
        assert!(
            error.starts_with("sh: `sh -c ") && error.ends_with("exit status: 3: no such tree"),
            "{error}"
        );
    }
}
