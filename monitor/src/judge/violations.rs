//! The book of violations: opened, updated, resolved, never deleted.
//!
//! One finding on one object stays one violation, whoever repeats it: the first act opens it, later acts update it.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};

use crate::model::{
    Acknowledgement, Action, Actor, Draft, HostPath, ObjectRef, Operation, Record, RecordBody, Resolution,
    Rung, Severity, State, Target, Time, ViolationBody, ViolationKind, ViolationResolved, ViolationUpdate,
};

use super::acts::Act;
use crate::status::Acknowledged;

/// Resolved violations kept in memory for `violations`; the journal has all of them.
const MAX_RESOLVED: usize = 10_000;

/// What a comparison found to be wrong, with the act that decided it.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) kind: ViolationKind,
    pub(crate) object: ObjectRef,
    pub(crate) expected: State,
    pub(crate) actual: State,
    /// The act that decided it; `None` when it was found by comparing alone.
    pub(crate) act: Option<Act>,
    /// All operations seen on it in this round.
    pub(crate) operations: Vec<Operation>,
    pub(crate) detail: Option<String>,
    /// The wrong state stands (as opposed to something that happened and is over).
    pub(crate) standing: bool,
    /// The object it belongs to, if that is not the one told of: whose pod is the target.
    pub(crate) of: Option<HostPath>,
    /// Why nobody is named, where no act explains the finding.
    pub(crate) unexplained: &'static str,
}

/// An open or resolved violation.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) uid: String,
    pub(crate) severity: Severity,
    pub(crate) now: ViolationBody,
    pub(crate) updates: u64,
    pub(crate) resolution: Option<Resolution>,
    /// The wrong state still stands.
    pub(crate) standing: bool,
    pub(crate) opened: Time,
}

impl Entry {
    /// The mount namespace in which it was covered, where the host sees it as before.
    pub(crate) fn covered_in(&self) -> Option<u64> {
        let elsewhere = self.now.violation == ViolationKind::MountedOver && !self.standing;
        self.now.actor.as_ref().filter(|_| elsewhere && self.resolution.is_none())?.mount_ns
    }
}

/// The detail of `renamed`.
pub(crate) fn moved_to(path: &HostPath) -> String {
    format!("moved to {path}")
}

type Key = (HostPath, ViolationKind);

/// All violations of this node.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// By uid, which is by time.
    entries: BTreeMap<String, Entry>,
    open: HashMap<Key, String>,
    /// Of one path, the kinds that are open.
    by_path: HashMap<HostPath, Vec<ViolationKind>>,
    resolved: u64,
    total: u64,
}

impl Book {
    /// Open violations.
    pub(crate) fn open_count(&self) -> u64 {
        self.open.len() as u64
    }

    /// All violations since the journal began.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// All entries in memory, oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One entry.
    pub(crate) fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// Uids of the open violations of one path.
    pub(crate) fn open_of(&self, path: &HostPath) -> Vec<String> {
        let kinds = self.by_path.get(path).map(Vec::as_slice).unwrap_or_default();
        kinds.iter().filter_map(|kind| self.open.get(&(path.clone(), *kind)).cloned()).collect()
    }

    /// Whether a violation of that kind is open on that path.
    pub(crate) fn is_open(&self, path: &HostPath, kind: ViolationKind) -> bool {
        self.open.contains_key(&(path.clone(), kind))
    }

    /// The inode that stood there before it was covered or replaced, if an open violation tells of that.
    pub(crate) fn sealed_inode(&self, path: &HostPath) -> Option<u64> {
        [ViolationKind::MountedOver, ViolationKind::Replaced, ViolationKind::Removed].iter().find_map(
            |kind| {
                let entry = self.entries.get(self.open.get(&(path.clone(), *kind))?)?;
                entry.now.expected.get("inode")?.parse().ok()
            },
        )
    }

    /// Whether an open violation says the same of the same object.
    pub(crate) fn tells(&self, finding: &Finding) -> bool {
        let key = (finding.object.path.clone(), finding.kind);
        let entry = self.open.get(&key).and_then(|uid| self.entries.get(uid));
        entry.is_some_and(|entry| entry.now.actual == finding.actual)
    }

    /// Whether it is told that this process holds that path since before the watch.
    pub(crate) fn is_held_by(&self, path: &HostPath, holder: Option<&Actor>) -> bool {
        let key = (path.clone(), ViolationKind::HeldHandle);
        let told = self.open.get(&key).and_then(|uid| self.entries.get(uid)?.now.actor.as_ref());
        told.zip(holder).is_some_and(|(told, holder)| told.is_same_process(holder))
    }

