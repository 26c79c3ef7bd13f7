//! `meshseal uninstall`: takes the agent's pins and state off this node, if those who sign baselines have signed for it.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::{Failure, Format, output};
use crate::baseline::dsse::Verified;
use crate::baseline::trust::Trust;
use crate::baseline::uninstall::Uninstall;
use crate::baseline::{Policy, Signed, Store, TrustedKey, read_bounded, write_atomic};
use crate::config::{self, Config};
use crate::journal::{self, JournalError};
use crate::model::Time;
use crate::sensor::hooks::Pinned;

/// What an agent keeps in its state directory. All else is not ours to remove.
const STATE: [&str; 11] = [
    "journal",
    "baselines",
    "export",
    "kept.json",
    "kept.json.next",
    "kept-slots.jsonl",
    "cluster.json",
    "cluster.new",
    "first-use.json",
    "settings.json",
    ".meshseal-sentinel",
];
/// What a killed agent leaves of its canaries.
const CANARY: &[u8] = b".meshseal-canary-";
/// Bytes of a statement in its envelope.
const MAX_STATEMENT: u64 = 4 << 20;
/// How long a statement that is made here is good for.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, clap::Args)]
#[command(
    override_usage = "meshseal uninstall [--config FILE] STATEMENT\n       meshseal uninstall --propose --reason TEXT [--node NAME]... -o FILE"
)]
pub(super) struct Args {
    /// The statement in its envelope, signed by as many trusted keys as a baseline needs.
    #[arg(required_unless_present = "propose", conflicts_with = "propose", value_name = "STATEMENT")]
    statement: Option<PathBuf>,
    /// The agent's config: whose signatures count, and where its state is. As for `meshseal agent`.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Make a statement, good for a day, to review and to sign. Removes nothing.
    #[arg(long, requires = "output", requires = "reason")]
    propose: bool,
    /// Why, for people.
    #[arg(long, requires = "propose", value_name = "TEXT")]
    reason: Option<String>,
    /// The nodes it is for; without it this one.
    #[arg(long = "node", requires = "propose", value_name = "NAME")]
    nodes: Vec<String>,
    /// The statement that is made.
    #[arg(short, long, requires = "propose", value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let config = config::load(&args.config)?;
    if let (true, Some(out)) = (args.propose, &args.output) {
        return propose(args, &config, out, format);
    }
    let Some(file) = &args.statement else {
        return Err(Failure::new("arguments", "STATEMENT", "required but not given"));
    };
    // Nothing is touched before it is known that all may go.
    let (verified, statement) = permitted(file, &config, Time::now())?;
    if UnixStream::connect(&config.socket).is_ok() {
        return Err(Failure::new(
            "agent",
            config.socket.display(),
            "answers here, expected it to be stopped first",
        ));
    }
    // An agent that runs holds the lock of its journal, and on a rung with programs that of its generation.
    let journal = config.state_dir.join("journal");
    let _lock = journal::hold(&journal).map_err(|e| match e {
        JournalError::Locked(dir) => {
            let expected = "an agent that runs has it, expected it to be stopped first";
            Failure::new("journal", dir.display(), expected)
        }
        e => Failure::new("journal", journal.display(), e),
    })?;
    let pinned = Pinned::all()
        .map_err(|(place, why)| Failure::new("pins", place.display(), format!("{why}, expected none")))?;
    let unpinned = pinned.remove();
    let pins = unpinned.generations;
    let (removed, left) = clear(&config.state_dir)?;
    let failure = pins_left(&unpinned.left);
    match format {
        Format::Text => {
            let mut lines =
                vec![format!("uninstalled, signed by {}: {}", verified.report.signers(), statement.reason)];
            lines.push(format!("unpinned {pins} generation(s) of programs"));
            lines.extend(removed.iter().map(|path| format!("removed {}", path.display())));
            lines.extend(left.iter().map(|path| format!("left {}: not the agent's", path.display())));
            lines.extend(
                unpinned
                    .left
                    .iter()
                    .map(|(path, why)| format!("left {}: not unpinned: {why}", path.display())),
            );
            output::text(&lines.iter().map(|line| output::one_line(line) + "\n").collect::<String>())?;
        }
        Format::Json => {
            let mut left = left;
            left.extend(unpinned.left.iter().map(|(path, _)| path.clone()));
            let mut made = serde_json::json!({
                "signers": verified.signers, "reason": statement.reason, "unpinned": pins,
                "removed": shown(&removed), "left": shown(&left),
            });
            if let (Some(failure), Some(made)) = (&failure, made.as_object_mut()) {
                made.insert("error".to_owned(), serde_json::json!(failure));
            }
            output::line(&made.to_string())?;
        }
    }
    // In JSON what was done and what is wrong is one object, which is printed already.
    Ok(failure.map_or(ExitCode::SUCCESS, |failure| failure.report(Format::Text)))
}

