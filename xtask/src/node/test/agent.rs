//! The agent in its pod, asked the way an operator asks: by `kubectl exec`.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cmd;
use crate::node::cluster::Cluster;

/// The agent of the DaemonSet.
pub(super) struct Agent<'a> {
    pub(super) cluster: &'a Cluster,
}

/// What `meshseal status` said, and its exit status as it came through `kubectl exec`.
pub(super) struct Answer {
    pub(super) status: Value,
    pub(super) exit: Option<i32>,
}

impl Agent<'_> {
    /// Runs `meshseal` in the pod. Its exit status is an answer too.
    fn ask(&self, args: &[&str]) -> Result<(String, Option<i32>)> {
        let mut command = self.cluster.kubectl_command();
        command.args(["-n", "meshseal", "exec", "daemonset/meshseal", "--", "meshseal"]).args(args);
        let out = command.output().context("cannot start kubectl")?;
        if out.stdout.is_empty() {
            bail!(
                "{} answers nothing: {}",
                cmd::shown(&command),
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok((String::from_utf8(out.stdout).context("the answer is not UTF-8")?, out.status.code()))
    }

    pub(super) fn status(&self) -> Result<Answer> {
        let (text, exit) = self.ask(&["status", "--format", "json"])?;
        let status =
            serde_json::from_str(&text).with_context(|| format!("`meshseal status` is not JSON: {text}"))?;
        Ok(Answer { status, exit })
    }

    /// The pods of the node, as the agent knows them.
    pub(super) fn pods(&self) -> Result<Value> {
        let (text, _) = self.ask(&["pods", "--format", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("`meshseal pods` is not JSON: {text}"))
    }

    /// Every record of the journal.
    pub(super) fn records(&self) -> Result<Vec<Value>> {
        let (text, _) = self.ask(&["events", "--format", "json"])?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a record is not JSON: {line}")))
            .collect()
    }

    /// Each object with its state.
    pub(super) fn objects(&self) -> Result<Vec<Value>> {
        let (text, _) = self.ask(&["objects", "--format", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("`meshseal objects` is no list: {text}"))
    }

    pub(super) fn violations(&self) -> Result<Vec<Value>> {
        let mut records = self.records()?;
        records.retain(|record| record["kind"] == "violation.opened");
        Ok(records)
    }

    /// What the agent's log says of processes that are called like a lawful writer and were not taken for it.
    pub(super) fn strangers(&self) -> String {
        let logs = self.cluster.kubectl(&["-n", "meshseal", "logs", "daemonset/meshseal"]);
        let logs = logs.unwrap_or_else(|error| format!("{error:#}: no lawful writer can be asked for"));
        logs.lines().filter(|line| line.contains("lawful writer")).collect::<Vec<_>>().join("\n")
    }

    /// What helps to see why a check failed, on stderr.
    pub(super) fn explain(&self) {
        for args in [["status"].as_slice(), &["events", "--format", "json"]] {
            match self.ask(args) {
                Ok((text, _)) => eprintln!("{text}"),
                Err(error) => eprintln!("{error:#}"),
            }
        }
        for args in [
            ["-n", "meshseal", "logs", "daemonset/meshseal", "--tail=60"].as_slice(),
            &["get", "pods", "--all-namespaces", "-o", "wide"],
        ] {
            let told = self.cluster.kubectl(args);
            eprintln!("{}", told.unwrap_or_else(|error| format!("{error:#}")));
        }
    }
}

impl Answer {
    /// The posture, and the exit status that goes with it.
    pub(super) fn is(&self, posture: &str) -> Result<()> {
        let status = &self.status;
        if status["posture"] != posture {
            bail!(
                "the posture is {}, reasons {}, objects {}, violations {}; expected {posture}",
                status["posture"],
                status["reasons"],
                status["objects"],
                status["violations"]
            );
        }
        let exit = match posture {
            "intact" => 0,
            "violated" => 1,
            "uncertain" => 3,
            _ => 4,
        };
        if self.exit != Some(exit) {
            bail!(
                "`meshseal status` ends with {:?} where the posture is {posture}; expected {exit}",
                self.exit
            );
        }
        Ok(())
    }
}
