//! The store: what comes into force, what never comes back, what a bad offer leaves alone.

use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;

use super::dsse;
use super::keys::SigningKey;
use super::object::Publish;
use super::statement::{NodeSelector, Predicate, Scope, Statement, Validity};
use super::store::{Policy, Store};
use super::wire::{Unique, WireObject, WireType};
use crate::model::{Class, Time};

/// Ed25519 keys as `openssl genpkey -algorithm ed25519` writes them.
pub(super) const KEY_A: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n";
pub(super) const KEY_B: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIB8eHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgEA\n-----END PRIVATE KEY-----\n";

pub(super) fn key(pem: &str) -> SigningKey {
    SigningKey::from_pem(pem.as_bytes()).unwrap()
}

pub(super) fn policy() -> Policy {
    Policy {
        trusted: vec![key(KEY_A).public().clone(), key(KEY_B).public().clone()],
        threshold: 1,
        now: Time(1_000),
        node: "node-1".into(),
        labels: None,
        cluster: Some("c1".into()),
    }
}

fn link(path: &str, target: &str) -> WireObject {
    WireObject {
        class: Class::Sealed,
        files: None,
        gid: 0,
        hmac: None,
        identity: None,
        meaning: None,
        image: None,
        mode: "0777".into(),
        mounts: Vec::new(),
        names: None,
        path: path.into(),
        public_key: None,
        publish: Publish::InPlace,
        sha256: None,
        size: None,
        target: Some(target.into()),
        kind: WireType::Symlink,
        uid: 0,
        workload: None,
        writers: Vec::new(),
        xattrs: Unique::default(),
    }
}

fn predicate(name: &str, revision: u64, objects: Vec<WireObject>) -> Predicate {
    Predicate {
        name: name.into(),
        revision,
        scope: Scope::default(),
        validity: Validity::default(),
        transition: 60,
        source_commit: None,
        writers: Vec::new(),
        unresolved: Vec::new(),
        objects,
    }
}

fn envelope(predicate: Predicate) -> Vec<u8> {
    dsse::sign(&Statement::of(predicate).unwrap().to_json().unwrap(), &[key(KEY_A)]).unwrap()
}

pub(super) fn simple(name: &str, revision: u64, target: &str) -> Vec<u8> {
    envelope(predicate(name, revision, vec![link(&format!("/{name}"), target)]))
}

pub(super) fn open(dir: &std::path::Path) -> Store {
    let mut store = Store::open(dir).unwrap();
    let (_, rejected) = store.load(&policy());
    assert_eq!(rejected, []);
    store
}

pub(super) fn in_force(store: &Store) -> Vec<(String, u64)> {
    store.in_force().map(|baseline| (baseline.name.clone(), baseline.revision)).collect()
}

fn refused(store: &mut Store, envelope: &[u8], policy: &Policy) -> String {
    let before = in_force(store);
    let rejected = store.offer(envelope, "f", policy).unwrap_err();
    assert_eq!(in_force(store), before);
    rejected.reason
}

#[test]
fn a_later_revision_replaces_and_tells_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let first =
        envelope(predicate("a", 1, vec![link("/gone", "x"), link("/moved", "x"), link("/stays", "x")]));
    let accepted = store.offer(&first, "f", &policy()).unwrap();
    assert_eq!(accepted.diff.added, ["/gone", "/moved", "/stays"]);
    assert!(store.offer(&first, "f", &policy()).unwrap().unchanged);

    let second =
        envelope(predicate("a", 2, vec![link("/moved", "y"), link("/new", "x"), link("/stays", "x")]));
    let accepted = store.offer(&second, "f", &policy()).unwrap();
    assert_eq!(accepted.diff.added, ["/new"]);
    assert_eq!(accepted.diff.removed, ["/gone"]);
    assert_eq!(accepted.diff.changed, ["/moved"]);
    assert_eq!(accepted.replaced.unwrap().revision, 1);
    assert_eq!(accepted.baseline.signers, [key(KEY_A).id()]);
    assert_eq!(in_force(&open(dir.path())), [("a".into(), 2)]);
}

#[test]
fn no_way_back_even_if_the_envelope_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.offer(&simple("a", 5, "x"), "f", &policy()).unwrap();
    assert_eq!(
        refused(&mut store, &simple("a", 4, "x"), &policy()),
        "revision 4 is lower than 5, which was accepted before"
    );
    assert_eq!(
        refused(&mut store, &simple("a", 5, "y"), &policy()),
        "revision 5 was accepted before with another content: a change needs a higher revision"
    );
    fs::remove_file(dir.path().join("a.dsse.json")).unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (accepted, rejected) = store.load(&policy());
    assert_eq!(accepted, []);
    assert_eq!(
        rejected.iter().map(|r| (r.name.as_deref(), r.revision, r.reason.as_str())).collect::<Vec<_>>(),
        [(Some("a"), Some(5), "its envelope is gone from the store")]
    );
    assert_eq!(
        refused(&mut store, &simple("a", 4, "x"), &policy()),
        "revision 4 is lower than 5, which was accepted before"
    );
    assert_eq!(store.offer(&simple("a", 5, "x"), "f", &policy()).unwrap().baseline.revision, 5);
}

