//! Objects of Secrets, which are compared under the cluster's key.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use serde_json::json;

use super::world::{places, scratch};
use crate::agent::{Agent, Home, Signer, told_of};

/// As the packaged DaemonSet has it: the key is a file in the volume of an optional Kubernetes Secret, which may come after the agent.
pub(super) fn a_secret_waits_for_the_clusters_key() -> Result<()> {
    let scratch = scratch(&places()[0])?;
    let volume = scratch.path().join("kubernetes.io~secret/cacerts");
    let given = scratch.path().join("cluster-key");
    for dir in [&volume, &given] {
        fs::create_dir_all(dir)?;
    }
    let (secret, other, key) = (volume.join("key"), scratch.path().join("other"), scratch.path().join("key"));
    fs::write(&secret, "no key")?;
    fs::write(&other, "no secret")?;
    fs::write(&key, [7; 32])?;
    let home = Home::new(scratch.path().join("home"))?;
    home.configure(&format!("  secretKey: {}\n", given.display()))?;
    let statement =
        home.seal("secret", 1, &[&secret, &other], &["--secret-key", &key.display().to_string()])?;
    home.offer("secret", &home.sign(&statement, Signer::Trusted)?)?;

    // It is ready, and says which object is not verified, and why.
    let mut agent = Agent::start(&home, 1)?;
    let path = secret.display().to_string();
    let gap = agent.find("what cannot be compared", |record| record["kind"] == "gap")?;
    ensure!(gap["at"] == "hash" && gap["objects"][0] == path.as_str(), "{}", told_of([&gap]));
    let why = gap["reason"].as_str().unwrap_or_default();
    ensure!(why.ends_with("the cluster's secret key is not given"), "{why}");
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "uncertain" && code == 3, "{} {}", status["posture"], status["reasons"]);

    // As the kubelet publishes it.
    let dir = given.join("..2026_01_01_00_00_00.1");
    fs::create_dir(&dir)?;
    fs::copy(&key, dir.join("cluster.key"))?;
    symlink(&dir, given.join("..data"))?;
    symlink("..data/cluster.key", given.join("cluster.key"))?;
    let verified = agent.find("all is verified with the key", |record| {
        record["kind"] == "object.verified" && record["reason"] == "the cluster's key for secrets changed"
    })?;
    ensure!(verified["violated"] == 0, "{verified}");
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "intact" && code == 0, "{} {}", status["posture"], status["reasons"]);

    fs::write(&secret, "tampered")?;
    let opened = agent.find("the violation", |record| record["kind"] == "violation.opened")?;
    ensure!(
        opened["violation"] == "content" && opened["object"]["path"] == path.as_str(),
        "{}",
        told_of([&opened])
    );
    // No hash: it would tell whoever guesses that the guess is right.
    let states = (&opened["expected"], &opened["actual"]);
    let whole = (&json!({"content": "equal", "size": "6"}), &json!({"content": "differs", "size": "8"}));
    ensure!(states == whole, "{states:?}");
    agent.stop().map(drop)
}