    /// Paths with open violations at or below `dir`.
    pub(crate) fn open_below(&self, dir: &HostPath) -> Vec<HostPath> {
        self.by_path.keys().filter(|path| *path == dir || path.below(dir).is_some()).cloned().collect()
    }

    /// Puts what open violations tell with better words in those words, and leaves out what has been told. What a look alone found becomes one
    /// finding where it is part of one violation: bytes and mode of what lies over an object.
    ///
    /// `stands`: the inode at the path of the object that was looked at.
    pub(crate) fn explain(&self, findings: &mut Vec<Finding>, stands: Option<(&HostPath, u64)>) {
        findings.retain_mut(|finding| !self.explains(finding, stands));
        let mut left: Vec<Finding> = Vec::with_capacity(findings.len());
        for finding in findings.drain(..) {
            let same = |other: &&mut Finding| {
                let found_alike = other.act.is_none() && finding.act.is_none();
                found_alike && other.kind == finding.kind && other.object.path == finding.object.path
            };
            match left.iter_mut().find(same) {
                Some(other) => {
                    other.expected.extend(finding.expected);
                    other.actual.extend(finding.actual);
                }
                None => left.push(finding),
            }
        }
        *findings = left;
    }

    /// Found by comparing alone, what an open violation tells with better words is that violation: other bytes in a
    /// file that was replaced, or the absence of one that was moved away. True where all has been told: the new name
    /// of one that was moved. What the process that replaced a file does to the new one right after belongs to that too: it
    /// was looked at in between.
    fn explains(&self, finding: &mut Finding, stands_there: Option<(&HostPath, u64)>) -> bool {
        use ViolationKind as V;
        let better: &[V] = match finding.kind {
            V::Content | V::Attributes if finding.act.is_some() => &[V::Replaced],
            _ if finding.act.is_some() => return false,
            V::Content | V::Attributes => &[V::MountedOver, V::Replaced],
            V::Removed => &[V::MountedOver, V::Renamed],
            V::Unexpected => {
                return self.moved_to(&finding.object.path) || self.lies_over(&finding.object.path);
            }
            _ => return false,
        };
        let told = better.iter().find_map(|kind| {
            let entry = self.entries.get(self.open.get(&(finding.object.path.clone(), *kind))?)?;
            // What was covered for a moment explains nothing that is found later.
            let stands = *kind != V::MountedOver || entry.standing;
            // What was covered or replaced is there again: what is wrong with it is its own.
            let sealed = entry.now.expected.get("inode").and_then(|ino| ino.parse().ok());
            let back =
                stands_there.is_some_and(|(path, ino)| *path == finding.object.path && sealed == Some(ino));
            let stands = stands && !(back && *kind == V::MountedOver);
            let goes_on = finding.act.as_ref().is_none_or(|act| goes_on(&entry.now, act));
            (stands && goes_on).then_some((*kind, entry))
        });
        let Some((kind, entry)) = told else { return false };
        finding.kind = kind;
        // The inode is told where the replacing was seen, not where it is found by its bytes.
        let known = |state: &mut State, then: &State| {
            if let Some(inode) = then.get("inode") {
                state.entry("inode".to_owned()).or_insert_with(|| inode.clone());
            }
        };
        known(&mut finding.expected, &entry.now.expected);
        known(&mut finding.actual, &entry.now.actual);
        false
    }

    /// Whether an open violation tells that a sealed object was moved there, within its directory.
    fn moved_to(&self, path: &HostPath) -> bool {
        let told = Some(moved_to(path));
        self.open
            .iter()
            .filter(|((from, kind), _)| *kind == ViolationKind::Renamed && from.parent() == path.parent())
            .filter_map(|(_, uid)| self.entries.get(uid))
            .any(|entry| entry.standing && entry.now.detail == told)
    }

    /// Whether an open violation tells that something was mounted over the directory of that name: it is of what lies over it.
    fn lies_over(&self, path: &HostPath) -> bool {
        let uid = path.parent().and_then(|dir| self.open.get(&(dir, ViolationKind::MountedOver)));
        uid.and_then(|uid| self.entries.get(uid)).is_some_and(|entry| entry.standing)
    }

    /// Opens a violation for a finding, or updates the one that is open. `None` where there is nothing new to tell.
    pub(crate) fn found(
        &mut self,
        finding: &Finding,
        severity: Severity,
        attack: Vec<String>,
        target: Option<Target>,
    ) -> Option<Draft> {
        let key = (finding.object.path.clone(), finding.kind);
        if let Some(uid) = self.open.get(&key) {
            let entry = self.entries.get_mut(uid)?;
            return update(entry, finding);
        }
        let body = body(finding, attack, target);
        let draft = Draft::at(body.first_time, severity, RecordBody::ViolationOpened(Box::new(body.clone())));
        self.insert(draft.uid.clone(), draft.time, severity, body, finding.standing);
        Some(draft)
    }