#[test]
fn an_older_envelope_put_into_the_store_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).offer(&simple("a", 5, "x"), "f", &policy()).unwrap();
    fs::write(dir.path().join("a.dsse.json"), simple("a", 4, "x")).unwrap();
    let (accepted, rejected) = Store::open(dir.path()).unwrap().load(&policy());
    assert_eq!(accepted, []);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].reason, "revision 4 is lower than 5, which was accepted before");
}

#[test]
fn validity_and_scope_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let with = |change: &dyn Fn(&mut Predicate)| {
        let mut predicate = predicate("a", 1, vec![]);
        change(&mut predicate);
        envelope(predicate)
    };
    let expired = with(&|p| p.validity.not_after = Some(Time(999)));
    assert_eq!(refused(&mut store, &expired, &policy()), "expired at 1970-01-01T00:00:00.000000999Z");
    let early = with(&|p| p.validity.not_before = Some(Time(1_001)));
    assert_eq!(refused(&mut store, &early, &policy()), "not valid before 1970-01-01T00:00:00.000001001Z");
    let elsewhere = with(&|p| p.scope.cluster = Some("c2".into()));
    assert_eq!(refused(&mut store, &elsewhere, &policy()), "is for cluster c2, and this one is c1");
    let nodes = |names: &[&str]| NodeSelector {
        names: names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>(),
        ..NodeSelector::default()
    };
    let other = with(&|p| p.scope.nodes = Some(nodes(&["node-2"])));
    assert_eq!(refused(&mut store, &other, &policy()), "is not for node node-1");
    let ours = with(&|p| {
        p.scope.nodes = Some(nodes(&["node-1", "node-2"]));
        p.validity.not_after = Some(Time(1_000));
    });
    store.offer(&ours, "f", &policy()).unwrap();

    // It runs out: what was accepted holds over a restart, and says so.
    let later = Policy { now: Time(2_000), ..policy() };
    let (accepted, rejected) = Store::open(dir.path()).unwrap().load(&later);
    assert_eq!(rejected, []);
    assert!(accepted[0].is_expired(later.now));
    assert_eq!(accepted[0].accepted_at, Time(1_000));
}

#[test]
fn a_path_belongs_to_one_baseline() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.offer(&envelope(predicate("a", 1, vec![link("/p", "x")])), "f", &policy()).unwrap();
    assert_eq!(
        refused(&mut store, &envelope(predicate("b", 1, vec![link("/p", "x")])), &policy()),
        "/p is sealed by baseline a and by baseline b: each path in one of them"
    );
    store.offer(&envelope(predicate("b", 1, vec![link("/q", "x")])), "f", &policy()).unwrap();
    assert_eq!(in_force(&open(dir.path())), [("a".into(), 1), ("b".into(), 1)]);
}

#[test]
fn the_same_signature_twice_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let two = Policy { threshold: 2, ..policy() };
    let one = simple("a", 1, "x");
    let mut json: serde_json::Value = serde_json::from_slice(&one).unwrap();
    let signature = json["signatures"][0].clone();
    json["signatures"].as_array_mut().unwrap().push(signature);
    let twice = serde_json::to_vec(&json).unwrap();
    assert_eq!(
        refused(&mut store, &twice, &two),
        "signature not trusted: signatures: 2 by distinct trusted keys, not 1; signed by a050837d85070582; 1 more by the same key; not signed by acb5cb1d78563a35"
    );
    let both = dsse::sign_more(&one, &[key(KEY_B)]).unwrap();
    assert_eq!(store.offer(&both, "f", &two).unwrap().baseline.signers.len(), 2);
}

#[test]
fn a_key_no_longer_trusted_takes_its_baselines_with_it() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).offer(&simple("a", 1, "x"), "f", &policy()).unwrap();
    let other = Policy { trusted: vec![key(KEY_B).public().clone()], ..policy() };
    let (accepted, rejected) = Store::open(dir.path()).unwrap().load(&other);
    assert_eq!((accepted.len(), rejected.len()), (0, 1));
}

