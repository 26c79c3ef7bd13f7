//! Trust on first use, where the config asks for it: mesh files that no signed baseline covers are held to what they were when
//! the agent saw them first.
//!
//! Nobody approved what is trusted so: it has a baseline of its own, by a name that no signed one can have, without signers; it
//! does not count as a baseline for the posture, and its files stay listed as unsealed, for `propose`. A signed baseline takes
//! precedence from the moment it seals a path, or a directory that the path lies in.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::baseline::seal::{Options, statement_for};
use crate::baseline::secret::SecretKey;
use crate::baseline::statement::{Statement, parse};
use crate::baseline::store::FIRST_USE;
use crate::baseline::{AcceptedBaseline, Error, Root, SealedObject, read_bounded, write_atomic};
use crate::inventory::pods;
use crate::judge::Resolved;
use crate::model::{BaselineBody, Draft, HostPath, RecordBody, Severity, Time};
use crate::profile::{Layout, Profiles};

/// Below the state directory.
const FILE: &str = "first-use.json";
/// Longest statement that is read.
const MAX_STATEMENT: u64 = 256 << 20;
/// When what could not be sealed is tried again.
const AGAIN: Duration = Duration::from_secs(300);

/// What is trusted since it was seen first.
#[derive(Debug)]
pub(super) struct FirstUse {
    file: PathBuf,
    known: Option<Arc<AcceptedBaseline>>,
    /// What could not be sealed, and when that was tried.
    tried: HashMap<HostPath, Instant>,
    /// The file cannot be read: nothing is learned anew, because that would trust what stands there now.
    broken: bool,
}

/// With what to seal.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) root: Root,
    pub(super) secret_key: Option<Arc<SecretKey>>,
    pub(super) profiles: Arc<Profiles>,
    pub(super) layout: Layout,
}

impl FirstUse {
    /// Takes up what was trusted before the agent started; what is wrong with that is recorded.
    pub(super) fn open(state_dir: &Path) -> (Self, Option<Draft>) {
        let file = state_dir.join(FILE);
        let mut first_use = Self { file, known: None, tried: HashMap::new(), broken: false };
        if !first_use.file.exists() {
            return (first_use, None);
        }
        match read(&first_use.file) {
            Ok((_, known)) => {
                first_use.known = Some(Arc::new(known));
                (first_use, None)
            }
            Err(error) => {
                first_use.broken = true;
                let body = BaselineBody {
                    file: first_use.file.display().to_string(),
                    name: Some(FIRST_USE.to_owned()),
                    reason: Some(format!("{error}: nothing is trusted on first use until it is removed")),
                    ..BaselineBody::default()
                };
                (first_use, Some(Draft::now(Severity::High, RecordBody::BaselineRejected(body))))
            }
        }
    }

    /// What was trusted before is lost.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// What is trusted so and not sealed by a signed baseline.
    pub(super) fn beside(
        &self,
        signed: &[Arc<AcceptedBaseline>],
        resolved: &[Resolved],
    ) -> Option<Arc<AcceptedBaseline>> {
        let known = self.known.as_ref()?;
        let host =
            signed.iter().flat_map(|one| one.objects.iter()).filter(|object| object.rule.anchor.is_host());
        let concrete = resolved.iter().flat_map(|one| one.objects.iter());
        let sealed: HashSet<&HostPath> = host.chain(concrete).map(|object| &object.path).collect();
        let rest: Vec<SealedObject> =
            known.objects.iter().filter(|object| !lies_in(&object.path, &sealed)).cloned().collect();
        (!rest.is_empty()).then(|| {
            if rest.len() == known.objects.len() {
                return Arc::clone(known);
            }
            Arc::new(AcceptedBaseline { objects: rest.into(), ..(**known).clone() })
        })
    }

