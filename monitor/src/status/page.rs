//! `/`: the status as one page, with nothing loaded from anywhere and nothing executed.

use std::fmt::Write as _;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use super::{Posture, StatusReport, ViolationEntry, ViolationState};
use crate::model::{Coverage, State, Time};

const STYLE: &str = include_str!("page.css");
/// Newest first; the whole list is in `/v1/violations`.
const MAX_ROWS: usize = 200;

/// Headers that keep the page what it is, even if a name in it were to get past the escaping.
pub(super) fn headers() -> [(&'static str, String); 3] {
    let style = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    [
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff".to_owned()),
        ("referrer-policy", "no-referrer".to_owned()),
    ]
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

fn fact(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
}

/// The page: what stands first is what a responder asks first.
pub(super) fn render(report: &StatusReport, violations: &[ViolationEntry]) -> String {
    let node = escape(&report.node);
    let posture = report.posture.as_str();
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"15\"><title>{posture} · {node}</title><style>{STYLE}</style></head>\
         <body><header class=\"{posture}\"><h1>{posture}</h1><p>{node} · since {}</p><p>{}</p></header><main>",
        seconds(report.since),
        escape(&why(report)),
    );
    out.push_str("<dl>");
    let objects = &report.objects;
    fact(&mut out, "Objects intact", &format!("{} of {}", objects.intact, objects.total));
    let wrong = format!("{} violated, {} not verified", objects.violated, objects.unverified);
    fact(&mut out, "Objects otherwise", &wrong);
    let more = if objects.unsealed_truncated { ", and more that are not listed" } else { "" };
    let unsealed = format!("{}{more}", objects.unsealed);
    fact(&mut out, "Mesh files in no baseline", &unsealed);
    let counted = format!("{} open, {} in all", report.violations.open, report.violations.total);
    fact(&mut out, "Violations", &counted);
    let loss = format!("{} events, {} not made good", report.loss.events, report.loss.unreconciled);
    fact(&mut out, "Lost", &loss);
    let coverage = if report.coverage == Coverage::Full { "full" } else { "reduced" };
    fact(&mut out, "Sensor", &format!("{}, coverage {coverage}", word(&report.sensor.rung)));
    fact(&mut out, "Agent", &format!("{}, mode {}", report.agent.version, report.mode));
    fact(&mut out, "Agent started", &seconds(report.agent.started));
    out.push_str("</dl>");
    render_violations(&mut out, violations);
    render_sensor(&mut out, report);
    render_export(&mut out, report);
    render_baselines(&mut out, report);
    let journal = &report.journal;
    out.push_str("<section><h2>Journal</h2><dl>");
    fact(&mut out, "Last record", &journal.seq.to_string());
    fact(&mut out, "Signed up to record", &journal.tree_size.to_string());
    fact(&mut out, "Root of the signed tree", &journal.root);
    out.push_str("</dl></section></main></body></html>\n");
    out
}

fn render_sensor(out: &mut String, report: &StatusReport) {
    out.push_str("<section><h2>Blind to</h2>");
    let dead = report
        .sensor
        .hooks
        .iter()
        .filter(|hook| !hook.live)
        .map(|hook| format!("hook {} is dead", hook.name));
    list(out, report.sensor.blind_to.iter().cloned().chain(dead), "Nothing this rung can see is left out.");
    out.push_str("</section>");
}

fn render_export(out: &mut String, report: &StatusReport) {
    out.push_str("<section><h2>Export</h2>");
    if report.export.is_empty() {
        out.push_str("<p>No receiver: records stay in the journal.</p>");
    }
    for export in &report.export {
        out.push_str("<dl>");
        fact(out, "Receiver", &export.endpoint);
        let behind = report.journal.seq.saturating_sub(export.acknowledged_seq);
        fact(out, "Acknowledged up to record", &format!("{} ({behind} behind)", export.acknowledged_seq));
        fact(out, "Oldest record not acknowledged", &format!("{} s", export.oldest_unsent_age_s));
        if let Some(error) = &export.last_error {
            fact(out, "Fails", error);
        }
        out.push_str("</dl>");
    }
    out.push_str("</section>");
}

fn render_baselines(out: &mut String, report: &StatusReport) {
    out.push_str("<section><h2>Baselines in force</h2>");
    let lines = report.baseline.iter().map(|baseline| {
        let until =
            baseline.not_after.map_or_else(|| "no end".to_owned(), |end| format!("until {}", seconds(end)));
        let (name, revision) = (&baseline.name, baseline.revision);
        format!("{name} revision {revision}, {until}, signed by {}", baseline.signers.join(", "))
    });
    list(out, lines, "None: nothing is judged.");
    out.push_str("</section>");
}

fn list(out: &mut String, lines: impl Iterator<Item = String>, none: &str) {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        let _ = write!(out, "<p>{}</p>", escape(none));
        return;
    }
    out.push_str("<ul>");
    for line in lines {
        let _ = write!(out, "<li>{}", escape(&line));
    }
    out.push_str("</ul>");
}

