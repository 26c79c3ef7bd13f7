//! A running agent that takes a directory for its node, on the rung that every user may use.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that a record is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Agent {
    dir: PathBuf,
    child: Child,
    follower: Child,
    lines: Receiver<String>,
    pub(crate) seen: Vec<Value>,
}

impl Agent {
    /// Starts it on the tree `node` in `dir`, with the baseline `b.json` there; waits until it is ready.
    pub(crate) fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("baselines")).unwrap();
        fs::copy(dir.join("b.json"), dir.join("baselines/b.dsse.json")).unwrap();
        let at = dir.display();
        let config = format!(
            "apiVersion: meshseal/v1\nnode: n\nhostRoot: {at}/node\nsensor: {{ rung: inotify }}\nstateDir: {at}/state\n\
             socket: {at}/s\nbaselines:\n  files: [{at}/baselines]\n  trustedKeys: [{at}/key.pub]\n  secretKey: {at}/secret\n"
        );
        fs::write(dir.join("config.yaml"), config).unwrap();
        let meshseal = || Command::new(env!("CARGO_BIN_EXE_meshseal"));
        let log = fs::File::create(dir.join("agent.log")).unwrap();
        let mut child = meshseal()
            .args(["agent", "--config"])
            .arg(dir.join("config.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", fs::read_to_string(dir.join("agent.log")).unwrap());
        let mut follower = meshseal()
            .args(["events", "--format", "json", "--follow", "--since", "1", "--socket"])
            .arg(dir.join("s"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tx, lines) = channel();
        let out = BufReader::new(follower.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
        Self { dir: dir.to_owned(), child, follower, lines, seen: Vec::new() }
    }

    /// The next record that fits, after those that were waited for before.
    pub(crate) fn wait(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            assert!(line.is_ok(), "no {what}: {line:?}: {:#?}", self.seen);
            let record: Value = serde_json::from_str(&line.unwrap()).unwrap();
            self.seen.push(record.clone());
            if fits(&record) {
                return record;
            }
        }
    }

    /// Waits until so many objects were looked at in one go, and all of them were found intact.
    pub(crate) fn verified(&mut self, objects: u64) {
        self.wait(&format!("sweep of {objects}"), |record| {
            record["kind"] == "object.verified" && record["objects"] == objects && record["violated"] == 0
        });
    }

    /// Waits for a violation whose object's path ends so.
    pub(crate) fn violation(&mut self, kind: &str, path: &str) -> Value {
        self.wait(&format!("{kind} of {path}"), |record| {
            let of = record["object"]["path"].as_str().unwrap_or_default();
            record["kind"] == "violation.opened" && record["violation"] == kind && of.ends_with(path)
        })
    }

    /// Posture and counts, as they are now.
    pub(crate) fn status(&self) -> Value {
        let meshseal = Command::new(env!("CARGO_BIN_EXE_meshseal"))
            .args(["status", "--format", "json", "--socket"])
            .arg(self.dir.join("s"))
            .output()
            .unwrap();
        serde_json::from_slice(&meshseal.stdout).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for child in [&mut self.follower, &mut self.child] {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}