    /// Trusts these as they are now, and forgets what went with its pod. The record of it, if anything changed. Reads files: call
    /// it where blocking is allowed.
    ///
    /// # Errors
    /// What is trusted cannot be written: it is as before.
    pub(super) fn learn(
        &mut self,
        unsealed: &[HostPath],
        kubelet_root: &HostPath,
        means: &Means,
    ) -> Result<Option<Draft>, Error> {
        if self.broken {
            return Ok(None);
        }
        let objects = self.known.as_ref().map_or(&[][..], |known| &known.objects);
        let known: HashSet<&HostPath> = objects.iter().map(|object| &object.path).collect();
        self.tried.retain(|_, at| at.elapsed() < AGAIN);
        let new: Vec<HostPath> = unsealed
            .iter()
            .filter(|path| !lies_in(path, &known) && !self.tried.contains_key(path))
            .cloned()
            .collect();
        let gone: HashSet<HostPath> = objects
            .iter()
            .filter(|object| pods::went_with_its_pod(&means.root, kubelet_root, &object.path))
            .map(|object| object.path.clone())
            .collect();
        let before = self.known.as_ref().map_or(0, |known| known.revision);
        let mut added = None;
        if !new.is_empty() {
            let options = Options {
                name: FIRST_USE.to_owned(),
                revision: before + 1,
                secret_key: means.secret_key.clone(),
                profiles: Arc::clone(&means.profiles),
                layout: means.layout.clone(),
                skip_unsealable: true,
                ..Options::default()
            };
            let proposal = statement_for(&means.root, &new, &options)?;
            let sealed: HashSet<&HostPath> =
                proposal.statement.predicate.objects.iter().map(|object| &object.path).collect();
            let now = Instant::now();
            self.tried
                .extend(new.iter().filter(|path| !lies_in(path, &sealed)).map(|path| (path.clone(), now)));
            added = Some(proposal.statement.predicate).filter(|predicate| !predicate.objects.is_empty());
        }
        if added.is_none() && gone.is_empty() {
            return Ok(None);
        }
        let counts = (added.as_ref().map_or(0, |one| one.objects.len()), gone.len());
        let mut predicate = match (self.known.is_some(), added) {
            (false, Some(added)) => added,
            (true, added) => {
                let mut old = read(&self.file)?.0.predicate;
                old.objects.retain(|object| !gone.contains(&object.path));
                if let Some(added) = added {
                    let fresh: HashSet<HostPath> =
                        added.objects.iter().map(|object| object.path.clone()).collect();
                    old.objects.retain(|object| !fresh.contains(&object.path));
                    old.objects.extend(added.objects);
                    let names: HashSet<String> =
                        old.writers.iter().map(|writer| writer.name.clone()).collect();
                    old.writers
                        .extend(added.writers.into_iter().filter(|writer| !names.contains(&writer.name)));
                }
                old
            }
            (false, None) => return Ok(None),
        };
        predicate.revision = before + 1;
        let statement = Statement::of(predicate)?;
        let bytes = statement.to_json()?;
        let accepted = accepted(&bytes, Time::now())?;
        write_atomic(&self.file, &bytes, 0o600)?;
        let told = told(&accepted, &self.file, counts);
        self.known = Some(Arc::new(accepted));
        Ok(Some(told))
    }
}

/// Whether a path, or a directory that it lies in, is one of these.
fn lies_in(path: &HostPath, these: &HashSet<&HostPath>) -> bool {
    std::iter::successors(Some(path.clone()), HostPath::parent).any(|at| these.contains(&at))
}

fn read(file: &Path) -> Result<(Statement, AcceptedBaseline), Error> {
    let bytes = read_bounded(file, MAX_STATEMENT)?;
    let written = file.metadata().ok().and_then(|meta| meta.modified().ok());
    let since = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let since = since.and_then(|at| i64::try_from(at.as_nanos()).ok()).map_or_else(Time::now, Time);
    let accepted = accepted(&bytes, since)?;
    let statement = serde_json::from_slice(&bytes)
        .map_err(|error| Error::new("cannot read statement", file.display(), error))?;
    Ok((statement, accepted))
}

/// What it says, without signers.
fn accepted(bytes: &[u8], since: Time) -> Result<AcceptedBaseline, Error> {
    let parsed = parse(bytes)?;
    if parsed.name != FIRST_USE {
        return Err(Error::new("cannot read statement", "predicate.name", FIRST_USE));
    }
    Ok(AcceptedBaseline {
        name: parsed.name,
        revision: parsed.revision,
        sha256: hex::encode(parsed.sha256),
        signers: Vec::new(),
        not_before: None,
        not_after: None,
        transition: Duration::ZERO,
        source_commit: None,
        accepted_at: since,
        objects: parsed.objects,
        writers: parsed.writers,
        before: None,
    })
}

fn told(accepted: &AcceptedBaseline, file: &Path, (added, removed): (usize, usize)) -> Draft {
    let body = BaselineBody {
        file: file.display().to_string(),
        name: Some(accepted.name.clone()),
        revision: Some(accepted.revision),
        sha256: Some(accepted.sha256.clone()),
        objects: Some(accepted.objects.len() as u64),
        added: Some(added as u64),
        removed: Some(removed as u64),
        reason: Some("trusted as first seen; nobody signed it".to_owned()),
        ..BaselineBody::default()
    };
    Draft::now(Severity::Low, RecordBody::BaselineAccepted(body))
}

