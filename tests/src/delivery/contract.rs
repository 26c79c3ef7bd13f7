//! What a receiver must have got for a record of the journal, written down once more from the contract and not from the
//! exporter.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use monitor::model::Time;
use serde_json::Value;

use super::kit::Received;

/// Fields with names of the semantic conventions.
const NAMES: &[(&str, &str)] = &[
    ("uid", "log.record.uid"),
    ("object.path", "file.path"),
    ("actor.pid", "thread.id"),
    ("actor.tgid", "process.pid"),
    ("actor.ppid", "process.parent_pid"),
    ("actor.uid", "process.real_user.id"),
    ("actor.exe", "process.executable.path"),
    ("actor.cmdline", "process.command_line"),
    ("actor.start_time", "process.creation.time"),
    ("actor.cgroup", "process.linux.cgroup"),
    ("target.namespace", "k8s.namespace.name"),
    ("target.pod", "k8s.pod.name"),
    ("target.pod_uid", "k8s.pod.uid"),
    ("target.container", "k8s.container.name"),
    ("target.image", "container.image.name"),
];

fn walk(path: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if below != "time" {
                    walk(&below, value, out);
                }
            }
        }
        _ => {
            if matches!(path, "actual.sha256" | "new.sha256") {
                out.insert("file.hash.sha256".to_owned(), value.clone());
            }
            let known = NAMES.iter().find(|(field, _)| *field == path).map(|(_, name)| (*name).to_owned());
            out.insert(known.unwrap_or_else(|| format!("meshseal.{path}")), value.clone());
        }
    }
}

/// Checks one received record, whole, against the journal's.
pub(super) fn same(received: &Received, record: &Value) -> Result<()> {
    let word = |name: &str| record[name].as_str().with_context(|| format!("no {name}: {record}"));
    let event = format!("meshseal.{}", word("kind")?);
    ensure!(received.event_name == event, "EventName {:?}, expected {event}", received.event_name);
    let mut expected = BTreeMap::from([("otel.event.name".to_owned(), Value::from(event))]);
    walk("", record, &mut expected);
    let got: BTreeMap<String, Value> = received.attributes.iter().cloned().collect();
    ensure!(got.len() == received.attributes.len(), "an attribute came twice: {:?}", received.attributes);
    for (name, value) in &expected {
        ensure!(got.get(name) == Some(value), "{name} is {:?}, expected {value}", got.get(name));
    }
    ensure!(got == expected, "more attributes than expected: {got:?}, expected {expected:?}");

    let number = match word("severity")? {
        "info" => 9,
        "low" => 12,
        "medium" => 14,
        "high" => 17,
        "critical" => 20,
        other => anyhow::bail!("severity {other}"),
    };
    ensure!(received.severity_number == number, "severity {}, expected {number}", received.severity_number);
    ensure!(received.severity_text == record["severity"], "severity {:?}", received.severity_text);
    let time = Time::parse(word("time")?).map_err(|e| anyhow::anyhow!("{e}"))?;
    ensure!(i128::from(received.time) == i128::from(time.as_nanos()), "Timestamp {}", received.time);
    ensure!(received.observed >= received.time, "observed {} before {}", received.observed, received.time);
    let body = received.body.as_str().unwrap_or_default();
    ensure!(!body.is_empty() && !body.contains('\n'), "the body is no sentence: {body:?}");
    resource(received, word("node")?)
}

/// The resource is the agent's, and no pod's.
fn resource(received: &Received, node: &str) -> Result<()> {
    let got: BTreeMap<&str, &Value> =
        received.resource.iter().map(|(key, value)| (key.as_str(), value)).collect();
    ensure!(got.get("service.name") == Some(&&Value::from("meshseal")), "service.name: {got:?}");
    ensure!(got.get("k8s.node.name") == Some(&&Value::from(node)), "k8s.node.name: {got:?}");
    for name in ["service.version", "service.instance.id"] {
        ensure!(got.get(name).and_then(|v| v.as_str()).is_some_and(|v| !v.is_empty()), "{name}: {got:?}");
    }
    let pod = got.keys().find(|key| key.starts_with("k8s.pod") || key.starts_with("container."));
    ensure!(pod.is_none(), "the resource names {pod:?}");
    ensure!(received.scope == "meshseal", "scope {:?}", received.scope);
    Ok(())
}
