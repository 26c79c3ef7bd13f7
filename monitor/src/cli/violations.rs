//! `meshseal violations` and `meshseal violations show ID`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Subcommand;

use super::ask::{self, Socket};
use super::{Failure, Format, output};
use crate::model::{Record, State};
use crate::status::client::Client;
use crate::status::{ViolationEntry, ViolationState, ViolationStory};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tell the story of one violation.
    Show {
        /// Its id, or the beginning of it if that is unique.
        id: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Take note of a violation whose wrong state has passed. Recorded, with who did it; for root alone.
    Acknowledge {
        /// Its id, or the beginning of it if that is unique.
        id: String,
        /// Why it is no matter any more.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        socket: Socket,
    },
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    match &args.what {
        None => list(&args.socket, format),
        Some(What::Show { id, socket }) => show(id, socket, format),
        Some(What::Acknowledge { id, reason, socket }) => acknowledge(id, reason, socket, format),
    }
}

fn list(socket: &Socket, format: Format) -> Result<ExitCode, Failure> {
    let (violations, answer) = ask::ask(socket, async |mut agent| {
        Ok(agent.get_json::<Vec<ViolationEntry>>("/v1/violations").await?)
    })?;
    match format {
        Format::Json => output::line(ask::text(&answer)?)?,
        Format::Text => output::text(&render_list(&violations))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render_list(violations: &[ViolationEntry]) -> String {
    if violations.is_empty() {
        return "no violations\n".to_owned();
    }
    let rows: Vec<Vec<String>> = violations
        .iter()
        .map(|entry| {
            vec![
                entry.uid.clone(),
                seconds(&entry.time.to_string()),
                state(entry),
                output::word(&entry.body.violation),
                entry.body.actor.as_ref().map_or_else(|| "?".to_owned(), |actor| actor.comm.clone()),
                entry.body.object.path.to_string(),
            ]
        })
        .collect();
    output::table(&["ID", "TIME", "STATE", "WHAT", "BY", "PATH"], &rows)
}

fn state(entry: &ViolationEntry) -> String {
    match (entry.state, entry.resolution) {
        (ViolationState::Open, _) => "open".to_owned(),
        (ViolationState::Resolved, Some(how)) => output::word(&how),
        (ViolationState::Resolved, None) => "resolved".to_owned(),
    }
}

/// Whole seconds are enough for people.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

fn show(id: &str, socket: &Socket, format: Format) -> Result<ExitCode, Failure> {
    let (story, answer) = ask::ask(socket, async |mut agent| {
        let id = whole_id(&mut agent, id).await?;
        Ok(agent.get_json::<ViolationStory>(&format!("/v1/violations/{id}")).await?)
    })?;
    match format {
        Format::Json => output::line(ask::text(&answer)?)?,
        Format::Text => output::text(&render_story(&story))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn acknowledge(id: &str, reason: &str, socket: &Socket, format: Format) -> Result<ExitCode, Failure> {
    let (id, answer) = ask::ask(socket, async |mut agent| {
        let id = whole_id(&mut agent, id).await?;
        let body = serde_json::json!({ "reason": reason });
        let answer = agent.post(&format!("/v1/violations/{id}/acknowledge"), &body).await?;
        Ok((id, answer))
    })?;
    match format {
        Format::Json => output::line(ask::text(&answer)?)?,
        Format::Text => output::line(&format!("acknowledged {id}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Nobody types 26 characters: a unique beginning will do.
pub(super) async fn whole_id(agent: &mut Client, given: &str) -> Result<String, Failure> {
    let given = given.to_ascii_uppercase();
    if given.is_empty() || given.len() > 26 || !given.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Failure::new(
            "violation",
            given,
            "is no violation id, expected one that meshseal violations lists",
        ));
    }
    if given.len() == 26 {
        return Ok(given);
    }
    let (all, _) = agent.get_json::<Vec<ViolationEntry>>("/v1/violations").await?;
    let mut found = all.iter().filter(|entry| entry.uid.starts_with(&given));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.uid.clone()),
        (None, _) => Err(Failure::new(
            "violation",
            given,
            "no such violation, expected one that meshseal violations lists",
        )),
        (Some(_), Some(_)) => {
            Err(Failure::new("violation", given, "several violations begin so, expected more of the id"))
        }
    }
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<11} {}", output::one_line(value));
}

fn render_story(story: &ViolationStory) -> String {
    let (entry, body) = (&story.entry, &story.entry.body);
    let mut out = String::new();
    let kind = output::word(&body.violation).to_uppercase();
    let headline = format!("{kind} {}  {}, {}", body.object.path, entry.severity.as_str(), state(entry));
    let _ = writeln!(out, "{}", output::one_line(&headline));
    line(&mut out, "id", &entry.uid);
    line(&mut out, "record", &format!("{} (with {} update(s))", entry.seq, entry.updates));
    line(&mut out, "first", &body.first_time.to_string());
    line(&mut out, "last", &body.last_time.to_string());
    let operation = output::word(&body.operation);
    let (action, sensor) = (output::word(&body.action), output::word(&body.sensor));
    line(&mut out, "operation", &format!("{operation} ×{}, {action}, seen by {sensor}", body.count));
    if let Some(detail) = &body.detail {
        line(&mut out, "detail", detail);
    }
    let baseline = match (&body.object.baseline, body.object.revision) {
        (Some(name), Some(revision)) => format!(", {name} revision {revision}"),
        (Some(name), None) => format!(", {name}"),
        _ => String::new(),
    };
    line(&mut out, "object", &format!("{} ({}){baseline}", body.object.id, output::word(&body.object.class)));
    match &body.actor {
        Some(actor) => {
            let exe = actor.exe.as_ref().map_or_else(|| "executable unknown".to_owned(), ToString::to_string);
            let who =
                format!("{} (pid {}, parent {}, uid {})", actor.comm, actor.tgid, actor.ppid, actor.uid);
            line(&mut out, "by", &who);
            line(&mut out, "  exe", &exe);
            line(&mut out, "  cmdline", &actor.cmdline);
            if let Some(pod) = &actor.pod {
                let name = pod.name.clone().unwrap_or_else(|| pod.uid.clone());
                line(&mut out, "  pod", &format!("{}/{name}", pod.namespace.as_deref().unwrap_or("?")));
            }
            if let Some(container) = &actor.container {
                line(&mut out, "  container", container.name.as_deref().unwrap_or(&container.id));
            } else if let Some(cgroup) = &actor.cgroup {
                line(&mut out, "  cgroup", cgroup);
            }
        }
        None => {
            let because = body.actor_unknown_because.as_deref().unwrap_or("no reason given");
            line(&mut out, "by", &format!("unknown: {because}"));
        }
    }
    if let Some(target) = &body.target {
        let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        let pod = if target.unclear {
            format!("pod {}, of which the node tells two names", part(&target.pod_uid))
        } else {
            format!("pod {}/{}", part(&target.namespace), part(&target.pod))
        };
        line(&mut out, "belongs to", &pod);
        let owner = target.owner.as_ref().map(|owner| format!("{}/{}", owner.kind, owner.name));
        let source = target.source.as_ref().map(|source| {
            source.name.as_ref().map_or_else(|| source.kind.clone(), |name| format!("{}/{name}", source.kind))
        });
        for (name, text) in [
            ("  owner", owner),
            ("  account", target.service_account.clone()),
            ("  container", target.container.clone()),
            ("  image", target.image.clone()),
            ("  digest", target.image_digest.clone()),
            ("  volume", target.volume.clone()),
            ("  content", source),
        ] {
            if let Some(text) = text {
                line(&mut out, name, &text);
            }
        }
    }
    difference(&mut out, &body.expected, &body.actual);
    if !body.attack.is_empty() {
        line(&mut out, "attack", &body.attack.join(", "));
    }
    line(&mut out, "fingerprint", &body.fingerprint);
    out.push('\n');
    for record in &story.records {
        out.push_str(&told(record));
        out.push('\n');
    }
    out
}

/// What was sealed and what was found, side by side where both are known.
fn difference(out: &mut String, expected: &State, actual: &State) {
    let keys: std::collections::BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
    if keys.is_empty() {
        return;
    }
    let cell = |state: &State, key: &String| state.get(key).cloned().unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> =
        keys.into_iter().map(|key| vec![key.clone(), cell(expected, key), cell(actual, key)]).collect();
    out.push('\n');
    out.push_str(&output::table(&["DIFFERS", "SEALED", "FOUND"], &rows));
    out.push('\n');
}

/// A record as one line for people.
pub(super) fn told(record: &Record) -> String {
    let text = format!(
        "{:>6}  {}  {:<8}  {:<18}  {}",
        record.seq,
        record.time,
        record.severity.as_str(),
        record.body.kind(),
        record.body.sentence()
    );
    output::one_line(&text)
}

/// What the fuzzers look at.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(story: &ViolationStory) -> String {
    format!("{}{}", render_list(std::slice::from_ref(&story.entry)), render_story(story))
}