/// What is said of pins that are left: they are not the agent's, and whoever uninstalls it is to look at them.
fn pins_left(left: &[(PathBuf, String)]) -> Option<Failure> {
    let (path, why) = left.first()?;
    let more = if left.len() > 1 { format!(", and {} more", left.len() - 1) } else { String::new() };
    Some(Failure::new("pins", path.display(), format!("left, not unpinned ({why}){more}, expected none")))
}

/// What was signed, if it was signed by whom this node trusts, and for this node and now.
fn permitted(file: &Path, config: &Config, now: Time) -> Result<(Verified, Uninstall), Failure> {
    let bytes = read_bounded(file, MAX_STATEMENT)?;
    let trust = trust(config)?;
    let signed = Signed::read(&bytes).map_err(|e| e.in_file(file.display()))?;
    let verified = signed.verify(&trust.keys, trust.threshold).map_err(|e| e.in_file(file.display()))?;
    let statement = Uninstall::parse(&verified.payload).map_err(|e| e.in_file(file.display()))?;
    statement.is_for(&config.node, now).map_err(|e| e.in_file(file.display()))?;
    Ok((verified, statement))
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

fn propose(args: &Args, config: &Config, out: &Path, format: Format) -> Result<ExitCode, Failure> {
    let nodes: BTreeSet<String> = if args.nodes.is_empty() {
        [config.node.clone()].into()
    } else {
        args.nodes.iter().cloned().collect()
    };
    let validity = i64::try_from(VALIDITY.as_nanos()).unwrap_or(i64::MAX);
    let not_after = Time(Time::now().0.saturating_add(validity));
    let made = Uninstall { nodes, not_after, reason: args.reason.clone().unwrap_or_default() };
    write_atomic(out, &made.statement()?, 0o644)?;
    match format {
        Format::Text => output::line(&output::one_line(&format!(
            "statement in {}, good until {not_after}; review it, then meshseal sign",
            out.display()
        )))?,
        Format::Json => {
            output::line(&serde_json::json!({ "nodes": made.nodes, "not_after": not_after }).to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whose signatures count on this node: the config's keys, as signed keys statements changed them since.
fn trust(config: &Config) -> Result<Trust, Failure> {
    let trusted = TrustedKey::read_all(&config.baselines.trusted_keys)?;
    if trusted.is_empty() {
        return Err(Failure::new(
            "config",
            "baselines.trustedKeys",
            "none, expected keys that may sign for this",
        ));
    }
    let threshold = config.baselines.require_signatures as usize;
    let dir = config.state_dir.join("baselines");
    if !dir.is_dir() {
        return Ok(Trust::new(trusted, threshold));
    }
    let node = config.node.clone();
    let policy = Policy { trusted, threshold, now: Time::now(), node, labels: None, cluster: None };
    let mut store = Store::open(&dir)?;
    // What it refuses does not concern whose signatures count.
    drop(store.load(&policy));
    Ok(store.trust(&policy))
}

/// Removes what an agent keeps in its state directory, and the directory if nothing else lies there.
fn clear(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Failure> {
    let (mut removed, mut left) = (Vec::new(), Vec::new());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((removed, left)),
        Err(e) => return Err(Failure::new("state directory", dir.display(), e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Failure::new("state directory", dir.display(), e))?;
        let path = entry.path();
        let name = entry.file_name();
        let ours = STATE.iter().any(|known| name == *known) || name.as_bytes().starts_with(CANARY);
        if !ours {
            left.push(path);
            continue;
        }
        // A link is removed, never what it leads to.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let gone = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        gone.map_err(|e| Failure::new("cannot remove", path.display(), e))?;
        removed.push(path);
    }
    if left.is_empty() {
        std::fs::remove_dir(dir).map_err(|e| Failure::new("cannot remove", dir.display(), e))?;
        removed.push(dir.to_owned());
    }
    removed.sort();
    left.sort();
    Ok((removed, left))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Config, Time, Uninstall, clear, permitted, pins_left};
    use crate::baseline::{Signed, SigningKey};
    use crate::config;

    struct Node {
        dir: tempfile::TempDir,
        config: Config,
        keys: Vec<SigningKey>,
    }

    fn key(seed: u8) -> SigningKey {
        use ed25519_dalek::pkcs8::{EncodePrivateKey as _, spki::der::pem::LineEnding};

        let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        SigningKey::from_pem(key.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap()
    }

    /// A node that asks for two signatures of two keys.
    fn node() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let keys = vec![key(1), key(2)];
        for (at, key) in keys.iter().enumerate() {
            fs::write(dir.path().join(format!("{at}.pub")), key.public().to_pem().unwrap()).unwrap();
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "apiVersion: meshseal/v1\nnode: n1\nstateDir: {}\nbaselines: {{requireSignatures: 2, trustedKeys: [{}, {}]}}\n",
            at("state"),
            at("0.pub"),
            at("1.pub")
        );
        fs::write(at("c.yaml"), text).unwrap();
        let config = config::load_file(Path::new(&at("c.yaml"))).unwrap();
        Node { dir, config, keys }
    }

    impl Node {
        fn statement(&self, node: &str, left: i64, keys: &[SigningKey]) -> PathBuf {
            let not_after = Time(Time::now().0 + left * 1_000_000_000);
            let made = Uninstall { nodes: [node.to_owned()].into(), not_after, reason: "moved".to_owned() };
            let mut signed = Signed::bare(made.statement().unwrap()).unwrap();
            signed.sign(keys).unwrap();
            let file = self.dir.path().join("s.dsse.json");
            fs::write(&file, signed.to_envelope().unwrap()).unwrap();
            file
        }

        fn outcome(&self, file: &Path) -> Result<String, String> {
            let outcome = permitted(file, &self.config, Time::now());
            outcome.map(|(_, statement)| statement.reason).map_err(|e| e.to_string())
        }
    }

    #[test]
    fn it_takes_the_signatures_a_baseline_takes() {
        let node = node();
        assert_eq!(node.outcome(&node.statement("n1", 3600, &node.keys)).unwrap(), "moved");
        let refused = |name: &str, left: i64, keys: &[SigningKey]| {
            node.outcome(&node.statement(name, left, keys)).unwrap_err()
        };
        refused("n1", 3600, &node.keys[..1]);
        refused("n1", 3600, &[key(1), key(3)]);
        assert!(refused("n2", 3600, &node.keys).contains("n1"));
        assert!(refused("n1", -1, &node.keys).contains("run out"));
        assert!(refused("n1", 40 * 24 * 3600, &node.keys).contains("30 days"));
        // A baseline's envelope is none, whoever signed it.
        let file = node.dir.path().join("bare.json");
        let mut signed =
            Signed::bare(br#"{"predicateType":"https://meshseal.dev/baseline/v1"}"#.to_vec()).unwrap();
        signed.sign(&node.keys).unwrap();
        fs::write(&file, signed.to_envelope().unwrap()).unwrap();
        assert!(node.outcome(&file).unwrap_err().contains("predicateType"));
        assert!(!node.config.state_dir.exists());
    }

    #[test]
    fn pins_that_are_left_are_an_error_of_one_line() {
        assert_eq!(pins_left(&[]), None);
        let left = |names: &[&str]| -> Vec<_> {
            names
                .iter()
                .map(|name| (PathBuf::from(name), "not a generation of an agent's".to_owned()))
                .collect()
        };
        let told =
            |names: &[&str]| pins_left(&left(names)).map(|failure| (failure.to_string(), failure.status));
        let one = "meshseal: pins: /p/mi\\x0ane: left, not unpinned (not a generation of an agent's)";
        assert_eq!(told(&["/p/mi\nne"]), Some((format!("{one}, expected none"), 2)));
        assert_eq!(told(&["/p/mi\nne", "/p/b"]), Some((format!("{one}, and 1 more, expected none"), 2)));
    }

    #[test]
    fn the_lock_of_the_journal_tells_that_an_agent_runs() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        assert!(crate::journal::hold(&journal).unwrap().is_none());
        let (running, _) =
            crate::journal::Journal::open(&journal, crate::journal::Options::new("n")).unwrap();
        assert_eq!(
            crate::journal::hold(&journal).unwrap_err().to_string(),
            format!("journal is in use: {}: expected no other agent with this stateDir", journal.display())
        );
        drop(running);
        // What is no lock says of no agent that it runs, and is not waited for.
        fs::remove_file(journal.join("lock")).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let at = (rustix::fs::CWD, journal.join("lock"), rustix::fs::FileType::Fifo);
        rustix::fs::mknodat(at.0, at.1, at.2, mode, 0).unwrap();
        assert!(crate::journal::hold(&journal).unwrap().is_none());
        clear(dir.path()).unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn only_what_is_the_agents_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join("state"), dir.path().join("other"));
        fs::create_dir_all(state.join("journal/keys")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        fs::write(state.join("kept.json"), "").unwrap();
        fs::write(state.join("notes.txt"), "").unwrap();
        std::os::unix::fs::symlink(&other, state.join("export")).unwrap();
        let (removed, left) = clear(&state).unwrap();
        assert_eq!(removed, ["export", "journal", "kept.json"].map(|name| state.join(name)));
        assert_eq!(left, [state.join("notes.txt")]);
        assert!(other.join("kept").exists());
        fs::remove_file(state.join("notes.txt")).unwrap();
        assert_eq!(clear(&state).unwrap().0, std::slice::from_ref(&state));
        assert!(!state.exists());
        assert_eq!(clear(&state).unwrap(), (Vec::new(), Vec::new()));
    }
}
