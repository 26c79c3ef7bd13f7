//! `meshseal verify`: compares a tree with a signed baseline, once, without an agent.
//!
//! Exit status: 0 intact, 1 differs, 2 cannot tell, 130 interrupted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::keys::Keys;
use super::progress::Line;
use super::tree::{Tree, whose};
use super::{Failure, Wanted, interrupt, output, sarif, sign};
use crate::baseline::secret::SecretKey;
use crate::baseline::signed::Report;
use crate::baseline::verify::{self, Differs, Outcome, Progress, verify_with};
use crate::baseline::{Baseline, Context, Difference, Root, statement, store};
use crate::model::{HostPath, State, Time};
use crate::profile::Profiles;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The signed baseline: envelope or bundle, or the statement if its signatures are beside it.
    #[arg(long, value_name = "FILE")]
    baseline: PathBuf,
    #[command(flatten)]
    keys: Keys,
    /// Signatures beside the baseline, made by other tools: `ssh-keygen -Y sign`, `cosign sign-blob`, `openssl dgst -sign`.
    #[arg(long = "signature", num_args = 1.., value_name = "FILE")]
    signatures: Vec<PathBuf>,
    /// Where the host's root is.
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// The root is that of a container of this image, which the baseline seals: a reference or a digest.
    #[arg(long, conflicts_with = "kubelet_root", value_name = "IMAGE")]
    image: Option<String>,
    /// The kubelet's directory below the root [default: found].
    #[arg(long, value_name = "DIR")]
    kubelet_root: Option<PathBuf>,
    /// The cluster's key, under which secrets were sealed.
    #[arg(long, value_name = "FILE")]
    secret_key: Option<PathBuf>,
    /// Profiles beside or instead of the built-in ones: files, or directories of *.yaml. They say what a difference means, not whether it is one.
    #[arg(long = "profiles", value_name = "FILE")]
    profiles: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, wanted: Wanted) -> Result<ExitCode, Failure> {
    if wanted == Wanted::Markdown {
        return Err(Failure::new(
            "arguments",
            "--format",
            "text, json or sarif: markdown is for baseline diff",
        ));
    }
    if args.keys.trusted_keys.is_empty() {
        return Err(Failure::new("arguments", "--trusted-key <PUB>...", "required but not given"));
    }
    let trust = args.keys.trust()?;
    let secret_key = args.secret_key.as_deref().map(SecretKey::read).transpose()?.map(Arc::new);
    let mut signed = sign::open(&args.baseline)?;
    for file in &args.signatures {
        sign::attach_file(&mut signed, file)?;
    }
    let in_file = |e: crate::baseline::Error| e.in_file(args.baseline.display());
    let verified = signed.verify(&trust.keys, trust.threshold).map_err(in_file)?;
    let mut baseline = statement::parse(&verified.payload).map_err(in_file)?;
    store::is_valid(&baseline, Time::now())
        .map_err(|reason| Failure::new("baseline not valid", args.baseline.display(), reason))?;
    let root = Root::open(&args.root)?;
    let tree = match &args.image {
        None => Tree::resolve(&root, &mut baseline, args.kubelet_root.as_deref()),
        Some(image) => Tree::of_image(&mut baseline, image)
            .map_err(|expected| Failure::new("cannot verify", format!("--image {image}"), expected))?,
    };

    let progress = Arc::new(Progress::default());
    interrupt::stops(&progress);
    let bytes = baseline.objects.iter().map(verify::size).sum();
    let line = Line::show(&progress, baseline.objects.len(), bytes);
    let profiles = Arc::new(Profiles::with(&args.profiles)?);
    let context = Context { secret_key, profiles, ..Context::default() };
    let outcome = verify_with(&root, &baseline.objects, &context, &progress);
    drop(line);
    if progress.stop.load(Ordering::Relaxed) && outcome.looked_at < baseline.objects.len() {
        let (done, all) = (outcome.looked_at, baseline.objects.len());
        let found = outcome.differs.len();
        let expected =
            format!("an undisturbed run: {done} of {all} objects were looked at, {found} of them differ");
        return Err(Failure::new("interrupted", args.root.display(), expected).with_status(interrupt::STATUS));
    }

    let doubt = tree.cannot_tell(baseline.objects.len());
    let exit = status(&outcome, doubt.is_some());
    let answer =
        Answer { baseline: &baseline, report: &verified.report, outcome: &outcome, tree: &tree, exit, args };
    match wanted {
        Wanted::Json => output::line(&answer.for_programs().to_string())?,
        Wanted::Sarif => {
            let log = sarif::log(&baseline, &tree, &verified.report, &outcome, &args.root, exit);
            output::line(&log.to_string())?;
        }
        Wanted::Text | Wanted::Markdown => output::text(&answer.for_people(Time::now()))?,
    }
    if exit == 2
        && let Some(expected) = doubt
    {
        output::error_line(&Failure::new("cannot tell", args.root.display(), expected).to_string());
    } else if exit == 2
        && let Some((at, e)) = outcome.unknown.first()
    {
        let rest = outcome.unknown.len() - 1;
        let more = if rest == 0 { String::new() } else { format!(" (and {rest} more)") };
        let path = baseline.objects.get(*at).map(|object| object.path.to_string()).unwrap_or_default();
        let failure = Failure::new("cannot tell", path, format!("an object that can be read: {e}{more}"));
        // The answer is on stdout already; a second JSON value there would break its reader.
        output::error_line(&failure.to_string());
    }
    Ok(ExitCode::from(exit))
}

