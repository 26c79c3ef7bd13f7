//! `cargo xtask fuzz`: every parser of what comes from outside, guided by coverage.
//!
//! The parsers and their seeds are in `monitor/src/fuzz`, the program around them in `fuzz/`: one for all, since a link for each of them
//! took longer than everything else. What a run has found to reach further is kept in `target/fuzz/corpus`, and the next run goes on from there.
//!
//! Plain cargo builds it; cargo-fuzz would bring these flags and nothing else that is used here, and it gives them to every dependency: all
//! that the agent is made of, once more. Without a sanitizer only our own crates get them, and the rest is what the other lanes have
//! built. It is stable Rust, too. With AddressSanitizer everything is built anew, by nightly.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile, TARGET};
use crate::cmd::{self, say};
use crate::setup::{self, Need};
use crate::{ebpf, workspace};

/// libFuzzer itself is C++.
const NEEDS: &[Need] = &[Need { what: "c++", package: "g++" }];
/// What libFuzzer is guided by: counters on edges, where they are, and both sides of comparisons. As cargo-fuzz has them.
const GUIDED: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Longest input, in bytes.
const LENGTH: u32 = 1 << 16;
/// Seconds that one input may take, and MiB that a program may have.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which; all of them without a name
    names: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// What watches memory; the parsers are Rust, and but for a few lines safe
    #[arg(long, value_enum, default_value_t = Sanitizer::None)]
    sanitizer: Sanitizer,
    /// Give this one input to the parser named, and no more
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// What watches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    None,
    Address,
}

impl Sanitizer {
    const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Address => "address",
        }
    }
}

/// How far each parser is fuzzed, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// So many inputs from one seed, on any machine the same: a gate must not fail for what a change did not touch.
    Inputs(u32),
    /// For so many seconds with others each time, on top of all that reached further before.
    Seconds(u32),
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inputs(inputs) => write!(f, "with {inputs} inputs each"),
            Self::Seconds(seconds) => write!(f, "for {seconds} s each"),
        }
    }
}

/// What became of one parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    /// Inputs given to it.
    executions: u64,
    /// Edges that they reached.
    coverage: u64,
    /// Seconds that the slowest input took.
    slowest: u64,
    /// How it ended, if not well.
    pub(crate) fault: Option<String>,
}

