//! Each record as one sentence for people: what `events` prints and what receivers show as the body.
//!
//! Names and command lines in it are as others chose them: whoever prints it escapes control characters.

use super::{Actor, ObjectRef, Operation, RecordBody, Resolution, ViolationKind};

impl RecordBody {
    /// What happened, in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::AgentStarted { version, rung, resumed_after, .. } => {
                let after =
                    if resumed_after.is_empty() { String::new() } else { format!(" after {resumed_after}") };
                format!("Agent {version} started on rung {}{after}", word(rung))
            }
            Self::AgentStopped { reason } => format!("Agent stopped: {reason}"),
            Self::SensorChanged(sensor) => {
                // The reasons stand in the record; one line has room for the families.
                let mut families: Vec<&str> = Vec::new();
                for entry in &sensor.families_blind {
                    let family = entry.split_once(':').map_or(entry.as_str(), |(family, _)| family);
                    if !families.contains(&family) {
                        families.push(family);
                    }
                }
                let blind = if families.is_empty() {
                    String::new()
                } else {
                    format!(", partly blind to {}", families.join(", "))
                };
                format!(
                    "Sensor on rung {} with {} hooks{blind}: {}",
                    word(&sensor.rung),
                    sensor.hooks.len(),
                    sensor.reason
                )
            }
            Self::ModeChanged { from, to } => format!("Mode changed from {from} to {to}"),
            Self::Breakglass { .. } => "Enforcement was lifted by a signed statement".to_owned(),
            Self::BaselineAccepted(baseline) => {
                let objects =
                    baseline.objects.map_or_else(String::new, |count| format!(" with {count} objects"));
                format!("Baseline {} accepted{objects}", named(baseline))
            }
            Self::BaselineRejected(baseline) => {
                let reason = baseline.reason.as_deref().unwrap_or("no reason given");
                format!("Baseline {} rejected: {reason}", named(baseline))
            }
            Self::BaselineExpired(baseline) => format!("Baseline {} expired", named(baseline)),
            Self::ChangeAccepted(change) => {
                let by = by(change.actor.as_ref(), change.actor_unknown_because.as_deref());
                format!("Lawful {} of {} by {by}", word(&change.operation), change.object.path)
            }
            Self::RotationAccepted(change) => {
                let by = by(change.actor.as_ref(), change.actor_unknown_because.as_deref());
                format!("Lawful rotation of {} by {by}", change.object.path)
            }
            Self::ObjectVerified { reason, objects, intact, violated, duration_ms } => {
                format!(
                    "{objects} objects verified in {duration_ms} ms ({reason}): {intact} intact, {violated} violated"
                )
            }
            Self::ObjectUnsealed { objects, total, truncated } => {
                let first = objects.first().map_or_else(String::new, |path| format!(", first {path}"));
                let more = if *truncated { "; there are more mesh files than are listed" } else { "" };
                format!("{total} mesh files were found that are in no baseline{first}{more}")
            }
            Self::Attempt(attempt) => {
                let by = by(attempt.actor.as_ref(), attempt.actor_unknown_because.as_deref());
                let path = &attempt.object.path;
                format!(
                    "{} tried {} on {path}{}; nothing changed",
                    by,
                    word(&attempt.operation),
                    times(attempt.count)
                )
            }
            Self::ViolationOpened(opened) => {
                let by = by(opened.actor.as_ref(), opened.actor_unknown_because.as_deref());
                violation(opened.violation, &opened.object, opened.operation, &by, opened.count)
            }
            Self::ViolationUpdated(update) => {
                let now = &update.now;
                let by = by(now.actor.as_ref(), now.actor_unknown_because.as_deref());
                let over = !now.actual.is_empty() && now.actual == now.expected;
                let word = if over { "No longer" } else { "Still" };
                format!("{word}: {}", violation(now.violation, &now.object, now.operation, &by, now.count))
            }
            Self::ViolationResolved(resolved) => {
                if let Some(by) = &resolved.acknowledged {
                    return format!(
                        "{} ({}) was acknowledged by uid {} (pid {}): {}",
                        resolved.object.path,
                        word(&resolved.violation),
                        by.uid,
                        by.pid,
                        by.reason
                    );
                }
                format!(
                    "{} is {} ({})",
                    resolved.object.path,
                    ended(resolved.resolution),
                    word(&resolved.violation)
                )
            }
            Self::Gap(gap) => {
                let lost =
                    if gap.lost > 0 { format!("{} events lost", gap.lost) } else { "Events lost".to_owned() };
                let end = if gap.reconciled { "; all concerned was verified again" } else { "" };
                format!("{lost} at {}: {}{end}", gap.at, gap.reason)
            }
            Self::Checkpoint(checkpoint) => {
                format!("Checkpoint over {} records signed", checkpoint.tree_size)
            }
            Self::DeliveryFailed { endpoint, reason, oldest_unsent_seq, .. } => {
                format!("Delivery to {endpoint} fails since record {oldest_unsent_seq}: {reason}")
            }
            Self::ConfigRejected { file, reason } => format!("Config {file} rejected: {reason}"),
            Self::WriterChanged(change) => {
                format!("Another executable is the {}: {}", change.writer, by(Some(&change.actor), None))
            }
            Self::ConfigChanged { file, changes } => {
                format!("Config {file} taken up: {}", changes.join(", "))
            }
            Self::Summary(summary) => {
                let each: Vec<String> =
                    summary.counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
                format!("Records {} to {}: {}", summary.from_seq, summary.to_seq, each.join(", "))
            }
        }
    }
}

fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn named(baseline: &super::BaselineBody) -> String {
    match (&baseline.name, baseline.revision) {
        (Some(name), Some(revision)) => format!("{name} revision {revision}"),
        (Some(name), None) => name.clone(),
        _ => baseline.file.clone(),
    }
}

fn by(actor: Option<&Actor>, because: Option<&str>) -> String {
    match actor {
        Some(actor) => {
            let name = actor.exe.as_ref().map_or_else(|| actor.comm.clone(), ToString::to_string);
            let pod = actor.pod.as_ref().map_or_else(String::new, |pod| {
                let name = pod.name.as_deref().unwrap_or(&pod.uid);
                format!(", pod {}/{name}", pod.namespace.as_deref().unwrap_or("?"))
            });
            format!("{name} (pid {}, uid {}{pod})", actor.tgid, actor.uid)
        }
        None => match because {
            Some(because) => format!("an unknown process ({because})"),
            None => "an unknown process".to_owned(),
        },
    }
}

fn times(count: u64) -> String {
    if count > 1 { format!(" {count} times") } else { String::new() }
}

fn violation(kind: ViolationKind, object: &ObjectRef, operation: Operation, by: &str, count: u64) -> String {
    let what = match kind {
        ViolationKind::Content => "has other content than sealed",
        ViolationKind::Attributes => "has other attributes than sealed",
        ViolationKind::Removed => "was removed",
        ViolationKind::Renamed => "was moved away",
        ViolationKind::Replaced => "was replaced",
        ViolationKind::Reverted => "was changed and put back",
        ViolationKind::Unexpected => "is not sealed, in a closed directory",
        ViolationKind::Linked => "got another name",
        ViolationKind::MountedOver => "has something mounted over it",
        ViolationKind::Structure => "does not have its publisher's shape",
        ViolationKind::Identity => "has another identity than sealed",
        ViolationKind::Executed => "runs and is not sealed",
        ViolationKind::Memory => "had its memory written",
        ViolationKind::HeldHandle => "is held open for writing since before the watch",
        ViolationKind::Itself => "belongs to the monitor itself and was touched",
    };
    format!("{} {what}: {}{} by {by}", object.path, word(&operation), times(count))
}

const fn ended(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Redeployed => "right again: redeployed",
        Resolution::Rebaselined => "right by a newer baseline",
        Resolution::Acknowledged => "acknowledged",
        Resolution::Restored => "right again: restored, and nobody opened it meanwhile",
    }
}
