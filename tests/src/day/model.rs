//! What a run must have been told of, by what was done in it: made beside the acts, and never asked of the agent.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::corpus::rung::{on_hooks, told_by};

/// Who acts, as records show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct By {
    pub(super) comm: String,
    pub(super) exe: String,
    /// Uid of its pod.
    pub(super) pod: Option<String>,
}

/// Whose object it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) pod: Option<String>,
    pub(super) mesh: Option<&'static str>,
    pub(super) container: Option<&'static str>,
}

/// A violation, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// Which act of the run.
    pub(super) act: usize,
    pub(super) violation: &'static str,
    pub(super) path: String,
    pub(super) operation: String,
    pub(super) by: By,
    pub(super) of: Of,
    pub(super) attack: Vec<&'static str>,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let (by, of) = (&self.by, &self.of);
        write!(
            f,
            "{} of {} by {}: {} ({}) of pod {}; target pod {}, mesh {}, container {}; {}",
            self.violation,
            self.path,
            self.operation,
            by.comm,
            by.exe,
            or(by.pod.as_deref()),
            or(of.pod.as_deref()),
            or(of.mesh),
            or(of.container),
            self.attack.join(",")
        )
    }
}

/// The same words, of a record.
fn told(record: &Value) -> String {
    let at = |path: &str| record.pointer(path).and_then(Value::as_str).unwrap_or("-").to_owned();
    let attack = record["attack"].as_array().map(Vec::as_slice).unwrap_or_default();
    let attack: Vec<&str> = attack.iter().filter_map(Value::as_str).collect();
    format!(
        "{} of {} by {}: {} ({}) of pod {}; target pod {}, mesh {}, container {}; {}",
        at("/violation"),
        at("/object/path"),
        at("/operation"),
        at("/actor/comm"),
        at("/actor/exe"),
        at("/actor/pod/uid"),
        at("/target/pod_uid"),
        at("/target/mesh"),
        at("/target/container"),
        attack.join(",")
    )
}

/// What a run adds up to.
#[derive(Debug)]
pub(super) struct Model {
    rung: String,
    expected: Vec<Expected>,
    /// Changes and rotations that were lawful: kind and object → how many.
    accepted: BTreeMap<(&'static str, String), usize>,
    /// Upgrades of the kubelet.
    pub(super) kubelets: usize,
    /// What was done and cannot be seen on this rung, or on any: act and why.
    pub(super) unseen: Vec<String>,
}

impl Model {
    pub(super) fn new(rung: &str) -> Self {
        Self {
            rung: rung.to_owned(),
            expected: Vec::new(),
            accepted: BTreeMap::new(),
            kubelets: 0,
            unseen: Vec::new(),
        }
    }

    pub(super) fn on_hooks(&self) -> bool {
        on_hooks(&self.rung)
    }

    /// A violation is to be told, as this rung tells it.
    pub(super) fn expect(&mut self, mut one: Expected) {
        one.operation = told_by(&self.rung, &one.operation).to_owned();
        self.expected.push(one);
    }

    /// A lawful change is to be told of this object; the answer is how many there are then.
    pub(super) fn accept(&mut self, kind: &'static str, path: &Path) -> usize {
        let count = self.accepted.entry((kind, path.display().to_string())).or_default();
        *count += 1;
        *count
    }

    /// The violations of one act.
    pub(super) fn of_act(&self, act: usize) -> impl Iterator<Item = &Expected> {
        self.expected.iter().filter(move |one| one.act == act)
    }

    /// Paths of violations at or below a directory.
    pub(super) fn below(&self, dir: &Path) -> Vec<(String, &'static str)> {
        let below = |one: &&Expected| Path::new(&one.path).starts_with(dir);
        self.expected.iter().filter(below).map(|one| (one.path.clone(), one.violation)).collect()
    }

    /// All that was told, both ways: nothing is missing, and nothing else is there.
    pub(super) fn compare(&self, records: &[Value], log: &[String]) -> Result<()> {
        let of = |kind: &'static str| records.iter().filter(move |record| record["kind"] == kind);
        let mut wrong = Vec::new();
        let mut missing: Vec<&Expected> = self.expected.iter().collect();
        for record in of("violation.opened") {
            let told = told(record);
            match missing.iter().position(|one| one.to_string() == told) {
                Some(at) => drop(missing.remove(at)),
                None => {
                    let what =
                        format!("told, and not expected: #{} {told}; {}", record["seq"], record["detail"]);
                    let pod = record["target"]["pod_uid"].as_str().unwrap_or("-");
                    let acts: Vec<&str> =
                        log.iter().filter(|act| act.ends_with(pod)).map(String::as_str).collect();
                    wrong.push(format!("{what} at {}; {}", record["time"], acts.join(", ")));
                }
            }
        }
        wrong.extend(missing.iter().map(|one| format!("expected of act {}, and not told: {one}", one.act)));
        let mut accepted = BTreeMap::new();
        for kind in ["change.accepted", "rotation.accepted"] {
            for record in of(kind) {
                let path = record["object"]["path"].as_str().unwrap_or_default().to_owned();
                *accepted.entry((kind, path)).or_default() += 1;
            }
        }
        for (what, count) in &self.accepted {
            let told = accepted.remove(what).unwrap_or(0);
            if told != *count {
                wrong.push(format!("{} of {}: {told} times, expected {count}", what.0, what.1));
            }
        }
        wrong.extend(accepted.iter().map(|(what, count)| format!("{} of {}, {count} times", what.0, what.1)));
        let kubelets: Vec<&Value> = of("writer.changed").collect();
        let upgraded = |record: &&Value| {
            let (old, new) = (&record["old"], &record["new"]);
            record["writer"] == "kubelet" && old["exe"] == new["exe"] && old["sha256"] != new["sha256"]
        };
        if kubelets.len() != self.kubelets || !kubelets.iter().all(upgraded) {
            wrong.push(format!("{} upgrades of the kubelet, and told are {kubelets:?}", self.kubelets));
        }
        wrong.extend(
            of("gap").filter(|record| record["at"] != "agent").map(|record| format!("a gap: {record}")),
        );
        ensure!(wrong.is_empty(), "{}", wrong.join("\n  "));
        Ok(())
    }
}