impl Outcome {
    /// Takes apart what libFuzzer says.
    fn of(name: &str, said: &str, well: bool) -> Self {
        let last = |mark: &str| {
            let after = said.rsplit_once(mark)?.1.trim_start();
            after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let input = said.rsplit_once("Test unit written to ").and_then(|(_, rest)| rest.lines().next());
        let why = said.lines().find(|line| line.contains("panicked at") || line.contains("ERROR: "));
        let executions = last("stat::number_of_executed_units:").unwrap_or(0);
        let fault = match input {
            Some(file) if !well => Some(format!(
                "{}; the input: {file}; once more: cargo xtask fuzz {name} --input {file}",
                why.map_or("it died", str::trim)
            )),
            None if !well => Some(format!("it died: {}", cmd::tail(said, 3).replace('\n', " | "))),
            _ if executions == 0 => Some("it was given no input".to_owned()),
            _ => None,
        };
        Self {
            name: name.to_owned(),
            executions,
            coverage: last(" cov: ").unwrap_or(0),
            slowest: last("stat::slowest_unit_time_sec:").unwrap_or(0),
            fault,
        }
    }

    /// One line of it.
    pub(crate) fn line(&self) -> String {
        let Self { name, executions, coverage, slowest, fault } = self;
        let slow = if *slowest > 0 { format!(", an input took {slowest} s") } else { String::new() };
        let fault = fault.as_ref().map_or_else(String::new, |fault| format!(", FAILED: {fault}"));
        format!("{name:<14} {executions:>10} inputs, {coverage:>6} edges{slow}{fault}")
    }
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let programs = Programs::build(args.sanitizer, &args.names)?;
    if let Some(input) = &args.input {
        let [name] = args.names.as_slice() else { bail!("--input FILE goes with the name of one parser") };
        let status = programs.command(name).arg(input).status().context("cannot start the fuzzer")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let (outcomes, log) = programs.fuzz(Extent::Seconds(args.seconds))?;
    let failed = outcomes.iter().filter(|outcome| outcome.fault.is_some()).count();
    if failed > 0 {
        eprintln!("{log}");
    }
    for outcome in &outcomes {
        println!("{}", outcome.line());
    }
    println!("{} parsers, {failed} failed", outcomes.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The fuzzer, built, and the parsers it is to have.
pub(crate) struct Programs {
    names: Vec<String>,
    program: PathBuf,
}

impl Programs {
    /// For the parsers of these names, or all. An error if the program does not build, or there is no such name.
    pub(crate) fn build(sanitizer: Sanitizer, names: &[String]) -> Result<Self> {
        setup::packages(setup::BUILD)?;
        setup::packages(NEEDS)?;
        let (mut cargo, target) = match sanitizer {
            Sanitizer::None => (guided()?, workspace::target()),
            Sanitizer::Address => address()?,
        };
        cargo.args(["--package", "meshseal-fuzz", "--features", "libfuzzer"]);
        say!("building the fuzzer (sanitizer {})", sanitizer.word());
        cmd::run(cargo.arg("--quiet")).context("the fuzzer does not build")?;
        let program = target.join(TARGET).join(Profile::Lane.name()).join("meshseal-fuzz");
        // Without a name it tells them all.
        let all = cmd::output(Command::new(&program).env_remove("FUZZ"))?;
        let all: Vec<String> = all.lines().map(str::to_owned).collect();
        if all.is_empty() {
            bail!("{} knows no parser", program.display());
        }
        if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
            bail!("{unknown} is no parser: expected one of {}", all.join(", "));
        }
        Ok(Self { names: if names.is_empty() { all } else { names.to_vec() }, program })
    }

    fn command(&self, name: &str) -> Command {
        self.named(Command::new(&self.program), name)
    }

    /// Whatever an address is compared with leads libFuzzer on: where they are random, so is what it makes next.
    fn command_without_chance(&self, name: &str) -> Command {
        let mut setarch = Command::new("setarch");
        setarch.arg("--addr-no-randomize").arg(&self.program);
        self.named(setarch, name)
    }

    fn named(&self, mut command: Command, name: &str) -> Command {
        command.env("FUZZ", name).args(LIMITS).stdin(Stdio::null());
        command
    }

    /// Runs each that far, as many at a time as there are processors; what became of them, and all that they said.
    pub(crate) fn fuzz(&self, extent: Extent) -> Result<(Vec<Outcome>, String)> {
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        say!("fuzzing {} parsers {extent}, {at_once} at a time", self.names.len());
        let (next, done) = (AtomicUsize::new(0), Mutex::new((Vec::new(), String::new())));
        let worker = || -> Result<()> {
            while let Some(name) = self.names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let out = self.one(name, extent)?;
                let said = String::from_utf8_lossy(&out.stderr);
                let outcome = Outcome::of(name, &said, out.status.success());
                say!("{}", outcome.line());
                let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                done.1.push_str(&format!("== {name}\n{}\n", cmd::tail(&said, 60)));
                done.0.push(outcome);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
            let ended = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended
                .map(|ended| ended.unwrap_or_else(|_| bail!("a worker panicked")))
                .collect::<Result<Vec<_>>>()
        })?;
        let (mut outcomes, log) = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        outcomes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((outcomes, log))
    }

    fn one(&self, name: &str, extent: Extent) -> Result<Output> {
        let (artifacts, scratch) = (place("artifacts").join(name), place("tmp").join(name));
        let corpus = match extent {
            Extent::Inputs(_) => scratch.join("corpus"),
            Extent::Seconds(_) => place("corpus").join(name),
        };
        // What a killed run left.
        drop(std::fs::remove_dir_all(&scratch));
        for dir in [&scratch, &corpus, &artifacts] {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let mut command = match extent {
            // It would look for what other processes have put into the corpus, by the clock.
            Extent::Inputs(inputs) => {
                let mut command = self.command_without_chance(name);
                command.args(["-seed=1", "-reload=0"]).arg(format!("-runs={inputs}"));
                command
            }
            Extent::Seconds(seconds) => {
                let mut command = self.command(name);
                command.arg(format!("-max_total_time={seconds}"));
                command
            }
        };
        // It puts its seeds there before it looks.
        command.env("MESHSEAL_FUZZ_SEEDS", &corpus).env("TMPDIR", &scratch);
        command.arg(&corpus).arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.args(["-print_final_stats=1", "-use_value_profile=1"]).arg(format!("-max_len={LENGTH}"));
        command.output().with_context(|| format!("cannot start the fuzzer {name}"))
    }
}

fn place(what: &str) -> PathBuf {
    workspace::target().join("fuzz").join(what)
}

/// Cargo for our own crates with what guides libFuzzer, and the dependencies of the other lanes.
fn guided() -> Result<Command> {
    let mut cargo = build::static_cargo(Profile::Lane, "build", &ebpf::build()?);
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", workspace::root().join("fuzz/guided"))
        .env("MESHSEAL_GUIDED", GUIDED.join(" "));
    Ok(cargo)
}

/// Cargo for everything with AddressSanitizer, and the directory that it builds into.
fn address() -> Result<(Command, PathBuf)> {
    cmd::output(cmd::clean("rustc").env("RUSTUP_TOOLCHAIN", "nightly").arg("-vV"))
        .context("no nightly compiler: `rustup toolchain install nightly --profile minimal` provides it")?;
    let target = place("build").join("address");
    let mut cargo = cmd::cargo();
    cargo
        .env("RUSTUP_TOOLCHAIN", "nightly")
        .env("RUSTFLAGS", format!("{} -Zsanitizer=address", GUIDED.join(" ")))
        // It is built once in a while, and whole.
        .env("CARGO_INCREMENTAL", "0");
    cargo.args(["build", "--locked", "--profile", Profile::Lane.name(), "--target", TARGET, "--target-dir"]);
    cargo.arg(&target);
    Ok((cargo, target))
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let said = "#2\tINITED cov: 51 ft: 52 corp: 1/1b\n#9999\tDONE   cov: 1234 ft: 9 corp: 3/9b\nDone 9999 runs\n\
            stat::number_of_executed_units: 9999\nstat::slowest_unit_time_sec:    0\n";
        let well = Outcome { name: "dsse".into(), executions: 9999, coverage: 1234, slowest: 0, fault: None };
        assert_eq!(Outcome::of("dsse", said, true), well);
        // The same end with nothing done is none.
        let said = "Done 0 runs\nstat::number_of_executed_units: 0\n";
        let idle = Outcome {
            executions: 0,
            coverage: 0,
            fault: Some("it was given no input".to_owned()),
            ..well.clone()
        };
        assert_eq!(Outcome::of("dsse", said, true), idle);
        assert_eq!(Outcome::of("dsse", "", true), idle);
        let said = "#2\tINITED cov: 51 ft: 52\n\nthread '<unnamed>' panicked at monitor/src/x.rs:1:2:\nwhy\n\
            artifact_prefix='/a/'; Test unit written to /a/crash-1\nBase64: AA==\nstat::number_of_executed_units: 7\n";
        let fault = "thread '<unnamed>' panicked at monitor/src/x.rs:1:2:; the input: /a/crash-1; \
            once more: cargo xtask fuzz dsse --input /a/crash-1";
        let died = Outcome {
            name: "dsse".into(),
            executions: 7,
            coverage: 51,
            slowest: 0,
            fault: Some(fault.to_owned()),
        };
        assert_eq!(Outcome::of("dsse", said, false), died);
    }
}