/// Whole seconds are enough for people.
fn seconds(time: Time) -> String {
    let text = time.to_string();
    text.split_once('.').map_or_else(|| text.clone(), |(whole, _)| format!("{whole}Z"))
}

fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value.as_ref().and_then(|value| value.as_str()).unwrap_or_default().to_owned()
}

fn why(report: &StatusReport) -> String {
    match (report.posture, report.reasons.is_empty()) {
        (Posture::Intact, _) => "All is as sealed.".to_owned(),
        (_, true) => String::new(),
        (_, false) => report.reasons.join(", ").replace('_', " "),
    }
}

fn render_violations(out: &mut String, violations: &[ViolationEntry]) {
    out.push_str("<section><h2>Violations</h2>");
    if violations.is_empty() {
        out.push_str("<p>None.</p></section>");
        return;
    }
    let newest = |state| violations.iter().rev().filter(move |entry| entry.state == state);
    let rows = newest(ViolationState::Open).chain(newest(ViolationState::Resolved));
    for entry in rows.take(MAX_ROWS) {
        render_violation(out, entry);
    }
    if violations.len() > MAX_ROWS {
        let _ = write!(out, "<p>{} more are in /v1/violations.</p>", violations.len() - MAX_ROWS);
    }
    out.push_str("</section>");
}

/// One violation, folded: what, where, who and when at a glance, the rest when it is opened.
fn render_violation(out: &mut String, entry: &ViolationEntry) {
    let body = &entry.body;
    let open = entry.state == ViolationState::Open;
    let state =
        if open { "open".to_owned() } else { entry.resolution.as_ref().map(word).unwrap_or_default() };
    let class = if open { "open" } else { "resolved" };
    let by = body.actor.as_ref().map_or_else(|| "unknown".to_owned(), |actor| actor.comm.clone());
    let _ = write!(
        out,
        "<details class=\"{class}\"><summary><span class=\"{}\">{}</span> <b>{}</b> <code>{}</code> <i>{} by {}, {}</i></summary><dl>",
        entry.severity.as_str(),
        escape(&state),
        escape(&word(&body.violation)),
        escape(&body.object.path.to_string()),
        escape(&word(&body.operation)),
        escape(&by),
        seconds(entry.time),
    );
    fact(out, "Violation", &entry.uid);
    fact(out, "Severity", entry.severity.as_str());
    fact(
        out,
        "Seen",
        &match body.count {
            1 => format!("once, {}", seconds(body.first_time)),
            count => format!("{count} times, {} to {}", seconds(body.first_time), seconds(body.last_time)),
        },
    );
    if let Some(actor) = &body.actor {
        let exe = actor.exe.as_ref().map_or_else(|| actor.comm.clone(), ToString::to_string);
        fact(out, "Actor", &format!("{exe}, pid {}, parent {}, uid {}", actor.tgid, actor.ppid, actor.uid));
        fact(out, "Command line", &actor.cmdline);
        if let Some(pod) = &actor.pod {
            let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
            fact(out, "Actor's pod", &format!("{}/{} ({})", part(&pod.namespace), part(&pod.name), pod.uid));
        }
        if let Some(cgroup) = &actor.cgroup {
            fact(out, "Actor's cgroup", cgroup);
        }
    } else {
        fact(out, "Actor", body.actor_unknown_because.as_deref().unwrap_or("unknown"));
    }
    if let Some(target) = &body.target {
        let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        fact(out, "Belongs to pod", &format!("{}/{}", part(&target.namespace), part(&target.pod)));
        if let Some(container) = &target.container {
            fact(out, "Container", container);
        }
    }
    if let (Some(baseline), Some(revision)) = (&body.object.baseline, body.object.revision) {
        fact(out, "Sealed by", &format!("{baseline} revision {revision}"));
    }
    if !body.attack.is_empty() {
        fact(out, "ATT&CK", &body.attack.join(", "));
    }
    if let Some(detail) = &body.detail {
        fact(out, "Detail", detail);
    }
    out.push_str("</dl>");
    let keys: std::collections::BTreeSet<_> = body.expected.keys().chain(body.actual.keys()).collect();
    if !keys.is_empty() {
        out.push_str("<table><thead><tr><th>Differs<th>As sealed<th>As found</tr></thead><tbody>");
        for key in keys {
            let cell = |state: &State| escape(state.get(key).map_or("-", String::as_str));
            let (sealed, found) = (cell(&body.expected), cell(&body.actual));
            let _ =
                write!(out, "<tr><td>{}<td><code>{sealed}</code><td><code>{found}</code></tr>", escape(key));
        }
        out.push_str("</tbody></table>");
    }
    out.push_str("</details>");
}
