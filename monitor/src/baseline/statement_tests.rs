//! Hostile statements: each is refused with the field that is wrong.

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::object::Writer;
use super::statement::{PREDICATE_TYPE, STATEMENT_TYPE, parse};

fn object() -> Value {
    json!({
        "class": "sealed", "gid": 0, "mode": "0644", "path": "/a", "sha256": "00".repeat(32), "size": 1,
        "type": "file", "uid": 0,
    })
}

/// A statement over these objects, with the digest that they need.
fn statement(objects: &Value) -> Value {
    let canonical = serde_json::to_vec(objects).unwrap();
    json!({
        "_type": STATEMENT_TYPE,
        "subject": [{ "name": "n", "digest": { "sha256": hex::encode(sha2::Sha256::digest(canonical)) } }],
        "predicateType": PREDICATE_TYPE,
        "predicate": { "name": "n", "revision": 1, "objects": objects },
    })
}

fn refused(statement: &Value) -> String {
    parse(&serde_json::to_vec(statement).unwrap()).unwrap_err().to_string()
}

#[test]
fn defaults_are_as_documented() {
    let baseline = parse(&serde_json::to_vec(&statement(&json!([object()]))).unwrap()).unwrap();
    assert_eq!(baseline.transition.as_secs(), 1800);
    assert_eq!(&*baseline.writers, [Writer::Kubelet]);
    assert_eq!(baseline.objects.len(), 1);
}

#[test]
fn a_digest_over_sorted_keys_is_the_one_that_others_work_out() {
    let rotated = |path: &str, identity: Value| {
        json!({
            "class": "rotated", "gid": 0, "mode": "0644", "path": path, "type": "file", "uid": 0, "identity": identity,
        })
    };
    let token = json!({ "kind": "token", "aud": ["istio-ca"], "iss": "https://issuer", "sub": "system:serviceaccount:a:b" });
    let x509 = json!({
        "kind": "x509", "keyFile": "/key.pem", "roots": ["00".repeat(32)], "rootsFile": "/roots.pem", "sans": ["DNS:a"],
    });
    let mut bound = token.clone();
    bound["podBound"] = json!(true);
    let objects = json!([rotated("/bound", bound), rotated("/chain", x509), rotated("/token", token)]);
    let baseline = parse(&serde_json::to_vec(&statement(&objects)).unwrap()).unwrap();
    assert_eq!(baseline.objects.len(), 3);
}

#[test]
fn each_bad_object_names_its_field() {
    let hex = "00".repeat(32);
    let secret =
        json!({ "class": "sealed", "gid": 0, "mode": "0644", "path": "/a", "type": "file", "uid": 0 });
    for (field, value, expected) in [
        (
            "path",
            json!("a"),
            "predicate.objects[0].path: an absolute path of at most 4096 bytes without `.`, `..` or empty components",
        ),
        (
            "path",
            json!("/a/../b"),
            "predicate.objects[0].path: an absolute path of at most 4096 bytes without `.`, `..` or empty components",
        ),
        (
            "path",
            json!(format!("/{}", "a/".repeat(2048))),
            "predicate.objects[0].path: an absolute path of at most 4096 bytes without `.`, `..` or empty components",
        ),
        (
            "path",
            json!("/a\u{0}"),
            "predicate.objects[0].path: an absolute path of at most 4096 bytes without `.`, `..` or empty components",
        ),
        ("mode", json!("0999"), "predicate.objects[0].mode: octal digits, at most 07777"),
        ("mode", json!("17777"), "predicate.objects[0].mode: octal digits, at most 07777"),
        ("sha256", json!("0"), "predicate.objects[0].sha256: 64 hex digits"),
        ("hmac", json!(hex), "predicate.objects[0]: one of sha256, hmac, publicKey, identity, meaning"),
        ("names", json!({}), "predicate.objects[0].names: another type of object"),
        ("target", json!("/x"), "predicate.objects[0].target: another type of object"),
        (
            "writers",
            json!(["nobody"]),
            "predicate.objects[0].writers: `kubelet` or names in predicate.writers",
        ),
        (
            "xattrs",
            json!({ "user.a": "plain" }),
            "predicate.objects[0].xattrs[user.a]: a name once, and base64: of at most 64 bytes or sha256: of 64 hex digits",
        ),
        (
            "class",
            json!("opaque"),
            "predicate.objects[0].class: sealed with a digest, generated with or without, rotated with identity, opaque with neither",
        ),
    ] {
        let mut bad = object();
        bad[field] = value;
        // Sorted keys, as canonical JSON needs: serde_json's maps are sorted.
        assert_eq!(refused(&statement(&json!([bad]))), format!("bad statement: {expected}"), "{field}");
    }
    assert_eq!(
        refused(&statement(&json!([secret]))),
        "bad statement: predicate.objects[0].class: sealed with a digest, generated with or without, rotated with \
         identity, opaque with neither"
    );
}

#[test]
fn what_comes_twice_is_refused() {
    assert_eq!(
        refused(&statement(&json!([object(), object()]))),
        "bad statement: predicate.objects: /a: each path once"
    );
    // The same path in another spelling.
    let mut other = object();
    other["path"] = json!("/\\x61");
    assert!(refused(&statement(&json!([object(), other]))).contains("subject[0].digest.sha256"));
    let twice = br#"{"_type":"x","_type":"x"}"#;
    assert_eq!(
        parse(twice).unwrap_err().to_string(),
        "bad statement: JSON: duplicate field `_type` at line 1 column 20"
    );
}

#[test]
fn the_frame_is_checked() {
    let good = statement(&json!([]));
    for (pointer, value, expected) in [
        ("/_type", json!("x"), format!("bad statement: _type: {STATEMENT_TYPE}")),
        ("/predicateType", json!("x"), format!("bad statement: predicateType: {PREDICATE_TYPE}")),
        ("/predicate/revision", json!(0), "bad statement: predicate.revision: 1 or more".into()),
        (
            "/predicate/name",
            json!("../n"),
            "bad statement: predicate.name: 1 to 128 letters, digits, `.`, `_`, `-`, not first a `.`".into(),
        ),
        ("/subject", json!([]), "bad statement: subject: exactly one".into()),
        ("/subject/0/name", json!("m"), "bad statement: subject[0].name: the same as predicate.name".into()),
        (
            "/subject/0/digest/sha256",
            json!("00"),
            "bad statement: subject[0].digest.sha256: the SHA-256 of predicate.objects as canonical JSON"
                .into(),
        ),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        assert_eq!(refused(&bad), expected);
    }
    for (field, value) in [("extra", json!(1)), ("transition", json!("soon"))] {
        let mut bad = good.clone();
        bad["predicate"][field] = value;
        assert!(refused(&bad).starts_with("bad statement: JSON: "), "{field}");
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    let deep = "[".repeat(200_000);
    assert!(parse(deep.as_bytes()).unwrap_err().to_string().starts_with("bad statement: JSON: "));
    let inside = format!("{{\"predicate\":{}", "{\"a\":".repeat(200_000));
    assert!(parse(inside.as_bytes()).unwrap_err().to_string().starts_with("bad statement: JSON: "));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(parse(&bytes).is_err());
        prop_assert!(super::signed::Signed::read(&bytes).is_err());
        prop_assert!(super::keys::TrustedKey::from_pem(&bytes).is_err());
        prop_assert!(super::keys::SigningKey::from_pem(&bytes).is_err());
        prop_assert_eq!(super::secret::public_key_of(&bytes), None);
        prop_assert!(super::identity::extract(&bytes).is_err());
    }
}
