//! `/metrics`: the status in numbers, in Prometheus' text format.

use std::fmt::Write as _;

use super::{KubernetesState, KubernetesStatus, Posture, StatusReport};
use crate::model::Coverage;

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.value(name, &[], value);
    }
}

/// The report in numbers.
pub(super) fn render(report: &StatusReport) -> String {
    let mut text = Text(String::new());
    text.head("meshseal_posture", "gauge", "1 for the node's posture, 0 for the others.");
    for posture in [Posture::Violated, Posture::Blind, Posture::Uncertain, Posture::Intact] {
        let value = u64::from(posture == report.posture);
        text.value("meshseal_posture", &[("posture", posture.as_str())], value);
    }
    let full = u64::from(report.coverage == Coverage::Full);
    text.single("meshseal_coverage_full", "gauge", "1 if everything is seen.", full);
    text.head("meshseal_hook_live", "gauge", "1 if the hook is attached and its canary was seen.");
    for hook in &report.sensor.hooks {
        let labels = [("hook", hook.name.as_str()), ("family", hook.family.as_str())];
        text.value("meshseal_hook_live", &labels, u64::from(hook.live));
    }
    text.head("meshseal_objects", "gauge", "Objects by state.");
    let objects = &report.objects;
    for (state, count) in [
        ("intact", objects.intact),
        ("violated", objects.violated),
        ("unverified", objects.unverified),
        ("unsealed", objects.unsealed),
        ("superseded", objects.superseded),
    ] {
        text.value("meshseal_objects", &[("state", state)], count);
    }
    let help = "1 if there are more unsealed mesh files than are counted.";
    text.single("meshseal_unsealed_truncated", "gauge", help, u64::from(objects.unsealed_truncated));
    let violations = &report.violations;
    text.single("meshseal_violations_open", "gauge", "Open violations.", violations.open);
    text.single("meshseal_violations_total", "counter", "Violations ever opened.", violations.total);
    text.single("meshseal_lost_events_total", "counter", "Events lost.", report.loss.events);
    let help = "Losses not reconciled yet.";
    text.single("meshseal_loss_unreconciled", "gauge", help, report.loss.unreconciled);
    let watched = &report.sensor.watched;
    let help = "Objects, what lies in them, and directories above them, that are watched.";
    text.single("meshseal_watched_slots", "gauge", help, watched.slots);
    text.single("meshseal_watched_inodes", "gauge", "Inodes that are watched.", watched.inodes);
    text.single("meshseal_journal_seq", "counter", "Last durable record.", report.journal.seq);
    let help = "Leaves covered by the last checkpoint.";
    text.single("meshseal_journal_tree_size", "counter", help, report.journal.tree_size);
    let help = "All records up to here are acknowledged.";
    text.head("meshseal_export_acknowledged_seq", "counter", help);
    for export in &report.export {
        let labels = [("endpoint", export.endpoint.as_str())];
        text.value("meshseal_export_acknowledged_seq", &labels, export.acknowledged_seq);
    }
    let help = "Age of the oldest record not acknowledged.";
    text.head("meshseal_export_oldest_unsent_age_seconds", "gauge", help);
    for export in &report.export {
        let labels = [("endpoint", export.endpoint.as_str())];
        text.value("meshseal_export_oldest_unsent_age_seconds", &labels, export.oldest_unsent_age_s);
    }
    kubernetes(&mut text, &report.kubernetes);
    text.head("meshseal_build_info", "gauge", "The agent.");
    text.value("meshseal_build_info", &[("version", &report.agent.version), ("node", &report.node)], 1);
    text.0
}

fn kubernetes(text: &mut Text, kubernetes: &KubernetesStatus) {
    use KubernetesState::{Connected, Connecting, Lost, Off};

    let help = "1 for whether the Kubernetes API tells, 0 for the others.";
    text.head("meshseal_kubernetes_state", "gauge", help);
    for state in [Off, Connecting, Connected, Lost] {
        let value = u64::from(state == kubernetes.state);
        text.value("meshseal_kubernetes_state", &[("state", state.as_str())], value);
    }
    let help = "Pods that the Kubernetes API has on this node.";
    text.single("meshseal_kubernetes_pods", "gauge", help, kubernetes.pods);
    let help = "Pods of which the Kubernetes API tells what the disk contradicts.";
    text.single("meshseal_kubernetes_contradictory_pods", "gauge", help, kubernetes.contradictory);
    let help = "How often all pods were listed.";
    text.single("meshseal_kubernetes_lists_total", "counter", help, kubernetes.lists);
    if let Some(heard) = kubernetes.last_heard {
        let help = "When the Kubernetes API last said anything.";
        let seconds = u64::try_from(heard.as_nanos() / 1_000_000_000).unwrap_or(0);
        text.single("meshseal_kubernetes_last_heard_timestamp_seconds", "gauge", help, seconds);
    }
}
