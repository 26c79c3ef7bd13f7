//! Keys that change while baselines are in force: by a statement of the keys before, and by nothing else.

use super::keys::{SigningKey, TrustedKey};
use super::store::{Policy, Store};
use super::store_tests::{KEY_A, KEY_B, in_force, key, open, policy, simple};
use super::trust::{Rotation, is_keys_statement};
use super::{dsse, statement};

const KEY_C: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEICAhIiMkJSYnKCkqKywtLi8wMTIzNDU2Nzg5Ojs8PT4/\n-----END PRIVATE KEY-----\n";

/// Only A is trusted by the config.
fn only_a() -> Policy {
    Policy { trusted: vec![key(KEY_A).public().clone()], ..policy() }
}

fn rotation(revision: u64, threshold: u32, to: &[&str], by: &[&str]) -> Vec<u8> {
    let keys: Vec<TrustedKey> = to.iter().map(|pem| key(pem).public().clone()).collect();
    let by: Vec<SigningKey> = by.iter().map(|pem| key(pem)).collect();
    dsse::sign(&Rotation::statement(revision, threshold, &keys).unwrap(), &by).unwrap()
}

fn baseline(revision: u64, by: &[&str]) -> Vec<u8> {
    let payload = super::Signed::read(&simple("a", revision, &revision.to_string())).unwrap().payload;
    let by: Vec<SigningKey> = by.iter().map(|pem| key(pem)).collect();
    dsse::sign(&payload, &by).unwrap()
}

fn rotate(store: &mut Store, envelope: &[u8], may_relax: bool) -> Result<bool, String> {
    let outcome = store.offer_keys(envelope, "k", &only_a(), may_relax).expect("a keys statement");
    outcome.map(|accepted| !accepted.unchanged).map_err(|rejected| rejected.reason)
}

#[test]
fn the_keys_before_hand_over_to_the_keys_after() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.offer(&baseline(1, &[KEY_A]), "f", &only_a()).unwrap();

    let by_a_stranger = rotation(1, 1, &[KEY_B], &[KEY_B]);
    assert!(rotate(&mut store, &by_a_stranger, true).unwrap_err().starts_with("signature not trusted: "));
    let to_b_and_c = rotation(1, 2, &[KEY_B, KEY_C], &[KEY_A]);
    assert_eq!(rotate(&mut store, &to_b_and_c, false), Ok(true));
    assert_eq!(rotate(&mut store, &to_b_and_c, false), Ok(false));

    for restart in [false, true] {
        if restart {
            store = Store::open(dir.path()).unwrap();
            // What was accepted under the old key still holds.
            assert_eq!(store.load(&only_a()).1, []);
        }
        assert_eq!(in_force(&store), [("a".to_owned(), 1)]);
        assert!(store.offer(&baseline(1, &[KEY_A]), "f", &only_a()).unwrap().unchanged);
        // Nothing new comes in by it, nor by one of two.
        for by in [&[KEY_A][..], &[KEY_B], &[KEY_A, KEY_B]] {
            let refused = store.offer(&baseline(2, by), "f", &only_a()).unwrap_err().reason;
            assert!(
                refused.starts_with("signature not trusted: signatures: 2 by distinct trusted keys"),
                "{refused}"
            );
        }
    }
    store.offer(&baseline(2, &[KEY_B, KEY_C]), "f", &only_a()).unwrap();
    assert_eq!(in_force(&store), [("a".to_owned(), 2)]);
}

#[test]
fn the_threshold_never_falls_without_a_restart_nor_below_the_configs() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    rotate(&mut store, &rotation(1, 2, &[KEY_A, KEY_B], &[KEY_A]), false).unwrap();
    let lower = rotation(2, 1, &[KEY_A, KEY_B], &[KEY_A, KEY_B]);
    assert_eq!(
        rotate(&mut store, &lower, false).unwrap_err(),
        "bad keys statement: predicate.requireSignatures: 2 or more: fewer than are required now takes a restart"
    );
    assert_eq!(rotate(&mut store, &lower, true), Ok(true));
    assert_eq!(store.trust(&only_a()).threshold, 1);
    assert_eq!(store.trust(&Policy { threshold: 2, ..policy() }).threshold, 2);
    // An earlier statement never comes back, whoever signs it again.
    let earlier = rotation(1, 2, &[KEY_A, KEY_B, KEY_C], &[KEY_A, KEY_B]);
    assert_eq!(
        rotate(&mut store, &earlier, true).unwrap_err(),
        "bad keys statement: predicate.revision: above 2, which is in force"
    );
}

#[test]
fn a_config_that_caught_up_needs_no_old_key() {
    let dir = tempfile::tempdir().unwrap();
    rotate(&mut open(dir.path()), &rotation(3, 1, &[KEY_B], &[KEY_A]), false).unwrap();
    let only_b = Policy { trusted: vec![key(KEY_B).public().clone()], ..policy() };
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.load(&only_b).1, []);
    store.offer(&baseline(1, &[KEY_B]), "f", &only_b).unwrap();
    // The revision goes on from where it was.
    let low = rotation(3, 1, &[KEY_C], &[KEY_B]);
    let refused = store.offer_keys(&low, "k", &only_b, true).unwrap().unwrap_err().reason;
    assert_eq!(refused, "revision 3 is not above 3, which was accepted before");
    let next = rotation(4, 1, &[KEY_C], &[KEY_B]);
    assert!(store.offer_keys(&next, "k", &only_b, true).unwrap().is_ok());
}

#[test]
fn a_lost_or_exchanged_keys_statement_is_told() {
    let dir = tempfile::tempdir().unwrap();
    rotate(&mut open(dir.path()), &rotation(1, 1, &[KEY_B], &[KEY_A]), false).unwrap();
    let file = dir.path().join("keys/1.dsse.json");
    std::fs::write(&file, rotation(1, 1, &[KEY_C], &[KEY_A])).unwrap();
    let told = |dir: &std::path::Path| Store::open(dir).unwrap().load(&only_a()).1;
    assert_eq!(told(dir.path())[0].reason, "it is not the one that was accepted");
    std::fs::remove_file(file).unwrap();
    assert_eq!(told(dir.path())[0].name.as_deref(), Some("trusted-keys"));
}

#[test]
fn what_is_wrong_with_a_statement_is_told() {
    let good = Rotation::statement(1, 1, &[key(KEY_A).public().clone()]).unwrap();
    assert!(is_keys_statement(&good) && statement::parse(&good).is_err());
    let refused = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_slice(&good).unwrap();
        edit(&mut json);
        Rotation::parse(json.to_string().as_bytes()).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|json| json["predicate"]["requireSignatures"] = 2.into()),
        "bad keys statement: predicate.requireSignatures: 1 to as many as there are keys"
    );
    assert_eq!(
        refused(&|json| json["predicate"]["keys"][0]["name"] = "x".into()),
        "bad keys statement: subject[0].digest.sha256: the SHA-256 of predicate.keys as canonical JSON"
    );
    assert_eq!(
        refused(&|json| json["predicate"]["revision"] = 0.into()),
        "bad keys statement: predicate.revision: 1 or more"
    );
    assert!(refused(&|json| json["predicate"]["more"] = 1.into()).contains("unknown field `more`"));
}
