//! `meshseal baseline diff A B`: what a reviewer must see before they sign.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::keys::Keys;
use super::{Failure, Wanted, baseline, output};
use crate::baseline::review::{Change, Field, Kind, Review};
use crate::baseline::signed::{Report, claims};
use crate::baseline::{Baseline, Diff};

/// Objects shown field by field in Markdown; a comment that is too long is refused by the forge.
const MAX_DETAILS: usize = 200;
/// Fields of one object shown in text and Markdown.
const MAX_FIELDS: usize = 40;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Statement, envelope or bundle, the earlier.
    a: PathBuf,
    /// Statement, envelope or bundle, the later.
    b: PathBuf,
    #[command(flatten)]
    keys: Keys,
}

/// One side, and what is known of its signatures.
struct Side {
    baseline: Baseline,
    claimed: Vec<String>,
    /// With `--trusted-key` only: who signed, and whether they are enough.
    report: Option<(Report, bool)>,
}

impl Side {
    fn signed_by(&self) -> String {
        match &self.report {
            Some((report, enough)) => {
                let signers = report.signers();
                let signers = if signers.is_empty() { "nobody trusted" } else { &signers };
                let short = if *enough { "" } else { ", which is NOT enough" };
                let remarks: String = report.remarks().iter().map(|remark| format!("; {remark}")).collect();
                format!("{signers}{short}{remarks}")
            }
            None if self.claimed.is_empty() => "nobody".into(),
            None => format!("{} (claimed, not checked)", self.claimed.join(", ")),
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.baseline.name,
            "revision": self.baseline.revision,
            "sha256": hex::encode(self.baseline.sha256),
            "objects": self.baseline.objects.len(),
            "source_commit": self.baseline.source_commit,
            "claimed_signers": self.claimed,
            "signers": self.report.as_ref().map(|(report, _)| report.ids()),
            "trusted": self.report.as_ref().map(|(_, enough)| *enough),
        })
    }
}