    fn insert(&mut self, uid: String, opened: Time, severity: Severity, now: ViolationBody, standing: bool) {
        let key = (now.object.path.clone(), now.violation);
        self.total += 1;
        self.by_path.entry(key.0.clone()).or_default().push(key.1);
        self.open.insert(key, uid.clone());
        self.entries.insert(
            uid.clone(),
            Entry { uid, severity, now, updates: 0, resolution: None, standing, opened },
        );
    }

    /// Notes that the wrong state of an open violation no longer stands, without resolving it.
    pub(crate) fn stands_no_more(&mut self, uid: &str, detail: &str) -> Option<Draft> {
        let entry = self.entries.get_mut(uid).filter(|entry| entry.standing)?;
        entry.standing = false;
        entry.updates += 1;
        entry.now.actual = entry.now.expected.clone();
        entry.now.detail = Some(detail.to_owned());
        let update = ViolationUpdate { violation_id: entry.uid.clone(), now: entry.now.clone() };
        Some(Draft::now(entry.severity, RecordBody::ViolationUpdated(Box::new(update))))
    }

    /// Resolves an open violation.
    pub(crate) fn resolve(
        &mut self,
        uid: &str,
        resolution: Resolution,
        detail: Option<String>,
    ) -> Option<Draft> {
        let entry = self.entries.get_mut(uid).filter(|entry| entry.resolution.is_none())?;
        entry.resolution = Some(resolution);
        entry.standing = false;
        let body = ViolationResolved {
            violation_id: entry.uid.clone(),
            resolution,
            violation: entry.now.violation,
            object: entry.now.object.clone(),
            actor: entry.now.actor.clone(),
            acknowledged: None,
            detail,
        };
        let key = (body.object.path.clone(), body.violation);
        self.close(&key);
        Some(Draft::now(Severity::Info, RecordBody::ViolationResolved(Box::new(body))))
    }

    /// Resolves a violation because a person took note of it. Never one whose wrong state stands: whoever can ask could
    /// hide it.
    pub(crate) fn acknowledge(&mut self, uid: &str, by: Acknowledgement) -> Result<Draft, Acknowledged> {
        let entry = self.entries.get(uid).ok_or(Acknowledged::Unknown)?;
        if entry.standing {
            return Err(Acknowledged::Standing);
        }
        let mut draft = self.resolve(uid, Resolution::Acknowledged, None).ok_or(Acknowledged::Resolved)?;
        draft.severity = Severity::Medium;
        if let RecordBody::ViolationResolved(body) = &mut draft.body {
            body.acknowledged = Some(by);
        }
        Ok(draft)
    }

    fn close(&mut self, key: &Key) {
        self.open.remove(key);
        if let Some(kinds) = self.by_path.get_mut(&key.0) {
            kinds.retain(|kind| *kind != key.1);
            if kinds.is_empty() {
                self.by_path.remove(&key.0);
            }
        }
        self.resolved += 1;
        while self.resolved > MAX_RESOLVED as u64 {
            let Some(oldest) =
                self.entries.values().find(|entry| entry.resolution.is_some()).map(|e| e.uid.clone())
            else {
                break;
            };
            self.entries.remove(&oldest);
            self.resolved -= 1;
        }
    }

    /// Takes up a record of the journal at start: the book is rebuilt from it.
    pub(crate) fn replay(&mut self, record: &Record) {
        match &record.body {
            RecordBody::ViolationOpened(body) => {
                let standing = stands(body);
                self.insert(record.uid.clone(), record.time, record.severity, (**body).clone(), standing);
            }
            RecordBody::ViolationUpdated(update) => {
                if let Some(entry) = self.entries.get_mut(&update.violation_id) {
                    entry.now = update.now.clone();
                    entry.updates += 1;
                    entry.standing = stands(&entry.now);
                }
            }
            RecordBody::ViolationResolved(body) => {
                if let Some(entry) = self.entries.get_mut(&body.violation_id) {
                    entry.resolution = Some(body.resolution);
                    entry.standing = false;
                    let key = (entry.now.object.path.clone(), entry.now.violation);
                    self.close(&key);
                }
            }
            _ => {}
        }
    }
}

/// Whether an act is of the process that a violation tells of, and came right after what is told.
fn goes_on(told: &ViolationBody, act: &Act) -> bool {
    /// In nanoseconds.
    const RIGHT_AFTER: i64 = 2_000_000_000;
    let (Some(then), Ok(now)) = (&told.actor, &act.actor) else { return false };
    then.is_same_process(now) && act.first.0.saturating_sub(told.last_time.0) < RIGHT_AFTER
}

