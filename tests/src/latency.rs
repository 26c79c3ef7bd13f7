//! How long it takes until an act is in the journal, at an even pace: from before the act to the moment at which the agent, which tells of
//! a record only once it is on disk, has told of it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::agent::{Agent, Home, PATIENCE, pause, told_of};
use crate::corpus::{bench, object};

/// Acts a second.
const PACE: u32 = 1000;
/// Acts, where there are as many objects: each on an object of its own, since what is open on one already is told as more of it.
const ACTS: usize = 4000;
/// Flushes of the disk that are timed.
const FLUSHES: usize = 100;

/// `bench_latency OBJECTS`: prints times as JSON.
#[must_use]
pub fn main() -> ExitCode {
    let objects = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(objects) = objects else {
        eprintln!("bench_latency OBJECTS");
        return ExitCode::FAILURE;
    };
    match measured(objects) {
        Ok(times) => {
            println!("{times}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measured(objects: usize) -> Result<Value> {
    let (scratch, dir, home) = bench(objects as u64 + 1)?;
    room_for(&home, objects)?;
    let flushes = flushes(scratch.path())?;
    let mut agent = Agent::start(&home, 1)?;
    let rung = agent.rung()?;
    // Whoever hears of records has to be there before the first.
    agent.find("the agent's start", |record| record["kind"] == "agent.started")?;
    // What a program does first is told with its hash, and to make that takes the longer the larger the program is. This one is mostly
    // what a debugger reads: that act has a figure of its own, beside the size.
    let (first, _) = acted(&mut agent, &[object(&dir, objects as u64)])?;
    let executable = fs::metadata("/proc/self/exe")?.len();
    let acts = objects.min(ACTS);
    // Spread over all there are.
    let files: Vec<PathBuf> = (0..acts).map(|at| object(&dir, (at * objects / acts) as u64)).collect();
    let (times, took) = acted(&mut agent, &files)?;
    let gaps = agent.seen.iter().filter(|record| record["kind"] == "gap").count();
    ensure!(
        gaps == 0,
        "not all was seen: {}",
        told_of(agent.seen.iter().filter(|record| record["kind"] == "gap"))
    );
    agent.stop()?;
    Ok(json!({
        "rung": rung, "objects": objects, "acts": acts, "pace": pace(acts, took),
        "settle": milliseconds(monitor::judge::SETTLE),
        "first": first.first().copied().map(milliseconds), "executable": executable,
        "told": percentiles(times), "flush": percentiles(flushes),
    }))
}

/// Acts on each file: how long it took until each was told of, and all of them to be done.
fn acted(agent: &mut Agent, files: &[PathBuf]) -> Result<(Vec<Duration>, Duration)> {
    let to_act_on = files.to_owned();
    let actor = std::thread::spawn(move || act(&to_act_on));
    let told = tellings(agent, files)?;
    let done = actor.join().map_err(|_| anyhow::anyhow!("the actor panicked"))??;
    let mut times = Vec::new();
    for (file, begun) in files.iter().zip(&done) {
        let at = told
            .get(&file.display().to_string())
            .with_context(|| format!("{} was not told of", file.display()))?;
        times.push(at.duration_since(*begun));
    }
    let took =
        done.last().zip(done.first()).map_or(Duration::ZERO, |(last, first)| last.duration_since(*first));
    Ok((times, took))
}

/// Slots for that many objects, whatever is usual.
fn room_for(home: &Home, objects: usize) -> Result<()> {
    let text = fs::read_to_string(home.config())?;
    let slots = (2 * objects).max(1 << 16);
    let text = text.replace("sensor: {", &format!("sensor: {{ maxSlots: {slots},"));
    ensure!(text.contains("maxSlots"), "no sensor in {text}");
    Ok(fs::write(home.config(), text)?)
}

/// When each act began.
fn act(files: &[PathBuf]) -> Result<Vec<Instant>> {
    let begun = Instant::now();
    let mut times = Vec::new();
    for (at, file) in (0_u32..).zip(files) {
        let due = begun + Duration::from_secs(1) * at / PACE;
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            pause(left);
        }
        times.push(Instant::now());
        OpenOptions::new().write(true).open(file)?.write_all_at(b"TAMPER", 0)?;
    }
    Ok(times)
}

/// When each file's violation was told of.
fn tellings(agent: &mut Agent, files: &[PathBuf]) -> Result<HashMap<String, Instant>> {
    let mut told = HashMap::new();
    let until = Instant::now() + PATIENCE;
    while told.len() < files.len() {
        let record = agent.next(until.saturating_duration_since(Instant::now()))?;
        let at = Instant::now();
        if record["kind"] == "violation.opened"
            && let Some(path) = record["object"]["path"].as_str()
        {
            told.entry(path.to_owned()).or_insert(at);
        }
    }
    Ok(told)
}

/// How long the disk takes to keep a little that is appended to a file.
fn flushes(dir: &Path) -> Result<Vec<Duration>> {
    let file = File::create_new(dir.join("flushed"))?;
    (0..FLUSHES)
        .map(|at| {
            let begun = Instant::now();
            file.write_all_at(&[1; 1024], 1024 * at as u64)?;
            file.sync_data()?;
            Ok(begun.elapsed())
        })
        .collect()
}

fn pace(acts: usize, took: Duration) -> f64 {
    if took.is_zero() { 0.0 } else { acts.saturating_sub(1) as f64 / took.as_secs_f64() }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn percentiles(mut times: Vec<Duration>) -> Value {
    times.sort();
    let of = |percent: usize| {
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().map(milliseconds)
    };
    json!({ "p50": of(50), "p99": of(99) })
}