pub(super) fn run(args: &Args, wanted: Wanted) -> Result<ExitCode, Failure> {
    let trust = (!args.keys.trusted_keys.is_empty()).then(|| args.keys.trust()).transpose()?;
    let side = |path: &PathBuf| {
        let (baseline, signed) = baseline::read(path)?;
        let report = trust.as_ref().map(|trust| {
            let report = signed.report(&trust.keys);
            let enough = report.signed.len() >= trust.threshold;
            (report, enough)
        });
        Ok::<_, Failure>(Side { baseline, claimed: claims(&signed), report })
    };
    let (from, to) = (side(&args.a)?, side(&args.b)?);
    let review = Review::between(&from.baseline, &to.baseline);
    match wanted {
        Wanted::Text => output::text(&for_people(&from, &to, &review))?,
        Wanted::Markdown => output::text(&markdown(&from, &to, &review))?,
        Wanted::Json => output::line(&for_programs(&from, &to, &review).to_string())?,
        Wanted::Sarif => {
            return Err(Failure::new("arguments", "--format", "text, json or markdown: sarif is for verify"));
        }
    }
    Ok(if review.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn for_programs(from: &Side, to: &Side, review: &Review) -> serde_json::Value {
    let diff = Diff::between(&from.baseline.objects, &to.baseline.objects);
    serde_json::json!({
        "from": from.json(),
        "to": to.json(),
        "added": diff.added,
        "removed": diff.removed,
        "changed": diff.changed,
        "terms": review.terms,
        "details": review.objects,
    })
}

const fn sign(kind: Kind) -> char {
    match kind {
        Kind::Added => '+',
        Kind::Removed => '-',
        Kind::Changed => '~',
    }
}

/// `from -> to`, or the one that is there.
fn values(field: &Field) -> String {
    match (&field.from, &field.to) {
        (Some(from), Some(to)) => format!("{from} -> {to}"),
        (None, Some(to)) => format!("(none) -> {to}"),
        (Some(from), None) => format!("{from} -> (none)"),
        (None, None) => String::new(),
    }
}

fn summary(review: &Review) -> String {
    let count = |kind| review.count(kind);
    let terms = if review.terms.is_empty() {
        String::new()
    } else {
        format!(", {} terms changed", review.terms.len())
    };
    format!(
        "{} added, {} removed, {} changed{terms}",
        count(Kind::Added),
        count(Kind::Removed),
        count(Kind::Changed)
    )
}

fn for_people(from: &Side, to: &Side, review: &Review) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: &str| _ = writeln!(out, "{}", output::one_line(text));
    let (a, b) = (&from.baseline, &to.baseline);
    line(&format!(
        "{} revision {} -> {} revision {}: {}",
        a.name,
        a.revision,
        b.name,
        b.revision,
        summary(review)
    ));
    line(&format!("from: signed by {}", from.signed_by()));
    line(&format!("to:   signed by {}", to.signed_by()));
    for field in &review.terms {
        line(&format!("! {}: {}", field.name, values(field)));
    }
    for change in &review.objects {
        line(&format!("{} {}", sign(change.change), change.path));
        if change.change == Kind::Changed {
            for field in change.fields.iter().take(MAX_FIELDS) {
                line(&format!("    {}: {}", field.name, values(field)));
            }
            if change.fields.len() > MAX_FIELDS {
                line(&format!("    and {} more", change.fields.len() - MAX_FIELDS));
            }
        }
    }
    out
}

fn markdown(from: &Side, to: &Side, review: &Review) -> String {
    let mut out = String::new();
    let (a, b) = (&from.baseline, &to.baseline);
    // Writing to a string cannot fail.
    let mut line = |text: &str| _ = writeln!(out, "{text}");
    line(&format!("### Baseline {}: revision {} → {}", code(&b.name), a.revision, b.revision));
    line("");
    line(&format!("**{}**, {} objects in all.", summary(review), b.objects.len()));
    line("");
    line("| | from | to |");
    line("|---|---|---|");
    line(&format!("| name | {} | {} |", code(&a.name), code(&b.name)));
    line(&format!("| revision | {} | {} |", a.revision, b.revision));
    let commit = |side: &Side| side.baseline.source_commit.as_deref().map_or_else(|| "–".into(), code);
    line(&format!("| source commit | {} | {} |", commit(from), commit(to)));
    line(&format!("| signed by | {} | {} |", code(&from.signed_by()), code(&to.signed_by())));
    for field in &review.terms {
        line(&format!(
            "| **{}** | {} | {} |",
            code(&field.name),
            cell(field.from.as_ref()),
            cell(field.to.as_ref())
        ));
    }
    for (kind, title) in [(Kind::Changed, "Changed"), (Kind::Removed, "Removed"), (Kind::Added, "Added")] {
        let changes: Vec<&Change> = review.objects.iter().filter(|change| change.change == kind).collect();
        if changes.is_empty() {
            continue;
        }
        line("");
        line(&format!(
            "<details{}><summary>{title}: {}</summary>",
            if kind == Kind::Changed { " open" } else { "" },
            changes.len()
        ));
        line("");
        if kind == Kind::Changed {
            line("| object | field | from | to |");
            line("|---|---|---|---|");
        } else {
            line("| object | class | content |");
            line("|---|---|---|");
        }
        for change in changes.iter().take(MAX_DETAILS) {
            if kind == Kind::Changed {
                for field in change.fields.iter().take(MAX_FIELDS) {
                    let (from, to) = (cell(field.from.as_ref()), cell(field.to.as_ref()));
                    line(&format!("| {} | {} | {from} | {to} |", code(&change.path), code(&field.name)));
                }
                if change.fields.len() > MAX_FIELDS {
                    let more = change.fields.len() - MAX_FIELDS;
                    line(&format!("| {} | and {more} more | | |", code(&change.path)));
                }
            } else {
                let content = content(change);
                line(&format!("| {} | {} | {content} |", code(&change.path), change.class.as_str()));
            }
        }
        if changes.len() > MAX_DETAILS {
            line("");
            line(&format!(
                "and {} more: `meshseal baseline diff --format json` has them all.",
                changes.len() - MAX_DETAILS
            ));
        }
        line("");
        line("</details>");
    }
    out
}

/// What an added or removed object is sealed by.
fn content(change: &Change) -> String {
    let keys = ["sha256", "hmac", "public_key", "identity", "target", "type"];
    let of = |key: &&str| change.fields.iter().find(|field| field.name == **key);
    keys.iter().find_map(of).map_or_else(String::new, |field| {
        let value = field.to.as_ref().or(field.from.as_ref());
        format!("{}={}", field.name, cell(value))
    })
}

fn cell(value: Option<&String>) -> String {
    value.map_or_else(|| "–".into(), |value| code(value))
}

/// As code in a cell of a table: no hostile name ends the cell, the code or the page.
fn code(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut clean: String = output::one_line(text).chars().take(LONGEST).collect();
    if text.chars().count() > LONGEST {
        clean.push('…');
    }
    // Within HTML's own element no backtick has a meaning; in a table a bar does, even in code.
    let mut out = String::from("<code>");
    for c in clean.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // The rest would still be markup within inline HTML.
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '@' | '#' | '!' => {
                _ = write!(out, "&#{};", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push_str("</code>");
    out
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn a_hostile_name_stays_in_its_cell() {
        assert_eq!(
            code("/a|b`</code><img src=x>\n@team"),
            "<code>/a&#124;b&#96;&lt;/code&gt;&lt;img src=x&gt;&#92;x0a&#64;team</code>"
        );
    }
}
