//! Files that nobody signed, held to what they were when they were seen first.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::world::{places, scratch};
use crate::agent::{Agent, Home, PATIENCE, Signer, told, told_of};
use crate::meshseal;

const CONFLIST: &str =
    r#"{"cniVersion":"0.4.0","name":"node","plugins":[{"type":"bridge"},{"type":"istio-cni"}]}"#;
const NAME: &str = "trust-on-first-use";

/// Trusted as seen, told of when it changes, and signed in the end.
pub(super) fn what_nobody_signed_is_held_to_what_it_was_at_first() -> Result<()> {
    let scratch = scratch(&places()[0])?;
    let root = scratch.path().join("host");
    let dir = root.join("etc/cni/net.d");
    fs::create_dir_all(&dir)?;
    let conflist = dir.join("10-node.conflist");
    fs::write(&conflist, CONFLIST)?;
    let home = Home::new(scratch.path().join("home"))?;
    home.configure(&format!("  trustOnFirstUse: true\nhostRoot: {}\n", root.display()))?;

    let accepted = |record: &Value| record["kind"] == "baseline.accepted" && record["name"] == NAME;
    let mut agent = Agent::start(&home, 1)?;
    let record = agent.find("what is trusted", accepted)?;
    ensure!(record["signers"].as_array().is_none_or(Vec::is_empty), "{record}");
    let unsigned = |status: &Value, code: i32, posture: &str| -> Result<()> {
        let reasons = status["reasons"].to_string();
        ensure!(status["posture"] == posture, "{} {reasons}", status["posture"]);
        ensure!(
            reasons.contains("\"no_baseline\"") && reasons.contains("\"trust_on_first_use\""),
            "{reasons}"
        );
        ensure!(status["baseline"][0]["name"] == NAME, "{}", status["baseline"]);
        ensure!(status["baseline"][0]["signers"] == Value::Array(Vec::new()), "{}", status["baseline"]);
        let objects = &status["objects"];
        ensure!(objects["first_use"] == objects["total"] && objects["unsealed"] != 0, "{objects}");
        ensure!(code == if posture == "violated" { 1 } else { 3 }, "{posture} is told by {code}");
        Ok(())
    };
    // It is told of before the judge has it.
    let until = Instant::now() + PATIENCE;
    let (status, code) = loop {
        let (status, code) = agent.status()?;
        if status["baseline"][0]["name"] == NAME || Instant::now() > until {
            break (status, code);
        }
    };
    unsigned(&status, code, "uncertain")?;
    let before = agent.stop()?;

    // While no agent ran.
    fs::write(&conflist, CONFLIST.replace("istio-cni", "nothing"))?;
    let mut agent = Agent::start(&home, before.len() as u64 + 1)?;
    let found = agent.find("the violation", |record| record["kind"] == "violation.opened")?;
    ensure!(found["violation"] == "content" && found["object"]["baseline"] == NAME, "{}", told_of([&found]));
    let path = found["object"]["path"].as_str().unwrap_or_default();
    ensure!(path.ends_with("/etc/cni/net.d/10-node.conflist"), "{path}");
    let (status, code) = agent.status()?;
    unsigned(&status, code, "violated")?;

    // Put right, reviewed and signed: from then on it is a baseline like any other.
    fs::write(&conflist, CONFLIST)?;
    // Whoever puts it right writes to it too. What is looked at only once it is signed would stay open: that was judged by what is signed.
    let put_right = agent.find("what put it right", |record| {
        record["kind"] == "violation.opened" && record["violation"] == "reverted"
    })?;
    let statement = home.dir.join("work/proposed.json");
    let mut propose = Command::new(meshseal());
    propose.args(["propose", "--name", "release", "-o"]).arg(&statement);
    told(propose.arg("--socket").arg(home.socket()))?;
    home.offer("release", &home.sign(&statement, Signer::Trusted)?)?;
    agent.reload()?;
    agent.wait("the end of both", |seen| {
        let ended = |one: &Value| {
            seen.iter().any(|record| {
                record["kind"] == "violation.resolved"
                    && record["violation_id"] == one["uid"]
                    && record["resolution"] == "rebaselined"
            })
        };
        ended(&found) && ended(&put_right)
    })?;
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "intact" && code == 0, "{} {}", status["posture"], status["reasons"]);
    ensure!(status["objects"]["first_use"] == 0, "{}", status["objects"]);
    let seen = agent.stop()?;
    let opened = seen.iter().filter(|record| record["kind"] == "violation.opened");
    let kinds: Vec<&str> = opened.filter_map(|record| record["violation"].as_str()).collect();
    ensure!(kinds == ["content", "reverted"], "{kinds:?}: {}", told_of(&seen));
    home.verify_journal()
}
