//! Kills, restarts, and what is offered to an agent that it must not take.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::acts::SEALED;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, Signer, told_of};

struct Bench {
    scratch: tempfile::TempDir,
    home: Home,
}

impl Bench {
    /// Files of these names, not sealed yet.
    fn new(names: &[&str]) -> Result<Self> {
        let scratch = scratch(&places()[0])?;
        for name in names {
            fs::write(scratch.path().join(name), SEALED)?;
        }
        let home = Home::new(scratch.path().join("home"))?;
        Ok(Self { scratch, home })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn about<'a>(&self, name: &'a str) -> impl Fn(&Value) -> bool + use<'a> {
        let path = self.path(name).display().to_string();
        move |record| record["object"]["path"] == path.as_str()
    }
}

fn opened(record: &Value) -> bool {
    record["kind"] == "violation.opened"
}

pub(super) fn killed_while_violated_it_goes_on() -> Result<()> {
    let bench = Bench::new(&["a", "b", "c"])?;
    let sealed = [bench.path("a"), bench.path("b"), bench.path("c")];
    bench.home.baseline("restart", 1, &sealed.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let mut agent = Agent::start(&bench.home, 1)?;
    let rung = agent.rung()?;
    let kept = matches!(rung.as_str(), "lsm" | "fentry");
    fs::write(bench.path("a"), "TAMPER")?;
    let about_a = bench.about("a");
    let first = agent.find("violation", |record| opened(record) && about_a(record))?;
    let records = agent.kill()?;
    let last = records.last().and_then(|record| record["seq"].as_u64()).context("no seq")?;

    // No agent runs; where its programs are kept they go on.
    fs::write(bench.path("b"), "TAMPER")?;
    fs::write(bench.path("c"), "TAMPER")?;
    fs::write(bench.path("c"), SEALED)?;

    let mut agent = Agent::start(&bench.home, 1)?;
    let found = agent.find("what was done meanwhile", |record| opened(record) && bench.about("b")(record))?;
    ensure!(found["violation"] == "content", "{}", told_of([&found]));
    if kept {
        let passed =
            agent.find("what was put right again", |record| opened(record) && bench.about("c")(record))?;
        ensure!(passed["violation"] == "reverted", "{}", told_of([&passed]));
        for record in [&found, &passed] {
            ensure!(record["sensor"] == rung.as_str(), "{}", told_of([record]));
            ensure!(record["actor"]["tgid"] == std::process::id(), "{}", told_of([record]));
        }
    } else {
        ensure!(
            found["sensor"] == "scrub" && found["operation"] == "scrub" && found["actor"].is_null(),
            "{}",
            told_of([&found])
        );
        let why = found["actor_unknown_because"].as_str().unwrap_or_default();
        ensure!(!why.is_empty(), "nobody is named, and no reason is given");
    }
    agent.find("start", |record| {
        record["kind"] == "agent.started" && record["resumed_after"] == "a kill or crash"
    })?;
    agent.find("gap", |record| {
        record["kind"] == "gap" && record["at"] == "agent" && record["seq"].as_u64() > Some(last)
    })?;
    let good = agent.find("its end", |record| {
        record["kind"] == "gap" && record["at"] == "agent" && record["reconciled"] == true
    })?;
    ensure!(good["seq"].as_u64() > Some(last), "told before: {good}");
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "violated" && code == 1, "{} ({code})", status["posture"]);
    let open: usize = if kept { 3 } else { 2 };
    ensure!(status["violations"]["open"] == open, "{}", status["violations"]);
    // The same wrong object, by another act: the same violation.
    fs::write(bench.path("a"), "TAMPER MORE")?;
    let update = agent.find("update", |record| {
        record["kind"] == "violation.updated"
            && bench.about("a")(record)
            && record["seq"].as_u64() > Some(last)
    })?;
    ensure!(update["violation_id"] == first["uid"], "another violation: {update}");
    let records = agent.stop()?;
    let opened: Vec<&Value> = records.iter().filter(|record| opened(record)).collect();
    ensure!(opened.len() == open, "{}", told_of(opened));
    bench.home.verify_journal()
}

pub(super) fn without_a_baseline_it_is_uncertain() -> Result<()> {
    let bench = Bench::new(&["a"])?;
    let mut agent = Agent::start(&bench.home, 1)?;
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "uncertain" && code == 3, "{} ({code})", status["posture"]);
    ensure!(has_reason(&status, "no_baseline"), "{}", status["reasons"]);
    bench.home.baseline("first", 1, &[&bench.path("a")])?;
    agent.reload()?;
    agent.find("acceptance", |record| record["kind"] == "baseline.accepted")?;
    agent.find("verification", |record| record["kind"] == "object.verified")?;
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "intact" && code == 0, "{} {}", status["posture"], status["reasons"]);
    agent.stop().map(drop)
}