/// Whether a violation of the journal was of a state that stands, rather than of something that happened and was over.
fn stands(body: &ViolationBody) -> bool {
    let times_only = body.actual.keys().all(|key| matches!(key.as_str(), "mtime" | "ctime"));
    // Who held it is not asked again, and what was run was run; what the agent was started on is told by each start anew.
    let over =
        matches!(body.violation, ViolationKind::HeldHandle | ViolationKind::Executed | ViolationKind::Itself);
    !times_only && !over && body.actual != body.expected
}

fn body(finding: &Finding, attack: Vec<String>, target: Option<Target>) -> ViolationBody {
    let now = Time::now();
    let act = finding.act.as_ref();
    let (actor, unknown) = act.map_or_else(|| (None, Some(finding.unexplained.to_owned())), Act::who);
    let operation = act.map_or(Operation::Scrub, |act| act.operation);
    ViolationBody {
        violation: finding.kind,
        object: finding.object.clone(),
        operation,
        operations: finding.operations.clone(),
        sensor: act.map_or(Rung::Scrub, |act| act.sensor),
        count: act.map_or(1, |act| act.count),
        first_time: act.map_or(now, |act| act.first),
        last_time: act.map_or(now, |act| act.last),
        fingerprint: fingerprint(finding, operation),
        action: if act.is_some_and(|act| act.denied && !act.failed) {
            Action::Denied
        } else {
            Action::Observed
        },
        expected: finding.expected.clone(),
        actual: finding.actual.clone(),
        actor,
        actor_unknown_because: unknown,
        target,
        attack,
        detail: finding.detail.clone(),
    }
}

/// Brings an open violation up to date; `None` if the finding says nothing that is not known.
fn update(entry: &mut Entry, finding: &Finding) -> Option<Draft> {
    let new_state = entry.now.actual != finding.actual || (finding.standing && !entry.standing);
    if finding.act.is_none() && !new_state {
        return None;
    }
    let now = body(finding, entry.now.attack.clone(), entry.now.target.clone());
    let (first_time, count) = (entry.now.first_time, entry.now.count);
    let keep_actor = finding.act.is_none();
    let previous = std::mem::replace(&mut entry.now, now);
    entry.now.first_time = first_time;
    entry.now.count = count.saturating_add(finding.act.as_ref().map_or(0, |act| act.count));
    entry.now.fingerprint = previous.fingerprint;
    if keep_actor {
        entry.now.actor = previous.actor;
        entry.now.actor_unknown_because = previous.actor_unknown_because;
        entry.now.operation = previous.operation;
        entry.now.sensor = previous.sensor;
    }
    if finding.kind == ViolationKind::Executed && entry.now.actual.is_empty() {
        // What became code was read before, and is gone by now.
        entry.now.actual = previous.actual;
    }
    entry.standing = finding.standing;
    entry.updates += 1;
    let time = finding.act.as_ref().map_or_else(Time::now, |act| act.last);
    let update = ViolationUpdate { violation_id: entry.uid.clone(), now: entry.now.clone() };
    Some(Draft::at(time, entry.severity, RecordBody::ViolationUpdated(Box::new(update))))
}

/// Same cause on another node, same fingerprint: what was done to which kind of path, by which executable, with
/// which result. Pod uids, timestamps of volumes and hashes that depend on the node do not enter.
fn fingerprint(finding: &Finding, operation: Operation) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(format!("{:?}", finding.kind).as_bytes());
    add(format!("{operation:?}").as_bytes());
    for part in finding.object.path.as_bytes().split(|byte| *byte == b'/') {
        add(if varies(part) { b"*" } else { part });
    }
    if let Some(Ok(actor)) = finding.act.as_ref().map(|act| &act.actor) {
        add(actor.exe.as_ref().map_or(&[], HostPath::as_bytes));
    }
    for (key, value) in
        finding.actual.iter().filter(|(key, _)| !matches!(key.as_str(), "inode" | "mtime" | "ctime"))
    {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    hex::encode(&hash.finalize()[..16])
}

/// A path component that differs from node to node: a pod uid (36 characters of hex and dashes), or an
/// `AtomicWriter`'s timestamp directory.
fn varies(part: &[u8]) -> bool {
    let uid = part.len() == 36
        && part.iter().enumerate().all(|(at, byte)| {
            if matches!(at, 8 | 13 | 18 | 23) { *byte == b'-' } else { byte.is_ascii_hexdigit() }
        });
    uid || part.starts_with(b"..2")
}
