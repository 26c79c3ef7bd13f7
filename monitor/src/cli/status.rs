//! `meshseal status`: the posture, also as exit status.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::ask::{self, Socket};
use super::{Failure, Format, output};
use crate::model::{Coverage, Time};
use crate::status::{KubernetesState, KubernetesStatus, Posture, StatusReport};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let (report, answer) =
        ask::ask(&args.socket, async |mut agent| Ok(agent.get_json::<StatusReport>("/v1/status").await?))?;
    match format {
        Format::Json => output::line(ask::text(&answer)?)?,
        Format::Text => output::text(&render(&report, Time::now()))?,
    }
    Ok(ExitCode::from(report.posture.exit_status()))
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<11} {}", output::one_line(value));
}

/// The Kubernetes API, and what is unknown without it.
fn kubernetes(out: &mut String, kubernetes: &KubernetesStatus, now: Time) {
    let mut text = kubernetes.state.as_str().to_owned();
    match (kubernetes.state, &kubernetes.off_because, &kubernetes.fault) {
        (KubernetesState::Off, Some(why), _) => text = format!("{text}: {why}"),
        (KubernetesState::Off, ..) => {}
        (KubernetesState::Connected, ..) => text = format!("{text}, {} pods", kubernetes.pods),
        (_, _, Some(fault)) => {
            let since = output::ago(kubernetes.since, now);
            text = format!("{text} since {since}: {}: {}", fault.kind, fault.message);
        }
        _ => {}
    }
    line(out, "kubernetes", &text);
    if kubernetes.state != KubernetesState::Off {
        for unknown in &kubernetes.unknown {
            line(out, "  unknown", unknown);
        }
    }
}

/// For people: the answer first, then what it rests on.
fn render(report: &StatusReport, now: Time) -> String {
    let mut out = String::new();
    let headline = report.posture.as_str().to_uppercase();
    let reasons =
        if report.reasons.is_empty() { String::new() } else { format!("  {}", report.reasons.join(", ")) };
    let _ = writeln!(out, "{}", output::one_line(&format!("{headline}{reasons}")));
    line(&mut out, "node", &report.node);
    line(&mut out, "since", &format!("{} ({})", report.since, output::ago(report.since, now)));
    let objects = &report.objects;
    let mut text = format!("{} sealed: {} intact", objects.total, objects.intact);
    for (count, state) in [
        (objects.violated, "violated"),
        (objects.unverified, "unverified"),
        (objects.superseded, "superseded"),
        (objects.unsealed, "not sealed"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {state}");
        }
    }
    if objects.unsealed_truncated {
        text.push_str(", more mesh files than are listed");
    }
    line(&mut out, "objects", &text);
    line(
        &mut out,
        "violations",
        &format!("{} open, {} ever", report.violations.open, report.violations.total),
    );
    let coverage = if report.coverage == Coverage::Full { "full" } else { "reduced" };
    let live = report.sensor.hooks.iter().filter(|hook| hook.live).count();
    let hooks = report.sensor.hooks.len();
    let rung = output::word(&report.sensor.rung);
    line(&mut out, "sensor", &format!("{rung}, coverage {coverage}, {live} of {hooks} hooks live"));
    for blind in &report.sensor.blind_to {
        line(&mut out, "  blind to", blind);
    }
    for hook in report.sensor.hooks.iter().filter(|hook| !hook.live) {
        line(&mut out, "  dead", &hook.name);
    }
    for (hook, lapse) in report.sensor.hooks.iter().filter_map(|hook| hook.lapse.map(|lapse| (hook, lapse))) {
        let dead =
            lapse.dead_since.map_or_else(String::new, |since| format!(", last seen before at {since}"));
        let lives = lapse.live_since;
        line(&mut out, "  was detached", &format!("{}: lives again since {lives}{dead}", hook.name));
    }
    if report.baseline.is_empty() {
        line(&mut out, "baseline", "none accepted (see meshseal propose)");
    }
    for baseline in &report.baseline {
        let until = baseline.not_after.map_or_else(String::new, |end| format!(", until {end}"));
        let signers = baseline.signers.len();
        line(
            &mut out,
            "baseline",
            &format!("{} revision {}, {signers} signer(s){until}", baseline.name, baseline.revision),
        );
    }
    if report.loss.events > 0 || report.loss.unreconciled > 0 {
        line(
            &mut out,
            "loss",
            &format!("{} events, {} unreconciled", report.loss.events, report.loss.unreconciled),
        );
    }
    if report.export.is_empty() {
        line(&mut out, "export", "journal only");
    }
    for export in &report.export {
        let mut text = format!("{}: acknowledged to {}", export.endpoint, export.acknowledged_seq);
        if export.oldest_unsent_age_s > 0 {
            let _ = write!(text, ", oldest unsent {} s", export.oldest_unsent_age_s);
        }
        if let Some(error) = &export.last_error {
            let _ = write!(text, ", last error: {error}");
        }
        line(&mut out, "export", &text);
    }
    kubernetes(&mut out, &report.kubernetes, now);
    line(
        &mut out,
        "journal",
        &format!("record {}, signed tree of {}", report.journal.seq, report.journal.tree_size),
    );
    let ready = if report.agent.ready { "" } else { ", not ready yet" };
    line(
        &mut out,
        "agent",
        &format!("{}, {}, up {}{ready}", report.agent.version, report.mode, {
            output::ago(report.agent.started, now).trim_end_matches(" ago").to_owned()
        }),
    );
    if report.posture == Posture::Violated {
        out.push_str("\nmeshseal violations tells who did what.\n");
    }
    out
}

/// What the fuzzers look at.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(report: &StatusReport, now: Time) -> String {
    render(report, now)
}