fn has_reason(status: &Value, wanted: &str) -> bool {
    let reasons = status["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
    reasons.iter().filter_map(Value::as_str).any(|reason| reason.starts_with(wanted))
}

pub(super) fn bad_baselines_are_rejected_and_the_old_one_holds() -> Result<()> {
    let bench = Bench::new(&["a", "b"])?;
    let (home, a) = (&bench.home, bench.path("a"));
    let paths: [&Path; 1] = [&a];
    home.baseline("held", 2, &paths)?;
    let good = fs::read(home.dir.join("baselines/held.dsse.json"))?;
    let newer = home.seal("held", 3, &paths, &[])?;
    let lower = home.sign(&home.seal("held", 1, &paths, &[])?, Signer::Trusted)?;
    let stranger = home.sign(&newer, Signer::Stranger)?;
    let expired = home.sign(&home.seal("held", 4, &paths, &["--valid-for", "1s"])?, Signer::Trusted)?;
    let mut flipped = home.sign(&newer, Signer::Trusted)?;
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    let cut = good[..good.len() / 2].to_vec();

    let mut agent = Agent::start(home, 1)?;
    let valid_until = std::time::Instant::now() + std::time::Duration::from_millis(1100);
    let mut rejected = 0;
    let mut refuse = |agent: &mut Agent, what: &str, envelope: &[u8]| -> Result<()> {
        home.offer("held", envelope)?;
        agent.reload()?;
        rejected += 1;
        let all = |seen: &[Value]| seen.iter().filter(|one| one["kind"] == "baseline.rejected").count();
        agent.wait(&format!("refusal of {what}"), |seen| all(seen) == rejected)?;
        let told = agent.seen.iter().rfind(|one| one["kind"] == "baseline.rejected").context("gone")?;
        ensure!(
            told["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
            "{what}: no reason: {told}"
        );
        let (status, code) = agent.status()?;
        ensure!(status["posture"] == "uncertain" && code == 3, "{what}: {} ({code})", status["posture"]);
        ensure!(has_reason(&status, "baseline_rejected"), "{what}: {}", status["reasons"]);
        ensure!(status["baseline"][0]["revision"] == 2, "{what}: in force is {}", status["baseline"]);
        Ok(())
    };
    for (what, envelope) in [
        ("a cut envelope", &cut),
        ("a flipped envelope", &flipped),
        ("a stranger's signature", &stranger),
        ("a lower revision", &lower),
        ("garbage", &vec![0xff, 0, 1]),
        ("nothing", &Vec::new()),
    ] {
        refuse(&mut agent, what, envelope)?;
    }
    while std::time::Instant::now() < valid_until {
        std::thread::yield_now();
    }
    refuse(&mut agent, "an expired one", &expired)?;
    // The old one judges all the while.
    fs::write(&a, "TAMPER")?;
    let found = agent.find("violation", opened)?;
    ensure!(found["object"]["revision"] == 2 && found["violation"] == "content", "{}", told_of([&found]));
    home.offer("held", &good)?;
    agent.reload()?;
    agent.stop()?;

    // A lower one is refused at a start too, by what was accepted before.
    home.offer("held", &lower)?;
    let mut agent = Agent::start(home, 1)?;
    let (status, _) = agent.status()?;
    ensure!(status["baseline"][0]["revision"] == 2, "in force is {}", status["baseline"]);
    let count = |seen: &[Value]| seen.iter().filter(|one| one["kind"] == "baseline.rejected").count();
    agent.wait("refusal at the start", |seen| count(seen) == 8)?;
    agent.stop().map(drop)
}

pub(super) fn a_bad_config_is_rejected_and_the_old_one_holds() -> Result<()> {
    let bench = Bench::new(&["a"])?;
    bench.home.baseline("config", 1, &[&bench.path("a")])?;
    let mut agent = Agent::start(&bench.home, 1)?;
    bench.home.configure("noSuchKey: 1\n")?;
    agent.reload()?;
    let told = agent.find("refusal", |record| record["kind"] == "config.rejected")?;
    let reason = told["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("unknown key 'noSuchKey'"), "{reason}");
    fs::write(bench.path("a"), "TAMPER")?;
    agent.find("violation", opened)?;
    agent.stop().map(drop)
}

pub(super) fn started_on_less_it_says_so() -> Result<()> {
    const RECEIVER: &str = "export: { otlp: [{ endpoint: \"http://127.0.0.1:9\" }] }\n";
    let bench = Bench::new(&["a"])?;
    let config = bench.home.config().display().to_string();
    bench.home.baseline("less", 1, &[&bench.path("a")])?;
    for more in ["", RECEIVER] {
        bench.home.configure(more)?;
        let agent = Agent::start(&bench.home, 1)?;
        let (status, code) = agent.status()?;
        ensure!(status["posture"] == "intact" && code == 0, "{more}: {}", status["posture"]);
        agent.stop()?;
    }
    bench.home.configure("")?;
    let mut agent = Agent::start(&bench.home, 1)?;
    let told = agent.find("violation", opened)?;
    ensure!(told["violation"] == "self" && told["severity"] == "critical", "{told}");
    ensure!(told["object"]["path"] == config.as_str() && told["actor"].is_null(), "{told}");
    ensure!(told["expected"]["export.otlp"] == "http://127.0.0.1:9", "{told}");
    ensure!(told["actual"]["export.otlp"] == "", "{told}");
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "violated" && code == 1, "{} ({code})", status["posture"]);
    agent.stop()?;
    // Told once; it stays open.
    let agent = Agent::start(&bench.home, 1)?;
    let (status, _) = agent.status()?;
    ensure!(
        status["violations"]["open"] == 1 && status["violations"]["total"] == 1,
        "{}",
        status["violations"]
    );
    agent.stop()?;
    // Who takes away what the agent knows of its last run is told of as well.
    fs::remove_file(bench.home.dir.join("state/settings.json"))?;
    let mut agent = Agent::start(&bench.home, 1)?;
    agent.find("gap", |record| record["kind"] == "gap" && record["at"] == "settings")?;
    agent.stop().map(drop)
}