#[test]
fn files_are_private_and_a_broken_ledger_stops_the_store() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("baselines");
    open(&at).offer(&simple("a", 1, "x"), "f", &policy()).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let mut names: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.dsse.json", "ledger.json"]);
    assert_eq!(mode(&at), 0o700);
    assert!(names.iter().all(|name| mode(&at.join(name)) == 0o600));
    fs::write(at.join("ledger.json"), "{").unwrap();
    assert_eq!(Store::open(&at).unwrap_err().what, "broken baseline ledger");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is offered, in whatever order and over restarts: a revision never goes down, and one revision never
    /// has two contents.
    #[test]
    fn revisions_only_rise(offers in proptest::collection::vec((0..2_usize, 1..5_u64, 0..2_usize, any::<bool>()), 1..12)) {
        // On memory, where there is some: each step syncs.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut store = open(dir.path());
        let mut model: [Option<(u64, usize)>; 2] = [None, None];
        for (name, revision, content, restart) in offers {
            if restart {
                store = open(dir.path());
            }
            let offered = store.offer(&simple(["a", "b"][name], revision, ["x", "y"][content]), "f", &policy());
            let lawful = model[name].is_none_or(|(r, c)| revision > r || (revision, content) == (r, c));
            prop_assert_eq!(offered.is_ok(), lawful);
            if lawful {
                model[name] = Some((revision, content));
            }
            let expected: Vec<_> = ["a", "b"].iter().zip(model)
                .filter_map(|(name, seen)| seen.map(|(revision, _)| ((*name).to_owned(), revision)))
                .collect();
            prop_assert_eq!(in_force(&store), expected);
        }
    }

    /// No flipped bit and no cut leaves an envelope that is believed with another payload, and none panics.
    #[test]
    fn damage_is_never_believed(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
        let good = simple("a", 1, "x");
        let mut bad = good.clone();
        let at = at.index(bad.len() - 1);
        if cut { bad.truncate(at) } else { bad[at] ^= 1 << bit }
        // A flip in the key id or in white space changes nothing that is signed.
        if let Ok(verified) = dsse::verify(&bad, &policy().trusted, 1) {
            let expected = dsse::verify(&good, &policy().trusted, 1).unwrap();
            prop_assert_eq!((verified.payload, verified.signers), (expected.payload, expected.signers));
        }
    }
}

#[test]
fn what_the_journal_knows_is_not_forgotten_with_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert!(!store.has_accepted());
    let sha256 = "ab".repeat(32);
    assert!(store.recall("a", 4, &sha256, Time(7)).unwrap());
    assert!(!store.recall("a", 4, &sha256, Time(7)).unwrap());
    assert!(!store.recall("a", 3, &sha256, Time(6)).unwrap());
    for mut store in [store, Store::open(dir.path()).unwrap()] {
        assert!(store.has_accepted());
        assert_eq!(
            refused(&mut store, &simple("a", 3, "t3"), &policy()),
            "revision 3 is lower than 4, which was accepted before"
        );
    }
}

#[test]
fn the_revision_before_is_kept_until_its_transition_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |seconds: i64| Policy { now: Time(1_000 + seconds * 1_000_000_000), ..policy() };
    let before = |store: &Store| {
        let of = |one: &std::sync::Arc<super::AcceptedBaseline>| {
            let before = one.before.as_ref();
            assert!(before.is_none_or(|before| before.before.is_none()), "a chain of revisions");
            (one.revision, before.map(|before| before.revision))
        };
        store.in_force().map(of).collect::<Vec<_>>()
    };
    let reopened = |seconds: i64| {
        let mut store = Store::open(dir.path()).unwrap();
        let (_, rejected) = store.load(&at(seconds));
        assert_eq!(rejected, []);
        store
    };
    let mut store = Store::open(dir.path()).unwrap();
    for revision in 1..=3 {
        store.offer(&simple("a", revision, &format!("t{revision}")), "f", &at(0)).unwrap();
    }
    assert_eq!(before(&store), [(3, Some(2))]);
    // Over a restart, and offered once more.
    let mut store = reopened(59);
    assert_eq!(before(&store), [(3, Some(2))]);
    store.offer(&simple("a", 3, "t3"), "f", &at(59)).unwrap();
    assert!(!store.end_transitions(at(59).now));
    assert_eq!(before(&store), [(3, Some(2))]);
    assert!(store.end_transitions(at(60).now));
    assert!(!store.end_transitions(at(60).now));
    assert_eq!(before(&store), [(3, None)]);
    assert_eq!(before(&reopened(59)), [(3, None)]);

    // What lies there is believed as little as anything else.
    let kept = dir.path().join("before/a.dsse.json");
    let told = |envelope: &[u8]| {
        fs::write(&kept, envelope).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let (_, rejected) = store.load(&at(1));
        assert_eq!(before(&store), [(3, None)]);
        rejected.into_iter().map(|one| one.reason).collect::<Vec<_>>()
    };
    assert_eq!(told(&simple("a", 4, "t4")), ["a revision 4 is not before a revision 3"]);
    assert_eq!(told(&simple("b", 1, "t1")), ["b revision 1 is not before a revision 3"]);
    assert_eq!(told(&simple("a", 3, "t3")), [""; 0]);
    let mut damaged = simple("a", 2, "t2");
    let at = damaged
        .windows(8)
        .position(|part| part == b"\"sig\": \"" || part.starts_with(b"\"sig\":\""))
        .unwrap();
    damaged[at + 10] = if damaged[at + 10] == b'A' { b'B' } else { b'A' };
    assert_eq!(told(&damaged).len(), 1);
}