fn status(outcome: &Outcome, doubt: bool) -> u8 {
    match (outcome.differs.is_empty(), outcome.unknown.is_empty() && !doubt) {
        (false, _) => 1,
        (true, false) => 2,
        (true, true) => 0,
    }
}

/// All that is to be told.
struct Answer<'a> {
    baseline: &'a Baseline,
    report: &'a Report,
    outcome: &'a Outcome,
    tree: &'a Tree,
    exit: u8,
    args: &'a Args,
}

impl Answer<'_> {
    fn verdict(&self) -> &'static str {
        ["intact", "differs", "unknown"].get(usize::from(self.exit)).copied().unwrap_or_default()
    }

    /// First what it means, then who says so, then each finding: what, where, since when, sealed and found.
    fn for_people(&self, now: Time) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let mut line = |text: &str| _ = writeln!(out, "{}", output::one_line(text));
        let (all, differ, unknown) =
            (self.baseline.objects.len(), self.outcome.differs.len(), self.outcome.unknown.len());
        let counts = match (differ, unknown) {
            (0, 0) if self.exit != 0 => format!("of {all} objects none differs, but not all were found"),
            (0, 0) => format!("all {all} objects are as sealed"),
            (0, _) => format!("{unknown} of {all} objects cannot be told, the rest are as sealed"),
            (_, 0) => format!("{differ} of {all} objects are not as sealed"),
            _ => format!("{differ} of {all} objects are not as sealed, {unknown} more cannot be told"),
        };
        line(&format!("{}: {counts}", self.verdict().to_uppercase()));
        let commit = self.baseline.source_commit.as_ref().map(|commit| format!(", commit {commit}"));
        let until = self.baseline.validity.not_after.map(|at| format!(", valid until {at}"));
        line(&format!(
            "baseline   {} revision {}{}{}",
            self.baseline.name,
            self.baseline.revision,
            commit.unwrap_or_default(),
            until.unwrap_or_default()
        ));
        line(&format!("signed by  {}", self.report.signers()));
        for remark in self.report.remarks() {
            line(&format!("           {remark}"));
        }
        line(&format!("root       {}", self.args.root.display()));
        for differs in &self.outcome.differs {
            self.finding(&mut out, differs, now);
        }
        for (_, error) in &self.outcome.unknown {
            let _ = writeln!(out, "\ncannot tell: {}", output::one_line(&error.to_string()));
        }
        if differ > 1 {
            let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
            for difference in self.outcome.differs.iter().flat_map(|differs| &differs.differences) {
                *kinds.entry(difference.aspect.as_str()).or_default() += 1;
            }
            let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let _ = writeln!(out, "\nin all: {}", kinds.join(", "));
        }
        self.tree.describe(&mut out);
        out
    }

    fn finding(&self, out: &mut String, differs: &Differs, now: Time) {
        let Some(object) = self.baseline.objects.get(differs.at) else { return };
        let class = object.rule.class.as_str();
        let changed = match differs.changed {
            Some(at) => format!("{class}, inode changed {} ({at})", output::ago(at, now)),
            None => class.to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\n{}\n  {changed}", output::one_line(&object.path.to_string()));
        if let Some(whose) = whose(object) {
            let _ = writeln!(out, "  of {}", output::one_line(&whose));
        }
        for difference in &differs.differences {
            describe(out, difference);
        }
    }

    fn for_programs(&self) -> serde_json::Value {
        #[derive(serde::Serialize)]
        struct Finding<'l> {
            path: &'l HostPath,
            #[serde(skip_serializing_if = "Option::is_none")]
            of: Option<String>,
            id: String,
            class: crate::model::Class,
            aspect: &'l str,
            #[serde(skip_serializing_if = "Option::is_none")]
            entry: Option<HostPath>,
            expected: &'l State,
            actual: &'l State,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'l str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            changed: Option<Time>,
        }
        let baseline = self.baseline;
        let mut findings = Vec::new();
        for differs in &self.outcome.differs {
            let Some(object) = baseline.objects.get(differs.at) else { continue };
            findings.extend(differs.differences.iter().map(|difference| Finding {
                path: &object.path,
                of: whose(object),
                id: self.tree.id(baseline, object).to_string(),
                class: object.rule.class,
                aspect: difference.aspect.as_str(),
                entry: difference.entry.clone().map(HostPath::new),
                expected: &difference.expected,
                actual: &difference.actual,
                detail: difference.detail.as_deref(),
                changed: differs.changed,
            }));
        }
        let unknown: Vec<_> = self
            .outcome
            .unknown
            .iter()
            .filter_map(|(at, error)| {
                let object = baseline.objects.get(*at)?;
                Some(serde_json::json!({ "path": object.path, "reason": error.to_string() }))
            })
            .collect();
        let keys = |keys: &[(String, String)]| {
            let key = |(name, id): &(String, String)| serde_json::json!({ "name": name, "id": id });
            keys.iter().map(key).collect::<Vec<_>>()
        };
        serde_json::json!({
            "verdict": self.verdict(),
            "baseline": {
                "name": baseline.name,
                "revision": baseline.revision,
                "sha256": hex::encode(baseline.sha256),
                "signers": self.report.ids(),
                "not_after": baseline.validity.not_after,
                "source_commit": baseline.source_commit,
            },
            "signatures": {
                "signed": keys(&self.report.signed),
                "absent": keys(&self.report.absent),
                "unknown": self.report.unknown,
                "repeated": self.report.repeated,
            },
            "objects": baseline.objects.len(),
            "differences": findings,
            "unknown": unknown,
            "workloads": self.tree.json(),
        })
    }
}

fn describe(out: &mut String, difference: &Difference) {
    let entry = difference.entry.as_ref().map(|entry| format!(" {}", HostPath::new(entry.clone())));
    let detail = difference.detail.as_ref().map(|detail| format!(": {detail}"));
    let head = format!(
        "  {}{}{}",
        difference.aspect.as_str().to_uppercase(),
        entry.unwrap_or_default(),
        detail.unwrap_or_default()
    );
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{}", output::one_line(&head));
    for key in difference.keys() {
        let of = |state: &State| output::one_line(state.get(key).map_or("-", String::as_str));
        let _ = writeln!(
            out,
            "    {:<8} sealed {}\n    {:<8} found  {}",
            output::one_line(key),
            of(&difference.expected),
            "",
            of(&difference.actual)
        );
    }
}