/// What the fuzzers give to the reader of what was trusted on first use.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(accepted(bytes, Time(0)).is_ok());
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::{FirstUse, Means};
    use crate::baseline::store::FIRST_USE;
    use crate::baseline::{AcceptedBaseline, Root};
    use crate::model::{HostPath, RecordBody};
    use crate::profile::{Layout, Profiles};

    struct Bench {
        dir: tempfile::TempDir,
        first_use: FirstUse,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("root/k/pods/one")).unwrap();
            fs::create_dir_all(dir.path().join("state")).unwrap();
            let (first_use, told) = FirstUse::open(&dir.path().join("state"));
            assert!(told.is_none());
            Self { dir, first_use }
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.dir.path().join("root").join(path), text).unwrap();
        }

        /// Learns; the counts of the record, if there is one: objects, added, removed.
        fn learn(&mut self, unsealed: &[&str]) -> Option<(u64, u64, u64)> {
            let means = Means {
                root: Root::open(&self.dir.path().join("root")).unwrap(),
                secret_key: None,
                profiles: Arc::clone(Profiles::built_in()),
                layout: Layout::default(),
            };
            let unsealed: Vec<HostPath> = unsealed.iter().map(|path| HostPath::from(*path)).collect();
            let draft = self.first_use.learn(&unsealed, &HostPath::from("/k"), &means).unwrap()?;
            let RecordBody::BaselineAccepted(body) = draft.body else { panic!("{:?}", draft.body) };
            assert_eq!((body.name.as_deref(), body.signers.len()), (Some(FIRST_USE), 0));
            Some((body.objects?, body.added?, body.removed?))
        }

        /// Revision, and path and hash of each object.
        fn trusted(&self) -> (u64, Vec<(String, String)>) {
            let Some(known) = self.first_use.beside(&[], &[]) else { return (0, Vec::new()) };
            let hash = |object: &crate::baseline::SealedObject| object.state()["sha256"].clone();
            (known.revision, known.objects.iter().map(|one| (one.path.to_string(), hash(one))).collect())
        }

        fn again(&mut self) {
            self.first_use = FirstUse::open(&self.dir.path().join("state")).0;
        }
    }

    #[test]
    fn what_is_seen_first_stays_what_is_trusted() {
        let mut bench = Bench::new();
        bench.write("a", "one");
        bench.write("k/pods/one/b", "one");
        assert_eq!(bench.learn(&[]), None);
        assert_eq!(bench.learn(&["/a"]), Some((1, 1, 0)));
        assert_eq!(bench.learn(&["/a", "/k/pods/one/b"]), Some((2, 1, 0)));
        let before = bench.trusted();
        assert_eq!(before.0, 2);
        bench.write("a", "two");
        assert_eq!(bench.learn(&["/a", "/k/pods/one/b"]), None);
        assert_eq!(bench.trusted(), before);
        bench.again();
        assert_eq!(bench.trusted(), before);
        assert_eq!(bench.learn(&["/a", "/k/pods/one/b"]), None);
        // A file that is gone is missed; one that went with its pod is not.
        fs::remove_file(bench.dir.path().join("root/a")).unwrap();
        fs::remove_dir_all(bench.dir.path().join("root/k/pods/one")).unwrap();
        assert_eq!(bench.learn(&[]), Some((1, 0, 1)));
        assert_eq!(bench.trusted().1, before.1[..1]);
    }

    #[test]
    fn what_is_signed_takes_precedence() {
        let mut bench = Bench::new();
        fs::create_dir(bench.dir.path().join("root/d")).unwrap();
        bench.write("a", "one");
        bench.write("d/b", "one");
        assert_eq!(bench.learn(&["/a", "/d/b"]), Some((2, 2, 0)));
        let known = bench.first_use.beside(&[], &[]).unwrap();
        let mut above = known.objects[1].clone();
        above.path = HostPath::from("/d");
        let signed = AcceptedBaseline {
            name: "release".to_owned(),
            objects: Arc::from(vec![above]),
            ..(*known).clone()
        };
        let rest = bench.first_use.beside(&[Arc::new(signed)], &[]).unwrap();
        assert_eq!(rest.objects.iter().map(|one| one.path.to_string()).collect::<Vec<_>>(), ["/a"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_nothing_is_learned_anew() {
        let mut bench = Bench::new();
        bench.write("a", "one");
        assert_eq!(bench.learn(&["/a"]), Some((1, 1, 0)));
        let file = bench.dir.path().join("state/first-use.json");
        let text = fs::read_to_string(&file).unwrap().replace(FIRST_USE, "release");
        for bad in [text.as_bytes(), b"{}", b"\xff"] {
            fs::write(&file, bad).unwrap();
            let (mut first_use, told) = FirstUse::open(&bench.dir.path().join("state"));
            assert!(matches!(told.unwrap().body, RecordBody::BaselineRejected(_)));
            assert!(first_use.is_broken() && first_use.beside(&[], &[]).is_none());
            std::mem::swap(&mut bench.first_use, &mut first_use);
            assert_eq!(bench.learn(&["/a"]), None);
            assert_eq!(fs::read(&file).unwrap(), bad);
        }
    }

    #[test]
    fn what_cannot_be_sealed_is_not_tried_all_the_time() {
        let mut bench = Bench::new();
        assert_eq!(bench.learn(&["/not-there"]), None);
        bench.write("not-there", "one");
        assert_eq!(bench.learn(&["/not-there"]), None);
        bench.first_use.tried.clear();
        assert_eq!(bench.learn(&["/not-there"]), Some((1, 1, 0)));
    }
}
